"""Rings of increments against plain sums; resets, stale markers and what an endpoint's past may say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from health.policy import Policy
from health.window import Channel, CounterTable, Ring, ServiceWindow
from tests.reference.health_window import PlainRing, increments

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("advance"), st.integers(0, 9)),
        st.tuples(st.just("add"), st.integers(0, 3), st.integers(-8, 2), st.integers(0, 50)),
        st.tuples(st.just("all"), st.integers(-8, 0), st.integers(0, 9)),
        st.tuples(st.just("clear"), st.integers(0, 3)),
    ),
    max_size=40,
)


@pytest.mark.kernel
@settings(deadline=None, max_examples=150)
@given(STEPS)
def test_running_sums_are_sums(steps):
    ring, plain = Ring(4, 6, (2, 6)), PlainRing(6, (2, 6))
    now = 100
    ring.advance(now)
    plain.advance(now)
    for step in steps:
        if step[0] == "advance":
            now += step[1]
            ring.advance(now)
            plain.advance(now)
        elif step[0] == "add":
            _, cell, ahead, value = step
            ring.add(np.array([cell]), np.array([now + ahead]), np.array([float(value)]))
            plain.add(cell, now + ahead, value)
        elif step[0] == "all":
            ring.add_all(now + step[1], np.arange(4, dtype=np.int32) * step[2])
            for cell in range(4):
                plain.add(cell, now + step[1], cell * step[2])
        else:
            ring.clear(np.array([step[1]]))
            plain.clear(step[1])
        assert ring.sums.tolist() == plain.sums(4)


def test_increments_too_old_for_the_ring_are_told():
    ring = Ring(1, 6, (6,))
    ring.advance(100)
    assert ring.add(np.array([0, 0]), np.array([94, 95]), np.array([1.0, 1.0])) == 1
    assert ring.sums.tolist() == [[1.0]]


def test_rearranged_ring_keeps_its_sums():
    ring = Ring(3, 6, (2, 6))
    ring.advance(10)
    ring.add(np.arange(3), np.array([7, 10, 10]), np.array([1.0, 2.0, 3.0]))
    new = ring.rearranged(np.array([2, -1, 0, 1]))
    assert new.sums.tolist() == [[3.0, 0.0, 0.0, 2.0], [3.0, 0.0, 1.0, 2.0]]
    new.advance(13)
    assert new.sums.tolist() == [[0.0] * 4, [3.0, 0.0, 0.0, 2.0]]


SAMPLES = st.lists(st.tuples(st.integers(1, 5), st.sampled_from([0.0, 1.0, 5.0, 5.0, 7.0, math.nan])), max_size=6)


@pytest.mark.kernel
@settings(deadline=None, max_examples=100)
@given(st.lists(st.lists(SAMPLES, min_size=2, max_size=2), min_size=1, max_size=4))
def test_increments_of_counters(scrapes):
    table = CounterTable(2)
    last: list[tuple[int, float] | None] = [None, None]
    at = [0, 0]
    for rows in scrapes:
        timed = []
        for row, samples in enumerate(rows):
            here = []
            for step, value in samples:
                at[row] += step
                here.append((at[row], value))
            timed.append(here)
        flat = [sample for samples in timed for sample in samples]
        offsets = np.cumsum([0, *(len(samples) for samples in timed)])
        got = table.deltas(offsets, np.array([t for t, _ in flat], dtype=np.int64), np.array([v for _, v in flat]))
        expected = []
        for row, samples in enumerate(timed):
            found, last[row] = increments(samples, last[row])
            expected += [(row, *increment) for increment in found]
        assert [tuple(x) for x in zip(*(a.tolist() for a in got), strict=True)] == expected


def test_a_restart_counts_from_zero_and_a_first_sight_gives_nothing():
    table = CounterTable(1)
    offsets = np.array([0, 4])
    times, values = np.array([1000, 2000, 3000, 4000]), np.array([100.0, 103.0, 2.0, 2.0])
    assert table.deltas(offsets, times, values)[3].tolist() == [3.0, 2.0, 0.0]
    # the same samples again give nothing
    assert table.deltas(offsets, times, values)[3].tolist() == []


def window(**more) -> ServiceWindow:
    return ServiceWindow(Policy(), 2, 3, **more)


def put(
    w: ServiceWindow, channel: Channel, p: int, h: int, second: int, value: float, begin: int | None = None
) -> None:
    begin_ms = (second - 1 if begin is None else begin) * 1000
    w.add(channel, *(np.array([x]) for x in (p, h, begin_ms, second * 1000)), np.array([value]))


def test_windows_of_10_and_60_seconds():
    w = window()
    w.advance(100_000)
    for second, value in ((41, 1.0), (90, 2.0), (91, 4.0), (100, 8.0)):
        put(w, Channel.ATTEMPTS, 1, 2, second, value)
    sums = {s.window_s: s.attempts[1, 2] for s in w.signals(100_000).windows if s.window_s <= 60}
    assert sums == {10: 12.0, 60: 15.0}
    w.advance(101_000)
    sums = {s.window_s: s.attempts[1, 2] for s in w.signals(101_000).windows if s.window_s <= 60}
    assert sums == {10: 8.0, 60: 14.0}


def test_sparse_services_are_judged_over_300_seconds_too():
    w = window()
    w.advance(1_000_000)
    put(w, Channel.ATTEMPTS, 0, 0, 800, 3.0)
    assert [s.window_s for s in w.signals(1_000_000).windows] == [10, 60, 300]
    assert w.signals(1_000_000).windows[-1].attempts[0, 0] == 3.0
    put(w, Channel.ATTEMPTS, 0, 0, 1000, 5000.0)
    assert [s.window_s for s in w.signals(1_000_000).windows] == [10, 60]


def test_a_cleared_endpoint_has_no_past():
    w = window(n_groups=1, n_buckets=2)
    w.advance(100_000)
    for h in (0, 1):
        put(w, Channel.ERRORS, 0, h, 100, 5.0)
        put(w, Channel.ATTEMPTS, 0, h, 100, 5.0)
        put(w, Channel.CONNECT_FAILS, 0, h, 100, 5.0)
        w.add_latency(*(np.array([x]) for x in (0, h, 1, 99_000, 100_000)), np.array([5.0]))
    w.clear(0, 100_000)
    # counted over an interval that began before: not this endpoint's any more
    put(w, Channel.ERRORS, 0, 0, 102, 7.0, begin=99)
    put(w, Channel.ATTEMPTS, 0, 0, 102, 3.0, begin=100)
    signals = w.signals(100_000)
    assert [s.errors[0].tolist() for s in signals.windows[:2]] == [[0.0, 5.0, 0.0]] * 2
    assert [s.attempts[0].tolist() for s in signals.windows[:2]] == [[3.0, 5.0, 0.0]] * 2
    assert signals.hard.errors[0].tolist() == [0.0, 5.0, 0.0]
    assert [lat.buckets[0, :, 1].tolist() for lat in signals.latency] == [[0.0, 5.0, 0.0]] * 3
    assert signals.probe_attempts[0].tolist() == [3.0, 5.0, 0.0]
    # but what it did before still belongs to its own last 10 minutes
    w.advance(200_000)
    assert w.signals(200_000).past_errors.tolist() == [12.0, 5.0, 0.0]


def test_only_the_counters_of_probation_restart():
    w = window()
    w.advance(100_000)
    put(w, Channel.ATTEMPTS, 0, 0, 100, 5.0)
    w.restart(0, 100_000)
    put(w, Channel.ATTEMPTS, 0, 0, 101, 2.0, begin=99)
    put(w, Channel.ATTEMPTS, 0, 0, 101, 1.0, begin=100)
    signals = w.signals(100_000)
    assert signals.windows[0].attempts[0, 0] == 8.0
    assert signals.probe_attempts[0, 0] == 1.0


def test_zero_traffic_is_not_absence():
    w = window()
    w.advance(100_000)
    put(w, Channel.ATTEMPTS, 0, 1, 100, 0.0)
    assert w.signals(159_000).present.tolist() == [False, True, False]
    assert w.signals(161_000).present.tolist() == [False, False, False]


def test_growing_keeps_what_was_counted():
    w = window(n_groups=2, n_buckets=2)
    w.advance(100_000)
    put(w, Channel.ATTEMPTS, 1, 2, 100, 5.0)
    put(w, Channel.ERRORS, 1, 2, 100, 4.0)
    w.add_latency(*(np.array([x]) for x in (1, 2, 0, 99_000, 100_000)), np.array([3.0]))
    w.clear(0, 90_000)
    w.rearrange(np.array([1, 0, -1]), np.array([2, -1, 0, 1]))
    assert w.shape == (3, 4)
    signals = w.signals(100_000)
    assert signals.windows[0].attempts.tolist() == [[5.0, 0.0, 0.0, 0.0], [0.0] * 4, [0.0] * 4]
    assert signals.probe_errors[0, 0] == 4.0
    assert signals.latency[0].buckets[1, 0].tolist() == [3.0, 0.0]
    assert signals.present.tolist() == [True, False, False, False]
    assert w.valid_from_ms.tolist()[2] == 90_000
    put(w, Channel.ATTEMPTS, 2, 3, 100, 1.0)
    assert w.signals(100_000).windows[0].attempts[2, 3] == 1.0


def test_load_and_its_peak():
    w = window()
    for second in range(100, 400):
        w.advance(second * 1000)
        for h in range(2):
            put(w, Channel.ATTEMPTS, 0, h, second, 10.0 if second < 250 else 2.0)
        signals = w.signals(second * 1000)
    assert signals.rps == pytest.approx(4.0, rel=0.05)
    assert signals.rps_peak == pytest.approx(10.0, rel=0.05)
