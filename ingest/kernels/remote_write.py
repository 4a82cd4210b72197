"""The walk over a remote-write 1.0 body.

``WriteRequest {1 timeseries*, 3 metadata*}``, ``TimeSeries {1 labels* {1 name, 2 value}, 2 samples* {1 double value,
2 int64 ms}, 3 exemplars*, 4 histograms*}`` (prometheus/prompb). A series is recognised by the exact bytes of its
label fields as this sender writes them: first the series that followed last time, then a probe of the key table.
"""

from __future__ import annotations

from ingest.kernels.compare import CACHE_LINE_BYTES, prefetch, same_bytes
from ingest.kernels.protobuf import WIRE_BYTES, WIRE_FIXED64, WIRE_VARINT, next_field, read_varint
from tsdb.kernels._jit import const, device, i64, kernel, mut, u8, u32, u64
from tsdb.kernels.keys import find_key, load64

MALFORMED = -1
FULL = -2

SCOUT_LEAD = 5  # series fetched ahead of the one that is compared: 75 -> 50 ns a series at 100,000 series

LABEL_TAG = 0x0A
PENDING = 0xFFFFFFFF  # ref of a sample whose series is among the misses

# columns of ``misses``: one row for each series with samples that the key table does not know
MISS_SERIES_BEGIN, MISS_SERIES_END, MISS_KEY_BEGIN, MISS_KEY_END, MISS_FIRST_SAMPLE, MISS_SAMPLES = range(6)
MISS_COLUMNS = 6

# slots of ``facts``
(
    FACT_MISSES,
    FACT_METADATA,
    FACT_SERIES,
    FACT_EXEMPLARS,
    FACT_HISTOGRAMS,
    FACT_UNSORTED,  # series whose samples do not ascend in time
    FACT_NEWEST_MS,
    FACT_OWN_FIELDS,  # top-level fields 1 and 3
    FACT_V2_FIELDS,  # top-level fields 4 and 5
    FACT_ERROR_AT,  # byte where a malformed body was given up
    FACT_NATIVE_SERIES,  # series with native histograms
) = range(11)
FACT_NATIVE_RANGES = 11  # from here: begin and end of the first such series
NATIVE_RANGES = 3
FACTS = FACT_NATIVE_RANGES + 2 * NATIVE_RANGES


@device
def label_is_sound(buf, pos, end):
    """Whether a Label message holds together (names and values are judged by the registry)."""
    while pos < end:
        field, wire, _, pos = next_field(buf, pos, end)
        if pos < 0 or (field <= 2 and wire != WIRE_BYTES):
            return False
    return True


@kernel(
    i64(
        const(u8), i64,
        const(u8), const(u64), const(u32), const(u32), mut(u32), const(u64),
        mut(u32), mut(i64), mut(u64), mut(i64, 2), mut(i64, 2), mut(i64),
    )
)  # fmt: skip
def parse_write(
    body, n_bytes,
    key_bytes, key_offsets, key_lengths, key_refs, next_keys, slots,
    out_refs, out_ts_ms, out_bits, misses, metadata, facts,
):  # fmt: skip
    """Turn a decompressed body into samples of known series and a list of unknown series.

    Parameters
    ----------
    body : (>= n_bytes + 64,) uint8, const      padded body
    n_bytes : int64
    key_bytes, key_offsets, key_lengths, key_refs, next_keys, slots : as of ``KeyTable.arrays()``; ``next_keys`` is
        written where the order of the sender changed
    out_refs, out_ts_ms, out_bits : (capacity,) written; ref ``PENDING`` for samples of a missed series
    misses : (capacity, 6) int64, written       columns ``MISS_*``; key end -1 when the labels are not one run
    metadata : (capacity, 2) int64, written     begin and end of each MetricMetadata message
    facts : (FACTS,) int64, written             counters ``FACT_*``

    Returns
    -------
    int64    number of samples; ``MALFORMED``; ``FULL`` when an output is too small (double them and call again)
    """
    facts[:] = 0
    facts[FACT_NEWEST_MS] = i64(-(1 << 63))
    n_samples = 0
    n_misses = 0
    n_metadata = 0
    scout = i64(0)
    lead = 0
    previous = 0  # key 0 is the start of every request; -1 when the previous series has no key
    pos = i64(0)
    while pos < n_bytes:
        facts[FACT_ERROR_AT] = pos
        field, wire, begin, pos = next_field(body, pos, n_bytes)
        if pos < 0:
            return MALFORMED
        if field != 1:
            if field == 3:
                if wire != WIRE_BYTES:
                    return MALFORMED
                if n_metadata >= len(metadata):
                    return FULL
                metadata[n_metadata, 0] = begin
                metadata[n_metadata, 1] = pos
                n_metadata += 1
            elif field == 4 or field == 5:
                facts[FACT_V2_FIELDS] += 1
            continue
        if wire != WIRE_BYTES:
            return MALFORMED
        facts[FACT_SERIES] += 1
        end = pos

        # 1. the labels, normally one run of fields at the front
        key = -1
        at = begin
        if previous >= 0:
            guess = i64(next_keys[previous])
            length = i64(key_lengths[guess])
            if (
                guess > 0
                and length <= end - begin
                and (begin + length == end or body[begin + length] != LABEL_TAG)
                and same_bytes(body, begin, key_bytes, i64(key_offsets[guess]), length)
            ):
                key = guess
                at = begin + length
                # Fetch the bytes of the series that are predicted for a little later.
                scout = i64(next_keys[scout])
                if lead < SCOUT_LEAD:
                    scout = i64(next_keys[scout])
                    lead += 1
                ahead = i64(key_offsets[scout])
                for line in range(0, i64(key_lengths[scout]), CACHE_LINE_BYTES):
                    prefetch(key_bytes, ahead + line)
        if key < 0:
            while at < end and body[at] == LABEL_TAG:
                facts[FACT_ERROR_AT] = at
                size, at = read_varint(body, at + 1, end)
                if at < 0 or size > u64(end - at):
                    return MALFORMED
                at += i64(size)
            lead = 0
            if at > begin:
                key = i64(find_key(body, begin, at, key_bytes, key_offsets, key_lengths, slots))
            if key > 0:
                scout = key
                if previous >= 0:
                    next_keys[previous] = u32(key)
            else:
                key = -1
                label = begin
                while label < at:  # unknown bytes: every later step relies on the labels being sound
                    facts[FACT_ERROR_AT] = label
                    _, _, inner, label = next_field(body, label, at)
                    if not label_is_sound(body, inner, label):
                        return MALFORMED
        run_end = at
        odd = False

        # 2. everything else
        ref = u32(PENDING)
        if key > 0:
            ref = key_refs[key]
        first = n_samples
        n_histograms = 0
        unsorted = False
        newest = i64(-(1 << 63))
        while at < end:
            facts[FACT_ERROR_AT] = at
            field, wire, inner, at = next_field(body, at, end)
            if at < 0:
                return MALFORMED
            if field > 4:
                continue
            if wire != WIRE_BYTES:
                return MALFORMED
            if field == 2:
                bits = u64(0)
                stamp = u64(0)
                done = i64(-1)
                if at - inner >= 11 and body[inner] == 0x09 and body[inner + 9] == 0x10:
                    bits = load64(body, inner + 1)
                    stamp, done = read_varint(body, inner + 10, at)
                if done != at:  # not value then time: defaults left out, other order, unknown fields
                    bits = u64(0)
                    stamp = u64(0)
                    done = inner
                    while done < at:
                        field, wire, inner, done = next_field(body, done, at)
                        if done < 0 or (field == 1 and wire != WIRE_FIXED64) or (field == 2 and wire != WIRE_VARINT):
                            return MALFORMED
                        if field == 1:
                            bits = load64(body, inner)
                        elif field == 2:
                            stamp, _ = read_varint(body, inner, done)
                if n_samples >= len(out_refs):
                    return FULL
                ts_ms = i64(stamp)
                if n_samples > first and ts_ms < newest:
                    unsorted = True
                newest = max(newest, ts_ms)
                out_refs[n_samples] = ref
                out_ts_ms[n_samples] = ts_ms
                out_bits[n_samples] = bits
                n_samples += 1
            elif field == 1:
                odd = True
                if not label_is_sound(body, inner, at):
                    return MALFORMED
            elif field == 3:
                facts[FACT_EXEMPLARS] += 1
            else:
                n_histograms += 1
        if n_histograms > 0:
            shown = facts[FACT_NATIVE_SERIES]
            if shown < NATIVE_RANGES:
                facts[FACT_NATIVE_RANGES + 2 * shown] = begin
                facts[FACT_NATIVE_RANGES + 2 * shown + 1] = end
            facts[FACT_NATIVE_SERIES] += 1
            facts[FACT_HISTOGRAMS] += n_histograms
        if unsorted:
            facts[FACT_UNSORTED] += 1
        facts[FACT_NEWEST_MS] = max(facts[FACT_NEWEST_MS], newest)

        # 3. what follows what, and what nobody knows yet
        if key > 0 and not odd:
            previous = key
            continue
        previous = -1
        if n_samples > first:
            if n_misses >= len(misses):
                return FULL
            for i in range(first, n_samples):
                out_refs[i] = u32(PENDING)
            misses[n_misses, MISS_SERIES_BEGIN] = begin
            misses[n_misses, MISS_SERIES_END] = end
            misses[n_misses, MISS_KEY_BEGIN] = begin
            misses[n_misses, MISS_KEY_END] = -1 if odd or run_end == begin else run_end
            misses[n_misses, MISS_FIRST_SAMPLE] = first
            misses[n_misses, MISS_SAMPLES] = n_samples - first
            n_misses += 1
    facts[FACT_MISSES] = n_misses
    facts[FACT_METADATA] = n_metadata
    facts[FACT_OWN_FIELDS] = facts[FACT_SERIES] + n_metadata
    return n_samples


@kernel(i64(const(u8), const(i64, 2), mut(i64), mut(i64), mut(i64), mut(i64), mut(i64)))
def label_spans(body, misses, series_offsets, name_begin, name_end, value_begin, value_end):
    """Where the names and values of the missed series' labels lie in the body.

    Parameters
    ----------
    body : uint8, const                              the body that ``parse_write`` accepted
    misses : (m, MISS_COLUMNS) int64, const
    series_offsets : (m + 1,) int64, written         labels of series i are ``[offsets[i], offsets[i + 1])``
    name_begin, name_end, value_begin, value_end : (capacity,) int64, written

    Returns
    -------
    int64    number of labels; when above the capacity, nothing past the capacity was written: call again with room
    """
    n_labels = 0
    series_offsets[0] = 0
    for row in range(len(misses)):
        pos = misses[row, MISS_SERIES_BEGIN]
        end = misses[row, MISS_SERIES_END]
        while pos < end:
            field, _, inner, pos = next_field(body, pos, end)
            if field != 1:
                continue
            ranges = (i64(0), i64(0), i64(0), i64(0))  # proto3: an absent name or value is empty
            while inner < pos:
                field, _, begin, inner = next_field(body, inner, pos)
                if field == 1:
                    ranges = (begin, inner, ranges[2], ranges[3])
                elif field == 2:
                    ranges = (ranges[0], ranges[1], begin, inner)
            if n_labels < len(name_begin):
                name_begin[n_labels], name_end[n_labels] = ranges[0], ranges[1]
                value_begin[n_labels], value_end[n_labels] = ranges[2], ranges[3]
            n_labels += 1
        series_offsets[row + 1] = n_labels
    return n_labels
