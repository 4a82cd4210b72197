"""The query log: what a line holds, and that a moved or broken file never fails a query."""

from __future__ import annotations

import json
from pathlib import Path

from meshpulse.query_log import QueryLog
from query.endpoints import QueryRecord
from tests.query.asgi import get
from tests.query.demo_api import START_MS, query_api


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_query_leaves_a_line(tmp_path: Path) -> None:
    path = tmp_path / "queries.log"
    start = START_MS // 1000
    with query_api(query_log=QueryLog(path).write) as api:
        assert get(api, f"/api/v1/query?query=up&time={start}.5").status == 200
        assert get(api, f"/api/v1/query_range?query=sum(up)&start={start}&end={start + 60}&step=15").status == 200
        assert get(api, "/api/v1/query?query=up{").status == 400
        assert get(api, "/api/v1/labels").status == 200
    instant, spanning, failed = lines(path)
    assert (instant["query"], instant["start"], instant["end"], instant["step"]) == ("up", start + 0.5, start + 0.5, 0)
    assert (instant["tenant"], instant["samples"], instant["series"]) == ("default", 2, 2)
    assert set(instant["phases"]) >= {"queue", "prepare", "eval", "total"}
    assert 0 < instant["seconds"] < 60
    assert "error" not in instant
    assert (spanning["start"], spanning["end"], spanning["step"]) == (start, start + 60, 15)
    assert spanning["samples_total"] >= 10
    assert "parse error" in failed["error"]
    assert "samples" not in failed


def record(text: str) -> QueryRecord:
    return QueryRecord("default", text, 0, 0, 0, 0.5, None, "")


def test_a_moved_file_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "queries.log"
    log = QueryLog(path)
    log.write(record("a"))
    path.rename(tmp_path / "queries.log.1")
    log.write(record("b"))
    path.unlink()
    log.write(record("c \udcff"))
    assert [line["query"] for line in lines(tmp_path / "queries.log.1")] == ["a"]
    assert [line["query"] for line in lines(path)] == ["c ?"]


def test_a_file_that_cannot_be_written_fails_nothing(tmp_path: Path) -> None:
    log = QueryLog(tmp_path / "missing" / "queries.log")
    log.write(record("a"))
    (tmp_path / "missing").mkdir()
    log.write(record("b"))
    assert [line["query"] for line in lines(tmp_path / "missing" / "queries.log")] == ["b"]
