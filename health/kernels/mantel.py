"""D1: the Mantel-Haenszel test of an endpoint against its peers, stratified by observer, worst first.

One call judges a batch of independent trials (services of one shape). Source: design/health.md sections 6.1 and 6.2;
Mantel and Haenszel, JNCI 1959. For a compared endpoint the stratum totals of an observer are the same whichever
endpoint is judged, so the inner loop needs no division, and ``E = S - a + b`` by the identity ``S - E = a - b``.
"""

from __future__ import annotations

import math

from tsdb.kernels._jit import const, device, f64, i32, i64, kernel, mut, u1, u8

# columns of a row of statistics, as in health.verdicts.Stats.COLUMNS
ERRORS, ATTEMPTS, EXPECTED, VARIANCE, Z, EXCESS, RATIO, BASELINE, PEER_ERRORS, PEER_ATTEMPTS = range(10)
TAIL, WILSON_LO, OBSERVERS, OBSERVERS_BAD, STANDARD_ERROR, AGREEMENT, LIMIT, BOUND, EXACT = range(10, 19)

# entries of a rule vector
R_Z, R_MIN_EXCESS, R_MIN_RATIO, R_MIN_ERRORS, R_MIN_REQUESTS = range(5)
R_MIN_OBSERVERS, R_TAIL_P, R_WILSON_Z, R_WILSON_FLOOR, R_SURE_SHARE = range(5, 10)
R_EXACT_P, R_AGREEMENT, R_MIN_VIEW = range(10, 13)

# marks of an endpoint
NOTHING, CONVICTED, PARTIAL, OTHER = range(4)


@device
def poisson_tail(count, mean):
    """``P(X >= count)`` for a Poisson variable of that mean."""
    if count <= mean:
        return 1.0
    if mean <= 0.0:
        return 0.0
    term = math.exp(count * math.log(mean) - mean - math.lgamma(count + 1.0))
    total = term
    j = count + 1.0
    while term > 1e-15 * total:
        term *= mean / j
        total += term
        j += 1.0
    return total


@device
def binomial_tail(count, trials, mean):
    """``P(X >= count)`` for a binomial variable of ``trials`` trials and that mean."""
    if count <= mean:
        return 1.0
    if mean <= 0.0 or count > trials:
        return 0.0
    p = mean / trials
    if p >= 1.0:
        return 1.0
    term = math.exp(
        math.lgamma(trials + 1.0)
        - math.lgamma(count + 1.0)
        - math.lgamma(trials - count + 1.0)
        + count * math.log(p)
        + (trials - count) * math.log1p(-p)
    )
    total = term
    odds = p / (1.0 - p)
    j = count
    while j < trials and term > 1e-15 * total:
        term *= (trials - j) / (j + 1.0) * odds
        total += term
        j += 1.0
    return min(total, 1.0)


@device
def wilson(errors, attempts, z, side):
    """Wilson bound of errors / attempts: lower for side -1, upper for side +1; 0 and 1 without attempts."""
    if attempts <= 0.0:
        return 0.0 if side < 0.0 else 1.0
    p = errors / attempts
    zz = z * z
    d = 1.0 + zz / attempts
    centre = (p + zz / (2.0 * attempts)) / d
    radius = z * math.sqrt(max(0.0, p * (1.0 - p) / attempts + zz / (4.0 * attempts * attempts))) / d
    return min(1.0, max(0.0, centre + side * radius))


@device
def finish(
    errors, attempts, variance, weight, a, b, observers, bad, peer_errors, peer_attempts, past_rate, excess, rule, row
):  # fmt: skip
    """Fill one row of statistics from the sums over observers; True when every gate of D1 holds."""
    expected = errors - a + b
    z = (errors - expected - 0.5) / math.sqrt(max(variance, 1e-12))
    difference = (a - b) / max(weight, 1e-12)
    ratio = a / max(b, 1e-9)
    baseline = b / max(weight, 1e-12)
    # errors expected under the stratified baseline; at least one error among the peers is assumed, so that none
    # seen never means that none can happen, and no less than the peers' own past, so that a lucky minute of the
    # peers convicts nobody
    mean = 0.0
    if errors > 0.0:
        mean = max(errors / max(ratio, 1e-9), attempts / (peer_attempts + 1.0), attempts * past_rate)
    # Given the errors of all, those of the candidate are a sum of independent draws; a binomial of the same mean bounds
    # its tail (Hoeffding 1956). Unlike the Poisson tail it does not take a baseline for known that has just been lucky.
    exact = binomial_tail(errors, errors + peer_errors, expected)
    tail = poisson_tail(errors, mean)
    low = wilson(errors, attempts, rule[R_WILSON_Z], -1.0)
    limit = max(baseline + rule[R_SURE_SHARE] * excess, rule[R_WILSON_FLOOR])
    row[ERRORS] = errors
    row[ATTEMPTS] = attempts
    row[EXPECTED] = expected
    row[VARIANCE] = variance
    row[Z] = z
    row[EXCESS] = difference
    row[RATIO] = ratio
    row[BASELINE] = baseline
    row[PEER_ERRORS] = peer_errors
    row[PEER_ATTEMPTS] = peer_attempts
    row[TAIL] = tail
    row[WILSON_LO] = low
    row[OBSERVERS] = observers
    row[OBSERVERS_BAD] = bad
    row[STANDARD_ERROR] = math.sqrt(max(variance, 0.0)) / max(weight, 1e-12)
    row[AGREEMENT] = 1.0
    row[LIMIT] = limit
    row[BOUND] = -1.0
    row[EXACT] = exact
    return (
        z > rule[R_Z]
        and difference > excess
        and ratio > rule[R_MIN_RATIO]
        and errors >= rule[R_MIN_ERRORS]
        and attempts >= rule[R_MIN_REQUESTS]
        and bad >= min(rule[R_MIN_OBSERVERS], observers)
        and low > limit
        and tail < rule[R_TAIL_P]
        and exact < rule[R_EXACT_P]
    )


@device
def zone_view(zone, errors, attempts, peer_errors, peer_attempts, views):
    """Add one observer's view to the sums (weight, a, b, errors, attempts, peer attempts) of its zone."""
    if zone >= 0:
        total = attempts + peer_attempts
        if total > 0.0:
            views[zone, 0] += attempts * peer_attempts / total
            views[zone, 1] += errors * peer_attempts / total
            views[zone, 2] += peer_errors * attempts / total
        views[zone, 3] += errors
        views[zone, 4] += attempts
        views[zone, 5] += peer_attempts


@device
def agreement(views, excess, rule, row):
    """Share of attempts in observer zones that see the endpoint fail too; 1 when no zone has a view.

    Zones with too few attempts on either side have no view. A zone agrees when its own risk difference exceeds
    excess / 2 and its errors are likelier at the endpoint's overall ratio than at the baseline. The second half keeps
    two stray errors of a small zone from counting as a view.
    """
    seen = 0.0
    agreed = 0.0
    low = min(max(row[BASELINE], 1.0 / (row[PEER_ATTEMPTS] + 1.0)), 0.5)
    high = min(max(row[ERRORS] / max(row[ATTEMPTS], 1.0), low + excess), 1.0 - 1e-9)
    gain = math.log(high / low)
    loss = math.log((1.0 - low) / (1.0 - high))
    for zone in range(views.shape[0]):
        if views[zone, 4] >= rule[R_MIN_VIEW] and views[zone, 5] >= rule[R_MIN_VIEW]:
            seen += views[zone, 4]
            difference = (views[zone, 1] - views[zone, 2]) / max(views[zone, 0], 1e-12)
            likelier = views[zone, 3] * gain > (views[zone, 4] - views[zone, 3]) * loss
            if difference > 0.5 * excess and likelier:
                agreed += views[zone, 4]
    return agreed / seen if seen > 0.0 else 1.0


@kernel(
    i64(
        const(f64, 3),
        const(f64, 3),
        const(u1, 2),
        const(u1, 2),
        const(f64, 2),
        const(i32),
        const(f64),
        mut(f64, 2),
        mut(f64, 2),
        mut(f64, 2),
        mut(u8),
        mut(f64, 3),
        mut(i32, 2),
        mut(u8, 2),
        mut(u1),
    )
)
def judge(
    errors, attempts, asked, compared, past, zones, rule, sums, peers, views, stand, table, chain, marks, incident
):  # fmt: skip
    """Flag endpoints worst first: convict the worst, take it out of the comparison, look again.

    Parameters
    ----------
    errors, attempts : (trials, P, H) float64, const     sums of one window
    asked : (trials, P) bool, const                      observers that are believed
    compared : (trials, H) bool, const                   the comparison set
    past : (trials, H) float64, const                    error rate of each endpoint's peers before the window
    zones : (P,) int32, const                            zone of each observer, -1 = unknown
    rule : (13,) float64, const                          thresholds, entries ``R_*``
    sums : (8, H) float64, scratch
    peers : (2, P) float64, scratch                      totals of the comparison set at each observer
    views : (zones, 6) float64, scratch
    stand : (H,) uint8, scratch                          1 = in the comparison set, + 2 = may still be convicted
    table : (trials, H, 19) float64, written             statistics, columns as in ``Stats.COLUMNS``
    chain : (trials, H) int32, written                   convicted endpoints, worst first, then -1
    marks : (trials, H) uint8, written                   NOTHING, CONVICTED, PARTIAL or OTHER
    incident : (trials,) bool, written                   more than half of the active compared endpoints convicted

    Returns
    -------
    int64        trials with any mark
    """
    trials, n_observers, n_endpoints = errors.shape
    n_zones = views.shape[0]
    marked = 0
    for t in range(trials):
        for h in range(n_endpoints):
            for c in range(8):
                sums[c, h] = 0.0
            stand[h] = u8(3) if compared[t, h] else u8(0)
            marks[t, h] = u8(NOTHING)
            chain[t, h] = -1
        incident[t] = False
        for p in range(n_observers):
            if asked[t, p]:
                for h in range(n_endpoints):
                    sums[0, h] += errors[t, p, h]
                    sums[1, h] += attempts[t, p, h]
                    sums[2, h] += 1.0 if attempts[t, p, h] > 0.0 else 0.0
                    sums[3, h] += 1.0 if errors[t, p, h] > 0.0 else 0.0
        active = 0
        for h in range(n_endpoints):
            if compared[t, h] and sums[1, h] > 0.0:
                active += 1
        length = 0
        any_mark = False
        while True:
            all_errors = 0.0
            all_attempts = 0.0
            for h in range(n_endpoints):
                for c in range(4, 8):
                    sums[c, h] = 0.0
                if stand[h]:
                    all_errors += sums[0, h]
                    all_attempts += sums[1, h]
            for p in range(n_observers):
                peers[0, p] = 0.0
                peers[1, p] = 0.0
                if not asked[t, p]:
                    continue
                total_errors = 0.0
                total = 0.0
                for h in range(n_endpoints):
                    if stand[h]:
                        total_errors += errors[t, p, h]
                        total += attempts[t, p, h]
                peers[0, p] = total_errors
                peers[1, p] = total
                if total <= 0.0:
                    continue
                inverse = 1.0 / total
                spread = 0.0
                if total > 1.0:
                    spread = total_errors * (total - total_errors) * inverse * inverse / (total - 1.0)
                for h in range(n_endpoints):  # right for compared endpoints only; the others are done below
                    k = errors[t, p, h]
                    n = attempts[t, p, h]
                    rest = total - n
                    sums[4, h] += n * rest * spread
                    sums[5, h] += n * rest * inverse
                    sums[6, h] += k * rest * inverse
                    sums[7, h] += (total_errors - k) * n * inverse
            worst = -1
            for h in range(n_endpoints):
                if not stand[h]:
                    continue
                flagged = finish(
                    sums[0, h], sums[1, h], sums[4, h], sums[5, h], sums[6, h], sums[7, h], sums[2, h], sums[3, h],
                    all_errors - sums[0, h], all_attempts - sums[1, h], past[t, h], rule[R_MIN_EXCESS], rule,
                    table[t, h],
                )  # fmt: skip
                if flagged and stand[h] == 3:
                    difference = table[t, h, EXCESS]
                    if (
                        worst < 0
                        or difference > table[t, worst, EXCESS]
                        or (difference == table[t, worst, EXCESS] and table[t, h, Z] > table[t, worst, Z])
                    ):
                        worst = h
            if worst < 0:
                break
            any_mark = True
            for zone in range(n_zones):
                for c in range(6):
                    views[zone, c] = 0.0
            for p in range(n_observers):
                if asked[t, p]:
                    k = errors[t, p, worst]
                    n = attempts[t, p, worst]
                    zone_view(zones[p], k, n, peers[0, p] - k, peers[1, p] - n, views)
            agreed = agreement(views, rule[R_MIN_EXCESS], rule, table[t, worst])
            table[t, worst, AGREEMENT] = agreed
            if agreed < rule[R_AGREEMENT]:
                stand[worst] = u8(1)  # nobody's culprit, but still a peer
                marks[t, worst] = u8(PARTIAL)
                continue
            stand[worst] = u8(0)
            marks[t, worst] = u8(CONVICTED)
            chain[t, length] = worst
            length += 1
            if 2 * length > active:
                incident[t] = True
                break
        # endpoints that are not compared: against the peers that were left, one look each
        for h in range(n_endpoints):
            if compared[t, h]:
                if marks[t, h] == PARTIAL:
                    table[t, h, AGREEMENT] = 0.0  # filled again below
                else:
                    continue
            variance = 0.0
            weight = 0.0
            a = 0.0
            b = 0.0
            own = 1.0 if compared[t, h] else 0.0
            for zone in range(n_zones):
                for c in range(6):
                    views[zone, c] = 0.0
            for p in range(n_observers):
                n = attempts[t, p, h]
                if not asked[t, p] or n <= 0.0:
                    continue
                k = errors[t, p, h]
                peer_k = peers[0, p] - own * k
                peer_n = peers[1, p] - own * n
                zone_view(zones[p], k, n, peer_k, peer_n, views)
                if peer_n <= 0.0:
                    continue
                total = n + peer_n
                total_errors = k + peer_k
                if total > 1.0:
                    variance += n * peer_n * total_errors * (total - total_errors) / (total * total * (total - 1.0))
                weight += n * peer_n / total
                a += k * peer_n / total
                b += peer_k * n / total
            flagged = finish(
                sums[0, h], sums[1, h], variance, weight, a, b, sums[2, h], sums[3, h],
                all_errors - own * sums[0, h], all_attempts - own * sums[1, h], past[t, h], rule[R_MIN_EXCESS],
                rule, table[t, h],
            )  # fmt: skip
            agreed = agreement(views, rule[R_MIN_EXCESS], rule, table[t, h])
            table[t, h, AGREEMENT] = agreed
            if flagged and not compared[t, h]:
                marks[t, h] = u8(OTHER) if agreed >= rule[R_AGREEMENT] else u8(PARTIAL)
                any_mark = True
        if any_mark:
            marked += 1
    return marked
