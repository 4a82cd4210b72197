"""The text of a configuration: YAML 1.2, the line of every key, and mistakes that name both."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping

import yaml
from pydantic import ValidationError

from meshpulse.scrape_config import is_unsupported


class ConfigError(Exception):
    """The configuration cannot be used; the text names file, line and key of every mistake."""


class Loader(yaml.SafeLoader):
    """YAML 1.2 booleans: ``off`` is a word, not false."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF"))

KeyPath = tuple[Hashable, ...]


def read_lines(node: yaml.Node | None, at: KeyPath, lines: dict[KeyPath, int]) -> None:
    """Line of every key and item, by its path; refuses a key that is written twice."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = (*at, key.value)
            line = key.start_mark.line + 1
            if path in lines:
                raise ConfigError(f"line {line}: {'.'.join(map(str, path))} is written twice, first in {lines[path]}")
            lines[path] = line
            read_lines(value, path, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*at, index)] = value.start_mark.line + 1
            read_lines(value, (*at, index), lines)


def explain(error: ValidationError, lines: Mapping[KeyPath, int]) -> str:
    texts = []
    for mistake in error.errors():
        path = tuple(mistake["loc"])
        known = path
        while known and known not in lines:
            known = known[:-1]
        what = mistake["msg"].removeprefix("Value error, ")
        if mistake["type"] == "extra_forbidden":
            what = "unknown key"
            if path[0] in ("global", "scrape_configs") and is_unsupported(str(path[-1])):
                what = "is not supported; docs/config.md lists the keys of Prometheus that are"
        where = f"line {lines[known]}: " if known else ""
        texts.append(f"{where}{'.'.join(map(str, path))}: {what}" if path else f"{where}{what}")
    return "\n".join(texts)
