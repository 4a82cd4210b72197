"""Matchers over the registry and over block indexes, against a scan of dicts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import index as plain
from tsdb.errors import RejectedError
from tsdb.index import registry as registry_module
from tsdb.index.registry import SeriesRegistry
from tsdb.index.static import SECTIONS, StaticIndex
from tsdb.index.symbols import SymbolTable
from tsdb.limits import SeriesLimits
from tsdb.matchers import Matcher, MatchOp

VALUES = ["", "a", "b", "ab", "a.b", "é", "x\ny"]
REGEXES = [
    "",
    "a",
    "a|b",
    "a|",
    "(?:b|é)",
    ".*",
    ".+",
    "a.*",
    ".*b",
    ".*\n.*",
    "[ab]+",
    "a\\.b",
    "(a|b)?",
    "é|nothing",
    "nothing",
]

series_dicts = st.fixed_dictionaries(
    {"__name__": st.sampled_from(["m", "n"])},
    optional={name: st.sampled_from(VALUES) for name in ("a", "b", "c")},
)
matcher_lists = st.lists(
    st.one_of(
        st.builds(
            Matcher,
            st.sampled_from(["__name__", "a", "b", "c", "absent"]),
            st.sampled_from([MatchOp.EQUAL, MatchOp.NOT_EQUAL]),
            st.sampled_from([*VALUES, "m", "never seen"]),
        ),
        st.builds(
            Matcher,
            st.sampled_from(["__name__", "a", "b", "c", "absent"]),
            st.sampled_from([MatchOp.REGEX, MatchOp.NOT_REGEX]),
            st.sampled_from([*REGEXES, "m|n"]),
        ),
    ),
    max_size=4,
)


@contextmanager
def segments_of(tail: int, delta: int) -> Iterator[None]:
    """Postings from the first few series on, so that small examples have a base, a delta and a tail."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry_module, "TAIL_MIN", tail)
        patch.setattr(registry_module, "DELTA_MIN", delta)
        yield


def distinct(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    clean = [{name: value for name, value in row.items() if value} for row in rows]
    return [dict(pairs) for pairs in dict.fromkeys(tuple(sorted(row.items())) for row in clean)]


@pytest.mark.kernel
@settings(deadline=None)
@given(
    st.lists(st.lists(series_dicts, max_size=12), min_size=1, max_size=4),
    st.lists(matcher_lists, min_size=1, max_size=4),
    st.integers(0, 6),
    st.integers(0, 12),
)
def test_the_registry_finds_what_a_scan_finds(
    batches: list[list[dict[str, str]]], selectors: list[list[Matcher]], tail: int, delta: int
) -> None:
    registry = SeriesRegistry(SeriesLimits(active_series_max=1000))
    rows: list[dict[str, str]] = []
    with segments_of(tail, delta):
        for batch in batches:
            for row in distinct(batch):
                if registry.resolve(row) == len(rows):
                    rows.append(row)
            for matchers in selectors:  # asked again as the registry grows: kept results must grow with it
                assert registry.find(matchers).tolist() == plain.find(rows, matchers)


@pytest.mark.kernel
@settings(deadline=None)
@given(st.lists(series_dicts, max_size=30), st.data(), st.lists(matcher_lists, min_size=1, max_size=4))
def test_a_block_index_finds_what_the_registry_finds(
    given_rows: list[dict[str, str]], data: st.DataObject, selectors: list[list[Matcher]]
) -> None:
    registry = SeriesRegistry(SeriesLimits(active_series_max=1000))
    rows = distinct(given_rows)
    for row in rows:
        registry.resolve(row)
    refs = np.array(
        data.draw(st.lists(st.sampled_from(range(len(rows))), unique=True) if rows else st.just([])), np.uint32
    )
    arrays = StaticIndex.build(registry, refs)
    assert {name: array.dtype for name, array in arrays.items()} == {n: np.dtype(t) for n, t in SECTIONS.items()}
    for array in arrays.values():
        array.flags.writeable = False
    after_restart = SymbolTable()
    after_restart.intern("something else first")
    for symbols in (registry.symbols, after_restart):
        index = StaticIndex(arrays, symbols)
        assert len(index) == len(refs)
        for matchers in selectors:
            found = index.find(matchers)
            assert sorted(refs[found].tolist()) == np.intersect1d(registry.find(matchers), refs).tolist()
            assert index.find(matchers).tolist() == found.tolist() == sorted(found.tolist())
        everything = np.arange(len(refs))
        assert list(index.label_table(everything)) == list(registry.label_table(refs))
        assert index.canonical(everything)[0].tobytes() == registry.canonical(refs)[0].tobytes()
        assert index.label_names() == registry.label_names(refs)
        assert index.label_values("a") == registry.label_values("a", refs)
        assert index.label_values("a", everything[::2]) == registry.label_values("a", refs[::2])
        assert index.rows_of_hashes(registry.series_hash[refs]).tolist() == everything.tolist()
        assert (index.rows_of_hashes(np.array([1, 2], np.uint64)) == -1).all()


def many() -> SeriesRegistry:
    registry = SeriesRegistry(SeriesLimits())
    for i in range(6000):
        registry.resolve(
            {"__name__": f"m{i % 3}", "pod": f"p-{i}", "zone": f"z{i % 4}", **({"odd": "1"} if i % 2 else {})}
        )
    return registry


@pytest.mark.kernel
def test_long_postings() -> None:
    registry = many()
    expected = np.arange(6000)
    cases = {
        (("__name__", "=", "m1"), ("zone", "=~", "z1|z2")): (expected % 3 == 1) & np.isin(expected % 4, (1, 2)),
        (("pod", "=~", "p-1.*"), ("zone", "!=", "z0")): np.array([str(i)[0] == "1" for i in expected])
        & (expected % 4 > 0),
        (("pod", "!~", "p-[1-9].*"),): expected == 0,
        (("__name__", "!~", "m0|m1"), ("odd", "=", "")): (expected % 3 == 2) & (expected % 2 == 0),
        (("pod", "=", "p-77"), ("pod", "=~", ".*7"), ("zone", "=~", ".+")): expected == 77,
        (("odd", "!=", ""), ("pod", "=~", "p-[0-9]")): np.isin(expected, (1, 3, 5, 7, 9)),
        (("zone", "=~", "z.*"), ("__name__", "=~", "m[02]")): expected % 3 != 1,
    }
    for given_matchers, wanted in cases.items():
        matchers = [Matcher(name, MatchOp(op), value) for name, op, value in given_matchers]
        assert registry.find(matchers).tolist() == expected[wanted].tolist(), given_matchers
    registry.resolve({"__name__": "m1", "pod": "p-late", "zone": "z1"})
    late = [Matcher("__name__", MatchOp.EQUAL, "m1"), Matcher("pod", MatchOp.REGEX, "p-l.te")]
    assert registry.find(late).tolist() == [6000]


def test_results_are_shared_and_read_only() -> None:
    registry = SeriesRegistry(SeriesLimits())
    registry.resolve({"__name__": "m"})
    found = registry.find([])
    assert registry.find([]) is found
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1


def test_a_bad_regex_is_refused() -> None:
    registry = SeriesRegistry(SeriesLimits())
    registry.resolve({"__name__": "m"})
    with pytest.raises(RejectedError):
        registry.find([Matcher("__name__", MatchOp.REGEX, "(")])
