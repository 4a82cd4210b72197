"""The future of an operation in the log: a third of the cost of the standard library's, which has one per request."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError
from concurrent.futures import _base as states
from typing import Any, TypeVar

T = TypeVar("T")

_lock = threading.Lock()  # held for a few instructions; a lock each would cost more than all waits for this one


class Promise(Future[T]):
    """A :class:`concurrent.futures.Future` that makes a lock only for a thread that waits.

    It works with callbacks, ``result``, ``cancel`` and :func:`asyncio.wrap_future`; not with
    :func:`concurrent.futures.wait`, which reaches into the standard one.
    """

    def __init__(self) -> None:  # the standard one makes a condition with a lock
        self._state: str = states.PENDING
        self._value: Any = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[Future[T]], object]] = []

    def __repr__(self) -> str:
        return f"<Promise {self._state.lower()}>"

    def cancel(self) -> bool:
        """Give the operation up, if it has not begun."""
        with _lock:
            if self._state != states.PENDING:
                return self.cancelled()
            self._state = states.CANCELLED
        self._call_back()
        return True

    def cancelled(self) -> bool:
        """Whether it was given up."""
        return self._state in (states.CANCELLED, states.CANCELLED_AND_NOTIFIED)

    def running(self) -> bool:
        """Whether it can no longer be given up and is not done."""
        return self._state == states.RUNNING

    def done(self) -> bool:
        """Whether it was given up or has ended."""
        return self._state not in (states.PENDING, states.RUNNING)

    def set_running_or_notify_cancel(self) -> bool:
        """Begin; False when it was given up."""
        with _lock:
            if self._state == states.PENDING:
                self._state = states.RUNNING
                return True
            if self._state != states.CANCELLED:
                raise InvalidStateError(f"{self!r} begins a second time")
            self._state = states.CANCELLED_AND_NOTIFIED
            return False

    def set_result(self, result: T) -> None:
        """End well."""
        self._end(result, None)

    def set_exception(self, exception: BaseException | None) -> None:
        """End badly."""
        self._end(None, exception)

    def _end(self, value: Any, error: BaseException | None) -> None:
        with _lock:
            if self.done():
                raise InvalidStateError(f"{self!r} ends a second time")
            self._value, self._error = value, error
            self._state = states.FINISHED
        self._call_back()

    def _call_back(self) -> None:
        callbacks, self._callbacks = self._callbacks, []  # nobody adds any more: the state is set
        for callback in callbacks:
            self._call(callback)

    def _call(self, callback: Callable[[Future[T]], object]) -> None:
        try:
            callback(self)
        except Exception:  # noqa: BLE001  # a callback's fault must not reach who ends the operation
            states.LOGGER.exception("exception calling callback for %r", self)

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """Call ``fn(self)`` at the end, or at once when that is over."""
        with _lock:
            if not self.done():
                self._callbacks.append(fn)
                return
        self._call(fn)

    def _wait(self, timeout: float | None) -> None:
        if not self.done():
            gate = threading.Lock()
            gate.acquire()
            self.add_done_callback(lambda _: gate.release())
            if not gate.acquire(timeout=-1 if timeout is None else max(timeout, 0.0)):
                raise TimeoutError
        if self.cancelled():
            raise CancelledError

    def result(self, timeout: float | None = None) -> T:
        """What the operation returned; raises what it raised, ``CancelledError`` or ``TimeoutError``."""
        self._wait(timeout)
        if self._error is not None:
            raise self._error
        value: T = self._value
        return value

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the operation raised, None when it ended well."""
        self._wait(timeout)
        return self._error
