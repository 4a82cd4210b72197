"""The command line: flags by our names and by Prometheus' names end up in the configuration."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from meshpulse import server
from meshpulse.cli import app
from meshpulse.config import Config


def served(monkeypatch: pytest.MonkeyPatch, *flags: str) -> Config:
    """The configuration that ``serve`` would run with."""
    seen: list[Config] = []

    def serve(config: Config, listener: Any, *_: Any) -> int:
        listener.close()
        seen.append(config)
        return 0

    monkeypatch.setattr(server, "serve", serve)
    done = CliRunner().invoke(app, ["serve", *flags])
    assert done.exit_code == 0, done.output
    return seen[0]


def test_prometheus_flags(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = served(
        monkeypatch,
        *("--storage.tsdb.path", str(tmp_path / "a"), "--web.listen-address", "127.0.0.1:0"),
        *("--storage.tsdb.retention.time", "3d", "--storage.tsdb.retention.size", "2GiB"),
        *("--query.lookback-delta", "1m", "--query.timeout", "10s", "--query.max-concurrency", "7"),
        *("--web.route-prefix", "/mesh/", "--web.enable-admin-api", "--log.level", "warning", "--log.format", "json"),
    )
    assert (config.storage.path, config.server.listen) == (tmp_path / "a", "127.0.0.1:0")
    assert (config.storage.retention, config.storage.retention_bytes) == (timedelta(days=3), 2 << 30)
    assert (config.query.lookback_delta, config.query.timeout) == (timedelta(minutes=1), timedelta(seconds=10))
    assert (config.query.max_concurrency, config.server.route_prefix) == (7, "/mesh")
    assert config.server.admin_api
    assert (config.log.level, config.log.format) == ("warning", "json")


def test_the_file_holds_where_no_flag_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "meshpulse.yml"
    file.write_text("query: {timeout: 9s, workers: 1}\nserver: {admin_api: true, listen: '127.0.0.1:0'}\n")
    config = served(
        monkeypatch, "--config.file", str(file), "--data-dir", str(tmp_path / "a"), "--query.lookback-delta", "2m"
    )
    assert (config.query.timeout, config.query.workers) == (timedelta(seconds=9), 1)
    assert config.query.lookback_delta == timedelta(minutes=2)
    assert config.server.admin_api


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--query.timeout", "soon"), "query.timeout: is no duration"),
        (("--storage.tsdb.retention.size", "big"), "storage.retention_bytes: is no size"),
        (("--web.route-prefix", "mesh"), "server.route_prefix: must begin with /"),
        (("--web.listen-address", "nowhere"), "server.listen: must be HOST:PORT"),
    ],
)
def test_mistakes_in_flags_are_told(flags: tuple[str, ...], words: str) -> None:
    done = CliRunner().invoke(app, ["serve", *flags])
    assert done.exit_code == 2
    assert words in done.output
