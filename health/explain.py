"""Why an endpoint stands where it stands: statistics, gates, guards, observers, and a query to paste."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from health.events import time_text
from health.evidence import conditions, counterfactual, reason_data
from health.guards import Candidate, Docket, review
from health.mapping import SeriesMapping
from health.service import Service
from health.verdicts import Detector, Finding, Kind, Situation, Stats, Verdicts
from health.window import Signals

OBSERVERS_SHOWN = 50


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The last evaluation of a service, as an explanation needs it."""

    service: Service
    signals: Signals
    verdicts: Verdicts
    situation: Situation
    now_ms: int
    spent: int

    def docket(self) -> Docket:
        """What the guards would look at now."""
        names, state = self.verdicts.endpoints, self.service.state
        orders = self.situation.overrides
        return Docket(
            policy=self.service.policy,
            verdicts=self.verdicts,
            situation=self.situation,
            now_ms=self.now_ms,
            started_ms=state.started_ms,
            states=tuple(state.endpoints.get(name) for name in names),
            last_ejection_ms=state.last_ejection_ms,
            spent=self.spent,
            overrides=tuple(orders.get(name) for name in names) if orders else (),
        )


def leading_finding(evaluation: Evaluation, endpoint: int) -> Finding | None:
    """The finding that counts for an endpoint: what flags it, else the error ratio of the window with the largest z."""
    verdicts = evaluation.verdicts
    for found in (verdicts.leading, verdicts.partial):
        if endpoint in found:
            return verdicts.findings[found[endpoint]]
    ratios = [f for f in verdicts.findings if f.detector is not Detector.SLOW_FRACTION]
    return max(ratios, key=lambda f: float(f.stats.column("z")[endpoint]), default=None)


def explanation(evaluation: Evaluation, endpoint: int, mapping: SeriesMapping | None) -> dict[str, Any]:
    """Everything known about one endpoint (its column), JSON-ready."""
    service, verdicts, policy = evaluation.service, evaluation.verdicts, evaluation.service.policy
    name = verdicts.endpoints[endpoint]
    known = service.state.endpoints.get(name)
    finding = leading_finding(evaluation, endpoint)
    out: dict[str, Any] = {
        "service": service.name,
        "endpoint": name,
        "time": time_text(evaluation.now_ms),
        "state": str(known.state) if known else "unknown",
        "since": time_text(known.since_ms) if known else None,
        "until": time_text(known.until_ms) if known and known.until_ms else None,
        "ejections": known.ejections if known else 0,
        "mode": str(policy.mode),
        "policy": policy.name,
        "flagged": endpoint in verdicts.leading,
        "present": bool(verdicts.present[endpoint]),
        "incident": verdicts.incident,
        "statistics": None,
        "conditions": [],
        "counterfactual": "it had no attempts in the windows that are judged",
    }
    excess = 0.0
    if finding is not None and finding.stats.column("attempts")[endpoint]:
        row = finding.stats.row(endpoint)
        excess = row["excess"]
        out["statistics"] = {
            "detector": str(finding.detector),
            "window": f"{finding.window_s}s",
            **({"quantile": finding.quantile} if finding.quantile else {}),
            **{key: _finite(value) for key, value in row.items()},
        }
        gates = conditions(row, policy, quantile=finding.quantile)
        out["conditions"] = [{**asdict(gate), "value": _finite(gate.value), "ok": bool(gate.ok)} for gate in gates]
        out["counterfactual"] = counterfactual(row, policy, quantile=finding.quantile)
        out["per_observer"] = _per_observer(evaluation, endpoint, finding.window_s)
    out["guards"] = [
        {"name": str(guard), "ok": said is None, "detail": dict(said) if said else {}}
        for guard, said in review(evaluation.docket(), Candidate(endpoint, excess))
    ]
    out["promql"] = paste_query(mapping, service.name) if mapping else ""
    return out


def conviction(events: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What a detector last ejected an endpoint for, which a failed probe later does not replace; None = never.

    Parameters
    ----------
    events : of the endpoint, oldest first
    """
    for event in reversed(events):
        if event["type"] == Kind.EJECTED and event["detector"] not in (Detector.PROBE, Detector.OVERRIDE):
            keys = ("time", "revision", "detector", "reason")
            return {**{key: event[key] for key in keys}, "evidence": reason_data(event["evidence"])}
    return None


def _per_observer(evaluation: Evaluation, endpoint: int, window_s: int) -> list[dict[str, Any]]:
    """What each observer saw of the endpoint and of its peers, those with most errors first."""
    windows = evaluation.signals.windows
    sums = next((w for w in windows if w.window_s == window_s), windows[0])
    compared = evaluation.service.state.compared(evaluation.verdicts.endpoints).copy()
    compared[endpoint] = False
    errors, attempts = sums.errors[:, endpoint], sums.attempts[:, endpoint]
    peer_errors, peer_attempts = sums.errors @ compared, sums.attempts @ compared
    rows = np.flatnonzero(attempts > 0)
    rows = rows[np.lexsort((-attempts[rows], -errors[rows]))][:OBSERVERS_SHOWN]
    return [
        {
            "observer": evaluation.service.observers[p],
            "zone": evaluation.service.observer_zones[p],
            "errors": int(errors[p]),
            "requests": int(attempts[p]),
            "peer_errors": int(peer_errors[p]),
            "peer_requests": int(peer_attempts[p]),
        }
        for p in rows.tolist()
    ]


def selector(mapping: SeriesMapping, service: str) -> str:
    """``,label="service"`` for behind other matchers; "" when the mapping has no label for it."""
    escaped = service.replace("\\", "\\\\").replace('"', '\\"')
    return f',{mapping.service}="{escaped}"' if mapping.service else ""


def paste_query(mapping: SeriesMapping, service: str) -> str:
    """A query that shows the error ratio per endpoint, from the series the verdict was made of; "" = none is known."""
    errors = mapping.errors_metric()
    successes = mapping.successes_metric()
    if not errors or not successes:
        return ""
    where = f"{{{selector(mapping, service).lstrip(',')}}}" if mapping.service else ""
    by = f"sum by ({mapping.endpoint})"
    bad, good = (f"{by} (rate({name}{where}[1m]))" for name in (errors, successes))
    return f"{bad} / ({bad} + {good})"


def _finite(value: float) -> float | str:
    """JSON has no infinity."""
    return value if np.isfinite(value) else str(value)


def error_statistics(evaluation: Evaluation, window_s: int) -> Stats | None:
    """Error statistics of all endpoints over one window."""
    for finding in evaluation.verdicts.findings:
        if finding.detector is Detector.ERROR_RATIO and finding.window_s == window_s:
            return finding.stats
    return None
