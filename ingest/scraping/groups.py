"""Groups of targets, how they are written in lists, and where such lists are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ingest.scraping.http_client import HttpClientConfig

FILE_NAME = re.compile(r"[^*]*(\*[^/]*)?\.(json|yml|yaml|JSON|YML|YAML)")
"""What ``file_sd_configs`` take, as in Prometheus: a pattern in the last part of the path only."""


class DiscoveryError(Exception):
    """A list of targets cannot be read; what was known before stays."""


@dataclass(frozen=True, slots=True)
class TargetGroup:
    """Targets and labels that all of them have.

    Attributes
    ----------
    targets : ``host:port``
    source : which group of which file or URL, for messages
    """

    targets: Sequence[str]
    labels: Mapping[str, str] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True, slots=True)
class FileSdConfig:
    """Files of groups, by path or pattern.

    Attributes
    ----------
    refresh_interval : seconds until all are read anew; a change is seen within :data:`FILE_CHECK_S`
    """

    files: tuple[str, ...]
    refresh_interval: float = 300.0


@dataclass(frozen=True, slots=True)
class HttpSdConfig:
    """A URL that answers with groups as JSON, asked every ``refresh_interval`` seconds."""

    url: str
    refresh_interval: float = 60.0
    client: HttpClientConfig = field(default_factory=HttpClientConfig)


def parse_groups(data: Any, source: str, labels: Mapping[str, str]) -> list[TargetGroup]:
    """Check a list of groups.

    Parameters
    ----------
    data : of JSON or YAML
    source : where it is from
    labels : added to each group's

    Raises
    ------
    DiscoveryError        it is no list of ``{targets: [...], labels: {...}}``
    """
    if data is None:
        return []
    if not isinstance(data, list):
        raise DiscoveryError("is no list of target groups")
    groups = []
    for index, entry in enumerate(data):
        if entry is None:
            raise DiscoveryError(f"nil target group item found (index {index})")
        if not isinstance(entry, dict) or not entry.keys() <= {"targets", "labels"}:
            raise DiscoveryError(f"group {index} must have targets and labels, and no other fields")
        targets, own = entry.get("targets") or [], entry.get("labels") or {}
        if not isinstance(targets, list) or not all(isinstance(target, str) and _utf8(target) for target in targets):
            raise DiscoveryError(f"the targets of group {index} must be a list of texts")
        if not isinstance(own, dict):
            raise DiscoveryError(f"the labels of group {index} must be a mapping")
        own = {name: "" if value is None else value for name, value in own.items()}
        for name, value in own.items():
            if not isinstance(name, str) or not name or not _utf8(name):
                raise DiscoveryError(f"{name!r} is not a valid label name")
            if not isinstance(value, str) or not _utf8(value):
                raise DiscoveryError(f"the value of label {name!r} must be a text, not {value!r}")
        groups.append(TargetGroup(targets, {**own, **labels}, f"{source}:{index}"))
    return groups


def _utf8(text: str) -> bool:
    """Whether it has no lone surrogates, which JSON can spell."""
    return text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)
