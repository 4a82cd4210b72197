"""From what was discovered to what is scraped: labels before and after relabelling, the URL, who is who."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode

from yarl import URL

from ingest.durations import format_duration, parse_duration_ms
from ingest.relabel import Rules
from ingest.scraping.groups import TargetGroup

_PARAM = "__param_"
_INTERVAL = "__scrape_interval__"
_TIMEOUT = "__scrape_timeout__"


class TargetError(Exception):
    """What was discovered makes no target; the text is Prometheus'."""


@dataclass(frozen=True, slots=True)
class TargetRules:
    """What a job says about its targets.

    Attributes
    ----------
    scrape_interval, scrape_timeout : seconds
    params : query parameters, name -> values
    relabel : run over the discovered labels
    external_labels : of every target that has not its own of that name
    """

    job_name: str
    scrape_interval: float = 15.0
    scrape_timeout: float = 10.0
    metrics_path: str = "/metrics"
    scheme: str = "http"
    params: Mapping[str, Sequence[str]] = field(default_factory=dict)
    relabel: Rules = field(default_factory=Rules)
    external_labels: Mapping[str, str] = field(default_factory=dict)


def discovered_labels(rules: TargetRules, address: str, labels: Mapping[str, str]) -> dict[str, str]:
    """Labels of one discovered address before relabelling, sorted by name.

    Parameters
    ----------
    labels : of its group
    """
    found = {"__address__": address, **{name: value for name, value in labels.items() if name != "__address__"}}
    defaults = {
        "job": rules.job_name,
        _INTERVAL: format_duration(round(rules.scrape_interval * 1000)),
        _TIMEOUT: format_duration(round(rules.scrape_timeout * 1000)),
        "__metrics_path__": rules.metrics_path,
        "__scheme__": rules.scheme,
        **{f"{_PARAM}{name}": values[0] for name, values in rules.params.items() if values},
    }
    found = {name: value for name, value in found.items() if value}
    return dict(sorted((defaults | found).items()))


@dataclass(frozen=True, slots=True)
class Aim:
    """What is scraped, and how often: all that there is to know of a target before its first scrape.

    Attributes
    ----------
    labels : of its series
    internal : those with two underscores that relabelling left, without ``__meta_*``
    scrape_interval, scrape_timeout : seconds
    """

    url: URL
    labels: Mapping[str, str]
    internal: Mapping[str, str]
    scrape_interval: float
    scrape_timeout: float

    @property
    def identity(self) -> tuple[object, ...]:
        """Two with the same are one target; how often it is scraped does not count, so that a change disturbs none."""
        internal = {name: value for name, value in self.internal.items() if name not in (_INTERVAL, _TIMEOUT)}
        return (str(self.url), *sorted(self.labels.items()), *sorted(internal.items()))

    def offset_ms(self) -> int:
        """When within each interval it is scraped: spread over targets, the same after every start."""
        digest = hashlib.blake2b(repr((str(self.url), sorted(self.labels.items()))).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") % max(1, round(self.scrape_interval * 1000))


def aim(rules: TargetRules, discovered: Mapping[str, str]) -> Aim | None:
    """Relabel what was discovered.

    Returns
    -------
    None when a rule dropped it.

    Raises
    ------
    TargetError        the labels that came out are no target
    """
    labels = rules.relabel.apply(discovered)
    if labels is None:
        return None
    address = labels.get("__address__", "")
    if not address:
        raise TargetError("no address")
    if "/" in address:
        raise TargetError(f'"{address}" is not a valid hostname')
    interval_s, timeout_s = _seconds(labels, _INTERVAL, "interval"), _seconds(labels, _TIMEOUT, "timeout")
    if timeout_s > interval_s:
        raise TargetError(
            f'scrape timeout cannot be greater than scrape interval ("{labels[_TIMEOUT]}" > "{labels[_INTERVAL]}")'
        )
    own = {name: value for name, value in labels.items() if not name.startswith("__")}
    internal = {n: value for n, value in labels.items() if n.startswith("__") and not n.startswith("__meta_")}
    own.setdefault("instance", address)
    return Aim(_url(rules, labels), {**rules.external_labels, **own}, internal, interval_s, timeout_s)


def _seconds(labels: Mapping[str, str], name: str, what: str) -> float:
    text = labels.get(name, "")
    ms = parse_duration_ms(text)
    if ms is None:
        reason = f'not a valid duration string: "{text}"' if text else "empty duration string"
        raise TargetError(f"error parsing scrape {what}: {reason}")
    if not ms:
        raise TargetError(f"scrape {what} cannot be 0")
    return ms / 1000


def _url(rules: TargetRules, labels: Mapping[str, str]) -> URL:
    """The URL as Go writes it: parameters sorted, the path with a slash in front."""
    params = {name: list(values) for name, values in rules.params.items()}
    for name, value in labels.items():
        if name.startswith(_PARAM):
            params[name.removeprefix(_PARAM)] = [value, *params.get(name.removeprefix(_PARAM), [])[1:]]
    query = urlencode([(name, value) for name, values in sorted(params.items()) for value in values])
    path = quote(labels.get("__metrics_path__", ""), safe="$&+,/:;=@~")
    if path and not path.startswith("/"):
        path = f"/{path}"
    text = f"{labels.get('__scheme__', '')}://{labels['__address__']}{path}{'?' + query if query else ''}"
    try:
        url = URL(text, encoded=True)
        _ = str(url), url.host, url.port  # looked at here: yarl finds mistakes late
    except ValueError as error:
        raise TargetError(f'"{labels["__address__"]}" is not a valid hostname: {error}') from None
    return url


@dataclass(frozen=True, slots=True)
class Resolved:
    """What the groups of a job come to.

    Attributes
    ----------
    aims : identity -> what to scrape, and its labels before relabelling; of equal targets the first
    dropped : labels before relabelling of those that a rule dropped
    errors : what makes no target, and why
    """

    aims: Mapping[tuple[object, ...], tuple[Aim, Mapping[str, str]]]
    dropped: Sequence[Mapping[str, str]]
    errors: Sequence[str]


def resolve(rules: TargetRules, groups: Sequence[TargetGroup]) -> Resolved:
    """All targets of a job; 50 us each, so keep it away from the event loop."""
    aims: dict[tuple[object, ...], tuple[Aim, Mapping[str, str]]] = {}
    dropped, errors = [], []
    for group in groups:
        for index, address in enumerate(group.targets):
            discovered = discovered_labels(rules, address, group.labels)
            try:
                found = aim(rules, discovered)
            except TargetError as error:
                errors.append(f"instance {index} in group {group.source}: {error}")
                continue
            if found is None:
                dropped.append(discovered)
            else:
                aims.setdefault(found.identity, (found, discovered))
    return Resolved(aims, dropped, errors)


class Target:
    """One scraped target, and how its last scrape went.

    Attributes
    ----------
    pool : name of its job
    aim, discovered : what is scraped; labels before relabelling
    health : ``up``, ``down`` or ``unknown``
    last_scrape_ms, last_seconds : when it began and what it took
    """

    def __init__(self, pool: str, aim: Aim, discovered: Mapping[str, str]) -> None:
        self.pool = pool
        self.aim = aim
        self.discovered = discovered
        self.health = "unknown"
        self.last_error = ""
        self.last_scrape_ms: int | None = None
        self.last_seconds = 0.0

    @property
    def url(self) -> str:
        """What is asked."""
        return str(self.aim.url)

    def status(self) -> dict[str, Any]:
        """The target as ``/api/v1/targets`` shows it, but for ``globalUrl``."""
        last = "0001-01-01T00:00:00Z"
        if self.last_scrape_ms is not None:
            last = datetime.fromtimestamp(self.last_scrape_ms / 1000, UTC).isoformat().replace("+00:00", "Z")
        return {
            "discoveredLabels": dict(sorted(self.discovered.items())),
            "labels": dict(sorted(self.aim.labels.items())),
            "scrapePool": self.pool,
            "scrapeUrl": self.url,
            "globalUrl": self.url,
            "lastError": self.last_error,
            "lastScrape": last,
            "lastScrapeDuration": self.last_seconds,
            "health": self.health,
            "scrapeInterval": self.aim.internal[_INTERVAL],
            "scrapeTimeout": self.aim.internal[_TIMEOUT],
        }
