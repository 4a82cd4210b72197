"""Lines an interval apart are those that a reader of all lines, one by one, would have kept."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from query.logql.ast import LogQuery
from query.logql.engine.engine import LogEngine
from tests.query.logql.memory_logs import MemoryLogs


def plain(times: list[int], interval: int, limit: int, *, backward: bool) -> list[int]:
    """As Loki's ``readStreams`` does it."""
    kept: list[int] = []
    for ts in sorted(times, reverse=backward):
        if len(kept) < limit and (not kept or abs(ts - kept[-1]) >= interval):
            kept.append(ts)
    return kept


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 200), max_size=30), min_size=1, max_size=3), st.integers(1, 60),
    st.integers(1, 12), st.booleans(), st.sampled_from([1, 3, 50]),
)  # fmt: skip
def test_lines_are_an_interval_apart(
    streams: list[list[int]], interval: int, limit: int, backward: bool, frame_rows: int
) -> None:
    logs = MemoryLogs(
        [({"n": str(k)}, [(ts, f"line {ts}") for ts in times]) for k, times in enumerate(streams)],
        frame_rows=frame_rows,
    )
    engine = LogEngine()
    result = engine.entries(logs, LogQuery(()), 0, 150, limit, backward=backward, interval_ns=interval)
    assert isinstance(result.value, list)
    got = sorted((entry.ts_ns for stream in result.value for entry in stream.entries), reverse=backward)
    inside = [ts for times in streams for ts in times if ts < 150]
    assert got == plain(inside, interval, limit, backward=backward)
    engine.close()
