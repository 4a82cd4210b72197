"""The walk over a page, line by line: Prometheus' text format or OpenMetrics 1.0.

A series is recognised by the exact text left of its value, first as the one that followed last time.
Sources: prometheus.io/docs/instrumenting/exposition_formats, prometheus.io/docs/specs/om/open_metrics_spec.
"""

from __future__ import annotations

import numpy as np

from ingest.kernels.compare import same_bytes
from ingest.kernels.decimal import MINUS, NINE, PLUS, POINT, ZERO, parse_decimal
from tsdb.kernels._jit import const, device, i64, kernel, mut, u8, u32, u64
from tsdb.kernels.keys import find_key, hash_bytes, load64

MALFORMED = -1
FULL = -2
PENDING = 0xFFFFFFFF  # ref of a sample whose series is among the misses

# columns of ``misses`` (series the key table does not know), ``rare`` (numbers for the slow path; the sample is
# inverted, ~sample, for one that is a time) and ``exemplars``
COLUMN_BEGIN, COLUMN_END, COLUMN_SAMPLE, COLUMN_LINE = range(4)
COLUMNS = 4

# slots of ``facts``
(
    FACT_MISSES,
    FACT_RARE,
    FACT_TIMESTAMPS,  # samples with a time of their own
    FACT_COMMENTS,  # hash over all comment lines: equal = HELP and TYPE are as last time
    FACT_EXEMPLARS,
    FACT_ERROR,  # one of ERROR_*
    FACT_ERROR_LINE,
    FACT_ERROR_AT,
) = range(8)
FACTS = 8

ERROR_NAME, ERROR_BRACES, ERROR_VALUE, ERROR_TIMESTAMP, ERROR_END, ERROR_AFTER_EOF, ERROR_NO_EOF = range(1, 8)

NEWLINE, SPACE, TAB, HASH = ord("\n"), ord(" "), ord("\t"), ord("#")
OPEN, CLOSE, QUOTE, BACKSLASH = ord("{"), ord("}"), ord('"'), ord("\\")
COLON, UNDERSCORE = ord(":"), ord("_")
_ONES = np.uint64(0x0101010101010101)
_HIGHS = np.uint64(0x8080808080808080)
_NEWLINES = np.uint64(0x0A0A0A0A0A0A0A0A)
_U0 = np.uint64(0)
UPPER_E, UPPER_O, UPPER_F = ord("E"), ord("O"), ord("F")
UPPER_N, LOWER_A, UPPER_I, LOWER_N, LOWER_F = ord("N"), ord("a"), ord("I"), ord("n"), ord("f")
NAN_BITS = np.uint64(0x7FF8000000000001)  # as Prometheus stores an ordinary NaN
INFINITY_BITS = np.uint64(0x7FF0000000000000)
_SIGN = np.uint64(1 << 63)
_TIME_DIGITS_MAX = 18  # milliseconds; of seconds, three fewer
_MIX = np.uint64(0x9E3779B97F4A7C15)


@device
def skip_blanks(text, pos):
    """First position from ``pos`` that is neither blank nor tab (every line ends with a newline)."""
    while text[pos] == SPACE or text[pos] == TAB:
        pos += 1
    return pos


@device
def find_newline(text, pos):
    """Position of the next newline; there is one."""
    while True:
        word = load64(text, pos) ^ _NEWLINES
        if (word - _ONES) & ~word & _HIGHS != _U0:
            break
        pos += 8
    while text[pos] != NEWLINE:
        pos += 1
    return pos


@device
def is_name_byte(c):
    """Whether a byte may stand in a metric name that is not quoted (a digit not in first place)."""
    lower = c | 0x20
    return (lower >= 97 and lower <= 122) or (c >= ZERO and c <= NINE) or c in (UNDERSCORE, COLON)


@device
def scan_key(text, pos):
    """End of the series text that begins at ``pos``; -ERROR_NAME or -ERROR_BRACES when there is none."""
    begin = pos
    if text[pos] < ZERO or text[pos] > NINE:
        while is_name_byte(i64(text[pos])):
            pos += 1
    end = pos
    brace = skip_blanks(text, pos)
    if text[brace] != OPEN:
        return end if end > begin else i64(-ERROR_NAME)
    pos = brace + 1
    quoted = False
    while text[pos] != NEWLINE:
        c = text[pos]
        if c == QUOTE:
            quoted = not quoted
        elif quoted and c == BACKSLASH:
            pos += 1
            if text[pos] == NEWLINE:
                break
        elif c == CLOSE and not quoted:
            return pos + 1
        pos += 1
    return i64(-ERROR_BRACES)


@device
def parse_special(text, begin, end):
    """(bits, whether it is one) of the usual spellings of what is no finite number."""
    if end - begin == 3 and text[begin] == UPPER_N and text[begin + 1] == LOWER_A and text[begin + 2] == UPPER_N:
        return NAN_BITS, True
    if end - begin == 4 and text[begin + 1] == UPPER_I and text[begin + 2] == LOWER_N and text[begin + 3] == LOWER_F:
        if text[begin] == PLUS:
            return INFINITY_BITS, True
        if text[begin] == MINUS:
            return INFINITY_BITS | _SIGN, True
    return _U0, False


@device
def is_eof(text, pos, end):
    """Whether the comment ``text[pos:end]`` is the last line of OpenMetrics."""
    return (
        end - pos == 5 and text[pos + 1] == SPACE
        and text[pos + 2] == UPPER_E and text[pos + 3] == UPPER_O and text[pos + 4] == UPPER_F
    )  # fmt: skip


@kernel(
    i64(
        const(u8), i64, i64, i64,
        const(u8), const(u64), const(u32), const(u32), mut(u32), const(u64),
        mut(u32), mut(i64), mut(u64), mut(i64, 2), mut(i64, 2), mut(i64, 2), mut(i64),
    )
)  # fmt: skip
def parse_exposition(
    text, n_bytes, openmetrics, scrape_ms,
    key_bytes, key_offsets, key_lengths, key_refs, next_keys, slots,
    out_refs, out_ts_ms, out_bits, misses, rare, exemplars, facts,
):  # fmt: skip
    """Turn a page into samples of known series, and lists of unknown series, rare numbers and exemplars.

    OpenMetrics differs in its blanks (exactly one, where one belongs), in times (seconds), in exemplars, and in its
    last line. The syntax of its comments and exemplars is left to the caller, who looks at those that are new.

    Parameters
    ----------
    text : (>= n_bytes + 64,) uint8, const     padded text; its last byte, at ``n_bytes - 1``, is a newline that the
                                               sender did not send
    n_bytes, scrape_ms : int64                 ``scrape_ms`` is the time of samples that bring none
    openmetrics : int64                        1 = OpenMetrics, 0 = Prometheus' text format
    key_bytes ... slots : as of ``KeyTable.arrays()`` of this target; ``next_keys`` is written
    out_refs, out_ts_ms, out_bits : (capacity,) written; ref ``PENDING`` for a missed series, 0 for a rare number
    misses, rare, exemplars : (capacity, 4) int64, written    columns ``COLUMN_*``: the text, the sample, the line from
                                               1; an exemplar is the text from its ``#`` to the end of the line
    facts : (FACTS,) int64, written

    Returns
    -------
    int64    number of samples; ``MALFORMED``; ``FULL`` when an output is too small (double them and call again)
    """
    facts[:] = 0
    n_samples = i64(0)
    n_misses = i64(0)
    n_rare = i64(0)
    n_exemplars = i64(0)
    comments = _U0
    previous = i64(0)
    line = i64(0)
    pos = i64(0)
    strict = openmetrics != 0
    missing_eof = strict
    while pos < n_bytes:
        line += 1
        facts[FACT_ERROR_LINE] = line
        facts[FACT_ERROR_AT] = pos
        if not strict:
            pos = skip_blanks(text, pos)
        if text[pos] == NEWLINE and (not strict or pos == n_bytes - 1):
            pos += 1
            continue
        if text[pos] == HASH:
            end = find_newline(text, pos)
            if strict and is_eof(text, pos, end):
                if end + 2 < n_bytes:  # behind its newline there may only be ours
                    facts[FACT_ERROR] = ERROR_AFTER_EOF
                    facts[FACT_ERROR_LINE] = line + 1
                    facts[FACT_ERROR_AT] = end + 1
                    return MALFORMED
                missing_eof = False
                break
            comments = (comments ^ hash_bytes(text, pos, end)) * _MIX
            pos = end + 1
            continue

        key = i64(-1)
        end = pos
        if previous >= 0:
            guess = i64(next_keys[previous])
            length = i64(key_lengths[guess])
            if (
                guess > 0
                and pos + length < n_bytes
                and same_bytes(text, pos, key_bytes, i64(key_offsets[guess]), length)
            ):
                end = pos + length
                if text[end - 1] == CLOSE or (
                    not is_name_byte(i64(text[end])) and text[skip_blanks(text, end)] != OPEN
                ):
                    key = guess
        if key < 0:
            end = scan_key(text, pos)
            if end < 0:
                facts[FACT_ERROR] = -end
                facts[FACT_ERROR_AT] = pos
                return MALFORMED
            key = find_key(text, pos, end, key_bytes, key_offsets, key_lengths, slots)
            if key > 0 and previous >= 0:
                next_keys[previous] = u32(key)
        begin = pos

        pos = skip_blanks(text, end)
        if strict:
            pos = end + i64(text[end] == SPACE)
        value = pos
        while text[pos] != SPACE and text[pos] != NEWLINE and (strict or text[pos] != TAB):
            pos += 1
        if pos == value or (strict and value == end):
            facts[FACT_ERROR] = ERROR_VALUE
            facts[FACT_ERROR_AT] = value
            return MALFORMED
        bits, certain = parse_special(text, value, pos)
        if not certain:
            bits, certain = parse_decimal(text, value, pos)
        if n_samples >= len(out_refs) or n_rare + 2 > len(rare):
            return FULL
        if not certain:
            rare[n_rare, COLUMN_BEGIN] = value
            rare[n_rare, COLUMN_END] = pos
            rare[n_rare, COLUMN_SAMPLE] = n_samples
            rare[n_rare, COLUMN_LINE] = line
            n_rare += 1
            bits = _U0

        ts_ms = scrape_ms
        if strict:
            stamped = text[pos] == SPACE and text[pos + 1] != HASH
            pos += i64(stamped)
        else:
            pos = skip_blanks(text, pos)
            stamped = text[pos] != NEWLINE
        if stamped:
            facts[FACT_TIMESTAMPS] += 1
            facts[FACT_ERROR_AT] = pos
            stamp = pos
            negative = text[pos] == MINUS
            if negative:
                pos += 1
            first = pos
            ts_ms = i64(0)
            while text[pos] >= ZERO and text[pos] <= NINE:
                if pos - first < _TIME_DIGITS_MAX:
                    ts_ms = ts_ms * 10 + i64(text[pos]) - ZERO
                pos += 1
            if strict:
                digits = pos - first + 3
                ts_ms = ts_ms * 1000 if digits <= _TIME_DIGITS_MAX else i64(0)
                if text[pos] == POINT:
                    pos += 1
                    scale = i64(100)
                    while text[pos] >= ZERO and text[pos] <= NINE:
                        ts_ms += (i64(text[pos]) - ZERO) * scale
                        scale //= 10
                        pos += 1
                plain = digits > 3 and digits <= _TIME_DIGITS_MAX
                while text[pos] != SPACE and text[pos] != NEWLINE:
                    plain = False
                    pos += 1
                if pos == stamp:
                    facts[FACT_ERROR] = ERROR_TIMESTAMP
                    return MALFORMED
                if not plain:
                    rare[n_rare, COLUMN_BEGIN] = stamp
                    rare[n_rare, COLUMN_END] = pos
                    rare[n_rare, COLUMN_SAMPLE] = ~n_samples
                    rare[n_rare, COLUMN_LINE] = line
                    n_rare += 1
            else:
                if pos == first or pos - first > _TIME_DIGITS_MAX:
                    facts[FACT_ERROR] = ERROR_TIMESTAMP
                    return MALFORMED
                pos = skip_blanks(text, pos)
                if text[pos] != NEWLINE:
                    facts[FACT_ERROR] = ERROR_END
                    return MALFORMED
            if negative:
                ts_ms = -ts_ms
        if text[pos] != NEWLINE:  # only OpenMetrics comes here
            end_of_line = find_newline(text, pos)
            exemplars[n_exemplars, COLUMN_BEGIN] = pos + 1
            exemplars[n_exemplars, COLUMN_END] = end_of_line
            exemplars[n_exemplars, COLUMN_SAMPLE] = n_samples
            exemplars[n_exemplars, COLUMN_LINE] = line
            n_exemplars += 1  # at most one a sample: as many fit
            pos = end_of_line
        pos += 1

        out_ts_ms[n_samples] = ts_ms
        out_bits[n_samples] = bits
        if key > 0:
            out_refs[n_samples] = key_refs[key]
        else:
            if n_misses >= len(misses):
                return FULL
            out_refs[n_samples] = u32(PENDING)
            misses[n_misses, COLUMN_BEGIN] = begin
            misses[n_misses, COLUMN_END] = end
            misses[n_misses, COLUMN_SAMPLE] = n_samples
            misses[n_misses, COLUMN_LINE] = line
            n_misses += 1
        previous = key
        n_samples += 1
    if missing_eof:
        facts[FACT_ERROR] = ERROR_NO_EOF
        facts[FACT_ERROR_AT] = n_bytes - 1
        return MALFORMED
    facts[FACT_MISSES] = n_misses
    facts[FACT_RARE] = n_rare
    facts[FACT_EXEMPLARS] = n_exemplars
    facts[FACT_COMMENTS] = i64(comments)
    return n_samples
