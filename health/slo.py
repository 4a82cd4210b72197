"""How fast a service spends its error budget: burn rates over several windows, and what they would alert."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from health.explain import selector
from health.mapping import Counts, SeriesMapping

WINDOWS = ("5m", "30m", "1h", "6h", "3d")
_ALERTS = (("page", 14.4, "1h", "5m"), ("page", 6.0, "6h", "30m"), ("ticket", 1.0, "3d", "6h"))
"""(severity, burn rate, long window, short window): both must be above; the short one ends the alert soon."""

Ask = Callable[[str], float | None]
"""Evaluates a PromQL expression to one number; None = no data, or more than a query may read."""


def ratio_query(mapping: SeriesMapping, service: str, window: str) -> str:
    """Errors per attempt of a whole service; "" when the mapping's counters are told apart by labels."""
    errors = [c.metric for c in mapping.counters if c.counts in (Counts.ERROR, Counts.TIMEOUT) and not c.where]
    successes = [c.metric for c in mapping.counters if c.counts is Counts.SUCCESS and not c.where]
    if not errors or not successes or any(c.where for c in mapping.counters):
        return ""
    where = selector(mapping, service)

    def total(names: list[str]) -> str:
        return f'sum(increase({{__name__=~"{"|".join(names)}"{where}}}[{window}]))'

    return f"{total(errors)} / {total([*errors, *successes])}"


def burn_rates(service: str, objective: float, mappings: tuple[SeriesMapping, ...], ask: Ask) -> dict[str, Any]:
    """The burn rate of each window: 1 spends exactly the budget of the objective.

    Parameters
    ----------
    objective : wanted share of good attempts, e.g. 0.999
    """
    burn: dict[str, float | None] = {}
    query = ""
    for window in WINDOWS:
        ratio = None
        for mapping in mappings:
            query = ratio_query(mapping, service, window)
            ratio = ask(query) if query else None
            if ratio is not None:
                break
        burn[window] = None if ratio is None else ratio / (1 - objective)
    alerts = []
    for severity, limit, long, short in _ALERTS:
        rates = burn[long], burn[short]
        if all(rate is not None and rate > limit for rate in rates):
            alerts.append({"severity": severity, "limit": limit, "windows": [long, short], "burn": list(rates)})
    longest = next((burn[window] for window in reversed(WINDOWS) if burn[window] is not None), None)
    return {
        "service": service,
        "objective": objective,
        "budget_left": None if longest is None else 1 - longest,
        "burn": burn,
        "alerts": alerts,
    }
