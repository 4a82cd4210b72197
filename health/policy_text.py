"""Policies as JSON and YAML: the names of design page 9.6, durations as ``30s``, what is left out keeps its default.

A field ``base_ms`` is the key ``base``, ``windows_s`` the key ``windows``; ``service`` is ``match: {service: GLOB}``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, get_type_hints

from health.policy import Policy

_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_RENAMED = {"ramp_percent": "ramp"}


class PolicyError(ValueError):
    """A policy that cannot be used.

    Attributes
    ----------
    problems : each naming its key
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def parse_duration_ms(value: object) -> int:
    """Milliseconds of ``30s``, ``1.5m``, ``500ms``; a bare number counts seconds.

    Raises
    ------
    ValueError
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return round(value * 1000)
    found = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f"{value!r} is no duration; write for example 30s, 500ms or 5m")
    return round(float(found[1]) * _UNITS_MS[found[2]])


def duration_text(ms: int) -> str:
    """The shortest text of a duration in one unit, seconds at most."""
    return f"{ms // 1000}s" if ms % 1000 == 0 else f"{ms}ms"


def key_of(name: str) -> str:
    """The JSON key of a field."""
    return _RENAMED.get(name) or re.sub(r"_m?s$", "", name)


def policy_data(policy: Policy) -> dict[str, Any]:
    """A policy as JSON shows it, every key written out."""
    data = _section_data(policy)
    service = data.pop("service")
    return {"name": data.pop("name"), "match": {"service": service}, **data}


def _section_data(section: Any) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for field in fields(section):
        value = getattr(section, field.name)
        if is_dataclass(value):
            out[key_of(field.name)] = _section_data(value)
        elif field.name.endswith("_ms"):
            out[key_of(field.name)] = duration_text(value)
        elif field.name.endswith("_s"):
            out[key_of(field.name)] = [f"{s}s" for s in value] if isinstance(value, tuple) else f"{value}s"
        elif isinstance(value, Enum):
            out[key_of(field.name)] = value.value
        else:
            out[key_of(field.name)] = list(value) if isinstance(value, tuple) else value
    return out


def parse_policy(data: object, name: str = "") -> Policy:
    """A policy from its JSON form.

    Parameters
    ----------
    name : used when ``data`` names none; otherwise both must agree

    Raises
    ------
    PolicyError        every mistake at once
    """
    if not isinstance(data, Mapping):
        raise PolicyError(["a policy must be a mapping"])
    flat = dict(data)
    problems: list[str] = []
    match = flat.pop("match", {})
    if not isinstance(match, Mapping) or set(match) - {"service"} or not isinstance(match.get("service", ""), str):
        problems.append('match must be {"service": GLOB}')
    elif "service" in match:
        flat["service"] = match["service"]
    if name and flat.setdefault("name", name) != name:
        problems.append(f"name {flat['name']!r} is not {name!r}")
    policy = _section(Policy, flat, "", problems)
    if isinstance(policy, Policy):
        problems += policy.problems()
    if problems or not isinstance(policy, Policy):
        raise PolicyError(problems)
    return policy


def _section(kind: type, data: Mapping[str, Any], prefix: str, problems: list[str]) -> Any:
    hints = get_type_hints(kind)
    known = {key_of(field.name): field for field in fields(kind)}
    values: dict[str, Any] = {}
    for key, value in data.items():
        field = known.get(key)
        if field is None:
            problems.append(f"{prefix}{key}: unknown key")
            continue
        hint = hints[field.name]
        try:
            if is_dataclass(hint):
                assert isinstance(hint, type)
                if isinstance(value, Mapping):
                    values[field.name] = _section(hint, value, f"{prefix}{key}.", problems)
                else:
                    problems.append(f"{prefix}{key} must be a mapping")
            else:
                values[field.name] = _value(field.name, hint, value)
        except ValueError as error:
            problems.append(f"{prefix}{key} {error}")
    return None if problems else kind(**values)


def _value(name: str, hint: Any, value: Any) -> Any:
    if name.endswith("_ms"):
        return parse_duration_ms(value)
    if name.endswith("_s"):
        if isinstance(value, list):
            return tuple(_seconds(item) for item in value)
        return _seconds(value)
    if isinstance(hint, type) and issubclass(hint, Enum):
        try:
            return hint(value)
        except ValueError:
            raise ValueError(f"must be one of {', '.join(str(item.value) for item in hint)}") from None
    if isinstance(hint, type):
        numbers = hint is float and isinstance(value, int) and not isinstance(value, bool)
        if numbers:
            return float(value)
        if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
            raise ValueError(f"must be of type {hint.__name__}")
        return value
    if not isinstance(value, list) or not all(_is_number(item) for item in value):
        raise ValueError("must be a list of numbers")
    return tuple(value)


def _seconds(value: Any) -> int:
    ms = parse_duration_ms(value)
    if ms % 1000:
        raise ValueError(f"{value!r} is not whole seconds")
    return ms // 1000


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
