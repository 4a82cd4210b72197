"""Damage to bytes as hypothesis draws it: what a broken or hostile sender makes of a good body."""

from __future__ import annotations

from hypothesis import strategies as st

_NASTY = (
    b"", b"\x00", b"\x7f", b"\x80", b"\xff", b"\n", b'"', b"{", b"}", b"\\", b" ", b"[" * 40, b"\x0a" * 12,
    b"\xff" * 9 + b"\x01",  # a varint of 2^64 - 1
    b"\x80" * 9 + b"\x01",  # of 2^63
    b"\xff\xff\xff\xff\x07", b"\xff\xff\xff\xff\x0f",  # lengths around 2^31 and 2^32
    b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\x7f",  # a field of nearly 2^63 bytes
    b"\x0b", b"\x0c", b"\x0f",  # groups, and a wire type that there is none of
)  # fmt: skip

Cut = tuple[float, int, bytes]
"""(where, as a share of the whole; bytes that go there; bytes that come in their place)"""

cuts = st.tuples(
    st.floats(0, 1),
    st.sampled_from([0, 0, 1, 1, 1, 2, 3, 8, 1 << 30]),
    st.sampled_from(_NASTY) | st.binary(max_size=4),
)
damages = st.lists(cuts, min_size=1, max_size=6)


def damaged(good: bytes, damage: list[Cut]) -> bytes:
    """What is left of ``good``."""
    for where, gone, come in damage:
        at = round(where * len(good))
        good = good[:at] + come + good[at + gone :]
    return good
