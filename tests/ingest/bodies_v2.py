"""Remote-write 2.0 bodies by hand: nothing of the code under test."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence

from tests.ingest.bodies import Pairs, as_bytes, field, varint

TYPE = "application/x-protobuf;proto=io.prometheus.write.v2.Request"


def sample(value: float | int, ts_ms: int, start_ms: int | None = None) -> bytes:
    """A sample; an ``int`` value gives the bits of the float64."""
    bits = struct.pack("<Q", value) if isinstance(value, int) else struct.pack("<d", value)
    start = b"" if start_ms is None else b"\x18" + varint(start_ms)
    return field(2, b"\x09" + bits + b"\x10" + varint(ts_ms) + start)


def refs(numbers: Iterable[int]) -> bytes:
    """Packed label refs."""
    return field(1, b"".join(map(varint, numbers)))


class Body:
    """A request that collects its symbols as senders do."""

    def __init__(self, first: str = "") -> None:
        self.symbols: dict[bytes, int] = {first.encode(): 0}
        self.series_fields: list[bytes] = []

    def ref(self, text: str | bytes) -> int:
        return self.symbols.setdefault(as_bytes(text), len(self.symbols))

    def refs(self, pairs: Pairs | Mapping[str, str]) -> list[int]:
        items = pairs.items() if isinstance(pairs, Mapping) else pairs
        return [self.ref(text) for pair in items for text in pair]

    def add(
        self,
        pairs: Pairs | Mapping[str, str],
        samples: Sequence[tuple[float | int, int]] = (),
        *more: bytes,
        metadata: tuple[int, str, str] | None = None,
    ) -> Body:
        """A series; ``metadata`` is type, help and unit."""
        parts = [refs(self.refs(pairs)), *(sample(v, t) for v, t in samples), *more]
        if metadata:
            kind, text, unit = metadata
            said = b"\x08" + varint(kind) + b"\x18" + varint(self.ref(text)) + b"\x20" + varint(self.ref(unit))
            parts.append(field(5, said))
        self.series_fields.append(field(5, b"".join(parts)))
        return self

    def exemplar(self, pairs: Pairs, value: float, ts_ms: int) -> bytes:
        """An ``exemplars`` field for :meth:`add`."""
        return field(4, refs(self.refs(pairs)) + b"\x11" + struct.pack("<d", value) + b"\x18" + varint(ts_ms))

    def raw(self) -> bytes:
        return b"".join(field(4, text) for text in self.symbols) + b"".join(self.series_fields)
