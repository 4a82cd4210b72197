"""May the change of an nginx configuration go on to the next machine? Judged by what its sites answer since.

Each site is judged by itself, so that one broken site of a hundred stops the rollout: against itself before the change,
and against the same site on machines that were not changed. Both must say so: who was bad before is not made bad by
the change, and when host and peers rise together the change is not to blame (decision 18; design page 12).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from health.compare import Comparison, compare
from health.gates import GO, HALT, WAIT
from health.policy import ErrorRule, Policy
from health.rollout_counts import RolloutCounts

Floats = NDArray[np.float64]

ERROR_MARGIN = 0.02
"""Excess of 5xx that a passing site surely stays below; a halt needs 5 %."""

SLOW_MARGIN = 0.1
SLOW_QUANTILE = 0.9
"""Slow is what is above this share of the baseline; a halt needs 10 % more slow requests than there."""

VANISHED_P = 1e-6
VANISHED_SHARE = 0.2
"""Traffic is gone when chance hardly explains so little, and less than this share of what was to be expected came:
traffic is no Poisson process, so that the first alone would stop rollouts in every lull."""

MIN_REQUESTS = 50
VANISHED_S_MIN = 20.0
"""Least time after the change before missing traffic means something: lines arrive a few seconds late."""

_Z = 3.0
_POLICY = Policy()
_SLOW_POLICY = replace(_POLICY, error=replace(ErrorRule(), min_excess=SLOW_MARGIN, min_ratio=1.5))

FAIL, PASS, UNSURE, COMMON = "fail", "pass", "inconclusive", "common_cause"


@dataclass(frozen=True, slots=True)
class Check:
    """One question about one site (or all together).

    Attributes
    ----------
    site : "" = all sites of the machine
    verdict : ``fail``, ``pass``, ``inconclusive`` or ``common_cause``
    text : the numbers, in words
    missing : requests that would settle it, about
    """

    name: str
    site: str
    verdict: str
    text: str
    missing: int = 0

    def data(self) -> dict[str, Any]:
        """JSON form."""
        return {"name": self.name, "site": self.site, "verdict": self.verdict, "reason": self.text}


@dataclass(frozen=True, slots=True)
class _Sides:
    """(k, n) of a site: bad and all requests on the changed machine and its peers, before and after."""

    after: tuple[float, float]
    before: tuple[float, float]
    peers_after: tuple[float, float]
    peers_before: tuple[float, float]


def judge_rollout(
    counts: RolloutCounts,
    *,
    site: str,
    host: str,
    now_ms: int,
    updated: Iterable[str] = (),
    min_requests: int = MIN_REQUESTS,
    fresh_ms: int = 30_000,
) -> dict[str, Any]:
    """The verdict about a change.

    Parameters
    ----------
    site : "" = all sites of the machine, each by itself and all together
    host : the changed machine; "" = the site as a whole, without peers
    updated : machines that were changed before, which are no peers
    min_requests : least requests after the change
    fresh_ms : a machine whose counters are older says nothing

    Returns
    -------
    dict
        ``verdict`` go, halt or wait, with the reason and every check that did not pass
    """
    own = np.array([not host or name == host for name in counts.hosts], np.bool_)
    left_out = set(updated)
    peers = np.array(
        [not mine and name not in left_out for name, mine in zip(counts.hosts, own, strict=True)], np.bool_
    )
    n_after, n_before = (float(s.requests[:, own].sum()) for s in (counts.after, counts.before))
    checks: list[Check] = []
    for i, name in enumerate(counts.sites):
        checks += _site_checks(counts, i, name, own, peers, min_requests)
    if len(counts.sites) > 1:
        checks.append(_all_sites(counts, own, peers, min_requests))
    checks += [Check("error_log", of, FAIL, line[:300]) for of, line in counts.loud[:10]]
    newest = int(counts.newest_ms[own].max(initial=0))
    if newest < now_ms - fresh_ms:
        checks.append(
            Check("data_fresh", "", UNSURE, "no counters of this machine" if not newest else "counters are old")
        )
    missing = max(0, math.ceil(min_requests - n_after))
    if missing:
        checks.append(Check("requests", "", UNSURE, f"{n_after:.0f} requests after the change", missing))
    failed = [check for check in checks if check.verdict == FAIL]
    # a quiet site of a machine with many must not hold up what all together allow
    unsure = [c for c in checks if c.verdict in (UNSURE, COMMON) and (site or not c.site or c.verdict == COMMON)]
    verdict = HALT if failed else WAIT if unsure else GO
    told = failed or unsure
    good = f"{n_after:.0f} requests after the change, {n_before:.0f} before: nothing got worse"
    reason = "; ".join((f"{c.site}: " if c.site else "") + c.text for c in told[:3]) if told else good
    return {
        "verdict": verdict,
        "reason": reason,
        "site": site,
        "host": host,
        "requests_after": int(n_after),
        "requests_before": int(n_before),
        "sites": len(counts.sites),
        "peers": [name for name, peer in zip(counts.hosts, peers, strict=True) if peer],
        "checks": [check.data() for check in checks if check.verdict != PASS],
        "min_requests_missing": max([missing, *(check.missing for check in unsure)]),
    }


def _site_checks(
    counts: RolloutCounts, i: int, site: str, own: NDArray[np.bool_], peers: NDArray[np.bool_], min_requests: int
) -> list[Check]:
    before, after = counts.before, counts.after

    def sums(k: Floats, k_before: Floats) -> _Sides:
        return _Sides(
            (float(k[i, own].sum()), float(after.requests[i, own].sum())),
            (float(k_before[i, own].sum()), float(before.requests[i, own].sum())),
            (float(k[i, peers].sum()), float(after.requests[i, peers].sum())),
            (float(k_before[i, peers].sum()), float(before.requests[i, peers].sum())),
        )

    sides = sums(after.errors, before.errors)
    checks = [_judge("errors", site, sides, "5xx", _POLICY, ERROR_MARGIN, min_requests)]
    bound = _slow_bound(counts, i, own, peers)
    if bound is not None:
        slow = sums(*(s.buckets[:, :, bound + 1 :].sum(axis=2) for s in (after, before)))
        checks.append(_judge("slow", site, slow, "slow requests", _SLOW_POLICY, SLOW_MARGIN, min_requests))
    vanished = _vanished(site, sides, before.seconds, after.seconds)
    return [*checks, vanished] if vanished else checks


def _judge(name: str, site: str, sides: _Sides, what: str, policy: Policy, margin: float, min_requests: int) -> Check:
    """After against before, and against the peers: a failure needs every baseline that there is."""
    (k, n), (k0, n0), (kp, np_), (kq, nq) = sides.after, sides.before, sides.peers_after, sides.peers_before
    text = f"{_percent(k, n)} {what} of {n:.0f} after"
    text += f", {_percent(k0, n0)} before" if n0 else ""
    text += f", peers {_percent(kp, np_)}" if np_ else ""
    own = _compared((k, n), (k0, n0), policy, margin, min_requests)
    # few requests at the peers are better than none: without peers their trouble would be the change's
    other = _compared((k, n), (kp, np_), policy, margin, policy.error.min_requests)
    known = [c for c in (own, other) if c is not None]
    if n < min_requests or not known:
        lacking = max(1, math.ceil(min_requests - n))
        if n >= 10 and known and all(c.verdict == FAIL for c in known):  # clearly broken already
            return Check(name, site, FAIL, text)
        return Check(
            name, site, UNSURE, text + (", which is too few" if known else ", and nothing to compare with"), lacking
        )
    if all(c.verdict == FAIL for c in known):
        return Check(name, site, FAIL, text)
    if own is not None and own.verdict == FAIL:
        together = _compared((kp, np_), (kq, nq), policy, margin, policy.error.min_requests)
        if together is not None and together.verdict == FAIL:
            return Check(name, site, COMMON, f"{text}, who rose together with it (common_cause)")
        return Check(name, site, UNSURE, text)
    judged = own or other  # it was as bad before: the change is not to blame
    assert judged is not None
    return Check(name, site, PASS if judged.verdict == PASS else UNSURE, text, judged.missing or 0)


def _compared(
    mine: tuple[float, float], base: tuple[float, float], policy: Policy, margin: float, least: int
) -> Comparison | None:
    """Two sides; None when the baseline is too small to be one."""
    if base[1] < least:
        return None
    if mine[0] < policy.error.min_errors or mine[0] * base[1] <= base[0] * mine[1]:
        return _harmless(mine, base, margin)
    return compare(np.array([[mine[0], base[0]]]), np.array([[mine[1], base[1]]]), policy, margin)


def _harmless(mine: tuple[float, float], base: tuple[float, float], margin: float) -> Comparison:
    """Two sides of which the first cannot fail: fewer bad ones than a failure needs, or no larger share.

    Spares most of the tests where a machine has a hundred sites; passes as :func:`health.compare.compare` does.
    """
    (k, n), (k0, n0) = mine, base
    rd = k / max(n, 1.0) - k0 / n0
    rate = (k + k0 + 0.5) / (n + n0 + 1)
    se = max(math.sqrt(rate * (1 - rate) * (1 / max(n, 1.0) + 1 / n0)), math.sqrt((k + 0.5) / (n + 1) / (n + 1)))
    room = margin - max(rd, 0.0)
    if rd + 1.645 * se < margin:
        return Comparison(PASS, rd, se, 0.0, (int(k), int(n)), (int(k0), int(n0)), 0)
    missing = None if room <= 0 else max(1, math.ceil((n + 1) * (1.645 * se / room) ** 2) - int(n))
    return Comparison(UNSURE, rd, se, 0.0, (int(k), int(n)), (int(k0), int(n0)), missing)


def _slow_bound(counts: RolloutCounts, i: int, own: NDArray[np.bool_], peers: NDArray[np.bool_]) -> int | None:
    """Bucket whose bound is the baseline's 90 %: before the change, on all machines; None = there is none."""
    base = counts.before.buckets[i, own | peers].sum(axis=0).cumsum()
    if not len(base) or base[-1] < _POLICY.latency.min_peer_requests:
        return None
    bound = int(np.searchsorted(base, SLOW_QUANTILE * base[-1]))
    return bound if bound < len(base) - 1 else None


def _vanished(site: str, sides: _Sides, before_s: float, after_s: float) -> Check | None:
    """Whether requests stay away that came before, while the peers still have theirs."""
    n, n0, np_, nq = (s[1] for s in (sides.after, sides.before, sides.peers_after, sides.peers_before))
    if after_s < VANISHED_S_MIN:
        return None
    if nq >= MIN_REQUESTS:
        expected = np_ * _surely(n0) / nq
    else:
        expected = _surely(n0) * after_s / before_s
    if n < VANISHED_SHARE * expected and _poisson_cdf(int(n), expected) < VANISHED_P:
        return Check(
            "traffic", site, FAIL, f"{n:.0f} requests after the change where at least {expected:.0f} were to come"
        )
    return None


def _surely(count: float) -> float:
    """Lower bound of a Poisson mean of which ``count`` were seen."""
    return max(0.0, count - _Z * math.sqrt(count))


def _poisson_cdf(k: int, mean: float) -> float:
    """P(X <= k)."""
    if mean <= 0:
        return 1.0
    logs = [j * math.log(mean) - mean - math.lgamma(j + 1) for j in range(max(0, k - 400), k + 1)]
    return min(1.0, sum(map(math.exp, logs)))


def _all_sites(counts: RolloutCounts, own: NDArray[np.bool_], peers: NDArray[np.bool_], min_requests: int) -> Check:
    """All sites of the machine together, a stratum each: a little more of errors everywhere."""
    before, after = counts.before, counts.after
    k, n = after.errors[:, own].sum(axis=1), after.requests[:, own].sum(axis=1)
    k0, n0 = before.errors[:, own].sum(axis=1), before.requests[:, own].sum(axis=1)
    kp, np_ = after.errors[:, peers].sum(axis=1), after.requests[:, peers].sum(axis=1)
    kq, nq = before.errors[:, peers].sum(axis=1), before.requests[:, peers].sum(axis=1)

    def against(bad: Floats, all_: Floats, mine: tuple[Floats, Floats]) -> Comparison | None:
        if all_.sum() < min_requests:
            return None
        return compare(np.stack((mine[0], bad), 1), np.stack((mine[1], all_), 1), _POLICY, ERROR_MARGIN)

    own_before, others = against(k0, n0, (k, n)), against(kp, np_, (k, n))
    known = [c for c in (own_before, others) if c is not None]
    text = f"all sites: {_percent(k.sum(), n.sum())} 5xx of {n.sum():.0f} after, {_percent(k0.sum(), n0.sum())} before"
    text += f", peers {_percent(kp.sum(), np_.sum())}" if np_.any() else ""
    if not known:
        return Check("errors", "", UNSURE, text + ", and nothing to compare with", min_requests)
    if all(c.verdict == FAIL for c in known):
        return Check("errors", "", FAIL, text)
    if own_before is not None and own_before.verdict == FAIL:
        together = against(kq, nq, (kp, np_))
        common = together is not None and together.verdict == FAIL
        return Check("errors", "", COMMON if common else UNSURE, text + (" (common_cause)" if common else ""))
    judged = own_before or others
    assert judged is not None
    return Check("errors", "", PASS if judged.verdict == PASS else UNSURE, text, judged.missing or 0)


def _percent(k: float, n: float) -> str:
    return f"{100 * k / n:.2f} %" if n else "none"
