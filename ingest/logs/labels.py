"""The labels of a pushed stream: their syntax, their limits, and what is derived from them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ingest.logs.limits import PushLimits
from tsdb.errors import LimitError, Reason, RejectedError
from tsdb.labels import Labels

SERVICE_NAME = "service_name"
UNKNOWN_SERVICE = "unknown_service"
SERVICE_LABELS = (
    "service", "app", "application", "app_name", "name", "app_kubernetes_io_name", "container", "container_name",
    "k8s_container_name", "component", "workload", "job", "k8s_job_name",
)  # fmt: skip
"""Labels that name the service, the best first."""

_BLANK = re.compile(r"[ \t\r\n]*")
_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_OTHER = re.compile(r"[a-zA-Z0-9_.:\-]+")
_QUOTED = re.compile(r'"((?:[^"\\\n]|\\.)*)"|`([^`]*)`')
_ESCAPE = re.compile(r'\\(?:([abfnrtv\\"\'])|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3}))')
_PLAIN = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\", '"': '"', "'": "'"}


def _unescape(text: str) -> str:
    def one(match: re.Match[str]) -> str:
        plain, two, four, eight, octal = match.groups()
        return _PLAIN[plain] if plain else chr(int(two or four or eight, 16) if not octal else int(octal, 8))

    return _ESCAPE.sub(one, text) if "\\" in text else text


def parse_labels(text: str) -> list[tuple[str, str]]:
    """Pairs of ``{a="b", c="d"}`` in the order of the text.

    Raises
    ------
    RejectedError        ``line:col: parse error: ...``
    """
    at = 0

    def skip() -> None:
        nonlocal at
        match = _BLANK.match(text, at)
        at = match.end() if match else at

    def wrong(what: str) -> RejectedError:
        line = text.count("\n", 0, at) + 1
        column = at - (text.rfind("\n", 0, at) + 1) + 1
        return RejectedError(Reason.MALFORMED, f"couldn't parse labels: {line}:{column}: parse error: {what}")

    def unexpected() -> RejectedError:
        if at >= len(text):
            return wrong("unexpected end of input")
        word = _OTHER.match(text, at)
        return wrong(f"unexpected identifier {word[0]!r}" if word else f"unexpected character: {text[at]!r}")

    pairs: list[tuple[str, str]] = []
    skip()
    if text[at : at + 1] != "{":
        raise unexpected()
    at += 1
    while True:
        skip()
        if text[at : at + 1] == "}":
            break
        name = _NAME.match(text, at)
        if name is None:
            raise unexpected()
        at = name.end()
        skip()
        if text[at : at + 1] != "=":
            raise unexpected()
        at += 1
        skip()
        value = _QUOTED.match(text, at)
        if value is None:
            raise unexpected()
        at = value.end()
        try:
            pairs.append((name[0], _unescape(value[1]) if value[1] is not None else value[2]))
        except ValueError:
            raise wrong("invalid escape") from None
        skip()
        if text[at : at + 1] == ",":
            at += 1
        elif text[at : at + 1] != "}":
            raise unexpected()
    at += 1
    skip()
    if at < len(text):
        raise unexpected()
    return pairs


def show(pairs: list[tuple[str, str]]) -> str:
    """Labels as they are written in messages: sorted, quoted."""
    quoted = [f'{name}="{_escape(value)}"' for name, value in sorted(pairs)]
    return "{" + ", ".join(quoted) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def stream_labels(pairs: Sequence[tuple[str, str]], limits: PushLimits) -> Labels:
    """The labels of a stream, checked, with ``service_name`` where none is given.

    Raises
    ------
    RejectedError, LimitError        the message is the one that senders know
    """
    given = [(name, value) for name, value in pairs if value]
    stream = show(given)
    if not given and not limits.discover_service_name:
        raise RejectedError(Reason.NO_LABELS, "error at least one label pair is required per stream")
    if len(given) > limits.labels_max:
        raise LimitError(
            Reason.TOO_MANY_LABELS,
            f"entry for stream '{stream}' has {len(given)} label names; limit {limits.labels_max}",
        )
    seen = set()
    for name, value in given:
        if len(name.encode()) > limits.label_name_bytes_max:
            raise LimitError(Reason.LABEL_NAME_TOO_LONG, f"stream '{stream}' has label name too long: '{name}'")
        if len(value.encode("utf-8", "replace")) > limits.label_value_bytes_max:
            raise LimitError(Reason.LABEL_VALUE_TOO_LONG, f"stream '{stream}' has label value too long: '{value}'")
        if name in seen:
            raise RejectedError(Reason.DUPLICATE_LABEL, f"stream '{stream}' has duplicate label name: '{name}'")
        seen.add(name)
    labels = {name: value.encode("utf-8", "replace").decode() for name, value in given}
    if limits.discover_service_name and SERVICE_NAME not in labels:
        labels[SERVICE_NAME] = next((labels[key] for key in SERVICE_LABELS if labels.get(key)), UNKNOWN_SERVICE)
    return Labels.of(labels)
