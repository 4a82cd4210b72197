"""Unmodified readers: promtool, vmalert (which also writes back) and prometheus-api-client."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.e2e.bodies import write_body
from tests.e2e.prometheus import need
from tests.e2e.server import Server
from tests.house.test_lint import ROOT

STEP_MS = 5000
STEPS = 60


@dataclass
class Data:
    server: Server
    begin_ms: int
    end_ms: int

    @property
    def end(self) -> float:
        return self.end_ms / 1000


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Data]:
    """Two counters and a gauge, the last sample a few seconds ago."""
    with Server(tmp_path_factory.mktemp("clients")) as server:
        end = time.time_ns() // 1_000_000 // STEP_MS * STEP_MS
        times = [end - STEP_MS * i for i in range(STEPS, -1, -1)]
        series = [
            ({"__name__": "client_requests_total", "code": code}, [(t, float(k * i)) for i, t in enumerate(times)])
            for k, code in enumerate(("200", "500"), 1)
        ]
        series.append(({"__name__": "client_up", "job": "a"}, [(t, 1.0) for t in times]))
        assert server.write(write_body(series)).status == 204
        yield Data(server, times[0], end)


def promtool(*words: str) -> list[str]:
    done = subprocess.run([need("promtool"), "query", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_promtool_instant(data: Data) -> None:
    lines = promtool("instant", f"--time={data.end}", data.server.url, "client_requests_total")
    assert sorted(lines) == [
        f'client_requests_total{{code="200"}} => {STEPS} @[{_go(data.end)}]',
        f'client_requests_total{{code="500"}} => {2 * STEPS} @[{_go(data.end)}]',
    ]


def _go(seconds: float) -> str:
    return str(int(seconds)) if seconds == int(seconds) else str(seconds)


def test_promtool_range(data: Data) -> None:
    words = (f"--start={data.end - 20}", f"--end={data.end}", "--step=10s")
    lines = promtool("range", *words, data.server.url, "sum(client_requests_total)")
    assert lines[0] == "{} =>"
    assert [line.split(" @")[0] for line in lines[1:]] == [str(3 * (STEPS - i)) for i in (4, 2, 0)]


def test_promtool_series_and_labels(data: Data) -> None:
    window = (f"--start={data.begin_ms / 1000}", f"--end={data.end}")
    lines = promtool("series", "--match=client_up", *window, data.server.url)
    assert lines == ['{__name__="client_up", job="a"}']
    assert set(promtool("labels", data.server.url, "code")) == {"200", "500"}


def test_prometheus_api_client(data: Data) -> None:
    package = pytest.importorskip("prometheus_api_client", reason="needs the package prometheus-api-client")
    client = package.PrometheusConnect(url=data.server.url, disable_ssl=True)
    assert client.check_prometheus_connection()
    begin, end = (datetime.fromtimestamp(ms / 1000, UTC) for ms in (data.begin_ms, data.end_ms))
    assert set(client.all_metrics()) >= {"client_requests_total", "client_up"}
    assert "code" in client.get_label_names()
    assert client.get_label_values("code") == ["200", "500"]
    assert client.get_series(begin, end, {"match[]": ["client_up"]}) == [{"__name__": "client_up", "job": "a"}]
    current = client.get_current_metric_value("client_requests_total", {"code": "500"}, params={"time": data.end})
    assert current[0]["value"] == [data.end, str(2 * STEPS)]
    (found,) = client.get_metric_range_data("client_up", {"job": "a"}, begin, end)
    assert len(found["values"]) == STEPS  # its window is open at the left, as in Prometheus 3
    ranged = client.custom_query_range("rate(client_requests_total[1m])", begin, end, "15")
    assert {series["metric"]["code"] for series in ranged} == {"200", "500"}
    assert client.custom_query("1+1") == [pytest.approx(time.time(), abs=60), "2"]
    assert client.get_targets() == {"activeTargets": [], "droppedTargets": [], "droppedTargetCounts": {}}
    with pytest.raises(package.exceptions.PrometheusApiClientException, match="parse error"):
        client.custom_query("sum(")


PROMETHEUS_QUERY = """
const { PrometheusDriver } = require('prometheus-query');
const [endpoint, begin, end] = process.argv.slice(1);
(async () => {
  const out = {};
  for (const preferPost of [false, true]) {
    const prom = new PrometheusDriver({ endpoint, preferPost });
    const instant = await prom.instantQuery('client_requests_total{code="500"}', new Date(+end));
    const ranged = await prom.rangeQuery('sum(client_requests_total)', new Date(+begin), new Date(+end), 60);
    out[preferPost ? 'post' : 'get'] = {
      instant: instant.result.map(s => [s.metric.labels, s.value.value]),
      ranged: ranged.result.map(s => s.values.length),
      labels: await prom.labelNames(),
      values: await prom.labelValues('code'),
      series: (await prom.series(['client_up'], new Date(+begin), new Date(+end))).length,
      targets: (await prom.targets()).activeTargets.length,
      rules: (await prom.rules()).length,
      alerts: (await prom.alerts()).length,
      flags: Object.keys(await prom.statusFlags()).length > 3,
      build: (await prom.statusBuildinfo()).version,
      tsdb: (await prom.statusTSDB()).headStats.numSeries > 0,
      config: (await prom.status()).yaml.includes('storage'),
    };
    try { await prom.instantQuery('sum('); } catch (error) { out.error = JSON.stringify(error); }
  }
  console.log(JSON.stringify(out));
})();
"""


def test_prometheus_query_of_npm(data: Data) -> None:
    node = need("node")
    known = subprocess.run([node, "-e", "require('prometheus-query')"], capture_output=True, check=False)
    if known.returncode:
        pytest.skip("needs the npm package prometheus-query (its folder in NODE_PATH)")
    command = [node, "-e", PROMETHEUS_QUERY, data.server.url, str(data.begin_ms), str(data.end_ms)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "parse error" in found.pop("error")
    for way in ("get", "post"):
        got = found[way]
        assert got["instant"] == [[{"code": "500"}, 2 * STEPS]]
        assert got["ranged"] == [STEPS * STEP_MS // 60_000 + 1]
        assert got["values"] == ["200", "500"]
        assert "code" in got["labels"]
        assert (got["series"], got["targets"], got["rules"], got["alerts"]) == (1, 0, 0, 0)
        assert (got["flags"], got["tsdb"], got["config"], got["build"]) == (True, True, True, "2.55.0")


# vmalert


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


RULES = """
groups:
  - name: clients
    interval: 1s
    rules:
      - record: clients:up:sum
        expr: sum by (job) (client_up)
        labels: {made: here}
      - alert: ClientUp
        expr: client_up == 1
        for: 1s
        labels: {severity: info}
        annotations: {summary: "{{ $labels.job }} is {{ $value }}"}
"""


class AlertSink(BaseHTTPRequestHandler):
    """Takes alerts as an Alertmanager does."""

    summaries: ClassVar[set[str]] = set()

    def do_POST(self) -> None:
        alerts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.summaries.update(alert["annotations"]["summary"] for alert in alerts)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def test_vmalert_evaluates_and_writes_back(data: Data, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yml"
    rules.write_text(RULES)
    url = data.server.url
    listen = f"127.0.0.1:{free_port()}"
    sink = ThreadingHTTPServer(("127.0.0.1", 0), AlertSink)
    threading.Thread(target=sink.serve_forever, daemon=True).start()
    command = [need("vmalert"), f"-rule={rules}", f"-datasource.url={url}", f"-remoteWrite.url={url}"]
    command += [f"-remoteRead.url={url}", f"-httpListenAddr={listen}", "-loggerLevel=WARN"]
    command += ["-remoteWrite.flushInterval=1s", f"-notifier.url=http://127.0.0.1:{sink.server_port}"]
    with (tmp_path / "vmalert.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        until = time.monotonic() + 60
        recorded: Any = []
        firing: Any = []
        while time.monotonic() < until and not (recorded and firing):
            assert process.poll() is None, (tmp_path / "vmalert.log").read_text()
            time.sleep(0.5)
            recorded = data.server.query("clients:up:sum")
            firing = data.server.query('ALERTS{alertname="ClientUp",alertstate="firing"}')
        log_text = (tmp_path / "vmalert.log").read_text()
        assert recorded, log_text
        assert firing, log_text
        assert recorded[0]["metric"] == {"__name__": "clients:up:sum", "job": "a", "made": "here"}
        assert recorded[0]["value"][1] == "1"
        assert firing[0]["metric"]["severity"] == "info"
        assert data.server.query('ALERTS_FOR_STATE{alertname="ClientUp"}')
        assert "error" not in log_text.lower(), log_text
        assert AlertSink.summaries >= {"a is 1"}
    finally:
        sink.shutdown()
        sink.server_close()
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def test_vmalert_takes_our_rules() -> None:
    rules = ROOT / "deploy" / "alerts" / "meshpulse.rules.yml"
    done = subprocess.run([need("vmalert"), f"-rule={rules}", "-dryRun"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_status_pages_have_prometheus_keys(data: Data) -> None:
    """What prometheus-query and promql-http-api read from them."""
    facts = json.loads(data.server.get("/api/v1/status/runtimeinfo").body)["data"]
    assert {"startTime", "CWD", "reloadConfigSuccess", "goroutineCount", "storageRetention"} <= facts.keys()
    assert {"numSeries", "chunkCount"} <= data.server.get("/api/v1/status/tsdb").json()["data"]["headStats"].keys()
