"""The rules of the house as tests: floors, style, types, and that nothing of one machine is in the tree."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
ROOMS = ("tsdb", "ingest", "query", "health", "meshpulse")


def run(*command: str | Path) -> None:
    done = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("needs a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_floors() -> None:
    run(BIN / "lint-imports", "--no-cache")


def test_ruff_check() -> None:
    run(BIN / "ruff", "check", ".")


def test_ruff_format() -> None:
    run(BIN / "ruff", "format", "--check", ".")


def test_types() -> None:
    run(sys.executable, "-m", "mypy")


@pytest.mark.parametrize("room", ROOMS)
def test_packages_resolve_to_this_repository(room: str) -> None:
    module = importlib.import_module(room)
    assert Path(module.__path__[0]).resolve() == ROOT / room


def test_no_machine_paths() -> None:
    # written in pieces so that this file does not find itself
    forbidden = re.compile(
        "|".join(["/" + "work/", "/" + "root/", "/" + "home/[a-z]", "/opt/" + "pypi", "/tmp/" + "plan"])
    )
    found = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {m[0]}" for m in forbidden.finditer(text)]
    assert not found, found


def test_tests_mirror_packages() -> None:
    for folder in {path.parent for path in ROOT.glob("tests/**/*.py")}:
        assert (folder / "__init__.py").is_file(), f"{folder.relative_to(ROOT)} needs __init__.py"
