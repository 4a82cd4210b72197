"""Messages of syslog a second: ``python -m benchmarks.syslog [--messages 200000]``.

Parsing alone, and from a connection or datagrams of a sender on this machine into the store with a fsynced log. CPU
time of this process, all threads; the sender is another one. Lines of the shared generator, as nginx sends them
(RFC 3164) and as RFC 5424.
"""

from __future__ import annotations

import argparse
import os
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks.logs import SHARED, generator
from ingest.logs.limits import PushLimits
from ingest.logs.push import PushReceiver
from ingest.syslog.entries import Arrived, EntryReader, ListenerSettings
from ingest.syslog.message import parse
from ingest.syslog.receiver import SyslogReceiver
from tsdb.clock import SystemClock
from tsdb.db import TSDB, StoreConfig
from tsdb.tally import Tally

ROUNDS = 5
BURST = 200
"""Datagrams that a sender sends before it waits a moment, so that the kernel can keep them."""


def messages(n: int, path: Path) -> dict[str, list[bytes]]:
    """The same lines in both forms."""
    lines = [text.encode() for batch in generator(path).batches(n) for _, _, text in batch]
    stamp = time.strftime("%b %d %H:%M:%S").encode()
    now = time.strftime("%Y-%m-%dT%H:%M:%S.123456Z", time.gmtime()).encode()
    return {
        "RFC 3164": [b"<190>%s web-1 nginx: %s" % (stamp, line) for line in lines],
        "RFC 5424": [b'<190>1 %s web-1 nginx 77 - [origin@1 ip="192.0.2.1"] %s' % (now, line) for line in lines],
    }


def rate(n: int, work: Callable[[], object]) -> float:
    """Messages a second of CPU, the median of some rounds."""
    took = []
    for _ in range(ROUNDS):
        begin = time.process_time()
        work()
        took.append(time.process_time() - begin)
    return n / median(took)


def received(sent: list[bytes], protocol: str) -> tuple[float, int]:
    """Messages a second of CPU through a socket into a fsynced log, and how many were lost."""
    settings = ListenerSettings("127.0.0.1", 0, "udp" if protocol == "udp" else "tcp")
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        db = TSDB(StoreConfig(path=Path(folder), min_free_bytes=0, min_free_fraction=0))
        db.open()
        pushes = PushReceiver(SystemClock(), tally, PushLimits())
        receiver = SyslogReceiver(lambda name: db.tenant(name).logs, pushes, tally)
        receiver.start()
        receiver.apply([settings])
        address = receiver.addresses[settings.address]
        begin = time.process_time()
        child = os.fork()
        if child == 0:
            try:
                _send(sent, protocol, address)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        before = -1
        while receiver.stats.messages != before or receiver.stats.queued_bytes:
            before = receiver.stats.messages
            time.sleep(0.2)
        took = time.process_time() - begin
        receiver.close()
        stored = receiver.stats.messages
        db.close()
    return stored / took, len(sent) - stored


def _send(sent: list[bytes], protocol: str, address: tuple[str, int]) -> None:
    if protocol == "tcp":
        with socket.create_connection(address) as connection:
            for i in range(0, len(sent), 1000):
                connection.sendall(b"\n".join(sent[i : i + 1000]) + b"\n")
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for i, message in enumerate(sent):
            sender.sendto(message, address)
            if i % BURST == BURST - 1:
                time.sleep(0.005)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=200_000)
    parser.add_argument("--generator", type=Path, default=SHARED / "data" / "nginx_lines.py")
    args = parser.parse_args()
    n = args.messages
    settings = ListenerSettings("127.0.0.1", 0)
    print("| form | parse | parse to a batch | TCP to the synced log | UDP to the synced log |")
    print("|---|---|---|---|---|")
    for form, sent in messages(n, args.generator).items():
        parsed = rate(n, lambda sent=sent: [parse(one) for one in sent])  # type: ignore[misc]
        batched = rate(n, lambda sent=sent: EntryReader(100).read([Arrived(settings, "127.0.0.1", 1, sent)]))  # type: ignore[misc]
        tcp, lost = received(sent, "tcp")
        assert not lost
        udp, lost = received(sent, "udp")
        print(f"| {form} | {parsed:,.0f} | {batched:,.0f} | {tcp:,.0f} | {udp:,.0f}, {lost} lost |")
    print("messages a second and core")


if __name__ == "__main__":
    main()
