"""Tokens, roles and tenants: what is refused, how, and that it is counted."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshpulse.auth import PUBLIC, Guard, Role, Token, role_needed
from meshpulse.config import ConfigError, parse_config, read_tokens
from meshpulse.pages import create_pages
from meshpulse.runtime import Runtime
from meshpulse.server import Gateway
from meshpulse.startup import Progress
from tests.meshpulse.test_server import call, hot
from tsdb.errors import Reason
from tsdb.tally import Tally

SECRETS = {name: f"{name}-secret-{'x' * 20}" for name in ("reader", "writer", "actor", "boss", "teamster")}
TOKENS = [
    Token.of("reader", SECRETS["reader"], [Role.READ]),
    Token.of("writer", SECRETS["writer"], [Role.WRITE]),
    Token.of("actor", SECRETS["actor"], [Role.ACTUATE]),
    Token.of("boss", SECRETS["boss"], [Role.ADMIN]),
    Token.of("teamster", SECRETS["teamster"], [Role.READ, Role.WRITE], ["team-a", "team-b"]),
]


def scope(method: str, path: str, **headers: str) -> dict[str, Any]:
    pairs = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return {"type": "http", "method": method, "path": path, "headers": pairs}


def status(guard: Guard, method: str, path: str, name: str = "", **headers: str) -> int:
    if name:
        headers["authorization"] = f"Bearer {SECRETS[name]}"
    refusal = guard.refuse(scope(method, path, **headers))
    return refusal.status if refusal else 200


@pytest.fixture
def tally() -> Tally:
    return Tally()


@pytest.fixture
def guard(tally: Tally) -> Guard:
    return Guard(TOKENS, tally)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/api/v1/query", {"reader"}),
        ("POST", "/api/v1/query_range", {"reader"}),
        ("POST", "/api/v1/read", {"reader"}),
        ("GET", "/federate", {"reader"}),
        ("GET", "/metrics", {"reader"}),
        ("GET", "/", {"reader"}),
        ("GET", "/nowhere", {"reader"}),
        ("GET", "/api/v1/status/config", {"reader"}),
        ("POST", "/api/v1/write", {"writer"}),
        ("POST", "/api/v1/import/prometheus", {"writer"}),
        ("POST", "/api/v1/otlp/v1/metrics", {"writer"}),
        ("POST", "/loki/api/v1/push", {"writer"}),
        ("GET", "/loki/api/v1/query_range", {"reader"}),
        ("GET", "/api/v1/health/gates/checkout-7", {"reader"}),
        ("POST", "/api/v1/health/overrides", {"actor"}),
        ("POST", "/api/v1/admin/tsdb/snapshot", set()),
        ("POST", "/loki/api/v1/delete", set()),
        ("POST", "/-/reload", set()),
        ("POST", "/-/quit", set()),
    ],
)
def test_roles(guard: Guard, method: str, path: str, allowed: set[str]) -> None:
    for name in ("reader", "writer", "actor", "boss"):
        expected = 200 if name in allowed or name == "boss" else 403
        assert status(guard, method, path, name) == expected, name
    assert status(guard, method, path) == 401


@pytest.mark.parametrize("path", sorted(PUBLIC))
def test_probes_need_no_token(guard: Guard, path: str) -> None:
    assert status(guard, "GET", path) == 200


def test_a_preflight_needs_no_token(guard: Guard) -> None:
    assert status(guard, "OPTIONS", "/api/v1/query") == 200


def test_without_tokens_everybody_may_do_everything(tally: Tally) -> None:
    assert status(Guard([], tally), "POST", "/api/v1/admin/tsdb/snapshot") == 200


@pytest.mark.parametrize(
    ("authorization", "expected"),
    [
        (f"Bearer {SECRETS['reader']}", 200),
        (f"bearer   {SECRETS['reader']} ", 200),
        (f"BEARER {SECRETS['reader']}", 200),
        ("Basic " + base64.b64encode(f"anybody:{SECRETS['reader']}".encode()).decode(), 200),
        ("Basic " + base64.b64encode(f"{SECRETS['reader']}:".encode()).decode(), 401),
        ("Basic ???", 401),
        ("Basic", 401),
        ("Bearer", 401),
        ("Bearer ", 401),
        (f"Bearer {SECRETS['reader'][:-1]}", 401),
        (f"Bearer {SECRETS['reader']}x", 401),
        (f"Digest {SECRETS['reader']}", 401),
        (SECRETS["reader"], 401),
        ("", 401),
    ],
)
def test_spellings(guard: Guard, authorization: str, expected: int) -> None:
    assert status(guard, "GET", "/api/v1/query", authorization=authorization) == expected


@given(st.binary(max_size=40))
def test_no_header_breaks_the_guard(authorization: bytes) -> None:
    request = scope("GET", "/api/v1/query")
    for header in (authorization, b"Basic " + authorization, b"Bearer " + authorization):
        request["headers"] = [(b"authorization", header)]
        refusal = Guard(TOKENS, Tally()).refuse(request)
        assert refusal is not None
        assert refusal.status == 401


def test_tenants(guard: Guard) -> None:
    for tenant, expected in (("team-a", 200), ("team-b", 200), ("team-c", 403), ("default", 403)):
        assert status(guard, "GET", "/api/v1/query", "teamster", x_scope_orgid=tenant) == expected
    assert status(guard, "GET", "/api/v1/query", "teamster") == 403  # no header is the tenant default
    assert status(guard, "GET", "/api/v1/query", "reader", x_scope_orgid="team-c") == 200


def test_refusals_are_counted(guard: Guard, tally: Tally) -> None:
    status(guard, "GET", "/api/v1/query")
    status(guard, "GET", "/api/v1/query", authorization="Bearer wrong")
    status(guard, "POST", "/api/v1/write", "reader")
    assert tally.snapshot() == {Reason.UNAUTHENTICATED: 2, Reason.FORBIDDEN: 1}


def test_the_gateway_refuses_before_it_looks(tmp_path: Path) -> None:
    progress = Progress()
    runtime = Runtime(parse_config("", {"storage": {"path": tmp_path}}), progress)
    gateway = Gateway(progress, create_pages(runtime), Guard(TOKENS, runtime.tally))
    gateway.hot = {"/api/v1/write": hot}
    refused = call(gateway, "POST", "/api/v1/write")
    assert (refused.status, refused.headers["www-authenticate"]) == (401, 'Bearer realm="meshpulse"')
    assert b"token" in refused.body
    wrong = call(gateway, "POST", "/api/v1/write", {"Authorization": f"Bearer {SECRETS['reader']}"})
    assert (wrong.status, "www-authenticate" in wrong.headers) == (403, False)
    assert wrong.body == b"token reader has not the role write\n"
    assert call(gateway, "POST", "/api/v1/write", {"Authorization": f"Bearer {SECRETS['writer']}"}).body == b"hot"
    page = call(gateway, "GET", "/metrics", {"Authorization": f"Bearer {SECRETS['reader']}"}).body.decode()
    assert 'meshpulse_rejected_total{reason="unauthenticated"} 1.0' in page
    assert 'meshpulse_rejected_total{reason="forbidden"} 1.0' in page


def test_a_websocket_needs_a_token_too(tmp_path: Path) -> None:
    progress = Progress()
    runtime = Runtime(parse_config("", {"storage": {"path": tmp_path}}), progress)
    gateway = Gateway(progress, create_pages(runtime), Guard(TOKENS, runtime.tally))

    def answered(name: str) -> int:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        authorization = f"Bearer {SECRETS.get(name, 'nobody')}".encode()
        request = {"type": "websocket", "path": "/loki/api/v1/tail", "extensions": {"websocket.http.response": {}}}
        asyncio.run(gateway(request | {"headers": [(b"authorization", authorization)]}, send, send))
        return int(sent[0]["status"])

    assert (answered("nobody"), answered("writer"), answered("reader")) == (401, 403, 404)


# The configuration


def test_tokens_are_read(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"  {SECRETS['writer']}\n")
    config = parse_config(
        "auth:\n  tokens:\n"
        f"    - {{name: grafana, token: {SECRETS['reader']}, roles: [read]}}\n"
        f"    - {{name: agent, token_file: {file}, roles: [write, read], tenants: [a]}}\n"
    )
    assert read_tokens(config) == [
        Token.of("grafana", SECRETS["reader"], [Role.READ]),
        Token.of("agent", SECRETS["writer"], [Role.READ, Role.WRITE], ["a"]),
    ]
    assert SECRETS["reader"] not in repr(config)
    assert SECRETS["reader"] not in config.model_dump_json()


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("{name: a, roles: [read]}", "either token or token_file"),
        ("{name: a, token: 0123456789abcdef, token_file: x, roles: [read]}", "either token or token_file"),
        ("{name: a, token: short, roles: [read]}", "too short"),
        ("{name: a, token: 0123456789abcdef, roles: []}", "roles"),
        ("{name: a, token: 0123456789abcdef, roles: [king]}", "'read', 'write', 'actuate' or 'admin'"),
        ("{name: a, token: 0123456789abcdef, roles: [read], extra: 1}", "unknown key"),
    ],
)
def test_mistakes_name_their_line(token: str, words: str) -> None:
    with pytest.raises(ConfigError, match="line 3") as caught:
        parse_config(f"auth:\n  tokens:\n    - {token}\n")
    assert words in str(caught.value)
    assert "short" not in str(caught.value).replace("too short", "")


def test_names_and_secrets_are_unique(tmp_path: Path) -> None:
    one = "{name: a, token: 0123456789abcdef, roles: [read]}"
    with pytest.raises(ConfigError, match="used twice"):
        parse_config(f"auth: {{tokens: [{one}, {one}]}}")
    with pytest.raises(ConfigError, match="secret of another"):
        read_tokens(parse_config(f"auth: {{tokens: [{one}, {one.replace('name: a', 'name: b')}]}}"))


def test_a_token_file_must_hold_a_secret(tmp_path: Path) -> None:
    config = parse_config(f"auth: {{tokens: [{{name: a, token_file: {tmp_path}/t, roles: [read]}}]}}")
    with pytest.raises(ConfigError, match="No such file"):
        read_tokens(config)
    (tmp_path / "t").write_text("\n")
    with pytest.raises(ConfigError, match="holds 0 characters"):
        read_tokens(config)


@pytest.mark.parametrize("path", ["/api/v1/query", "/loki/api/v1/labels", "/api/v1/health/endpoints"])
def test_reading_is_the_rule(path: str) -> None:
    assert role_needed("GET", path) is Role.READ


def test_tokens_may_change_under_way() -> None:
    guard = Guard(TOKENS, Tally())
    assert status(guard, "GET", "/metrics", "reader") == 200
    assert not guard.replace(list(TOKENS))
    assert guard.replace([TOKENS[3]])
    assert status(guard, "GET", "/metrics", "reader") == 401
    assert status(guard, "GET", "/metrics", "boss") == 200
