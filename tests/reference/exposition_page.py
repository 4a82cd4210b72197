"""Plain-Python twin of the federation page: the text format said with loops."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from tests.reference.json_text import float_text


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"') + '"'


def _name(name: str, pattern: str = "[A-Za-z_][A-Za-z0-9_]*") -> str:
    return name if re.fullmatch(pattern, name) else _quoted(name)


def page_lines(series: Iterable[tuple[Mapping[str, str], int, float]]) -> dict[str, set[str]]:
    """Metric name as written -> its lines, without the order of the lines."""
    pages: dict[str, set[str]] = {}
    for labels, ts_ms, value in series:
        metric = _name(labels["__name__"], "[A-Za-z_:][A-Za-z0-9_:]*")
        pairs = [f"{_name(n)}={_quoted(v)}" for n, v in sorted(labels.items()) if n != "__name__"]
        if metric.startswith('"'):
            pairs.insert(0, metric)
        braces = "{" + ",".join(pairs) + "}" if pairs else ""
        head = "" if metric.startswith('"') else metric
        pages.setdefault(metric, set()).add(f"{head}{braces} {float_text(value)} {ts_ms}")
    return pages
