from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import index as plain
from tsdb.errors import LimitError, Reason, RejectedError
from tsdb.index import registry as registry_module
from tsdb.index.registry import REJECT_CODES, SeriesRegistry
from tsdb.index.series import TABLES_MAX
from tsdb.labels import Labels, series_hash
from tsdb.limits import SeriesLimits
from tsdb.matchers import Matcher, MatchOp

Pairs = Sequence[tuple[bytes, bytes]]

SMALL = SeriesLimits(
    labels_max=4, label_name_bytes_max=12, label_value_bytes_max=9, series_bytes_max=40, active_series_max=1000
)


def resolve(registry: SeriesRegistry, series: Sequence[Pairs]) -> list[int]:
    """Resolve series from spans of one buffer, with noise between them."""
    buf = bytearray(b"~")
    spans: list[tuple[int, int, int, int]] = []
    offsets = [0]
    for labels in series:
        for name, value in labels:
            begin = len(buf)
            buf += name + b"~" + value + b"~~"
            middle = begin + len(name)
            spans.append((begin, middle, middle + 1, middle + 1 + len(value)))
        offsets.append(len(spans))
    columns = np.array(spans, np.int64).reshape(-1, 4).T
    refs = registry.resolve_spans(
        np.frombuffer(bytes(buf), np.uint8), np.array(offsets, np.int64), *(np.ascontiguousarray(c) for c in columns)
    )
    return refs.tolist()


names = st.sampled_from([b"__name__", b"__name__", b"a", b"b", b"zz", b"\xc3\xa9", b"", b"\xff", b"n" * 13, b"__name"])
byte_values = st.one_of(
    st.sampled_from([b"", b"m", b"m", b"1", b"2", b"0123456789", b"\xed\xa0\x80", b"\xf0\x9f\x98\x80", b"x" * 9]),
    st.binary(max_size=9),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=3).map(str.encode),
)
mostly_named = st.tuples(
    st.lists(st.tuples(st.just(b"__name__"), byte_values), min_size=0, max_size=1),
    st.lists(st.tuples(names, byte_values), max_size=5),
).flatmap(lambda parts: st.permutations(parts[0] + parts[1]))


@pytest.mark.kernel
@settings(deadline=None)
@given(st.lists(st.lists(mostly_named, max_size=6), max_size=3))
def test_series_are_found_or_made_or_refused(batches: list[list[Pairs]]) -> None:
    registry = SeriesRegistry(SMALL)
    twin: dict[bytes, int] = {}
    for batch in batches:
        for ref, labels in zip(resolve(registry, batch), batch, strict=True):
            expected = plain.canonicalise(labels, SMALL)
            if isinstance(expected, Reason):
                assert ref < 0
                assert REJECT_CODES[-ref] is expected
            else:
                assert ref == twin.setdefault(expected, len(twin))
    assert len(registry) == len(twin)
    data, offsets = registry.canonical(np.arange(len(twin), dtype=np.uint32))
    for canonical, ref in twin.items():
        assert data[offsets[ref] : offsets[ref + 1]].tobytes() == canonical
        assert registry.series_hash[ref] == series_hash(canonical)
        assert registry.resolve(Labels.parse(canonical)) == ref
    assert registry.adopt(data, offsets).tolist() == list(range(len(twin)))
    table = registry.label_table(np.arange(len(twin), dtype=np.uint32))
    assert list(table) == [Labels.parse(canonical).to_dict() for canonical in twin]


@pytest.mark.kernel
@settings(deadline=None)
@given(st.binary(max_size=12))
def test_utf8_is_checked_as_python_does(value: bytes) -> None:
    registry = SeriesRegistry(SeriesLimits())
    (ref,) = resolve(registry, [[(b"__name__", b"m"), (b"a", value)]])
    try:
        value.decode()
        assert ref == 0
    except UnicodeDecodeError:
        assert REJECT_CODES[-ref] is Reason.INVALID_UTF8


@pytest.mark.parametrize(
    "tail", [b"\xc0\x80", b"\xe0\x80\x80", b"\xed\xbf\xbf", b"\xf4\x90\x80\x80", b"\xe2\x82", b"\x80"]
)
def test_ill_formed_utf8_far_inside_is_seen(tail: bytes) -> None:
    registry = SeriesRegistry(SeriesLimits())
    refs = resolve(registry, [[(b"__name__", b"m"), (b"a", b"0123456789abcdef" * 3 + tail)], [(b"__name__", b"m")]])
    assert (REJECT_CODES[-refs[0]], refs[1]) == (Reason.INVALID_UTF8, 0)


@pytest.mark.kernel
def test_all_tables_grow() -> None:
    registry = SeriesRegistry(SeriesLimits())
    series = [[(b"pod", b"p%d" % i), (b"__name__", b"m"), (b"label_%d" % (i % 700), b"v%d" % i)] for i in range(1500)]
    assert resolve(registry, series) == list(range(1500))
    assert resolve(registry, series[::-7]) == list(range(1500))[::-7]
    assert registry.label_values("pod") == sorted(f"p{i}" for i in range(1500))
    assert len(registry.label_names()) == 702
    assert registry.memory_bytes > 1500 * 30


def test_one_series_with_more_labels_than_the_first_tables_hold() -> None:
    registry = SeriesRegistry(SeriesLimits(labels_max=3000, series_bytes_max=1 << 20))
    labels = [(b"__name__", b"m"), *((b"l%d" % i, b"v%d" % i) for i in range(2500))]
    assert resolve(registry, [labels, labels[::-1]]) == [0, 0]


def test_the_number_of_series_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tsdb.index.registry.PASSIVE_SERIES_MAX", 0)
    registry = SeriesRegistry(SeriesLimits(active_series_max=2))
    series = [[(b"__name__", b"m%d" % i)] for i in range(3)]
    assert [r if r >= 0 else REJECT_CODES[-r] for r in resolve(registry, series)] == [0, 1, Reason.SERIES_LIMIT]
    assert resolve(registry, series[:2]) == [0, 1]
    with pytest.raises(LimitError, match="active_series_max"):
        registry.resolve({"__name__": "m9"})
    canonical = np.frombuffer(b"".join(b"__name__\xffx%d\xff" % i for i in range(3)), np.uint8)
    # What the log or a block holds was accepted once, and comes back up to twice the limit.
    assert registry.adopt(canonical[:24], np.array([0, 12, 24])).tolist() == [2, 3]
    with pytest.raises(LimitError):
        registry.adopt(canonical, np.array([0, 12, 24, 36]))


def test_resolve_refuses_with_a_reason() -> None:
    with pytest.raises(RejectedError) as caught:
        SeriesRegistry(SeriesLimits()).resolve({"job": "x"})
    assert caught.value.reason is Reason.NO_METRIC_NAME


def test_labels_of_some_series() -> None:
    registry = SeriesRegistry(SeriesLimits())
    rows = [{"__name__": "a", "x": "1"}, {"__name__": "b", "y": "2"}, {"__name__": "a", "x": "3", "é": "ü"}]
    refs = np.array([registry.resolve(row) for row in rows], np.uint32)
    assert registry.label_names() == ["__name__", "x", "y", "é"]
    assert registry.label_names(refs[[0, 1]]) == ["__name__", "x", "y"]
    assert registry.label_values("x") == ["1", "3"]
    assert registry.label_values("x", refs[1:]) == ["3"]
    assert registry.label_values("none") == registry.label_values("y", refs[:1]) == []
    table = registry.label_table(refs[[2, 0]])
    assert table.names == ("__name__", "x", "é")
    assert list(table) == [rows[2], rows[0]]
    assert table.ids[0, 0] == table.ids[1, 0] == registry.symbols.find("a")
    assert registry.label_table(refs[:0]).names == ()


def test_threads_write_and_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "TAIL_MIN", 64)
    monkeypatch.setattr(registry_module, "DELTA_MIN", 256)
    registry = SeriesRegistry(SeriesLimits())
    total, writers = 4000, 3
    failures: list[BaseException] = []
    done = threading.Event()

    def write(seed: int) -> None:
        order = np.random.default_rng(seed).permutation(total).tolist()
        for first in range(0, total, 50):
            chosen = order[first : first + 50]
            series = [[(b"n", b"%d" % i), (b"__name__", b"m%d" % (i % 5)), (b"k", b"%d" % (i % 40))] for i in chosen]
            assert min(resolve(registry, series)) >= 0

    def read() -> None:
        while not done.is_set():
            before = len(registry)
            found = registry.find([Matcher("__name__", MatchOp.REGEX, "m[0-4]"), Matcher("k", MatchOp.NOT_EQUAL, "7")])
            other = registry.find([Matcher("k", MatchOp.EQUAL, "7")])
            assert len(found) + len(other) >= before
            labels = list(registry.label_table(found[-100:]))
            assert all(row["k"] != "7" and row["__name__"] == f"m{int(row['n']) % 5}" for row in labels)

    def guarded(work: object, *args: int) -> None:
        try:
            work(*args)  # type: ignore[operator]
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(write, seed)) for seed in range(writers)]
    readers = [threading.Thread(target=guarded, args=(read,)) for _ in range(2)]
    for thread in threads + readers:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    for thread in readers:
        thread.join()
    assert not failures
    assert len(registry) == total
    assert registry.label_values("n") == sorted(str(i) for i in range(total))


def test_limits_may_change_within_the_room_that_was_reserved() -> None:
    registry = SeriesRegistry(SeriesLimits(active_series_max=4, labels_max=5))

    def fill(n: int) -> int:
        """How many of n series there is room for."""
        before = len(registry)
        for i in range(n):
            with contextlib.suppress(LimitError):
                registry.resolve({"__name__": "m", "i": str(before + i)})
        return len(registry)

    assert fill(9) == 4
    assert registry.use_limits(SeriesLimits(active_series_max=6, labels_max=5))
    assert fill(9) == 6
    for too_large in (SeriesLimits(active_series_max=9, labels_max=5), SeriesLimits(active_series_max=4, labels_max=6)):
        assert not registry.use_limits(too_large)
    assert registry.use_limits(SeriesLimits(active_series_max=8, labels_max=1))
    with pytest.raises(LimitError, match="labels"):
        registry.resolve({"__name__": "m", "i": "new"})
    assert registry.resolve({"__name__": "alone"}) == 6
    assert registry.use_limits(SeriesLimits(active_series_max=2, labels_max=5))
    assert fill(1) == 7
    assert registry.resolve({"__name__": "m", "i": "0"}) == 0  # what is there stays


def test_label_tables_of_few_series_are_kept_and_read_only() -> None:
    registry = SeriesRegistry(SeriesLimits())
    refs = np.array(resolve(registry, [[(b"__name__", b"m"), (b"a", b"%d" % k)] for k in range(100)]), np.uint32)
    few = registry.label_table(refs[:3])
    assert list(few) == [{"__name__": "m", "a": str(k)} for k in range(3)]
    with pytest.raises(ValueError, match="read-only"):
        few.ids[0, 0] = 0
    resolve(registry, [[(b"__name__", b"m"), (b"a", b"new"), (b"0", b"first")]])  # a name that sorts before the others
    assert registry.label_table(refs[:3].copy()) is few
    for k in range(TABLES_MAX + 1):  # more than are kept
        assert list(registry.label_table(refs[k % 100 : k % 100 + 1 + k // 100])) == [
            {"__name__": "m", "a": str(i)} for i in range(k % 100, min(100, k % 100 + 1 + k // 100))
        ]
    assert list(registry.label_table(refs)) == [{"__name__": "m", "a": str(k)} for k in range(100)]
