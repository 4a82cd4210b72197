"""OpenAPI of the hot routes, which FastAPI does not know: parameters, bodies, statuses and shapes, as clients see them.

Times, durations, selectors and expressions are texts here: their grammars are in docs/api and docs/promql.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_JSON, _PLAIN, _PROTOBUF = "application/json", "text/plain", "application/x-protobuf"
_FORM = "application/x-www-form-urlencoded"
_STRINGS: Schema = {"type": "array", "items": _TEXT}
_LABELS: Schema = {"type": "object", "additionalProperties": _TEXT}
_OBJECT: Schema = {"type": "object"}
_SAMPLE: Schema = {
    "type": "array",
    "items": {"anyOf": [{"type": "number"}, {"type": "string"}]},
    "minItems": 2,
    "maxItems": 2,
}

PARAMETERS: Mapping[str, Schema] = {
    "query": {"type": "string", "format": "promql", "description": "a PromQL expression"},
    "match[]": {
        "type": "array",
        "items": {"type": "string", "format": "selector"},
        "description": "series selectors; any of them",
    },
    "time": {"type": "string", "format": "time", "description": "float seconds or RFC 3339; default now"},
    "start": {"type": "string", "format": "time", "description": "float seconds or RFC 3339"},
    "end": {"type": "string", "format": "time", "description": "float seconds or RFC 3339"},
    "step": {"type": "string", "format": "prometheus-duration", "description": "float seconds or a duration"},
    "timeout": {"type": "string", "format": "prometheus-duration", "description": "float seconds or a duration"},
    "lookback_delta": {"type": "string", "format": "prometheus-duration", "description": "float seconds or a duration"},
    "limit": {"type": "integer", "minimum": 0, "description": "most rows; 0 = all"},
    "limit_per_metric": {"type": "integer", "minimum": 0, "description": "taken, of no effect"},
    "stats": {"type": "string", "enum": ["", "true", "all"], "description": "add what the query cost"},
    "metric": {"type": "string", "description": "only this family"},
    "type": {"type": "string", "enum": ["", "alert", "record"], "description": "only rules of this kind"},
    "state": {"type": "string", "enum": ["", "any", "active", "dropped"], "description": "only targets of this state"},
    "scrapePool": {"type": "string", "description": "only targets of this job"},
    "match_target": {"type": "string", "format": "selector", "description": "only targets with these labels"},
}

_SELECT = ("match[]", "start", "end", "limit")
_QUERY = ("timeout", "limit", "lookback_delta", "stats")


def _result(kinds: Iterable[str]) -> Schema:
    """``data`` of a query."""
    row = {"type": "object", "required": ["metric"], "properties": {"metric": _LABELS, "value": _SAMPLE}}
    rows = {"type": "array", "items": {"anyOf": [row, {"type": "number"}, {"type": "string"}]}}
    return {
        "type": "object",
        "required": ["resultType", "result"],
        "properties": {"resultType": {"type": "string", "enum": list(kinds)}, "result": rows, "stats": _OBJECT},
    }


def _keyed(*names: str) -> Schema:
    return {"type": "object", "required": list(names)}


class _Read:
    """One path of the read API: parameters, those needed, the shape of ``data``."""

    def __init__(
        self, what: str, parameters: Iterable[str], data: Schema, needed: Iterable[str] = (), *, posts: bool = False
    ) -> None:
        self.what = what
        self.parameters = tuple(parameters)
        self.needed = tuple(needed)
        self.data = data
        self.posts = posts


_READS: Mapping[str, _Read] = {
    "query": _Read(
        "Value of an expression at one time",
        ("query", "time", *_QUERY),
        _result(("vector", "matrix", "scalar", "string")),
        ("query",),
        posts=True,
    ),
    "query_range": _Read(
        "Values of an expression at every step of a range",
        ("query", "start", "end", "step", *_QUERY),
        _result(("matrix",)),
        ("query", "start", "end", "step"),
        posts=True,
    ),
    "query_exemplars": _Read(
        "Exemplars of the selected series",
        ("query", "start", "end"),
        {"type": "array", "items": _keyed("seriesLabels", "exemplars")},
        ("query",),
        posts=True,
    ),
    "format_query": _Read("An expression, laid out", ("query",), _TEXT, ("query",), posts=True),
    "parse_query": _Read("An expression as a tree", ("query",), _keyed("type"), ("query",), posts=True),
    "labels": _Read("Label names", _SELECT, _STRINGS, posts=True),
    "label/{name}/values": _Read("Values of a label", _SELECT, _STRINGS),
    "series": _Read(
        "Label sets of the selected series", _SELECT, {"type": "array", "items": _LABELS}, ("match[]",), posts=True
    ),
    "metadata": _Read("Types and descriptions of metric families", ("metric", "limit", "limit_per_metric"), _OBJECT),
    "rules": _Read("Rules; none are evaluated", ("type",), _keyed("groups")),
    "alerts": _Read("Alerts; there are none", (), _keyed("alerts")),
    "alertmanagers": _Read("Alertmanagers; none are told", (), _keyed("activeAlertmanagers", "droppedAlertmanagers")),
    "targets": _Read("What is scraped", ("state", "scrapePool"), _keyed("activeTargets", "droppedTargets")),
    "targets/metadata": _Read(
        "What targets say about their families",
        ("match_target", "metric", "limit"),
        {"type": "array", "items": _keyed("target", "type", "help", "unit")},
    ),
    "scrape_pools": _Read("Names of the scraped jobs", (), _keyed("scrapePools")),
    "status/buildinfo": _Read("Which Prometheus we are compatible with", (), _keyed("version", "revision")),
    "status/tsdb": _Read("Which names and labels make up the series", ("limit",), _keyed("headStats")),
    "status/runtimeinfo": _Read("How the process is", (), _keyed("startTime", "CWD")),
    "status/flags": _Read("The configuration as flags", (), _OBJECT),
    "status/config": _Read("The configuration as YAML", (), _keyed("yaml")),
    "status/walreplay": _Read("How far the replay is", (), _keyed("min", "max", "current")),
}

_TENANT = {
    "name": "X-Scope-OrgID",
    "in": "header",
    "description": "the tenant; `default` when absent",
    "schema": {"type": "string", "pattern": "^[a-z0-9_-]{0,40}$"},
}


def _response(what: str, **content: Schema) -> Schema:
    answers = {"json": _JSON, "text": _PLAIN, "protobuf": _PROTOBUF}
    return {"description": what, "content": {answers[kind]: {"schema": schema} for kind, schema in content.items()}}


_ERROR: Schema = {"$ref": "#/components/schemas/Error"}
_REFUSED = {
    "400": _response("bad_data: a parameter or the expression is wrong", json=_ERROR, text=_TEXT),
    "422": _response("execution: it cannot be evaluated on this data, or a limit was passed", json=_ERROR),
    "503": _response("timeout: it took too long; or the program is still starting", json=_ERROR, text=_TEXT),
}
_REFUSED_IN_TEXT = {status: _response(str(said["description"]), text=_TEXT) for status, said in _REFUSED.items()}


def _parameter(name: str, *, required: bool) -> Schema:
    schema = {key: value for key, value in PARAMETERS[name].items() if key != "description"}
    if required and schema["type"] == "array":
        schema["minItems"] = 1
    said: Schema = {"name": name, "in": "query", "description": PARAMETERS[name]["description"], "schema": schema}
    if schema["type"] == "array":
        said |= {"style": "form", "explode": True}
    return said | ({"required": True} if required else {})


def _form(read: _Read) -> Schema:
    content = {"schema": {"type": "object", "properties": {name: PARAMETERS[name] for name in read.parameters}}}
    if read.needed:
        content["schema"]["required"] = list(read.needed)
    return {"content": {_FORM: content}, "required": bool(read.needed)}


def _success(data: Schema) -> Schema:
    properties = {"status": {"type": "string", "enum": ["success"]}, "data": data}
    properties |= {"warnings": _STRINGS, "infos": _STRINGS}
    return {"type": "object", "required": ["status", "data"], "properties": properties}


def _read_path(read: _Read, path: str) -> Schema:
    answers = {"200": _response("the answer", json=_success(read.data)), **_REFUSED}
    common = {"summary": read.what, "responses": answers}
    own = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}]
    parameters = [_TENANT, *(own if "{name}" in path else [])]
    in_url = [_parameter(name, required=name in read.needed) for name in read.parameters]
    found = {"get": {**common, "parameters": [*parameters, *in_url]}}
    if read.posts:
        found["post"] = {**common, "parameters": parameters, "requestBody": _form(read)}
    return found


_BYTES: Schema = {"type": "string", "format": "binary"}


def _push(
    what: str,
    bodies: Mapping[str, Schema],
    encodings: Iterable[str],
    answers: Schema,
    parameters: Iterable[Schema] = (),
) -> Schema:
    """A path that takes bodies; ``answers`` beside those that all of them have."""
    encoding = {
        "name": "Content-Encoding",
        "in": "header",
        "schema": {"type": "string", "enum": list(encodings)},
    }
    common = {
        "400": _response("nothing, or not everything, was stored; the text says what and why", text=_TEXT),
        "415": _response("a content type or encoding that is not read", text=_TEXT),
        "503": _response("busy, or the disk is full: the same request may succeed later", text=_TEXT),
    }
    content = {kind: {"schema": schema} for kind, schema in bodies.items()}
    return {
        "post": {
            "summary": what,
            "parameters": [_TENANT, encoding, *parameters],
            "requestBody": {"content": content, "required": True},
            "responses": {**common, **answers},
        }
    }


_STORED = {"204": {"description": "everything is stored"}}


def _pushes() -> dict[str, Schema]:
    otlp = _push(
        "OTLP metrics",
        {_PROTOBUF: _BYTES, _JSON: _OBJECT},
        ("identity", "gzip"),
        {"200": _response("everything is stored", protobuf=_BYTES, json=_OBJECT)},
    )
    extra = {
        "name": "extra_label",
        "in": "query",
        "description": "a label of every series, as name=value",
        "schema": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{1,8}=[a-z]{0,8}$"}},
    }
    stamp = {
        "name": "timestamp",
        "in": "query",
        "description": "milliseconds of samples without a time",
        "schema": {"type": "integer"},
    }
    return {
        "/api/v1/write": _push(
            "Prometheus remote-write: the Content-Type picks 1.0 or 2.0", {_PROTOBUF: _BYTES}, ("snappy",), _STORED
        ),
        "/api/v1/import/prometheus": _push(
            "Samples in the text format", {_PLAIN: _TEXT}, ("identity", "gzip"), _STORED, (extra, stamp)
        ),
        "/api/v1/otlp/v1/metrics": otlp,
        "/opentelemetry/v1/metrics": otlp,
    }


def _others() -> dict[str, Schema]:
    """What is neither JSON of the read API nor a push."""
    page = _response("the newest sample of each selected series", text=_TEXT)
    select = _parameter("match[]", required=False)
    read = {"description": "samples", "content": {_PROTOBUF: {"schema": _BYTES}}}
    found: dict[str, Schema] = {
        "/federate": {
            "get": {
                "summary": "The newest samples as a page to scrape",
                "parameters": [_TENANT, select],
                "responses": {"200": page, **_REFUSED_IN_TEXT},
            }
        },
        "/api/v1/read": {
            "post": {
                "summary": "Prometheus remote-read: a ReadRequest, packed with snappy; answered alike",
                "parameters": [_TENANT],
                "requestBody": {"content": {_PROTOBUF: {"schema": _BYTES}}, "required": True},
                "responses": {"200": read, **_REFUSED_IN_TEXT},
            }
        },
    }
    return found


def hot_paths(prefix: str = "/api/v1/") -> dict[str, Schema]:
    """OpenAPI's ``paths`` of the read API of metrics and of their pushes."""
    reads = {f"{prefix}{path}": _read_path(read, path) for path, read in _READS.items()}
    return {**reads, **_others(), **_pushes()}


def document() -> Schema:
    """OpenAPI's ``paths`` and ``components`` of what :func:`hot_paths` has."""
    return {"paths": hot_paths(), "components": _components()}


def _components() -> Schema:
    kinds = ["timeout", "canceled", "execution", "bad_data", "internal", "unavailable", "not_found", "not_acceptable"]
    error = {
        "type": "object",
        "required": ["status", "errorType", "error"],
        "properties": {
            "status": {"type": "string", "enum": ["error"]},
            "errorType": {"type": "string", "enum": kinds},
            "error": _TEXT,
        },
    }
    bearer = {"type": "http", "scheme": "bearer", "description": "a token of `auth.tokens`, where there are any"}
    return {"schemas": {"Error": error}, "securitySchemes": {"token": bearer}}
