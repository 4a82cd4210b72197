"""A server on 127.0.0.1 that plays a target or a list of targets."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable

from aiohttp import web


class Site:
    """A target that answers what a test tells it to."""

    def __init__(
        self,
        answer: Callable[[web.Request], Awaitable[web.StreamResponse]] | str = "a 1\n",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.answer = answer
        self.tls = tls
        self.requests: list[web.Request] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        if isinstance(self.answer, str):
            return web.Response(text=self.answer)
        return await self.answer(request)

    async def __aenter__(self) -> Site:
        app = web.Application()
        app.router.add_get("/{path:.*}", self.handle)
        self.runner = web.AppRunner(app)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0, ssl_context=self.tls)
        await site.start()
        self.address = f"127.0.0.1:{self.runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.runner.cleanup()
