"""Staleness and the series about a scrape, without a network."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import pytest

from ingest.exposition import PAD, ExpositionError, PageLimitError, PageOptions
from ingest.relabel import RelabelConfig, Rules, compile_rules
from ingest.scraping.target import EXTRA_REPORT_NAMES, REPORT_NAMES, Answer, Round, TargetSeries
from tests.ingest.fakes import FakeTenant
from tsdb.batch import STALE_BITS
from tsdb.errors import Reason

LABELS = {"job": "j", "instance": "i:1"}
Seen = dict[str, float | str]


class Scrapes:
    """One target; ``seen`` is what the last round wrote, by metric name and further label."""

    def __init__(self, **options: Any) -> None:
        self.tenant = FakeTenant()
        self.series = TargetSeries(self.tenant.registry, LABELS, PageOptions(**options))
        self.now = 1000

    def seen(self, outcome: Round) -> Seen:
        table = self.tenant.registry.label_table(outcome.batch.refs)
        rows = zip(table, outcome.batch.bits.tolist(), outcome.batch.ts_ms.tolist(), strict=True)
        found: Seen = {}
        for labels, bits, _time in rows:
            assert {k: labels[k] for k in LABELS} == LABELS
            key = labels["__name__"] + "".join(labels[k] for k in sorted(labels.keys() - LABELS.keys() - {"__name__"}))
            assert key not in found
            value = struct.unpack("<d", struct.pack("<Q", bits))[0]
            found[key] = "stale" if bits == STALE_BITS else value
        return found

    def good(self, text: str) -> Seen:
        self.now += 15_000
        return self.seen(self.series.success(text.encode() + PAD, False, self.now, Answer(0.25, 4.0)))

    def bad(self) -> Seen:
        self.now += 15_000
        return self.seen(self.series.failure(self.now, Answer(10.0, 4.0)))


def report(up: int, scraped: int = 0, kept: int = 0, added: int = 0, seconds: float = 0.25) -> Seen:
    return dict(zip(REPORT_NAMES, (float(up), seconds, float(scraped), float(kept), float(added)), strict=True))


def test_the_numbers_of_series_may_change_between_scrapes() -> None:
    scrapes = Scrapes()
    scrapes.good("z 1\na 1\nb 2\nc 3")
    scrapes.tenant.forget([{"__name__": name, **LABELS} for name in ("b", "c", "up")])
    assert scrapes.good("a 1\nc 4") == {"z": "stale", "b": "stale", "a": 1, "c": 4, **report(1, 2, 2, 0)}
    scrapes.tenant.forget([{"__name__": "c", **LABELS}])
    assert scrapes.good("c 5\nd 1") == {"a": "stale", "c": 5, "d": 1, **report(1, 2, 2, 1)}


def test_vanished_series_are_marked_once() -> None:
    scrapes = Scrapes()
    assert scrapes.good("a 1\nb 2\nc 3") == {"a": 1, "b": 2, "c": 3, **report(1, 3, 3, 3)}
    assert scrapes.good("a 1\nc 4") == {"a": 1, "b": "stale", "c": 4, **report(1, 2, 2, 0)}
    assert scrapes.good("a 1\nc 4") == {"a": 1, "c": 4, **report(1, 2, 2, 0)}
    assert scrapes.good("b 2\na 1\nc 4") == {"a": 1, "b": 2, "c": 4, **report(1, 3, 3, 1)}
    assert scrapes.good("") == {"a": "stale", "b": "stale", "c": "stale", **report(1)}


def test_a_failure_marks_everything_once() -> None:
    scrapes = Scrapes()
    assert scrapes.bad() == report(0, seconds=10)
    scrapes.good("a 1\nb 2")
    assert scrapes.bad() == {"a": "stale", "b": "stale", **report(0, seconds=10)}
    assert scrapes.bad() == report(0, seconds=10)
    assert scrapes.good("a 1") == {"a": 1, **report(1, 1, 1, 0)}  # b is marked already
    assert scrapes.good("") == {"a": "stale", **report(1)}


def test_the_end_marks_the_report_too() -> None:
    scrapes = Scrapes()
    scrapes.good("a 1")
    assert scrapes.seen(scrapes.series.end(99_000)) == dict.fromkeys(["a", *REPORT_NAMES], "stale")


def test_own_times_get_no_stale_markers() -> None:
    scrapes = Scrapes()
    first = scrapes.series.success(b"a 1 777\nb 2" + PAD, False, 1000, Answer(0.5, 4.0))
    assert first.batch.ts_ms.tolist() == [777, *[1000] * 6]
    assert scrapes.seen(first) == {"a": 1, "b": 2, **report(1, 2, 2, 1, 0.5)}
    assert scrapes.good("") == {"b": "stale", **report(1)}


def test_times_far_ahead_are_refused_and_the_rest_stays() -> None:
    scrapes = Scrapes(future_max_ms=5000)
    outcome = scrapes.series.success(b"a 1 6001\nb 2 6000\nc 3\n" + PAD, False, 1000, Answer(0.5, 4.0))
    assert outcome.refused == {Reason.FAR_FUTURE: 1}
    assert scrapes.seen(outcome) == {"b": 2, "c": 3, **report(1, 3, 3, 1, 0.5)}


def test_a_text_that_cannot_be_read_changes_nothing() -> None:
    scrapes = Scrapes()
    scrapes.good("a 1")
    with pytest.raises(ExpositionError):
        scrapes.good("a 1\nb")
    assert scrapes.bad() == {"a": "stale", **report(0, seconds=10)}


def test_sample_limit() -> None:
    scrapes = Scrapes(sample_limit=2)
    scrapes.good("a 1\nb 2")
    with pytest.raises(PageLimitError, match=r"^sample limit exceeded$") as error:
        scrapes.good("a 1\nb 2\nc 3")
    beyond = (error.value.scraped, error.value.kept)
    assert beyond == (3, 3)
    outcome = scrapes.seen(scrapes.series.failure(scrapes.now, Answer(10.0, 4.0, 0, *beyond)))
    assert outcome == {"a": "stale", "b": "stale", **report(0, 3, 3, seconds=10)}


def test_relabelling_counts_what_is_left_and_pays_once() -> None:
    class Counting(Rules):
        calls = 0

        def apply(self, labels: Mapping[str, str]) -> dict[str, str] | None:
            Counting.calls += 1
            return super().apply(labels)

    drop = compile_rules([RelabelConfig(source_labels=("__name__",), regex="b.*", action="drop")])
    scrapes = Scrapes(metric_relabel=Counting(drop.configs), sample_limit=2)
    assert scrapes.good("a 1\nb 2\nb2 3\nc 4") == {"a": 1, "c": 4, **report(1, 4, 2, 2)}
    assert scrapes.good("a 1\nb 2\nb2 3\nc 4") == {"a": 1, "c": 4, **report(1, 4, 2, 0)}
    assert scrapes.good("b 2\na 5\n") == {"a": 5, "c": "stale", **report(1, 2, 1, 0)}
    assert Counting.calls == 4


def test_own_times_get_stale_markers_when_they_are_tracked() -> None:
    scrapes = Scrapes(track_timestamps_staleness=True)
    scrapes.series.success(b"a 1 777\nb 2" + PAD, False, 1000, Answer(0.5, 4.0))
    assert scrapes.good("") == {"a": "stale", "b": "stale", **report(1)}


def test_extra_series_about_the_scrape() -> None:
    scrapes = Scrapes(extra_scrape_metrics=True, sample_limit=9)
    scrapes.now = 16_000
    seen = scrapes.seen(scrapes.series.success(b"a 1" + PAD, False, 16_000, Answer(0.25, 4.0, 3)))
    assert seen == {"a": 1, **report(1, 1, 1, 1), **dict(zip(EXTRA_REPORT_NAMES, (4, 9, 3), strict=True))}
    seen = scrapes.seen(scrapes.series.failure(17_000, Answer(10, 4.0, -1)))
    assert [seen[name] for name in EXTRA_REPORT_NAMES] == [4, 9, -1]
    assert scrapes.seen(scrapes.series.end(18_000)) == dict.fromkeys([*REPORT_NAMES, *EXTRA_REPORT_NAMES], "stale")


def test_metadata_is_what_the_last_page_said_and_told_again_when_it_was_lost() -> None:
    scrapes = Scrapes()
    page = b"# TYPE a counter\n# TYPE b gauge\n" + PAD
    rounds = [scrapes.series.success(page, False, 1000 * i, Answer(0.1, 4.0)).metadata for i in range(2)]
    assert [[family.family for family in told] for told in rounds] == [["a", "b"], []]
    scrapes.series.tell_again()
    assert len(scrapes.series.success(page, False, 3000, Answer(0.1, 4.0)).metadata) == 2
    assert scrapes.series.success(b"# TYPE b gauge\n" + PAD, False, 4000, Answer(0.1, 4.0)).metadata == []
    assert [family.family for family in scrapes.series.metadata()] == ["b"]


def test_extra_series_that_are_no_longer_written_become_stale() -> None:
    scrapes = Scrapes(extra_scrape_metrics=True)
    scrapes.good("a 1")
    after = TargetSeries(scrapes.tenant.registry, LABELS)
    after.take_over(scrapes.series)
    scrapes.series = after
    assert scrapes.good("a 1") == {"a": 1, **dict.fromkeys(EXTRA_REPORT_NAMES, "stale"), **report(1, 1, 1, 0)}
    assert scrapes.good("a 1") == {"a": 1, **report(1, 1, 1, 0)}
