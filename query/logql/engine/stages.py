"""What each stage of a pipeline does to a batch of lines."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import assert_never

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from query.engine.gofloat import parse_float
from query.kernels.log_fields import pattern_captures
from query.logql.ast import (
    BothFilter,
    Decolorize,
    DropLabels,
    FilterOp,
    IpFilter,
    JsonParser,
    KeepLabels,
    LabelFilter,
    LabelFormat,
    LabelPredicate,
    LineFilter,
    LineFormat,
    LineTerm,
    LogfmtParser,
    NumberFilter,
    PatternParser,
    RegexpParser,
    Stage,
    TextFilter,
    Unit,
    UnpackParser,
)
from query.logql.engine.batch import ERROR, ERROR_DETAILS, Batch
from query.logql.engine.columns import Values, arrow_texts, decode
from query.logql.engine.parse_fields import run_json, run_logfmt, run_unpack
from query.logql.ip import parse_addresses
from query.logql.patterns import named_groups, only_named, parse_pattern, required_literals
from query.logql.template import Labels, Template
from query.logql.template_functions import TemplateError
from query.logql.units import parse_bytes, parse_go_duration_ns
from tsdb.logs.frame import Texts, gather
from tsdb.matchers import Matcher, Shape, compile_regex

_ANSI = (
    "[\u001b\u009b][[\\]()#;?]*(?:(?:(?:[a-zA-Z\\d]*(?:;[a-zA-Z\\d]*)*)?\u0007)"
    "|(?:(?:\\d{1,4}(?:;\\d{0,4})*)?[\\dA-PRZcf-ntqry=><~]))"
)
_COMPARE = {
    "==": np.equal,
    "!=": np.not_equal,
    ">": np.greater,
    ">=": np.greater_equal,
    "<": np.less,
    "<=": np.less_equal,
}
_TEMPLATE_FIELD = re.compile(r"\.(\w+)")
_TEMPLATE_WHOLE = re.compile(r"(?<![\w)\]])\.(?!\w)")
_TEMPLATE_LINE = re.compile(r"__line__|__timestamp__|\bnow\b")

compiled = lru_cache(maxsize=256)(Template)


def is_filter(stage: Stage) -> bool:
    """Whether a stage can remove lines."""
    return isinstance(stage, LineFilter | LabelFilter)


def run_stages(batch: Batch, stages: Iterable[Stage], now_ns: int) -> None:
    """Send a batch through stages; ends early when no line is left."""
    for stage in stages:
        if not len(batch):
            return
        run_stage(batch, stage, now_ns)


def run_stage(batch: Batch, stage: Stage, now_ns: int) -> None:
    """One stage."""
    match stage:
        case LineFilter():
            batch.take(line_mask(batch, stage))
        case LabelFilter():
            batch.take(predicate_mask(batch, stage.predicate, np.ones(len(batch), np.bool_)))
        case JsonParser():
            run_json(batch, stage)
        case LogfmtParser():
            run_logfmt(batch, stage)
        case UnpackParser():
            run_unpack(batch)
        case RegexpParser():
            _regexp(batch, stage)
        case PatternParser():
            _pattern(batch, stage)
        case LineFormat():
            _line_format(batch, stage, now_ns)
        case LabelFormat():
            _label_format(batch, stage, now_ns)
        case DropLabels():
            _drop(batch, stage)
        case KeepLabels():
            _keep(batch, stage)
        case Decolorize():
            batch.set_lines(to_texts(pc.replace_substring_regex(_strings(batch.lines()), _ANSI, "")))
        case _ as unreachable:
            assert_never(unreachable)


# -------------------------------------------------------------------- lines


def _strings(lines: Texts) -> pa.Array:
    """The lines as Arrow text; RE2 copes with what is no UTF-8."""
    return arrow_texts(lines).view(pa.large_string())


def to_texts(array: pa.Array) -> Texts:
    """Arrow text or binary as :class:`Texts`."""
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    buffers = array.view(pa.large_binary()).buffers()
    offsets = np.frombuffer(buffers[1], np.int64)[array.offset : array.offset + len(array) + 1]
    data = np.frombuffer(buffers[2], np.uint8) if buffers[2] else np.zeros(0, np.uint8)
    starts = np.ascontiguousarray(offsets[:-1])
    padded = np.zeros(int(offsets[-1]) + 64, np.uint8)
    padded[: int(offsets[-1])] = data[: int(offsets[-1])]
    return gather(padded, starts, np.diff(offsets))


def line_mask(batch: Batch, stage: LineFilter) -> NDArray[np.bool_]:
    """Which lines a filter keeps."""
    mask = _term_mask(batch, stage.op, stage.terms[0])
    for term in stage.terms[1:]:
        if mask.all():
            break
        mask = mask | _term_mask(batch, stage.op, term)
    return ~mask if stage.op.negated else mask


def _term_mask(batch: Batch, op: FilterOp, term: LineTerm) -> NDArray[np.bool_]:
    if term.ip:
        addresses = parse_addresses(term.value)
        found = (addresses.found_in(decode(line)) for line in batch.lines().to_list())
        return np.fromiter(found, np.bool_, len(batch))
    if op in (FilterOp.CONTAINS, FilterOp.NOT_CONTAINS):
        return batch.contains(term.value.encode("utf-8", "surrogateescape"))
    if op in (FilterOp.MATCHES, FilterOp.NOT_MATCHES):
        regex = compile_regex(term.value)
        if regex.shape is Shape.LITERALS or regex.shape is Shape.INFIX:
            mask = np.zeros(len(batch), np.bool_)
            for text in regex.texts:
                mask |= batch.contains(text.encode("utf-8", "surrogateescape"))
            return mask
        return _regex_mask(batch, term.value)
    return _captures(batch.lines(), term.value, need_names=False)[2]


def _regex_mask(batch: Batch, pattern: str) -> NDArray[np.bool_]:
    """Which lines a regex matches; only those with the texts that every match has are looked at closer."""
    mask = np.ones(len(batch), np.bool_)
    for needle in required_literals(pattern):
        mask &= batch.contains(needle.encode("utf-8", "surrogateescape"))
    rows = np.flatnonzero(mask)
    if len(rows):
        mask[rows] = batch.matches(pattern, rows)
    return mask


def needles_of(stages: Sequence[Stage]) -> list[bytes]:
    """Literals that every line that passes must hold as it was stored, for the store to leave blocks out."""
    needles = []
    for stage in stages:
        if isinstance(stage, LineFormat | UnpackParser | Decolorize):
            break
        if isinstance(stage, LineFilter) and len(stage.terms) == 1 and not stage.terms[0].ip:
            text = stage.terms[0].value
            if stage.op is FilterOp.CONTAINS and text:
                needles.append(text.encode("utf-8", "surrogateescape"))
            elif stage.op is FilterOp.MATCHES:
                regex = compile_regex(text)
                single = regex.shape in (Shape.LITERALS, Shape.INFIX) and len(regex.texts) == 1
                literals = regex.texts if single else required_literals(text)
                needles += [literal.encode("utf-8", "surrogateescape") for literal in literals if literal]
            elif stage.op is FilterOp.PATTERN:
                needles += [literal for literal in parse_pattern(text, need_names=False).literals if literal]
    return needles


def _captures(
    lines: Texts, text: str, *, need_names: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """(starts, ends) of the captures in each line, -1 where there is nothing, and which lines match as a whole."""
    pattern = parse_pattern(text, need_names=need_names)
    n = len(lines.offsets) - 1
    literals = np.frombuffer(b"".join(pattern.literals) + b"\0", np.uint8)
    offsets = np.zeros(len(pattern.literals) + 1, np.int64)
    np.cumsum([len(literal) for literal in pattern.literals], out=offsets[1:])
    captures = len(pattern.names)
    starts, ends = np.empty((captures, n), np.int64), np.empty((captures, n), np.int64)
    matched = np.zeros(n, np.uint8)
    pattern_captures(lines.data, lines.offsets, literals, offsets, int(pattern.leads), captures, starts, ends, matched)
    return starts, ends, matched.view(np.bool_)


# -------------------------------------------------------------------- parsers


def _pattern(batch: Batch, stage: PatternParser) -> None:
    lines = batch.lines()
    starts, ends, _ = _captures(lines, stage.pattern, need_names=True)
    for capture, name in enumerate(parse_pattern(stage.pattern, need_names=True).names):
        if name == "_":
            continue
        if batch.wants_field(name):
            present = starts[capture] >= 0
            texts = gather(lines.data, np.maximum(starts[capture], 0), np.maximum(ends[capture] - starts[capture], 0))
            batch.set_parsed(name, Values.of_texts(texts, present, escaped=False))


def _regexp(batch: Batch, stage: RegexpParser) -> None:
    found = pc.extract_regex(_strings(batch.lines()), only_named(stage.pattern))
    present = np.asarray(found.is_valid().to_numpy(zero_copy_only=False), np.bool_)
    for name in named_groups(stage.pattern):
        if batch.wants_field(name):
            batch.set_parsed(name, Values.of_texts(to_texts(found.field(name)), present, escaped=False))


# -------------------------------------------------------------------- label filters


def predicate_mask(batch: Batch, predicate: LabelPredicate, considered: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which lines a label filter keeps; lines outside ``considered`` are not marked with its errors."""
    match predicate:
        case TextFilter():
            return batch.get(predicate.matcher.name).matches(predicate.matcher)
        case NumberFilter():
            return _number_mask(batch, predicate, considered)
        case IpFilter():
            addresses = parse_addresses(predicate.addresses)
            values = batch.get(predicate.name)
            found = values.map(lambda text: float(addresses.found_in(text)), 0.0) > 0
            return values.present & (~found if predicate.negated else found)
        case BothFilter():
            left = predicate_mask(batch, predicate.left, considered)
            if predicate.op == "or":
                return left | predicate_mask(batch, predicate.right, considered & ~left)
            return left & predicate_mask(batch, predicate.right, considered & left)
        case _ as unreachable:
            assert_never(unreachable)


def number_of(text: str, unit: Unit) -> float:
    """Value of a label in a unit, NaN where it has none."""
    value: float | None
    if unit is Unit.DURATION:
        value = parse_go_duration_ns(text)
    elif unit is Unit.BYTES:
        value = parse_bytes(text)
    else:
        value = parse_float(text)
    return np.nan if value is None else float(value)


def _number_mask(batch: Batch, predicate: NumberFilter, considered: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """An absent label never passes, a line with an error always does: it is for ``__error__`` filters to remove."""
    stored = batch.numbers(predicate.name) if predicate.unit is Unit.NUMBER else None
    if stored is not None:
        kept: NDArray[np.bool_] = stored[1] & _COMPARE[predicate.op](stored[0], predicate.value)
        failed = batch.errors()
        return kept if failed is None else kept | failed
    values = batch.get(predicate.name)
    numbers = values.map(lambda text: number_of(text, predicate.unit), 0.0)
    bad = np.isnan(numbers) & values.present
    if bad.any():
        literal_nan = values.map(lambda text: float(text.lower() in ("nan", "+nan", "-nan")), 0.0) > 0
        bad &= ~literal_nan
    mask: NDArray[np.bool_] = values.present & _COMPARE[predicate.op](numbers, predicate.value)
    had = batch.errors()
    if had is not None:
        mask = mask | had
    bad &= considered
    if bad.any():
        batch.fail(bad, "LabelFilterErr", f"cannot compare {predicate.name} as a {predicate.unit.value}")
        mask = mask | bad
    return np.asarray(mask, np.bool_)


# -------------------------------------------------------------------- formats


def template_fields(text: str) -> frozenset[str] | None:
    """Labels that a template may look at; None = any."""
    return None if _TEMPLATE_WHOLE.search(text) else frozenset(_TEMPLATE_FIELD.findall(text))


def _render(batch: Batch, text: str, now_ns: int) -> tuple[list[str | None], list[str]]:
    """Text of each line (None where the template fails), and what was wrong."""
    template = compiled(text)
    fields = template_fields(text)
    names = batch.names() if fields is None else sorted(fields)
    if fields is not None and not _TEMPLATE_LINE.search(text):
        # the same labels give the same text: once per distinct combination
        columns = [batch.get(name) for name in names]
        codes = np.stack([c.codes for c in columns], axis=1) if columns else np.zeros((len(batch), 1), np.int32)
        distinct, inverse = np.unique(codes, axis=0, return_inverse=True)
        first = np.zeros(len(distinct), np.int64)
        first[inverse.ravel()] = np.arange(len(batch))
        made, wrong = _render_rows(template, [c.take(first) for c in columns], names, [""] * len(first), None, now_ns)
        places = inverse.ravel().tolist()
        return [made[place] for place in places], [wrong[place] for place in places]
    columns = [batch.get(name) for name in names]
    return _render_rows(template, columns, names, batch.line_texts(), batch.frame.ts_ns, now_ns)


def _render_rows(
    template: Template,
    columns: list[Values],
    names: list[str],
    lines: list[str],
    ts_ns: NDArray[np.int64] | None,
    now_ns: int,
) -> tuple[list[str | None], list[str]]:
    texts = [column.to_list() for column in columns]
    times = [0] * len(lines) if ts_ns is None else ts_ns.tolist()
    made: list[str | None] = []
    wrong: list[str] = []
    for row, line in enumerate(lines):
        labels = Labels({name: column[row] for name, column in zip(names, texts, strict=True) if column[row]})
        try:
            made.append(template.render(labels, line, times[row], now_ns))
            wrong.append("")
        except TemplateError as error:
            made.append(None)
            wrong.append(str(error))
    return made, wrong


def _line_format(batch: Batch, stage: LineFormat, now_ns: int) -> None:
    made, wrong = _render(batch, stage.template, now_ns)
    failed = np.array([text is None for text in made], np.bool_)
    if failed.any():
        old = batch.lines().to_list()
        new = [
            line if text is None else text.encode("utf-8", "surrogatepass")
            for text, line in zip(made, old, strict=True)
        ]
        batch.set_lines(Texts.of(new))
        batch.fail(failed, "TemplateFormatErr", Values.of([text or None for text in wrong]))
        return
    batch.set_lines(Texts.of([(text or "").encode("utf-8", "surrogatepass") for text in made]))


def _label_format(batch: Batch, stage: LabelFormat, now_ns: int) -> None:
    for assignment in stage.assignments:
        if assignment.rename:
            values = batch.get(assignment.value)
            if len(values.used()):
                batch.set_where(assignment.target, values.present, values)
            if assignment.value != assignment.target:
                batch.drop(assignment.value)
            continue
        if not batch.wants(assignment.target):
            continue
        made, wrong = _render(batch, assignment.value, now_ns)
        failed = np.array([text is None for text in made], np.bool_)
        batch.set_where(assignment.target, ~failed, Values.of(made))
        batch.fail(failed, "TemplateFormatErr", Values.of([text or None for text in wrong]))


def _drop(batch: Batch, stage: DropLabels) -> None:
    for item in stage.items:
        if isinstance(item, Matcher):
            batch.remove_where(item.name, batch.get(item.name).matches(item))
        else:
            batch.drop(item)
            if item == ERROR:
                batch.drop(ERROR_DETAILS)


def _keep(batch: Batch, stage: KeepLabels) -> None:
    names = set()
    for item in stage.items:
        if isinstance(item, Matcher):
            batch.remove_where(item.name, ~batch.get(item.name).matches(item))
            names.add(item.name)
        else:
            names.add(item)
    batch.keep_only(names)
