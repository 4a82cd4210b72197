"""Listens for syslog over UDP, TCP and TLS.

Syslog acknowledges nothing, so what is taken is kept in a queue until it is synced, and nothing is taken while the
queue is full: connections are not read, which makes their senders wait, and datagrams stay in the kernel, which counts
those that it drops.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ingest.logs.push import PushReceiver, RateError, Streams
from ingest.syslog.entries import Arrived, Batch, EntryReader, ListenerSettings
from ingest.syslog.framing import Framer
from tsdb.errors import Reason, RejectedError, UnavailableError
from tsdb.tally import Tally

log = logging.getLogger(__name__)

QUEUE_BYTES = 8 << 20
"""Most that waits to be stored: the memory of the receiver, and what one slow sync holds up."""

MESSAGE_BYTES = 64
"""What a waiting message counts beside its bytes: an object in a list."""

READ_BYTES = 64 << 10
"""Read of a connection at once."""

DATAGRAMS_MAX = 256
"""Read at once before others have their turn."""

RECEIVE_BUFFER = 8 << 20
"""Asked of the kernel for datagrams: half a second of 50,000 lines of 300 bytes, whose accounting doubles them."""

HANDSHAKE_S = 10.0
BUSY_S = 1.0
"""Pause after the store was busy."""

DRAIN_S = 5.0
"""How long the end waits for the store; what is not stored then is counted as lost."""

SO_RXQ_OVFL = 40
"""linux/asm-generic/socket.h: each datagram comes with the number of those dropped before it."""

SO_RCVBUFFORCE = 33
"""... and beyond ``net.core.rmem_max``, where we may."""


@dataclass(slots=True)
class SyslogStats:
    """Totals since the start, for ``/metrics``."""

    messages: int = 0
    bytes: int = 0
    busy: int = 0
    failures: int = 0
    queued_bytes: int = 0
    broken: int = 0


@dataclass(slots=True)
class _Door:
    """An open port."""

    settings: ListenerSettings
    socket: socket.socket
    connections: set[asyncio.Task[None]] = field(default_factory=set)
    accepting: asyncio.Task[None] | None = None
    dropped: int = 0
    tokens: float = 0.0
    filled_at: float = field(default_factory=time.monotonic)

    def take_tokens(self, n: int) -> tuple[int, float]:
        """How many of n messages the rate lets through now, and seconds until one more."""
        rate = self.settings.rate_max
        if not rate:
            return n, 0.0
        now = time.monotonic()
        self.tokens = min(float(rate), self.tokens + (now - self.filled_at) * rate)
        self.filled_at = now
        some = min(n, int(self.tokens))
        self.tokens -= some
        return some, 1.0 / rate

    def admits(self, sender: str) -> bool:
        """Whether messages of that address are taken."""
        if not self.settings.allow:
            return True
        address = ipaddress.ip_address(sender.partition("%")[0])
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self.settings.allow)


class SyslogReceiver:
    """Doors on an event loop of its own thread, one queue, one thread that stores.

    Parameters
    ----------
    store_of : log store of a tenant
    receiver : checks and appends entries, as it does pushed ones
    streams_max : label sets that messages may bring; the values of more become ``other``
    tls : of doors that speak TLS
    """

    def __init__(
        self,
        store_of: Callable[[str], Streams],
        receiver: PushReceiver,
        tally: Tally,
        *,
        streams_max: int = 10_000,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.stats = SyslogStats()
        self._store_of = store_of
        self._receiver = receiver
        self._tally = tally
        self._tls = tls
        self._reader = EntryReader(streams_max)
        self._doors: dict[tuple[str, str, int], _Door] = {}
        self._queue: list[Arrived] = []
        self._held = 0
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._paused: list[_Door] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="syslog", daemon=True)
        self._executor = ThreadPoolExecutor(1, "syslog-store")
        self._writing: asyncio.Task[None] | None = None
        self._beside: asyncio.Task[None] | None = None
        self._said: set[str] = set()

    # -- life, called from other threads

    def start(self, beside: Coroutine[Any, Any, None] | None = None) -> None:
        """Begin to store what :meth:`apply` lets in; ``beside`` runs on the same loop until the end."""
        self._thread.start()

        async def begin() -> None:
            self._writing = asyncio.ensure_future(self._write())
            self._beside = asyncio.ensure_future(beside) if beside else None

        self._call(begin())

    def apply(self, listeners: Sequence[ListenerSettings]) -> None:
        """Listen as these say: ports that stay keep their connections, which follow the new settings.

        Raises
        ------
        OSError        a new address cannot be listened to; nothing has changed
        """
        self._call(self._apply(listeners))

    def close(self) -> None:
        """Listen no more, store what was taken."""
        if not self._thread.is_alive():
            return
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._executor.shutdown()

    @property
    def addresses(self) -> Mapping[tuple[str, str, int], tuple[str, int]]:
        """Where each listener listens, by what was asked for (port 0 takes a free one)."""
        return {key: door.socket.getsockname()[:2] for key, door in self._doors.items()}

    @property
    def connections(self) -> int:
        """Open ones."""
        return sum(len(door.connections) for door in self._doors.values())

    @property
    def unparsed(self) -> int:
        """Messages without a priority."""
        return self._reader.unparsed

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    # -- doors

    async def _apply(self, listeners: Sequence[ListenerSettings]) -> None:
        wanted = {settings.address: settings for settings in listeners}
        opened: dict[tuple[str, str, int], _Door] = {}
        try:
            for address, settings in wanted.items():
                if address not in self._doors:
                    opened[address] = _Door(settings, _bound(settings))
        except OSError as error:
            for door in opened.values():
                door.socket.close()
            raise OSError(f"syslog: cannot listen on {settings.host}:{settings.port}: {error}") from None
        for address in list(self._doors):
            if address not in wanted:
                await self._shut(self._doors.pop(address))
            else:
                door = self._doors[address]
                if door.settings.protocol != wanted[address].protocol:
                    await _cancel(door.connections)  # who spoke plain text may not go on doing so
                door.settings = wanted[address]
        for address, door in opened.items():
            self._doors[address] = door
            if address[0] == "udp":
                self._loop.add_reader(door.socket, self._readable, door)
            else:
                door.accepting = asyncio.ensure_future(self._accept(door))

    async def _shut(self, door: _Door) -> None:
        self._loop.remove_reader(door.socket)
        await _cancel([*door.connections, *([door.accepting] if door.accepting else [])])
        door.socket.close()

    async def _end(self) -> None:
        for address in list(self._doors):
            await self._shut(self._doors.pop(address))
        until = self._loop.time() + DRAIN_S
        while self._held and self._loop.time() < until:
            await asyncio.sleep(0.01)
        await _cancel([task for task in (self._writing, self._beside) if task is not None])
        if self._queue:
            lost = sum(len(item.messages) for item in self._queue)
            self._tally.add(Reason.OVERLOADED, lost)
            log.warning("syslog: %d messages were not stored before the end", lost)

    # -- datagrams

    def _readable(self, door: _Door) -> None:
        """Take the datagrams that wait, if there is room for them."""
        if self._held >= QUEUE_BYTES:
            self._loop.remove_reader(door.socket)
            self._paused.append(door)
            self._room.clear()
            return
        bytes_max = door.settings.message_bytes_max
        at_ns = time.time_ns()
        by_sender: dict[str, list[bytes]] = {}
        for _ in range(DATAGRAMS_MAX):
            try:
                data, extra, flags, address = door.socket.recvmsg(bytes_max, socket.CMSG_SPACE(4))
            except BlockingIOError:
                break
            except OSError as error:  # an ICMP answer to somebody; the socket goes on
                log.debug("syslog: %s", error)
                continue
            for level, kind, value in extra:
                if level == socket.SOL_SOCKET and kind == SO_RXQ_OVFL:
                    self._on_drops(door, struct.unpack("I", value)[0])
            if flags & socket.MSG_TRUNC:
                self._tally.add(Reason.LINE_TOO_LONG)
            elif data:
                by_sender.setdefault(address[0], []).append(data)
        for sender, messages in by_sender.items():
            if not door.admits(sender):
                self._tally.add(Reason.FORBIDDEN, len(messages))
                continue
            some, _ = door.take_tokens(len(messages))
            self._tally.add(Reason.RATE_LIMITED, len(messages) - some)
            self._add(door, sender, at_ns, messages[:some])

    def _on_drops(self, door: _Door, total: int) -> None:
        lost = (total - door.dropped) & 0xFFFFFFFF  # a counter of 32 bits
        door.dropped = total
        if lost:
            self._tally.add(Reason.RECEIVE_BUFFER, lost)
            self._say("syslog: the kernel drops datagrams (receive_buffer_full in meshpulse_rejected_total)")

    # -- connections

    async def _accept(self, door: _Door) -> None:
        while True:
            try:
                connection, address = await self._loop.sock_accept(door.socket)
            except OSError as error:  # no descriptors left
                self._tally.add(Reason.CONNECTIONS)
                self._say(f"syslog: no connection taken: {error}")
                await asyncio.sleep(BUSY_S)
                continue
            sender = str(address[0])
            if not door.admits(sender):
                self._tally.add(Reason.FORBIDDEN)
                connection.close()
            elif len(door.connections) >= door.settings.connections_max:
                self._tally.add(Reason.CONNECTIONS)
                connection.close()
            else:
                task = asyncio.ensure_future(self._serve(door, connection, sender))
                door.connections.add(task)
                task.add_done_callback(door.connections.discard)

    async def _serve(self, door: _Door, connection: socket.socket, sender: str) -> None:
        reader = asyncio.StreamReader(limit=READ_BYTES)
        transport: asyncio.BaseTransport | None = None
        try:
            connection.setsockopt(
                socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1
            )  # who is gone without a word frees its place
            tls = self._tls if door.settings.protocol == "tls" else None
            handshake_s = HANDSHAKE_S if tls else None
            transport, _ = await self._loop.connect_accepted_socket(
                lambda: asyncio.StreamReaderProtocol(reader), connection, ssl=tls, ssl_handshake_timeout=handshake_s
            )
            framer = Framer(door.settings.message_bytes_max)
            while data := await reader.read(READ_BYTES):
                await self._take(door, sender, framer.feed(data), framer)
            await self._take(door, sender, framer.close(), framer)
        except OSError as error:  # TLS errors are such too
            self.stats.broken += 1
            log.debug("syslog: connection of %s ended: %s", sender, error)
        finally:
            if transport is not None:
                transport.close()
            else:
                connection.close()

    async def _take(self, door: _Door, sender: str, messages: list[bytes], framer: Framer) -> None:
        self._tally.add(Reason.LINE_TOO_LONG, framer.too_long)
        framer.too_long = 0
        while messages:
            while self._held >= QUEUE_BYTES:
                self._room.clear()
                await self._room.wait()
            some, wait_s = door.take_tokens(len(messages))
            if not some:
                await asyncio.sleep(wait_s)
                continue
            self._add(door, sender, time.time_ns(), messages[:some])
            messages = messages[some:]

    # -- storing

    def _add(self, door: _Door, sender: str, at_ns: int, messages: Sequence[bytes]) -> None:
        if not messages:
            return
        self._queue.append(Arrived(door.settings, sender, at_ns, messages))
        self._held += sum(map(len, messages)) + MESSAGE_BYTES * len(messages)
        self.stats.queued_bytes = self._held
        self._arrived.set()

    async def _write(self) -> None:
        """Store what has arrived, as one batch a tenant, for ever."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            taken, held = list(self._queue), self._held
            try:
                for batch in await self._loop.run_in_executor(self._executor, self._reader.read, taken):
                    await self._store(batch)
            except Exception:
                self.stats.failures += 1
                log.exception("syslog messages were not stored")
            del self._queue[: len(taken)]
            self._held -= held
            self.stats.queued_bytes = self._held
            self._room.set()
            for door in self._paused:
                if door.socket.fileno() >= 0:
                    self._loop.add_reader(door.socket, self._readable, door)
            self._paused = []

    async def _store(self, batch: Batch) -> None:
        """Append until the store takes it: meanwhile nothing new is taken in."""
        while True:
            try:
                stored = await self._loop.run_in_executor(self._executor, self._append, batch)
            except (UnavailableError, RateError) as error:
                self.stats.busy += 1
                self._tally.add(error.reason)
                self._say(f"syslog waits: {error}")
                await asyncio.sleep(BUSY_S)
            except RejectedError as error:
                self._tally.add(error.reason, len(batch.spans.ts_ns))
                self._say(f"syslog: {error}")
                return
            else:
                self.stats.messages += stored
                self.stats.bytes += batch.bytes
                return

    def _append(self, batch: Batch) -> int:
        received = self._receiver.labelled(self._store_of(batch.tenant), batch.tenant, batch.streams, batch.spans)
        if received.future is not None:
            received.future.result()
        return received.entries

    def _say(self, text: str) -> None:
        """Once per kind of trouble, not once per message."""
        if text not in self._said and len(self._said) < 1000:
            self._said.add(text)
            log.warning(text)


async def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    """End tasks, and wait until they have."""
    ending = list(tasks)
    for task in ending:
        task.cancel()
    await asyncio.gather(*ending, return_exceptions=True)


def _bound(settings: ListenerSettings) -> socket.socket:
    udp = settings.protocol == "udp"
    kind = socket.SOCK_DGRAM if udp else socket.SOCK_STREAM
    family, _, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=kind, flags=socket.AI_PASSIVE)[0]
    made = socket.socket(family, kind)
    try:
        made.setblocking(False)
        if udp:
            made.setsockopt(socket.SOL_SOCKET, SO_RXQ_OVFL, 1)
            try:
                made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
            except PermissionError:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            made.bind(address)
        else:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
            made.listen(128)
    except OSError:
        made.close()
        raise
    return made
