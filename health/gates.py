"""May a rollout go on? One answer in three: go (200), halt (412), not enough evidence yet (425) (decision 18)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from health.board import ServiceView
from health.explain import Evaluation
from health.history import Totals

BURN_MS = 300_000
BURN_LIMIT = 14.4
"""Of a page: two per cent of a month's budget in an hour."""
_BURN_ERRORS_MIN = 5
"""As many as convict an endpoint: one error of ten attempts burns fast, and means nothing."""
GO, HALT, WAIT = "go", "halt", "wait"
STATUS = {GO: 200, HALT: 412, WAIT: 425}


def gate(
    compared: dict[str, Any],
    version: str,
    view: ServiceView | None,
    evaluation: Evaluation | None,
    now_ms: int,
    more: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """The verdict about one version of a service, with every check it was made of.

    Parameters
    ----------
    compared : from :func:`health.compare.compare_sides`, the version against all others
    view, evaluation : of the service now; None = nobody reports about it
    more : further checks
    """
    checks: list[dict[str, Any]] = []
    errors = compared["errors"]
    checks.append({"name": "version_errors", "verdict": errors["verdict"], **_ratios(errors)})
    if "latency" in compared:
        slow = compared["latency"]
        checks.append({"name": "version_latency", "verdict": slow["verdict"], **_ratios(slow)})
    bad = evaluation is not None and any(
        group.label == "version" and group.value == version for group in evaluation.verdicts.degraded
    )
    checks.append({"name": "version_degraded", "verdict": "fail" if bad else "pass"})
    checks += more
    fresh = view is not None and not view.frozen and now_ms < view.valid_until_ms
    checks.append({"name": "data_fresh", "verdict": "pass" if fresh else "inconclusive"})
    common = view is not None and bool(view.incident)
    checks.append({"name": "common_cause", "verdict": "inconclusive" if common else "pass"})
    verdicts = {check["verdict"] for check in checks}
    verdict = WAIT if "inconclusive" in verdicts else GO
    if "fail" in verdicts and not common:  # old and new rise together: the new version is not to blame
        verdict = HALT
    candidate, baseline = errors["candidate"], errors["baseline"]
    reason = f"version {version}: {_percent(candidate)} of {candidate['requests']}, others {_percent(baseline)}"
    if verdict != GO:
        wanted = "fail" if verdict == HALT else "inconclusive"
        reason += "; " + ", ".join(check["name"] for check in checks if check["verdict"] == wanted)
    return {
        "verdict": verdict,
        "reason": reason,
        "checks": checks,
        "min_requests_missing": compared["min_requests_missing"],
    }


def burn(totals: Totals, new: NDArray[np.bool_], objective: float) -> dict[str, Any]:
    """The check whether the new version alone spends the error budget too fast, over the last five minutes.

    Parameters
    ----------
    totals : of :data:`BURN_MS`
    new : (H,) bool, endpoints of the new version
    objective : wanted share of good attempts
    """
    errors, attempts = (float(counted[:, new].sum()) for counted in (totals.errors, totals.attempts))
    rate = errors / attempts / (1 - objective) if attempts else 0.0
    failed = rate > BURN_LIMIT and errors >= _BURN_ERRORS_MIN
    return {"name": "burn_5m", "verdict": "fail" if failed else "pass", "value": rate, "limit": BURN_LIMIT}


def _ratios(data: dict[str, Any]) -> dict[str, Any]:
    return {"rd": data["rd"], "mh_z": data["mh_z"], "candidate": data["candidate"], "baseline": data["baseline"]}


def _percent(side: dict[str, int]) -> str:
    return f"{100 * side['errors'] / side['requests']:.2f} %" if side["requests"] else "no attempts"
