"""Documentation that must agree with the code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from meshpulse.config import Config, parse_config
from meshpulse.live import AT_ONCE
from meshpulse.scrape_config import HttpClientSection, HttpSdSection
from tests.house.test_lint import ROOT
from tsdb.errors import Reason


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        if model is HttpSdSection and name in HttpClientSection.model_fields:
            continue  # how a server is asked is documented once, for the job
        path = f"{prefix}{field.alias or name}"
        inner = field.annotation
        section = next((arg for arg in (inner, *get_args(inner)) if isinstance(arg, type) and _is_section(arg)), None)
        if section is None:
            yield path
        elif get_origin(inner) in (list, dict):
            if "[]" in path:
                yield path
            if name != "metric_relabel_configs":  # the same as those of targets
                yield from keys(section, f"{path}[].")
        else:
            yield from keys(section, f"{path}.")


def _is_section(kind: type) -> bool:
    return issubclass(kind, BaseModel)


def documented() -> dict[str, str]:
    """Key -> default as the page states it."""
    rows = re.findall(r"^\| `([\w.\[\]]+)` \| (.*?) \|", (ROOT / "docs/config.md").read_text(), re.MULTILINE)
    return {key: default.strip("`") for key, default in rows}


def test_every_config_key_is_documented() -> None:
    assert sorted(documented()) == sorted(set(keys(Config)))


def test_documented_defaults_are_the_defaults() -> None:
    default = parse_config("")
    for key, text in documented().items():
        if "[]" in key:
            continue
        stated: Any = parse_config(_nest(key, text))
        assert stated == default, f"{key}: docs say {text}"


def _nest(key: str, text: str) -> str:
    for part in reversed(key.split(".")):
        text = f"{{{part}: {text}}}"
    return text


def test_every_reason_is_documented() -> None:
    page = (ROOT / "docs/rejections.md").read_text()
    missing = [reason for reason in Reason if f"| `{reason}` |" not in page]
    assert not missing


def test_keys_that_change_at_once_are_documented() -> None:
    page = (ROOT / "docs/operations.md").read_text().partition("## Changing the configuration")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
    assert sorted(key for row in rows for key in re.findall(r"`([\w.]+)`", row)) == sorted(AT_ONCE)


def test_keys_that_change_at_once_exist() -> None:
    known = set(keys(Config)) | {"scrape_configs", "auth.tokens", "syslog.listeners"}
    assert all(any(f"{key}.".startswith(f"{one}.") for key in known) for one in AT_ONCE)
