"""Is the new version worse than the old one? Pass, fail or inconclusive, with the numbers it was decided by.

``fail`` asks for all of D1's conditions, as an ejection does. ``pass`` asks for the opposite to be sure: the upper
bound of the excess is below the margin. Everything else is inconclusive, and says how many more attempts
would settle it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from health.detectors import mantel_haenszel
from health.evidence import conditions
from health.history import Totals
from health.policy import Policy
from health.topology import Fact

MARGIN = 0.005
_Z = 1.645
_QUANTILE = 0.9
_SELECTOR = re.compile(r'(version|zone|endpoint)\s*=\s*"?([^"]+?)"?')


@dataclass(frozen=True, slots=True)
class Side:
    """Some endpoints of a service: those whose ``label`` is ``value``."""

    label: str
    value: str

    @classmethod
    def parse(cls, text: str) -> Side:
        """Read ``version="v2"``, ``zone=z1`` or ``endpoint=10.0.0.1:80``.

        Raises
        ------
        ValueError
        """
        found = _SELECTOR.fullmatch(text.strip())
        if found is None:
            raise ValueError(f'{text!r} is not version="...", zone="..." or endpoint="..."')
        return cls(found[1], found[2])

    def columns(self, totals: Totals, facts: Mapping[str, Fact]) -> NDArray[np.bool_]:
        """Which endpoints they are, (H,) bool; a topology source wins over labels of the series."""
        values: list[str] = []
        for name, zone, version in zip(totals.endpoints, totals.zones, totals.versions, strict=True):
            fact = facts.get(name, Fact(name))
            if self.label == "endpoint":
                values.append(name)
            else:
                values.append((fact.zone or zone) if self.label == "zone" else (fact.version or version))
        return np.array([value == self.value for value in values], dtype=np.bool_)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One quantity of the candidate against the baseline.

    Attributes
    ----------
    verdict : ``pass``, ``fail`` or ``inconclusive``
    missing : attempts of the candidate that would settle it, about; None = more would not help
    """

    verdict: str
    rd: float
    se: float
    z: float
    candidate: tuple[int, int]
    baseline: tuple[int, int]
    missing: int | None

    def data(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "verdict": self.verdict,
            "rd": self.rd,
            "se": self.se,
            "mh_z": self.z,
            "candidate": {"errors": self.candidate[0], "requests": self.candidate[1]},
            "baseline": {"errors": self.baseline[0], "requests": self.baseline[1]},
        }


def compare(errors: NDArray[np.float64], attempts: NDArray[np.float64], policy: Policy, margin: float) -> Comparison:
    """Candidate against baseline, stratified by observer.

    Parameters
    ----------
    errors, attempts : (P, 2) float64     candidate, baseline
    """
    stats, _ = mantel_haenszel(errors, attempts, policy.error)
    row = stats.row(0)
    k, n = (int(a[:, 0].sum()) for a in (errors, attempts))
    k0, n0 = (int(a[:, 1].sum()) for a in (errors, attempts))
    rate = (k + 0.5) / (n + 1)  # none of few is not none of many
    se = max(row["standard_error"] if math.isfinite(row["standard_error"]) else 0.0, math.sqrt(rate / (n + 1)))
    rd = row["excess"]
    known = n >= policy.error.min_requests and n0 >= policy.error.min_requests
    if known and all(gate.ok for gate in conditions(row, policy)):
        verdict = "fail"
    elif known and rd + _Z * se < margin:
        verdict = "pass"
    else:
        verdict = "inconclusive"
    missing: int | None = 0
    if verdict == "inconclusive":
        room = margin - max(rd, 0.0)
        missing = None if room <= 0 else max(1, math.ceil((n + 1) * (_Z * se / room) ** 2) - n)
    return Comparison(verdict, rd, se, row["z"], (k, n), (k0, n0), missing)


def compare_sides(
    totals: Totals, facts: Mapping[str, Fact], candidate: Side, baseline: Side | None, policy: Policy, margin: float
) -> dict[str, Any]:
    """Compare two groups of endpoints by errors and, where there are histograms, by slow attempts.

    Parameters
    ----------
    baseline : None = all other endpoints
    """
    new = candidate.columns(totals, facts)
    old = ~new if baseline is None else baseline.columns(totals, facts)
    columns = np.stack((new, old), axis=1).astype(np.float64)
    errors = compare(totals.errors @ columns, totals.attempts @ columns, policy, margin)
    out: dict[str, Any] = {
        "verdict": errors.verdict,
        "margin": margin,
        "endpoints": {"candidate": int(new.sum()), "baseline": int(old.sum())},
        "errors": errors.data(),
        "min_requests_missing": errors.missing,
    }
    slow = _slow(totals, columns, policy, margin)
    if slow is not None:
        out["latency"] = slow.data()
        out["verdict"] = _worst(errors.verdict, slow.verdict)
    return out


def _slow(totals: Totals, columns: NDArray[np.float64], policy: Policy, margin: float) -> Comparison | None:
    """The share of attempts above the baseline's 90 % bucket bound; None when there is no such bound."""
    if not totals.buckets.size:
        return None
    grouped = np.einsum("ghj,hc->gcj", totals.buckets, columns)
    base = grouped[:, 1].sum(axis=0).cumsum()
    if base[-1] < policy.latency.min_peer_requests:
        return None
    bound = int(np.searchsorted(base, _QUANTILE * base[-1]))
    if bound >= len(base) - 1:
        return None
    attempts = grouped.sum(axis=2)
    slow = attempts - grouped[:, :, : bound + 1].sum(axis=2)
    return compare(np.ascontiguousarray(slow), np.ascontiguousarray(attempts), policy, max(margin, 0.02))


def _worst(*verdicts: str) -> str:
    for verdict in ("fail", "inconclusive"):
        if verdict in verdicts:
            return verdict
    return "pass"
