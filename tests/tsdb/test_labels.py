from __future__ import annotations

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from tsdb.errors import LimitError, Reason, RejectedError
from tsdb.labels import Labels
from tsdb.limits import SeriesLimits

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


def test_canonical_bytes_are_sorted_by_name() -> None:
    labels = Labels.of({"b": "2", "__name__": "up", "é": "x", "a": ""})
    assert labels.canonical == b"__name__\xffup\xffb\xff2\xff\xc3\xa9\xffx\xff"
    assert labels.to_dict() == {"__name__": "up", "b": "2", "é": "x"}
    assert labels.get("a") == ""


def test_the_hash_never_changes() -> None:
    labels = Labels.of({"__name__": "up", "job": "envoy"})
    assert labels.hash == xxhash.xxh3_64_intdigest(b"__name__\xffup\xffjob\xffenvoy\xff") == 0x85D61A8C69E62367


@given(st.dictionaries(texts.filter(bool), texts, max_size=8))
def test_canonical_bytes_round_trip(labels: dict[str, str]) -> None:
    made = Labels.of(labels)
    assert Labels.parse(made.canonical) == made
    assert made.to_dict() == {name: value for name, value in labels.items() if value}
    assert [n.encode() for n, _ in made] == sorted(n.encode() for n, _ in made)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ({}, Reason.NO_LABELS),
        ({"__name__": ""}, Reason.NO_LABELS),
        ({"a": "b"}, Reason.NO_METRIC_NAME),
        ({"__name__": "m", "": "b"}, Reason.EMPTY_LABEL_NAME),
        ({"__name__": "m", "a\ud800": "b"}, Reason.INVALID_UTF8),
        ({"__name__": "m", "a": "\udcff"}, Reason.INVALID_UTF8),
        ({"__name__": "m", "n" * 21: "b"}, Reason.LABEL_NAME_TOO_LONG),
        ({"__name__": "m", "a": "é" * 16}, Reason.LABEL_VALUE_TOO_LONG),
        ({"__name__": "m", "a": "1", "b": "2", "c": "3"}, Reason.TOO_MANY_LABELS),
        ({"__name__": "m", "a" * 20: "b" * 30}, Reason.SERIES_TOO_LONG),
    ],
)
def test_what_no_series_may_have(labels: dict[str, str], reason: Reason) -> None:
    limits = SeriesLimits(labels_max=3, label_name_bytes_max=20, label_value_bytes_max=31, series_bytes_max=50)
    with pytest.raises(RejectedError) as caught:
        Labels.of(labels).check(limits)
    assert caught.value.reason is reason
    assert isinstance(caught.value, LimitError) == ("limits." in str(caught.value))
