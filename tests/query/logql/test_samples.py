"""Values that are put in order by windows are, in every window, those that a sort would have put there."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from query.engine.context import Steps
from query.logql.ast import LogQuery, LogRange
from query.logql.engine.samples import Sorted, Windowed
from tsdb.frame import LabelTable, SeriesFrame

SERIES = 3
rows = st.lists(st.tuples(st.integers(0, SERIES - 1), st.integers(-50, 250), st.integers(0, 9)), max_size=40)


def windows(frame: SeriesFrame, steps: Steps, log_range: LogRange) -> list[list[float]]:
    """Sorted values of each series and window, found as the window kernels find them: by two borders."""
    out = []
    for row in range(len(frame)):
        ts = frame.ts_ms[frame.offsets[row] : frame.offsets[row + 1]]
        values = frame.values[frame.offsets[row] : frame.offsets[row + 1]]
        assert (np.diff(ts) >= 0).all()
        for end in (steps.times_ms() - log_range.offset_ns).tolist():
            first, last = np.searchsorted(ts, [end - log_range.range_ns, end], side="right")
            out.append(sorted(values[first:last].tolist()))
    return out


@settings(deadline=None)
@given(
    st.lists(rows, min_size=1, max_size=4), st.integers(0, 200), st.integers(1, 60), st.integers(1, 5),
    st.integers(1, 120), st.integers(0, 30),
)  # fmt: skip
def test_windows_hold_what_a_sort_gives(
    pieces: list[list[tuple[int, int, int]]], first: int, step: int, count: int, width: int, offset: int
) -> None:
    steps = Steps(first, step, count)
    log_range = LogRange(LogQuery(()), width, offset_ns=offset)
    labels = LabelTable.of([{"n": str(k)} for k in range(SERIES)])
    plain, windowed = Sorted(), Windowed(steps, log_range)
    for piece in pieces:
        table = np.array(piece, np.int64).reshape(-1, 3)
        arrays = table[:, 0].astype(np.int32), table[:, 1].copy(), table[:, 2].astype(np.float64)
        plain.add(*arrays)
        windowed.add(*arrays)
    assert windows(windowed.frame(labels), steps, log_range) == windows(plain.frame(labels), steps, log_range)
