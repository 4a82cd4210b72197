"""The operations page and the unit agree with the program."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from meshpulse.config import parse_config
from tests.house.test_lint import ROOT

PAGE = (ROOT / "docs" / "operations.md").read_text()


def test_every_example_is_a_configuration() -> None:
    examples = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert examples
    for text in examples:
        parse_config(text)


def test_every_named_file_exists() -> None:
    for name in set(re.findall(r"\bdeploy/[\w./*-]+\w", PAGE)):
        assert list(ROOT.glob(name)), name


def test_every_named_metric_is_documented() -> None:
    documented = set(re.findall(r"^\| `(meshpulse_\w+)`", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE))
    assert set(re.findall(r"meshpulse_\w+", PAGE)) <= documented


def test_systemd_knows_every_directive(tmp_path: Path) -> None:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("needs systemd-analyze")
    unit = (ROOT / "deploy" / "systemd" / "meshpulse.service").read_text()
    copy = tmp_path / "meshpulse.service"
    copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", unit, flags=re.MULTILINE))
    done = subprocess.run([tool, "verify", copy], capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if "meshpulse.service" in line]
    assert said == []


def test_the_unit_starts_what_exists() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(ROOT / "deploy" / "systemd" / "meshpulse.service")
    service = unit["Service"]
    program, command, *flags = shlex.split(service["ExecStart"])
    assert Path(program).name == "meshpulse"
    said = subprocess.run(
        [Path(sys.executable).parent / "meshpulse", command, "--help"], capture_output=True, text=True, check=True
    )
    for flag in flags[::2]:
        assert flag in said.stdout
    assert "MemoryDenyWriteExecute" not in service, "kernels need executable memory"
    drain = re.search(r"\| `server.drain` \| `(\d+)s`", (ROOT / "docs" / "config.md").read_text())
    assert drain
    assert int(service["TimeoutStopSec"]) > int(drain[1])
