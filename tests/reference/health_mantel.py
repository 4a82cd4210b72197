"""Plain definitions of D1 and D2 as the design page states them: one endpoint, one stratum at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np


def poisson_tail(count: float, mean: float) -> float:
    """P(X >= count), summed from the left in exact arithmetic where that is cheap, else term by term."""
    if count <= mean:
        return 1.0
    if mean <= 0:
        return 0.0
    terms = [math.exp(j * math.log(mean) - mean - math.lgamma(j + 1)) for j in range(int(count), int(count) + 2000)]
    return math.fsum(terms)


def binomial_tail(count: int, trials: int, mean: float) -> float:
    """P(X >= count) of a binomial with that mean, by exact rational arithmetic."""
    if count <= mean:
        return 1.0
    if mean <= 0 or count > trials:
        return 0.0
    p = Fraction(mean) / trials
    if p >= 1:
        return 1.0
    return float(sum(math.comb(trials, j) * p**j * (1 - p) ** (trials - j) for j in range(count, trials + 1)))


def wilson(errors: float, attempts: float, z: float) -> tuple[float, float]:
    if attempts <= 0:
        return 0.0, 1.0
    p = errors / attempts
    d = 1 + z**2 / attempts
    c = (p + z**2 / (2 * attempts)) / d
    r = z * math.sqrt(p * (1 - p) / attempts + z**2 / (4 * attempts**2)) / d
    return max(0.0, c - r), min(1.0, c + r)


@dataclass
class Plain:
    """Statistics of one endpoint, by the table of section 6.1."""

    S: float = 0.0
    M: float = 0.0
    E: float = 0.0
    V: float = 0.0
    w: float = 0.0
    a: float = 0.0
    b: float = 0.0
    observers: int = 0
    bad: int = 0
    K0: float = 0.0
    M0: float = 0.0
    agreement: float = 1.0
    past: float = 0.0

    @property
    def z(self) -> float:
        return (self.S - self.E - 0.5) / math.sqrt(max(self.V, 1e-12))

    @property
    def rd(self) -> float:
        return (self.a - self.b) / max(self.w, 1e-12)

    @property
    def rr(self) -> float:
        return self.a / max(self.b, 1e-9)

    @property
    def base(self) -> float:
        return self.b / max(self.w, 1e-12)

    @property
    def tail(self) -> float:
        mu = max(self.S / max(self.rr, 1e-9), self.M / (self.M0 + 1), self.M * self.past) if self.S else 0.0
        return poisson_tail(self.S, mu)

    @property
    def exact(self) -> float:
        return binomial_tail(int(self.S), int(self.S + self.K0), self.E)

    def gates(self, rule, excess: float) -> bool:
        return (
            self.z > rule.z
            and self.rd > excess
            and self.rr > rule.min_ratio
            and rule.min_errors <= self.S
            and rule.min_requests <= self.M
            and self.bad >= min(rule.min_observers, self.observers)
            and wilson(self.S, self.M, rule.wilson_z)[0] > max(self.base + rule.sure_share * excess, rule.wilson_floor)
            and self.tail < rule.tail_p
            and self.exact < rule.exact_p
        )


def strata(k, n, k0, n0, zones, excess, min_view) -> Plain:
    """The sums over observers, from the endpoint's counts and its peers' in each stratum, all (P,)."""
    out = Plain()
    views: dict[int, list[float]] = {}
    for p in range(len(n)):
        out.K0 += k0[p]
        out.M0 += n0[p]
        if n[p] > 0:
            out.S += k[p]
            out.M += n[p]
            out.observers += 1
            out.bad += k[p] > 0
            total, errors = n[p] + n0[p], k[p] + k0[p]
            if n0[p] <= 0:
                out.E += k[p]
            else:
                out.E += n[p] * errors / total
                if total > 1:
                    out.V += n[p] * n0[p] * errors * (total - errors) / (total**2 * (total - 1))
                out.w += n[p] * n0[p] / total
                out.a += k[p] * n0[p] / total
                out.b += k0[p] * n[p] / total
        if zones[p] >= 0:
            view = views.setdefault(zones[p], [0.0] * 6)
            if n[p] + n0[p] > 0:
                view[0] += n[p] * n0[p] / (n[p] + n0[p])
                view[1] += k[p] * n0[p] / (n[p] + n0[p]) - k0[p] * n[p] / (n[p] + n0[p])
            view[3] += k[p]
            view[4] += n[p]
            view[5] += n0[p]
    low = min(max(out.base, 1 / (out.M0 + 1)), 0.5)
    high = min(max(out.S / max(out.M, 1), low + excess), 1 - 1e-9)
    seen = agreed = 0.0
    for weight, difference, _, errors, attempts, peers in views.values():
        if attempts >= min_view and peers >= min_view:
            seen += attempts
            gain = errors * math.log(high / low) + (attempts - errors) * math.log((1 - high) / (1 - low))
            if difference / max(weight, 1e-12) > excess / 2 and gain > 0:
                agreed += attempts
    out.agreement = agreed / seen if seen else 1.0
    return out


def one(k, n, h, asked, members, zones, excess, min_view=10, past=0.0) -> Plain:
    """D1's statistics of endpoint ``h`` against the endpoints in ``members``, whose error rate was ``past``."""
    rows = [p for p in range(len(k)) if asked[p]]
    peers = [i for i in range(k.shape[1]) if members[i] and i != h]
    out = strata(
        [k[p, h] for p in rows],
        [n[p, h] for p in rows],
        [sum(k[p, i] for i in peers) for p in rows],
        [sum(n[p, i] for i in peers) for p in rows],
        [zones[p] for p in rows],
        excess,
        min_view,
    )
    out.past = past
    return out


def worst_first(k, n, asked, compared, zones, rule, min_agreement, past):
    """Section 6.2: (chain, partial, others, incident)."""
    hosts = range(k.shape[1])
    members, candidates = list(compared), list(compared)
    active = sum(bool(compared[h]) and sum(n[p, h] for p in range(len(k)) if asked[p]) > 0 for h in hosts)
    chain, partial = [], []
    while True:
        plain = {
            h: one(k, n, h, asked, members, zones, rule.min_excess, past=past[h])
            for h in hosts
            if members[h] and candidates[h]
        }
        flagged = [h for h, s in plain.items() if s.gates(rule, rule.min_excess)]
        if not flagged:
            break
        worst = max(flagged, key=lambda h: (plain[h].rd, plain[h].z, -h))
        if plain[worst].agreement < min_agreement:
            candidates[worst] = False
            partial.append(worst)
        else:
            chain.append(worst)
            members[worst] = False
            if len(chain) > active / 2:
                return chain, partial, [], True
    others = []
    for h in hosts:
        if not compared[h]:
            s = one(k, n, h, asked, members, zones, rule.min_excess, past=past[h])
            if s.gates(rule, rule.min_excess):
                (others if s.agreement >= min_agreement else partial).append(h)
    return chain, partial, others, False


def slow(buckets, h, compared, zones, quantile, excess, min_requests, min_peers):
    """D2's statistics of endpoint ``h``: (Plain, bucket bound or None, limit of the lower Wilson bound)."""
    groups, hosts, n_buckets = buckets.shape
    peers = [i for i in range(hosts) if compared[i] and i != h]
    pc = [sum(buckets[g, i, : j + 1].sum() for g in range(groups) for i in peers) for j in range(n_buckets)]
    attempts = buckets[:, h].sum()
    if attempts < min_requests or pc[-1] < min_peers:
        return None, None, 1.0
    bound = next(j for j in range(n_buckets) if pc[j] >= quantile * pc[-1])
    if bound == n_buckets - 1:
        return None, None, 1.0
    plain = strata(
        [buckets[g, h, bound + 1 :].sum() for g in range(groups)],
        [buckets[g, h].sum() for g in range(groups)],
        [sum(buckets[g, i, bound + 1 :].sum() for i in peers) for g in range(groups)],
        [sum(buckets[g, i].sum() for i in peers) for g in range(groups)],
        zones,
        excess,
        10,
    )
    upper = wilson(plain.base * plain.M0, plain.M0, 2.0)[1]
    return plain, bound, max(2 * upper, upper + excess)


def table(rows) -> np.ndarray:
    """Several endpoints' counts as (P, H) float64."""
    return np.array(rows, dtype=np.float64)
