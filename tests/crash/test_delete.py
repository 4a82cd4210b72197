"""Kill -9 while series are deleted: what was answered stays deleted, nothing else goes."""

from __future__ import annotations

import http.client
import random
import threading
import time
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.crash.harness import SERIES_PER_SENDER, Senders, Server

CONFIG = "server: {admin_api: true}\nstorage: {free_bytes_min: 0, free_fraction_min: 0}\n"


@dataclass
class Deleter:
    """A thread that deletes series of the senders up to now, and cleans now and then.

    Attributes
    ----------
    asked : (series, last ms) of everything that may have been deleted
    gone : samples that were acknowledged before a deletion that was answered
    """

    senders: Senders
    asked: list[tuple[str, int]] = field(default_factory=list)
    gone: set[tuple[str, int]] = field(default_factory=set)
    answers: int = 0

    def start(self, port: int, seed: int) -> None:
        """Begin to delete from a server; it ends with the server."""
        self.thread = threading.Thread(target=self._run, args=(port, random.Random(seed)))
        self.thread.start()

    def _run(self, port: int, chance: random.Random) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        while True:
            number = f"{chance.randrange(4)}-{chance.randrange(SERIES_PER_SENDER)}"
            before = self.senders.so_far()
            last = self.senders.next_ms
            self.asked.append((number, last))
            form = urllib.parse.urlencode({"match[]": f'crash{{n="{number}"}}', "end": f"{last / 1000:.3f}"})
            path = "clean_tombstones" if chance.random() < 0.1 else f"delete_series?{form}"
            try:
                connection.request("POST", f"/api/v1/admin/tsdb/{path}")
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException):
                return
            assert answer.status == 204
            if path.startswith("delete"):
                self.answers += 1
                self.gone.update(s for s in before if s[0] == number and s[1] <= last)
            time.sleep(0.02)


def delete_cycles(data: Path, cycles: int) -> None:
    chance = random.Random(cycles)
    # Begun hours ago, so that heads are cut while it runs.
    senders = Senders(4, int(time.time() * 1000) - 40 * 3_600_000)
    deleter = Deleter(senders)
    server = Server(data, CONFIG)
    for cycle in range(cycles):
        senders.next_ms += 3 * 3_600_000
        senders.start(server.port)
        deleter.start(server.port, cycle)
        time.sleep(chance.uniform(0.5, 2.0))
        server.kill()
        senders.stop()
        deleter.thread.join()
        server = Server(data, CONFIG)
        held = server.samples("crash[100d]", senders.next_ms + 60_000)
        assert not deleter.gone & held.keys(), "deleted samples are back"
        last: dict[str, int] = {}
        for number, ms in deleter.asked:
            last[number] = max(ms, last.get(number, ms))
        lost = {s for s in senders.so_far() - held.keys() if s[1] > last.get(s[0], 0)}
        assert not lost, f"{len(lost)} acknowledged samples are lost that nobody deleted"
        assert all(senders.sent[key] == value for key, value in held.items())
        print(f"cycle {cycle}: {deleter.answers} deletions, {len(deleter.gone)} samples gone, {len(held)} held")
    assert server.stop() == 0
    assert deleter.answers > 3 * cycles


def test_kill_while_series_are_deleted(tmp_path: Path) -> None:
    delete_cycles(tmp_path / "data", 2)


@pytest.mark.slow
def test_kill_loop_while_series_are_deleted(tmp_path: Path) -> None:
    delete_cycles(tmp_path / "data", 12)
