"""One thread serves many pushing connections in rounds: read what has come, parse it, sync once, answer all.

A thread for each connection costs as much in switches and in waits for the interpreter's lock as in parsing: seven
switches a request, and a sync for every two or three. Here a request in a round of several costs none of its own.
Only requests that are short to parse are served so (:attr:`meshpulse.direct.Target.rounds`), since those of a round
wait for each other. Nothing here waits for a sender: sockets are asked for what they have.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from ingest.api import Answer, Push, PushRequest
from meshpulse.edge import IDLE_S

if TYPE_CHECKING:
    from meshpulse.direct import DirectConnection

log = logging.getLogger(__name__)

ROUND_MAX = 16
"""Most requests of a round: the first waits for the last, which takes 0.4 ms each with 2,000 samples."""
RECEIVE_BYTES = 1 << 17
"""Most that is read at once; a request of 2,000 samples has 72 kB."""
SWEEP_S = 5.0
"""How often connections are looked for that have been silent for too long."""


class Steps(Protocol):
    """What serves requests step by step (:class:`ingest.api.PushApi`)."""

    def admit(self, path: str, request: PushRequest, length: int) -> Push:
        """Begin a request whose body is still to be read; with an answer when it is refused."""
        ...

    def gathering(self) -> AbstractContextManager[None]:
        """Requests that are parsed inside share one sync."""
        ...

    def parse(self, push: Push, body: bytes) -> None:
        """Read the body, unless the request is refused."""
        ...

    def finish(self, push: Push) -> Answer:
        """The answer, when everything is decided."""
        ...

    def give_up(self, push: Push) -> None:
        """End a request whose sender went away."""
        ...


class _Seat:
    """A connection among those served in rounds.

    Attributes
    ----------
    leave : ``leave(bytes left, is over)`` hands it back
    push : the request whose body is being read, or is there; None between requests
    """

    __slots__ = ("connection", "fd", "leave", "left", "parts", "push", "since", "steps")

    def __init__(self, connection: DirectConnection, leave: Callable[[bytes, bool], None]) -> None:
        self.connection = connection
        self.fd = connection.fileno()
        self.leave = leave
        self.parts: list[bytes] = []
        self.left = 0
        self.push: Push | None = None
        self.steps: Steps | None = None  # of the request
        self.since = time.monotonic()

    def take(self, data: memoryview) -> bool:
        """Take bytes that have arrived, one at least; False when they are not for us."""
        if self.push is None:
            found = self.connection.find(data)
            if found is None:
                return False
            head, target = found
            if target.rounds is None or len(data) > head.size + head.length:
                return False
            self.steps = target.rounds
            self.connection.begin()
            self.push = self.steps.admit(target.path, head.request, head.length)
            self.left = head.length
            data = data[head.size :]
        if len(data):
            self.parts.append(bytes(data))
            self.left -= len(data)
        self.connection.wait_for_body(self.left > 0)
        return True

    @property
    def is_ready(self) -> bool:
        """Whether a request is there as a whole."""
        return self.push is not None and not self.left

    def body(self) -> bytes:
        """The body of the request; once."""
        parts, self.parts = self.parts, []
        return parts[0] if len(parts) == 1 else b"".join(parts)


class Rounds:
    """The thread and its connections; it begins with the first of them."""

    def __init__(self) -> None:
        self._arrivals: deque[tuple[_Seat, bytes]] = deque()
        self._seats: dict[int, _Seat] = {}  # by descriptor; the thread's own, as all below
        self._ready: deque[_Seat] = deque()
        self._buffer = memoryview(bytearray(RECEIVE_BYTES))
        self._swept = time.monotonic()
        self._is_ending = False
        self._thread: threading.Thread | None = None

    # -- the event loop's

    def add(self, connection: DirectConnection, data: bytes, leave: Callable[[bytes, bool], None]) -> None:
        """Serve a connection of which ``data`` has been read, until ``leave(bytes left, is over)``."""
        self._arrivals.append((_Seat(connection, leave), data))
        if self._thread is None:
            self._poll = select.epoll()
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._poll.register(self._wake, select.EPOLLIN)
            self._thread = threading.Thread(target=self._run, name="push-rounds", daemon=True)
            self._thread.start()
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Wait for the end of all connections, which somebody has aborted."""
        self._is_ending = True
        if self._thread is not None:
            os.eventfd_write(self._wake, 1)
            self._thread.join()
            self._poll.close()
            os.close(self._wake)

    # -- the thread's

    def _run(self) -> None:
        while not self._is_ending or self._seats or self._arrivals:
            self._look(0.0 if self._ready else SWEEP_S)
            if self._ready:
                self._serve_round()
            if time.monotonic() - self._swept >= SWEEP_S:
                self._sweep()

    def _look(self, timeout: float) -> None:
        """Read what has arrived, or arrives within so many seconds."""
        for fd, _ in self._poll.poll(timeout):
            if fd == self._wake:
                os.eventfd_read(fd)
                continue
            seat = self._seats.get(fd)
            if seat is not None and not seat.is_ready:
                self._read(seat)
        while self._arrivals:
            seat, data = self._arrivals.popleft()
            self._seats[seat.fd] = seat
            self._poll.register(seat.fd, select.EPOLLIN)
            self._take(seat, memoryview(data))

    def _read(self, seat: _Seat) -> None:
        size = min(seat.left, RECEIVE_BYTES) if seat.push is not None else RECEIVE_BYTES
        try:
            size = seat.connection.receive(self._buffer[:size])
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if size:
            self._take(seat, self._buffer[:size])
        else:
            self._end(seat)

    def _take(self, seat: _Seat, data: memoryview) -> None:
        seat.since = time.monotonic()
        try:
            is_ours = seat.take(data)
        except Exception:
            log.exception("a pushing connection failed")
            self._end(seat)
            return
        if not is_ours:
            self._leave(seat, bytes(data), False)
        elif seat.is_ready:
            self._ready.append(seat)

    def _serve_round(self) -> None:
        """Parse what is there and what comes meanwhile, sync once, answer."""
        served: list[_Seat] = []
        steps = self._ready[0].steps  # all targets have the same
        assert steps is not None
        try:
            with steps.gathering():
                while self._ready and len(served) < ROUND_MAX:
                    seat = self._ready.popleft()
                    served.append(seat)
                    assert seat.push is not None
                    steps.parse(seat.push, seat.body())
                    if not self._ready:
                        self._look(0.0)
        except Exception:
            log.exception("a round of pushes failed")  # none of it is acknowledged
            for seat in served:
                self._end(seat)
            return
        for seat in served:
            assert seat.push is not None
            try:
                answer, seat.push = steps.finish(seat.push), None
            except Exception:
                log.exception("the answer to a push failed")
                self._end(seat)
            else:
                self._answer(seat, answer)

    def _answer(self, seat: _Seat, answer: Answer) -> None:
        try:
            is_over = seat.connection.answer(answer, socket.MSG_DONTWAIT)
        except OSError:  # it went away, or reads no answers
            is_over = True
        if is_over:
            self._leave(seat, b"", True)

    def _end(self, seat: _Seat) -> None:
        """The sender has gone away, was told to, or was too slow."""
        if seat.push is not None and seat.steps is not None:
            seat.steps.give_up(seat.push)
            seat.push = None
        seat.connection.say_late()
        self._leave(seat, b"", True)

    def _leave(self, seat: _Seat, rest: bytes, is_over: bool) -> None:
        del self._seats[seat.fd]
        self._poll.unregister(seat.fd)
        seat.leave(rest, is_over)

    def _sweep(self) -> None:
        """End connections that have been silent between two requests for too long."""
        self._swept = now = time.monotonic()
        for seat in [s for s in self._seats.values() if s.push is None and now - s.since > IDLE_S]:
            self._end(seat)
