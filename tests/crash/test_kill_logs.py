"""``kill -9`` under log pushes: every acknowledged line is there after the restart, once, byte for byte."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.crash.harness import Server
from tests.crash.log_senders import NS, LogSenders, audit

QUICK, LOOP = 2, 20


def crash_cycles(data: Path, cycles: int) -> None:
    """Push, kill at a random moment, start again on the same folder, audit; ``cycles`` times."""
    rng = random.Random(cycles)
    senders = LogSenders(3, int(time.time() - 3600) * NS)
    server = Server(data)
    for cycle in range(cycles):
        senders.start(server.port)
        time.sleep(rng.uniform(0.2, 1.2))
        server.kill()
        senders.stop()
        server = Server(data)
        count = audit(server, senders)
        print(f"cycle {cycle}: {senders.pushes} pushes acknowledged, {count} lines held, none lost")
    assert server.stop() == 0
    assert senders.pushes > 5 * cycles, "the senders hardly got anything through"


def test_kill_twice_loses_no_acknowledged_line(tmp_path: Path) -> None:
    crash_cycles(tmp_path / "data", QUICK)


@pytest.mark.slow
def test_kill_loop_loses_no_acknowledged_line(tmp_path: Path) -> None:
    crash_cycles(tmp_path / "data", LOOP)
