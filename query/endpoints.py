"""The read endpoints without HTTP: a request in, the bytes of its answer out.

Statuses, headers and threads are those of :mod:`query.api` and :mod:`query.asgi`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from query.empty import EmptyStorage
from query.engine.engine import Engine
from query.errors import BadDataError, QueryError, UnsupportedError
from query.exemplars import SeriesExemplars, exemplar_data, selectors_of
from query.federation import ASCII_TYPE, UTF8_TYPE, federation_page, reads_utf8
from query.json_out import TRUNCATED, query_answer, series_answer, success
from query.limits import STEPS_MAX
from query.params import (
    MAX_TIME_MS,
    MIN_TIME_MS,
    ParamError,
    Params,
    limit_param,
    number_param,
    parse_step,
    path_label_name,
    required_time_param,
    step_param,
    time_param,
)
from query.promql.literals import quote
from query.promql.parser import ParseError, parse, parse_selector
from query.promql.printer import to_text
from query.promql.tree import to_tree
from query.remote_read import encode_result, parse_read_request, read_response
from query.result import QueryResult, QueryStats
from query.storage import Storage
from tsdb.clock import Clock
from tsdb.errors import RejectedError, UnavailableError
from tsdb.frame import empty_frame
from tsdb.limits import SelectLimits
from tsdb.matchers import Matcher

Body = bytes | Iterator[bytes]
"""A JSON answer: the whole of it, or its pieces (at least one)."""

FEDERATE = "/federate"
PREFIX = "/api/v1/"
LABEL_PREFIX, LABEL_SUFFIX = f"{PREFIX}label/", "/values"


@dataclass(frozen=True, slots=True)
class Plain:
    """An answer that is not JSON.

    Attributes
    ----------
    content_type : as the header says it
    body : the whole answer
    encoding : how it is compressed already; empty = it is not, and may be
    """

    content_type: bytes
    body: bytes
    encoding: bytes = b""


class FamilyMetadata(Protocol):
    """What a metric family is."""

    @property
    def type(self) -> str: ...
    @property
    def help(self) -> str: ...
    @property
    def unit(self) -> str: ...


@dataclass(frozen=True, slots=True)
class QueryRecord:
    """One evaluated query, for the query log.

    Attributes
    ----------
    start_ms, end_ms, step_ms : evaluation times; an instant query has one and a step of 0
    seconds : wall seconds of reading, waiting and evaluating; writing the answer is not in it
    stats : what it cost, None when it failed
    error : why it failed, else empty
    """

    tenant: str
    query: str
    start_ms: int
    end_ms: int
    step_ms: int
    seconds: float
    stats: QueryStats | None
    error: str = ""


TargetMetadata = tuple[Mapping[str, str], Sequence[tuple[str, str, str, str]]]
_NO_TARGETS: Mapping[str, Any] = {"activeTargets": [], "droppedTargets": [], "droppedTargetCounts": {}}


@dataclass(frozen=True, slots=True)
class Providers:
    """Where answers come from that are not queries. All of them may be called from worker threads.

    Attributes
    ----------
    build_info : of ``status/buildinfo``; ``version`` is a compatibility number >= 2.24.0. Never a ``features`` key:
        Grafana would take us for Mimir
    status_tsdb : (tenant, most rows of each list) -> data of ``status/tsdb``
    metadata : tenant -> metric family -> what it is; empty for an unknown tenant
    targets : scrape pool, empty = all -> data of ``targets``
    target_metadata : labels of each active target, and what it said about its families: (family, type, help, unit)
    scrape_pools : names of all scrape pools
    exemplars : (tenant, selectors, first and last millisecond) -> exemplars of the series that any of them selects
    status : further pages of ``status/``, e.g. ``runtimeinfo``, by name
    query_log : told of every query that was evaluated or failed, in its thread; None = nobody wants to know
    """

    build_info: Mapping[str, str]
    status_tsdb: Callable[[str, int], Mapping[str, Any]]
    metadata: Callable[[str], Mapping[str, FamilyMetadata]] = lambda _tenant: {}
    targets: Callable[[str], Mapping[str, Any]] = lambda _pool: _NO_TARGETS
    target_metadata: Callable[[], Iterable[TargetMetadata]] = lambda: ()
    scrape_pools: Callable[[], Sequence[str]] = lambda: ()
    exemplars: Callable[[str, Sequence[Sequence[Matcher]], int, int], Iterable[SeriesExemplars]] = lambda *_: ()
    status: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    query_log: Callable[[QueryRecord], None] | None = None


@dataclass(slots=True)
class Request:
    """One read request.

    Attributes
    ----------
    raw_path : as it came, percent-encoded
    params : Params
    tenant : whose data it reads
    on_stats : told what a query cost
    body : as it came, for endpoints whose body is no form
    accept : the header of that name
    is_light : it is answered on the spot, without waiting for a turn
    """

    raw_path: bytes
    params: Params
    tenant: str
    on_stats: Callable[[QueryStats], None]
    body: bytes = b""
    accept: bytes = b""
    is_light: bool = False


class Endpoints:
    """What each endpoint answers. Every method may raise :class:`query.errors.QueryError` and the store's errors.

    Parameters
    ----------
    engine : evaluates queries
    storage_for : tenant -> its store, None when there is none (a read never creates one)
    providers : everything that is not a query
    clock : what "now" is
    """

    def __init__(
        self, engine: Engine, storage_for: Callable[[str], Storage | None], providers: Providers, clock: Clock
    ) -> None:
        self._engine = engine
        self._storage_for = storage_for
        self._providers = providers
        self._clock = clock

    def _storage(self, request: Request) -> Storage:
        storage = self._storage_for(request.tenant)
        return EmptyStorage() if storage is None else storage

    def is_light_query(self, request: Request) -> bool:
        """Whether an instant query is answered faster than it is handed to a thread."""
        params = request.params
        try:
            time_ms = time_param(params, "time", self._clock.now_ms())
            _, lookback_ms = _query_options(params)
            return self._engine.is_light(self._storage(request), _query_text(params), time_ms, lookback_ms)
        except (QueryError, RejectedError):
            return True  # the handler says what is wrong with it

    def query(self, request: Request) -> Body:
        """Value of an expression at one time."""
        params = request.params
        limit = limit_param(params)
        time_ms = time_param(params, "time", self._clock.now_ms())
        timeout_s, lookback_ms = _query_options(params)
        text = _query_text(params)
        with self._logged(request, text, time_ms, time_ms, 0) as log, _blamed_on_query():
            result = self._engine.instant(
                self._storage(request),
                text,
                time_ms,
                timeout_s=timeout_s,
                lookback_ms=lookback_ms,
                per_step=params.get("stats") == "all",
                gated=not request.is_light,
            )
            log(result)
        return self._query_answer(request, result, limit)

    def query_range(self, request: Request) -> Body:
        """Values of an expression at every step of a range."""
        params = request.params
        limit = limit_param(params)
        start_ms = required_time_param(params, "start")
        end_ms = required_time_param(params, "end")
        if end_ms < start_ms:
            raise ParamError("end", "end timestamp must not be before start time")
        step_ms = step_param(params, "step")
        if step_ms <= 0:
            raise ParamError(
                "step", "zero or negative query resolution step widths are not accepted. Try a positive integer"
            )
        if (end_ms - start_ms) // step_ms > STEPS_MAX:
            raise BadDataError(
                "exceeded maximum resolution of 11,000 points per timeseries. "
                "Try decreasing the query resolution (?step=XX)"
            )
        timeout_s, lookback_ms = _query_options(params)
        text = _query_text(params)
        with self._logged(request, text, start_ms, end_ms, step_ms) as log, _blamed_on_query():
            result = self._engine.range(
                self._storage(request),
                text,
                start_ms,
                end_ms,
                step_ms,
                timeout_s=timeout_s,
                lookback_ms=lookback_ms,
                per_step=params.get("stats") == "all",
            )
            log(result)
        return self._query_answer(request, result, limit)

    @contextmanager
    def _logged(
        self, request: Request, text: str, start_ms: int, end_ms: int, step_ms: int
    ) -> Iterator[Callable[[QueryResult], None]]:
        """Tell the query log what became of a query; the body hands over its result."""
        write = self._providers.query_log
        begin = time.perf_counter()

        def log(result: QueryResult | None, error: str = "") -> None:
            if write is not None:
                seconds = time.perf_counter() - begin
                stats = result.stats if result else None
                write(QueryRecord(request.tenant, text, start_ms, end_ms, step_ms, seconds, stats, error))

        try:
            yield log
        except (QueryError, RejectedError, UnavailableError) as error:
            log(None, str(error))
            raise

    def _query_answer(self, request: Request, result: QueryResult, limit: int) -> Body:
        request.on_stats(result.stats)
        return query_answer(result, limit=limit, stats=bool(request.params.get("stats")))

    def query_exemplars(self, request: Request) -> Body:
        """Exemplars of the series that any selector of the expression selects."""
        start_ms, end_ms = _time_range(request.params)
        if end_ms < start_ms:
            raise BadDataError("end timestamp must not be before start timestamp")
        selectors = selectors_of(parse(_query_text(request.params)))
        found = self._providers.exemplars(request.tenant, selectors, start_ms, end_ms) if selectors else ()
        return success(exemplar_data(found))

    def format_query(self, request: Request) -> Body:
        """The canonical text of an expression."""
        with _blamed_on_query():
            return success(to_text(parse(_query_text(request.params))))

    def parse_query(self, request: Request) -> Body:
        """The expression as a tree, in the words of Prometheus' own pages."""
        with _blamed_on_query():
            return success(to_tree(parse(_query_text(request.params))))

    # Raw samples

    def _select_limits(self) -> SelectLimits:
        limits = self._engine.limits
        return SelectLimits(limits.series_max, limits.samples_max)

    def remote_read(self, request: Request) -> Plain:
        """Raw samples of some selectors, stale markers included (Prometheus' remote-read protocol)."""
        storage = self._storage(request)
        limits = self._select_limits()
        left = self._engine.limits.memory_bytes_max
        results = []
        for query in parse_read_request(request.body):
            if query.start_ms <= query.end_ms:
                frame = storage.select(query.matchers, query.start_ms, query.end_ms, limits)
            else:
                frame = empty_frame()
            results.append(encode_result(frame, left))
            left -= len(results[-1])
        return Plain(b"application/x-protobuf", read_response(results), b"snappy")

    def federate(self, request: Request) -> Plain:
        """The newest sample of each selected series within the lookback, as a page to be scraped."""
        selectors = match_params(request.params)
        now_ms = self._clock.now_ms()
        begin_ms = now_ms - self._engine.limits.lookback_ms + 1
        storage = self._storage(request)
        frames = [storage.select(matchers, begin_ms, now_ms, self._select_limits()) for matchers in selectors]
        utf8 = reads_utf8(request.accept)
        return Plain(UTF8_TYPE if utf8 else ASCII_TYPE, federation_page(frames, utf8=utf8))

    # Series and their labels

    def labels(self, request: Request) -> Body:
        """Label names, sorted."""
        limit = limit_param(request.params)
        start_ms, end_ms = _time_range(request.params)
        selectors = match_params(request.params)
        names = self._storage(request).label_names(selectors, start_ms, end_ms) if start_ms <= end_ms else []
        return _limited(names, limit)

    def label_values(self, request: Request) -> Body:
        """Values of one label, sorted; an unknown label has none."""
        name = path_label_name(request.raw_path, LABEL_PREFIX, LABEL_SUFFIX)
        limit = limit_param(request.params)
        start_ms, end_ms = _time_range(request.params)
        selectors = match_params(request.params)
        storage = self._storage(request)
        values = storage.label_values(name, selectors, start_ms, end_ms) if start_ms <= end_ms else []
        return _limited(values, limit)

    def series(self, request: Request) -> Body:
        """Label sets of the selected series."""
        params = request.params
        if not any(params.all("match[]")):
            raise BadDataError("no match[] parameter provided")
        limit = limit_param(params)
        start_ms, end_ms = _time_range(params)
        try:
            selectors = match_params(params)
        except BadDataError as error:
            raise ParamError("match[]", str(error)) from None
        storage: Storage = self._storage(request) if start_ms <= end_ms else EmptyStorage()
        return series_answer(storage.series(selectors, start_ms, end_ms), limit=limit)

    def metadata(self, request: Request) -> Body:
        """What is known about metric families."""
        params = request.params
        limit = number_param(params, "limit")
        number_param(params, "limit_per_metric")  # we keep one description of a metric
        families = self._providers.metadata(request.tenant)
        metric = params.get("metric")
        if metric:
            families = {metric: families[metric]} if metric in families else {}
        rows = itertools.islice(families.items(), limit if limit >= 0 else None)
        return success({name: [{"type": m.type, "help": m.help, "unit": m.unit}] for name, m in rows})

    # What runs here

    def build_info(self, _request: Request) -> Body:
        """Which Prometheus we are compatible with, and who we are."""
        return success(self._providers.build_info)

    def status_tsdb(self, request: Request) -> Body:
        """Cardinality: which names, labels and pairs make up the series."""
        limit = number_param(request.params, "limit", 10)
        if limit <= 0:
            raise BadDataError("limit must be a positive number")
        return success(self._providers.status_tsdb(request.tenant, limit))

    def targets(self, request: Request) -> Body:
        """What is scraped."""
        state = request.params.get("state").lower()
        found = dict(self._providers.targets(request.params.get("scrapePool")))
        if state not in ("", "any", "active"):
            found["activeTargets"] = []
        if state not in ("", "any", "dropped"):
            found |= {"droppedTargets": [], "droppedTargetCounts": {}}
        return success(found)

    def scrape_pools(self, _request: Request) -> Body:
        """Names of what is scraped."""
        return success({"scrapePools": self._providers.scrape_pools()})

    @staticmethod
    def rules(request: Request) -> Body:
        """Recording and alerting rules: none are evaluated."""
        kind = request.params.get("type").lower()
        if kind not in ("", "alert", "record"):
            raise ParamError("type", f"not supported value {quote(kind)}")
        return success({"groups": []})

    @staticmethod
    def alertmanagers(_request: Request) -> Body:
        """Alertmanagers: none are told."""
        return success({"activeAlertmanagers": [], "droppedAlertmanagers": []})

    @staticmethod
    def alerts(_request: Request) -> Body:
        """No rules, no alerts."""
        return success({"alerts": []})

    def targets_metadata(self, request: Request) -> Body:
        """What the active targets say about their metric families."""
        params = request.params
        limit = number_param(params, "limit")
        metric, wanted = params.get("metric"), params.get("match_target")
        try:
            matchers = parse_selector(wanted) if wanted else ()
        except ParseError as error:
            raise ParamError("match_target", str(error)) from None
        rows = (
            {"target": labels, **({} if metric else {"metric": family}), "type": kind, "help": text, "unit": unit}
            for labels, families in self._providers.target_metadata()
            if all(matcher.matches(labels.get(matcher.name, "")) for matcher in matchers)
            for family, kind, text, unit in families
            if metric in ("", family)
        )
        return success(list(itertools.islice(rows, limit if limit >= 0 else None)))

    def status_page(self, name: str, _request: Request) -> Body:
        """One of the further pages of ``status/``."""
        return success(self._providers.status[name]())


@contextmanager
def _blamed_on_query() -> Iterator[None]:
    """Says of an expression that is refused that it was the parameter ``query``."""
    try:
        yield
    except (ParseError, UnsupportedError) as error:
        raise ParamError("query", str(error)) from None


def _query_text(params: Params) -> str:
    """The expression; a blank for an absent one, so that the error has a place (clients know it as ``1:1``)."""
    return params.get("query") or " "


def _query_options(params: Params) -> tuple[float | None, int | None]:
    """Timeout in seconds and lookback of one request; None = as configured."""
    timeout_s = step_param(params, "timeout") / 1000 if params.get("timeout") else None
    lookback = params.get("lookback_delta")
    if not lookback:
        return timeout_s, None
    try:
        lookback_ms = parse_step(lookback)
    except ValueError as error:
        raise BadDataError(f"error parsing lookback delta duration: {error}") from None
    return timeout_s, lookback_ms if lookback_ms > 0 else None


def _time_range(params: Params) -> tuple[int, int]:
    return time_param(params, "start", MIN_TIME_MS), time_param(params, "end", MAX_TIME_MS)


def match_params(params: Params) -> list[tuple[Matcher, ...]]:
    """The selectors of ``match[]``; an empty one is as good as none."""
    selectors = [parse_selector(text) for text in params.all("match[]") if text]
    for matchers in selectors:
        if all(matcher.matches_empty for matcher in matchers):
            raise BadDataError("match[] must contain at least one non-empty matcher")
    return selectors


def _limited(texts: list[str], limit: int) -> bytes:
    if 0 < limit < len(texts):
        return success(texts[:limit], (TRUNCATED,))
    return success(texts)
