"""Random queries over the same samples, answered by the engine and by Debian's Prometheus.

Prometheus 2.42 and the language of Prometheus 3 differ in a few known places, which the generator stays clear of: no
sample lies on the border of a window (closed in 2.42), no counter starts near zero, nothing is infinite, nothing is NaN
under ``stddev``, no two values are equal where ``topk`` has to choose, names are not grouped by, ``predict_linear`` is
not pinned by ``@``.
"""

from __future__ import annotations

import json
import math
import random
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest

from query.engine import Engine
from query.errors import QueryError
from query.limits import QueryLimits
from query.result import MatrixResult, ScalarResult, VectorResult
from tests.e2e.prometheus import Prometheus, need
from tests.query.memory_storage import MemoryStorage

SPAN_S = 3600
QUERIES = 1200

RANGE_FUNCTIONS = [
    "delta",
    "idelta",
    "deriv",
    "changes",
    "resets",
    "sum_over_time",
    "avg_over_time",
    "min_over_time",
    "max_over_time",
    "count_over_time",
    "last_over_time",
    "present_over_time",
    "stddev_over_time",
    "stdvar_over_time",
    "absent_over_time",
]
COUNTER_FUNCTIONS = ["rate", "increase", "irate"]
ELEMENTWISE = ["abs", "ceil", "floor", "sgn", "round", "sqrt", "ln", "cos"]
GROUPINGS = [
    "", "by (job)", "by (job, zone)", "without (inst)", "without (job, le)", "by (nope)", "by (inst)"
]  # fmt: skip
MATCHINGS = [
    "", "on (job, inst)", "on (job) group_left", "ignoring (zone, inst)", "on (job) group_left (extra)",
    "ignoring (extra) group_right",
]  # fmt: skip
ARITHMETIC = ["+", "-", "*", "/", "%"]
COMPARISONS = ["==", "!=", ">", "<", ">=", "<="]


class Queries:
    """Random expressions over the samples of :func:`series`."""

    def __init__(self, rng: random.Random, base_s: int) -> None:
        self._rng = rng
        self._base_s = base_s

    def selector(self, name: str = "") -> str:
        name = name or self._rng.choice(["c_total", "g", "g", "h_bucket", "one"])
        return name + self._rng.choice(
            ["", "", '{job="a"}', '{inst=~"[0-3]"}', '{zone!="x"}', '{job=~".+",inst!~"2|4"}']
        )

    def modifiers(self) -> str:
        at = [f" @ {self._base_s + 1800.25}", " @ end()", " @ start() offset 1m"]
        return self._rng.choice(["", "", "", " offset 1m", " offset -90s", *at])

    def duration(self) -> str:
        return self._rng.choice(["1m", "2m", "5m", "10m", "47s"])

    def range_vector(self, depth: int, name: str = "") -> str:
        if depth > 0 and not name and self._rng.random() < 0.25:
            step = self._rng.choice(["", "15s", "1m", "37s"])
            return f"({self.vector(depth - 1)})[{self.duration()}:{step}]{self.modifiers()}"
        return f"{self.selector(name)}[{self.duration()}]{self.modifiers()}"

    def scalar(self) -> str:
        return self._rng.choice(["2", "0.5", "-1", "3.25", "1e3", f"scalar({self.selector()})", "time()", "(1+2)*3"])

    def vector(self, depth: int) -> str:
        rng, k = self._rng, self._rng.random()
        below = depth - 1
        if depth <= 0 or k < 0.12:
            return self.selector() + self.modifiers()
        if k < 0.30:
            return f"{rng.choice(RANGE_FUNCTIONS)}({self.range_vector(below)})"
        if k < 0.40:
            return f"{rng.choice(COUNTER_FUNCTIONS)}({self.range_vector(0, 'c_total')})"
        if k < 0.44:
            return f"quantile_over_time({rng.choice(['0.5', '0', '1', '1.5', '-1'])}, {self.range_vector(below)})"
        if k < 0.46:
            return f"predict_linear({self.selector()}[{self.duration()}] offset 1m, {rng.choice(['60', '-5'])})"
        if k < 0.60:
            op = rng.choice(["sum", "avg", "min", "max", "count", "group", "stddev", "stdvar"])
            inner = self.selector() if op.startswith("std") else self.vector(below)
            return f"{op} {rng.choice(GROUPINGS)} ({inner})"
        if k < 0.63:
            return f"{rng.choice(['topk', 'bottomk'])} {rng.choice(GROUPINGS)} ({rng.randint(1, 3)}, g)"
        if k < 0.66:
            return f"quantile {rng.choice(GROUPINGS)} ({rng.choice(['0.5', '0.99'])}, {self.vector(below)})"
        if k < 0.67:
            return f'count_values {rng.choice(GROUPINGS)} ("v", round({self.vector(below)}))'
        if k < 0.73:
            return f"{rng.choice(ELEMENTWISE)}({self.vector(below)})"
        if k < 0.78:
            return rng.choice(
                [
                    f"clamp({self.vector(below)}, -2, 5)",
                    f"timestamp({self.vector(below)})",
                    f"minute({self.vector(below)})",
                    f"absent({self.vector(below)})",
                    f"vector({self.scalar()})",
                    f'label_replace({self.vector(below)}, "n", "$1-x", "inst", "([0-2])")',
                    f'label_join({self.vector(below)}, "jj", "/", "job", "inst")',
                    f"histogram_quantile(0.9, sum by (le, job) (delta(h_bucket[{self.duration()}])))",
                ]
            )
        if k < 0.86:
            a, b = self.vector(below), self.scalar()
            a, b = (b, a) if rng.random() < 0.3 else (a, b)
            return f"({a}) {self.operator()} ({b})"
        if k < 0.92:
            matching = rng.choice(["", "on (job)", "ignoring (zone)", "on (job, inst)"])
            return f"({self.vector(below)}) {rng.choice(['and', 'or', 'unless'])} {matching} ({self.vector(below)})"
        matching = rng.choice(MATCHINGS)
        a = "one" if "right" in matching else self.vector(below)
        b = "one" if "left" in matching else self.vector(below)
        return f"({a}) {self.operator()} {matching} ({b})"

    def operator(self) -> str:
        if self._rng.random() < 0.6:
            return self._rng.choice(ARITHMETIC)
        return self._rng.choice(COMPARISONS) + self._rng.choice(["", " bool"])


def series(rng: random.Random, base_s: int) -> list[tuple[str, dict[str, str], list[tuple[int, float]]]]:
    """(name, other labels, samples): scrapes with a jitter, gaps, late starts, resets; never on a whole second."""

    def times(every_s: int = 15, begin: int = 0, end: int = SPAN_S, gap: tuple[int, int] = (0, 0)) -> list[int]:
        return [
            (base_s + k) * 1000 + 123 + rng.choice([0, 0, 1, -1, 17, -30])
            for k in range(begin, end, every_s)
            if not gap[0] <= k < gap[1]
        ]

    out = []
    for i in range(6):
        gap = (1200, 1800) if i == 2 else (0, 0)
        value, samples = 20_000.0 + 1000 * i, []
        for t in times(15 if i < 4 else 30, 600 if i == 3 else 0, 2400 if i == 4 else SPAN_S, gap):
            value += rng.choice([0, 1, 2, 5.5, 13])
            if i and rng.random() < 0.01:
                value = 20_000 + 50 * rng.random()
            samples.append((t, value))
        out.append(("c_total", {"job": "ab"[i % 2], "inst": str(i), "zone": "xyz"[i % 3]}, samples))
    for i in range(5):
        gap = (900, 1500) if i == 1 else (0, 0)
        out.append(
            ("g", {"job": "ab"[i % 2], "inst": str(i)}, [(t, rng.gauss(0, 10)) for t in times(gap=gap)])
        )  # fmt: skip
    for job, zone in ("ax", "ay", "bx", "by"):
        counts = [1e6] * 5
        buckets: dict[str, list[tuple[int, float]]] = {le: [] for le in ("0.1", "0.5", "1", "5", "+Inf")}
        for t in times():
            counts = [count + 3 * rng.random() for count in counts]
            for at, samples in enumerate(buckets.values()):
                samples.append((t, sum(counts[: at + 1])))
        out += [("h_bucket", {"job": job, "zone": zone, "le": le}, samples) for le, samples in buckets.items()]
    out += [("one", {"job": job, "extra": job * 2}, [(t, 2.0) for t in times()]) for job in "ab"]
    return out


def to_blocks(folder, data) -> None:
    """Write samples as blocks of a Prometheus in ``folder``."""
    lines = []
    for name in dict.fromkeys(name for name, _, _ in data):
        lines.append(f"# TYPE {name} unknown")
        for _, labels, samples in (one for one in data if one[0] == name):
            shown = ",".join(f'{k}="{v}"' for k, v in labels.items())
            lines += [f"{name}{{{shown}}} {value!r} {t / 1000:.3f}" for t, value in samples]
    (folder / "samples.txt").write_text("\n".join([*lines, "# EOF", ""]))
    command = [need("promtool"), "tsdb", "create-blocks-from", "openmetrics"]
    subprocess.run([*command, folder / "samples.txt", folder / "prometheus"], check=True, capture_output=True)


Answer = tuple[str, dict[tuple[tuple[str, str], ...], list[tuple[int, float]]]]


def ask(url: str, path: str, **params: object) -> Answer:
    """Prometheus' answer: type and points by labels; an error has neither points nor text."""
    body = urllib.parse.urlencode(params).encode()
    try:
        with urllib.request.urlopen(f"{url}/api/v1/{path}", body, timeout=30) as response:
            data = json.load(response)["data"]
    except urllib.error.HTTPError as error:
        return json.load(error)["error"], {}
    if data["resultType"] == "scalar":
        return "scalar", {(): [_point(data["result"])]}
    return data["resultType"], {
        tuple(sorted(one["metric"].items())): list(map(_point, one.get("values") or [one["value"]]))
        for one in data["result"]
    }


def _point(pair: list) -> tuple[int, float]:
    return round(pair[0] * 1000), float(pair[1])


def ours(query) -> Answer:
    try:
        value = query().value
    except QueryError as error:
        return str(error), {}
    if isinstance(value, ScalarResult):
        return "scalar", {(): [(value.time_ms, value.value)]}
    assert isinstance(value, VectorResult | MatrixResult)
    times = value.times_ms.tolist()
    return "vector" if isinstance(value, VectorResult) else "matrix", {
        tuple(sorted(labels.items())): [(t, v) for t, v, p in zip(times, row, mask, strict=True) if p]
        for labels, row, mask in zip(value.labels, value.values.tolist(), value.present.tolist(), strict=True)
    }


def close(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b)) or abs(a - b) <= 1e-8 * max(abs(a), abs(b), 1e-3)


def difference(a: Answer, b: Answer) -> str:
    if a[0] != b[0] and {a[0], b[0]} & {"vector", "matrix", "scalar"}:
        return f"we: {a[0]}, they: {b[0]}"
    if a[1].keys() != b[1].keys():
        return f"only we: {a[1].keys() - b[1].keys()}, only they: {b[1].keys() - a[1].keys()}"
    for labels, points in a[1].items():
        other = b[1][labels]
        if [t for t, _ in points] != [t for t, _ in other]:
            return f"{labels}: other times"
        for (t, x), (_, y) in zip(points, other, strict=True):
            if not close(x, y):
                return f"{labels} at {t}: we {x!r}, they {y!r}"
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_random_queries(tmp_path, seed, capsys) -> None:
    rng = random.Random(seed)
    base_s = int(time.time()) // 7200 * 7200 - 7200
    data = series(rng, base_s)
    to_blocks(tmp_path, data)
    storage = MemoryStorage(({"__name__": name, **labels}, samples) for name, labels, samples in data)
    queries = Queries(rng, base_s)
    engine = Engine(QueryLimits(workers=1))
    compared = 0
    problems = []
    with Prometheus(tmp_path, "", "") as prometheus:
        for _ in range(QUERIES):
            query = queries.vector(3)
            start = base_s + rng.randint(0, SPAN_S) + 0.5
            start_ms = round(start * 1000)
            if rng.random() < 0.5:
                mine = ours(lambda: engine.instant(storage, query, start_ms))  # noqa: B023
                theirs = ask(prometheus.url, "query", query=query, time=start)
            else:
                step, length = rng.choice([15, 60, 37, 300]), rng.randint(0, 2000)
                mine = ours(lambda: engine.range(storage, query, start_ms, start_ms + length * 1000, step * 1000))  # noqa: B023
                theirs = ask(prometheus.url, "query_range", query=query, start=start, end=start + length, step=step)
            if "same labelset" in theirs[0]:
                continue  # names are dropped at the end only: fewer series become alike on the way
            compared += bool(mine[1])
            if what := difference(mine, theirs):
                problems.append(f"{query}: {what}")
    with capsys.disabled():
        print(f"\nseed {seed}: {compared} of {QUERIES} random queries with points, {len(problems)} differ")
    assert problems == []
    assert compared > QUERIES // 2
