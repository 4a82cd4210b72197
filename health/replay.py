"""What a policy would have decided over stored history, beside what was decided (design page 9.8)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from health.events import KEPT, Event, time_text
from health.explain import explanation
from health.history import read_seconds, read_totals
from health.past import Past, Plan, Rerun
from health.verdicts import Detector, Kind

TICKS_MAX = 21_600
"""Six hours at one evaluation a second: about half a minute of CPU for a service of 100 endpoints."""
_SAME_MS = 15_000
"""A live ejection of the same endpoint within this time is the same one."""
_COUNTED = 100
"""Ejections whose errors are counted and whose onset is looked for: each reads its own minutes."""
_ONSET_S = 120
_BY_ERRORS = frozenset(
    {Detector.ERROR_RATIO, Detector.HARD_FAILURE, Detector.SUCCESS_RATE, Detector.FAILURE_PERCENTAGE}
)


def replay(plan: Plan, past: Past) -> dict[str, Any]:
    """Run it; decisions after the start, what they would have saved, and how they differ from what happened.

    Raises
    ------
    tsdb.errors.LimitError        five minutes of the service are more than one selection may read
    OSError                       the arrivals cannot be read
    """
    rerun = Rerun(plan, past)
    out_ms, peak, ticks, last_ms = 0, 0.0, 0, plan.start_ms
    open_since: dict[str, int] = {}
    intervals: list[tuple[str, int, int]] = []
    for now_ms in rerun.run():
        ticks += 1
        view = rerun.loop.board.now.services.get(plan.service)
        if view is None or now_ms <= plan.start_ms:
            continue
        out = {e.endpoint for e in view.endpoints if e.verdict == "EJECT"}
        out_ms += len(out & open_since.keys()) * (now_ms - last_ms)
        last_ms = now_ms
        peak = max(peak, len(out) / max(1, sum(e.listed for e in view.endpoints)))
        for endpoint in out - open_since.keys():
            open_since[endpoint] = now_ms
        intervals += [(endpoint, open_since.pop(endpoint), now_ms) for endpoint in open_since.keys() - out]
    intervals += [(endpoint, since, plan.end_ms) for endpoint, since in open_since.items()]
    found = rerun.loop.events.find(start_ms=plan.start_ms, end_ms=plan.end_ms, service=plan.service, limit=KEPT)
    ejected = [event for event in found if event.data["type"] == Kind.EJECTED]
    was = past.live.find(
        start_ms=plan.start_ms, end_ms=plan.end_ms, service=plan.service, type=str(Kind.EJECTED), limit=KEPT
    )
    avoided = [_avoided(plan, past, ejected, *interval) for interval in intervals[:_COUNTED]]
    waited = [seconds for event in ejected[:_COUNTED] if (seconds := _waited(plan, past, event)) is not None]
    return {
        "service": plan.service,
        "policy": plan.policy.name,
        "start": time_text(plan.start_ms),
        "end": time_text(plan.end_ms),
        "evaluations": ticks,
        "exact": not rerun.approximations,
        "approximations": rerun.approximations,
        "decisions": [_decision(event) for event in found if event.data["endpoint"]],
        "time_to_detect_s": {"count": len(waited), **{f"p{q}": _percentile(waited, q) for q in (50, 90)}},
        "ejected_endpoint_seconds": out_ms / 1000,
        "errors_avoided": round(sum(real + spared for real, spared in avoided)),
        "errors_avoided_real": round(sum(real for real, _ in avoided)),
        "peak_ejected_percent": round(100 * peak, 1),
        "diff_vs_live": _difference(ejected, was),
    }


def explain_past(plan: Plan, past: Past, endpoint: str) -> tuple[dict[str, Any], list[str]]:
    """The explanation of an endpoint as it would have been at ``plan.end_ms``, and why that may differ.

    Raises
    ------
    NotFoundError        it was not seen then
    """
    rerun = Rerun(plan, past)
    for _ in rerun.run():
        pass
    evaluation, column = rerun.loop.evaluation(plan.service, endpoint)
    data = explanation(evaluation, column, rerun.loop.mapping_of(plan.service))
    data["mode"] = str(plan.policy.mode)
    events = rerun.loop.events.find(service=plan.service, endpoint=endpoint, limit=KEPT)
    return data | {"events": [event.data for event in events]}, rerun.approximations


def onset(errors: NDArray[np.float64], attempts: NDArray[np.float64], before: float, after: float) -> int:
    """The second from which on the counts look like the ratio ``after`` rather than ``before``: the likeliest change.

    Parameters
    ----------
    errors, attempts : (n,) float64, a second each, the last is that of the verdict
    before, after : error ratios, ``before < after``
    """
    gain = errors * np.log(after / before) + (attempts - errors) * np.log((1 - after) / (1 - before))
    return int(np.argmax(np.cumsum(gain[::-1])[::-1]))


def _waited(plan: Plan, past: Past, event: Event) -> float | None:
    """Seconds from the onset of the fault to the ejection; None when it was no detector of errors that ejected."""
    evidence = event.data["evidence"]
    if event.data["detector"] not in _BY_ERRORS or "ratio" not in evidence:
        return None
    start_ms = event.time_ms - _ONSET_S * 1000
    errors, attempts = read_seconds(
        past.frames, past.mappings, plan.service, event.data["endpoint"], start_ms, event.time_ms
    )
    before = min(max(float(evidence["baseline"]), 1e-3), 0.5)
    after = min(max(float(evidence["ratio"]), 2 * before), 0.999)
    return float(_ONSET_S - onset(errors, attempts, before, after))


def _percentile(values: list[float], q: int) -> float | None:
    return float(np.percentile(values, q, method="inverted_cdf")) if values else None


def _decision(event: Event) -> dict[str, Any]:
    data = event.data
    keys = ("time", "type", "endpoint", "from", "to", "detector", "guard", "until", "reason")
    return {key: data[key] for key in keys}


def _avoided(
    plan: Plan, past: Past, ejected: list[Event], endpoint: str, since_ms: int, until_ms: int
) -> tuple[float, float]:
    """Errors of an endpoint while the replay had it out: those that really happened, and those that did not.

    Where it was out in truth too, the second is what its peers' number of attempts would have brought at the error
    ratio that convicted it.
    """
    totals = read_totals(past.frames, past.mappings, plan.service, since_ms, until_ms)
    attempts = totals.attempts.sum(axis=0)
    at = totals.endpoints.index(endpoint) if endpoint in totals.endpoints else None
    own = 0.0 if at is None else float(attempts[at])
    peers = attempts if at is None else np.delete(attempts, at)
    missing = max(0.0, float(peers.mean()) - own) if len(peers) else 0.0
    ratios = [
        float(event.data["evidence"]["ratio"])
        for event in ejected
        if event.data["endpoint"] == endpoint and event.time_ms <= since_ms and "ratio" in event.data["evidence"]
    ]
    real = 0.0 if at is None else float(totals.errors[:, at].sum())
    return real, missing * ratios[-1] if ratios else 0.0


def _difference(found: list[Event], was: list[Event]) -> dict[str, int]:
    """Ejections that only the replay has, and those that only happened live."""

    def alone(some: list[Event], others: list[Event]) -> int:
        return sum(
            not any(e.data["endpoint"] == o.data["endpoint"] and abs(e.time_ms - o.time_ms) <= _SAME_MS for o in others)
            for e in some
        )

    return {"added": alone(found, was), "removed": alone(was, found)}
