"""The walk over a remote-write 2.0 body.

``Request {4 symbols*, 5 timeseries*}``, ``TimeSeries {1 labels_refs packed, 2 samples* {1 double value, 2 int64 ms},
3 histograms*, 4 exemplars*, 5 metadata {1 type, 3 help_ref, 4 unit_ref}}`` (prometheus/prompb/io/prometheus/write/v2).

Senders build a symbol table per request, so neither its bytes nor the refs repeat. What repeats are the texts: each
symbol is looked up once in the tenant's own table, first as the one that followed last time, and the key of a series
is the run of these process-wide numbers, four bytes each. It is shorter than the labels, and the same for all senders.

A sender that does repeat a whole table repeats its refs as well: then they are compared with those of the request
before, byte by byte.
"""

from __future__ import annotations

import numpy as np

from ingest.kernels.compare import same_bytes
from ingest.kernels.protobuf import WIRE_BYTES, WIRE_FIXED64, WIRE_VARINT, next_field, read_exact_varint, read_varint
from tsdb.kernels._jit import const, device, i64, kernel, mut, u8, u32, u64
from tsdb.kernels.keys import find_key, hash_bytes, load64, mum
from tsdb.kernels.symbols import find_symbol

MALFORMED = -1
FULL = -2
AGAIN = -3

PENDING = 0xFFFFFFFF  # ref of a sample whose series is among the misses
UNKNOWN = 0xFFFFFFFF  # tenant symbol of a text that the tenant's table does not hold
REFS_TAG = 0x0A
RUN_PAIRS = 1024  # labels of the longest series that gets a key, far above ``labels_max``

# columns of ``symbols``: where the text lies
SYMBOL_BEGIN, SYMBOL_END = range(2)

# columns of ``misses``: one row for each series with samples or exemplars that the key table does not know
MISS_BEGIN, MISS_END, MISS_FIRST_SAMPLE, MISS_SAMPLES, MISS_FIRST_EXEMPLAR, MISS_EXEMPLARS, MISS_BAD = range(7)
MISS_COLUMNS = 7

# columns of ``exemplars``: the series ref (PENDING: of a missed one) and the message
EXEMPLAR_REF, EXEMPLAR_BEGIN, EXEMPLAR_END = range(3)
EXEMPLAR_COLUMNS = 3

# columns of ``metadata``: the key (-1: none yet), what is said (a hash), the message, the series
METADATA_KEY, METADATA_HASH, METADATA_BEGIN, METADATA_END, METADATA_SERIES_BEGIN, METADATA_SERIES_END = range(6)
METADATA_COLUMNS = 6

# columns of ``series`` and ``known_series``: where the refs lie, and their key (-1: not to be trusted)
SERIES_REFS_BEGIN, SERIES_REFS_END, SERIES_KEY = range(3)
SERIES_COLUMNS = 3

# slots of ``facts``
(
    FACT_SYMBOLS,
    FACT_MISSES,
    FACT_METADATA,
    FACT_EXEMPLARS,
    FACT_HISTOGRAMS,
    FACT_UNSORTED,  # series whose samples do not ascend in time
    FACT_NEWEST_MS,
    FACT_OWN_FIELDS,  # top-level fields 4 and 5
    FACT_V1_FIELDS,  # top-level fields 1 and 3
    FACT_ERROR_AT,  # byte where a malformed body was given up
    FACT_NATIVE_SERIES,  # series with native histograms
    FACT_EMPTY_SERIES,  # series with nothing in them
    FACT_SERIES,
) = range(13)
SHOWN = 3
FACT_NATIVE_RANGES = 13  # from here: begin and end of the first such series
FACT_EMPTY_RANGES = FACT_NATIVE_RANGES + 2 * SHOWN
FACTS = FACT_EMPTY_RANGES + 2 * SHOWN

SAID_BITS = 8  # series of a scrape are sorted by family: few metadata messages are alive at once

RUN_LONG = -1
RUN_BAD = -2

_U0 = np.uint64(0)
_U32 = np.uint64(32)
_ONES = np.uint64(0xFFFFFFFFFFFFFFFF)
_LOW7 = np.uint64(0x7F)
_NEXT7 = np.uint64(0x7F << 7)
_CONTINUES = np.uint64(0x80)
_CONTINUES_TWICE = np.uint64(0x8000)
_MIX = np.uint64(0x9E3779B97F4A7C15)


@device
def put_u32(buf, at, value):
    """Write a uint32 as four little-endian bytes."""
    for k in range(4):
        buf[at + k] = u8(value >> u64(8 * k) & u64(0xFF))


@device
def build_run(body, begin, end, symbol_ids, n_symbols, run):
    """Spell a series by the tenant's symbols, wherever its refs stand and however they are packed.

    Returns
    -------
    (bytes of the run, whether all texts are known); bytes ``RUN_BAD`` for an odd number of refs or one outside the
    table, ``RUN_LONG`` when the run does not fit
    """
    n = i64(0)
    known = True
    pos = begin
    while pos < end:
        field, _, inner, pos = next_field(body, pos, end)
        if field != 1:
            continue
        while inner < pos:
            ref, inner = read_varint(body, inner, pos)
            if inner < 0 or ref >= u64(n_symbols):
                return i64(RUN_BAD), False
            if n + 4 <= len(run):
                put_u32(run, n, u64(symbol_ids[i64(ref)]))
                known &= symbol_ids[i64(ref)] != u32(UNKNOWN)
            n += 4
    if n & 7 != 0:
        return i64(RUN_BAD), False
    if n > len(run):
        return i64(RUN_LONG), False
    return n, known


@device
def refs_are_sound(body, begin, end, wire):
    """Whether a field of label refs holds together as protobuf."""
    if wire == WIRE_VARINT:
        return True
    if wire != WIRE_BYTES:
        return False
    while begin < end:
        _, begin = read_varint(body, begin, end)
        if begin < 0:
            return False
    return True


@device
def same_text(a, a_at, b, b_at, n):
    """Whether two ranges of usual text lengths are the same, without a branch that depends on the length.

    Both arrays go on for 32 bytes behind the ranges.
    """
    if n > 32:
        return same_bytes(a, a_at, b, b_at, n)
    differ = _U0
    for k in range(4):
        rest = max(i64(0), min(i64(8), n - 8 * k))
        # In two halves: a shift by 64 is not defined.
        mask = ~((_ONES << u64(4 * rest)) << u64(4 * rest))
        differ |= (load64(a, a_at + 8 * k) ^ load64(b, b_at + 8 * k)) & mask
    return differ == _U0


@device
def read_pair(body, pos):
    """(name ref, value ref, position after them); position -1 when one takes more than two bytes.

    May look up to eight bytes ahead, and take bytes behind the run for a ref: the caller compares positions.
    """
    word = load64(body, pos)
    name = word & _LOW7
    if word & _CONTINUES == _U0:
        word >>= u64(8)
        pos += 1
    elif word & _CONTINUES_TWICE == _U0:
        name |= word >> u64(1) & _NEXT7
        word >>= u64(16)
        pos += 2
    else:
        return _U0, _U0, i64(-1)
    value = word & _LOW7
    if word & _CONTINUES == _U0:
        return name, value, i64(pos + 1)
    if word & _CONTINUES_TWICE == _U0:
        return name, value | word >> u64(1) & _NEXT7, i64(pos + 2)
    return _U0, _U0, i64(-1)


@device
def symbol_hash(body, symbols, n_symbols, ref):
    """Hash of a symbol's text; any number for a ref outside the table."""
    if ref >= u64(n_symbols):
        return ref
    return hash_bytes(body, symbols[i64(ref), SYMBOL_BEGIN], symbols[i64(ref), SYMBOL_END])


@kernel(
    i64(
        const(u8), i64,
        const(u8), const(u64), const(u64), mut(u32),
        const(u8), const(u64), const(u32), const(u32), mut(u32), const(u64), const(u32),
        i64, i64, i64, const(u8), const(i64, 2),
        mut(i64, 2), mut(u32), mut(u64, 2), mut(u8),
        mut(u32), mut(i64), mut(u64), mut(i64, 2), mut(i64, 2), mut(i64, 2), mut(i64, 2), mut(i64),
    )
)  # fmt: skip
def parse_write_v2(
    body, n_bytes,
    sym_bytes, sym_offsets, sym_slots, next_symbols,
    key_bytes, key_offsets, key_lengths, key_refs, next_keys, slots, key_metadata,
    scattered, table_end, table_symbols, known_body, known_series,
    symbols, symbol_ids, said_before, run,
    out_refs, out_ts_ms, out_bits, series, misses, exemplars, metadata, facts,
):  # fmt: skip
    """Turn a decompressed body into samples of known series and a list of unknown series.

    Parameters
    ----------
    body : (>= n_bytes + 64,) uint8, const      padded body
    n_bytes : int64
    sym_bytes, sym_offsets, sym_slots : the tenant's symbols
    next_symbols : (symbols,) uint32, state     symbol that followed last time; 0 = none
    key_bytes ... slots : as of ``KeyTable.arrays()``; ``next_keys`` is written where the order changed
    key_metadata : (keys,) uint32, const        hash of the metadata last taken over for a key
    scattered : int64                           0: symbols are expected before the first series; 1: anywhere
    table_end, table_symbols : int64            bytes and number of the symbols that ``symbols`` and ``symbol_ids`` hold
        already, because the body begins as ``known_body`` does; 0 = none
    known_body, known_series : the request before with these symbols, and its ``series``; empty when there is none
    symbols : (capacity, 2) int64, written      text ranges of the request's symbols
    symbol_ids : (capacity,) uint32, written    their numbers in the tenant's table, or ``UNKNOWN``
    said_before : (2 ** SAID_BITS, 2) uint64, written    scratch: metadata messages of this request -> what they say
    run : (8 * RUN_PAIRS,) uint8, written       scratch for one key
    out_refs, out_ts_ms, out_bits : (capacity,) written; ref ``PENDING`` for samples of a missed series
    series : (capacity, 3) int64, written       columns ``SERIES_*``; only when no table was known
    misses : (capacity, 7) int64, written       columns ``MISS_*``; ``MISS_BAD`` 1 when its refs make no labels
    exemplars : (capacity, 3) int64, written    columns ``EXEMPLAR_*``
    metadata : (capacity, 6) int64, written     columns ``METADATA_*``; only what changed
    facts : (FACTS,) int64, written             counters ``FACT_*``

    Returns
    -------
    int64    number of samples; ``MALFORMED``; ``FULL`` when an output is too small (double them and call again);
        ``AGAIN`` when there are symbols behind the first series (call again with ``scattered`` 1 and no known table)
    """
    facts[:] = 0
    said_before[:] = 0
    facts[FACT_NEWEST_MS] = i64(-(1 << 63))

    # 1. the symbols, each looked up once
    n_symbols = i64(table_symbols)
    facts[FACT_OWN_FIELDS] = n_symbols
    last = i64(0)
    pos = i64(table_end)
    while pos < n_bytes:
        facts[FACT_ERROR_AT] = pos
        field, wire, begin, pos = next_field(body, pos, n_bytes)
        if pos < 0:
            return MALFORMED
        if field == 5 and scattered == 0:
            break
        if field == 1 or field == 3:
            facts[FACT_V1_FIELDS] += 1
        if field == 4 or field == 5:
            if wire != WIRE_BYTES:
                return MALFORMED
            facts[FACT_OWN_FIELDS] += 1
        if field != 4:
            continue
        if n_symbols >= len(symbol_ids):
            return FULL
        length = pos - begin
        symbol = i64(next_symbols[last])
        at = i64(sym_offsets[symbol])
        if (
            symbol == 0
            or i64(sym_offsets[symbol + 1]) - at != length
            or not same_text(body, begin, sym_bytes, at, length)
        ):
            h = hash_bytes(body, begin, pos)
            symbol = i64(find_symbol(h, body, begin, pos, sym_bytes, sym_offsets, sym_slots))
            if symbol > 0:
                next_symbols[last] = u32(symbol)
        if symbol > 0:
            last = symbol
        symbols[n_symbols, SYMBOL_BEGIN] = begin
        symbols[n_symbols, SYMBOL_END] = pos
        symbol_ids[n_symbols] = u32(UNKNOWN) if symbol < 0 else u32(symbol)
        n_symbols += 1

    # 2. the series
    n_samples = i64(0)
    n_misses = i64(0)
    n_metadata = i64(0)
    n_exemplars = i64(0)
    n_series = i64(0)
    previous = i64(0)  # key 0 is the start of every request; -1 when the previous series has no key
    pos = i64(0) if scattered != 0 else facts[FACT_ERROR_AT]
    while pos < n_bytes:
        facts[FACT_ERROR_AT] = pos
        field, wire, begin, pos = next_field(body, pos, n_bytes)
        if pos < 0:
            return MALFORMED
        if field != 5:
            if scattered == 0:
                if field == 4:
                    return AGAIN
                if field == 1 or field == 3:
                    facts[FACT_V1_FIELDS] += 1
            continue
        if wire != WIRE_BYTES:
            return MALFORMED
        facts[FACT_OWN_FIELDS] += 1
        end = pos

        # 2a. the series that stood here last time, or the one that followed, compared pair by pair
        key = i64(-1)
        refs_begin = i64(0)
        refs_end = i64(0)
        at = begin
        if n_series < len(known_series) and at < end and body[at] == REFS_TAG:
            size, at = read_varint(body, at + 1, end)
            known = known_series[n_series, SERIES_REFS_BEGIN]
            if (
                at >= 0
                and size <= u64(end - at)
                and known_series[n_series, SERIES_KEY] > 0
                and i64(size) == known_series[n_series, SERIES_REFS_END] - known
                and same_text(body, at, known_body, known, i64(size))
            ):
                key = known_series[n_series, SERIES_KEY]
                at += i64(size)
            else:
                at = begin
        if key < 0 and previous >= 0 and at < end and body[at] == REFS_TAG:
            size, at = read_varint(body, at + 1, end)
            if at < 0 or size > u64(end - at):
                facts[FACT_ERROR_AT] = begin
                return MALFORMED
            stop = at + i64(size)
            refs_begin = at
            refs_end = stop
            guess = i64(next_keys[previous])
            mark = i64(key_offsets[guess])
            mark_end = mark + i64(key_lengths[guess])
            while at >= 0 and at < stop and mark < mark_end:
                name, value, after = read_pair(body, at)
                if after < 0:  # a table of more than 16,384 symbols
                    name, at = read_varint(body, at, stop)
                    value = u64(n_symbols)
                    if at >= 0:
                        value, at = read_varint(body, at, stop)
                else:
                    at = after
                same = False
                if at >= 0 and name < u64(n_symbols) and value < u64(n_symbols):
                    pair = u64(symbol_ids[i64(name)]) | u64(symbol_ids[i64(value)]) << _U32
                    same = pair == load64(key_bytes, mark)
                if not same:
                    at = i64(-1)
                mark += 8
            if guess > 0 and at == stop and mark == mark_end:
                key = guess
        predicted = key > 0
        bad = False
        if key < 0:
            at = begin
            while at < end:  # unknown: every later step relies on the refs being sound
                facts[FACT_ERROR_AT] = at
                field, wire, inner, at = next_field(body, at, end)
                if at < 0 or (field == 1 and not refs_are_sound(body, inner, at, wire)):
                    return MALFORMED
            at = begin
            n_run, complete = build_run(body, begin, end, symbol_ids, n_symbols, run)
            bad = n_run == RUN_BAD
            if n_run > 0 and complete:
                key = i64(find_key(run, 0, n_run, key_bytes, key_offsets, key_lengths, slots))
                if key > 0 and previous >= 0:
                    next_keys[previous] = u32(key)

        # 2b. everything else
        odd = False
        n_runs = 1 if predicted else 0
        own = u32(PENDING)
        if key > 0:
            own = key_refs[key]
        first = n_samples
        first_exemplar = n_exemplars
        n_histograms = i64(0)
        unsorted = False
        newest = i64(-(1 << 63))
        while at < end:
            facts[FACT_ERROR_AT] = at
            field, wire, inner, at = next_field(body, at, end)
            if at < 0:
                return MALFORMED
            if field == 1:
                if not refs_are_sound(body, inner, at, wire):
                    return MALFORMED
                odd |= predicted  # another run of refs behind the one that was compared
                n_runs += 1
                refs_begin = inner
                refs_end = at
                continue
            if field > 5:
                continue
            if wire != WIRE_BYTES:
                return MALFORMED
            if field == 2:
                bits = _U0
                stamp = _U0
                done = i64(-1)
                if at - inner >= 11 and body[inner] == 0x09 and body[inner + 9] == 0x10:
                    bits = load64(body, inner + 1)
                    stamp, exact = read_exact_varint(body, inner + 10, at)
                    if exact:
                        done = at
                if done != at:  # not value then time: defaults left out, a start time, unknown fields
                    bits = _U0
                    stamp = _U0
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
                out_refs[n_samples] = own
                out_ts_ms[n_samples] = ts_ms
                out_bits[n_samples] = bits
                n_samples += 1
            elif field == 3:
                n_histograms += 1
            elif field == 4:
                if n_exemplars >= len(exemplars):
                    return FULL
                exemplars[n_exemplars, EXEMPLAR_REF] = i64(own)
                exemplars[n_exemplars, EXEMPLAR_BEGIN] = inner
                exemplars[n_exemplars, EXEMPLAR_END] = at
                n_exemplars += 1
            else:
                begin_m = inner
                size_m = u64(at - inner)
                token = load64(body, inner)
                if size_m < u64(8):
                    token &= (u64(1) << (size_m << u64(3))) - u64(1)
                slot = i64(token * _MIX >> u64(64 - SAID_BITS))
                said = said_before[slot, 1]
                if size_m > u64(8) or said_before[slot, 0] != token or said >> _U32 != size_m:
                    said = _U0
                    while inner < at:
                        field, wire, number_at, inner = next_field(body, inner, at)
                        if inner < 0 or (field <= 4 and wire != WIRE_VARINT):
                            return MALFORMED
                        if field <= 4:
                            number, _ = read_varint(body, number_at, inner)
                            if field >= 3:
                                number = symbol_hash(body, symbols, n_symbols, number)
                            said ^= mum(number + u64(field), _MIX ^ u64(field) << _U32)
                    said = said >> _U32 | u64(1)
                    if size_m <= u64(8):
                        said_before[slot, 0] = token
                        said_before[slot, 1] = said | size_m << _U32
                said &= u64(0xFFFFFFFF)
                if key < 0 or u64(key_metadata[key]) != said:
                    if n_metadata >= len(metadata):
                        return FULL
                    metadata[n_metadata, METADATA_KEY] = key
                    metadata[n_metadata, METADATA_HASH] = i64(said)
                    metadata[n_metadata, METADATA_BEGIN] = begin_m
                    metadata[n_metadata, METADATA_END] = at
                    metadata[n_metadata, METADATA_SERIES_BEGIN] = begin
                    metadata[n_metadata, METADATA_SERIES_END] = end
                    n_metadata += 1
        if odd:  # the labels go on elsewhere: nobody's habit, so the slow way each time
            key = i64(-1)
            n_run, complete = build_run(body, begin, end, symbol_ids, n_symbols, run)
            bad = n_run == RUN_BAD
        if n_histograms > 0:
            shown = facts[FACT_NATIVE_SERIES]
            if shown < SHOWN:
                facts[FACT_NATIVE_RANGES + 2 * shown] = begin
                facts[FACT_NATIVE_RANGES + 2 * shown + 1] = end
            facts[FACT_NATIVE_SERIES] += 1
            facts[FACT_HISTOGRAMS] += n_histograms
        elif n_samples == first and n_exemplars == first_exemplar:
            shown = facts[FACT_EMPTY_SERIES]
            if shown < SHOWN:
                facts[FACT_EMPTY_RANGES + 2 * shown] = begin
                facts[FACT_EMPTY_RANGES + 2 * shown + 1] = end
            facts[FACT_EMPTY_SERIES] += 1
        if unsorted:
            facts[FACT_UNSORTED] += 1
        facts[FACT_NEWEST_MS] = max(facts[FACT_NEWEST_MS], newest)

        # 2c. what follows what, and what nobody knows yet
        if table_end == 0:
            if n_series >= len(series):
                return FULL
            series[n_series, SERIES_REFS_BEGIN] = refs_begin
            series[n_series, SERIES_REFS_END] = refs_end
            series[n_series, SERIES_KEY] = key if n_runs == 1 and body[begin] == REFS_TAG else i64(-1)
        n_series += 1
        previous = key if key > 0 else i64(-1)
        if key < 0 and (n_samples > first or n_exemplars > first_exemplar):
            if n_misses >= len(misses):
                return FULL
            for i in range(first, n_samples):
                out_refs[i] = u32(PENDING)
            for i in range(first_exemplar, n_exemplars):
                exemplars[i, EXEMPLAR_REF] = i64(PENDING)
            misses[n_misses, MISS_BEGIN] = begin
            misses[n_misses, MISS_END] = end
            misses[n_misses, MISS_FIRST_SAMPLE] = first
            misses[n_misses, MISS_SAMPLES] = n_samples - first
            misses[n_misses, MISS_FIRST_EXEMPLAR] = first_exemplar
            misses[n_misses, MISS_EXEMPLARS] = n_exemplars - first_exemplar
            misses[n_misses, MISS_BAD] = 1 if bad else 0
            n_misses += 1
    facts[FACT_SYMBOLS] = n_symbols
    facts[FACT_SERIES] = n_series
    facts[FACT_MISSES] = n_misses
    facts[FACT_METADATA] = n_metadata
    facts[FACT_EXEMPLARS] = n_exemplars
    return n_samples


@kernel(i64(const(u8), const(i64, 2), const(i64, 2), i64, mut(i64), mut(i64), mut(i64), mut(i64), mut(i64)))
def label_spans_v2(body, misses, symbols, n_symbols, series_offsets, name_begin, name_end, value_begin, value_end):
    """Where the names and values of the missed series' labels lie in the body.

    Parameters
    ----------
    body : uint8, const                              the body that ``parse_write_v2`` accepted
    misses : (m, >= 2) int64, const                  columns ``MISS_BEGIN``, ``MISS_END``
    symbols : (n, 2) int64, const                    columns ``SYMBOL_*``
    n_symbols : int64
    series_offsets : (m + 1,) int64, written         labels of series i are ``[offsets[i], offsets[i + 1])``
    name_begin, name_end, value_begin, value_end : (capacity,) int64, written

    Returns
    -------
    int64    number of labels; when above the capacity, nothing past the capacity was written: call again with room.
        Refs outside the table and a last name without a value are left out
    """
    n_labels = i64(0)
    series_offsets[0] = 0
    for row in range(len(misses)):
        pos = misses[row, MISS_BEGIN]
        end = misses[row, MISS_END]
        name = i64(-1)
        while pos < end:
            field, _, inner, pos = next_field(body, pos, end)
            if field != 1:
                continue
            while inner < pos:
                ref, inner = read_varint(body, inner, pos)
                if ref >= u64(n_symbols):
                    continue
                if name < 0:
                    name = i64(ref)
                    continue
                if n_labels < len(name_begin):
                    name_begin[n_labels], name_end[n_labels] = symbols[name, SYMBOL_BEGIN], symbols[name, SYMBOL_END]
                    value = i64(ref)
                    value_begin[n_labels] = symbols[value, SYMBOL_BEGIN]
                    value_end[n_labels] = symbols[value, SYMBOL_END]
                n_labels += 1
                name = i64(-1)
        series_offsets[row + 1] = n_labels
    return n_labels


@kernel(
    i64(const(u8), const(i64, 2), const(i64, 2), i64, const(u8), const(u64), const(u64), mut(u32), mut(u8), mut(i64))
)
def key_runs(body, misses, symbols, n_symbols, sym_bytes, sym_offsets, sym_slots, symbol_ids, runs, ends):
    """Spell missed series by the tenant's symbols, now that those are interned.

    Parameters
    ----------
    body, misses, symbols, n_symbols : as of ``label_spans_v2``
    sym_bytes, sym_offsets, sym_slots : the tenant's symbols
    symbol_ids : (>= n_symbols,) uint32, state    entries that are ``UNKNOWN`` are looked up again
    runs : (capacity,) uint8, written             one run behind the other
    ends : (m,) int64, written                    end of each run; equal to the one before when there is no run

    Returns
    -------
    int64        bytes written
    """
    for symbol in range(n_symbols):
        if symbol_ids[symbol] == u32(UNKNOWN):
            begin = symbols[symbol, SYMBOL_BEGIN]
            end = symbols[symbol, SYMBOL_END]
            h = hash_bytes(body, begin, end)
            found = i64(find_symbol(h, body, begin, end, sym_bytes, sym_offsets, sym_slots))
            if found >= 0:
                symbol_ids[symbol] = u32(found)
    at = i64(0)
    for row in range(len(misses)):
        room = min(i64(len(runs)) - at, i64(8 * RUN_PAIRS))
        n, known = build_run(
            body, misses[row, MISS_BEGIN], misses[row, MISS_END], symbol_ids, n_symbols, runs[at : at + room]
        )
        if n > 0 and known:
            at += n
        ends[row] = at
    return at
