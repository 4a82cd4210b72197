"""What may happen to a service, with known truth: the worlds of the health benchmark and its tests."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from health.simulate import Moment, World

Floats = NDArray[np.float64]

ENVOY_BOUNDS_MS = (
    0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000, 600000, 1800000, 3600000,
)  # fmt: skip
"""Finite bucket bounds of Envoy's histograms."""


def even(observers: int, endpoints: int, rps: float) -> Floats:
    """Attempts/s (P, H) when every endpoint gets ``rps`` in total from all observers alike."""
    return np.full((observers, endpoints), rps / observers)


def zonal(observer_zones: NDArray[np.int64], zones: NDArray[np.int64], rps: float, local: float) -> Floats:
    """Attempts/s (P, H) when a share ``local`` of each observer's traffic stays in its zone."""
    same = observer_zones[:, None] == zones[None, :]
    rate = np.where(same, local / same.sum(axis=1, keepdims=True), (1 - local) / (~same).sum(axis=1, keepdims=True))
    return rate * rps * len(zones) / len(observer_zones)


def steady(rate: Floats, failing: float | Floats) -> World:
    """Nothing ever changes and nobody is bad."""
    none = np.zeros(rate.shape[-1], dtype=np.bool_)
    p = np.broadcast_to(np.asarray(failing, dtype=float), rate.shape[-1:]) if np.ndim(failing) < 2 else failing
    return lambda _second, _rng: Moment(rate, np.asarray(p), none)


def fault(rate: Floats, base: float, rates: tuple[float, ...], onset_s: int, *, refused: bool = False) -> World:
    """From ``onset_s`` on the first endpoints fail with these probabilities; all others stay at ``base``."""
    endpoints = rate.shape[-1]
    healthy = np.full(endpoints, base)
    failing = healthy.copy()
    failing[: len(rates)] = rates
    none = np.zeros(endpoints, dtype=np.bool_)
    bad = np.arange(endpoints) < len(rates)

    def world(second: int, _rng: np.random.Generator) -> Moment:
        on = second >= onset_s
        return Moment(rate, failing if on else healthy, bad if on else none, refused=bad if refused else None)

    return world


def common_cause(rate: Floats, base: float, level: float, onset_s: int, trials: int, seed: int) -> World:
    """From ``onset_s`` on all endpoints fail at ``level``, each off by up to 10 % of it."""
    endpoints = rate.shape[-1]
    failing = level * np.random.default_rng(seed).uniform(0.9, 1.1, (trials, 1, endpoints))
    none = np.zeros(endpoints, dtype=np.bool_)
    healthy = np.full((1, 1, endpoints), base)
    return lambda second, _rng: Moment(rate, failing if second >= onset_s else healthy, none)


def over_dispersed(rate: Floats, trials: int, seed: int) -> World:
    """Endpoints truly differ: error ratios drawn from Beta(2, 198), mean 1 %, kept for good.

    Those more than 2.5 % above the others are grey.
    """
    endpoints = rate.shape[-1]
    failing = np.random.default_rng(seed).beta(2, 198, (trials, 1, endpoints))
    others = (failing.sum(axis=2, keepdims=True) - failing) / (endpoints - 1)
    none = np.zeros(endpoints, dtype=np.bool_)
    grey = (failing - others > 0.025)[:, 0]
    return lambda _second, _rng: Moment(rate, failing, none, grey=grey)


def broken_proxies(rate: Floats, base: float, broken: tuple[int, ...], level: float, onset_s: int) -> World:
    """From ``onset_s`` on some observers fail on everything; no endpoint is bad."""
    observers, endpoints = rate.shape
    failing = np.full((observers, endpoints), base)
    failing[list(broken)] = level
    none = np.zeros(endpoints, dtype=np.bool_)
    healthy = np.full((observers, endpoints), base)
    return lambda second, _rng: Moment(rate, failing if second >= onset_s else healthy, none)


def partition(rate: Floats, base: float, cut: NDArray[np.bool_], onset_s: int) -> World:
    """From ``onset_s`` on some pairs (P, H) cannot talk; no endpoint is bad."""
    healthy = np.full(rate.shape, base)
    failing = np.where(cut, 1.0, base)
    none = np.zeros(rate.shape[1], dtype=np.bool_)
    refused = cut.any(axis=0)
    return lambda second, _rng: Moment(rate, failing if second >= onset_s else healthy, none, refused=refused)


def autocorrelated(rate: Floats, trials: int, base: float = 0.01, spread: float = 0.8) -> World:
    """Load and error ratios wander: log-AR(1) with a memory of 60 s, each endpoint's ratio and the service's load.

    An endpoint is bad while its ratio, averaged over about 10 s, is more than 5 % above the others', and grey from half
    of that on.
    """
    endpoints = rate.shape[-1]
    keep = math.exp(-1 / 60)
    fresh = math.sqrt(1 - keep * keep)
    ratio = np.zeros((trials, 1, endpoints))
    load = np.zeros((trials, 1, 1))
    lately = np.full((trials, endpoints), base)

    def world(_second: int, rng: np.random.Generator) -> Moment:
        nonlocal ratio, load, lately
        ratio = keep * ratio + fresh * rng.normal(0, spread, ratio.shape)
        load = keep * load + fresh * rng.normal(0, 0.5, load.shape)
        failing = np.minimum(base * np.exp(ratio), 0.5)
        lately = 0.9 * lately + 0.1 * failing[:, 0]
        others = (lately.sum(axis=1, keepdims=True) - lately) / (endpoints - 1)
        excess = lately - others
        return Moment(rate * np.exp(load), failing, excess > 0.05, grey=excess > 0.025)

    return world


def bursty(rate: Floats, trials: int, base: float = 0.001) -> World:
    """About once a minute a burst of 6 times the load for 3 s, in which 5 % of everything fails."""
    endpoints = rate.shape[-1]
    none = np.zeros(endpoints, dtype=np.bool_)
    left = np.zeros((trials, 1, 1))

    def world(_second: int, rng: np.random.Generator) -> Moment:
        nonlocal left
        left = np.where(rng.random(left.shape) < 1 / 60, 3.0, np.maximum(left - 1, 0))
        burst = left > 0
        failing = np.broadcast_to(np.where(burst, 0.05, base), (trials, 1, endpoints))
        return Moment(rate * np.where(burst, 6.0, 1.0), failing, none)

    return world


def rolling_restarts(rate: Floats, base: float, every_s: int = 30, down_s: int = 4, warming_s: int = 10) -> World:
    """Every ``every_s`` another endpoint refuses connections for ``down_s``, then fails 2 % for ``warming_s``.

    Ejecting it while it is down or warming is right, in the 10 s after that it is grey.
    """
    endpoints = rate.shape[-1]

    def world(second: int, _rng: np.random.Generator) -> Moment:
        at, phase = second // every_s % endpoints, second % every_s
        failing = np.full(endpoints, base)
        bad, grey = np.zeros((2, endpoints), dtype=np.bool_)
        if second >= 120 and phase < down_s + warming_s:
            failing[at] = 1.0 if phase < down_s else 0.02
            bad[at] = True
        if second >= 120 and phase < down_s + warming_s + 10:
            grey[at] = True
        return Moment(rate, failing, bad, grey=grey, refused=bad & (phase < down_s))

    return world


def autoscaling(rate: Floats, base: float, least: int, period_s: int = 600, cold_s: int = 5) -> World:
    """Between ``least`` and all endpoints come and go; a new one fails 20 % in its first ``cold_s`` seconds."""
    endpoints = rate.shape[-1]
    since = np.zeros(endpoints, dtype=np.int64)
    was = np.arange(endpoints) < least
    none = np.zeros(endpoints, dtype=np.bool_)

    def world(second: int, _rng: np.random.Generator) -> Moment:
        nonlocal was
        wave = 0.5 - 0.5 * math.cos(2 * math.pi * second / period_s)
        here = np.arange(endpoints) < least + round(wave * (endpoints - least))
        since[here & ~was] = second
        was = here
        cold = here & (since > 0) & (second - since < cold_s)
        load = rate * (1 + wave) * least / np.count_nonzero(here)
        return Moment(np.where(here, load, 0.0), np.where(cold, 0.2, base), none, present=here)

    return world


def noisy_neighbour(rate: Floats, trials: int, base: float = 0.002, noisy: float = 0.03) -> World:
    """One endpoint after another shares its machine with something: 3 % errors for some 20 s, every 2 minutes.

    That is grey: more than half of the default ``min_excess``, less than all of it.
    """
    endpoints = rate.shape[-1]
    none = np.zeros(endpoints, dtype=np.bool_)
    on = np.zeros((trials, 1, endpoints), dtype=np.bool_)
    lately = np.zeros((trials, endpoints))

    def world(_second: int, rng: np.random.Generator) -> Moment:
        nonlocal on, lately
        draw = rng.random(on.shape)
        on = np.where(on, draw > 1 / 20, draw < 1 / 120)
        lately = np.where(on[:, 0], 10.0, np.maximum(lately - 1, 0))
        return Moment(rate, np.where(on, noisy, base), none, grey=lately > 0)

    return world


def _share_below(bound_ms: float, median_ms: Floats, sigma: float) -> Floats:
    z = np.log(bound_ms / median_ms) / sigma
    return np.vectorize(lambda x: 0.5 * math.erfc(-x / math.sqrt(2)))(z)


def bucket_odds(median_ms: Floats, sigma: float = 0.5, late: float | Floats = 0.0, late_ms: float = 1000.0) -> Floats:
    """Probabilities (..., 20) of Envoy's latency buckets: log-normal, a share ``late`` taking ``late_ms`` more."""
    cumulative = np.stack([_share_below(b, median_ms, sigma) for b in ENVOY_BOUNDS_MS], axis=-1)
    shifted = np.stack(
        [_share_below(max(b - late_ms, 1e-9), median_ms, sigma) * (b > late_ms) for b in ENVOY_BOUNDS_MS], axis=-1
    )
    share = np.broadcast_to(late, median_ms.shape)[..., None]
    cumulative = (1 - share) * cumulative + share * shifted
    odds = np.diff(cumulative, axis=-1, prepend=0.0, append=1.0)
    odds = np.maximum(odds, 0.0)
    return odds / odds.sum(axis=-1, keepdims=True)


def slow_fault(
    rate: Floats, onset_s: int, *, factor: float = 1.0, late: float = 0.0, spread: float = 0.08, trials: int, seed: int
) -> World:
    """From ``onset_s`` on the first endpoint is ``factor`` slower, or a share ``late`` of its attempts takes 1 s more.

    Medians of healthy endpoints differ evenly by up to ``spread`` from 20 ms.
    """
    endpoints = rate.shape[-1]
    medians = 20.0 * np.random.default_rng(seed).uniform(1 - spread, 1 + spread, (trials, endpoints))
    healthy = bucket_odds(medians)[:, None]
    sick = medians.copy()
    sick[:, 0] *= factor
    share = np.zeros((trials, endpoints))
    share[:, 0] = late
    slow = bucket_odds(sick, late=share)[:, None]
    failing = np.zeros(endpoints)
    none = np.zeros(endpoints, dtype=np.bool_)
    bad = np.arange(endpoints) == 0

    def world(second: int, _rng: np.random.Generator) -> Moment:
        on = second >= onset_s
        return Moment(rate, failing, bad if on else none, slow=slow if on else healthy)

    return world


def slow_observers(rate: Floats, groups: int, slow_groups: int, factor: float, onset_s: int) -> World:
    """From ``onset_s`` on some observer groups see everything ``factor`` slower; no endpoint is bad."""
    endpoints = rate.shape[-1]
    healthy = bucket_odds(np.full((1, groups, endpoints), 20.0))
    sick = bucket_odds(20.0 * np.where(np.arange(groups)[None, :, None] < slow_groups, factor, np.ones(endpoints)))
    none = np.zeros(endpoints, dtype=np.bool_)
    return lambda second, _rng: Moment(rate, np.zeros(endpoints), none, slow=sick if second >= onset_s else healthy)
