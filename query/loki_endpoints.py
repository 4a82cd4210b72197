"""Loki's read endpoints without HTTP: a request in, the bytes of its answer out (compat.md 6)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from query.endpoints import Body
from query.engine.grid import columns, group_ids, take
from query.errors import BadDataError
from query.json_out import dumps, success
from query.logql.ast import Grouping, LogQuery, LogRange, RangeAggregation, VectorAggregation
from query.logql.engine.engine import ENTRIES_MAX, LogEngine, LogResult, LogStats, parsed
from query.logql.lexer import LogqlError
from query.logql.parser import parse_selector
from query.logql.printer import to_text
from query.logql.units import NS
from query.loki_detect import detect_fields, find_patterns
from query.loki_json import log_answer
from query.loki_params import (
    DEFAULT_LIMIT,
    TimeRange,
    entries_limit,
    interval_ns,
    is_backward,
    positive,
    step_ns,
    time_ns,
    time_range,
)
from query.params import Params, path_label_name
from query.promql.literals import format_number
from query.result import MatrixResult
from tsdb.clock import Clock
from tsdb.frame import LabelTable, SymbolOverlay
from tsdb.logs.frame import Alike, IndexStats, LogFrame, LogReader, RunCounts
from tsdb.logs.pruning import Clause
from tsdb.matchers import Matcher, MatchOp

PREFIX = "/loki/api/v1/"
LABEL_PREFIX = f"{PREFIX}label/"
FIELD_PREFIX = f"{PREFIX}detected_field/"
VALUES_SUFFIX = "/values"
LOKI_VERSION = "3.4.0"
"""What clients take us for: Grafana offers structured metadata and Drilldown from 3.0 on."""

LINE_LIMIT = 100
FIELD_LIMIT = 1000
LINE_LIMIT_MAX = 5000
NO_INSTANT_LOGS = (
    "log queries are not supported as an instant query type, please change your query to a range query type"
)
_NO_STATS = IndexStats(0, 0, 0, 0)


class EmptyLogs:
    """The logs of a tenant that does not exist."""

    def select(
        self,
        matchers: Sequence[Matcher],  # noqa: ARG002
        start_ns: int,  # noqa: ARG002
        end_ns: int,  # noqa: ARG002
        *,
        needles: Sequence[bytes] = (),  # noqa: ARG002
        clauses: Sequence[Clause] = (),  # noqa: ARG002
        backward: bool = True,  # noqa: ARG002
        ordered: bool = True,  # noqa: ARG002
    ) -> Iterator[LogFrame]:
        """No entries."""
        return iter(())

    def condensed(
        self,
        matchers: Sequence[Matcher],
        start_ns: int,
        end_ns: int,
        alike: Alike,  # noqa: ARG002
    ) -> tuple[RunCounts, Iterator[LogFrame]]:
        """No entries."""
        nothing = np.zeros(0, np.int64)
        labels = self.streams([matchers], start_ns, end_ns)
        return RunCounts(np.zeros(0, np.uint32), labels, np.zeros(0, np.int32), *[nothing] * 3), iter(())

    def streams(self, selectors: Sequence[Sequence[Matcher]], start_ns: int, end_ns: int) -> LabelTable:  # noqa: ARG002
        """No streams."""
        return LabelTable((), np.zeros((0, 0), np.int32), SymbolOverlay())

    def label_names(self, selectors: Sequence[Sequence[Matcher]], start_ns: int, end_ns: int) -> list[str]:  # noqa: ARG002
        """No names."""
        return []

    def label_values(
        self,
        name: str,  # noqa: ARG002
        selectors: Sequence[Sequence[Matcher]],  # noqa: ARG002
        start_ns: int,  # noqa: ARG002
        end_ns: int,  # noqa: ARG002
    ) -> list[str]:
        """No values."""
        return []

    def stats(self, matchers: Sequence[Matcher], start_ns: int, end_ns: int) -> IndexStats:  # noqa: ARG002
        """Nothing."""
        return _NO_STATS

    def volume(
        self, matchers: Sequence[Matcher], start_ns: int, end_ns: int
    ) -> tuple[LabelTable, NDArray[np.int64], NDArray[np.int64]]:
        """Nothing."""
        return self.streams([matchers], start_ns, end_ns), np.zeros(0, np.int64), np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class LokiRequest:
    """One read request.

    Attributes
    ----------
    raw_path : as it came, percent-encoded
    params : Params
    tenant : whose logs it reads
    categorize : whether labels are to be told apart by where they come from
    on_stats : told what a query cost
    """

    raw_path: bytes
    params: Params
    tenant: str
    categorize: bool
    on_stats: Callable[[LogStats], None]


class InvalidQueryError(Exception):
    """``format_query`` of what is no query: its error is JSON."""


class LokiEndpoints:
    """What each endpoint answers. Every method may raise :class:`query.errors.QueryError` and the store's errors.

    Parameters
    ----------
    engine : evaluates queries
    reader_for : tenant -> its logs, None when there are none (a read never creates a tenant)
    build_info : of ``status/buildinfo``
    limits : of ``drilldown-limits``, over our defaults
    clock : what "now" is
    """

    def __init__(
        self,
        engine: LogEngine,
        reader_for: Callable[[str], LogReader | None],
        build_info: Mapping[str, str],
        limits: Mapping[str, Any],
        clock: Clock,
    ) -> None:
        self._engine = engine
        self._reader_for = reader_for
        self._build_info = build_info
        self._limits = limits
        self._clock = clock

    def reader(self, tenant: str) -> LogReader:
        """The logs of a tenant."""
        return self._reader_for(tenant) or EmptyLogs()

    def now_ns(self) -> int:
        """Nanoseconds since 1970."""
        return self._clock.now_ms() * 1_000_000

    # ---------------------------------------------------------------- queries

    def query_range(self, request: LokiRequest) -> Body:
        """``query_range``."""
        params = request.params
        bounds = time_range(params, self.now_ns())
        limit = entries_limit(params)
        backward = is_backward(params)
        step = step_ns(params, bounds)
        expr = parsed(params.get("query"))
        reader = self.reader(request.tenant)
        if isinstance(expr, LogQuery):
            result = self._engine.entries(
                reader, expr, bounds.start_ns, bounds.end_ns, limit, backward=backward, interval_ns=interval_ns(params)
            )
            index = reader.stats(expr.matchers, bounds.start_ns, bounds.end_ns)
        else:
            result = self._engine.range(reader, params.get("query"), bounds.start_ns, bounds.end_ns, step)
            index = self._index(expr, reader, bounds)
        request.on_stats(result.stats)
        return log_answer(result, index, categorize=request.categorize)

    def query(self, request: LokiRequest) -> Body:
        """``query``."""
        params = request.params
        entries_limit(params)
        is_backward(params)
        at_ns = time_ns(params, "time", self.now_ns())
        expr = parsed(params.get("query"))
        if isinstance(expr, LogQuery):
            raise BadDataError(NO_INSTANT_LOGS)
        result = self._engine.instant(self.reader(request.tenant), params.get("query"), at_ns)
        request.on_stats(result.stats)
        return log_answer(result, _NO_STATS, categorize=request.categorize)

    def _index(self, expr: Any, reader: LogReader, bounds: TimeRange) -> IndexStats:
        """Index statistics of the first selector of a metric query."""
        while not isinstance(expr, RangeAggregation):
            expr = getattr(expr, "expr", None) or getattr(expr, "lhs", None)
            if expr is None:
                return _NO_STATS
        start_ns = bounds.start_ns - expr.range.range_ns
        return reader.stats(expr.range.query.matchers, start_ns, bounds.end_ns)

    def format_query(self, request: LokiRequest) -> Body:
        """``format_query``."""
        try:
            return success(to_text(parsed(request.params.get("query"))))
        except LogqlError as error:
            raise InvalidQueryError(str(error)) from None

    # ---------------------------------------------------------------- labels and series

    def _selectors(self, texts: Sequence[str]) -> list[tuple[Matcher, ...]]:
        """Selectors of a request; none = everything."""
        found = [self._matchers(text) for text in texts if text.strip()]
        return [] if any(not matchers for matchers in found) else found

    @staticmethod
    def _matchers(text: str) -> tuple[Matcher, ...]:
        """Matchers of a selector, or of a query with stages; ``{}`` and nothing = everything."""
        if not text.strip():
            return ()
        try:
            return parse_selector(text)
        except LogqlError:
            expr = parsed(text)
        if not isinstance(expr, LogQuery):
            raise BadDataError("only label matchers are supported")
        return expr.matchers

    def labels(self, request: LokiRequest) -> Body:
        """``labels``."""
        bounds = time_range(request.params, self.now_ns())
        selectors = self._selectors([request.params.get("query")])
        return success(self.reader(request.tenant).label_names(selectors, bounds.start_ns, bounds.end_ns))

    def label_values(self, request: LokiRequest) -> Body:
        """``label/{name}/values``."""
        bounds = time_range(request.params, self.now_ns())
        selectors = self._selectors([request.params.get("query")])
        name = path_label_name(request.raw_path, LABEL_PREFIX, VALUES_SUFFIX)
        return success(self.reader(request.tenant).label_values(name, selectors, bounds.start_ns, bounds.end_ns))

    def series(self, request: LokiRequest) -> Body:
        """``series``."""
        bounds = time_range(request.params, self.now_ns())
        selectors = self._selectors([*request.params.all("match[]"), *request.params.all("match")])
        table = self.reader(request.tenant).streams(selectors, bounds.start_ns, bounds.end_ns)
        return success(sorted(table, key=lambda labels: tuple(labels.items())))

    # ---------------------------------------------------------------- index

    def stats(self, request: LokiRequest) -> Body:
        """``index/stats``, bare."""
        bounds = time_range(request.params, self.now_ns())
        matchers = self._matchers(request.params.get("query"))
        found = self.reader(request.tenant).stats(matchers, bounds.start_ns, bounds.end_ns)
        return dumps({"streams": found.streams, "chunks": found.chunks, "bytes": found.bytes, "entries": found.entries})

    def _volumes(self, request: LokiRequest, bounds: TimeRange) -> list[tuple[dict[str, str], int, int]]:
        """(labels, bytes, entries) of each group, largest first."""
        params = request.params
        matchers = self._matchers(params.get("query"))
        table, entries, size = self.reader(request.tenant).volume(matchers, bounds.start_ns, bounds.end_ns)
        names = [name for name in params.get("targetLabels").split(",") if name]
        if self._by_labels(params):
            found = []
            for name in names or table.names:
                has = columns(table, [name])[:, 0] != 0
                if has.any():
                    found.append(({name: ""}, int(size[has].sum()), int(entries[has].sum())))
        else:
            shown = names or [matcher.name for matcher in matchers]
            keys = columns(table, sorted(set(shown)))
            group, first = group_ids(np.ascontiguousarray(keys))
            bytes_of = np.bincount(group, weights=size, minlength=len(first))
            entries_of = np.bincount(group, weights=entries, minlength=len(first))
            labels = LabelTable(tuple(sorted(set(shown))), keys, table.symbols)
            found = [
                (each, int(b), int(e))
                for each, b, e in zip(take(labels, first), bytes_of.tolist(), entries_of.tolist(), strict=True)
            ]
        found.sort(key=lambda item: (-item[1], tuple(item[0].items())))
        return found[: positive(params, "limit", DEFAULT_LIMIT)]

    @staticmethod
    def _by_labels(params: Params) -> bool:
        kind = params.get("aggregateBy")
        if kind not in ("", "series", "labels"):
            raise BadDataError(f"invalid aggregation option: {kind}")
        return kind == "labels"

    def volume(self, request: LokiRequest) -> Body:
        """``index/volume``: bytes, largest first."""
        bounds = time_range(request.params, self.now_ns())
        at = format_number(bounds.end_ns // 1_000_000 / 1000)
        rows = [
            b'{"metric":' + dumps(labels) + f',"value":[{at},"{size}"]}}'.encode()
            for labels, size, _ in self._volumes(request, bounds)
        ]
        return b'{"status":"success","data":{"resultType":"vector","result":[' + b",".join(rows) + b'],"stats":{}}}'

    def volume_range(self, request: LokiRequest) -> Body:
        """``index/volume_range``: entries are counted per step, bytes are the group's mean times that."""
        bounds = time_range(request.params, self.now_ns())
        step = step_ns(request.params, bounds)
        volumes = self._volumes(request, bounds)
        matchers = self._matchers(request.params.get("query"))
        reader = self.reader(request.tenant)
        names = sorted({name for labels, _, _ in volumes for name in labels})
        rows = []
        if self._by_labels(request.params):
            for labels, size, entries in volumes:
                (name,) = labels
                grid = self._counts(reader, (*matchers, _has(name)), (), bounds, step)
                rows += [(labels, _points(grid, row, size / max(1, entries))) for row in range(len(grid.labels))]
        elif volumes:
            grid = self._counts(reader, matchers, tuple(names), bounds, step)
            means = {tuple(labels.items()): size / max(1, entries) for labels, size, entries in volumes}
            for row, labels in enumerate(grid.labels):
                mean = means.get(tuple(labels.items()))
                if mean is not None:
                    rows.append((labels, _points(grid, row, mean)))
        body = b",".join(b'{"metric":' + dumps(labels) + b',"values":[' + points + b"]}" for labels, points in rows)
        return b'{"status":"success","data":{"resultType":"matrix","result":[' + body + b'],"stats":{}}}'

    def _counts(
        self, reader: LogReader, matchers: tuple[Matcher, ...], names: tuple[str, ...], bounds: TimeRange, step: int
    ) -> MatrixResult:
        """Entries of each group in each step [t - step, t), at its end."""
        counted = RangeAggregation("count_over_time", LogRange(LogQuery(matchers), step))
        expr = VectorAggregation("sum", counted, None, Grouping(names))
        # windows of LogQL are open at their start: a nanosecond earlier they hold what begins a step
        first_ns = bounds.start_ns + step - 1
        result: LogResult = self._engine.range_of(reader, expr, first_ns, max(first_ns, bounds.end_ns + step - 2), step)
        assert isinstance(result.value, MatrixResult)
        times_ms = (bounds.start_ns + step * np.arange(1, len(result.value.times_ms) + 1)) // 1_000_000
        return replace(result.value, times_ms=times_ms)

    # ---------------------------------------------------------------- Drilldown

    def detected_labels(self, request: LokiRequest) -> Body:
        """``detected_labels``, bare."""
        bounds = time_range(request.params, self.now_ns())
        selectors = self._selectors([request.params.get("query")])
        table = self.reader(request.tenant).streams(selectors, bounds.start_ns, bounds.end_ns)
        found = []
        for name in table.names:
            ids = columns(table, [name])[:, 0]
            found.append({"label": name, "cardinality": len(np.unique(ids[ids != 0]))})
        return dumps({"detectedLabels": found})

    def _sample(self, request: LokiRequest) -> LogResult:
        """The newest lines of a query."""
        params = request.params
        bounds = time_range(params, self.now_ns())
        expr = parsed(params.get("query"))
        if not isinstance(expr, LogQuery):
            raise BadDataError("only log queries are supported")
        lines = min(positive(params, "line_limit", LINE_LIMIT), LINE_LIMIT_MAX)
        reader = self.reader(request.tenant)
        result = self._engine.entries(reader, expr, bounds.start_ns, bounds.end_ns, lines, backward=True)
        request.on_stats(result.stats)
        return result

    @staticmethod
    def _field_limit(params: Params) -> int:
        name = "limit" if params.get("limit") else "field_limit"
        return positive(params, name, FIELD_LIMIT)

    def detected_fields(self, request: LokiRequest) -> Body:
        """``detected_fields``, bare."""
        limit = self._field_limit(request.params)
        streams = self._sample(request).value
        assert isinstance(streams, list)
        found = detect_fields(streams)
        fields = [found[name].to_json(name) for name in sorted(found)]
        return dumps({"fields": fields[:limit], "limit": limit})

    def detected_field_values(self, request: LokiRequest) -> Body:
        """``detected_field/{name}/values``, bare."""
        limit = self._field_limit(request.params)
        name = path_label_name(request.raw_path, FIELD_PREFIX, VALUES_SUFFIX)
        streams = self._sample(request).value
        assert isinstance(streams, list)
        found = detect_fields(streams).get(name)
        return dumps({"values": list(found.values)[:limit], "limit": limit} if found else {})

    def patterns(self, request: LokiRequest) -> Body:
        """``patterns`` of the newest lines."""
        bounds = time_range(request.params, self.now_ns())
        step = step_ns(request.params, bounds)
        expr = parsed(request.params.get("query"))
        if not isinstance(expr, LogQuery):
            raise BadDataError("only log queries are supported")
        reader = self.reader(request.tenant)
        result = self._engine.entries(reader, expr, bounds.start_ns, bounds.end_ns, ENTRIES_MAX, backward=True)
        assert isinstance(result.value, list)
        return success(find_patterns(result.value, max(step, NS)))

    def drilldown_limits(self, request: LokiRequest) -> Body:  # noqa: ARG002
        """``drilldown-limits``, bare."""
        limits = {
            "discover_log_levels": True,
            "discover_service_name": [],
            "log_level_fields": [],
            "max_entries_limit_per_query": ENTRIES_MAX,
            "max_line_size_truncate": False,
            "max_query_bytes_read": "0B",
            "max_query_length": "0s",
            "max_query_lookback": "0s",
            "max_query_range": "0s",
            "max_query_series": self._engine.limits.series_max,
            "metric_aggregation_enabled": False,
            "otlp_config": {},
            "pattern_persistence_enabled": False,
            "query_timeout": f"{round(self._engine.limits.timeout_s)}s",
            "retention_period": "0s",
            "retention_stream": [],
            "volume_enabled": True,
            "volume_max_series": 5000,
        }
        version = self._build_info.get("version", "")
        return dumps({"limits": {**limits, **self._limits}, "pattern_ingester_enabled": False, "version": version})

    def build_info(self, request: LokiRequest) -> Body:  # noqa: ARG002
        """``status/buildinfo``, bare."""
        return dumps(dict(self._build_info))


def _has(name: str) -> Matcher:
    return Matcher(name, MatchOp.NOT_EQUAL, "")


def _points(grid: MatrixResult, row: int, mean: float) -> bytes:
    """Points of a series of entries as points of bytes."""
    points = [
        f'[{format_number(ms / 1000)},"{round(count * mean)}"]'
        for ms, count, has in zip(
            grid.times_ms.tolist(), grid.values[row].tolist(), grid.present[row].tolist(), strict=True
        )
        if has
    ]
    return ",".join(points).encode()
