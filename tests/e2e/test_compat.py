"""docs/compat.md is true: every path is served as its row says, every proof exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.server import Server
from tests.house.test_lint import ROOT

PAGE = (ROOT / "docs" / "compat.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if re.match(r"\| (must|should|nice) \|", line)
]
ENDPOINTS = [(verbs.split(", "), path.strip("`"), state) for _, verbs, path, state, _ in ROWS if path.startswith("`/")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("compat")) as running:
        yield running


@pytest.mark.parametrize(("verbs", "path", "state"), ENDPOINTS, ids=lambda value: str(value))
def test_a_path_is_served_as_its_row_says(server: Server, verbs: list[str], path: str, state: str) -> None:
    for verb in verbs:
        status = server.request(verb, path.replace("{name}", "job")).status
        assert (status == 404) == (state == "open"), f"{verb} {path} answers {status}"
        assert status != 405, verb


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[1]}-{row[2]}")
def test_a_row_has_a_proof(row: list[str]) -> None:
    state, proof = row[3].strip("`"), row[4]
    assert state in ("done", "open")
    if state == "open":
        assert proof == ""
        return
    file, _, name = proof.strip("`").partition("::")
    text = Path(ROOT / file).read_text()
    assert f"def {name}(" in text, proof


def test_every_client_has_a_proof() -> None:
    table = PAGE.partition("## Clients")[2]
    proofs = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", table)
    assert len(proofs) == table.count("\n| ") - 1
    for file, name in proofs:
        assert f"def {name}(" in Path(ROOT / file).read_text(), name


def test_the_rules_are_all_there() -> None:
    rules = {row[1] for row in ROWS}
    assert rules >= {f"G{i}" for i in range(1, 10)} | {f"W{i}" for i in range(1, 29)} | {f"L{i}" for i in range(1, 9)}


def test_no_must_is_open() -> None:
    assert [row for row in ROWS if row[0] == "must" and row[3] != "done"] == []


def test_every_route_of_the_read_api_is_in_the_table() -> None:
    page = (ROOT / "docs" / "api" / "query.md").read_text()
    routes = set(re.findall(r"^\| [A-Z, ]+ \| `(/[^`]+)` \|", page, re.MULTILINE))
    assert routes <= {path for _, path, _ in ENDPOINTS}
