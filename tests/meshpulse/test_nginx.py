"""The section ``nginx`` of the configuration reaches its parts, and its mistakes are named."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import orjson
import pytest

from ingest.logs.limits import PushLimits
from ingest.logs.push import PushReceiver
from meshpulse.config import ConfigError, parse_config
from meshpulse.nginx import build_nginx
from meshpulse.nginx_config import nginx_source
from tests.ingest.nginx.builders import settled
from tsdb.clock import SystemClock
from tsdb.db import TSDB, StoreConfig
from tsdb.limits import SelectLimits
from tsdb.matchers import Matcher, MatchOp
from tsdb.tally import Tally


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{}", "nginx.files.0.paths: Field required"),
        ("{paths: []}", "nginx.files.0.paths"),
        ("{paths: [a], format: plain}", "format is neither json nor combined"),
        ("{paths: [a], format: $a$b}", "nothing lies between"),
        ("{paths: [a], site_pattern: '('}", "site_pattern: "),
        ("{paths: [a], site_pattern: a}", "needs a group (?P<site>...)"),
        ("{paths: [a], fields: {statuses: [s]}}", "fields: 'statuses' is none of time"),
        ("{paths: [a], labels: {status: x}}", "nginx.files.0.labels.status"),
        ("{paths: [a], log: debug}", "nginx.files.0.log"),
    ],
)
def test_mistakes(entry: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(f"nginx:\n  files:\n    - {entry}\n")
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["{buckets: []}", "{buckets: [2, 1]}", "{buckets: [0]}", "{interval: 1ms}"])
def test_mistakes_of_metrics(text: str) -> None:
    with pytest.raises(ConfigError, match=r"line 2: nginx\.metrics"):
        parse_config(f"nginx:\n  metrics: {text}\n")


def test_a_source() -> None:
    text = "nginx: {files: [{paths: [/a/*.log], labels: {env: x}, site_pattern: '(?P<site>\\w+)[.]log$', start: end}]}"
    source = nginx_source(parse_config(text).nginx.files[0])
    assert (source.labels["job"], source.labels["env"], source.from_end) == ("nginx", "x", True)
    assert source.labels["host"]
    assert (source.site_of("/a/shop.log"), source.site_of("/a/shop")) == ("shop", "")


def test_files_and_pushed_streams_are_counted_alike(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    text = orjson.dumps({"time": time.time(), "status": 503, "server_name": "a.example"})
    log.write_bytes(text + b"\n")
    config = parse_config(
        f"""
storage: {{path: {tmp_path / "data"}}}
nginx:
  files: [{{paths: [{log}], labels: {{host: web-1}}, site_field: server_name}}]
  streams: [{{match: {{app: edge}}, site_field: server_name}}]
  metrics: {{interval: 100ms}}
  poll_interval: 20ms
"""
    )
    db = TSDB(StoreConfig(path=tmp_path / "data", min_free_bytes=0, min_free_fraction=0))
    db.open()
    clock, tally = SystemClock(), Tally()
    receiver = PushReceiver(clock, tally, PushLimits())
    assert build_nginx(parse_config(""), db, receiver, clock, tally) is None
    parts = build_nginx(config, db, receiver, clock, tally)
    assert parts is not None
    tenant = db.tenant("default")
    parts.start()
    try:
        values = [[str(time.time_ns()), text.decode()]]
        body = orjson.dumps({"streams": [{"stream": {"app": "edge", "host": "web-2"}, "values": values}]})
        pushed = receiver.json(tenant.logs, "default", body)
        assert pushed.future is not None
        pushed.future.result()

        def found() -> set[tuple[str | None, str | None, float]]:
            matcher = Matcher("__name__", MatchOp.EQUAL, "nginx_requests_total")
            frame = tenant.select([matcher], 0, 1 << 62, SelectLimits())
            filled = np.flatnonzero(np.diff(frame.offsets)).tolist()  # a series is there before its first sample
            rows = [(frame.labels.labels(i), frame.values[frame.offsets[i + 1] - 1]) for i in filled]
            return {(labels.get("site"), labels.get("host"), float(value)) for labels, value in rows}

        assert settled(lambda: found() == {("a.example", "web-1", 1.0), ("a.example", "web-2", 1.0)}), found()
    finally:
        parts.close()
        db.close()
    assert (tmp_path / "data/nginx/positions.json").is_file()
    assert parts.stats().lines == 2
