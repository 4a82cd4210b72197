"""Reads selectors and the stages of a pipeline."""

from __future__ import annotations

from query.logql.ast import (
    BothFilter,
    Decolorize,
    DropLabels,
    Extraction,
    FilterOp,
    IpFilter,
    JsonParser,
    KeepLabels,
    LabelAssignment,
    LabelFilter,
    LabelFormat,
    LabelPredicate,
    LineFilter,
    LineFormat,
    LineTerm,
    LogfmtParser,
    LogQuery,
    NumberFilter,
    PatternParser,
    RegexpParser,
    Stage,
    TextFilter,
    Unit,
    UnpackParser,
    Unwrap,
)
from query.logql.cursor import MATCH_OPS, TokenCursor
from query.logql.ip import parse_addresses
from query.logql.jsonpath import parse_path
from query.logql.lexer import BYTES, DURATION, FLAG, IDENTIFIER, NUMBER, RANGE, STRING, LogqlError
from query.logql.patterns import named_groups, parse_pattern
from query.logql.template import Template
from query.promql.ast import Span
from query.promql.literals import quote
from tsdb.matchers import Matcher

_LINE_OPS = frozenset(op.value for op in FilterOp)
_COMPARISONS = {"=": "==", "==": "==", "!=": "!=", ">": ">", ">=": ">=", "<": "<", "<=": "<="}
_ERROR = "__error__"
"""Written by stages that fail only; a pipeline that set it itself would hide lines from filters of errors."""
_CONVERSIONS = frozenset(("bytes", "duration", "duration_seconds"))
NO_MATCHER = (
    "queries require at least one regexp or equality matcher that does not have an empty-compatible value. For "
    'instance, app=~".*" does not meet this requirement, but app=~".+" will'
)


class StageParser(TokenCursor):
    """Reads ``{selector} stage stage ...``."""

    __slots__ = ()

    def selector(self, *, checked: bool = True) -> tuple[Matcher, ...]:
        """``{name="value", ...}``."""
        self.expect("{")
        matchers: list[Matcher] = []
        if self.kind != "}":
            if self.kind != IDENTIFIER:
                self.unexpected(IDENTIFIER, "}")
            matchers.append(self.matcher())
            while self.kind == ",":
                self.at += 1
                matchers.append(self.matcher())
        if self.kind != "}":
            self.unexpected("}", ",")
        self.at += 1
        if checked and not any(not matcher.matches_empty for matcher in matchers):
            raise LogqlError(NO_MATCHER)
        return tuple(matchers)

    def log_query(self) -> LogQuery:
        """A selector and its stages."""
        start = self.starts[self.at]
        matchers = self.selector()
        stages: list[Stage] = []
        while self.at_stage():
            if self.at_unwrap():
                self.unexpected()
            stages.append(self.stage())
        return LogQuery(matchers, tuple(stages), Span(start, self.end()))

    def at_stage(self) -> bool:
        """Whether a stage follows."""
        return self.kind == "|" or self.kind in _LINE_OPS

    def at_unwrap(self) -> bool:
        """Whether ``| unwrap`` follows."""
        return self.kind == "|" and str(self.values[self.at + 1]).lower() == "unwrap"

    def unwrap(self) -> Unwrap:
        """``| unwrap label | filter ...``, standing at the pipe."""
        start = self.starts[self.at]
        self.at += 2
        name = self.name()
        conversion = ""
        if self.kind == "(":
            conversion = name.lower()
            if conversion not in _CONVERSIONS:
                self.unexpected()
            self.at += 1
            name = self.name()
            self.expect(")")
        filters = []
        while self.kind == "|" and not self.at_unwrap():
            at = self.at
            self.at += 1
            filters.append(LabelFilter(self.predicate(0), Span(self.starts[at], self.end())))
        return Unwrap(name, conversion, tuple(filters), Span(start, self.end()))

    def stage(self) -> Stage:
        """One stage, standing at its operator."""
        start = self.starts[self.at]
        if self.kind != "|":
            return self.line_filter()
        self.at += 1
        word = self.word
        span = Span(start, self.ends[self.at])
        behind = self.behind()
        if (
            word
            and behind in ("==", ">", ">=", "<", "<=", "=", "!=", "=~", "!~")
            and not self._is_stage_before_filter(word)
        ):
            return self._label_filter(start)
        if word in ("json", "logfmt"):
            self.at += 1
            return self._json(span) if word == "json" else self._logfmt(span)
        if word in ("regexp", "pattern", "line_format"):
            self.at += 1
            text = self.string()
            return self._text_stage(word, text, Span(start, self.end()))
        if word == "unpack":
            self.at += 1
            return UnpackParser(span)
        if word == "decolorize":
            self.at += 1
            return Decolorize(span)
        if word == "label_format":
            self.at += 1
            return self._label_format(start)
        if word in ("drop", "keep"):
            self.at += 1
            items = tuple(self._label_items())
            kind = DropLabels if word == "drop" else KeepLabels
            return kind(items, Span(start, self.end()))
        if word == "xml":
            self.fail("unsupported: the xml parser", start)
        return self._label_filter(start)

    def _is_stage_before_filter(self, word: str) -> bool:
        """``| json != "x"``: a parser, then a line filter, although it looks like a comparison."""
        return word in ("json", "logfmt", "unpack", "decolorize") and self.behind() in _LINE_OPS

    def _text_stage(self, word: str, text: str, span: Span) -> Stage:
        if word == "line_format":
            self._template(text, "line", span)
            return LineFormat(text, span)
        try:
            if word == "pattern":
                parse_pattern(text, need_names=True)
                return PatternParser(text, span)
            self.check_regex(text, span.start)
            named_groups(text)
        except ValueError as error:
            self.fail(str(error), span.start)
        return RegexpParser(text, span)

    def _template(self, text: str, name: str, span: Span) -> None:
        try:
            Template(text)
        except ValueError as error:
            what = "invalid line template" if name == "line" else f"invalid template for label {quote(name)}"
            raise LogqlError(f"stage '{self.text[span.start : span.end].strip()}' : {what}: {error}") from None

    def _extractions(self, *, json: bool) -> tuple[Extraction, ...]:
        found: list[Extraction] = []
        while self.kind == IDENTIFIER:
            start = self.starts[self.at]
            name = self.name()
            path = self.string() if self.take("=") else name
            if json:
                try:
                    parse_path(path)
                except ValueError as error:
                    self.fail(f"cannot parse expression [{path}]: {error}", start)
            found.append(Extraction(name, path))
            if self.kind != ",":
                break
            self.at += 1
            if self.kind != IDENTIFIER:
                self.unexpected(IDENTIFIER)
        return tuple(found)

    def _json(self, span: Span) -> JsonParser:
        found = self._extractions(json=True)
        return JsonParser(found, Span(span.start, self.end()))

    def _logfmt(self, span: Span) -> LogfmtParser:
        flags = set()
        while self.kind == FLAG:
            flags.add(str(self.values[self.at]))
            self.at += 1
        found = self._extractions(json=False)
        return LogfmtParser(found, "--strict" in flags, "--keep-empty" in flags, Span(span.start, self.end()))

    def _label_format(self, start: int) -> LabelFormat:
        found: list[LabelAssignment] = []
        while True:
            target = self.name()
            self.expect("=")
            if self.kind == STRING:
                template = self.string()
                self._template(template, target, Span(start, self.end()))
                found.append(LabelAssignment(target, template, rename=False))
            else:
                found.append(LabelAssignment(target, self.name(), rename=True))
            if not self.take(","):
                break
        targets = [assignment.target for assignment in found]
        for target in targets:
            if target == _ERROR:
                self.fail(f"{_ERROR} cannot be formatted", start)
            if targets.count(target) > 1:
                self.fail(f"multiple label name '{target}' not allowed in a single format operation", start)
        return LabelFormat(tuple(found), Span(start, self.end()))

    def _label_items(self) -> list[str | Matcher]:
        items: list[str | Matcher] = []
        while True:
            if self.kind == IDENTIFIER and self.behind() in MATCH_OPS:
                items.append(self.matcher())
            else:
                items.append(self.name())
            if not self.take(","):
                return items

    # ---------------------------------------------------------------- line filters

    def line_filter(self) -> LineFilter:
        """``|= "text" or ip("...")``."""
        start = self.starts[self.at]
        op = FilterOp(self.kind)
        self.at += 1
        terms = [self._term(op)]
        while self.take_word("or"):
            terms.append(self._term(op))
        return LineFilter(op, tuple(terms), Span(start, self.end()))

    def _term(self, op: FilterOp) -> LineTerm:
        start = self.starts[self.at]
        if self.word == "ip":
            if op not in (FilterOp.CONTAINS, FilterOp.NOT_CONTAINS):
                self.unexpected(STRING)
            return LineTerm(self._ip(), ip=True)
        if self.kind != STRING:
            self.unexpected(STRING, "ip")
        text = self.string()
        if op in (FilterOp.MATCHES, FilterOp.NOT_MATCHES):
            self.check_regex(text, start)
        elif op in (FilterOp.PATTERN, FilterOp.NOT_PATTERN):
            try:
                parse_pattern(text, need_names=False)
            except ValueError as error:
                self.fail(str(error), start)
        return LineTerm(text)

    def _ip(self) -> str:
        start = self.starts[self.at]
        self.at += 1
        self.expect("(")
        text = self.string()
        self.expect(")")
        try:
            parse_addresses(text)
        except ValueError as error:
            self.fail(str(error), start)
        return text

    # ---------------------------------------------------------------- label filters

    def _label_filter(self, start: int) -> LabelFilter:
        return LabelFilter(self.predicate(0), Span(start, self.end()))

    def predicate(self, precedence: int) -> LabelPredicate:
        """``a > 1 and (b = "x" or c = 2s)``; a comma or nothing between two means and, and takes all that follows."""
        left = self._primary()
        while True:
            word = self.word
            if word == "or" and precedence < 1:
                self.at += 1
                left = BothFilter("or", left, self.predicate(1))
            elif word == "and" and precedence < 2:
                self.at += 1
                left = BothFilter("and", left, self.predicate(2))
            elif self.kind == ",":
                self.at += 1
                left = BothFilter("and", left, self.predicate(0))
            elif self.kind == "(" or (self.kind == IDENTIFIER and word not in ("or", "and", "offset")):
                left = BothFilter("and", left, self.predicate(0))
            else:
                return left

    def _primary(self) -> LabelPredicate:
        if self.kind == "(":
            self.nested()
            self.at += 1
            inner = self.predicate(0)
            self.expect(")")
            self.depth -= 1
            return inner
        start = self.starts[self.at]
        if self.kind != IDENTIFIER:
            self.unexpected()
        name = self.name()
        op = self.kind
        if op not in _COMPARISONS and op not in MATCH_OPS:
            self.unexpected()
        self.at += 1
        if self.kind == STRING and op in MATCH_OPS:
            self.at -= 2
            return TextFilter(self.matcher())
        if op not in _COMPARISONS:
            self.unexpected(STRING)
        if self.word == "ip" and op in ("=", "!="):
            return IpFilter(name, op == "!=", self._ip())
        comparison = _COMPARISONS[op]
        value = self.values[self.at]
        if self.kind in (DURATION, BYTES) and isinstance(value, int):
            unit = Unit.DURATION if self.kind == DURATION else Unit.BYTES
            self.at += 1
            return NumberFilter(name, comparison, float(value), unit)
        if self.kind in (NUMBER, "+", "-"):
            return NumberFilter(name, comparison, self.number(), Unit.NUMBER)
        if op in MATCH_OPS:
            self.unexpected()
        if self.kind == RANGE:
            self.fail("syntax error: unexpected RANGE", start)
        return self.unexpected(BYTES, NUMBER, DURATION)
