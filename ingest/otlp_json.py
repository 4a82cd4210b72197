"""OTLP/JSON to the protobuf bytes that mean the same, so that there is one reader; and the answer that says more.

Source: opentelemetry.io/docs/specs/otlp (JSON Protobuf encoding): lowerCamelCase keys, enums as numbers, 64-bit
integers as strings or numbers, trace and span ids in hex, unknown keys ignored.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from tsdb.errors import Reason, RejectedError

_U64 = 1 << 64
_DEPTH_MAX = 64
METRICS_REQUEST = "MetricsRequest"
LOGS_REQUEST = "LogsRequest"
_FLOATS = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}


def varint(value: int) -> bytes:
    """A varint; negative numbers in two's complement."""
    value %= _U64
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str | float):
        raise TypeError("a number is needed")
    number = int(value)
    if not -(1 << 63) <= number < _U64:
        raise ValueError("the number does not fit into 64 bits")
    return number


def _double(value: Any) -> bytes:
    if isinstance(value, str):
        value = _FLOATS[value] if value in _FLOATS else float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("a number is needed")
    return struct.pack("<d", value)


def _fixed(value: Any) -> bytes:
    return (_integer(value) % _U64).to_bytes(8, "little")


def _fixed32(value: Any) -> bytes:
    return _integer(value).to_bytes(4, "little")


def _string(value: Any) -> bytes:
    if not isinstance(value, str):
        raise TypeError("a string is needed")
    return value.encode()


def _bool(value: Any) -> bytes:
    if not isinstance(value, bool):
        raise TypeError("true or false is needed")
    return varint(value)


def _hex(value: Any) -> bytes:
    return binascii.unhexlify(_string(value))


def _base64(value: Any) -> bytes:
    return base64.b64decode(_string(value), validate=True)


def _temporality(value: Any) -> bytes:
    """A number, as the specification wants it, or the name that generic protobuf writers put there."""
    names = ("UNSPECIFIED", "DELTA", "CUMULATIVE")
    short = value.removeprefix("AGGREGATION_TEMPORALITY_") if isinstance(value, str) else ""
    return varint(names.index(short) if short in names else _integer(value))


_Scalar = tuple[int, Callable[[Any], bytes]]  # wire type, encoder
STRING, BOOL, TEMPORALITY, INT, DOUBLE, FIXED, FIXED32, HEX, BASE64 = (
    (2, _string),
    (0, _bool),
    (0, _temporality),
    (0, lambda value: varint(_integer(value))),
    (1, _double),
    (1, _fixed),
    (5, _fixed32),
    (2, _hex),
    (2, _base64),
)

# message -> JSON key -> (field number, scalar or message, whether it repeats)
_Field = tuple[int, _Scalar | str, bool]
_SCHEMA: Mapping[str, Mapping[str, _Field]] = {
    LOGS_REQUEST: {"resourceLogs": (1, "ResourceLogs", True)},
    "ResourceLogs": {"resource": (1, "Resource", False), "scopeLogs": (2, "ScopeLogs", True)},
    "ScopeLogs": {"scope": (1, "Scope", False), "logRecords": (2, "LogRecord", True)},
    "Scope": {
        "name": (1, STRING, False),
        "version": (2, STRING, False),
        "attributes": (3, "KeyValue", True),
        "droppedAttributesCount": (4, INT, False),
    },
    "LogRecord": {
        "timeUnixNano": (1, FIXED, False),
        "severityNumber": (2, INT, False),
        "severityText": (3, STRING, False),
        "body": (5, "AnyValue", False),
        "attributes": (6, "KeyValue", True),
        "droppedAttributesCount": (7, INT, False),
        "flags": (8, FIXED32, False),
        "traceId": (9, HEX, False),
        "spanId": (10, HEX, False),
        "observedTimeUnixNano": (11, FIXED, False),
        "eventName": (12, STRING, False),
    },
    METRICS_REQUEST: {"resourceMetrics": (1, "ResourceMetrics", True)},
    "ResourceMetrics": {"resource": (1, "Resource", False), "scopeMetrics": (2, "ScopeMetrics", True)},
    "Resource": {"attributes": (1, "KeyValue", True), "droppedAttributesCount": (2, INT, False)},
    "ScopeMetrics": {"metrics": (2, "Metric", True)},
    "Metric": {
        "name": (1, STRING, False),
        "description": (2, STRING, False),
        "unit": (3, STRING, False),
        "gauge": (5, "Numbers", False),
        "sum": (7, "Numbers", False),
        "histogram": (9, "Histogram", False),
        "exponentialHistogram": (10, "ExponentialHistogram", False),
        "summary": (11, "Summary", False),
    },
    "Numbers": {
        "dataPoints": (1, "NumberDataPoint", True),
        "aggregationTemporality": (2, TEMPORALITY, False),
        "isMonotonic": (3, BOOL, False),
    },
    "Histogram": {"dataPoints": (1, "HistogramDataPoint", True), "aggregationTemporality": (2, TEMPORALITY, False)},
    "ExponentialHistogram": {"dataPoints": (1, "Nothing", True), "aggregationTemporality": (2, TEMPORALITY, False)},
    "Summary": {"dataPoints": (1, "SummaryDataPoint", True)},
    "Nothing": {},
    "NumberDataPoint": {
        "startTimeUnixNano": (2, FIXED, False),
        "timeUnixNano": (3, FIXED, False),
        "asDouble": (4, DOUBLE, False),
        "exemplars": (5, "Exemplar", True),
        "asInt": (6, FIXED, False),
        "attributes": (7, "KeyValue", True),
        "flags": (8, INT, False),
    },
    "HistogramDataPoint": {
        "startTimeUnixNano": (2, FIXED, False),
        "timeUnixNano": (3, FIXED, False),
        "count": (4, FIXED, False),
        "sum": (5, DOUBLE, False),
        "bucketCounts": (6, FIXED, True),
        "explicitBounds": (7, DOUBLE, True),
        "exemplars": (8, "Exemplar", True),
        "attributes": (9, "KeyValue", True),
        "flags": (10, INT, False),
    },
    "SummaryDataPoint": {
        "startTimeUnixNano": (2, FIXED, False),
        "timeUnixNano": (3, FIXED, False),
        "count": (4, FIXED, False),
        "sum": (5, DOUBLE, False),
        "quantileValues": (6, "Quantile", True),
        "attributes": (7, "KeyValue", True),
        "flags": (8, INT, False),
    },
    "Quantile": {"quantile": (1, DOUBLE, False), "value": (2, DOUBLE, False)},
    "Exemplar": {
        "timeUnixNano": (2, FIXED, False),
        "asDouble": (3, DOUBLE, False),
        "spanId": (4, HEX, False),
        "traceId": (5, HEX, False),
        "asInt": (6, FIXED, False),
        "filteredAttributes": (7, "KeyValue", True),
    },
    "KeyValue": {"key": (1, STRING, False), "value": (2, "AnyValue", False)},
    "AnyValue": {
        "stringValue": (1, STRING, False),
        "boolValue": (2, BOOL, False),
        "intValue": (3, INT, False),
        "doubleValue": (4, DOUBLE, False),
        "arrayValue": (5, "Array", False),
        "kvlistValue": (6, "KeyValues", False),
        "bytesValue": (7, BASE64, False),
    },
    "Array": {"values": (1, "AnyValue", True)},
    "KeyValues": {"values": (1, "KeyValue", True)},
}


def _delimited(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def _message(name: str, data: Any, depth: int) -> bytes:
    if not isinstance(data, dict):
        raise TypeError(f"{name}: an object is needed")
    if depth > _DEPTH_MAX:
        raise ValueError(f"{name}: nested too deeply")
    out = []
    # In the order of the schema: whatever the order of the JSON keys, one thing has one spelling.
    for key, (number, kind, repeated) in _SCHEMA[name].items():
        value = data.get(key)
        if value is None:
            continue
        try:
            out.append(_field(number, kind, value, repeated, depth))
        except (TypeError, ValueError, OverflowError, struct.error) as error:
            text = str(error)
            raise ValueError(f"{key}.{text}" if isinstance(kind, str) else f"{key}: {text}") from None
    return b"".join(out)


def _field(number: int, kind: _Scalar | str, value: Any, repeated: bool, depth: int) -> bytes:
    if repeated and not isinstance(value, list):
        raise TypeError("a list is needed")
    if isinstance(kind, str):
        values = value if repeated else [value]
        return b"".join(_delimited(number, _message(kind, one, depth + 1)) for one in values)
    wire, encode = kind
    if repeated:  # numbers: packed
        return _delimited(number, b"".join(map(encode, value)))
    content = encode(value)
    return _delimited(number, content) if wire == 2 else varint(number << 3 | wire) + content


def to_protobuf(body: bytes, message: str = METRICS_REQUEST) -> bytes:
    """The protobuf form of an OTLP/JSON request.

    Parameters
    ----------
    message : METRICS_REQUEST or LOGS_REQUEST

    Raises
    ------
    RejectedError        MALFORMED; the message names the key
    """
    try:
        return _message(message, orjson.loads(body), 0)
    except (TypeError, ValueError, RecursionError) as error:
        raise RejectedError(Reason.MALFORMED, f"OTLP/JSON: {error}") from None


def partial_success(refused: int, text: str) -> bytes:
    """An ExportMetricsServiceResponse that says what was refused: {1 partial_success {1 count, 2 message}}."""
    return _delimited(1, b"\x08" + varint(refused) + _delimited(2, text[:4000].encode("utf-8", "replace")))


def rpc_status(text: str) -> bytes:
    """A ``google.rpc.Status`` without a code: {2 message}."""
    return _delimited(2, text[:4000].encode("utf-8", "replace"))
