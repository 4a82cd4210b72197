"""Prometheus' own test scripts against the engine over a store in memory."""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from query.engine import Engine
from query.errors import QueryError
from query.limits import QueryLimits
from query.result import MatrixResult, QueryResult, RawMatrix, ScalarResult, StringResult, VectorResult
from tests.query.memory_storage import STALE, MemoryStorage
from tests.shared import shared_path

RIGHT_MIN = 637
"""Cases of core.json whose values must be right; the rest must be refused by name."""


def load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


class InProcess:
    """promqltest's adapter over the engine."""

    supports: frozenset[str] = frozenset()

    def __init__(self, promqltest: ModuleType) -> None:
        self.promqltest = promqltest
        self.engine = Engine(QueryLimits(workers=1))
        self.storage = MemoryStorage()

    def reset(self) -> None:
        self.storage = MemoryStorage()

    def load(self, series: list) -> None:
        for one in series:
            samples = [(t, STALE if v is self.promqltest.STALE else v) for t, v, _ in one.samples]
            self.storage.add(dict(one.labels), samples)

    def instant(self, expr: str, time: int):
        return self._answer(lambda: self.engine.instant(self.storage, expr, time))

    def range(self, expr: str, start: int, end: int, step: int):
        return self._answer(lambda: self.engine.range(self.storage, expr, start, end, step))

    def _answer(self, ask):
        try:
            result: QueryResult = ask()
        except QueryError as e:
            return self.promqltest.Answer(error=str(e))
        kind, data = self._data(result.value)
        return self.promqltest.Answer(None, kind, data, list(result.warnings), list(result.infos))

    def _data(self, value) -> tuple[str, object]:
        labels = lambda table, row: self.promqltest.make_labels(table.labels(row).items())  # noqa: E731
        match value:
            case ScalarResult():
                return "scalar", value.value
            case StringResult():
                return "string", value.value
            case VectorResult():
                time = int(value.times_ms[0])
                return "vector", [(labels(value.labels, i), time, v) for i, v in enumerate(value.values[:, 0].tolist())]
            case MatrixResult():
                times = value.times_ms.tolist()
                return "matrix", [
                    (labels(value.labels, i), [(t, v) for t, v, p in zip(times, row, there, strict=True) if p])
                    for i, (row, there) in enumerate(zip(value.values.tolist(), value.present.tolist(), strict=True))
                ]
            case RawMatrix():
                frame = value.frame
                bounds = frame.offsets.tolist()
                points = list(zip(frame.ts_ms.tolist(), frame.values.tolist(), strict=True))
                rows = [points[begin:end] for begin, end in itertools.pairwise(bounds)]
                return "matrix", [(labels(frame.labels, i), row) for i, row in enumerate(rows)]
        raise AssertionError(value)


@pytest.fixture(scope="module")
def promqltest() -> Iterator[ModuleType]:
    yield load_module(shared_path("conformance/promql/promqltest.py"))
    sys.modules.pop("promqltest", None)


def is_refusal(text: str) -> bool:
    """Whether an answer says that the construct is not spoken, which is never wrong."""
    return "unsupported" in text or "experimental" in text or "not enabled" in text


def outcome_of(result) -> str:
    texts = [failure.text for failure in result.failures]
    if result.skipped:
        return "skipped"
    if result.strict:
        return "strict"
    if any(is_refusal(text) for text in texts):
        return "refused"
    return "values" if result.values else "wrong"


def run_scripts(promqltest, capsys, paths, wanted, pinned=None) -> Counter:
    """Run scripts, print the counts per file and what was not strictly right; returns all counts together."""
    total: Counter = Counter()
    lines, problems = [f"{'script':32} strict values refused skipped wrong"], []
    for path in paths:
        commands = promqltest.parse(path.read_text(), path.name)
        results = promqltest.run(commands, InProcess(promqltest), pinned=pinned, wanted=wanted)
        count = Counter(map(outcome_of, results))
        if results:
            lines.append(_line(path.name, count))
        total += count
        problems += [
            f"{outcome_of(r)} {r.case.id} {r.case.expr}: {[f.text for f in r.failures][:3]}"
            for r in results
            if outcome_of(r) in ("wrong", "values")
        ]
    with capsys.disabled():
        print("\n" + "\n".join([*lines, _line("total", total), *problems]))
    return total


def _line(name: str, count: Counter) -> str:
    columns = " ".join(f"{count[kind]:7}" for kind in ("strict", "values", "refused", "skipped", "wrong"))
    return f"{name:32} {columns}"


def test_core_cases(promqltest, capsys) -> None:
    core = set(json.loads(shared_path("conformance/promql/core.json").read_text()))
    pinned = json.loads(shared_path("conformance/promql/pinned.json").read_text())
    paths = sorted(shared_path("conformance/promql/scripts").glob("*.test"))
    total = run_scripts(promqltest, capsys, paths, lambda case: case.id in core, pinned)
    assert total["wrong"] == 0
    assert total["strict"] >= RIGHT_MIN
    assert total.total() == len(core)


def test_all_other_cases_are_right_or_refused(promqltest, capsys) -> None:
    """Experimental language and native histograms: never a wrong answer."""
    core = set(json.loads(shared_path("conformance/promql/core.json").read_text()))
    paths = sorted(shared_path("conformance/promql/scripts").glob("*.test"))
    total = run_scripts(promqltest, capsys, paths, lambda case: case.id not in core)
    assert total["wrong"] == total["values"] == 0


def test_compliance_and_utf8_cases(promqltest, capsys) -> None:
    paths = [shared_path(f"conformance/promql/{name}.test") for name in ("compliance", "utf8_and_rare")]
    total = run_scripts(promqltest, capsys, paths, lambda case: True)
    assert total["wrong"] == total["values"] == 0
    assert total["strict"] >= 587
