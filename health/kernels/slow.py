"""D2: the share of attempts slower than a quantile of the peers, from latency buckets.

Source: design/health.md section 6.3. The bound between slow and fast differs from endpoint to endpoint, because the
peers do, so the peers' counts are formed per endpoint.
"""

from __future__ import annotations

from health.kernels.mantel import (
    AGREEMENT,
    BASELINE,
    BOUND,
    LIMIT,
    NOTHING,
    OTHER,
    PARTIAL,
    PEER_ATTEMPTS,
    R_AGREEMENT,
    R_MIN_REQUESTS,
    WILSON_LO,
    agreement,
    finish,
    wilson,
    zone_view,
)
from tsdb.kernels._jit import const, f64, i32, i64, kernel, mut, u1, u8


@kernel(
    i64(
        const(f64, 3),
        const(u1),
        const(i32),
        f64,
        f64,
        f64,
        const(f64),
        mut(f64, 3),
        mut(f64, 2),
        mut(f64),
        mut(f64, 2),
        mut(f64, 2),
        mut(u8),
    )
)
def judge_slow(
    buckets, compared, zones, quantile, excess, min_peers, rule, below, totals, peers, views, table, marks
):  # fmt: skip
    """Flag endpoints whose share of slow attempts is far above their peers'.

    Parameters
    ----------
    buckets : (G, H, J) float64, const     attempts of one window per latency bucket, the last one unbounded
    compared : (H,) bool, const            the comparison set
    zones : (G,) int32, const              zone of each observer group, -1 = unknown
    quantile : of the peers that bounds "fast"
    excess : least risk difference
    min_peers : least attempts at the peers
    rule : (13,) float64, const            D1's thresholds
    below : (G, H, J) float64, scratch     running sums over J
    totals : (G, J) float64, scratch       the same of the comparison set
    peers : (J,) float64, scratch
    views : (zones, 6) float64, scratch
    table : (H, 19) float64, written       statistics of "slow" instead of "error"
    marks : (H,) uint8, written            NOTHING, CONVICTED (compared), OTHER (not compared) or PARTIAL

    Returns
    -------
    int64        marked endpoints
    """
    groups, n_endpoints, n_buckets = buckets.shape
    last = n_buckets - 1
    for g in range(groups):
        for j in range(n_buckets):
            totals[g, j] = 0.0
        for h in range(n_endpoints):
            running = 0.0
            for j in range(n_buckets):
                running += buckets[g, h, j]
                below[g, h, j] = running
                if compared[h]:
                    totals[g, j] += running
    marked = 0
    for h in range(n_endpoints):
        marks[h] = u8(NOTHING)
        own = 1.0 if compared[h] else 0.0
        attempts = 0.0
        for j in range(n_buckets):
            peers[j] = 0.0
        for g in range(groups):
            attempts += below[g, h, last]
            for j in range(n_buckets):
                peers[j] += totals[g, j] - own * below[g, h, j]
        bound = last
        if attempts >= rule[R_MIN_REQUESTS] and peers[last] >= min_peers:
            bound = 0
            while peers[bound] < quantile * peers[last]:
                bound += 1
        for zone in range(views.shape[0]):
            for c in range(6):
                views[zone, c] = 0.0
        slow = 0.0
        variance = 0.0
        weight = 0.0
        a = 0.0
        b = 0.0
        observers = 0.0
        bad = 0.0
        peer_slow = 0.0
        for g in range(groups):
            n = below[g, h, last]
            k = n - below[g, h, bound]
            peer_n = totals[g, last] - own * n
            peer_k = totals[g, last] - totals[g, bound] - own * k
            peer_slow += peer_k
            if n <= 0.0:
                continue
            slow += k
            observers += 1.0
            bad += 1.0 if k > 0.0 else 0.0
            zone_view(zones[g], k, n, peer_k, peer_n, views)
            if peer_n <= 0.0:
                continue
            total = n + peer_n
            all_slow = k + peer_k
            if total > 1.0:
                variance += n * peer_n * all_slow * (total - all_slow) / (total * total * (total - 1.0))
            weight += n * peer_n / total
            a += k * peer_n / total
            b += peer_k * n / total
        flagged = finish(
            slow, attempts, variance, weight, a, b, observers, bad, peer_slow, peers[last], 0.0, excess, rule, table[h]
        )  # fmt: skip
        upper = wilson(table[h, BASELINE] * table[h, PEER_ATTEMPTS], table[h, PEER_ATTEMPTS], 2.0, 1.0)
        table[h, LIMIT] = max(table[h, LIMIT], 2.0 * upper, upper + excess)
        table[h, AGREEMENT] = agreement(views, excess, rule, table[h])
        table[h, BOUND] = bound
        if flagged and bound < last and table[h, WILSON_LO] > table[h, LIMIT]:
            marked += 1
            if table[h, AGREEMENT] < rule[R_AGREEMENT]:
                marks[h] = u8(PARTIAL)
            else:
                marks[h] = u8(1) if compared[h] else u8(OTHER)
    return marked
