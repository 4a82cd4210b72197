"""Run a coroutine at once as far as it goes without waiting: a request that is answered on the spot needs no task."""

from __future__ import annotations

import types
from collections.abc import Coroutine, Generator
from typing import Any


def first_step(coroutine: Coroutine[Any, Any, None]) -> Coroutine[Any, Any, None] | None:
    """Run ``coroutine`` until it waits for something.

    Until then ``asyncio.current_task()`` is None in it, so that nothing in it may look for its task: timeouts,
    task groups, anyio.

    Returns
    -------
    Coroutine or None        the rest, to be made a task; None when it has ended
    """
    try:
        awaited = coroutine.send(None)
    except StopIteration:
        return None
    return _rest(coroutine, awaited)


async def _rest(coroutine: Coroutine[Any, Any, None], awaited: Any) -> None:
    await _go_on(coroutine, awaited)


@types.coroutine
def _go_on(coroutine: Coroutine[Any, Any, None], awaited: Any) -> Generator[Any, Any, None]:
    """Await what the coroutine awaits, from where it stands."""
    while True:
        caught: BaseException | None = None
        sent: Any = None
        try:
            sent = yield awaited
        except BaseException as error:  # noqa: BLE001 - cancellation too is the coroutine's
            caught = error
        try:
            awaited = coroutine.send(sent) if caught is None else coroutine.throw(caught)
        except StopIteration:
            return
