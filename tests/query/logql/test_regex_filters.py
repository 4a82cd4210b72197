"""Line filters by regex give the same lines with automata as with RE2 over every line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from query.logql.engine.engine import LogEngine
from query.logql.parser import parse
from tests.tsdb.logs.regex.test_walk import USUAL, typed_lines
from tests.tsdb.logs.test_store import open_db, push
from tsdb.clock import ManualClock
from tsdb.logs.regex import match
from tsdb.logs.store import LogStore

engine = LogEngine(clock=ManualClock(0))
RAW = [b"plain Error 5 GET", b"caf\xc3\xa9 \xff 10.0.0.7", b"", b"\xe2\x84\xaa kelvin warn", b"aaa123456c", b"x\ny"]


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LogStore]:
    """Lines of all types and raw ones, some in a part and some in memory."""
    path: Path = tmp_path_factory.mktemp("logs")
    db = open_db(path)
    store = db.tenant("default").logs
    lines = typed_lines() + RAW
    push(store, [(f"a{i % 2}", i, line) for i, line in enumerate(lines)])
    store.flush()
    push(store, [("a0", 10_000 + i, line) for i, line in enumerate(lines[::7] + RAW)])
    yield store
    db.close()


def kept(logs: LogStore, stages: str) -> list[tuple[int, bytes | str]]:
    found = engine.entries(logs, parse(f'{{log="x"}} {stages}'), 0, 100_000, 5000, backward=False).value  # type: ignore[arg-type]
    return [(entry.ts_ns, entry.line) for stream in found for entry in stream.entries]  # type: ignore[union-attr]


STAGES = [
    *(f"{op} `{pattern}`" for pattern in USUAL for op in ("|~", "!~")),
    "|~ `(?i)K` | line_format `{{__line__}}!` |~ `[a-f]!|\\}!`",
    "|~ `zz|\\d{3}` !~ `(?i)error|user` |~ `GET|PUT|[#]`",
    "|~ `a.*b` or `[0-9]{6}`",
]


@pytest.mark.parametrize("stages", STAGES)
def test_answers_are_those_of_re2(logs: LogStore, monkeypatch: pytest.MonkeyPatch, stages: str) -> None:
    found = kept(logs, stages)
    monkeypatch.setattr(match, "automaton_of", lambda _pattern: None)
    assert found == kept(logs, stages)


def test_undecided_lines_are_decided_by_re2(logs: LogStore) -> None:
    assert {line for _, line in kept(logs, "|~ `(?i)^k`")} == {RAW[3].decode()}
    assert len(kept(logs, "|~ `caf.\\s`")) == 2
