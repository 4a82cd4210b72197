"""Remote-write 2.0 in plain Python: what the kernel and its receiver must make of a body."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.reference.remote_write import Malformed, expect, fields, parse_sample, varint


@dataclass
class Series:
    refs: list[int] = field(default_factory=list)
    samples: list[tuple[int, int]] = field(default_factory=list)  # (bits, ts_ms)
    exemplars: list[bytes] = field(default_factory=list)
    metadata: list[tuple[int, int, int]] = field(default_factory=list)  # (type, help ref, unit ref)
    histograms: int = 0

    def labels(self, symbols: list[bytes]) -> list[tuple[bytes, bytes]] | None:
        """Pairs as sent; None when the refs make none."""
        if len(self.refs) % 2 or any(ref >= len(symbols) for ref in self.refs):
            return None
        texts = [symbols[ref] for ref in self.refs]
        return list(zip(texts[::2], texts[1::2], strict=True))


@dataclass
class Request:
    symbols: list[bytes] = field(default_factory=list)
    series: list[Series] = field(default_factory=list)
    v1_fields: int = 0


def parse_refs(wire: int, content: bytes) -> list[int]:
    """Packed or not."""
    if wire not in (0, 2):
        raise Malformed
    refs = []
    pos = 0
    while pos < len(content):
        ref, pos = varint(content, pos)
        refs.append(ref)
    return refs


def parse_metadata(data: bytes) -> tuple[int, int, int]:
    said = {1: 0, 3: 0, 4: 0}
    for number, wire, content in fields(data):
        if number <= 4:
            expect(wire, 0)
            said[number] = varint(content, 0)[0]
    return said[1], said[3], said[4]


def parse_series(data: bytes) -> Series:
    series = Series()
    for number, wire, content in fields(data):
        if number == 1:
            series.refs += parse_refs(wire, content)
        elif number <= 5:
            expect(wire, 2)
            if number == 2:
                series.samples.append(parse_sample(content))
            elif number == 3:
                series.histograms += 1
            elif number == 4:
                series.exemplars.append(content)
            else:
                series.metadata.append(parse_metadata(content))
    return series


def parse_write(body: bytes) -> Request:
    """Parse a whole body; :class:`Malformed` when any part the kernel looks into does not hold together."""
    request = Request()
    for number, wire, content in fields(body):
        if number in (4, 5):
            expect(wire, 2)
            if number == 4:
                request.symbols.append(content)
            else:
                request.series.append(parse_series(content))
        elif number in (1, 3):
            request.v1_fields += 1
    return request
