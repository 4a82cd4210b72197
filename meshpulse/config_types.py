"""Types of the configuration file: durations, sizes, texts, secrets, paths, and what a section is."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    ValidationInfo,
)

from ingest.durations import format_duration, parse_duration_ms

_UNIT_BYTES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(\d+)\s*(?:([KMGT])i?B|B|)")  # MB is MiB, as in Prometheus


HIDDEN = "<secret>"
"""Shown for every secret, as in Prometheus."""


def parse_duration(value: object) -> object:
    """Read a Prometheus duration such as ``1h30m`` or ``500ms``; other types are left to pydantic.

    Raises
    ------
    ValueError        text that is no duration
    """
    if isinstance(value, timedelta):
        return value
    if value == 0 and type(value) is int:
        return timedelta(0)
    ms = parse_duration_ms(value) if isinstance(value, str) else None
    if ms is None:
        raise ValueError("is no duration; write for example 15s, 500ms, 1h30m or 15d")
    return timedelta(milliseconds=ms)


def parse_size(value: object) -> object:
    """Read a size such as ``64MiB``, or a plain number of bytes.

    Raises
    ------
    ValueError        text that is no size
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError("is no size; write for example 64MiB, 1GiB or a number of bytes")
    return int(found[1]) * _UNIT_BYTES[found[2] or ""]


def _text(value: object) -> object:
    """Numbers and booleans as they are written, and nothing as an empty text, which is how Prometheus reads them."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int) else value


def _beside_the_file(path: Path, info: ValidationInfo) -> Path:
    """A relative path counts from the folder of the configuration file, as in Prometheus."""
    folder = (info.context or {}).get("folder")
    return folder / path if folder else path


Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    Field(ge=timedelta(0)),
    PlainSerializer(lambda value: format_duration(milliseconds(value)), return_type=str),
]
Size = Annotated[int, BeforeValidator(parse_size), Field(ge=0)]
Text = Annotated[str, BeforeValidator(_text)]
Secret = Annotated[
    SecretStr, BeforeValidator(_text), PlainSerializer(lambda value: HIDDEN if value.get_secret_value() else "")
]
NearPath = Annotated[Path, AfterValidator(_beside_the_file)]


def milliseconds(duration: timedelta) -> int:
    """Whole milliseconds of a duration."""
    return duration // timedelta(milliseconds=1)


class Section(BaseModel):
    """A mapping of the file: unknown keys are mistakes, values never change after the start."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


def split_listen(listen: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``, ``[::1]:PORT`` or ``:PORT`` (all addresses).

    Raises
    ------
    ValueError        not of that form
    """
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ValueError("must be HOST:PORT, for example 127.0.0.1:9090")
    return host.removeprefix("[").removesuffix("]") or "0.0.0.0", int(port)  # noqa: S104  # refused unless insecure
