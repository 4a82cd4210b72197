"""The walk over an OTLP metrics request, and the running totals of delta points.

``ExportMetricsServiceRequest {1 resource_metrics* {1 resource, 2 scope_metrics* {2 metrics* {1 name, 2 description,
3 unit, 5 gauge, 7 sum, 9 histogram, 10 exponential_histogram, 11 summary}}}}`` (opentelemetry-proto, metrics v1).

What identifies the series of a data point: the resource, name and unit of the metric, the bounds and the attributes,
each as the bytes that this sender writes. Their concatenation is the key, compared with the one that followed last
time piece by piece; only what differs is put together and looked up. A key leads to a run of series numbers: one for
a number; count, sum, each bucket and ``+Inf`` for a histogram.
"""

from __future__ import annotations

import numpy as np

from ingest.kernels.compare import same_bytes
from ingest.kernels.protobuf import WIRE_BYTES, WIRE_FIXED64, WIRE_VARINT, next_field, read_varint
from tsdb.kernels._jit import const, device, f64, i64, kernel, mut, u8, u32, u64
from tsdb.kernels.keys import copy_bytes, find_key, load64

MALFORMED = -1
FULL = -2

NUMBER, HISTOGRAM, SUMMARY = range(3)
GAUGE_FIELD, SUM_FIELD, HISTOGRAM_FIELD, EXPONENTIAL_FIELD, SUMMARY_FIELD = 5, 7, 9, 10, 11
DELTA, CUMULATIVE = 1, 2  # AggregationTemporality
NO_RECORDED_VALUE = 1  # DataPointFlags

# bits of a key's second word beside the kind: what the metric is
FLAG_SUM, FLAG_MONOTONIC, FLAG_DELTA, FLAG_HAS_SUM = 1 << 8, 1 << 9, 1 << 10, 1 << 11
KEY_PREFIX = 16

# columns of ``misses``: one row for each data point whose series are unknown, or that no fast way reads
(
    MISS_RESOURCE,  # row of ``resources``
    MISS_METRIC_BEGIN,
    MISS_METRIC_END,
    MISS_BEGIN,
    MISS_END,
    MISS_FLAGS,
    MISS_COUNTS,  # bounds | bucket counts << 32
    MISS_HEADER_BEGIN,
    MISS_HEADER_END,
    MISS_BOUNDS_BEGIN,
    MISS_BOUNDS_END,
    MISS_ATTRIBUTES_BEGIN,
    MISS_ATTRIBUTES_END,  # -1: the point is written in a way that makes no key
) = range(13)
MISS_COLUMNS = 13

# columns of ``resources``
RESOURCE_BEGIN, RESOURCE_END, RESOURCE_NUMBER, RESOURCE_NEWEST_MS = range(4)
RESOURCE_COLUMNS = 4

# columns of ``exemplars``: data points of known series that bring some
EXEMPLAR_FIRST_SAMPLE, EXEMPLAR_FLAGS, EXEMPLAR_BEGIN, EXEMPLAR_END = range(4)
EXEMPLAR_COLUMNS = 4

# slots of ``facts``
(
    FACT_MISSES,
    FACT_RESOURCES,
    FACT_EXEMPLARS,
    FACT_NEWEST_MS,
    FACT_ERROR_AT,
    FACT_EXPONENTIAL,  # data points of exponential histograms
    FACT_DELTA,  # data points of a temporality that is not accepted
    FACT_DELTAS,  # samples to be accumulated
    FACT_EXPONENTIAL_BEGIN,  # the first such metric
    FACT_EXPONENTIAL_END,
    FACT_DELTA_BEGIN,
    FACT_DELTA_END,
) = range(12)
FACTS = 12

STALE_BITS = np.uint64(0x7FF0000000000002)
OLDEST_MS = -(1 << 63)
_U0 = np.uint64(0)
_U32 = np.uint64(32)
_LOW32 = np.uint64(0xFFFFFFFF)
_NS_PER_MS = np.uint64(1_000_000)


@device
def put_u64(buf, at, value):
    """Write a uint64 as eight little-endian bytes."""
    for k in range(8):
        buf[at + k] = u8(value >> u64(8 * k) & u64(0xFF))


@device
def field_of(kind):
    """Field number of a data point's attributes."""
    return 7 if kind == NUMBER else 9


@kernel(
    i64(
        const(u8), i64, i64,
        const(u8), const(u64), const(u32), const(u32), const(u64),
        const(u8), const(u64), const(u32), const(u32), mut(u32), const(u64), const(u32), mut(u8),
        mut(u32), mut(i64), mut(u64), mut(f64), mut(u8), mut(i64, 2), mut(i64, 2), mut(i64, 2), mut(i64),
    )
)  # fmt: skip
def parse_otlp(
    body, n_bytes, accept_delta,
    resource_bytes, resource_offsets, resource_lengths, resource_refs, resource_slots,
    key_bytes, key_offsets, key_lengths, key_refs, next_keys, slots, families, scratch,
    out_refs, out_ts_ms, out_bits, out_values, out_delta, misses, resources, exemplars, facts,
):  # fmt: skip
    """Turn a request into samples of known series and a list of data points for the slow path.

    Parameters
    ----------
    body : (>= n_bytes + 64,) uint8, const      padded body
    n_bytes, accept_delta : int64               ``accept_delta`` 0 refuses points of delta temporality
    resource_bytes ... resource_slots : key table of whole Resource messages; refs are resource numbers
    key_bytes ... slots : key table of data points; refs are places in ``families``; ``next_keys`` is written
    families : (n,) uint32, const               runs of series numbers
    scratch : (>= 64 KiB,) uint8, written       for one key
    out_refs, out_ts_ms, out_bits, out_values, out_delta : (capacity,) written; ``out_values`` is ``out_bits`` seen as
        float64; delta 1 marks samples to be accumulated
    misses, resources, exemplars : (capacity, ...) int64, written
    facts : (FACTS,) int64, written

    Returns
    -------
    int64    number of samples; ``MALFORMED``; ``FULL`` when an output is too small (double them and call again)
    """
    facts[:] = 0
    facts[FACT_NEWEST_MS] = OLDEST_MS
    n_samples = i64(0)
    n_misses = i64(0)
    n_resources = i64(0)
    n_exemplars = i64(0)
    previous = i64(0)  # key 0 is the start of every request; -1 when the previous point has no key
    top = i64(0)
    while top < n_bytes:
        facts[FACT_ERROR_AT] = top
        field, wire, group, top = next_field(body, top, n_bytes)
        if top < 0 or (field == 1 and wire != WIRE_BYTES):
            return MALFORMED
        if field != 1:
            continue

        # 1. the resource, mostly the first field
        resource_begin = group
        resource_end = group
        scan = group
        while scan < top:
            field, wire, inner, scan = next_field(body, scan, top)
            if scan < 0 or (field <= 2 and wire != WIRE_BYTES):
                return MALFORMED
            if field == 1:
                resource_begin = inner
                resource_end = scan
        if n_resources >= len(resources):
            return FULL
        resource = i64(-1)
        found = i64(
            find_key(
                body, resource_begin, resource_end,
                resource_bytes, resource_offsets, resource_lengths, resource_slots,
            )
        )  # fmt: skip
        if found > 0:
            resource = i64(resource_refs[found])
        resources[n_resources, RESOURCE_BEGIN] = resource_begin
        resources[n_resources, RESOURCE_END] = resource_end
        resources[n_resources, RESOURCE_NUMBER] = resource
        newest = i64(OLDEST_MS)

        scope = group
        while scope < top:
            field, wire, scope_begin, scope = next_field(body, scope, top)
            if field != 2:
                continue
            metric = scope_begin
            while metric < scope:
                facts[FACT_ERROR_AT] = metric
                field, wire, metric_begin, metric = next_field(body, metric, scope)
                if metric < 0 or (field == 2 and wire != WIRE_BYTES):
                    return MALFORMED
                if field != 2:
                    continue

                # 2. a metric: name, description and unit in one run, then its points
                header_end = metric_begin
                while header_end < metric and (
                    body[header_end] == 0x0A or body[header_end] == 0x12 or body[header_end] == 0x1A
                ):
                    size, header_end = read_varint(body, header_end + 1, metric)
                    if header_end < 0 or size > u64(metric - header_end):
                        return MALFORMED
                    header_end += i64(size)
                strange = False
                rest = header_end
                while rest < metric:
                    data_field, wire, data_begin, rest = next_field(body, rest, metric)
                    if rest < 0 or (data_field <= 11 and wire != WIRE_BYTES):
                        return MALFORMED
                    if data_field <= 3:
                        strange = True
                rest = header_end
                while rest < metric:
                    data_field, wire, data_begin, rest = next_field(body, rest, metric)
                    if data_field < GAUGE_FIELD or data_field > SUMMARY_FIELD:
                        continue
                    kind = NUMBER
                    if data_field == HISTOGRAM_FIELD:
                        kind = HISTOGRAM
                    elif data_field == SUMMARY_FIELD:
                        kind = SUMMARY
                    temporality = u64(0)
                    monotonic = u64(0)
                    n_points = 0
                    scan = data_begin
                    while scan < rest:
                        field, wire, inner, scan = next_field(body, scan, rest)
                        if scan < 0 or (field == 1 and wire != WIRE_BYTES) or (1 < field <= 3 and wire != WIRE_VARINT):
                            return MALFORMED
                        if field == 1:
                            n_points += 1
                        elif field == 2:
                            temporality, _ = read_varint(body, inner, scan)
                        elif field == 3:
                            monotonic, _ = read_varint(body, inner, scan)
                    if data_field == EXPONENTIAL_FIELD:
                        if facts[FACT_EXPONENTIAL] == 0:
                            facts[FACT_EXPONENTIAL_BEGIN] = metric_begin
                            facts[FACT_EXPONENTIAL_END] = metric
                        facts[FACT_EXPONENTIAL] += n_points
                        continue
                    flags = i64(kind)
                    attribute_tag = field_of(kind) << 3 | WIRE_BYTES
                    delta = False
                    if data_field in (SUM_FIELD, HISTOGRAM_FIELD):
                        delta = temporality == u64(DELTA)
                        if temporality != u64(CUMULATIVE) and not (delta and accept_delta != 0):
                            if facts[FACT_DELTA] == 0:
                                facts[FACT_DELTA_BEGIN] = metric_begin
                                facts[FACT_DELTA_END] = metric
                            facts[FACT_DELTA] += n_points
                            continue
                        if delta:
                            flags |= FLAG_DELTA
                    if data_field == SUM_FIELD:
                        flags |= FLAG_SUM
                        if monotonic != _U0:
                            flags |= FLAG_MONOTONIC

                    # 3. its data points
                    scan = data_begin
                    while scan < rest:
                        facts[FACT_ERROR_AT] = scan
                        field, wire, begin, scan = next_field(body, scan, rest)
                        if field != 1:
                            continue
                        end = scan
                        time_ns = u64(0)
                        word = u64(0)
                        is_integer = False
                        count = u64(0)
                        has_sum = False
                        status = u64(0)
                        counts_begin = begin
                        counts_end = begin
                        bounds_begin = begin
                        bounds_end = begin
                        attributes_begin = begin
                        attributes_end = begin
                        has_exemplars = False
                        odd = strange or kind == SUMMARY
                        n_header = header_end - metric_begin
                        guess = i64(0)
                        if previous >= 0:
                            guess = i64(next_keys[previous])
                        mark = i64(key_offsets[guess])
                        guess_length = i64(key_lengths[guess])
                        same_attributes = False  # and the same metric
                        at = begin
                        while at < end:
                            tag_at = at
                            if body[at] == attribute_tag and attributes_end == attributes_begin and guess > 0:
                                # Mostly the attributes of the point that followed last time: no need to walk them.
                                skip = guess_length - KEY_PREFIX - n_header - (bounds_end - bounds_begin)
                                if (
                                    0 < skip <= end - at
                                    and i64(load64(key_bytes, mark + 8) & _LOW32) == (bounds_end - bounds_begin) >> 3
                                    and same_bytes(body, metric_begin, key_bytes, mark + KEY_PREFIX, n_header)
                                    and (at + skip == end or body[at + skip] != attribute_tag)
                                    and same_bytes(body, at, key_bytes, mark + guess_length - skip, skip)
                                ):
                                    same_attributes = True
                                    attributes_begin = at
                                    at += skip
                                    attributes_end = at
                                    continue
                            field, wire, inner, at = next_field(body, at, end)
                            if at < 0:
                                return MALFORMED
                            if field == field_of(kind):
                                if wire != WIRE_BYTES:
                                    return MALFORMED
                                same_attributes = False
                                if attributes_end == attributes_begin:
                                    attributes_begin = tag_at
                                elif attributes_end != tag_at:
                                    odd = True
                                attributes_end = at
                            elif field == 3:
                                if wire != WIRE_FIXED64:
                                    return MALFORMED
                                time_ns = load64(body, inner)
                            elif kind == NUMBER:
                                if field == 4 or field == 6:
                                    if wire != WIRE_FIXED64:
                                        return MALFORMED
                                    word = load64(body, inner)
                                    is_integer = field == 6
                                elif field == 5:
                                    if wire != WIRE_BYTES:
                                        return MALFORMED
                                    has_exemplars = True
                                elif field == 8:
                                    if wire != WIRE_VARINT:
                                        return MALFORMED
                                    status, _ = read_varint(body, inner, at)
                            elif kind == HISTOGRAM:
                                if field == 4 or field == 5:
                                    if wire != WIRE_FIXED64:
                                        return MALFORMED
                                    if field == 4:
                                        count = load64(body, inner)
                                    else:
                                        has_sum = True
                                        word = load64(body, inner)
                                elif field == 6:
                                    odd |= wire != WIRE_BYTES or counts_end != counts_begin or (at - inner) & 7 != 0
                                    counts_begin = inner
                                    counts_end = at
                                elif field == 7:
                                    odd |= wire != WIRE_BYTES or bounds_end != bounds_begin or (at - inner) & 7 != 0
                                    bounds_begin = inner
                                    bounds_end = at
                                elif field == 8:
                                    if wire != WIRE_BYTES:
                                        return MALFORMED
                                    has_exemplars = True
                                elif field == 10:
                                    if wire != WIRE_VARINT:
                                        return MALFORMED
                                    status, _ = read_varint(body, inner, at)

                        ts_ms = i64(time_ns // _NS_PER_MS)
                        newest = max(newest, ts_ms)
                        own = flags
                        if has_sum:
                            own |= FLAG_HAS_SUM
                        n_bounds = (bounds_end - bounds_begin) >> 3
                        n_counts = (counts_end - counts_begin) >> 3
                        counts_word = n_bounds | n_counts << 32
                        n_bounds_bytes = bounds_end - bounds_begin
                        n_attributes = attributes_end - attributes_begin
                        length = i64(KEY_PREFIX) + n_header + n_bounds_bytes + n_attributes
                        odd |= length > len(scratch) - 64

                        # 3a. its key
                        key = i64(-1)
                        if not odd and resource >= 0:
                            first_word = u64(resource) | u64(own) << _U32
                            if (
                                guess > 0
                                and guess_length == length
                                and load64(key_bytes, mark) == first_word
                                and load64(key_bytes, mark + 8) == u64(counts_word)
                                and same_bytes(
                                    body, bounds_begin, key_bytes, mark + KEY_PREFIX + n_header, n_bounds_bytes
                                )
                                and (
                                    same_attributes
                                    or (
                                        same_bytes(body, metric_begin, key_bytes, mark + KEY_PREFIX, n_header)
                                        and same_bytes(
                                            body,
                                            attributes_begin,
                                            key_bytes,
                                            mark + length - n_attributes,
                                            n_attributes,
                                        )
                                    )
                                )
                            ):
                                key = guess
                            if key < 0:
                                put_u64(scratch, 0, first_word)
                                put_u64(scratch, 8, u64(counts_word))
                                copy_bytes(body, metric_begin, scratch, KEY_PREFIX, n_header)
                                copy_bytes(body, bounds_begin, scratch, KEY_PREFIX + n_header, n_bounds_bytes)
                                copy_bytes(body, attributes_begin, scratch, length - n_attributes, n_attributes)
                                key = i64(find_key(scratch, 0, length, key_bytes, key_offsets, key_lengths, slots))
                                if key > 0 and previous >= 0:
                                    next_keys[previous] = u32(key)
                        previous = key if key > 0 else i64(-1)
                        if key < 0:
                            if n_misses >= len(misses):
                                return FULL
                            misses[n_misses, MISS_RESOURCE] = n_resources
                            misses[n_misses, MISS_METRIC_BEGIN] = metric_begin
                            misses[n_misses, MISS_METRIC_END] = metric
                            misses[n_misses, MISS_BEGIN] = begin
                            misses[n_misses, MISS_END] = end
                            misses[n_misses, MISS_FLAGS] = own
                            misses[n_misses, MISS_COUNTS] = counts_word
                            misses[n_misses, MISS_HEADER_BEGIN] = metric_begin
                            misses[n_misses, MISS_HEADER_END] = header_end
                            misses[n_misses, MISS_BOUNDS_BEGIN] = bounds_begin
                            misses[n_misses, MISS_BOUNDS_END] = bounds_end
                            misses[n_misses, MISS_ATTRIBUTES_BEGIN] = attributes_begin
                            misses[n_misses, MISS_ATTRIBUTES_END] = i64(-1) if odd else attributes_end
                            n_misses += 1
                            continue

                        # 3b. its samples
                        n_series = i64(1)
                        n_buckets = min(n_bounds, n_counts)
                        if kind == HISTOGRAM:
                            n_series = n_buckets + (3 if has_sum else 2)
                        if n_samples + n_series > len(out_refs):
                            return FULL
                        first = n_samples
                        family = i64(key_refs[key])
                        for k in range(n_series):
                            out_refs[first + k] = families[family + k]
                            out_ts_ms[first + k] = ts_ms
                            out_delta[first + k] = 1 if delta else 0
                        if kind == NUMBER:
                            if is_integer:
                                out_values[first] = f64(i64(word))
                            else:
                                out_bits[first] = word
                        else:
                            out_values[first] = f64(count)
                            place = first + 1
                            if has_sum:
                                out_bits[place] = word
                                place += 1
                            cumulative = u64(0)
                            for k in range(n_buckets):
                                cumulative += load64(body, counts_begin + 8 * k)
                                out_values[place + k] = f64(cumulative)
                            out_values[place + n_buckets] = f64(count)
                        if status & u64(NO_RECORDED_VALUE) != _U0:
                            for k in range(n_series):
                                out_bits[first + k] = STALE_BITS
                        if delta:
                            facts[FACT_DELTAS] += n_series
                        if has_exemplars:
                            if n_exemplars >= len(exemplars):
                                return FULL
                            exemplars[n_exemplars, EXEMPLAR_FIRST_SAMPLE] = first
                            exemplars[n_exemplars, EXEMPLAR_FLAGS] = own
                            exemplars[n_exemplars, EXEMPLAR_BEGIN] = begin
                            exemplars[n_exemplars, EXEMPLAR_END] = end
                            n_exemplars += 1
                        n_samples += n_series
        resources[n_resources, RESOURCE_NEWEST_MS] = newest
        n_resources += 1
        facts[FACT_NEWEST_MS] = max(facts[FACT_NEWEST_MS], newest)
    facts[FACT_MISSES] = n_misses
    facts[FACT_RESOURCES] = n_resources
    facts[FACT_EXEMPLARS] = n_exemplars
    return n_samples


@kernel(i64(const(u32), const(i64), const(u8), mut(u64), mut(f64), mut(f64), mut(f64), mut(i64), mut(u8)))
def accumulate(refs, ts_ms, delta, bits, values, totals, newest_values, newest_ms, keep):
    """Turn deltas into running totals, in the order given.

    A delta at the time of the series' newest one is a repeat when it is the same, and refused when not; an older one
    is refused: it is part of no total any more. Stale markers pass.

    Parameters
    ----------
    refs : (n,) uint32, const; ts_ms : (n,) int64, const
    delta : (n,) uint8, const            1 where a sample is a delta
    bits, values : (n,) uint64 and float64 over the same memory, written
    totals, newest_values : (series,) float64, state      the total and the newest delta of each series
    newest_ms : (series,) int64, state                    its time; 0 = there was none
    keep : (n,) uint8, written           0 where a delta is refused

    Returns
    -------
    int64    how many were refused
    """
    refused = i64(0)
    for i in range(len(refs)):
        keep[i] = 1
        if delta[i] == 0 or bits[i] == STALE_BITS:
            continue
        ref = refs[i]
        if newest_ms[ref] == 0 or ts_ms[i] > newest_ms[ref]:
            newest_values[ref] = values[i]
            newest_ms[ref] = ts_ms[i]
            totals[ref] += values[i]
        elif ts_ms[i] < newest_ms[ref] or values[i] != newest_values[ref]:
            keep[i] = 0
            refused += 1
            continue
        values[i] = totals[ref]
    return refused
