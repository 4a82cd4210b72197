"""Names of OTLP metrics and attributes as Prometheus spells them.

Source: opentelemetry-specification, compatibility/prometheus_and_openmetrics.md, and what Prometheus does with its
default translation strategy (underscore escaping with suffixes).
"""

from __future__ import annotations

import base64
import functools
import json
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

import orjson

_NOT_METRIC = re.compile(r"[^a-zA-Z0-9:]+")
_NOT_LABEL = re.compile(r"[^a-zA-Z0-9_]")

_UNITS = {
    # time
    "d": "days", "h": "hours", "min": "minutes", "s": "seconds", "ms": "milliseconds", "us": "microseconds",
    "ns": "nanoseconds",
    # bytes
    "By": "bytes", "KiBy": "kibibytes", "MiBy": "mebibytes", "GiBy": "gibibytes", "TiBy": "tibibytes",
    "KBy": "kilobytes", "MBy": "megabytes", "GBy": "gigabytes", "TBy": "terabytes",
    # SI and others
    "m": "meters", "V": "volts", "A": "amperes", "J": "joules", "W": "watts", "g": "grams", "Cel": "celsius",
    "Hz": "hertz", "1": "", "%": "percent",
}  # fmt: skip
_PER_UNITS = {"s": "second", "m": "minute", "h": "hour", "d": "day", "w": "week", "mo": "month", "y": "year"}


def _unit_word(unit: str, words: Mapping[str, str]) -> str:
    unit = unit.strip()
    if not unit or "{" in unit or "}" in unit:
        return ""
    return _NOT_METRIC.sub("_", words.get(unit, unit)).strip("_")


@functools.lru_cache(maxsize=65_536)
def metric_name(name: str, unit: str, *, counter: bool, gauge: bool) -> str:
    """Name of a metric family.

    Parameters
    ----------
    counter : a monotonic sum, which ends in ``_total``
    gauge : a gauge; of unit ``1`` it ends in ``_ratio``
    """
    words = [word for word in _NOT_METRIC.split(name) if word]
    main, _, per = unit.partition("/")
    main_word, per_word = _unit_word(main, _UNITS), _unit_word(per, _PER_UNITS)
    if main_word and main_word not in words:
        words.append(main_word)
    if per_word and f"per_{per_word}" not in words:
        words.append(f"per_{per_word}")
    if counter:
        words = [word for word in words if word != "total"] + ["total"]
    elif gauge and unit == "1":
        words = [word for word in words if word != "ratio"] + ["ratio"]
    text = "_".join(words)
    return f"_{text}" if text[:1].isdigit() else text


@functools.lru_cache(maxsize=65_536)
def label_name(key: str) -> str:
    """Label name of an attribute."""
    name = _NOT_LABEL.sub("_", key)
    if name[:1].isdigit():
        return f"key_{name}"
    if name.startswith("_") and not name.startswith("__"):
        return f"key{name}"
    return name


def labels_of(attributes: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Labels of attributes; values of keys that become the same name are joined by ``;`` in the order of the keys."""
    labels: dict[str, str] = {}
    for key, value in sorted(attributes):
        name = label_name(key)
        labels[name] = f"{labels[name]};{value}" if name in labels else value
    return labels


def value_text(value: Any) -> str:
    """An attribute's value as a label value: scalars plainly, bytes in base64, lists and maps as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return float_text(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if value is None:
        return ""
    plain = _plain(value)
    try:
        return orjson.dumps(plain).decode()
    except orjson.JSONEncodeError:  # bytes inside that are no UTF-8 stay visible (as surrogates): the series is refused
        return json.dumps(plain, ensure_ascii=False, separators=(",", ":"))


def _plain(value: Any) -> Any:
    """A value that JSON can hold."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def float_text(value: float) -> str:
    """A number without an exponent, as bucket bounds are written."""
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "+Inf" if value > 0 else "-Inf"
    text = repr(value)
    if "e" in text:
        text = format(Decimal(text), "f")
    return text.removesuffix(".0")
