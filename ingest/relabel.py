"""Relabelling: rules that rewrite or drop a label set, as Prometheus 3 does (``model/relabel``).

Regexes run in RE2, whose time is linear in the text, so that no rule can hang the process. It is ``google-re2`` and not
pyarrow's RE2, as in :mod:`tsdb.matchers`, because rules need the captured groups, one text at a time: pyarrow gives
away named groups only and takes 11 us a text where this takes 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import re2

REGEX = "(.*)"
"""Default of ``regex``."""

SEPARATOR = ";"
"""Default of ``separator``."""

REPLACEMENT = "$1"
"""Default of ``replacement``."""

_CASES = ("lowercase", "uppercase")
_EQUALS = ("keepequal", "dropequal")
_NAME_FILTERS = ("labeldrop", "labelkeep")
_TARGETED = ("replace", "hashmod", *_CASES, *_EQUALS)
ACTIONS = ("replace", "keep", "drop", *_EQUALS, "hashmod", "labelmap", *_NAME_FILTERS, *_CASES)
"""All values of ``action``."""


class RelabelError(ValueError):
    """A rule that cannot be used; the text is Prometheus'."""


@dataclass(frozen=True, slots=True)
class RelabelConfig:
    """One rule, by Prometheus' names.

    Attributes
    ----------
    source_labels : labels whose values, joined by ``separator``, are what the rule looks at; a missing one is empty
    regex : RE2 expression that must match that text as a whole, or the name of a label
    modulus : of ``hashmod``, 1 to 2^64 - 1
    target_label : label that is written; of ``replace`` a template
    replacement : template of the new value, or of ``labelmap``'s new name: ``$1``, ``${1}``, ``${name}``, ``$$``
    action : one of :data:`ACTIONS`, in any case
    """

    source_labels: tuple[str, ...] = ()
    separator: str = SEPARATOR
    regex: str = REGEX
    modulus: int = 0
    target_label: str = ""
    replacement: str = REPLACEMENT
    action: str = "replace"


class _Labels:
    """A label set while rules work on it, in the order in which Prometheus' builder walks through it.

    ``labelmap`` may give two labels one name, and then the last one wins: first come the labels as they were, by name,
    then those that a rule has set, in the order of their first setting.
    """

    __slots__ = ("_untouched", "values")

    def __init__(self, labels: Mapping[str, str]) -> None:
        self.values = dict(sorted(labels.items()))
        self._untouched = set(labels)

    def set(self, name: str, value: str) -> None:
        """Set a label; the empty value removes it."""
        if not value:
            self.values.pop(name, None)
            return
        if name in self._untouched:
            self._untouched.discard(name)
            self.values.pop(name, None)
        self.values[name] = value


_Step = Callable[[_Labels], bool]


@dataclass(frozen=True, slots=True)
class Rules:
    """Checked rules, ready to run; equal when they are written equally. They may run on several threads at once.

    Raises
    ------
    RelabelError        a rule that cannot be used
    """

    configs: tuple[RelabelConfig, ...] = ()
    _steps: tuple[_Step, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_steps", tuple(_step(config) for config in self.configs))

    def __bool__(self) -> bool:
        """Whether there is any rule."""
        return bool(self.configs)

    def apply(self, labels: Mapping[str, str]) -> dict[str, str] | None:
        """Run the rules in their order; ``labels`` stays as it is.

        Parameters
        ----------
        labels : name -> value; text without lone surrogates

        Returns
        -------
        The new label set without empty values, None when a rule dropped it.
        """
        work = _Labels(labels)
        for step in self._steps:
            if not step(work):
                return None
        return {name: value for name, value in work.values.items() if value}


NO_RULES = Rules()
"""Everything stays as it is."""


def compile_rules(configs: Sequence[RelabelConfig]) -> Rules:
    """Check rules and make them runnable.

    Raises
    ------
    RelabelError        a rule that cannot be used
    """
    return Rules(tuple(configs))


def check(config: RelabelConfig) -> str:
    """Check one rule as Prometheus' ``Validate`` does.

    Returns
    -------
    Its action in lower case.

    Raises
    ------
    RelabelError        with Prometheus' words
    """
    action = config.action.lower()
    if not action:
        raise RelabelError("relabel action cannot be empty")
    if action not in ACTIONS:
        raise RelabelError(f"unknown relabel action {_quote(config.action)}")
    for name in config.source_labels:
        if not _valid(name):
            raise RelabelError(f"{_quote(name)} is not a valid label name")
    if not 0 <= config.modulus < 1 << 64:
        raise RelabelError(f"modulus {config.modulus} is no unsigned number of 64 bits")
    if action == "hashmod" and not config.modulus:
        raise RelabelError("relabel configuration for hashmod requires non-zero modulus")
    if action in _TARGETED:
        if not config.target_label:
            raise RelabelError(f"relabel configuration for {action} action requires 'target_label' value")
        if not _valid(config.target_label):
            raise RelabelError(f"{_quote(config.target_label)} is invalid 'target_label' for {action} action")
    if action in (*_CASES, *_EQUALS) and config.replacement != REPLACEMENT:
        raise RelabelError(f"'replacement' can not be set for {action} action")
    if action == "labelmap" and not _valid(config.replacement):
        raise RelabelError(f"{_quote(config.replacement)} is invalid 'replacement' for {action} action")
    plain = (config.modulus, config.separator, config.replacement) == (0, SEPARATOR, REPLACEMENT)
    if action in _EQUALS and not (plain and config.regex == REGEX):
        raise RelabelError(f"{action} action requires only 'source_labels' and `target_label`, and no other fields")
    if action in _NAME_FILTERS and (config.source_labels or config.target_label or not plain):
        raise RelabelError(f"{action} action requires only 'regex', and no other fields")
    return action


def _valid(name: str) -> bool:
    """Whether this is a label name: not empty, and UTF-8."""
    return bool(name) and not any("\ud800" <= char <= "\udfff" for char in name)


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _compile(regex: str) -> Any:
    """The expression as Prometheus wraps it, over UTF-8 bytes: ``.`` matches newlines, both ends are anchored."""
    options = re2.Options()
    options.log_errors = False  # RE2 would write them to standard error
    anchored = f"^(?s:{regex})$"
    try:
        return re2.compile(anchored.encode(), options)
    except re2.error as error:
        words = error.args[0]
        text = words.decode("utf-8", "replace") if isinstance(words, bytes) else str(words)
        raise RelabelError(f"error parsing regexp: {text} in `{regex}`") from None
    except UnicodeEncodeError:
        raise RelabelError(f"error parsing regexp: invalid UTF-8: {regex!r}") from None


_Expand = Callable[[Any], str]


def _template(template: str, regex: Any) -> _Expand:
    """What makes text of a match, by the rules of Go's ``Regexp.Expand``."""
    pieces = _parse_template(template, {name.decode(): index for name, index in regex.groupindex.items()}, regex.groups)

    def expand(match: Any) -> str:
        return "".join(
            piece if isinstance(piece, str) else (match.group(piece) or b"").decode("utf-8", "replace")
            for piece in pieces
        )

    return expand


def _parse_template(template: str, names: Mapping[str, int], groups: int) -> list[str | int]:
    """Literal texts and numbers of groups; a group that does not exist is empty and left out."""
    pieces: list[str | int] = []
    rest = template
    while rest:
        before, dollar, rest = rest.partition("$")
        pieces.append(before)
        if not dollar:
            break
        if rest.startswith("$"):
            pieces.append("$")
            rest = rest[1:]
            continue
        name, after = _variable(rest)
        if not name:  # malformed: the sign stands for itself
            pieces.append("$")
            continue
        rest = after
        # "01" is a name and no number, which no group can have
        number = int(name) if name.isascii() and name.isdigit() and (name == "0" or name[0] != "0") else names.get(name)
        if number is not None and number <= groups:
            pieces.append(number)
    return pieces


def _variable(text: str) -> tuple[str, str]:
    """The ``name`` or ``{name}`` that a text begins with, and what follows; an empty name when there is none."""
    brace = text.startswith("{")
    at = begin = int(brace)
    while at < len(text) and (text[at].isalpha() or text[at].isdecimal() or text[at] == "_"):
        at += 1
    if brace:
        return (text[begin:at], text[at + 1 :]) if text[at : at + 1] == "}" else ("", text)
    return text[begin:at], text[at:]


def _step(config: RelabelConfig) -> _Step:
    """One rule as a function that changes labels and says whether they are kept."""
    action = check(config)
    regex = _compile(config.regex)
    match action:
        case "keep" | "drop":
            return _filter(config, regex, keep=action == "keep")
        case "keepequal" | "dropequal":
            return _compare(config, keep=action == "keepequal")
        case "labeldrop" | "labelkeep":
            return _filter_names(regex, keep=action == "labelkeep")
        case "labelmap":
            return _map_names(config, regex)
        case "replace":
            return _replace(config, regex)
    make = {"hashmod": lambda text: _hash_mod(text, config.modulus), "lowercase": lower, "uppercase": upper}[action]
    return _make(config, make)


def _source(config: RelabelConfig) -> Callable[[_Labels], str]:
    names, separator = tuple(config.source_labels), config.separator
    if len(names) == 1:
        name = names[0]
        return lambda labels: labels.values.get(name, "")
    return lambda labels: separator.join([labels.values.get(name, "") for name in names])


def _filter(config: RelabelConfig, regex: Any, *, keep: bool) -> _Step:
    source = _source(config)
    return lambda labels: (regex.search(source(labels).encode()) is not None) == keep


def _compare(config: RelabelConfig, *, keep: bool) -> _Step:
    source, target = _source(config), config.target_label
    return lambda labels: (labels.values.get(target, "") == source(labels)) == keep


def _filter_names(regex: Any, *, keep: bool) -> _Step:
    def step(labels: _Labels) -> bool:
        for name in list(labels.values):
            if (regex.search(name.encode()) is not None) != keep:
                labels.set(name, "")
        return True

    return step


def _map_names(config: RelabelConfig, regex: Any) -> _Step:
    expand = _template(config.replacement, regex)

    def step(labels: _Labels) -> bool:
        for name, value in list(labels.values.items()):
            text = name.encode()
            match = regex.search(text)
            if match is None:
                continue
            begin, end = match.span()  # all of it, unless the expression leaves its anchors by ")|("
            mapped = text[:begin].decode("utf-8", "replace") + expand(match) + text[end:].decode("utf-8", "replace")
            if mapped:
                labels.set(mapped, value)
        return True

    return step


def _replace(config: RelabelConfig, regex: Any) -> _Step:
    source = _source(config)
    target, replacement = _template(config.target_label, regex), _template(config.replacement, regex)

    def step(labels: _Labels) -> bool:
        match = regex.search(source(labels).encode())
        if match is not None:
            name = target(match)
            if name:
                labels.set(name, replacement(match))
        return True

    return step


def _make(config: RelabelConfig, make: Callable[[str], str]) -> _Step:
    source, target = _source(config), config.target_label

    def step(labels: _Labels) -> bool:
        labels.set(target, make(source(labels)))
        return True

    return step


def _hash_mod(text: str, modulus: int) -> str:
    digest = hashlib.md5(text.encode(), usedforsecurity=False).digest()
    return str(int.from_bytes(digest[8:], "big") % modulus)


def lower(text: str) -> str:
    """Lower case as Go has it: letter by letter, so that no letter becomes two and none looks at its neighbours."""
    return text.lower() if text.isascii() else "".join([char.lower()[0] for char in text])


def upper(text: str) -> str:
    """Upper case as Go has it: letter by letter; a letter whose capital would be two stays."""
    return text.upper() if text.isascii() else "".join([_capital(char) for char in text])


def _capital(char: str) -> str:
    capital = char.upper()
    if len(capital) > 1:
        capital = char.title()  # Greek letters with a iota below them have a capital of their own, as a title
    return capital if len(capital) == 1 else char
