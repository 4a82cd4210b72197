"""The HTTP server: hot routes as bare ASGI, all others FastAPI; its life from listening to the last request."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import structlog
import uvicorn
import uvloop

from meshpulse.asgi import App, Receive, Scope, Send, answer
from meshpulse.auth import Guard, Refusal, Token
from meshpulse.config import Config, split_listen
from meshpulse.direct import Direct, Target
from meshpulse.memory import limit_arenas
from meshpulse.pages import create_pages
from meshpulse.protocol import Protocol, watch
from meshpulse.reload import Read, Reloader
from meshpulse.runtime import Lifecycle, Runtime
from meshpulse.startup import Phase, Progress, StoppedError
from meshpulse.tls import TlsFiles
from tsdb.errors import MeshpulseError

if TYPE_CHECKING:
    from meshpulse.health_grpc import HealthGrpcServer
    from meshpulse.otlp_grpc import OtlpGrpcServer

log = structlog.get_logger(__name__)

_CHALLENGE = ((b"www-authenticate", b'Bearer realm="meshpulse"'),)
_NOT_FOUND = Refusal(404, "404 page not found")
_RETRY = ((b"retry-after", b"1"),)


class Gateway:
    """The ASGI application: a table look-up by path before anything else.

    FastAPI costs 100-200 us a request (decision 14), so that writes and reads go around it.

    Attributes
    ----------
    hot : path -> application, for exact paths
    hot_prefixes : path prefix -> application, asked when no exact path fits
    sockets : path -> application that takes WebSockets
    """

    def __init__(self, progress: Progress, pages: App, guard: Guard, route_prefix: str = "") -> None:
        self._progress = progress
        self._pages = pages
        self._guard = guard
        self._prefix = route_prefix
        self.hot: Mapping[str, App] = {}
        self.hot_prefixes: Mapping[str, App] = {}
        self.sockets: Mapping[str, App] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection scope."""
        if self._prefix:
            scope = self._without_prefix(scope)
        if scope["type"] == "http":
            refusal = self._guard.refuse(scope)
            if refusal is not None:
                await self._refuse(refusal, send)
                return
            await self._find(scope["path"])(scope, receive, send)
        elif scope["type"] == "websocket":
            refusal = self._guard.refuse(scope)
            app = self.sockets.get(scope["path"])
            if refusal is None and app is not None:
                await app(scope, receive, send)
            else:
                await self._refuse_websocket(refusal or _NOT_FOUND, scope, send)

    def _without_prefix(self, scope: Scope) -> Scope:
        """The scope as if the client had not written ``server.route_prefix``; paths without it work as well."""
        path = scope["path"]
        rest = path.removeprefix(self._prefix)
        if rest == path or rest[:1] not in ("", "/"):
            return scope
        raw = (scope.get("raw_path") or path.encode()).removeprefix(self._prefix.encode())
        return {**scope, "path": rest or "/", "raw_path": raw or b"/"}

    def _find(self, path: str) -> App:
        app = self.hot.get(path)
        if app is not None:
            return app
        for prefix, candidate in self.hot_prefixes.items():
            if path.startswith(prefix):
                return candidate
        if not self._progress.ready and path.startswith(("/api/", "/loki/", "/otlp/")):
            return self._unready
        return self._pages

    @staticmethod
    async def _refuse(refusal: Refusal, send: Send) -> None:
        headers = _CHALLENGE if refusal.status == 401 else ()
        await answer(send, refusal.status, f"{refusal.text}\n".encode(), headers=headers)

    async def _unready(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        await answer(send, 503, f"Service Unavailable: {self._progress.describe()}\n".encode(), headers=_RETRY)

    @staticmethod
    async def _refuse_websocket(refusal: Refusal, scope: Scope, send: Send) -> None:
        """Deny before the upgrade: a bare close would become 403."""
        if "websocket.http.response" in scope.get("extensions", {}):
            headers = [(b"content-type", b"text/plain; charset=utf-8")]
            await send({"type": "websocket.http.response.start", "status": refusal.status, "headers": headers})
            await send({"type": "websocket.http.response.body", "body": f"{refusal.text}\n".encode()})
        else:
            await send({"type": "websocket.close", "code": 1000})


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, which would end the process by the signal instead of exit code 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class ListenRefusedError(Exception):
    """The address would be open to others, or cannot be bound."""


def bind(listen: str, *, insecure: bool) -> socket.socket:
    """Open the listening socket.

    Parameters
    ----------
    insecure : whether it may be other than a loopback address: tokens are asked for, or somebody insists

    Raises
    ------
    ListenRefusedError        not a loopback address although ``insecure`` is off, or the address is taken
    """
    host, port = split_listen(listen)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise ListenRefusedError(f"cannot listen on {listen}: {error}") from None
    family, address = found[0], found[4]
    if not insecure and not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
        raise ListenRefusedError(
            f"refusing to listen on {listen}: everybody who reaches it could write and read, because nobody is asked "
            "for a token. Configure auth.tokens, use a loopback address, or say --insecure"
        )
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise ListenRefusedError(f"cannot listen on {listen}: {error.strerror}") from None
    return listener


def serve(
    config: Config,
    listener: socket.socket,
    tokens: Sequence[Token] = (),
    tls: TlsFiles | None = None,
    read: Read | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT; the exit code of the process. SIGHUP reads the configuration again.

    The socket already listens, so that readiness can be asked for while a thread compiles kernels and replays the log.
    """
    limit_arenas()
    return uvloop.run(_serve(config, listener, tokens, tls, read or (lambda: (config, tokens))))


async def _serve(
    config: Config, listener: socket.socket, tokens: Sequence[Token], tls: TlsFiles | None, read: Read
) -> int:
    direct = Direct()
    progress = Progress()
    runtime = Runtime(config, progress)
    guard = Guard(tokens, runtime.tally)
    gateway = Gateway(progress, create_pages(runtime), guard, config.server.route_prefix)
    settings = uvicorn.Config(
        gateway,
        loop="none",
        http=functools.partial(Protocol, direct, runtime.edge),  # type: ignore[arg-type]  # called as a class is
        ws="websockets-sansio",
        ws_ping_interval=1.0,  # finds out that nobody reads a tail any more
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # a layer around every request, for addresses that nobody here asks for
        timeout_graceful_shutdown=max(1, round(config.server.drain.total_seconds())),
    )
    settings.load()
    settings.ssl = tls.context if tls else None
    server = _Server(settings)
    runtime.edge.make_room()
    runtime.edge.connections = server.server_state.connections
    loop = asyncio.get_running_loop()

    def stop(name: str) -> None:
        log.info("ending", signal=name, phase=str(progress.phase))
        server.force_exit = server.should_exit  # told twice: do not wait for open requests
        server.should_exit = True
        progress.stopping.set()
        runtime.release_waiters()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number.name)

    reloader = Reloader(read, runtime, guard, open_to_all=not config.server.insecure and _is_open(config, listener))
    hangups = _Hangups(reloader, progress)
    loop.add_signal_handler(signal.SIGHUP, hangups.take)

    async def reload() -> str:
        return (await reloader.reload()).describe()

    runtime.lifecycle = Lifecycle(reload, lambda: stop("quit"))

    def on_open() -> None:
        if progress.phase is Phase.FAILED:
            server.should_exit = True
            return
        gateway.hot, gateway.hot_prefixes = runtime.routes()
        gateway.sockets = runtime.sockets()
        assert runtime.parts is not None
        push_api = runtime.parts.push_api
        for path in push_api.paths:
            target = Target(path, push_api.serve, guard.refuse, push_api if push_api.is_short(path) else None)
            direct.targets.update({path: target, config.server.route_prefix + path: target})
        runtime.start_loops()
        progress.enter(Phase.READY)
        hangups.make_up()
        log.info("ready", warm_seconds=_ms(progress.warm_seconds), replay_seconds=_ms(progress.replay_seconds))

    def open_runtime() -> None:
        try:
            runtime.open()
        except StoppedError:
            return
        except Exception as error:  # the program cannot serve: say why, then end
            progress.enter(Phase.FAILED)
            known = isinstance(error, (MeshpulseError, OSError, ValueError))
            log.exception("cannot start", reason=str(error), exc_info=not known)
        with contextlib.suppress(RuntimeError):  # the loop is gone when we were told to end meanwhile
            loop.call_soon_threadsafe(on_open)

    grpc_servers = _grpc_servers(runtime, guard)
    try:
        for grpc_server in grpc_servers:
            await grpc_server.start(open_to_all=config.server.insecure or bool(tokens))
    except ListenRefusedError as error:
        log.error("cannot start", reason=str(error))  # noqa: TRY400  # the reason says it all
        return 2
    opener = threading.Thread(target=open_runtime, name="open", daemon=True)
    host, port = listener.getsockname()[:2]
    url = f"http{'s' if tls else ''}://{f'[{host}]' if ':' in host else host}:{port}"
    log.info("listening", url=url, data=str(config.storage.path))
    opener.start()
    watching = [asyncio.ensure_future(watch(server.server_state.connections))]
    if tls:
        watching.append(asyncio.ensure_future(tls.follow()))
    await server.serve(sockets=[listener])
    await asyncio.to_thread(direct.close)
    for task in watching:
        task.cancel()
    for grpc_server in grpc_servers:
        await grpc_server.stop(config.server.drain.total_seconds())
    failed = progress.phase is Phase.FAILED
    await runtime.stop_loops()
    await asyncio.to_thread(opener.join, config.server.drain.total_seconds())
    if opener.is_alive():
        log.warning("ending while the log is still being replayed")
        return 0
    progress.enter(Phase.STOPPING)
    await asyncio.to_thread(runtime.close)
    log.info("ended")
    return 1 if failed else 0


class _Hangups:
    """SIGHUP: reload, or do it once the program is ready."""

    def __init__(self, reloader: Reloader, progress: Progress) -> None:
        self._reloader = reloader
        self._progress = progress
        self._missed = False
        self._running: set[asyncio.Task[None]] = set()

    def take(self) -> None:
        """Told by the signal."""
        if not self._progress.ready:
            log.info("the configuration is read again when the start is through")
            self._missed = True
            return
        task = asyncio.get_running_loop().create_task(self._reload())
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def make_up(self) -> None:
        """The program is ready."""
        if self._missed:
            self.take()

    async def _reload(self) -> None:
        with contextlib.suppress(Exception):  # logged where it was caught; the program goes on as it was
            await self._reloader.reload()


def _is_open(config: Config, listener: socket.socket) -> bool:
    """Whether others than this machine reach one of the ports."""
    hosts = [str(listener.getsockname()[0])]
    hosts += [split_listen(text)[0] for text in (config.otlp.grpc_listen, config.health.grpc_listen) if text]
    return not all(host == "localhost" or _is_loopback(host) for host in hosts)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _grpc_servers(runtime: Runtime, guard: Guard) -> list[OtlpGrpcServer | HealthGrpcServer]:
    """Those of the configuration. gRPC costs 20 MB: only who listens pays."""
    servers: list[OtlpGrpcServer | HealthGrpcServer] = []
    if runtime.config.otlp.grpc_listen:
        from meshpulse.otlp_grpc import OtlpGrpcServer

        servers.append(OtlpGrpcServer(runtime, guard))
    if runtime.config.health.enabled and runtime.config.health.grpc_listen:
        from meshpulse.health_grpc import HealthGrpcServer

        servers.append(HealthGrpcServer(runtime, guard))
    return servers


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
