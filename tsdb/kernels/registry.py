"""Series of a tenant: check and sort labels, find or create series, read rows back.

A row is the run of pair numbers of one series, in the order of its label names' bytes. A pair is (label name
number, value symbol). Everything is append-only arrays; one writer at a time.
"""

from __future__ import annotations

import numpy as np

from tsdb.kernels._jit import const, device, i32, i64, kernel, mut, u8, u32, u64
from tsdb.kernels.keys import copy_bytes, mum, put_slot
from tsdb.kernels.symbols import compare_bytes, intern_symbol, symbol_is, valid_utf8

# Codes of a refused series: indexes into tsdb.index.registry.REJECT_CODES.
EMPTY_LABEL_NAME = 1
LABEL_NAME_TOO_LONG = 2
LABEL_VALUE_TOO_LONG = 3
INVALID_UTF8 = 4
TOO_MANY_LABELS = 5
SERIES_TOO_LONG = 6
DUPLICATE_LABEL = 7
NO_LABELS = 8
NO_METRIC_NAME = 9
SERIES_LIMIT = 10

# Places in the counts array of a registry.
NAMES = 0
PAIRS = 1
SERIES = 2
ENTRIES = 3

_METRIC_NAME = np.frombuffer(b"__name__", np.uint8)
_SEPARATOR = 0xFF  # never occurs in UTF-8
_U0 = np.uint64(0)
_U1 = np.uint64(1)
_U32 = np.uint64(32)
_SERIES_SHIFT = np.uint64(24)  # the lowest bits choose the shard, so that a table probes with others
_LOW32 = np.uint64(0xFFFFFFFF)
_PAIR_SEED = np.uint64(0xE7037ED1A0B428DB)


@device
def _check_labels(
    buf, first, last, name_start, name_end, value_start, value_end,
    labels_max, name_bytes_max, value_bytes_max, series_bytes_max, order,
):  # fmt: skip
    """Check labels ``[first, last)`` and fill ``order`` with those that have a value; their count or -code."""
    kept = i64(0)
    total = i64(0)
    for j in range(first, last):
        name_n = name_end[j] - name_start[j]
        value_n = value_end[j] - value_start[j]
        if name_n <= 0:
            return i64(-EMPTY_LABEL_NAME)
        if name_n > name_bytes_max:
            return i64(-LABEL_NAME_TOO_LONG)
        if value_n > value_bytes_max:
            return i64(-LABEL_VALUE_TOO_LONG)
        if not valid_utf8(buf, name_start[j], name_end[j]) or not valid_utf8(buf, value_start[j], value_end[j]):
            return i64(-INVALID_UTF8)
        if value_n > 0:
            if kept == labels_max:
                return i64(-TOO_MANY_LABELS)
            order[kept] = j
            kept += 1
            total += name_n + value_n
            if total > series_bytes_max:
                return i64(-SERIES_TOO_LONG)
    return kept if kept > 0 else i64(-NO_LABELS)


@kernel(
    i64(
        const(u8), const(i64), const(i64), const(i64), const(i64), const(i64),
        i64, i64, i64, i64, mut(i64), mut(u8), mut(i64), mut(i64),
    )
)  # fmt: skip
def canonicalise(
    buf, series_offsets, name_start, name_end, value_start, value_end,
    labels_max, name_bytes_max, value_bytes_max, series_bytes_max, order, out, out_offsets, status,
):  # fmt: skip
    """Write the canonical bytes of many series: labels sorted by name, empty values dropped, limits checked.

    Parameters
    ----------
    buf : (n_bytes,) uint8, const
    series_offsets : (n + 1,) int64, const      labels of series i are ``[series_offsets[i], series_offsets[i + 1])``
    name_start, name_end, value_start, value_end : (n_labels,) int64, const      byte ranges in ``buf``
    labels_max, name_bytes_max, value_bytes_max, series_bytes_max : int64        of SeriesLimits
    order : (labels_max,) int64, scratch
    out : uint8, written                        room for all names and values and two bytes a label
    out_offsets : (n + 1,) int64, written
    status : (n,) int64, written                0, or -code; a refused series has no bytes in ``out``

    Returns
    -------
    int64        bytes written
    """
    at = i64(0)
    out_offsets[0] = 0
    for i in range(len(series_offsets) - 1):
        kept = _check_labels(
            buf, series_offsets[i], series_offsets[i + 1], name_start, name_end, value_start, value_end,
            labels_max, name_bytes_max, value_bytes_max, series_bytes_max, order,
        )  # fmt: skip
        for k in range(1, kept):  # insertion: nearly always sorted already
            j = order[k]
            place = k
            while place > 0:
                before = order[place - 1]
                way = compare_bytes(buf, name_start[before], name_end[before], buf, name_start[j], name_end[j])
                if way == 0:
                    kept = i64(-DUPLICATE_LABEL)
                if way <= 0:
                    break
                order[place] = before
                place -= 1
            order[place] = j
            if kept < 0:
                break
        if kept > 0:
            named = False
            for k in range(kept):
                j = order[k]
                if compare_bytes(buf, name_start[j], name_end[j], _METRIC_NAME, 0, len(_METRIC_NAME)) == 0:
                    named = True
                n = name_end[j] - name_start[j]
                copy_bytes(buf, name_start[j], out, at, n)
                out[at + n] = _SEPARATOR
                at += n + 1
                n = value_end[j] - value_start[j]
                copy_bytes(buf, value_start[j], out, at, n)
                out[at + n] = _SEPARATOR
                at += n + 1
            if not named:
                kept = i64(-NO_METRIC_NAME)
                at = out_offsets[i]
        status[i] = min(kept, i64(0))
        out_offsets[i + 1] = at
    return at


@device
def _end_of_part(canon, at):
    """Place of the next separator."""
    while canon[at] != _SEPARATOR:
        at += 1
    return at


@device
def _row_is(ref, canon, begin, end, sym_bytes, sym_offsets, name_symbols, pair_names, pair_values, row_offsets, rows):
    """Whether series ``ref`` has exactly the canonical bytes ``canon[begin:end]``."""
    at = begin
    for entry in range(i64(row_offsets[ref]), i64(row_offsets[ref + 1])):
        pair = rows[entry]
        for part in range(2):
            symbol = i64(name_symbols[pair_names[pair]]) if part == 0 else i64(pair_values[pair])
            n = i64(sym_offsets[symbol + 1] - sym_offsets[symbol])
            if at + n >= end or canon[at + n] != _SEPARATOR:
                return False
            if not symbol_is(symbol, canon, at, n, sym_bytes, sym_offsets):
                return False
            at += n + 1
    return at == end


@device
def _pair_hash(name, value):
    return mum((u64(name) << _U32) ^ u64(value) ^ _PAIR_SEED, _PAIR_SEED)


@device
def find_pair(name, value, pair_names, pair_values, pair_slots):
    """Number of the pair (name number, value symbol), or -1."""
    h = _pair_hash(name, value)
    mask = u64(len(pair_slots) - 1)
    tag = h >> _U32
    at = h & mask
    while True:
        slot = pair_slots[at]
        if slot == _U0:
            return i64(-1)
        if slot >> _U32 == tag:
            pair = i64(slot & _LOW32) - 1
            if i64(pair_names[pair]) == name and i64(pair_values[pair]) == value:
                return pair
        at = (at + _U1) & mask


@kernel(
    i64(
        const(u8), const(i64), const(u64), i64, i64,
        mut(u8), mut(u64), mut(u64), mut(i64),
        mut(u32), mut(u32), mut(u32), mut(u32), mut(u32), mut(u32), mut(u32), mut(u64),
        mut(u64), mut(u32), mut(u32), mut(u32), mut(i64), mut(i64),
    )
)  # fmt: skip
def find_or_create(
    canon, canon_offsets, hashes, first, series_max,
    sym_bytes, sym_offsets, sym_slots, sym_counts,
    name_of_symbol, name_symbols, name_newest, name_pairs, pair_names, pair_values, pair_older, pair_slots,
    series_hashes, series_slots, row_offsets, rows, counts, refs,
):  # fmt: skip
    """Find series by their canonical bytes and create those that are new.

    Parameters
    ----------
    canon : uint8, const                    canonical bytes of all series
    canon_offsets : (n + 1,) int64, const
    hashes : (n,) uint64, const             xxh3-64 of each
    first : int64                           where to begin (to go on after a table has grown)
    series_max : int64                      most series
    sym_* : the symbol table
    name_* : by label name number: symbol, newest pair + 1, number of pairs; ``name_of_symbol`` = number + 1, by symbol
    pair_* : by pair number: name number, value symbol, next older pair of the name + 1; slots
    series_hashes, row_offsets : by ref; series_slots : ref + 1; rows : pair numbers
    counts : (4,) int64, state              names, pairs, series, row entries in use
    refs : (n,) int64, written              series; an entry below 0 on entry is left alone; -SERIES_LIMIT when full

    Returns
    -------
    int64        how many series are done; fewer than n means that one of the three slot arrays must grow
    """
    n = len(hashes)
    mask = u64(len(series_slots) - 1)
    for i in range(first, n):
        if refs[i] < 0:
            continue
        begin = canon_offsets[i]
        end = canon_offsets[i + 1]
        at = (hashes[i] >> _SERIES_SHIFT) & mask
        ref = i64(-1)
        while series_slots[at] != 0:
            known = i64(series_slots[at]) - 1
            if series_hashes[known] == hashes[i] and _row_is(
                known, canon, begin, end, sym_bytes, sym_offsets, name_symbols, pair_names, pair_values,
                row_offsets, rows,
            ):  # fmt: skip
                ref = known
                break
            at = (at + _U1) & mask
        if ref >= 0:
            refs[i] = ref
            continue
        labels = i64(0)
        for k in range(begin, end):
            if canon[k] == _SEPARATOR:
                labels += 1
        labels //= 2
        if counts[SERIES] >= series_max or counts[ENTRIES] + labels > len(rows):
            refs[i] = -SERIES_LIMIT
            continue
        if (
            (counts[SERIES] + 1) * 4 > len(series_slots) * 3
            or (counts[PAIRS] + labels) * 2 > len(pair_slots)
            or (sym_counts[0] + 2 * labels) * 2 > len(sym_slots)
        ):
            return i
        ref = counts[SERIES]
        entry = counts[ENTRIES]
        at_byte = begin
        full = False
        while at_byte < end:
            name_stop = _end_of_part(canon, at_byte)
            value_stop = _end_of_part(canon, name_stop + 1)
            name_symbol = intern_symbol(canon, at_byte, name_stop, sym_bytes, sym_offsets, sym_slots, sym_counts)
            value = intern_symbol(canon, name_stop + 1, value_stop, sym_bytes, sym_offsets, sym_slots, sym_counts)
            at_byte = value_stop + 1
            if name_symbol < 0 or value < 0:
                full = True
                break
            name = i64(name_of_symbol[name_symbol]) - 1
            if name < 0:
                name = counts[NAMES]
                if name >= len(name_symbols):
                    full = True
                    break
                name_symbols[name] = u32(name_symbol)
                counts[NAMES] = name + 1
                name_of_symbol[name_symbol] = u32(name + 1)
            pair = find_pair(name, value, pair_names, pair_values, pair_slots)
            if pair < 0:
                pair = counts[PAIRS]
                if pair >= len(pair_names):
                    full = True
                    break
                pair_names[pair] = u32(name)
                pair_values[pair] = u32(value)
                pair_older[pair] = name_newest[name]
                put_slot(pair_slots, _pair_hash(name, value), pair)
                counts[PAIRS] = pair + 1
                name_pairs[name] += u32(1)
                name_newest[name] = u32(pair + 1)
            rows[entry] = u32(pair)
            entry += 1
        if full:
            refs[i] = -SERIES_LIMIT
            continue
        row_offsets[ref + 1] = u32(entry)
        series_hashes[ref] = hashes[i]
        series_slots[at] = u32(ref + 1)
        counts[ENTRIES] = entry
        counts[SERIES] = ref + 1
        refs[i] = ref
    return n


@kernel(i64(const(u64), i64, mut(u32)))
def rehash_series(series_hashes, last, slots):
    """Enter series ``[0, last)`` into an empty, larger table.

    Returns
    -------
    int64        series entered
    """
    mask = u64(len(slots) - 1)
    for ref in range(last):
        at = (series_hashes[ref] >> _SERIES_SHIFT) & mask
        while slots[at] != 0:
            at = (at + _U1) & mask
        slots[at] = u32(ref + 1)
    return last


@kernel(i64(const(u32), const(u32), i64, mut(u64)))
def rehash_pairs(pair_names, pair_values, last, slots):
    """Enter pairs ``[0, last)`` into an empty, larger table.

    Returns
    -------
    int64        pairs entered
    """
    for pair in range(last):
        put_slot(slots, _pair_hash(i64(pair_names[pair]), i64(pair_values[pair])), pair)
    return last


@kernel(i64(i64, i64, const(u32), const(u32), const(u64)))
def look_up_pair(name, value, pair_names, pair_values, pair_slots):
    """Number of the pair (name number, value symbol), or -1."""
    return find_pair(name, value, pair_names, pair_values, pair_slots)


@kernel(i64(i64, i64, i64, const(u32), mut(u32)))
def walk_pairs(newest, stop, last, pair_older, out):
    """Pairs of one label name, newest first.

    Parameters
    ----------
    newest : int64              pair + 1 to begin with; 0 = none
    stop : int64                pair + 1 to end before
    last : int64                pairs at or above this number are passed over
    pair_older : uint32, const
    out : uint32, written

    Returns
    -------
    int64        pairs written
    """
    n = i64(0)
    link = newest
    while link != stop and link != 0:
        if link <= last and n < len(out):
            out[n] = u32(link - 1)
            n += 1
        link = i64(pair_older[link - 1])
    return n


@kernel(i64(const(u32), const(u32), const(u32), const(u32), const(u32), const(u32), i64, const(u8), const(u64),
            mut(i64), mut(u8)))  # fmt: skip
def write_canonical(
    refs, rows, row_offsets, pair_names, pair_values, name_symbols, measure_only, sym_bytes, sym_offsets, offsets, out
):
    """Canonical bytes of many series.

    Parameters
    ----------
    refs : (n,) uint32, const
    rows, row_offsets, pair_names, pair_values, name_symbols, sym_bytes, sym_offsets : the series
    measure_only : int64                  not 0: write only ``offsets``
    offsets : (n + 1,) int64, written
    out : uint8, written

    Returns
    -------
    int64        bytes of all
    """
    at = i64(0)
    offsets[0] = 0
    for i in range(len(refs)):
        ref = i64(refs[i])
        for entry in range(i64(row_offsets[ref]), i64(row_offsets[ref + 1])):
            pair = rows[entry]
            for part in range(2):
                symbol = i64(name_symbols[pair_names[pair]]) if part == 0 else i64(pair_values[pair])
                begin = i64(sym_offsets[symbol])
                n = i64(sym_offsets[symbol + 1]) - begin
                if measure_only == 0:
                    copy_bytes(sym_bytes, begin, out, at, n)
                    out[at + n] = _SEPARATOR
                at += n + 1
        offsets[i + 1] = at
    return at


@kernel(i64(const(u32), const(u32), const(u32), const(u32), mut(u8), mut(u32)))
def names_of(refs, rows, row_offsets, pair_names, seen, out):
    """Label name numbers that occur in some series, in the order met.

    Parameters
    ----------
    refs : (n,) uint32, const
    seen : (n_names,) uint8, zeros, written
    out : (n_names,) uint32, written

    Returns
    -------
    int64        names written
    """
    n = i64(0)
    for i in range(len(refs)):
        ref = i64(refs[i])
        for entry in range(i64(row_offsets[ref]), i64(row_offsets[ref + 1])):
            name = pair_names[rows[entry]]
            if seen[name] == 0:
                seen[name] = u8(1)
                out[n] = name
                n += 1
    return n


@kernel(i64(const(u32), const(u32), const(u32), const(u32), const(u32), const(i32), mut(i32, 2)))
def fill_labels(refs, rows, row_offsets, pair_names, pair_values, columns, out):
    """Fill a label table.

    Parameters
    ----------
    refs : (n,) uint32, const
    columns : (n_names,) int32, const           column of each label name number, -1 = leave out
    out : (n, n_columns) int32, zeros, written  value symbols

    Returns
    -------
    int64        cells filled
    """
    filled = i64(0)
    for i in range(len(refs)):
        ref = i64(refs[i])
        for entry in range(i64(row_offsets[ref]), i64(row_offsets[ref + 1])):
            pair = rows[entry]
            column = columns[pair_names[pair]]
            if column >= 0:
                out[i, column] = i32(pair_values[pair])
                filled += 1
    return filled


@kernel(i64(const(u32), const(u32), const(u32), const(u32), i64, mut(u8), mut(u32)))
def pairs_of(refs, rows, row_offsets, pair_names, name, seen, out):
    """Pairs of one label name that occur in some series, in the order met.

    Parameters
    ----------
    refs : (n,) uint32, const
    name : int64                          label name number
    seen : (n_pairs,) uint8, zeros, written
    out : (n,) uint32, written            a series has at most one value of a name

    Returns
    -------
    int64        pairs written
    """
    n = i64(0)
    for i in range(len(refs)):
        ref = i64(refs[i])
        for entry in range(i64(row_offsets[ref]), i64(row_offsets[ref + 1])):
            pair = rows[entry]
            if i64(pair_names[pair]) == name and seen[pair] == 0:
                seen[pair] = u8(1)
                out[n] = pair
                n += 1
    return n
