"""The health API in OpenAPI 3.1: every route, parameter and answer. Tests hold it against routes and real answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from health.policy import Policy
from health.policy_text import policy_data
from health.verdicts import Action, Detector, Guard, Kind, State

Json = dict[str, Any]

_TEXT: Json = {"type": "string"}
_NUMBER: Json = {"type": "number"}
_COUNT: Json = {"type": "integer", "minimum": 0}
_FLAG: Json = {"type": "boolean"}
_TIME: Json = {"type": "string", "format": "date-time", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$"}
_RATIO: Json = {"type": "number", "minimum": 0, "maximum": 1}
_SCALAR: Json = {"type": ["number", "string", "boolean"]}
_EVIDENCE: Json = {"type": "object", "additionalProperties": _SCALAR, "description": "numbers that decided, by name"}
_MODE: Json = {"type": "string", "enum": ["dry_run", "enforce"]}
_REVISION: Json = {"type": "string", "pattern": r"^\d+\.\d+$", "description": "epoch.counter"}
_THREE: Json = {"type": "string", "enum": ["pass", "fail", "inconclusive"]}


def _maybe(schema: Json) -> Json:
    """Or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


def _object(optional: Mapping[str, Json] | None = None, /, **needed: Json) -> Json:
    """An object with exactly these members."""
    properties = {name.rstrip("_"): schema for name, schema in {**needed, **(optional or {})}.items()}
    required = sorted(name.rstrip("_") for name in needed)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _shape(value: object) -> Json:
    """The schema of something that looks like this example; members may be left out."""
    if isinstance(value, dict):
        members = {key: _shape(member) for key, member in value.items()}
        return {"type": "object", "properties": members, "additionalProperties": False}
    if isinstance(value, list):
        return {"type": "array", "items": _shape(value[0]), "default": value}
    if isinstance(value, bool):
        return {"type": "boolean", "default": value}
    return {"type": "number" if isinstance(value, int | float) else "string", "default": value}


def _schemas() -> dict[str, Json]:
    sides = _object(errors=_COUNT, requests=_COUNT)
    compared = _object(verdict=_THREE, rd=_NUMBER, se=_NUMBER, mh_z=_NUMBER, candidate=sides, baseline=sides)
    return {
        "HealthError": _object(
            status={"const": "error"},
            errorType={"enum": ["bad_data", "not_found", "precondition_failed", "execution", "unavailable"]},
            error=_TEXT,
        ),
        "HealthReason": {
            "type": "object",
            "description": "evidence behind a state: of a detector these, of a probe or an order others",
            "properties": {
                "detector": {"enum": [str(detector) for detector in Detector]},
                "window": _TEXT, "errors": _COUNT, "requests": _COUNT, "ratio": _RATIO, "baseline": _RATIO,
                "excess": _NUMBER, "mh_z": {"type": ["number", "string"]}, "p": _RATIO, "observers": _COUNT,
                "observers_bad": _COUNT, "agreement": _RATIO, "exact": _RATIO, "quantile": _RATIO,
                "bound": {"type": "integer"}, "ejections": _COUNT, "seed": {"type": "integer"},
                "threshold": _object(z=_NUMBER, min_excess=_NUMBER),
            },
            "additionalProperties": _SCALAR,
        },
        "HealthEndpoint": _object(
            {
                "mode": _MODE,
                "locality": _object(region=_TEXT, zone=_TEXT),
                "version": _TEXT,
                "priority": _COUNT,
                "since": _TIME,
                "until": _maybe(_TIME),
                "ejections": _COUNT,
                "xds": _object(
                    health_status={"enum": ["HEALTHY", "UNHEALTHY"]},
                    load_balancing_weight={"type": "integer", "minimum": 1},
                ),
                "applied": _object(observers=_COUNT, seen_unhealthy=_COUNT),
                "reasons": _list(_ref("HealthReason")),
                "guards": _object(
                    healthy_after=_COUNT,
                    total=_COUNT,
                    counted={"enum": ["listed", "seen"], "description": "seen: nobody lists the endpoints"},
                    cap_percent=_NUMBER,
                    blocked=_FLAG,
                    blocked_by=_maybe({"enum": [str(guard) for guard in Guard]}),
                ),
            },
            service=_TEXT,
            endpoint=_TEXT,
            state={"enum": [str(state) for state in State]},
            verdict={"enum": ["HEALTHY", "DEGRADED", "EJECT", "UNKNOWN"]},
            weight_factor=_RATIO,
            reason=_TEXT,
        ),
        "HealthSnapshot": _object(
            {
                "states": {"type": "object", "additionalProperties": _COUNT},
                "services": _COUNT,
                "left_out": _COUNT,
            },
            revision=_REVISION,
            mode={"enum": ["dry_run", "enforce", "mixed"]},
            evaluated_at=_TIME,
            data_as_of=_TIME,
            valid_until=_TIME,
            endpoints=_list(_ref("HealthEndpoint")),
        ),
        "HealthServices": _object(
            revision=_REVISION,
            services=_list(
                _object(
                    service=_TEXT,
                    mode=_MODE,
                    policy=_TEXT,
                    endpoints=_COUNT,
                    counted={"enum": ["listed", "seen"]},
                    states={"type": "object", "additionalProperties": _COUNT},
                    ejected_allowed=_COUNT,
                    evaluated_at=_TIME,
                    data_as_of=_TIME,
                    valid_until=_TIME,
                    frozen=_FLAG,
                    incident=_maybe(_TEXT),
                    observers=_object(known=_COUNT, reporting=_COUNT),
                )
            ),
        ),
        "HealthZones": _object(
            zones=_list(
                _object(
                    service=_TEXT,
                    zone=_TEXT,
                    endpoints=_COUNT,
                    healthy=_COUNT,
                    errors=_COUNT,
                    requests=_COUNT,
                    error_ratio=_maybe(_RATIO),
                    rd=_maybe(_NUMBER),
                    mh_z=_maybe(_NUMBER),
                    state={"enum": ["healthy", "weak", "degraded"]},
                    residual_capacity=_RATIO,
                    suggested_locality_weight=_COUNT,
                    evacuate=_FLAG,
                )
            )
        ),
        "HealthObservers": _object(
            observers=_list(
                _object(
                    observer=_TEXT,
                    service=_TEXT,
                    zone=_TEXT,
                    state={"enum": ["reporting", "silent", "broken"]},
                    errors=_COUNT,
                    requests=_COUNT,
                    rd=_maybe(_NUMBER),
                    mh_z=_maybe(_NUMBER),
                    dropped=_FLAG,
                    last_sample=_maybe(_TIME),
                )
            ),
            known=_COUNT,
            reporting=_COUNT,
            split=_FLAG,
        ),
        "HealthEvent": _object(
            id={"type": "string", "pattern": r"^\d+\.\d+-\d+$"},
            number=_COUNT,
            revision=_REVISION,
            time=_TIME,
            time_ms=_COUNT,
            type={"enum": [str(kind) for kind in Kind]},
            service=_TEXT,
            endpoint=_TEXT,
            mode=_maybe(_MODE),
            from_=_maybe({"enum": [str(state) for state in State]}),
            to=_maybe({"enum": [str(state) for state in State]}),
            until=_maybe(_TIME),
            weight=_maybe(_RATIO),
            detector=_maybe({"enum": [str(detector) for detector in Detector]}),
            guard=_maybe({"enum": [str(guard) for guard in Guard]}),
            by=_TEXT,
            reason=_TEXT,
            evidence=_EVIDENCE,
        ),
        "HealthEvents": _object(events=_list(_ref("HealthEvent"))),
        "HealthExplanation": _object(
            {
                "reason": _TEXT,
                "conviction": _maybe(
                    _object(
                        time=_TIME,
                        revision=_REVISION,
                        detector={"enum": [str(detector) for detector in Detector]},
                        reason=_TEXT,
                        evidence=_ref("HealthReason"),
                    )
                ),
                "per_observer": _list(
                    _object(
                        observer=_TEXT,
                        zone=_TEXT,
                        errors=_COUNT,
                        requests=_COUNT,
                        peer_errors=_COUNT,
                        peer_requests=_COUNT,
                    )
                ),
                "approximations": _list(_TEXT),
            },
            service=_TEXT,
            endpoint=_TEXT,
            time=_TIME,
            state={"enum": [str(state) for state in State]},
            since=_maybe(_TIME),
            until=_maybe(_TIME),
            ejections=_COUNT,
            mode=_MODE,
            policy=_TEXT,
            flagged=_FLAG,
            present=_FLAG,
            incident=_FLAG,
            statistics=_maybe({"type": "object", "additionalProperties": {"type": ["number", "string"]}}),
            conditions=_list(
                _object(name=_TEXT, value={"type": ["number", "string"]}, needs=_TEXT, ok=_FLAG),
            ),
            counterfactual=_TEXT,
            guards=_list(_object(name={"enum": [str(guard) for guard in Guard]}, ok=_FLAG, detail=_EVIDENCE)),
            promql=_TEXT,
            events=_list(_ref("HealthEvent")),
        ),
        "HealthPolicy": _shape(policy_data(Policy())),
        "HealthPolicies": _object(policies=_list(_ref("HealthPolicy"))),
        "HealthValidation": _object(valid=_FLAG, problems=_list(_TEXT)),
        "HealthOrder": _object(
            service=_TEXT,
            endpoint=_TEXT,
            action={"enum": [str(action) for action in Action]},
            ttl={"type": ["string", "number"], "description": "at most 30d; a number counts seconds"},
            author=_TEXT,
            comment=_TEXT,
        ),
        "HealthOverride": _object(
            id=_TEXT,
            service=_TEXT,
            endpoint=_TEXT,
            action={"enum": [str(action) for action in Action]},
            until=_TIME,
            author=_TEXT,
            comment=_TEXT,
        ),
        "HealthOverrides": _object(overrides=_list(_ref("HealthOverride"))),
        "HealthReplayRequest": _object(
            {
                "policy": _ref("HealthPolicy"),
                "end": {"type": ["string", "number"]},
                "step": {"type": ["string", "number"]},
            },
            service=_TEXT,
            start={"type": ["string", "number"], "description": "RFC 3339 or unix seconds"},
        ),
        "HealthReplay": _object(
            service=_TEXT,
            policy=_TEXT,
            start=_TIME,
            end=_TIME,
            evaluations=_COUNT,
            exact=_FLAG,
            approximations=_list(_TEXT),
            decisions=_list(
                _object(
                    time=_TIME,
                    type={"enum": [str(kind) for kind in Kind]},
                    endpoint=_TEXT,
                    from_=_maybe(_TEXT),
                    to=_maybe(_TEXT),
                    detector=_maybe(_TEXT),
                    guard=_maybe(_TEXT),
                    until=_maybe(_TIME),
                    reason=_TEXT,
                )
            ),
            time_to_detect_s=_object(count=_COUNT, p50=_maybe(_NUMBER), p90=_maybe(_NUMBER)),
            ejected_endpoint_seconds=_NUMBER,
            errors_avoided=_COUNT,
            errors_avoided_real=_COUNT,
            peak_ejected_percent=_NUMBER,
            diff_vs_live=_object(added=_COUNT, removed=_COUNT),
        ),
        "HealthComparison": _object(
            {"latency": compared},
            service=_TEXT,
            window=_TEXT,
            verdict=_THREE,
            margin=_NUMBER,
            endpoints=_object(candidate=_COUNT, baseline=_COUNT),
            errors=compared,
            min_requests_missing=_maybe(_COUNT),
        ),
        "HealthGate": _object(
            verdict={"enum": ["go", "halt", "wait"]},
            reason=_TEXT,
            checks=_list(
                _object(
                    {
                        "rd": _NUMBER,
                        "mh_z": _NUMBER,
                        "candidate": sides,
                        "baseline": sides,
                        "value": _NUMBER,
                        "limit": _NUMBER,
                    },
                    name=_TEXT,
                    verdict=_THREE,
                )
            ),
            min_requests_missing=_maybe(_COUNT),
            rollout=_TEXT,
            service=_TEXT,
            revision=_REVISION,
        ),
        "HealthSiteGate": _object(
            verdict={"enum": ["go", "halt", "wait"]},
            reason=_TEXT,
            site=_TEXT,
            host=_TEXT,
            requests_after=_COUNT,
            requests_before=_COUNT,
            sites=_COUNT,
            peers=_list(_TEXT),
            checks=_list(
                _object(
                    name=_TEXT,
                    site=_TEXT,
                    verdict={"enum": ["pass", "fail", "inconclusive", "common_cause"]},
                    reason=_TEXT,
                )
            ),
            min_requests_missing=_COUNT,
            rollout=_TEXT,
        ),
        "HealthSlo": _object(
            service=_TEXT,
            objective=_RATIO,
            budget_left=_maybe(_NUMBER),
            burn={"type": "object", "additionalProperties": _maybe(_NUMBER)},
            alerts=_list(
                _object(
                    severity={"enum": ["page", "ticket"]},
                    limit=_NUMBER,
                    windows=_list(_TEXT),
                    burn=_list(_NUMBER),
                )
            ),
        ),
        "DiscoveryRequest": {
            "type": "object",
            "description": "envoy.service.discovery.v3.DiscoveryRequest for ClusterLoadAssignment",
            "properties": {
                "version_info": _TEXT,
                "resource_names": _list(_TEXT),
                "node": {"type": "object"},
                "type_url": _TEXT,
                "error_detail": {"type": "object"},
            },
            "required": ["resource_names"],
        },
        "DiscoveryResponse": _object(version_info=_TEXT, resources=_list({"type": "object"}), type_url=_TEXT),
    }  # fmt: skip


def _parameter(
    name: str, about: str, *, needed: bool = False, where: str = "query", schema: Json | None = None
) -> Json:
    return {"name": name, "in": where, "required": needed or where == "path", "description": about,
            "schema": schema or _TEXT}  # fmt: skip


_SERVICE = _parameter("service", "name of the service; `cluster` is another word for it")
_THE_SERVICE = {**_SERVICE, "required": True}
_START = _parameter("start", "RFC 3339 or unix seconds")
_WAIT = (
    _parameter("If-None-Match", "revision that was seen", where="header"),
    _parameter("Prefer", "`wait=N`: hold the request so many seconds, at most 60", where="header"),
    _parameter("revision", "another way to say If-None-Match"),
    _parameter("wait", "another way to say Prefer, e.g. 30s"),
)
_NAME = _parameter("name", "of the policy", where="path")


def _answer(schema: str, about: str, *others: str) -> Json:
    """An answer in the envelope, of one schema or one of several."""
    data = {"anyOf": [_ref(name) for name in (schema, *others)]} if others else _ref(schema)
    envelope = _object(status={"const": "success"}, data=data, warnings=_list(_TEXT))
    return {"description": about, "content": {"application/json": {"schema": envelope}}}


def _route(
    about: str, answers: Mapping[int, Json], *parameters: Json, body: str = "", errors: tuple[int, ...] = (400,)
) -> Json:
    refusal = {"application/json": {"schema": _ref("HealthError")}}
    words = {400: "cannot be understood", 404: "no such thing", 412: "it was changed meanwhile",
             422: "more than may be read or run at once", 503: "not now"}  # fmt: skip
    out: Json = {
        "summary": about,
        "tags": ["health"],
        "parameters": list(parameters),
        "responses": {str(status): answer for status, answer in answers.items()}
        | {
            str(status): {"description": words[status], "content": refusal}
            for status in errors
            if status not in answers
        },
    }
    if body:
        out["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(body)}}}
    return out


def _gate(method: str) -> Json:
    return _route(
        "whether a rollout may go on" + (" (parameters may be a JSON body)" if method == "post" else ""),
        {
            200: _answer("HealthGate", "go", "HealthSiteGate"),
            412: _answer("HealthGate", "halt", "HealthSiteGate"),
            425: _answer("HealthGate", "not enough evidence", "HealthSiteGate"),
        },
        _parameter("rollout", "its name, for logs", where="path"),
        _SERVICE,
        _parameter("version", "the new version of the service; or, for a change of nginx, the next ones"),
        _parameter("objective", "wanted share of good attempts: adds a check of the new version's burn rate over 5m"),
        _parameter("site", "server_name of a site; all of the host when left out"),
        _parameter("host", "the changed machine"),
        _parameter("changed_at", "when, RFC 3339 or unix seconds, at most 6h ago"),
        _parameter("baseline", "how much of the time before to compare with, 10m"),
        _parameter("updated", "machines that were changed before, with commas"),
        _parameter("min_requests", "fewer after the change are not enough evidence", schema=_COUNT),
        _parameter("window", "how far to look back, 10m"),
        _parameter("margin", "most excess that still passes, 0.005"),
        _parameter("status", "200: always answer 200"),
        errors=(400, 422),
    )  # fmt: skip


def paths() -> dict[str, Json]:
    """Routes below ``/api/v1/health``, and Envoy's discovery."""
    unchanged = {"description": "nothing newer; `Mesh-Health-Valid-Until` and `Mesh-Health-Data-As-Of` still move"}
    done = {"description": "done"}
    lines = {"application/x-ndjson": {"schema": _ref("HealthEvent")}}
    events = _answer("HealthEvents", "oldest first; with `Accept: application/x-ndjson` one a line")
    events["content"] |= lines
    stream = {"description": "server-sent events", "content": {"text/event-stream": {"schema": _TEXT}}}
    own = {
        "endpoints": {"get": _route(
            "verdicts about endpoints, at once or when something newer is there",
            {200: _answer("HealthSnapshot", "verdicts"), 304: unchanged},
            _SERVICE, _parameter("zone", "only of this zone"), _parameter("state", "only in this state"),
            _parameter("mode", "only services judged in this mode", schema=_MODE),
            _parameter("summary", "true: below 4 KB"), *_WAIT,
        )},
        "services": {"get": _route("services as a roll-up", {200: _answer("HealthServices", "services")}, _SERVICE,
                                   _parameter("mode", "only these", schema=_MODE))},
        "zones": {"get": _route("each zone against the others", {200: _answer("HealthZones", "zones")}, _SERVICE,
                                errors=(404,))},
        "observers": {"get": _route("proxies that report", {200: _answer("HealthObservers", "observers")}, _SERVICE,
                                    _parameter("state", "reporting, silent or broken"), errors=(404,))},
        "explain": {"get": _route(
            "why an endpoint stands where it stands", {200: _answer("HealthExplanation", "everything known")},
            _THE_SERVICE, _parameter("endpoint", "ADDRESS:PORT", needed=True),
            _parameter("time", "another time than now"), errors=(400, 404, 422, 503),
        )},
        "events": {"get": _route(
            "decisions and refusals", {200: events}, _START, _parameter("end", "the same"), _SERVICE,
            _parameter("endpoint", "ADDRESS:PORT"), _parameter("type", "only of this type"),
            _parameter("limit", "the newest so many, 1000", schema=_COUNT), _parameter("format", "ndjson: one a line"),
        )},
        "events/stream": {"get": _route(
            "events as they happen, for user interfaces", {200: stream}, _SERVICE,
            _parameter("Last-Event-ID", "goes on behind it", where="header"), errors=(),
        )},
        "policies": {"get": _route("all policies", {200: _answer("HealthPolicies", "policies")}, errors=())},
        "policies/{name}": {
            "get": _route("one policy", {200: _answer("HealthPolicy", "`ETag` is for If-Match")}, _NAME, errors=(404,)),
            "put": _route(
                "make or replace a policy",
                {200: _answer("HealthPolicy", "replaced"), 201: _answer("HealthPolicy", "made")}, _NAME,
                _parameter("If-Match", "ETag that it must still have", where="header"), body="HealthPolicy",
                errors=(400, 412),
            ),
            "delete": _route("forget a policy that was put", {204: done}, _NAME, errors=(404,)),
        },
        "policies/{name}:validate": {"post": _route(
            "what is wrong with a policy", {200: _answer("HealthValidation", "problems")}, _NAME, body="HealthPolicy",
        )},
        "overrides": {
            "get": _route("orders in force", {200: _answer("HealthOverrides", "orders")}, _SERVICE, errors=()),
            "post": _route("give an order", {201: _answer("HealthOverride", "in force")}, body="HealthOrder",
                           errors=(400, 404)),
        },
        "overrides/{id}": {"delete": _route("end an order", {204: done}, _parameter("id", "of the order", where="path"),
                                            errors=(404,))},
        "compare": {"get": _route(
            "one group of endpoints against another", {200: _answer("HealthComparison", "pass, fail or inconclusive")},
            _THE_SERVICE, _parameter("candidate", 'version="v2", zone="z1" or endpoint="10.0.0.1:80"', needed=True),
            _parameter("baseline", "the same; all others when left out"), _parameter("window", "at most 6h, 10m"),
            _parameter("margin", "most excess that still passes, 0.005"), errors=(400, 422),
        )},
        "replay": {"post": _route(
            "what a policy would have decided", {200: _answer("HealthReplay", "decisions, and what they were worth")},
            body="HealthReplayRequest", errors=(400, 422, 503),
        )},
        "slo": {"get": _route("burn rates", {200: _answer("HealthSlo", "by window")}, _THE_SERVICE,
                              _parameter("objective", "wanted share of good attempts, 0.999"))},
        "gates/{rollout}": {method: _gate(method) for method in ("get", "post")},
    }  # fmt: skip
    discovery = _route(
        "Envoy's REST EDS, held until the assignment changes", {200: {
            "description": "a newer version", "content": {"application/json": {"schema": _ref("DiscoveryResponse")}},
        }, 304: {"description": "nothing newer for 25 s"}}, body="DiscoveryRequest",
    )  # fmt: skip
    return {**{f"/api/v1/health/{path}": item for path, item in own.items()},
            "/v3/discovery:endpoints": {"post": discovery}}  # fmt: skip


def document() -> Json:
    """``paths`` and ``components`` to merge into the program's OpenAPI document."""
    return {"paths": paths(), "components": {"schemas": _schemas()}}
