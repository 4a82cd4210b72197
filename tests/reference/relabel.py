"""Relabelling read off Prometheus' description, rule by rule, with Python's regexes: slow, and can hang."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

from ingest.relabel import RelabelConfig

_VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<braced>\w+)\}|(?P<plain>\w+))")


def expand(template: str, match: re.Match[str]) -> str:
    """Go's ``Regexp.Expand``."""

    def value(variable: re.Match[str]) -> str:
        if variable["dollar"]:
            return "$"
        name = variable["braced"] or variable["plain"]
        key: int | str = int(name) if re.fullmatch("0|[1-9][0-9]*", name) else name
        try:
            return match[key] or ""
        except IndexError:
            return ""

    return _VARIABLE.sub(value, template)


def relabel(labels: Mapping[str, str], rules: Sequence[RelabelConfig]) -> dict[str, str] | None:
    """The new labels, None when they are dropped."""
    now = {name: value for name, value in labels.items() if value}
    for rule in rules:
        text = rule.separator.join(now.get(name, "") for name in rule.source_labels)
        regex = re.compile(rule.regex, re.DOTALL)
        found = regex.fullmatch(text)
        match rule.action:
            case "keep" if not found:
                return None
            case "drop" if found:
                return None
            case "keepequal" if now.get(rule.target_label, "") != text:
                return None
            case "dropequal" if now.get(rule.target_label, "") == text:
                return None
            case "replace" if found and (name := expand(rule.target_label, found)):
                now[name] = expand(rule.replacement, found)
            case "hashmod":
                number = int(hashlib.md5(text.encode()).hexdigest()[16:], 16)
                now[rule.target_label] = str(number % rule.modulus)
            case "lowercase":
                now[rule.target_label] = text.lower()
            case "uppercase":
                now[rule.target_label] = text.upper()
            case "labeldrop":
                now = {name: value for name, value in now.items() if not regex.fullmatch(name)}
            case "labelkeep":
                now = {name: value for name, value in now.items() if regex.fullmatch(name)}
            case "labelmap":
                fits = [(found, value) for name, value in now.items() if (found := regex.fullmatch(name))]
                now |= {name: value for found, value in fits if (name := expand(rule.replacement, found))}
        now = {name: value for name, value in now.items() if value}
    return now
