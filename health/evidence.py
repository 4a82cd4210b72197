"""Why a detector said what it said: its gates one by one, and what would have to be otherwise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from health.policy import Policy
from health.verdicts import Detector, Finding, Guard, Kind, Scalar


@dataclass(frozen=True, slots=True)
class Condition:
    """One gate of a detector: what was measured, what it needs, whether it holds."""

    name: str
    value: float
    needs: str
    ok: bool


def conditions(row: Mapping[str, float], policy: Policy, *, quantile: float = 0.0) -> tuple[Condition, ...]:
    """The gates of D1 (or of D2 for a quantile) for one row of statistics, in the order of the design page."""
    rule = policy.error
    excess = rule.min_excess
    if quantile:
        excess = policy.latency.min_excess[policy.latency.quantiles.index(quantile)]
    ratio = policy.latency.min_ratio if quantile else rule.min_ratio
    observers = min(float(rule.min_observers), row["observers"])
    return (
        Condition("z", row["z"], f"> {rule.z:g}", row["z"] > rule.z),
        Condition("excess", row["excess"], f"> {excess:g}", row["excess"] > excess),
        Condition("ratio", row["ratio"], f"> {ratio:g}", row["ratio"] > ratio),
        Condition("errors", row["errors"], f">= {rule.min_errors}", row["errors"] >= rule.min_errors),
        Condition("attempts", row["attempts"], f">= {rule.min_requests}", row["attempts"] >= rule.min_requests),
        Condition("observers_bad", row["observers_bad"], f">= {observers:g}", row["observers_bad"] >= observers),
        Condition("wilson_lo", row["wilson_lo"], f"> {row['limit']:.4g}", row["wilson_lo"] > row["limit"]),
        Condition("tail", row["tail"], f"< {rule.tail_p:g}", row["tail"] < rule.tail_p),
        Condition("exact", row["exact"], f"< {rule.exact_p:g}", row["exact"] < rule.exact_p),
        Condition("agreement", row["agreement"], f">= {policy.agreement:g}", row["agreement"] >= policy.agreement),
    )


def counterfactual(row: Mapping[str, float], policy: Policy, *, quantile: float = 0.0) -> str:
    """What would have to be otherwise for the other verdict, in one sentence."""
    gates = conditions(row, policy, quantile=quantile)
    failing = [gate for gate in gates if not gate.ok]
    if not failing:
        return f"at min_excess {row['excess']:.3g} this endpoint stays healthy"
    return "it would be flagged with " + " and ".join(
        f"{gate.name} {gate.needs} (is {gate.value:.3g})" for gate in failing
    )


def summary(finding: Finding, endpoint: int, policy: Policy) -> dict[str, Scalar]:
    """The evidence of one finding about one endpoint, as events and snapshots show it."""
    row = finding.stats.row(endpoint)
    attempts = row["attempts"]
    out: dict[str, Scalar] = {
        "detector": str(finding.detector),
        "window_s": finding.window_s,
        "errors": int(row["errors"]),
        "attempts": int(attempts),
        "ratio": row["errors"] / attempts if attempts else 0.0,
        "baseline": row["baseline"],
        "excess": row["excess"],
        "mh_z": row["z"],
        "tail": row["tail"],
        "exact": row["exact"],
        "observers": int(row["observers"]),
        "observers_bad": int(row["observers_bad"]),
        "agreement": row["agreement"],
        "threshold_z": policy.error.z,
        "threshold_excess": policy.error.min_excess,
    }
    if finding.detector is Detector.SLOW_FRACTION:
        out["quantile"] = finding.quantile
        out["bound"] = int(row["bound"])
        out["threshold_excess"] = policy.latency.min_excess[policy.latency.quantiles.index(finding.quantile)]
    return out


def percent(share: float) -> str:
    """A share as people say it."""
    return f"{100 * share:.1f} %"


def reason_text(evidence: Mapping[str, Scalar]) -> str:
    """Evidence about an endpoint in one sentence; "" when it says nothing."""
    if "mh_z" in evidence:
        what = "are slow" if evidence.get("detector") == Detector.SLOW_FRACTION else "fail"
        return (
            f"{percent(float(evidence['ratio']))} of attempts {what} ({evidence['errors']} of {evidence['attempts']}), "
            f"peers {percent(float(evidence['baseline']))}, "
            f"seen by {evidence.get('observers_bad', 0)} of {evidence.get('observers', 0)} observers"
        )
    if "action" in evidence:
        said = f"{evidence['action']} by {evidence.get('author', '?')}"
        return said + (f": {evidence['comment']}" if evidence.get("comment") else "")
    if "attempts" in evidence:
        if not evidence["attempts"]:
            return "no attempt seen since the last step"
        return f"{evidence.get('errors', 0)} of {evidence['attempts']} probes failed"
    return ""


def reason_data(evidence: Mapping[str, Scalar]) -> dict[str, Any]:
    """The evidence that led to a state, with the names of design page 9.2."""
    clean: dict[str, Any] = {
        k: v if not isinstance(v, float) or math.isfinite(v) else str(v) for k, v in evidence.items()
    }
    if "mh_z" not in clean:
        return clean
    threshold = {"z": clean.pop("threshold_z"), "min_excess": clean.pop("threshold_excess")}
    window, requests = f"{clean.pop('window_s')}s", clean.pop("attempts")
    return {**clean, "window": window, "requests": requests, "p": clean.pop("tail"), "threshold": threshold}


_BARE = {
    Kind.CLEARED: "not flagged again",
    Kind.GONE: "its series ended",
    Kind.RETURNED: "its series are back",
    Kind.THAW: "data are fresh again",
    Kind.PROBATION: "its time is over, a little traffic decides",
    Kind.OBSERVERS_SPLIT: "too many observers blame everybody, all are asked",
}


def sentence(kind: Kind, guard: Guard | None, evidence: Mapping[str, Scalar]) -> str:
    """What an event says to a person, with the numbers that decided."""
    if kind in _BARE:
        return _BARE[kind]
    said = reason_text(evidence)
    if kind is Kind.BLOCKED:
        refusal = {key.removeprefix("guard_"): v for key, v in evidence.items() if key.startswith("guard_")}
        return f"held back by {guard} ({_listed(refusal)})" + (f": {said}" if said else "")
    if kind in (Kind.OBSERVER_BROKEN, Kind.ZONE_DEGRADED, Kind.VERSION_DEGRADED):
        who = next(key for key in ("observer", "zone", "version") if key in evidence)
        return (
            f"{who} {evidence[who]}: {evidence['errors']:.0f} of {evidence['attempts']:.0f} attempts fail, "
            f"others {percent(float(evidence['baseline']))}"
        )
    if kind is Kind.CAPACITY_LOST:
        return f"{evidence['unavailable']} of {evidence['total']} endpoints are out"
    if kind is Kind.FREEZE:
        numbers = {key: value for key, value in evidence.items() if key != "reason"}
        return f"nothing is decided: {evidence.get('reason', 'data')}" + (f" ({_listed(numbers)})" if numbers else "")
    return said or _listed(evidence)


def _listed(evidence: Mapping[str, Scalar]) -> str:
    """Names and values, one after the other."""
    return ", ".join(
        f"{key.replace('_', ' ')} {value:.4g}" if isinstance(value, float) else f"{key.replace('_', ' ')} {value}"
        for key, value in evidence.items()
    )
