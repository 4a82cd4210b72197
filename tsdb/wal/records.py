"""Bodies of log records: what the log carries, and a cluster's partitioned log would (docs/format/wal.md).

A body stands alone but for the series numbers of SAMPLES, which SERIES records of the same segment define.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import IntEnum
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tsdb.errors import CorruptionError
from tsdb.kernels import wal as kernels
from tsdb.kernels.wal import BODY_VERSION, SAMPLE_BYTES_MAX, SAMPLES_HEAD_BYTES
from tsdb.matchers import Matcher, MatchOp

SERIES_HEAD_BYTES = 5  # version u8, count u32
DELTA_BYTES_MAX = 10


class Kind(IntEnum):
    """What a record is; the byte is on disk."""

    SERIES = 1
    SAMPLES = 2
    METADATA = 3
    TOMBSTONE = 4
    STREAM = 5
    LOG_ROWS = 6
    NOTE = 7  # reserved, as the next: readers report them as unknown
    NATIVE_HISTOGRAM = 8
    REPLICAS = 9
    LOG_DELETE = 10


def _bad(what: str) -> CorruptionError:
    return CorruptionError("record body", 0, what)


def _checked(body: bytes, head_bytes: int) -> NDArray[np.uint8]:
    if len(body) < head_bytes:
        raise _bad("shorter than its header")
    if body[0] != BODY_VERSION:
        raise _bad(f"version {body[0]}, this program reads {BODY_VERSION}")
    return np.frombuffer(body, np.uint8)


class SampleBodies(NamedTuple):
    """Bodies of SAMPLES records, one for each part of a batch."""

    bodies: list[bytes]
    max_ms: list[int]  # newest sample time of each part


def encode_parts(
    refs: NDArray[np.uint32], ts_ms: NDArray[np.int64], bits: NDArray[np.uint64], starts: NDArray[np.int64]
) -> SampleBodies:
    """Bodies of SAMPLES records for the parts ``[starts[k], starts[k + 1])`` of a batch."""
    parts = len(starts) - 1
    out = np.empty(SAMPLES_HEAD_BYTES * parts + SAMPLE_BYTES_MAX * len(refs), np.uint8)
    ends, max_ms = np.empty(parts, np.int64), np.empty(parts, np.int64)
    size = kernels.encode_samples(refs, ts_ms, bits, starts, out, ends, max_ms)
    data = out[:size].tobytes()
    edges = [0, *ends.tolist()]
    return SampleBodies([data[a:b] for a, b in pairwise(edges)], max_ms.tolist())


def encode_samples(refs: NDArray[np.uint32], ts_ms: NDArray[np.int64], bits: NDArray[np.uint64]) -> bytes:
    """Body of a SAMPLES record; any times and bit patterns, in any order."""
    return encode_parts(refs, ts_ms, bits, np.array([0, len(refs)], np.int64)).bodies[0]


def decode_samples(body: bytes) -> tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.uint64]]:
    """(refs, ts_ms, bits) of a SAMPLES record.

    Raises
    ------
    CorruptionError        the body is no SAMPLES body of this version
    """
    data = _checked(body, SAMPLES_HEAD_BYTES)
    n = int.from_bytes(body[2:6], "little")
    if n > (len(body) - SAMPLES_HEAD_BYTES) // 9:  # a sample takes at least a byte and its value
        raise _bad(f"{n} samples do not fit into {len(body)} bytes")
    refs, ts_ms, bits = np.empty(n, np.uint32), np.empty(n, np.int64), np.empty(n, np.uint64)
    status = kernels.decode_samples(data, refs, ts_ms, bits)
    if status < 0:
        raise _bad(f"columns do not decode ({status})")
    return refs, ts_ms, bits


def encode_series(refs: NDArray[np.uint32], labels: NDArray[np.uint8], offsets: NDArray[np.int64]) -> bytes:
    """Body of a SERIES record.

    Parameters
    ----------
    refs : (n,) uint32        numbers that the SAMPLES records behind it use
    labels : uint8            canonical label bytes of all series
    offsets : (n + 1,) int64  series i is ``labels[offsets[i]:offsets[i + 1]]``
    """
    n = len(refs)
    out = np.empty(SERIES_HEAD_BYTES + 2 * DELTA_BYTES_MAX * n, np.uint8)
    out[0] = BODY_VERSION
    out[1:5] = np.frombuffer(n.to_bytes(4, "little"), np.uint8)
    pos = kernels.encode_deltas(refs.astype(np.int64), SERIES_HEAD_BYTES, out)
    pos = kernels.encode_deltas(np.diff(offsets), pos, out)
    return out[:pos].tobytes() + labels[int(offsets[0]) : int(offsets[-1])].tobytes()


def decode_series(body: bytes) -> tuple[NDArray[np.uint32], NDArray[np.uint8], NDArray[np.int64]]:
    """(refs, labels, offsets) of a SERIES record; ``labels`` is a view of the body.

    Raises
    ------
    CorruptionError        the body is no SERIES body of this version
    """
    data = _checked(body, SERIES_HEAD_BYTES)
    n = int.from_bytes(body[1:5], "little")
    if n > (len(body) - SERIES_HEAD_BYTES) // 2:
        raise _bad(f"{n} series do not fit into {len(body)} bytes")
    refs, lengths = np.empty(n, np.int64), np.empty(n, np.int64)
    pos = kernels.decode_deltas(data, SERIES_HEAD_BYTES, refs)
    pos = kernels.decode_deltas(data, pos, lengths) if pos >= 0 else pos
    if pos < 0:
        raise _bad(f"columns do not decode ({pos})")
    if n and (refs.min() < 0 or refs.max() > 0xFFFFFFFF or lengths.min() < 0 or lengths.max() > len(body)):
        raise _bad("series number or label length out of range")
    offsets = np.zeros(n + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    if pos + int(offsets[-1]) != len(body):
        raise _bad("label bytes do not end with the body")
    return refs.astype(np.uint32), data[pos:], offsets


def encode_metadata(families: Sequence[tuple[str, str, str, str]]) -> bytes:
    """Body of a METADATA record: (metric family, type, help, unit) rows."""
    return bytes([BODY_VERSION]) + json.dumps(list(families), ensure_ascii=False, separators=(",", ":")).encode()


def encode_replicas(sources: Sequence[tuple[str, str, int]]) -> bytes:
    """Body of a REPLICAS record: (cluster, elected replica, milliseconds of its last batch) rows."""
    return bytes([BODY_VERSION]) + json.dumps(list(sources), ensure_ascii=False, separators=(",", ":")).encode()


def decode_replicas(body: bytes) -> list[tuple[str, str, int]]:
    """Rows of a REPLICAS record.

    Raises
    ------
    CorruptionError        the body is no REPLICAS body of this version
    """
    _checked(body, 1)
    try:
        return [(str(cluster), str(replica), int(ms)) for cluster, replica, ms in json.loads(body[1:])]
    except (ValueError, TypeError) as error:
        raise _bad(f"replicas do not decode: {error}") from error


def decode_metadata(body: bytes) -> list[tuple[str, str, str, str]]:
    """Rows of a METADATA record.

    Raises
    ------
    CorruptionError        the body is no METADATA body of this version
    """
    _checked(body, 1)
    try:
        rows = json.loads(body[1:])
        return [(str(name), str(kind), str(text), str(unit)) for name, kind, text, unit in rows]
    except (ValueError, TypeError) as error:
        raise _bad(f"metadata do not decode: {error}") from error


class Deletion(NamedTuple):
    """What is deleted: samples within ``[mint_ms, maxt_ms]`` of the series that satisfy any of the selectors."""

    selectors: tuple[tuple[Matcher, ...], ...]
    mint_ms: int
    maxt_ms: int


def encode_deletion(deletion: Deletion) -> bytes:
    """Body of a TOMBSTONE record."""
    selectors = [[[m.name, m.op.value, m.value] for m in selector] for selector in deletion.selectors]
    body = [deletion.mint_ms, deletion.maxt_ms, selectors]
    return bytes([BODY_VERSION]) + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def decode_deletion(body: bytes) -> Deletion:
    """What a TOMBSTONE record deletes.

    Raises
    ------
    CorruptionError        the body is no TOMBSTONE body of this version
    """
    _checked(body, 1)
    try:
        mint_ms, maxt_ms, rows = json.loads(body[1:])
        selectors = tuple(tuple(Matcher(str(n), MatchOp(op), str(v)) for n, op, v in row) for row in rows)
        return Deletion(selectors, int(mint_ms), int(maxt_ms))
    except (ValueError, TypeError) as error:
        raise _bad(f"deletion does not decode: {error}") from error
