"""Crash matrix row 1: kill -9 at any instruction loses no acknowledged sample."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.harness import Server, crash_cycles


def test_kill_twice_loses_nothing_acknowledged(tmp_path: Path) -> None:
    crash_cycles(tmp_path / "data", 2, Server.kill)


@pytest.mark.slow
def test_kill_loop_loses_nothing_acknowledged(tmp_path: Path) -> None:
    crash_cycles(tmp_path / "data", 20, Server.kill)
