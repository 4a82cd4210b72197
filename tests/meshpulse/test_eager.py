"""Coroutines that run at once as far as they go."""

from __future__ import annotations

import asyncio

import pytest

from meshpulse.eager import first_step


def test_what_waits_for_nothing_is_done() -> None:
    done = []

    async def work() -> None:
        await asyncio.sleep(0, done.append(1))  # a bare yield comes after this
        done.append(2)

    async def quick() -> None:
        done.append(3)

    assert first_step(quick()) is None
    assert done == [3]
    rest = first_step(work())
    assert rest is not None
    assert done == [3, 1]
    asyncio.run(rest)
    assert done == [3, 1, 2]


def test_an_error_before_the_first_wait_is_raised() -> None:
    async def work() -> None:
        raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        first_step(work())


def test_the_rest_waits_for_futures_and_gets_their_results_and_errors() -> None:
    seen: list[object] = []

    async def work(first: asyncio.Future[int], second: asyncio.Future[int]) -> None:
        seen.append(await first)
        try:
            await second
        except KeyError as error:
            seen.append(type(error))
        seen.append(await asyncio.wait_for(asyncio.sleep(0, 7), 5))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        first, second = loop.create_future(), loop.create_future()
        rest = first_step(work(first, second))
        assert rest is not None
        task = loop.create_task(rest)
        loop.call_soon(first.set_result, 5)
        await asyncio.sleep(0.01)
        second.set_exception(KeyError("k"))
        await task

    asyncio.run(main())
    assert seen == [5, KeyError, 7]


def test_the_rest_is_cancelled() -> None:
    seen: list[str] = []

    async def work(future: asyncio.Future[None]) -> None:
        try:
            await future
        finally:
            seen.append("cleaned")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        rest = first_step(work(loop.create_future()))
        assert rest is not None
        task = loop.create_task(rest)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert seen == ["cleaned"]
