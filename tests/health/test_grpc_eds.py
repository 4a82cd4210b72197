"""Streams of endpoints: answers with nonces, acknowledged or refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from health.adapters import xds
from health.adapters.eds import TYPE_URL
from health.adapters.grpc_eds import GrpcEds
from health.policy import Mode
from ingest.wire import fields
from tests.health.test_eds import Bench
from tests.health.test_loop import QUICK
from tsdb.errors import RejectedError


def request(
    *names: str, version: str = "", node: str = "n1", nonce: str = "", error: str | None = None, kind: str = TYPE_URL
) -> bytes:
    out = xds._string(1, version) + xds._bytes(2, xds._string(1, node))
    out += b"".join(xds._string(3, name) for name in names) + xds._string(4, kind) + xds._string(5, nonce)
    return out + (xds._bytes(6, xds._uint(1, 3) + xds._string(2, error)) if error is not None else b"")


@dataclass
class Told:
    version: str
    nonce: str
    statuses: dict[str, int]
    weights: set[int]


def read(answer: bytes) -> Told:
    parts: dict[int, Any] = {}
    statuses: dict[str, int] = {}
    weights: set[int] = set()
    for number, value in fields(answer):
        parts[number] = value
        if number != 2:
            continue
        resource = dict(fields(value))  # type: ignore[arg-type]
        assert resource[1] == TYPE_URL.encode()
        for field, group in fields(resource[2]):  # type: ignore[arg-type]
            if field != 2:
                continue
            for inner, row in fields(group):  # type: ignore[arg-type]
                if inner != 2:
                    continue
                content: dict[int, Any] = dict(fields(row))  # type: ignore[arg-type]
                place = dict(fields(content[1]))
                statuses[xds._socket_address(place[1])] = content.get(2, 0)  # type: ignore[arg-type]
                weights.add(dict(fields(content[4]))[1])  # type: ignore[arg-type]
    assert parts[4] == TYPE_URL.encode()
    return Told(parts[1].decode(), parts[5].decode(), statuses, weights)


class Talk:
    """A proxy's side of one stream."""

    def __init__(self, bench: Bench, eds: GrpcEds | None = None) -> None:
        bench.mesh.loop.board.bind(asyncio.get_running_loop())
        self.eds = eds or GrpcEds(bench.runner)
        self.said: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.heard = self.eds.serve(self.requests())

    async def requests(self) -> AsyncIterator[bytes]:
        while (message := await self.said.get()) is not None:
            yield message

    async def ask(self, *names: str, **more: Any) -> None:
        await self.said.put(request(*names, **more))

    async def answer(self, seconds: float = 10) -> Told:
        return read(await asyncio.wait_for(anext(self.heard), seconds))

    async def ack(self, told: Told, *names: str) -> None:
        await self.ask(*names, version=told.version, nonce=told.nonce)


class Waiting:
    """The next answer, which is not there yet."""

    def __init__(self, talk: Talk) -> None:
        self.task = asyncio.create_task(talk.answer(20))

    async def nothing(self) -> Waiting:
        await asyncio.sleep(0.1)
        assert not self.task.done()
        return self

    async def get(self) -> Told:
        return await self.task


async def first(bench: Bench, eds: GrpcEds | None = None) -> tuple[Talk, Told]:
    talk = Talk(bench, eds)
    await talk.ask("svc")
    return talk, await talk.answer()


def test_an_answer_waits_for_the_next_change(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    async def main() -> None:
        talk, told = await first(bench)
        assert {a for a, s in told.statuses.items() if s == 2} == {bench.ill}
        assert sorted(told.statuses) == sorted(bench.mesh.names)
        assert told.weights == {200}
        await talk.ack(told, "svc")
        next_ = await Waiting(talk).nothing()
        assert talk.eds.acknowledged == 1
        bench.mesh.loop.put_policy(replace(bench.mesh.policy, mode=Mode.DRY_RUN), "me")
        bench.mesh.run(1)
        again = await next_.get()
        assert set(again.statuses.values()) == {1}
        assert again.version != told.version
        assert again.nonce != told.nonce
        assert talk.eds.streams == 1
        await talk.said.put(None)
        with pytest.raises(StopAsyncIteration):
            await anext(talk.heard)
        assert talk.eds.streams == 0

    asyncio.run(main())


def test_a_refused_version_is_not_sent_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    async def main() -> None:
        talk, told = await first(bench)
        await talk.ask("svc", nonce=told.nonce, error="weights")
        next_ = await Waiting(talk).nothing()
        nack = bench.mesh.loop.events.find(type="nack")[-1].data
        assert (nack["evidence"]["version"], nack["evidence"]["error"], nack["by"]) == (
            told.version,
            "weights",
            "node:n1",
        )
        # a new stream of the same proxy is not told either, another proxy is
        other = Talk(bench, talk.eds)
        await other.ask("svc")
        held = await Waiting(other).nothing()
        third = Talk(bench, talk.eds)
        await third.ask("svc", node="n2")
        assert (await third.answer()).version == told.version
        # but what is newer is said
        bench.clock.ms += QUICK.lease_ms
        bench.mesh.loop.board.notify()
        assert set((await next_.get()).statuses.values()) == {1}
        assert set((await held.get()).statuses.values()) == {1}

    asyncio.run(main())


def test_a_proxy_that_comes_back_is_told_only_what_is_new(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    async def main() -> None:
        _, told = await first(bench)
        talk = Talk(bench)
        await talk.ask("svc", version=told.version)
        await Waiting(talk).nothing()

    asyncio.run(main())


def test_subscriptions_change(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    async def main() -> None:
        talk = Talk(bench)
        await talk.ask("nobody")  # nobody lists it: maybe later
        await Waiting(talk).nothing()

        talk, told = await first(bench)
        await talk.ack(told, "svc", "nobody")  # the answer is another one, since what it is asked for is
        again = await talk.answer()
        assert again.statuses == told.statuses
        await talk.ask("other", version=told.version, nonce=told.nonce)  # about an old answer
        await talk.ack(again)  # wants nothing now
        next_ = await Waiting(talk).nothing()
        await talk.ack(again, "svc")
        assert (await next_.get()).statuses == told.statuses

    asyncio.run(main())


def test_other_types_of_an_aggregated_stream_are_not_answered(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    async def main() -> None:
        talk = Talk(bench)
        await talk.ask(kind="type.googleapis.com/envoy.config.cluster.v3.Cluster")
        next_ = await Waiting(talk).nothing()
        await talk.ask("svc")
        assert (await next_.get()).statuses

    asyncio.run(main())


def test_fail_open(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    async def main() -> None:
        talk, told = await first(bench)
        await talk.ack(told, "svc")
        next_ = await Waiting(talk).nothing()
        bench.clock.ms += QUICK.lease_ms  # nothing announces the end of a lease
        assert set((await next_.get()).statuses.values()) == {1}

    asyncio.run(main())


def test_the_last_word_of_a_program_that_ends_is_healthy(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    async def main() -> None:
        talk, told = await first(bench)
        await talk.ack(told, "svc")
        next_ = await Waiting(talk).nothing()
        bench.mesh.loop.board.close()
        assert set((await next_.get()).statuses.values()) == {1}
        with pytest.raises(StopAsyncIteration):
            await anext(talk.heard)

    asyncio.run(main())


def test_what_is_no_request(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    async def main() -> None:
        for junk in (b"\x0a\x7f", b"\x10\x05", b"\x0a\x01\xff"):
            talk = Talk(bench)
            await talk.said.put(junk)
            with pytest.raises(RejectedError):
                await talk.answer()

    asyncio.run(main())
