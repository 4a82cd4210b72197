"""Who is worse than its peers: pure functions from counters to verdicts.

D1 error ratio and D2 slow fraction (:mod:`health.kernels`), D3 hard failure, D5 observers that blame everybody, D6
zones and versions, and Envoy's own rules for comparison. Source: design/health.md section 6.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from health.envoy import envoy_flags
from health.kernels import mantel
from health.kernels.slow import judge_slow
from health.policy import ErrorRule, Policy, Rule
from health.verdicts import Degraded, Detector, Finding, ServiceState, Stats, Topology, Verdicts
from health.wilson import wilson_bounds
from health.window import LatencySums, Signals, Sums

_MIN_JUDGEABLE = 10
"""Attempts below which nothing is said about one endpoint (D6, common cause)."""
_MIN_PAST = 100
"""Attempts of an endpoint's peers below which their past says nothing."""
_MIN_STRATUM = 5
"""Attempts of one observer on one endpoint below which D5 does not count it as a view."""
_RISING_Z = 1.64
_UPPER_Z = 2.0
_BLIND_BASELINE = 0.05
"""Upper bound of the healthy error ratio when no healthy endpoint had enough traffic to tell."""


def rule_vector(rule: ErrorRule, agreement: float = 0.0, min_view: int = _MIN_JUDGEABLE) -> NDArray[np.float64]:
    """The thresholds of D1 as the kernels read them, (13,) float64.

    Parameters
    ----------
    agreement : least share of attempts in zones that see it too
    min_view : attempts on either side below which a zone has no view
    """
    return np.array(
        [
            rule.z,
            rule.min_excess,
            rule.min_ratio,
            rule.min_errors,
            rule.min_requests,
            rule.min_observers,
            rule.tail_p,
            rule.wilson_z,
            rule.wilson_floor,
            rule.sure_share,
            rule.exact_p,
            agreement,
            min_view,
        ]
    )


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the kernel of D1 says about a batch of trials of one shape.

    Attributes
    ----------
    table : (trials, H, 19) float64     columns as in ``Stats.COLUMNS``
    chain : (trials, H) int32           convicted endpoints, worst first, then -1
    marks : (trials, H) uint8           ``mantel.NOTHING``, ``CONVICTED``, ``PARTIAL``, ``OTHER``
    incident : (trials,) bool
    """

    table: NDArray[np.float64]
    chain: NDArray[np.int32]
    marks: NDArray[np.uint8]
    incident: NDArray[np.bool_]


def judge_errors(
    errors: NDArray[np.float64],
    attempts: NDArray[np.float64],
    asked: NDArray[np.bool_],
    compared: NDArray[np.bool_],
    zones: NDArray[np.int32],
    rule: NDArray[np.float64],
    past: NDArray[np.float64] | None = None,
) -> Judgement:
    """D1 on a batch of trials, worst first with another look after each conviction.

    Parameters
    ----------
    errors, attempts : (trials, P, H) float64, C order
    asked : (trials, P) bool          observers that are believed
    compared : (trials, H) bool       the comparison set
    zones : (P,) int32                zone number of each observer, -1 = unknown
    rule : (13,) float64              from :func:`rule_vector`
    past : (trials, H) float64        error rate of each endpoint's peers before the window; None = not known
    """
    trials, n_observers, n_endpoints = errors.shape
    out = Judgement(
        np.zeros((trials, n_endpoints, len(Stats.COLUMNS))),
        np.empty((trials, n_endpoints), dtype=np.int32),
        np.empty((trials, n_endpoints), dtype=np.uint8),
        np.empty(trials, dtype=np.bool_),
    )
    mantel.judge(
        errors,
        attempts,
        asked,
        compared,
        np.zeros((trials, n_endpoints)) if past is None else past,
        zones,
        rule,
        np.empty((8, n_endpoints)),
        np.empty((2, n_observers)),
        _views(zones),
        np.empty(n_endpoints, dtype=np.uint8),
        out.table,
        out.chain,
        out.marks,
        out.incident,
    )
    return out


def mantel_haenszel(
    errors: NDArray[np.float64], attempts: NDArray[np.float64], rule: ErrorRule | None = None
) -> tuple[Stats, tuple[int, ...]]:
    """D1 on one table (P, H) with all endpoints compared: statistics, and who is flagged, worst first."""
    p, h = errors.shape
    found = judge_errors(
        np.ascontiguousarray(errors, dtype=np.float64)[None],
        np.ascontiguousarray(attempts, dtype=np.float64)[None],
        np.ones((1, p), dtype=np.bool_),
        np.ones((1, h), dtype=np.bool_),
        np.full(p, -1, dtype=np.int32),
        rule_vector(rule or ErrorRule()),
    )
    return Stats(found.table[0]), _chain(found)


def broken_observers(
    windows: tuple[Sums, ...], policy: Policy
) -> tuple[NDArray[np.bool_], dict[int, dict[str, float]], bool]:
    """D5: observers that see errors everywhere; D1 with endpoints as strata and observers as candidates.

    An observer must be worse at endpoints that make up most of its traffic: the agreement of 6.2, with each endpoint as
    a "zone". One endpoint that it cannot reach is a partial view, not a broken observer.

    Returns
    -------
    asked : (P,) bool                 who is still believed
    broken : observer -> statistics
    split : too many would go, so nobody does
    """
    n_observers, n_endpoints = windows[0].errors.shape
    asked = np.ones(n_observers, dtype=np.bool_)
    broken: dict[int, dict[str, float]] = {}
    if not policy.observer.enabled or n_observers < 2:
        return asked, broken, False
    rule = rule_vector(policy.error, policy.agreement, _MIN_STRATUM)
    strata = np.ones((1, n_endpoints), dtype=np.bool_)
    zones = np.arange(n_endpoints, dtype=np.int32)
    candidates = np.ones((1, n_observers), dtype=np.bool_)
    for window in windows:
        found = judge_errors(
            np.ascontiguousarray(window.errors.T)[None],
            np.ascontiguousarray(window.attempts.T)[None],
            strata,
            candidates,
            zones,
            rule,
        )
        stats = Stats(found.table[0])
        broken |= {p: stats.row(p) for p in _chain(found)}
    if not broken:
        return asked, {}, False
    if len(broken) > policy.observer.max_drop * int(np.count_nonzero(windows[-1].attempts.any(axis=1))):
        return asked, {}, True
    asked[list(broken)] = False
    return asked, broken, False


def hard_failures(hard: Sums, asked: NDArray[np.bool_], observers: int, attempts: int) -> NDArray[np.bool_]:
    """D3: every attempt of the last seconds failed to connect, as enough observers saw, (H,) bool."""
    total = _over(asked, hard.attempts)
    seen = np.count_nonzero((hard.attempts > 0) & asked[:, None], axis=0)
    out: NDArray[np.bool_] = (seen >= observers) & (total >= attempts) & (_over(asked, hard.errors) >= total)
    return out


def detect(signals: Signals, topology: Topology, state: ServiceState, policy: Policy) -> Verdicts:
    """Judge one service: run the detectors that the policy selects, in the order of the design page.

    Observers that blame everybody go first (D5); what remains is asked about endpoints (D1 or Envoy's rules, D2, D3)
    and about zones and versions (D6).
    """
    names = topology.endpoints
    compared = state.compared(names)
    zones = zone_numbers(topology.observer_zones)
    hard = np.zeros(len(names), dtype=np.bool_)
    degraded: tuple[Degraded, ...] = ()
    broken: dict[int, dict[str, float]] = {}
    split = False
    if policy.rule is Rule.ENVOY:  # nothing but Envoy's rules, or it would be no comparison
        asked = np.ones(len(topology.observers), dtype=np.bool_)
        findings = _envoy_findings(signals, compared, policy)
    else:
        asked, broken, split = broken_observers(signals.windows, policy)
        if policy.hard.enabled:
            hard = hard_failures(signals.hard, asked, policy.hard.observers, policy.hard.attempts)
        past = past_rates(signals.past_errors[None], signals.past_attempts[None], compared[None])
        findings = [_error_finding(window, asked, compared, zones, past, policy) for window in signals.windows]
        for window in signals.latency:
            findings += _slow_findings(window, signals.latency_zones, compared, policy)
        if hard.any():
            findings.append(_hard_finding(signals, asked, compared, hard, policy))
        degraded = degraded_groups(signals, topology, asked, compared, findings, policy)
    incident = any(finding.incident for finding in findings)
    leading, partial = _leaders(findings, policy)
    if incident:
        leading = {}
    minute = next(window for window in signals.windows if window.window_s == 60)
    attempts_60s = _over(asked, minute.attempts)
    healthy = state.healthy(names)
    return Verdicts(
        endpoints=names,
        present=signals.present,
        attempts_60s=attempts_60s,
        flagged=tuple(leading),
        leading=leading,
        hard=frozenset(h for h in leading if hard[h]),
        partial={h: at for h, at in partial.items() if h not in leading},
        incident=incident,
        rising_share=rising_share(signals, asked, policy),
        degraded=degraded,
        broken=broken,
        observers_split=split,
        findings=tuple(findings),
        probe_errors=_over(asked, signals.probe_errors),
        probe_attempts=_over(asked, signals.probe_attempts),
        baseline_hi=_baseline_hi(_over(asked, minute.errors)[healthy].sum(), attempts_60s[healthy].sum()),
    )


def past_rates(
    errors: NDArray[np.float64], attempts: NDArray[np.float64], compared: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Error rate of each endpoint's peers in the last 10 minutes before the last 60 s; all (trials, H).

    0 where the peers had too few attempts to tell.
    """
    k, n = errors * compared, attempts * compared
    peer_k, peer_n = k.sum(axis=1, keepdims=True) - k, n.sum(axis=1, keepdims=True) - n
    out: NDArray[np.float64] = np.divide(peer_k, peer_n, out=np.zeros_like(peer_k), where=peer_n >= _MIN_PAST)
    return out


def rising_share(signals: Signals, asked: NDArray[np.bool_], policy: Policy) -> float:
    """Share of the endpoints that are clearly worse than they themselves were in the last 10 minutes.

    An endpoint is worse when its ratio exceeds its past one by min_excess / 2 and the lower Wilson bound agrees.
    Endpoints without a past cannot be judged. The window that shows most counts.
    """
    past_attempts = signals.past_attempts
    past = (signals.past_errors + 0.5) / (past_attempts + 1.0)
    share = 0.0
    for window in signals.windows:
        if window.window_s > 60:
            continue  # longer than the gap between now and the past it is compared with
        attempts = _over(asked, window.attempts)
        errors = _over(asked, window.errors)
        judged = (attempts >= _MIN_JUDGEABLE) & (past_attempts >= _MIN_JUDGEABLE)
        n = int(np.count_nonzero(judged))
        if not n:
            continue
        rising = sum(
            errors[h] / attempts[h] > past[h] + policy.error.min_excess / 2
            and wilson_bounds(errors[h], attempts[h], _RISING_Z)[0] > past[h]
            for h in np.flatnonzero(judged & (errors > 0))
        )
        share = max(share, rising / n)
    return share


def degraded_groups(
    signals: Signals,
    topology: Topology,
    asked: NDArray[np.bool_],
    compared: NDArray[np.bool_],
    findings: list[Finding],
    policy: Policy,
) -> tuple[Degraded, ...]:
    """D6: zones and versions that are worse than the others and whose endpoints mostly are, each for itself."""
    if not policy.group.enabled:
        return ()
    out: dict[tuple[str, str], Degraded] = {}
    singles = {f.window_s: f.stats for f in findings if f.detector is Detector.ERROR_RATIO}
    zones = zone_numbers(topology.observer_zones)
    for label, values in (("zone", topology.zones), ("version", topology.versions)):
        groups = sorted({value for value in values if value})
        if len(groups) < 2:
            continue
        columns = np.array([[value == group and c for value, c in zip(values, compared.tolist(), strict=True)]
                            for group in groups], dtype=np.float64).T  # fmt: skip
        for window in signals.windows:
            stats = singles[window.window_s]
            grouped = judge_errors(
                np.ascontiguousarray(window.errors @ columns)[None],
                np.ascontiguousarray(window.attempts @ columns)[None],
                asked[None],
                np.ones((1, len(groups)), dtype=np.bool_),
                zones,
                rule_vector(policy.error, policy.agreement),
            )
            for g in _chain(grouped) if not grouped.incident[0] else ():
                members = tuple(h for h, value in enumerate(values) if value == groups[g])
                judged = [h for h in members if compared[h] and stats.column("attempts")[h] >= _MIN_JUDGEABLE]
                worse = sum(stats.column("excess")[h] > policy.error.min_excess / 2 for h in judged)
                if len(judged) >= policy.group.min_endpoints and worse >= policy.group.share * len(judged):
                    evidence = Stats(grouped.table[0]).row(g) | {"endpoints": len(judged), "endpoints_worse": worse}
                    out.setdefault((label, groups[g]), Degraded(label, groups[g], members, evidence))
    return tuple(out.values())


def _error_finding(
    window: Sums,
    asked: NDArray[np.bool_],
    compared: NDArray[np.bool_],
    zones: NDArray[np.int32],
    past: NDArray[np.float64],
    policy: Policy,
) -> Finding:
    found = judge_errors(
        window.errors[None], window.attempts[None], asked[None], compared[None], zones,
        rule_vector(policy.error, policy.agreement), past,
    )  # fmt: skip
    marks = found.marks[0]
    return Finding(
        detector=Detector.ERROR_RATIO,
        window_s=window.window_s,
        quantile=0.0,
        stats=Stats(found.table[0]),
        chain=_chain(found),
        others=tuple(np.flatnonzero(marks == mantel.OTHER).tolist()),
        partial=tuple(np.flatnonzero(marks == mantel.PARTIAL).tolist()),
        incident=bool(found.incident[0]),
    )


def _single(window: Sums, asked: NDArray[np.bool_], compared: NDArray[np.bool_], policy: Policy) -> Judgement:
    return judge_errors(
        window.errors[None], window.attempts[None], asked[None], compared[None],
        np.full(len(asked), -1, dtype=np.int32), rule_vector(policy.error),
    )  # fmt: skip


def _slow_findings(
    window: LatencySums, group_zones: tuple[str, ...], compared: NDArray[np.bool_], policy: Policy
) -> Iterator[Finding]:
    groups, n_endpoints, n_buckets = window.buckets.shape
    zones = zone_numbers(group_zones)
    rule = rule_vector(policy.error, policy.agreement)
    rule[mantel.R_MIN_RATIO] = policy.latency.min_ratio
    for quantile, excess in zip(policy.latency.quantiles, policy.latency.min_excess, strict=True):
        table = np.zeros((n_endpoints, len(Stats.COLUMNS)))
        marks = np.empty(n_endpoints, dtype=np.uint8)
        judge_slow(
            window.buckets,
            compared,
            zones,
            quantile,
            excess,
            float(policy.latency.min_peer_requests),
            rule,
            np.empty((groups, n_endpoints, n_buckets)),
            np.empty((groups, n_buckets)),
            np.empty(n_buckets),
            _views(zones),
            table,
            marks,
        )
        stats = Stats(table)
        chain = np.flatnonzero(marks == mantel.CONVICTED)
        chain = chain[np.argsort(-stats.column("excess")[chain], kind="stable")]
        active = int(np.count_nonzero(compared & (stats.column("attempts") > 0)))
        yield Finding(
            detector=Detector.SLOW_FRACTION,
            window_s=window.window_s,
            quantile=quantile,
            stats=stats,
            chain=tuple(chain.tolist()),
            others=tuple(np.flatnonzero(marks == mantel.OTHER).tolist()),
            partial=tuple(np.flatnonzero(marks == mantel.PARTIAL).tolist()),
            incident=2 * len(chain) > active,
        )


def _hard_finding(
    signals: Signals,
    asked: NDArray[np.bool_],
    compared: NDArray[np.bool_],
    hard: NDArray[np.bool_],
    policy: Policy,
) -> Finding:
    found = _single(signals.hard, asked, compared, policy)
    chain = np.flatnonzero(hard & compared)
    active = int(np.count_nonzero(compared & (found.table[0][:, mantel.ATTEMPTS] > 0)))
    return Finding(
        detector=Detector.HARD_FAILURE,
        window_s=signals.hard.window_s,
        quantile=0.0,
        stats=Stats(found.table[0]),
        chain=tuple(chain.tolist()),
        others=tuple(np.flatnonzero(hard & ~compared).tolist()),
        partial=(),
        incident=2 * len(chain) > active,
    )


def _envoy_findings(signals: Signals, compared: NDArray[np.bool_], policy: Policy) -> list[Finding]:
    """Envoy's rules as verdicts of the mesh; the window nearest to ``interval`` is judged."""
    rule = policy.envoy
    window = min(signals.windows, key=lambda w: abs(w.window_s * 1000 - rule.interval_ms))
    errors, attempts = window.errors * compared, window.attempts * compared
    if rule.fleet:
        errors, attempts = errors.sum(axis=0, keepdims=True), attempts.sum(axis=0, keepdims=True)
    by_success, by_percentage, _ = envoy_flags(errors, attempts, rule)
    everybody = np.ones(len(window.errors), dtype=np.bool_)
    stats = Stats(_single(window, everybody, compared, policy).table[0])
    out = []
    for detector, flags, volume, enforcing in (
        (Detector.SUCCESS_RATE, by_success, rule.success_rate_request_volume, rule.enforcing_success_rate),
        (Detector.FAILURE_PERCENTAGE, by_percentage, rule.failure_percentage_request_volume,
         rule.enforcing_failure_percentage),
    ):  # fmt: skip
        judging = np.count_nonzero(attempts >= max(1, volume), axis=0)
        flagged = np.flatnonzero((2 * np.count_nonzero(flags, axis=0) > judging) & (enforcing > 0))
        flagged = flagged[np.argsort(-stats.column("excess")[flagged], kind="stable")]
        out.append(Finding(detector, window.window_s, 0.0, stats, tuple(flagged.tolist()), (), (), incident=False))
    return out


def _leaders(findings: list[Finding], policy: Policy) -> tuple[dict[int, int], dict[int, int]]:
    """For each flagged endpoint the finding that counts, worst endpoint first; and for the partial ones.

    An endpoint counts as flagged when any window flags it, unless a window of the same detector finds that only a
    minority sees it, or a shorter window shows that it is over. Hard failures come first, then the largest excess. Of
    several findings the one with the largest z counts.
    """
    leading: dict[int, int] = {}
    partial: dict[int, int] = {}

    def strength(endpoint: int, at: int) -> tuple[bool, float]:
        finding = findings[at]
        return finding.detector is Detector.HARD_FAILURE, float(finding.stats.column("z")[endpoint])

    for at, finding in enumerate(findings):
        for h in finding.partial:
            partial.setdefault(h, at)
    for at, finding in enumerate(findings):
        for h in (*finding.chain, *finding.others):
            if finding.detector is not Detector.HARD_FAILURE and (
                (h in partial and findings[partial[h]].detector is finding.detector)
                or _is_over(h, finding, findings, policy)
            ):
                continue
            if h not in leading or strength(h, at) > strength(h, leading[h]):
                leading[h] = at

    def badness(item: tuple[int, int]) -> tuple[bool, float, int]:
        h, at = item
        finding = findings[at]
        hard = finding.detector is Detector.HARD_FAILURE
        return not hard, -float(finding.stats.column("excess")[h]), h

    return dict(sorted(leading.items(), key=badness)), partial


def _is_over(endpoint: int, finding: Finding, findings: list[Finding], policy: Policy) -> bool:
    """Whether a shorter window contradicts: what the endpoint does now is surely below what convicts.

    Without this a long window ejects an endpoint for a fault of some seconds that ended a minute ago.
    """
    excess = policy.error.min_excess
    if finding.quantile:
        excess = policy.latency.min_excess[policy.latency.quantiles.index(finding.quantile)]
    for other in findings:
        same = other.detector is finding.detector and other.quantile == finding.quantile
        if same and other.window_s < finding.window_s:
            row = other.stats.row(endpoint)
            if wilson_bounds(row["errors"], row["attempts"], _UPPER_Z)[1] < row["baseline"] + excess:
                return True
    return False


def _baseline_hi(errors: float, attempts: float) -> float:
    if attempts < 20:
        return _BLIND_BASELINE
    return wilson_bounds(float(errors), float(attempts), _UPPER_Z)[1]


def _over(asked: NDArray[np.bool_], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum over the believed observers, (P, H) -> (H,); exact, as all counts are whole numbers."""
    out: NDArray[np.float64] = asked.astype(np.float64) @ counts
    return out


def _chain(found: Judgement) -> tuple[int, ...]:
    return tuple(h for h in found.chain[0].tolist() if h >= 0)


def zone_numbers(zones: tuple[str, ...]) -> NDArray[np.int32]:
    """Number of each zone as the kernels read it, -1 for "" (unknown)."""
    numbers = {zone: i for i, zone in enumerate(sorted({zone for zone in zones if zone}))}
    return np.array([numbers.get(zone, -1) for zone in zones], dtype=np.int32)


def _views(zones: NDArray[np.int32]) -> NDArray[np.float64]:
    return np.empty((int(zones.max(initial=-1)) + 1, 6))
