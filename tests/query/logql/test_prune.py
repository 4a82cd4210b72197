"""Label filters give the same lines whether the store leaves groups out for them or not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from query.errors import QueryError
from query.logql.engine.engine import LogEngine
from query.logql.engine.prune import clauses_of
from query.logql.parser import parse
from tests.tsdb.logs.test_store import open_db, push
from tsdb.clock import ManualClock
from tsdb.logs import part as part_module
from tsdb.logs.part import Part
from tsdb.logs.store import LogStore

engine = LogEngine(clock=ManualClock(0))

IDS = [f"{k:032x}" for k in range(5)] + ["0f8fad5b-d9cb-469f-a165-70867728950e"]
VALUES = st.one_of(
    st.integers(-3, 600), st.sampled_from([504, 504.5, "504", "504.0", "0504", "", "GET", "a b", True, None]),
    st.sampled_from(IDS), st.sampled_from(["q\"uote", "back\\slash", "é", "1e3", "/orders/7", "user-12345"]),
    st.floats(0, 10).map(lambda v: round(v, 3)),
)  # fmt: skip
NAMES = ("status", "path", "app", "http.method", "http_method", "status_extracted", "user")
rows_of_json = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4)


def logfmt(row: dict[str, object]) -> str:
    return " ".join(f"{k}={json.dumps(v) if isinstance(v, str) else v}" for k, v in row.items())


lines = st.one_of(
    rows_of_json.map(lambda row: json.dumps(row, ensure_ascii=False)), rows_of_json.map(logfmt),
    st.sampled_from(["plain text 504", "{broken", "[504]", '{"status":504,"status":1}', '{"a":{"status":504}}']),
)  # fmt: skip
metadata = st.dictionaries(
    st.sampled_from(["trace_id", "status", "http.method"]), st.sampled_from([*IDS, "504", "x"]), max_size=2
)
labels = st.sampled_from(["status", "path", "app", "http_method", "status_extracted", "user", "trace_id", "__error__"])
texts = st.sampled_from(["504", "504.5", "0504", "", "GET", "a b", "true", *IDS, IDS[1][:30], "/orders/7", "é", "a0"])
regexes = st.sampled_from(["504|GET", "5..", "user-12345|zz", ".+", ""])
comparisons = st.sampled_from(["=", "!=", ">", ">=", "<", "<="])
compared = labels.filter(lambda name: name != "__error__")
numbers = st.sampled_from(["504", "0", "-2", "504.5", "1000", "599"])
atoms = st.one_of(
    st.tuples(labels, st.sampled_from(["=", "!="]), texts).map(lambda t: f'{t[0]}{t[1]}"{t[2]}"'),
    st.tuples(labels, st.sampled_from(["=~", "!~"]), regexes).map(
        lambda t: f'{t[0]}{t[1]}"{t[2]}"'
    ),
    st.tuples(compared, comparisons, numbers).map(
        lambda t: f"{t[0]} {t[1]} {t[2]}"
    ),
)  # fmt: skip
predicates = st.recursive(
    atoms,
    lambda inner: st.tuples(inner, st.sampled_from([" and ", " or ", ", "]), inner).map(lambda t: f"({''.join(t)})"),
    max_leaves=3,
)  # fmt: skip
stages = st.lists(
    st.one_of(
        st.sampled_from(["| json", "| logfmt", "| json", '| json status="path"', '|= "504"', "|= ` orders `"]),
        st.sampled_from(['| label_format status="504"', '| line_format "{{.path}}"', "| drop status", "| unpack"]),
        st.just("| logfmt --keep-empty"),
        predicates.map(lambda p: f"| {p}"), predicates.map(lambda p: f"| {p}"),
    ),
    min_size=1, max_size=4,
).map(" ".join)  # fmt: skip


def answer(logs: LogStore, text: str) -> object:
    try:
        found = engine.entries(logs, parse(text), 0, 1 << 40, 5000, backward=False).value  # type: ignore[arg-type]
    except QueryError as error:
        return str(error)
    return sorted(
        (sorted(stream.labels.items()), e.ts_ns, e.line, sorted(e.metadata.items()), sorted(e.parsed.items()))
        for stream in found  # type: ignore[union-attr]
        for e in stream.entries
    )


def counted(logs: LogStore, text: str) -> object:
    try:
        result = engine.instant(logs, f"sum(count_over_time({text} [1h]))", 1 << 40).value
    except QueryError as error:
        return str(error)
    return np.asarray(result.values).tolist()  # type: ignore[union-attr]


def unpruned(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_groups(self: Part, _wanted: object, groups: np.ndarray) -> np.ndarray:
        return np.ones(len(groups), np.bool_)

    monkeypatch.setattr(Part, "may_pass", all_groups)
    monkeypatch.setattr(Part, "may_hold", all_groups)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.lists(st.tuples(lines, metadata), min_size=1, max_size=4), min_size=1, max_size=6),
    st.lists(stages, min_size=6, max_size=12),
)
def test_filters_keep_the_same_lines(
    tmp_path_factory: pytest.TempPathFactory, groups: list[list[tuple[str, dict[str, str]]]], pipelines: list[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(part_module, "ROWS_MAX", 32)
        db = open_db(tmp_path_factory.mktemp("logs"))
        logs = db.tenant("default").logs
        at = 0
        for k, group in enumerate(groups):
            for line, meta in group * 20:  # one group of the part each: 16 lines are a pattern
                push(logs, [(f"a{k}", at, line.encode())], [meta])
                at += 1
            if k % 3 == 2:
                logs.flush()
        queries = [f'{{log="x"}} {text}' for text in pipelines]
        found = [(answer(logs, text), counted(logs, text)) for text in queries]
        unpruned(patch)
        for text, was in zip(queries, found, strict=True):
            assert (answer(logs, text), counted(logs, text)) == was, text
        db.close()


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LogStore:
    """Ten groups whose lines differ in everything."""
    monkeypatch.setattr(part_module, "ROWS_MAX", 100)
    logs = open_db(tmp_path).tenant("default").logs
    for g in range(10):
        rows = [
            {"status": 200 + g, "took": g + k / 1000, "id": f"order-{g}{k:02d}x{'abc'[k % 3]}",
             "kind": "wxyz"[k % 4] * 3 + "qrstuvwxyz"[g]}
            for k in range(100)
        ]  # fmt: skip
        push(
            logs,
            [(f"a{g}", 1000 * g + k, json.dumps(row).encode()) for k, row in enumerate(rows)],
            [{"trace_id": f"{g:08d}{k:08d}" + "ab" * 8} for k in range(100)],
        )
    logs.flush()
    return logs


@pytest.mark.parametrize(
    ("stages", "left"),
    [
        ("| json | status = 204", 1), ('| json | status = "204"', 1), ("| json | status >= 207", 3),
        ("| json | status < 202", 2), ("| json | took > 8.05", 2), ("| json | took <= 1", 2),
        ('| json | id = "order-701xb"', 1), ('| json | kind =~ "wwwv|wwwx"', 2),
        ('| json | status = 201 or id = "order-500xa"', 2), ('| json | status >= 203 and id = "order-500xa"', 1),
        ('| json | nothing = "x"', 0), ("| json | nothing > 1", 0),
        ('| trace_id = "0000000300000007abababababababab"', 1),
        ('| json | trace_id = "0000000300000007abababababababab"', 1), ('|= ` "wwwr"`', 1), ('|= `"nowhere"`', 0),
        ('| json | status != 204', 10), ('| json | id != "x"', 10), ("| logfmt | status = 204", 10),
        ('| json | label_format status="1" | status = 204', 10), ('| json | app = "a3"', 10),
    ],
)  # fmt: skip
def test_groups_are_left_out(many: LogStore, monkeypatch: pytest.MonkeyPatch, stages: str, left: int) -> None:
    opened: list[int] = []
    was = Part.open
    monkeypatch.setattr(Part, "open", lambda self, group: opened.append(group) or was(self, group))
    kept = answer(many, f'{{log="x"}} {stages}')
    assert len(set(opened)) == left
    unpruned(monkeypatch)
    assert answer(many, f'{{log="x"}} {stages}') == kept


def test_a_label_that_was_set_decides_how_a_field_is_called(tmp_path: Path) -> None:
    db = open_db(tmp_path)
    logs = db.tenant("default").logs
    push(logs, [("a", 1, b"status=0")], [{"status": "1"}])
    for stages in ('| logfmt | status_extracted="0"', '| label_format status="504" | logfmt | status="0"'):
        assert len(answer(logs, f'{{log="x"}} {stages}')) == 1  # type: ignore[arg-type]
    assert answer(logs, '{log="x"} | label_format status="504" | logfmt | status_extracted!=""') == []
    db.close()


def test_numbers_behind_a_filter_that_may_fail_demand_nothing() -> None:
    def labels_of(text: str) -> list[list[str]]:
        return [[test.label for test in clause] for clause in clauses_of(parse(text).stages)]  # type: ignore[union-attr]

    assert labels_of('{a="b"} | json | x > 1 | y > 1 | z="t"') == [["x"], ["z"]]
    assert labels_of('{a="b"} | json | x > 1 and y > 1 and z="t"') == [["x"], ["z"]]
    assert labels_of('{a="b"} | json | x > 1 or y > 1') == [["x", "y"]]
    assert labels_of('{a="b"} | json | x > 1 or y != 1') == []
    assert labels_of('{a="b"} | json | x > 10ms | detected_level="error" | __error__="" | x_extracted="1"') == []


def test_a_part_from_before_columns_were_known_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    was = part_module._encode_index

    def as_before(names: object, groups: list[list[int]], columns: object, *rest: object) -> object:
        return was(names, [row[:9] for row in groups], None, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(part_module, "_encode_index", as_before)
    monkeypatch.setattr(part_module, "put_facts", lambda *_: None)
    db = open_db(tmp_path)
    logs = db.tenant("default").logs
    push(logs, [("a", k, json.dumps({"status": 200 + k % 3, "word": " abc "}).encode()) for k in range(60)])
    logs.flush()
    for text, count in (("| json | status = 201", 20), ("| json | nothing = `x`", 0), ("|= ` abc `", 60)):
        assert len(answer(logs, f'{{log="x"}} {text}')) == count  # type: ignore[arg-type]
    db.close()
