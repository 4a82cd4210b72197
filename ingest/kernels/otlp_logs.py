"""The walk over an OTLP logs request: where everything lies, nothing copied.

``ExportLogsServiceRequest {1 resource_logs* {1 resource, 2 scope_logs* {1 scope, 2 log_records*}}}``
(open-telemetry/opentelemetry-proto ``logs/v1/logs.proto``).
"""

from __future__ import annotations

from ingest.kernels.protobuf import WIRE_BYTES, WIRE_FIXED32, WIRE_FIXED64, WIRE_VARINT, next_field, read_varint
from tsdb.kernels._jit import const, device, i64, kernel, mut, u8, u32, u64
from tsdb.kernels.keys import find_key, load32, load64

MALFORMED = -1

RESOURCES, SCOPES, RECORDS, ATTRIBUTES = 0, 1, 2, 3
"""Places in ``counts``."""

(
    RESOURCE, SCOPE, TIME, OBSERVED, SEVERITY, TEXT_BEGIN, TEXT_END, BODY_KIND, BODY_BEGIN, BODY_END, DROPPED, FLAGS,
    TRACE_BEGIN, TRACE_END, SPAN_BEGIN, SPAN_END, EVENT_BEGIN, EVENT_END, FIRST_ATTRIBUTE,
) = range(19)  # fmt: skip
RECORD_COLUMNS = 19

KEY, KIND, NAME_BEGIN, NAME_END, VALUE_BEGIN, VALUE_END = range(6)
ATTRIBUTE_COLUMNS = 6

NONE, STRING, BOOL, INT, DOUBLE, ARRAY, MAP, BYTES = range(8)
"""What an AnyValue holds: its field numbers."""


@device
def _any_value(buf, at, end):
    """(kind, begin and end of the payload) of an AnyValue; kind -1 when it does not hold together."""
    kind = i64(NONE)
    start = at
    stop = at
    while at < end:
        field, wire, begin, at = next_field(buf, at, end)
        if at < 0:
            return i64(-1), start, stop
        if field > BYTES:
            continue
        expected = WIRE_BYTES
        if field in (BOOL, INT):
            expected = WIRE_VARINT
        elif field == DOUBLE:
            expected = WIRE_FIXED64
        if wire != expected:
            return i64(-1), start, stop
        kind = field
        start = begin
        stop = at
    return kind, start, stop


@device
def _wire_of(field):
    """Wire type of a field of a LogRecord; -1 = a field that is not read."""
    if field in (1, 11):
        return WIRE_FIXED64
    if field in (2, 7):
        return WIRE_VARINT
    if field == 8:
        return WIRE_FIXED32
    if field in (3, 5, 6, 9, 10, 12):
        return WIRE_BYTES
    return -1


@kernel(
    i64(
        const(u8), i64, const(u8), const(u64), const(u32), const(u32), const(u64),
        mut(i64, 2), mut(i64, 2), mut(i64, 2), mut(i64, 2), mut(i64),
    )
)  # fmt: skip
def walk_logs(
    body, n_bytes, key_bytes, key_offsets, key_lengths, key_refs, slots, resources, scopes, records, attributes, counts
):
    """Say where everything in a request lies.

    What does not fit the arrays is counted only: call again with arrays of the size that ``counts`` says.

    Parameters
    ----------
    body : (>= n_bytes + 64,) uint8
    key_bytes, key_offsets, key_lengths, key_refs, slots : of ``KeyTable.arrays()``; keys are names of attributes
    resources, scopes : (at least one, 2) int64       begin and end of each Resource and InstrumentationScope
    records : (at least one, RECORD_COLUMNS) int64    see the names of the columns
    attributes : (at least one, ATTRIBUTE_COLUMNS) int64
        of the records, in their order; KEY is -1 where the key table does not know the name
    counts : (4,) int64                               written: resources, scopes, records, attributes

    Returns
    -------
    int64        0 or MALFORMED
    """
    n_resources = i64(0)
    n_scopes = i64(0)
    n_records = i64(0)
    n_attributes = i64(0)
    at = i64(0)
    while at < n_bytes:
        field, wire, begin, at = next_field(body, at, n_bytes)
        if at < 0:
            return i64(MALFORMED)
        if field != 1:
            continue
        if wire != WIRE_BYTES:
            return i64(MALFORMED)
        resource = min(n_resources, len(resources) - 1)  # rows that do not fit overwrite the last one
        resources[resource, 0] = begin
        resources[resource, 1] = begin
        in_resource = begin
        while in_resource < at:
            field, wire, begin, in_resource = next_field(body, in_resource, at)
            if in_resource < 0 or (field <= 2 and wire != WIRE_BYTES):
                return i64(MALFORMED)
            if field == 1:
                resources[resource, 0] = begin
                resources[resource, 1] = in_resource
            if field != 2:
                continue
            scope = min(n_scopes, len(scopes) - 1)
            scopes[scope, 0] = begin
            scopes[scope, 1] = begin
            in_scope = begin
            while in_scope < in_resource:
                field, wire, begin, in_scope = next_field(body, in_scope, in_resource)
                if in_scope < 0 or (field <= 2 and wire != WIRE_BYTES):
                    return i64(MALFORMED)
                if field == 1:
                    scopes[scope, 0] = begin
                    scopes[scope, 1] = in_scope
                if field != 2:
                    continue
                row = min(n_records, len(records) - 1)
                for k in range(RECORD_COLUMNS):
                    records[row, k] = 0
                records[row, RESOURCE] = n_resources
                records[row, SCOPE] = n_scopes
                records[row, FIRST_ATTRIBUTE] = n_attributes
                place = begin
                while place < in_scope:
                    field, wire, begin, place = next_field(body, place, in_scope)
                    if place < 0:
                        return i64(MALFORMED)
                    expected = _wire_of(field)
                    if expected < 0:
                        continue
                    if wire != expected:
                        return i64(MALFORMED)
                    if field == 1:
                        records[row, TIME] = i64(load64(body, begin))
                    elif field == 11:
                        records[row, OBSERVED] = i64(load64(body, begin))
                    elif field in (2, 7):
                        value, _ = read_varint(body, begin, place)
                        records[row, SEVERITY if field == 2 else DROPPED] = i64(value)
                    elif field == 8:
                        records[row, FLAGS] = i64(load32(body, begin))
                    elif field == 5:
                        kind, start, stop = _any_value(body, begin, place)
                        if kind < 0:
                            return i64(MALFORMED)
                        records[row, BODY_KIND] = kind
                        records[row, BODY_BEGIN] = start
                        records[row, BODY_END] = stop
                    elif field == 6:
                        one = min(n_attributes, len(attributes) - 1)
                        attributes[one, NAME_BEGIN] = begin
                        attributes[one, NAME_END] = begin
                        attributes[one, KIND] = NONE
                        attributes[one, VALUE_BEGIN] = begin
                        attributes[one, VALUE_END] = begin
                        here = begin
                        while here < place:
                            field, wire, begin, here = next_field(body, here, place)
                            if here < 0 or (field <= 2 and wire != WIRE_BYTES):
                                return i64(MALFORMED)
                            if field == 1:
                                attributes[one, NAME_BEGIN] = begin
                                attributes[one, NAME_END] = here
                            elif field == 2:
                                kind, start, stop = _any_value(body, begin, here)
                                if kind < 0:
                                    return i64(MALFORMED)
                                attributes[one, KIND] = kind
                                attributes[one, VALUE_BEGIN] = start
                                attributes[one, VALUE_END] = stop
                        known = find_key(
                            body, attributes[one, NAME_BEGIN], attributes[one, NAME_END],
                            key_bytes, key_offsets, key_lengths, slots,
                        )  # fmt: skip
                        attributes[one, KEY] = i64(key_refs[known]) if known >= 0 else i64(-1)
                        n_attributes += 1
                    else:
                        column = TEXT_BEGIN
                        if field == 9:
                            column = TRACE_BEGIN
                        elif field == 10:
                            column = SPAN_BEGIN
                        elif field == 12:
                            column = EVENT_BEGIN
                        records[row, column] = begin
                        records[row, column + 1] = place
                n_records += 1
            n_scopes += 1
        n_resources += 1
    counts[RESOURCES] = n_resources
    counts[SCOPES] = n_scopes
    counts[RECORDS] = n_records
    counts[ATTRIBUTES] = n_attributes
    return i64(0)
