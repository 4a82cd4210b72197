"""The kernels of D1 and D2 against the definitions of the design page."""

from __future__ import annotations

import math
from decimal import Decimal, getcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from health.detectors import judge_errors, mantel_haenszel, rule_vector
from health.kernels import mantel
from health.kernels.slow import judge_slow
from health.policy import ErrorRule
from health.verdicts import Stats
from tests.reference import health_mantel as plain

RULE = ErrorRule()
LOOSE = ErrorRule(z=1.5, min_errors=2, min_requests=4, tail_p=0.05, exact_p=0.1, wilson_z=1.0, sure_share=0.1)


@st.composite
def tables(draw, max_observers=5, max_endpoints=6):
    p, h = draw(st.integers(1, max_observers)), draw(st.integers(1, max_endpoints))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n = rng.poisson(draw(st.sampled_from([0.5, 5.0, 40.0])), (p, h))
    bad = rng.choice([0.001, 0.05, 0.3, 0.9], h, p=[0.6, 0.15, 0.15, 0.1])
    k = rng.binomial(n, bad)
    k[rng.random(p) < 0.1] = 0  # now and then an observer without errors
    asked = rng.random(p) < 0.9
    compared = rng.random(h) < 0.8
    zones = rng.integers(-1, 3, p).astype(np.int32)
    return k.astype(float), n.astype(float), asked, compared, zones


def knife_edge(k, n, asked, members, zones, rule) -> bool:
    """Whether some gate is so close to its limit that rounding may decide."""
    for h in range(k.shape[1]):
        s = plain.one(k, n, h, asked, members, zones, rule.min_excess)
        low = plain.wilson(s.S, s.M, rule.wilson_z)[0]
        pairs = [(s.z, rule.z), (s.rd, rule.min_excess), (s.rr, rule.min_ratio), (s.tail, rule.tail_p),
                 (s.exact, rule.exact_p), (low, s.base + rule.sure_share * rule.min_excess)]  # fmt: skip
        if any(abs(x - y) <= 1e-9 * max(1.0, abs(y)) for x, y in pairs):
            return True
    return False


@pytest.mark.kernel
@settings(deadline=None, max_examples=150)
@given(tables(), st.sampled_from([RULE, LOOSE]))
def test_worst_first_agrees_with_the_definition(table, rule):
    k, n, asked, compared, zones = table
    if knife_edge(k, n, asked, compared, zones, rule):
        return
    past = np.where(np.arange(k.shape[1]) % 3 == 0, 0.08, 0.0)
    found = judge_errors(k[None], n[None], asked[None], compared[None], zones, rule_vector(rule, 0.6), past[None])
    chain, partial, others, incident = plain.worst_first(k, n, asked, compared, zones, rule, 0.6, past)
    assert [h for h in found.chain[0].tolist() if h >= 0] == chain
    assert bool(found.incident[0]) == incident
    if not incident:
        assert np.flatnonzero(found.marks[0] == mantel.PARTIAL).tolist() == sorted(partial)
        assert np.flatnonzero(found.marks[0] == mantel.OTHER).tolist() == others


@pytest.mark.kernel
@settings(deadline=None, max_examples=100)
@given(tables())
def test_statistics_agree_with_the_definition(table):
    k, n, asked, compared, zones = table
    nobody = ErrorRule(z=1e9)
    found = judge_errors(k[None], n[None], asked[None], compared[None], zones, rule_vector(nobody))
    stats = Stats(found.table[0])
    for h in range(k.shape[1]):
        s = plain.one(k, n, h, asked, compared, zones, nobody.min_excess)
        row = stats.row(h)
        expected = {
            "errors": s.S, "attempts": s.M, "expected": s.E, "variance": s.V, "excess": s.rd, "baseline": s.base,
            "peer_errors": s.K0, "peer_attempts": s.M0, "observers": s.observers, "observers_bad": s.bad,
            "wilson_lo": plain.wilson(s.S, s.M, RULE.wilson_z)[0],
        }  # fmt: skip
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, rel=1e-9, abs=1e-9), name
        assert row["errors"] - row["expected"] == pytest.approx(s.a - s.b, rel=1e-9, abs=1e-9)
        assert row["exact"] == pytest.approx(s.exact, rel=1e-7, abs=1e-12)
        if not compared[h]:
            assert row["agreement"] == pytest.approx(s.agreement)


@pytest.mark.kernel
@settings(deadline=None, max_examples=60)
@given(tables(), st.randoms(use_true_random=False))
def test_order_of_rows_and_columns_does_not_matter(table, random):
    k, n, asked, compared, zones = table
    rows, columns = list(range(k.shape[0])), list(range(k.shape[1]))
    random.shuffle(rows)
    random.shuffle(columns)

    def judge(k, n, asked, compared, zones):
        k, n = np.ascontiguousarray(k)[None], np.ascontiguousarray(n)[None]
        return judge_errors(k, n, asked[None], compared[None], zones, rule_vector(LOOSE, 0.6))

    one = judge(k, n, asked, compared, zones)
    other = judge(k[rows][:, columns], n[rows][:, columns], asked[rows], compared[columns], zones[rows])
    chain = [h for h in one.chain[0].tolist() if h >= 0]
    excess = Stats(one.table[0]).column("excess")
    if len({round(float(excess[h]), 9) for h in range(k.shape[1])}) < k.shape[1]:
        return  # equals are told apart by their order
    assert [columns[h] for h in other.chain[0].tolist() if h >= 0] == chain
    assert other.marks[0].tolist() == one.marks[0][columns].tolist()


def test_unit_vector_of_the_design_page():
    stats, flagged = mantel_haenszel(plain.table([[4, 0, 0], [3, 1, 0]]), plain.table([[40, 40, 40], [30, 60, 60]]))
    row = stats.row(0)
    assert row["expected"] == pytest.approx(2.13333, abs=1e-5)
    assert row["variance"] == pytest.approx(1.49361, abs=2e-5)
    assert row["z"] == pytest.approx(3.57301, abs=1e-5)
    assert row["excess"] == pytest.approx(0.0960526, abs=1e-7)
    assert row["ratio"] == pytest.approx(25.33333, abs=1e-5)
    assert row["baseline"] == pytest.approx(0.00394737, abs=1e-8)
    assert flagged == ()


def test_real_run_of_the_design_page():
    k, n = np.zeros((4, 6)), np.full((4, 6), 68.0)
    k[:, 2] = [4, 3, 5, 4]
    stats, flagged = mantel_haenszel(k, n, ErrorRule(sure_share=0.0))
    assert flagged == (2,)
    assert stats.row(2)["z"] == pytest.approx(8.642, abs=1e-3)
    assert stats.row(2)["excess"] == pytest.approx(0.0588, abs=1e-4)
    # we want to be surer than that: 18 errors, which a 15 % failure makes in the next second
    assert mantel_haenszel(k, n)[1] == ()
    k[:2, 2] += 1
    assert mantel_haenszel(k, n)[1] == (2,)


def test_a_lucky_minute_of_the_peers_convicts_nobody():
    """11 of 50 against 2 of 250 looks grave, unless the peers usually fail 5 %."""
    k, n = np.zeros((20, 6)), np.full((20, 6), 2.5)
    k[:11, 0] = 1
    k[:2, 1] = 1

    def flagged(past):
        everybody = np.ones((1, 20), dtype=np.bool_), np.ones((1, 6), dtype=np.bool_)
        nowhere = np.full(20, -1, dtype=np.int32)
        rates = np.full((1, 6), past)
        return judge_errors(k[None], n[None], *everybody, nowhere, rule_vector(RULE), rates).chain[0, 0]

    assert flagged(0.0) == 0
    assert flagged(0.05) == -1


def test_one_stratum_is_the_hypergeometric_distribution():
    """Mean and variance of the errors given the margins, as any textbook has them."""
    k, n = plain.table([[7, 3, 2]]), plain.table([[50, 60, 90]])
    row = mantel_haenszel(k, n)[0].row(0)
    total, errors, own = 200, 12, 50
    assert row["expected"] == pytest.approx(own * errors / total)
    variance = own * errors / total * (total - errors) / total * (total - own) / (total - 1)
    assert row["variance"] == pytest.approx(variance)


def test_a_stratum_without_peers_counts_on_both_sides():
    """The trap of 6.1: skipping it compared all errors with part of the expectation."""
    k, n = plain.table([[9, 0], [1, 1]]), plain.table([[30, 0], [50, 50]])
    row = mantel_haenszel(k, n)[0].row(0)
    assert row["errors"] == 10
    assert row["expected"] == pytest.approx(9 + 1)
    assert row["excess"] == pytest.approx(0.0)


def test_worst_first_finds_the_mild_one_behind_the_gross_one():
    n = np.full((20, 6), 10.0)
    k = np.zeros((20, 6))
    k[:, 0], k[:, 1] = 10.0, 1.0  # 100 % and 10 %
    assert mantel_haenszel(k, n)[1] == (0, 1)


@pytest.mark.kernel
@pytest.mark.parametrize(("count", "mean"), [(1, 0.1), (5, 0.2), (9, 3.0), (60, 20.0), (400, 350.0), (10_000, 9_500.0)])
def test_poisson_tail(count, mean):
    getcontext().prec = 60
    m = Decimal(mean)
    below = Decimal(0)
    term = (-m).exp()
    for j in range(count):
        below += term
        term = term * m / (j + 1)
    exact = Decimal(1) - below
    assert mantel.poisson_tail(float(count), mean) == pytest.approx(float(exact), rel=1e-9)


@pytest.mark.kernel
@pytest.mark.parametrize(("count", "trials", "mean"), [(8, 8, 1.3), (9, 12, 2.0), (3, 100, 0.5), (300, 1000, 200.0)])
def test_binomial_tail(count, trials, mean):
    assert mantel.binomial_tail(float(count), float(trials), mean) == pytest.approx(
        plain.binomial_tail(count, trials, mean), rel=1e-9
    )


@pytest.mark.kernel
def test_tails_at_their_ends():
    assert mantel.poisson_tail(3.0, 5.0) == 1.0
    assert mantel.poisson_tail(5.0, 0.0) == 0.0
    assert mantel.poisson_tail(1e6, 1.0) == 0.0  # underflows, and ends
    assert mantel.binomial_tail(2.0, 10.0, 3.0) == 1.0
    assert mantel.binomial_tail(5.0, 4.0, 3.0) == 0.0
    assert mantel.binomial_tail(4.5, 4.5, 4.4) <= 1.0


@pytest.mark.kernel
@settings(deadline=None, max_examples=80)
@given(st.integers(0, 2**32), st.integers(1, 3), st.integers(1, 5), st.integers(2, 6), st.sampled_from([0.9, 0.99]))
def test_slow_fraction_agrees_with_the_definition(seed, groups, hosts, n_buckets, quantile):
    rng = np.random.default_rng(seed)
    odds = rng.dirichlet(np.geomspace(8, 0.3, n_buckets), hosts)
    buckets = np.stack([[rng.multinomial(rng.poisson(40), odds[h]) for h in range(hosts)] for _ in range(groups)])
    buckets = buckets.astype(float)
    compared = rng.random(hosts) < 0.8
    zones = rng.integers(-1, 2, groups).astype(np.int32)
    table, marks = np.zeros((hosts, len(Stats.COLUMNS))), np.zeros(hosts, dtype=np.uint8)
    rule = rule_vector(LOOSE, 0.6)
    judge_slow(
        buckets, compared, zones, quantile, 0.05, 20.0, rule, np.empty_like(buckets), np.empty((groups, n_buckets)),
        np.empty(n_buckets), np.empty((2, 6)), table, marks,
    )  # fmt: skip
    for h in range(hosts):
        s, bound, limit = plain.slow(buckets, h, compared, zones.tolist(), quantile, 0.05, LOOSE.min_requests, 20)
        row = Stats(table).row(h)
        if s is None:
            assert marks[h] == mantel.NOTHING
            continue
        assert row["bound"] == bound
        assert row["errors"] == s.S
        assert row["attempts"] == s.M
        assert row["expected"] == pytest.approx(s.E, rel=1e-9, abs=1e-9)
        assert row["excess"] == pytest.approx(s.rd, rel=1e-9, abs=1e-9)
        assert row["agreement"] == pytest.approx(s.agreement)
        limit = max(limit, s.base + LOOSE.sure_share * 0.05, LOOSE.wilson_floor)
        assert row["limit"] == pytest.approx(limit, rel=1e-9)
        low = plain.wilson(s.S, s.M, LOOSE.wilson_z)[0]
        if math.isclose(low, limit, rel_tol=1e-9):
            continue
        flagged = s.gates(LOOSE, 0.05) and low > limit
        assert (marks[h] != mantel.NOTHING) == flagged
