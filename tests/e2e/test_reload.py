"""Changing the configuration of a running server: by SIGHUP and by HTTP, with a server that is scraping meanwhile."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.prometheus import Exporter
from tests.e2e.server import Server

SECONDS = 60.0
ADMIN, READ, NEW = "admin-token-0123456789", "read-token-0123456789", "other-token-0123456789"


def until(done: Callable[[], object], seconds: float = SECONDS) -> Any:
    end = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.05)
    return found


class Config:
    """The configuration file of a server, and its changes."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "meshpulse.yml"
        self.data: dict[str, Any] = {
            "storage": {"free_bytes_min": 0, "free_fraction_min": 0},
            "server": {"lifecycle": True},
            "global": {"scrape_interval": "1s"},
            "health": {"interval": "200ms"},
        }

    def text(self) -> str:
        return json.dumps(self.data, indent=1)

    def write(self) -> None:
        self.file.write_text(self.text())


@pytest.fixture
def exporters() -> Iterator[list[Exporter]]:
    made = [Exporter(1), Exporter(2)]
    yield made
    for exporter in made:
        exporter.end()


def reload(server: Server, headers: dict[str, str] | None = None) -> tuple[int, str]:
    reply = server.request("POST", "/-/reload", b"", headers)
    return reply.status, reply.body.decode()


def job(name: str, *exporters: Exporter, **more: Any) -> dict[str, Any]:
    return {"job_name": name, "static_configs": [{"targets": [e.target for e in exporters]}], **more}


def page_of(n: int) -> bytes:
    return "".join(f'm{{i="{i}"}} {i}\n' for i in range(n)).encode()


def targets(server: Server, **params: str) -> dict[str, Any]:
    data: dict[str, Any] = server.get("/api/v1/targets", **params).json()["data"]
    return data


def test_a_reload_under_scraping(tmp_path: Path, exporters: list[Exporter]) -> None:
    """A target that stays loses no scrape and gets no stale marker; one that goes gets one; a bad file does nothing."""
    config = Config(tmp_path)
    stays, goes = exporters
    config.data["scrape_configs"] = [job("stays", stays), job("goes", goes)]
    with Server(tmp_path, config.text()) as server:
        until(lambda: len(server.query("up == 1")) == 2)
        begin = time.time()

        config.data["scrape_configs"] = [job("stays", stays), job("new", goes, metrics_path="/new")]
        config.write()
        assert reload(server) == (200, "changed: scrape_configs\n")
        until(lambda: server.query('up{job="new"} == 1'))
        assert server.query('up{job="goes"}') == []
        assert server.query('demo_temperature{job="goes"}') == []
        assert [t["scrapePool"] for t in targets(server)["activeTargets"]] == ["new", "stays"]
        assert server.get("/api/v1/scrape_pools").json()["data"] == {"scrapePools": ["new", "stays"]}

        # many reloads, good ones and bad ones, by signal and by HTTP
        for i in range(6):
            config.data["scrape_configs"][1]["metrics_path"] = f"/new{i}"
            config.write()
            os.kill(server.pid, signal.SIGHUP)
            until(lambda i=i: f"/new{i}" in targets(server, scrapePool="new")["activeTargets"][0]["scrapeUrl"])
        good = config.text()
        config.file.write_text(good.replace('"job_name": "new"', '"job_nam": "new"'))
        status, said = reload(server)
        assert status == 500
        assert said.startswith("failed to reload config: ")
        assert ".job_nam: unknown key" in said
        assert "line " in said
        assert server.metric("meshpulse_config_last_reload_successful") == 0
        runtime = server.get("/api/v1/status/runtimeinfo").json()["data"]
        assert runtime["reloadConfigSuccess"] is False
        os.kill(server.pid, signal.SIGHUP)
        until(lambda: server.log.count("configuration not reloaded") == 2)
        assert len(targets(server)["activeTargets"]) == 2
        config.write()
        assert reload(server) == (200, "changed: nothing\n")
        assert server.metric("meshpulse_config_last_reload_successful") == 1
        assert server.metric("meshpulse_config_last_reload_success_timestamp_seconds") >= begin
        assert server.get("/api/v1/status/runtimeinfo").json()["data"]["lastConfigTime"] > runtime["lastConfigTime"]

        until(lambda: time.time() > begin + 5)
        # each page that was fetched is stored, however it ended: none was given up for a reload
        (series,) = server.query('up{job="stays"}[10m]')
        assert abs(len(series["values"]) - len(stays.pages)) <= 1
        assert server.query('count_over_time(demo_sometimes{job="stays"}[10m])')
        (absent,) = server.query('present_over_time(up{job="goes"}[10m])')
        assert absent["value"][1] == "1"


def test_what_changes_at_once_and_what_waits(tmp_path: Path) -> None:
    config = Config(tmp_path)
    config.data |= {
        "auth": {"tokens": [{"name": "a", "token": ADMIN, "roles": ["admin"]}]},
        "tenants": {"auto_create": True, "overrides": {"small": {"active_series_max": 8}}},
    }
    admin = {"Authorization": f"Bearer {ADMIN}"}
    with Server(tmp_path, config.text()) as server:
        assert reload(server, admin) == (200, "changed: nothing\n")
        small = {**admin, "X-Scope-OrgID": "small"}
        assert server.request("POST", "/api/v1/import/prometheus", page_of(2), small).status == 204
        assert server.get("/metrics", {"Authorization": f"Bearer {READ}"}).status == 401
        assert server.request("POST", "/-/reload", b"", {"Authorization": f"Bearer {READ}"}).status == 401

        secret = tmp_path / "secret"
        secret.write_text(READ)
        config.data["auth"]["tokens"].append({"name": "r", "token_file": str(secret), "roles": ["read"]})
        config.data["limits"] = {"query": {"series_max": 20}, "series": {"labels_max": 7}}
        config.data["query"] = {"lookback_delta": "1m", "workers": 1}
        config.data["storage"]["retention"] = "3d"
        config.data["storage"]["shards"] = 2
        config.data["log"] = {"level": "warning"}
        config.data["tenants"]["overrides"]["small"]["active_series_max"] = 5
        config.data["tenants"]["overrides"]["other"] = {"active_series_max": 6}
        config.data["server"]["drain"] = "1s"
        config.data["health"]["policies"] = [{"name": "cart", "service": "cart*", "mode": "enforce"}]
        config.data["scrape_configs"] = [
            {
                "job_name": "one",
                "basic_auth": {"username": "u", "password": "hush-hush"},
                "static_configs": [{"targets": ["127.0.0.1:1"]}],
            }
        ]
        config.write()
        status, said = reload(server, admin)
        changed, waiting = said.splitlines()
        assert status == 200
        assert changed == (
            "changed: auth.tokens, storage.retention, limits.series.labels_max, limits.query.series_max, "
            "tenants.overrides, query.lookback_delta, health.policies, log.level, scrape_configs"
        )
        assert waiting == "waiting for a restart: server.drain, storage.shards, query.workers"
        read = {"Authorization": f"Bearer {READ}"}
        page = server.get("/api/v1/status/config", read).json()["data"]["yaml"]
        for words in ("hush-hush", ADMIN, READ):
            assert words not in page
        assert page.count("<secret>") == 2
        assert "retention: 3d" in page
        assert "shards: 1" in page  # what is in force
        assert "series_max: 20" in page
        policies = server.get("/api/v1/health/policies", read).json()["data"]["policies"]
        assert [(p["name"], p["mode"]) for p in policies] == [("cart", "enforce")]
        events = server.get("/api/v1/health/events", read).json()["data"]["events"]
        assert [e["by"] for e in events if e["type"] == "policy_changed"] == ["configuration"]
        assert "configuration reloaded" not in server.log.partition("changed=['auth.tokens'")[2]  # said at info no more

        # a secret in a file changes without the configuration
        secret.write_text(NEW)
        assert reload(server, admin)[1].startswith("changed: auth.tokens\nwaiting for a restart: server.drain, ")
        assert server.get("/metrics", read).status == 401
        assert server.get("/metrics", {"Authorization": f"Bearer {NEW}"}).status == 200

        # a tenant that is there already has its new limit, one that is new as well
        for name, kept in (("small", 5), ("other", 6)):
            tenant = {**admin, "X-Scope-OrgID": name}
            said = server.request("POST", "/api/v1/import/prometheus", page_of(9), tenant).body.decode()
            assert f"too many active series of this tenant: {9 - kept}" in said
            assert len(server.request("GET", "/api/v1/series?match[]=m", None, tenant).json()["data"]) == kept

        reply = server.request("PUT", "/-/quit", b"", admin)
        assert (reply.status, reply.body) == (200, b"Requesting termination... Goodbye!")
        assert server.process.wait(60) == 0


def test_nobody_takes_the_last_token_away_from_an_open_port(tmp_path: Path) -> None:
    config = Config(tmp_path)
    config.data["auth"] = {"tokens": [{"name": "a", "token": ADMIN, "roles": ["admin"]}]}
    config.data["server"]["lifecycle"] = False
    flags = ("--web.enable-lifecycle", "--listen", "0.0.0.0:0")
    admin = {"Authorization": f"Bearer {ADMIN}"}
    server = Server(tmp_path, config.text(), flags)
    until(lambda: "listening" in server.log)
    server.port = int(server.log.partition("://0.0.0.0:")[2].split()[0])
    try:
        server.wait_ready()
        config.data["auth"] = {"tokens": []}
        config.write()
        status, said = reload(server, admin)
        assert (status, "the last token may not go" in said) == (500, True)
        assert server.get("/metrics").status == 401
        assert server.end() == 0
    finally:
        server.kill()


def test_lifecycle_is_off_unless_wanted_and_signals_work_all_the_same(tmp_path: Path) -> None:
    config = Config(tmp_path)
    config.data["server"]["lifecycle"] = False
    server = Server(tmp_path, config.text())
    server.wait_listening()
    os.kill(server.pid, signal.SIGHUP)  # not ready yet: made up for afterwards, or ready already
    try:
        server.wait_ready()
        until(lambda: "configuration reloaded" in server.log)
        for path in ("/-/reload", "/-/quit"):
            reply = server.request("POST", path)
            assert (reply.status, reply.body) == (403, b"Lifecycle API is not enabled.")
            reply = server.get(path)
            assert (reply.status, reply.body) == (405, b"Only POST or PUT requests allowed")
        assert server.end() == 0
    finally:
        server.kill()
