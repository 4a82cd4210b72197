"""Targets side by side with Debian's Prometheus: the same configuration, the same targets and the same errors."""

from __future__ import annotations

import itertools
import json
import os
import random
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import certificate
from tests.e2e.prometheus import Exporter, Prometheus, ask, need
from tests.e2e.server import Server

SECONDS = 60.0
OURS = {"storage": {"free_bytes_min": 0, "free_fraction_min": 0}, "health": {"enabled": False}}


def until(done: Callable[[], object]) -> Any:
    end = time.monotonic() + SECONDS
    while not (found := done()):
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def exporter() -> Iterator[Exporter]:
    made = Exporter()
    yield made
    made.end()


def active(url: str, *more: str) -> list[dict[str, Any]]:
    """All that both must agree on; the times of scrapes are their own."""
    kept = (*more, "labels", "scrapePool", "scrapeUrl", "globalUrl", "scrapeInterval", "scrapeTimeout")
    return sorted(({k: t[k] for k in kept} for t in ask(url, "targets")["activeTargets"]), key=repr)


def dropped(url: str) -> list[str]:
    """Addresses of what was dropped."""
    found = ask(url, "targets", state="dropped")["droppedTargets"]
    return sorted(target["discoveredLabels"]["__address__"] for target in found)


WORDS = ("web", "db", "Cart", "a", "", "zone_b")


def random_rule(rng: random.Random) -> dict[str, Any]:
    """A rule that Prometheus 2.42 and 3 read alike: names of labels stay letters."""
    names = ["zone", "app", "__meta_dc", "__meta_kind", "__tmp_x", "job", "absent"]
    regexes = [
        "(.*)",
        "(.+)",
        "",
        "web",
        "(w)(eb)?",
        "(?P<first>[a-z]+)(;.*)?",
        "(.*);(.*)",
        "[a-z]+",
        "Cart|db",
        ".*b",
    ]
    action = rng.choice(
        ["replace"] * 8
        + ["keep", "drop", "hashmod", "labelmap", "labeldrop", "lowercase", "Uppercase", "keepequal", "dropequal"]
    )
    rule: dict[str, Any] = {"action": action}
    if action in ("labelmap", "labeldrop"):
        rule["regex"] = rng.choice(["__meta_(.*)", "(z)one", "a(.+)", "absent", "__tmp_.*"])
        if action == "labelmap":
            rule["replacement"] = rng.choice(["$1", "m_${1}", "x"])
        return rule
    rule["source_labels"] = rng.sample(names, rng.randrange(1, 4))
    if action == "hashmod":
        return rule | {"modulus": rng.choice([1, 7, 2**63 + 9]), "target_label": "hash"}
    if action in ("keepequal", "dropequal"):
        return rule | {"target_label": rng.choice(names)}
    if action in ("lowercase", "Uppercase"):
        return rule | {"target_label": rng.choice(["case", "zone"])}
    if rng.random() < 0.8:
        rule["regex"] = rng.choice(regexes)
    if rng.random() < 0.3:
        rule["separator"] = rng.choice(["", "-", ";"])
    if action in ("keep", "drop"):  # mostly one that lets some through
        return rule | {"source_labels": ["zone"], "regex": rng.choice(["web|db|Cart|a", "web"])}
    target = rng.choice(["t_${1}", "$2", "zone", "app", "new", "__tmp_x", "__param_p", "instance", "${first}"])
    if target in ("t_${1}", "$2"):
        rule["regex"] = rng.choice(["(w)(eb)?.*", "([A-Za-z_]*)[;-]?([A-Za-z_]*).*"])
    return rule | {"target_label": target, "replacement": rng.choice(["$1", "$2-$1", "${first}x", "fix", "", "$$1"])}


def random_job(rng: random.Random, number: int) -> dict[str, Any]:
    groups = [
        {
            "targets": [f"127.0.0.1:{port}" for port in rng.sample(range(1, 9), 3)],
            "labels": {name: rng.choice(WORDS) for name in ("zone", "app", "__meta_dc", "__meta_kind")},
        }
        for _ in range(3)
    ]
    rules = [random_rule(rng) for _ in range(rng.randrange(1, 7))]
    return {"job_name": f"random{number}", "static_configs": groups, "relabel_configs": rules}


def test_the_same_rules_make_the_same_targets(tmp_path: Path) -> None:
    rng = random.Random(7)
    config = {
        "global": {"scrape_interval": "1h", "scrape_timeout": "5s"},
        "scrape_configs": [random_job(rng, i) for i in range(60)],
    }
    theirs = Prometheus(tmp_path, "", "")
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))
    with theirs, Server(tmp_path, json.dumps({**OURS, **config})) as ours:
        n = 60 * 9

        def all_there(url: str) -> bool:
            found = ask(url, "targets")
            return len(found["activeTargets"]) + len(found["droppedTargets"]) > n * 0.9

        until(lambda: all_there(theirs.url) and all_there(ours.url))
        # not their labels before relabelling: 2.42 lets its rules change these
        assert active(ours.url) == active(theirs.url)
        assert dropped(ours.url) == dropped(theirs.url)
        assert len(active(ours.url)) > 100
        assert len(dropped(ours.url)) > 50


def random_series_rule(rng: random.Random) -> dict[str, Any]:
    """A rule over the labels of the exporter's series that both read alike."""
    names = ["__name__", "code", "path", "room", "job", "absent"]
    action = rng.choice(
        ["replace"] * 5 + ["keep", "drop", "hashmod", "labelmap", "labeldrop", "labelkeep", "lowercase", "dropequal"]
    )
    match action:
        case "labelmap":
            return {"action": action, "regex": "(co|ro)(.*)", "replacement": rng.choice(["x_$2", "all", "room"])}
        case "labeldrop":
            return {"action": action, "regex": rng.choice(["code", "p.*", "absent", "instance"])}
        case "labelkeep":
            return {"action": action, "regex": "__name__|job|code|path"}
        case "keep" | "drop":
            regex = rng.choice(["demo_requests_total;200", "demo_.*;.*", "demo_temperature;"])
            return {"action": action, "source_labels": ["__name__", "code"], "regex": regex}
    rule: dict[str, Any] = {"action": action, "source_labels": rng.sample(names, rng.randrange(1, 3))}
    rule["target_label"] = rng.choice(["code", "path", "new", "__tmp"])
    if action == "hashmod":
        rule["modulus"] = rng.choice([2, 1000])
    if action == "replace":
        rule["target_label"] = rng.choice(["code", "new", "__name__", "instance", "t_${1}"])
        rule["regex"] = rng.choice(["([a-z]+).*", "(demo)_(.*)", "([0-9]).*", "(.*)"])
        if rule["target_label"] in ("t_${1}", "__name__"):
            rule["regex"] = "([a-z]+)_.*"
        rule["replacement"] = rng.choice(["$1", "y_${1}", "fix"])
    return rule


def test_the_same_rules_make_the_same_series(tmp_path: Path, exporter: Exporter) -> None:
    rng = random.Random(11)
    first = {"action": "drop", "source_labels": ["__name__"], "regex": "demo_seconds_bucket|demo_sometimes"}
    jobs = [
        {
            "job_name": f"job{i}",
            "static_configs": [{"targets": [exporter.target]}],
            "metric_relabel_configs": [first, *(random_series_rule(rng) for _ in range(rng.randrange(1, 6)))],
        }
        for i in range(40)
    ]
    config = {"global": {"scrape_interval": "5s", "scrape_timeout": "5s"}, "scrape_configs": jobs}
    theirs = Prometheus(tmp_path, "", "")
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))

    def series(url: str) -> dict[str, list[tuple[tuple[str, str], ...]]]:
        """By job; what the scrape itself writes is as with any job."""
        found: dict[str, list[tuple[tuple[str, str], ...]]] = {f"job{i}": [] for i in range(40)}
        for labels in ask(url, "series", **{"match[]": '{job=~"job.*",__name__!~"up|scrape_.*"}'}):
            found[labels["job"]].append(tuple(sorted(labels.items())))
        return {job: sorted(rows) for job, rows in found.items()}

    def samples(url: str) -> dict[str, str]:
        """What each scrape kept."""
        answer = ask(url, "query", query="scrape_samples_post_metric_relabeling")["result"]
        return {row["metric"]["job"]: row["value"][1] for row in answer}

    with theirs, Server(tmp_path, json.dumps({**OURS, **config})) as ours:
        until(lambda: all(len(samples(url)) == 40 for url in (ours.url, theirs.url)))
        mine, other = series(ours.url), series(theirs.url)
        for job in jobs:
            name = str(job["job_name"])
            assert mine[name] == other[name], job["metric_relabel_configs"]
        assert samples(ours.url) == samples(theirs.url)
        assert sum(map(len, mine.values())) > 200
        assert len({len(rows) for rows in mine.values()}) > 3


class Lists:
    """A server of target lists, for one who knows the token."""

    def __init__(self) -> None:
        self.groups: list[dict[str, Any]] = []
        lists = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                known = self.headers["Authorization"] == "Bearer list-token"
                body = json.dumps(lists.groups).encode()
                self.send_response(200 if known else 401)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/list"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def end(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_discovered_targets_come_and_go_as_in_prometheus(tmp_path: Path, exporter: Exporter) -> None:
    lists = Lists()
    lists.groups = [{"targets": [exporter.target], "labels": {"from": "http", "__meta_extra": "e"}}]
    port = exporter.target.rpartition(":")[2]
    file, token = tmp_path / "list.json", tmp_path / "token"
    token.write_text("list-token\n")

    def write(*groups: dict[str, Any]) -> None:
        new = tmp_path / "list.new"
        new.write_text(json.dumps(groups))
        new.rename(file)

    stays = {"targets": [exporter.target], "labels": {"kind": "stays"}}
    goes = {"targets": [exporter.target, "127.0.0.1:1"], "labels": {"kind": "goes"}}
    write(stays, goes)
    (tmp_path / "more.yml").write_text(f"- targets: ['{exporter.target}']\n  labels: {{n: 7, kind: yaml}}\n")
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        "scrape_configs": [
            {
                "job_name": "files",
                "params": {"a": ["1", "two words"], "b": ["ü"]},
                "file_sd_configs": [{"files": ["*.json", "more.yml"]}],  # beside the configuration file
                "relabel_configs": [
                    {"source_labels": ["__meta_filepath"], "regex": ".*/(.*)", "target_label": "file"},
                    {"target_label": "__metrics_path__", "replacement": "/${1}x"},
                    {"source_labels": ["kind"], "target_label": "__param_a"},
                    {
                        "source_labels": ["kind"],
                        "regex": "yaml",
                        "target_label": "__scrape_interval__",
                        "replacement": "3s",
                    },
                ],
            },
            {
                "job_name": "http",
                "http_sd_configs": [
                    {
                        "url": lists.url,
                        "refresh_interval": "1s",
                        "authorization": {"type": "Bearer", "credentials_file": "token"},
                    },
                ],
                "relabel_configs": [{"action": "labelmap", "regex": "__meta_(url|extra)", "replacement": "meta_$1"}],
            },
        ],
    }
    theirs = Prometheus(tmp_path, "", "")
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))
    try:
        with theirs, Server(tmp_path, json.dumps({**OURS, **config})) as ours:
            both = (ours.url, theirs.url)
            until(lambda: all(len(active(url)) == 5 for url in both))
            assert active(ours.url, "discoveredLabels") == active(theirs.url, "discoveredLabels")
            assert {t["labels"].get("n") for t in active(ours.url)} == {None, "7"}
            until(lambda: len(ours.query('up{kind=~"stays|goes|yaml"} == 1')) == 3)
            begin = time.time()

            write(stays, {"targets": [f"localhost:{port}"], "labels": {"kind": "new"}})
            lists.groups = []
            until(lambda: all(len(active(url)) == 3 for url in both))
            assert active(ours.url) == active(theirs.url)
            for gone in ('kind="goes"', 'from="http"'):  # stale, long before the lookback would let go of them
                assert ours.query(f"up{{{gone}}}") == []
                assert ours.query(f"demo_temperature{{{gone}}}") == []
                assert ours.query(f"count_over_time(up{{{gone}}}[10m])")
            until(lambda: len(ours.query('up{kind="new"} == 1')) == 1)
            time.sleep(max(0.0, begin + 3 - time.time()))
            (kept,) = ours.query('up{kind="stays"}[10m]')
            times = [float(t) for t, _ in kept["values"]]
            assert max(b - a for a, b in itertools.pairwise(times)) < 30

            file.write_text("[{")  # unreadable: what was there stays, in both
            until(lambda: "list.json cannot be read" in ours.log)
            assert len(active(ours.url)) == 3
            file.unlink()
            until(lambda: all(len(active(url)) == 1 for url in both))
            assert active(ours.url) == active(theirs.url)
    finally:
        lists.end()


NGINX = """
daemon off; master_process off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
  access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{
    listen 127.0.0.1:{port} ssl; ssl_certificate {cert}; ssl_certificate_key {key};
    default_type "text/plain; version=0.0.4";
    location = /basic {{ auth_basic "metrics"; auth_basic_user_file {folder}/users; alias {folder}/page; }}
    location = /bearer {{ if ($http_authorization != "Bearer tell-me") {{ return 401; }} alias {folder}/page; }}
    location = /moved {{ return 302 /bearer; }}
    location = /open {{ alias {folder}/page; }}
  }}
}}
"""


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Address of an nginx that speaks TLS and asks who one is, and the file of its authority."""
    binary = need("nginx")
    folder = tmp_path / "nginx"
    folder.mkdir()
    authority = certificate(folder, "authority")
    cert, key = certificate(folder, "server", authority)
    (folder / "page").write_text("# TYPE served counter\nserved 7\n")
    (folder / "users").write_text("prom:{PLAIN}secret\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port, cert=cert, key=key))
    said = (folder / "said").open("wb")
    process = subprocess.Popen(
        [binary, "-p", folder, "-c", folder / "nginx.conf"], stdin=subprocess.DEVNULL, stdout=said, stderr=said
    )

    def listens() -> bool:
        assert process.poll() is None, (folder / "said").read_text() + (folder / "error.log").read_text()
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    try:
        until(listens)
        yield f"127.0.0.1:{port}", authority[0]
    finally:
        process.terminate()
        process.wait(30)
        said.close()


def test_nginx_asks_who_we_are(tmp_path: Path, nginx: tuple[str, Path]) -> None:
    address, authority = nginx
    password = tmp_path / "password"
    password.write_text("secret\n")
    trust = {"tls_config": {"ca_file": str(authority)}}
    at_nginx = [{"targets": [address]}]
    jobs: dict[str, tuple[str, dict[str, Any]]] = {
        "password": ("/basic", {**trust, "basic_auth": {"username": "prom", "password": "secret"}}),
        "password_file": ("/basic", {**trust, "basic_auth": {"username": "prom", "password_file": "password"}}),
        "wrong": ("/basic", {**trust, "basic_auth": {"username": "prom", "password": "guess"}}),
        "nobody": ("/basic", trust),
        "bearer": ("/bearer", {**trust, "authorization": {"credentials": "tell-me"}}),
        "follows": ("/moved", {**trust, "authorization": {"credentials": "tell-me"}}),
        "stays": ("/moved", {**trust, "authorization": {"credentials": "tell-me"}, "follow_redirects": False}),
        "stranger": ("/open", {}),
        "careless": ("/open", {"tls_config": {"insecure_skip_verify": True}}),
        "misnamed": ("/open", {"tls_config": {"ca_file": str(authority), "server_name": "elsewhere"}}),
        "named": ("/open", {"tls_config": {"ca_file": str(authority), "server_name": "127.0.0.1"}}),
        "fileless": ("/open", {**trust, "authorization": {"credentials_file": "absent"}}),
    }
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        "scrape_configs": [
            {"job_name": name, "scheme": "https", "metrics_path": path, "static_configs": at_nginx, **how}
            for name, (path, how) in jobs.items()
        ],
    }
    theirs = Prometheus(tmp_path, "", "")
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))
    with theirs, Server(tmp_path, json.dumps({**OURS, **config})) as ours:

        def health(url: str) -> dict[str, tuple[str, str]]:
            found = {t["scrapePool"]: (t["health"], t["lastError"]) for t in ask(url, "targets")["activeTargets"]}
            known = len(found) == len(jobs) and all(state != "unknown" for state, _ in found.values())
            return found if known else {}

        mine, other = until(lambda: health(ours.url)), until(lambda: health(theirs.url))
        assert {name: state for name, (state, _) in mine.items()} == {name: state for name, (state, _) in other.items()}
        up = {"password", "password_file", "bearer", "follows", "careless", "named"}
        assert {name for name, (state, _) in mine.items() if state == "up"} == up
        for name in ("wrong", "nobody", "stays"):  # the server's word, in the same words
            assert mine[name][1] == other[name][1]
        assert "CERTIFICATE_VERIFY_FAILED" in mine["stranger"][1]
        assert "Hostname mismatch" in mine["misnamed"][1] or "IP address mismatch" in mine["misnamed"][1]
        assert mine["fileless"][1].startswith(f"unable to read file {tmp_path}/absent")
        (served,) = ours.query('served{job="password_file"}')
        assert served["value"][1] == "7"
        page = ours.get("/").body.decode()
        assert "<h2>Targets: 6 of 12 up</h2>" in page
        assert page.index("<td>down</td><td>fileless</td>") < page.index("<td>up</td><td>bearer</td>")
        assert "HTTP status 401 Unauthorized" in page
        password.write_text("forgotten")  # the file is read again
        until(lambda: health(ours.url)["password_file"][0] == "down")
        password.write_text("secret")
        until(lambda: health(ours.url)["password_file"][0] == "up")
        assert "secret" not in ours.get("/api/v1/status/config").body.decode().replace("<secret>", "")
        assert os.path.getsize(tmp_path / "server.log") < 100_000  # a failure is said once, not at every scrape
