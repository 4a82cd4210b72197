"""Messages of a connection: counted, ended by a line feed, mixed, and in pieces of any size."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ingest.syslog.framing import Framer


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [*pieces, data]


def read(data: bytes, sizes: list[int], bytes_max: int = 1000) -> tuple[list[bytes], int]:
    framer = Framer(bytes_max)
    out = [message for piece in cut(data, sizes) for message in framer.feed(piece)]
    return [*out, *framer.close()], framer.too_long


bodies = st.binary(max_size=40).map(lambda body: b"<13>" + body)


@given(
    st.lists(st.tuples(st.sampled_from(["counted", "line", "zero"]), bodies), max_size=8),
    st.lists(st.integers(1, 9), max_size=80),
    st.integers(5, 60),
)
def test_what_is_framed_is_found_in_whatever_pieces(
    sent: list[tuple[str, bytes]], sizes: list[int], bytes_max: int
) -> None:
    wire, expected, too_long = b"", [], 0
    for how, body in sent:
        if how == "counted":
            wire += b"%d " % len(body) + body
        else:
            body = body.replace(b"\n", b".").replace(b"\0", b".")
            wire += body + (b"\n" if how == "line" else b"\0")
        if len(body) > bytes_max:
            too_long += 1
        else:
            expected.append(body)
    assert read(wire, sizes, bytes_max) == (expected, too_long)


def test_a_line_that_begins_with_a_number_is_a_line() -> None:
    assert read(b"12 apples\n7\n5 <13>a", [1, 1, 1, 1]) == ([b"12 apples", b"7", b"<13>a"], 0)


def test_the_last_message_may_have_no_end_but_not_half_a_count() -> None:
    assert read(b"<13>a\n<13>b", []) == ([b"<13>a", b"<13>b"], 0)
    assert read(b"10 <13>a", []) == ([], 0)


@given(st.binary(max_size=300), st.lists(st.integers(1, 30), max_size=20))
def test_any_bytes_in_any_pieces_give_the_same(data: bytes, sizes: list[int]) -> None:
    assert read(data, sizes, 20) == read(data, [], 20)


def test_no_message_makes_it_hold_more_than_a_message() -> None:
    framer = Framer(100)
    for _ in range(100):
        assert framer.feed(b"x" * 1000) == []
    assert framer.too_long == 1
    assert framer.feed(b"\n<13>a\n") == [b"<13>a"]
    assert framer.feed(b"999999 <13>") == []
    assert framer.feed(b"y" * (999_999 - 4) + b"<13>b\n") == [b"<13>b"]
    assert framer.too_long == 2
