"""Promises beside the futures of the standard library."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import CancelledError, Future, InvalidStateError
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsdb.wal.promise import Promise

STEPS = st.sampled_from(["begin", "cancel", "result", "exception", "callback", "bad callback", "ask"])


def step(future: Future[Any], name: str, called: list[str]) -> Any:
    if name == "begin":
        return future.set_running_or_notify_cancel()
    if name == "cancel":
        return future.cancel()
    if name == "result":
        return future.set_result(5)
    if name == "exception":
        return future.set_exception(ValueError("x"))
    if name == "callback":
        return future.add_done_callback(lambda f: called.append(str(f.cancelled() or f.exception() or f.result())))
    if name == "bad callback":
        return future.add_done_callback(lambda _: 1 / 0)
    return future.done(), future.running(), future.cancelled(), future.result(0.0)


def outcomes(future: Future[Any], steps: list[str]) -> list[str]:
    called: list[str] = []
    found = []
    for name in steps:
        try:
            found.append(str(step(future, name, called)))
        except (InvalidStateError, CancelledError, TimeoutError, ValueError) as error:
            found.append(type(error).__name__)
        except RuntimeError:  # of the library, which was begun twice
            found.append("InvalidStateError")
    return [*found, *called]


@given(st.lists(STEPS, max_size=10))
def test_it_does_what_the_standard_one_does(steps: list[str]) -> None:
    assert outcomes(Promise(), steps) == outcomes(Future(), steps)


def test_waiting_threads_are_let_go() -> None:
    promise: Promise[int] = Promise()
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(promise.result(30))) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.01)
    promise.set_running_or_notify_cancel()
    promise.set_result(7)
    for thread in threads:
        thread.join(30)
    assert found == [7] * 4
    with pytest.raises(InvalidStateError):
        promise.set_result(8)


def test_waiting_ends_after_the_timeout() -> None:
    promise: Promise[int] = Promise()
    with pytest.raises(TimeoutError):
        promise.result(0.01)
    promise.set_exception(ZeroDivisionError())
    assert isinstance(promise.exception(0), ZeroDivisionError)


def test_an_event_loop_can_wait_for_it() -> None:
    async def wait() -> int:
        promise: Promise[int] = Promise()
        threading.Timer(0.01, promise.set_result, [3]).start()
        return await asyncio.wrap_future(promise)

    assert asyncio.run(wait()) == 3
