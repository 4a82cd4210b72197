"""``label_replace`` and ``label_join``: only distinct label values are looked at, never every series."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from query.engine.binary import merge_alike
from query.engine.context import QueryContext
from query.engine.grid import NAME, Grid, column, columns, group_ids, set_label
from query.errors import ExecutionError

_REFERENCE = re.compile(r"\$(?:\$|\{([^}]*)\}|(\w+))|\$", re.ASCII)

_TOKEN = re.compile(
    r"\\Q.*?(?:\\E|$)|\\."  # quoted text, escapes
    r"|\[\^?\]?(?:\[:[^\]]*:\]|\\.|[^\]\\])*\]?"  # classes
    r"|\(\?P?<(?P<name>\w+)>|\(\?|(?P<group>\()",
    re.DOTALL,
)


def _check_name(name: str, what: str) -> None:
    valid = bool(name)
    try:
        name.encode()
    except UnicodeEncodeError:
        valid = False
    if not valid:
        raise ExecutionError(f"invalid {what}: {name}")


def _named_groups(pattern: str) -> tuple[str, dict[str, int], int]:
    """RE2 expression with every group named ``g<number>``; numbers of the names it had; number of groups."""
    names: dict[str, int] = {}
    count = 0

    def rename(token: re.Match[str]) -> str:
        nonlocal count
        if token["name"] is None and token["group"] is None:
            return token[0]
        count += 1
        if token["name"]:
            names[token["name"]] = count
        return f"(?P<g{count}>"

    return _TOKEN.sub(rename, pattern), names, count


def _expand(template: str, groups: dict[str, str], names: dict[str, int], count: int) -> str:
    """Go's ``Regexp.Expand``: ``$1``, ``$name``, ``${name}``, ``$$``; a group that does not exist is empty."""

    def replace(reference: re.Match[str]) -> str:
        if reference[0] == "$$":
            return "$"
        name = reference[1] if reference[1] is not None else reference[2]
        if not name:
            return reference[0]
        number = int(name) if name.isdigit() else names.get(name, count + 1)
        return groups[f"g{number}"] if number <= count else ""

    return _REFERENCE.sub(replace, template)


def label_replace(ctx: QueryContext, grid: Grid, target: str, template: str, source: str, pattern: str) -> Grid:
    """``label_replace``: set ``target`` where ``source`` matches."""
    named, names, count = _named_groups(pattern)
    distinct, inverse = np.unique(column(grid.labels, source), return_inverse=True)
    try:
        texts = pa.array(ctx.symbols.texts(distinct), pa.string())
        found = pc.extract_regex(texts, f"^(?s:(?P<g0>{named}))$").to_pylist()
    except (pa.ArrowInvalid, UnicodeEncodeError) as e:
        raise ExecutionError(f"invalid regular expression in label_replace(): {pattern}") from e
    _check_name(target, "destination label name in label_replace()")
    replaced = np.zeros(len(distinct), np.int32)
    matched = np.zeros(len(distinct), np.bool_)
    for i, groups in enumerate(found):
        if groups is not None:
            matched[i] = True
            replaced[i] = ctx.symbols.intern(_expand(template, groups, names, count))
    hit = matched[inverse]
    if not hit.any():
        return grid
    labels = set_label(grid.labels, target, np.where(hit, replaced[inverse], column(grid.labels, target)))
    drop = grid.drop_name & ~hit if target == NAME else grid.drop_name
    return merge_alike(Grid(labels, grid.values, grid.present, drop))


def label_join(ctx: QueryContext, grid: Grid, target: str, separator: str, sources: list[str]) -> Grid:
    """``label_join``: set ``target`` to the joined values of ``sources``."""
    for source in sources:
        _check_name(source, "source label name in label_join()")
    _check_name(target, "destination label name in label_join()")
    keys = columns(grid.labels, sources)
    group, first = group_ids(keys)
    texts = ctx.symbols.texts(keys[first].ravel())
    width = len(sources)
    joined = np.array(
        [ctx.symbols.intern(separator.join(texts[i * width : (i + 1) * width])) for i in range(len(first))], np.int32
    )
    labels = set_label(grid.labels, target, joined[group] if len(first) else np.zeros(len(grid), np.int32))
    drop = np.zeros(len(grid), np.bool_) if target == NAME else grid.drop_name
    return merge_alike(Grid(labels, grid.values, grid.present, drop))
