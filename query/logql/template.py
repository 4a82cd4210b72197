"""Go's text templates as far as ``line_format`` and ``label_format`` use them.

A template is compiled to a small tree once and evaluated per line: actions with pipelines, fields, literals,
variables, ``if``/``else if``/``with``/``range``, and the functions of :mod:`query.logql.template_functions`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from query.logql.template_functions import FUNCTIONS, Moment, TemplateError, go_text, is_true
from query.promql.literals import unquote

_ACTION = re.compile(r"\{\{(-(?=\s))?(.*?)((?<=\s)-)?\}\}", re.DOTALL)
_TOKEN = re.compile(
    r"""\s*(?:
      (?P<string>"(?:[^"\\\n]|\\.)*"|`[^`]*`)
    | (?P<char>'(?:[^'\\]|\\.)+')
    | (?P<number>[+-]?(?:0[xX][0-9a-fA-F]+|\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+))
    | (?P<variable>\$\w*(?:\.\w+)*)
    | (?P<field>\.\w+(?:\.\w+)*|\.)
    | (?P<word>\w+)
    | (?P<mark>:=|[()|,=])
    )""",
    re.VERBOSE,
)
_COMMENT = re.compile(r"\s*/\*.*?\*/\s*", re.DOTALL)
_WORDS = {"true": True, "false": False, "nil": None}


@dataclass(slots=True)
class Scope:
    """What a template sees of one line."""

    dot: Any
    line: str
    ts_ns: int
    now_ns: int
    variables: dict[str, Any] = field(default_factory=dict)


Evaluate = Callable[[Scope], Any]


class _Parser:
    """Reads one action's text."""

    def __init__(self, text: str) -> None:
        self.tokens: list[tuple[str, str]] = []
        at = 0
        while text[at:].strip():
            found = _TOKEN.match(text, at)
            if found is None:
                raise ValueError(f"template: :1: unexpected {text[at:].strip()[:1]!r} in command")
            self.tokens.append((str(found.lastgroup), found[str(found.lastgroup)]))
            at = found.end()
        self.at = 0

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.at] if self.at < len(self.tokens) else ("end", "")

    def done(self) -> bool:
        return self.at == len(self.tokens)

    def pipeline(self) -> Evaluate:
        """``a b | c d``, perhaps ``$x := ...``."""
        if self.peek()[0] == "variable" and self.tokens[self.at + 1 : self.at + 2] in (
            [("mark", ":=")],
            [("mark", "=")],
        ):
            name = self.peek()[1]
            self.at += 2
            value = self.pipeline()

            def assign(scope: Scope) -> str:
                scope.variables[name] = value(scope)
                return ""

            return assign
        result = self.command(None)
        while self.peek() == ("mark", "|"):
            self.at += 1
            result = self.command(result)
        return result

    def command(self, piped: Evaluate | None) -> Evaluate:
        """A function with its arguments, or a value."""
        kind, text = self.peek()
        if kind == "word" and text not in _WORDS:
            self.at += 1
            function = FUNCTIONS.get(text)
            if function is None and text not in ("__line__", "__timestamp__", "now"):
                raise ValueError(f'template: :1: function "{text}" not defined')
            args = self.arguments()
            if piped is not None:
                args.append(piped)
            if text == "__line__":
                return lambda scope: scope.line
            if text in ("__timestamp__", "now"):
                return (lambda scope: Moment(scope.ts_ns)) if text != "now" else (lambda scope: Moment(scope.now_ns))
            assert function is not None
            return _call(function, text, args)
        args = self.arguments()
        if not args:
            raise ValueError("template: :1: missing value for command")
        if len(args) > 1 or piped is not None:
            raise ValueError(f"template: :1: can't give argument to non-function {text}")
        return args[0]

    def arguments(self) -> list[Evaluate]:
        args: list[Evaluate] = []
        while True:
            kind, text = self.peek()
            if kind == "end" or (kind == "mark" and text != "("):
                return args
            self.at += 1
            if kind == "mark":
                inner = self.pipeline()
                if self.peek() != ("mark", ")"):
                    raise ValueError("template: :1: unclosed left paren")
                self.at += 1
                kind, text = self.peek()
                if kind == "field" and text != ".":
                    self.at += 1
                    inner = _fields(inner, text)
                args.append(inner)
            else:
                args.append(self.atom(kind, text))

    @staticmethod
    def atom(kind: str, text: str) -> Evaluate:
        if kind == "string":
            literal = unquote(text)
            return lambda _scope: literal
        if kind == "char":
            code = ord(unquote(f'"{text[1:-1]}"'))
            return lambda _scope: code
        if kind == "number":
            number: int | float = float(text) if re.search(r"[.eE]", text) and "x" not in text.lower() else int(text, 0)
            return lambda _scope: number
        if kind == "field":
            return _fields(lambda scope: scope.dot, text)
        if kind == "variable":
            name, _, rest = text.partition(".")
            if name == "$":
                return _fields(lambda scope: scope.variables["$"], f".{rest}")
            return _fields(lambda scope: _variable(scope, name), f".{rest}")
        if text in _WORDS:
            value = _WORDS[text]
            return lambda _scope: value
        if text == "__line__":
            return lambda scope: scope.line
        if text == "__timestamp__":
            return lambda scope: Moment(scope.ts_ns)
        if text == "now":
            return lambda scope: Moment(scope.now_ns)
        function = FUNCTIONS.get(text)
        if function is None:
            raise ValueError(f'template: :1: function "{text}" not defined')
        return _call(function, text, [])


def _variable(scope: Scope, name: str) -> Any:
    if name not in scope.variables:
        raise TemplateError(f"undefined variable: {name}")
    return scope.variables[name]


def _fields(start: Evaluate, path: str) -> Evaluate:
    names = [name for name in path.split(".") if name]
    if not names:
        return start

    def evaluate(scope: Scope) -> Any:
        value = start(scope)
        for name in names:
            if value is None:
                return None
            if not isinstance(value, Mapping):
                raise TemplateError(f"can't evaluate field {name} in type {type(value).__name__}")
            value = value.get(name, "" if isinstance(value, Labels) else None)
        return value

    return evaluate


class Labels(dict[str, str]):
    """Labels of a line: a missing one is the empty text."""


def _call(function: Callable[..., Any], name: str, args: list[Evaluate]) -> Evaluate:
    if name in ("and", "or"):
        stop = name == "or"

        def shortcut(scope: Scope) -> Any:
            value: Any = ""
            for arg in args:
                value = arg(scope)
                if is_true(value) == stop:
                    break
            return value

        return shortcut

    def evaluate(scope: Scope) -> Any:
        try:
            return function(*[arg(scope) for arg in args])
        except TemplateError as error:
            raise TemplateError(f"error calling {name}: {error}") from None
        except (TypeError, ValueError, IndexError, KeyError, ZeroDivisionError, OverflowError, re.error) as error:
            raise TemplateError(f"error calling {name}: {error}") from None

    return evaluate


Block = list[Callable[[Scope], str]]


class Template:
    """A compiled template.

    Raises
    ------
    ValueError        with the words of Go's parser
    """

    __slots__ = ("_block", "_pieces", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._pieces = _split(text)
        self._block = self._read(0, top=True)[0]

    def render(self, labels: Labels, line: str, ts_ns: int, now_ns: int) -> str:
        """Text for one line.

        Raises
        ------
        TemplateError
        """
        scope = Scope(labels, line, ts_ns, now_ns)
        scope.variables["$"] = labels
        return _run(self._block, scope)

    def _read(self, at: int, *, top: bool) -> tuple[Block, int, str]:
        """A block up to its ``end`` or ``else``; (what it does, place behind it, the action that ended it)."""
        block: Block = []
        while at < len(self._pieces):
            action, text = self._pieces[at]
            at += 1
            if not action:
                block.append(_constant(text))
                continue
            word = text.split(maxsplit=1)[0] if text.strip() else ""
            if word in ("end", "else"):
                if top:
                    raise ValueError(f"template: :1: unexpected {{{{{word}}}}}")
                return block, at, text.strip()
            if word in ("if", "with", "range"):
                made, at = self._control(word, text.strip()[len(word) :], at)
                block.append(made)
            elif word in ("define", "template", "block", "break", "continue"):
                raise ValueError(f"template: :1: unsupported: {{{{{word}}}}}")
            elif not _COMMENT.fullmatch(text):
                block.append(_output(_pipeline(text)))
        if not top:
            raise ValueError("template: :1: unexpected EOF")
        return block, at, ""

    def _control(self, word: str, condition: str, at: int) -> tuple[Callable[[Scope], str], int]:
        test = _pipeline(condition)
        body, at, ending = self._read(at, top=False)
        otherwise: Block = []
        if ending.startswith("else"):
            more = ending[4:].strip()
            if more:
                kind = more.split(maxsplit=1)[0]
                made, at = self._control(kind, more[len(kind) :], at)
                otherwise = [made]
            else:
                otherwise, at, ending = self._read(at, top=False)
        return _CONTROLS[word](test, body, otherwise), at


def _split(text: str) -> list[tuple[bool, str]]:
    """Literal texts and actions in turn; ``-`` trims the blanks beside an action."""
    pieces: list[tuple[bool, str]] = []
    at = 0
    trim = False
    for action in _ACTION.finditer(text):
        literal = text[at : action.start()]
        literal = literal.lstrip() if trim else literal
        pieces.append((False, literal.rstrip() if action[1] else literal))
        pieces.append((True, action[2]))
        trim = bool(action[3])
        at = action.end()
    rest = text[at:]
    if "{{" in rest:
        raise ValueError("template: :1: unclosed action")
    pieces.append((False, rest.lstrip() if trim else rest))
    return [piece for piece in pieces if piece[0] or piece[1]]


def _pipeline(text: str) -> Evaluate:
    parser = _Parser(text)
    if parser.done():
        raise ValueError("template: :1: missing value for command")
    made = parser.pipeline()
    if not parser.done():
        raise ValueError(f"template: :1: unexpected {parser.peek()[1]!r} in input")
    return made


def _constant(text: str) -> Callable[[Scope], str]:
    return lambda _scope: text


def _output(value: Evaluate) -> Callable[[Scope], str]:
    return lambda scope: go_text(value(scope))


def _run(block: Block, scope: Scope) -> str:
    return "".join([piece(scope) for piece in block])


def _if(test: Evaluate, body: Block, otherwise: Block) -> Callable[[Scope], str]:
    return lambda scope: _run(body if is_true(test(scope)) else otherwise, scope)


def _with(test: Evaluate, body: Block, otherwise: Block) -> Callable[[Scope], str]:
    def run(scope: Scope) -> str:
        value = test(scope)
        if not is_true(value):
            return _run(otherwise, scope)
        outer, scope.dot = scope.dot, value
        try:
            return _run(body, scope)
        finally:
            scope.dot = outer

    return run


def _range(test: Evaluate, body: Block, otherwise: Block) -> Callable[[Scope], str]:
    def run(scope: Scope) -> str:
        value = test(scope)
        items = list(value.values()) if isinstance(value, Mapping) else list(value) if isinstance(value, list) else []
        if not items:
            return _run(otherwise, scope)
        outer = scope.dot
        out = []
        for item in items:
            scope.dot = item
            out.append(_run(body, scope))
        scope.dot = outer
        return "".join(out)

    return run


_CONTROLS = {"if": _if, "with": _with, "range": _range}
