"""Values that are written in one fixed way: times, UUIDs and IPv6 addresses, as numbers or bytes and back.

Whether a text is exactly what its number is written as is tested by writing it again, so that no rule has to be known
twice.
"""

from __future__ import annotations

import re
import socket
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tsdb.kernels import log_columns as kernels
from tsdb.logs.frame import PAD_BYTES, Texts, padded

UUID_BYTES, UUID_WIDTH, UUID_DIGITS, UUID_RUN = 16, 36, 32, 12
IPV6_BYTES, IPV6_RUN = 16, 4
"""Bytes, and the longest run of letters and digits of their texts; of a UUID also its bytes and hex digits."""
_DASHES = np.array([8, 13, 18, 23])
_HEX_PLACES = np.setdiff1d(np.arange(UUID_WIDTH), _DASHES)
_UUID = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_IPV6 = re.compile(rb"[0-9a-f:]*:[0-9a-f:.]*:[0-9a-f:.]*")

ISO, CLF = 0, 1
"""2026-11-25T22:26:14.123Z as RFC 3339 has it; 25/Nov/2026:22:26:14 +0000 as web servers log it."""

_ISO = re.compile(rb"\d{4}-\d\d-\d\d([T ])\d\d:\d\d:\d\d(?:\.(\d{1,9}))?(Z|[+-]\d\d:?\d\d)?")
_CLF = re.compile(rb"\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d( [+-]\d{4})?")
_MONTHS = np.frombuffer(b"JanFebMarAprMayJunJulAugSepOctNovDec", np.uint8).reshape(12, 3)
_DIGITS = frozenset(b"0123456789")
_HEX = frozenset(b"0123456789abcdef")
UUID_SHAPE = tuple(frozenset(b"-") if k in _DASHES else _HEX for k in range(UUID_WIDTH))
"""Bytes at each place of a UUID."""

_ZERO = 48
_FIELDS = {
    ISO: ((0, 4), (5, 2), (8, 2), (11, 2), (14, 2), (17, 2)),
    CLF: ((7, 4), (3, 3), (0, 2), (12, 2), (15, 2), (18, 2)),
}
"""(place, digits) of year, month, day, hour, minute, second."""


class Layout(NamedTuple):
    """How the times of a column are written; the zone is text, a time is what its digits say.

    Attributes
    ----------
    kind : ISO or CLF
    separator : between day and hour of ISO
    decimals : of a second
    zone : text behind it
    """

    kind: int
    separator: str
    decimals: int
    zone: str

    @property
    def template(self) -> bytes:
        """One such text, digits as they may be."""
        if self.kind == CLF:
            return b"00/Jan/0000:00:00:00" + self.zone.encode()
        fraction = b"." + b"0" * self.decimals if self.decimals else b""
        return b"0000-00-00" + self.separator.encode() + b"00:00:00" + fraction + self.zone.encode()

    @property
    def alphabet(self) -> frozenset[int]:
        """Bytes of its texts."""
        months = _MONTHS.tobytes() if self.kind == CLF else b""
        return frozenset(self.template + b"0123456789" + months)

    @property
    def shape(self) -> tuple[frozenset[int], ...]:
        """Bytes at each place of its texts."""
        shape = [_DIGITS if byte in _DIGITS else frozenset([byte]) for byte in self.template]
        if self.kind == CLF:
            shape[3:6] = [frozenset(letters) for letters in _MONTHS.T.tolist()]
        zone = len(self.zone.encode())  # text: its digits are always the same ones
        return (*shape[: len(shape) - zone], *(frozenset([byte]) for byte in self.zone.encode()))


def layout_of(text: bytes) -> Layout | None:
    """How a text is written, if it is a time."""
    iso = _ISO.fullmatch(text)
    if iso is not None:
        return Layout(ISO, iso[1].decode(), len(iso[2] or b""), (iso[3] or b"").decode())
    clf = _CLF.fullmatch(text)
    return None if clf is None else Layout(CLF, "", 0, (clf[1] or b"").decode())


def is_uuid(text: bytes) -> bool:
    """Whether a text is a lower-case UUID."""
    return _UUID.fullmatch(text) is not None


def is_ipv6(text: bytes) -> bool:
    """Whether a text may be an IPv6 address."""
    return _IPV6.fullmatch(text) is not None


def _matrix(
    data: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64], width: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """(rows, width) bytes of the texts, and which texts have exactly so many."""
    good = lengths == width
    return data[np.where(good, starts, 0)[:, None] + np.arange(width)], good


def _flat(matrix: NDArray[np.uint8]) -> NDArray[np.uint8]:
    out = padded(matrix.size)
    out[: matrix.size] = matrix.reshape(-1)
    return out


def parse_times(
    data: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64], layout: Layout
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Times as numbers of ``10**-decimals`` seconds, and which texts are exactly what these are written as.

    Parameters
    ----------
    data, starts, lengths : texts, ``data`` readable as far behind its begin as a text is long
    """
    width = len(layout.template)
    if len(data) < width:
        return np.zeros(len(starts), np.int64), np.zeros(len(starts), np.bool_)
    matrix, good = _matrix(data, starts, lengths, width)

    def number(place: int, digits: int) -> NDArray[np.int64]:
        value = np.zeros(len(matrix), np.int64)
        for k in range(place, place + digits):
            value = value * 10 + matrix[:, k] - _ZERO
        return value

    year, month, day, hour, minute, second = _FIELDS[layout.kind]
    if layout.kind == CLF:
        same = (matrix[:, None, month[0] : month[0] + 3] == _MONTHS).all(axis=2)
        months = same.argmax(axis=1)
    else:
        months = number(*month) - 1
    days = (((number(*year) - 1970) * 12 + months).astype("M8[M]")).astype("M8[D]").astype(np.int64) + number(*day) - 1
    ints = days * 86_400 + number(*hour) * 3600 + number(*minute) * 60 + number(*second)
    if layout.decimals:
        ints = ints * 10**layout.decimals + number(20, layout.decimals)
    ints = np.where(good, ints, 0)
    return ints, good & (_time_matrix(ints, layout) == matrix).all(axis=1)


def _time_matrix(ints: NDArray[np.int64], layout: Layout) -> NDArray[np.uint8]:
    """(rows, width) bytes of times."""
    template = np.frombuffer(layout.template, np.uint8)
    out = np.tile(template, (len(ints), 1))

    def put(values: NDArray[np.int64], place: int, digits: int) -> None:
        for k in range(place + digits - 1, place - 1, -1):
            out[:, k] = _ZERO + values % 10
            values = values // 10

    seconds = ints // 10**layout.decimals
    days = seconds // 86_400
    in_day = seconds - days * 86_400
    month_number = days.astype("M8[D]").astype("M8[M]").astype(np.int64)
    year, month, day, hour, minute, second = _FIELDS[layout.kind]
    put(month_number // 12 + 1970, *year)
    if layout.kind == CLF:
        out[:, month[0] : month[0] + 3] = _MONTHS[month_number % 12]
    else:
        put(month_number % 12 + 1, *month)
    put(days - month_number.astype("M8[M]").astype("M8[D]").astype(np.int64) + 1, *day)
    put(in_day // 3600, *hour)
    put(in_day // 60 % 60, *minute)
    put(in_day % 60, *second)
    if layout.decimals:
        put(ints % 10**layout.decimals, 20, layout.decimals)
    return out


def format_times(ints: NDArray[np.int64], layout: Layout) -> Texts:
    """The texts again."""
    width = len(layout.template)
    return Texts(_flat(_time_matrix(ints, layout)), np.arange(len(ints) + 1) * width)


def parse_uuids(
    data: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """(16, rows) bytes of UUIDs, byte by byte, and which texts are lower-case UUIDs."""
    n = len(starts)
    if len(data) < UUID_WIDTH:
        return np.zeros((UUID_BYTES, n), np.uint8), np.zeros(n, np.bool_)
    matrix, good = _matrix(data, starts, lengths, UUID_WIDTH)
    good &= (matrix[:, _DASHES] == ord("-")).all(axis=1)
    digits = _flat(np.ascontiguousarray(matrix[:, _HEX_PLACES]))
    out, is_hex = np.empty(n * UUID_BYTES, np.uint8), np.empty(n, np.uint8)
    kernels.parse_hex(digits, np.arange(n) * UUID_DIGITS, np.full(n, UUID_DIGITS), UUID_DIGITS, out, is_hex)
    good &= is_hex.view(np.bool_)
    return np.ascontiguousarray(np.where(good[:, None], out.reshape(n, UUID_BYTES), 0).T.astype(np.uint8)), good


def format_uuids(planes: NDArray[np.uint8]) -> Texts:
    """The texts of (16, rows) bytes."""
    n = planes.shape[1]
    digits = np.empty(n * UUID_DIGITS, np.uint8)
    kernels.format_hex(np.ascontiguousarray(planes.T).reshape(-1), digits)
    matrix = np.full((n, UUID_WIDTH), ord("-"), np.uint8)
    matrix[:, _HEX_PLACES] = digits.reshape(n, UUID_DIGITS)
    return Texts(_flat(matrix), np.arange(n + 1) * UUID_WIDTH)


def parse_ipv6(texts: list[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """(16, rows) bytes of addresses, and which texts are what the C library writes for them."""
    packed = bytearray()
    good = np.zeros(len(texts), np.bool_)
    known: dict[bytes, bytes] = {}
    for row, text in enumerate(texts):
        address = known.get(text)
        if address is None:
            address = known[text] = _packed_ipv6(text)
        good[row] = bool(address)
        packed += address or bytes(IPV6_BYTES)
    matrix = np.frombuffer(bytes(packed), np.uint8).reshape(len(texts), IPV6_BYTES)
    return np.ascontiguousarray(matrix.T), good


def _packed_ipv6(text: bytes) -> bytes:
    """An address in 16 bytes; empty where the text is none, or is written in another way."""
    try:
        packed = socket.inet_pton(socket.AF_INET6, text.decode("ascii"))
    except (OSError, ValueError):
        return b""
    return packed if socket.inet_ntop(socket.AF_INET6, packed).encode() == text else b""


def format_ipv6(planes: NDArray[np.uint8]) -> Texts:
    """The texts of (16, rows) bytes."""
    whole = np.ascontiguousarray(planes.T).tobytes()
    found = [whole[at : at + IPV6_BYTES] for at in range(0, len(whole), IPV6_BYTES)]
    written = {packed: socket.inet_ntop(socket.AF_INET6, packed).encode() for packed in set(found)}
    texts = [written[packed] for packed in found]
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(text) for text in texts], out=offsets[1:])
    return Texts(np.frombuffer(b"".join(texts) + bytes(PAD_BYTES), np.uint8), offsets)
