"""Sums over sliding windows of counter increments."""

from __future__ import annotations

from tsdb.kernels._jit import const, f64, i32, i64, kernel, mut

_INT32_MAX = 2147483647.0


@kernel(i64(const(i64), const(i64), const(f64), i64, const(i64), mut(i32, 2), mut(f64, 2)))
def ring_add(cells, bins, values, now_bin, spans, ring, sums):
    """Add increments to their bins and to the sums of the windows that still cover them.

    Parameters
    ----------
    cells, bins : (n,) int64, const     which counter, and the bin of the sample's time
    values : (n,) float64, const        increments, >= 0; rounded to whole numbers
    now_bin : newest bin; increments ahead of it are put there, those older than the ring are left out
    spans : (n_windows,) int64, const   length of each window in bins
    ring : (n_bins, n_cells) int32, written
    sums : (n_windows, n_cells) float64, written

    Returns
    -------
    int64        increments too old to count
    """
    n_bins = ring.shape[0]
    late = 0
    for i in range(len(cells)):
        at = min(bins[i], now_bin)
        age = now_bin - at
        if age >= n_bins:
            late += 1
            continue
        value = round(values[i])
        slot = at % n_bins
        cell = cells[i]
        before = ring[slot, cell]
        after = min(before + value, _INT32_MAX)
        ring[slot, cell] = i32(after)
        for w in range(len(spans)):
            if age < spans[w]:
                sums[w, cell] += after - before
    return late


@kernel(i64(const(i64), const(i64), const(f64), mut(i64), mut(f64), mut(i64), mut(i64), mut(i64), mut(f64)))
def counter_deltas(offsets, times_ms, values, last_ms, last_value, out_row, out_begin_ms, out_ms, out_delta):
    """Increments of many counters from their samples; a decrease is a restart from zero, a NaN ends a series.

    Parameters
    ----------
    offsets : (rows + 1,) int64, const     samples of row r are ``[offsets[r], offsets[r + 1])``
    times_ms : (n,) int64, const           ascending within a row
    values : (n,) float64, const           NaN (a staleness marker) means that the series ended
    last_ms : (rows,) int64, state         time of the newest sample seen; samples not after it are skipped
    last_value : (rows,) float64, state    its value; NaN = none, the next sample gives no increment
    out_row, out_begin_ms, out_ms : (n,) int64, written   counter, and the interval (begin, end] of each increment
    out_delta : (n,) float64, written

    Returns
    -------
    int64        increments written
    """
    written = 0
    for row in range(len(offsets) - 1):
        before_ms = last_ms[row]
        before = last_value[row]
        for i in range(offsets[row], offsets[row + 1]):
            if times_ms[i] <= before_ms:
                continue
            value = values[i]
            if value == value and before == before:
                out_row[written] = row
                out_begin_ms[written] = before_ms
                out_ms[written] = times_ms[i]
                out_delta[written] = value - before if value >= before else value
                written += 1
            before_ms = times_ms[i]
            before = value
        last_ms[row] = before_ms
        last_value[row] = before
    return written
