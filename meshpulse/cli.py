"""The command line. Modules are imported by the command that needs them, so that ``version`` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meshpulse import version
from meshpulse.health_cli import app as health
from meshpulse.memory import collect_seldom

if TYPE_CHECKING:
    from meshpulse.auth import Token
    from meshpulse.config import Config

app = typer.Typer(
    name="meshpulse",
    help="A time-series database for a service mesh: Prometheus in, PromQL out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
inspect = typer.Typer(help="Look into files of a data folder.", no_args_is_help=True)
app.add_typer(inspect, name="inspect")
app.add_typer(health, name="health")


def _fail(text: str, code: int) -> typer.Exit:
    typer.echo(f"meshpulse: {text}", err=True)
    return typer.Exit(code)


@app.command()
def serve(
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", "--storage.tsdb.path", help="Folder of the data [storage.path].")
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(
            "--listen", "--web.listen-address", metavar="HOST:PORT", help="Address to serve on [server.listen]."
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", "--config.file", help="Configuration (YAML).")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Listen beyond loopback without tokens.")] = False,
    enable_admin_api: Annotated[
        bool,
        typer.Option(
            "--enable-admin-api", "--web.enable-admin-api", help="Serve snapshots and deletion [server.admin_api]."
        ),
    ] = False,
    enable_lifecycle: Annotated[
        bool,
        typer.Option("--enable-lifecycle", "--web.enable-lifecycle", help="Reload, quit by HTTP [server.lifecycle]."),
    ] = False,
    route_prefix: Annotated[
        str | None, typer.Option("--web.route-prefix", help="Also serve below this path [server.route_prefix].")
    ] = None,
    retention: Annotated[
        str | None, typer.Option("--storage.tsdb.retention.time", help="Age of the oldest data [storage.retention].")
    ] = None,
    retention_bytes: Annotated[
        str | None,
        typer.Option("--storage.tsdb.retention.size", help="Most bytes of blocks [storage.retention_bytes]."),
    ] = None,
    lookback: Annotated[str | None, typer.Option("--query.lookback-delta", help="[query.lookback_delta]")] = None,
    timeout: Annotated[str | None, typer.Option("--query.timeout", help="[query.timeout]")] = None,
    concurrency: Annotated[int | None, typer.Option("--query.max-concurrency", help="[query.max_concurrency]")] = None,
    log_level: Annotated[
        str | None, typer.Option("--log-level", "--log.level", help="debug, info, warning or error [log.level].")
    ] = None,
    log_format: Annotated[
        str | None, typer.Option("--log-format", "--log.format", help="text or json [log.format].")
    ] = None,
) -> None:
    """Take samples in, keep them, answer queries; SIGTERM ends it cleanly."""
    collect_seldom()
    from meshpulse.config import ConfigError, load_config, read_tokens
    from meshpulse.lock import FolderLock, FolderLockedError
    from meshpulse.logs import configure_logs

    overrides: dict[str, dict[str, Any]] = {
        "server": {
            "listen": listen,
            "insecure": insecure or None,
            "admin_api": enable_admin_api or None,
            "lifecycle": enable_lifecycle or None,
            "route_prefix": route_prefix,
        },
        "storage": {"path": data_dir, "retention": retention, "retention_bytes": retention_bytes},
        "query": {"lookback_delta": lookback, "timeout": timeout, "max_concurrency": concurrency},
        "log": {"level": log_level, "format": log_format},
    }

    def read() -> tuple[Config, list[Token]]:
        settings = load_config(config, overrides)
        return settings, read_tokens(settings)

    try:
        settings, tokens = read()
    except ConfigError as error:
        raise _fail(str(error), 2) from None
    configure_logs(settings.log.level, settings.log.format)

    from meshpulse.server import ListenRefusedError, bind
    from meshpulse.server import serve as serve_until_told
    from meshpulse.tls import TlsFiles, TlsFilesError

    cert, key = settings.server.tls_cert_file, settings.server.tls_key_file
    try:
        tls = TlsFiles(cert, key, settings.server.tls_client_ca_file) if cert and key else None
        listener = bind(settings.server.listen, insecure=settings.server.insecure or bool(tokens))
    except (ListenRefusedError, TlsFilesError) as error:
        raise _fail(str(error), 2) from None
    try:
        lock = FolderLock(settings.storage.path)
    except (FolderLockedError, OSError) as error:
        raise _fail(str(error), 1) from None
    code = serve_until_told(settings, listener, tokens, tls, read)
    lock.release()
    raise typer.Exit(code)


@app.command("warm")
def warm_kernels() -> None:
    """Compile all kernels into the cache, so that the next start is quick."""
    from meshpulse.bar import kernel_bar
    from meshpulse.logs import configure_logs
    from meshpulse.warm import warm
    from tsdb.kernels._jit import cache_root

    configure_logs("info", "text")
    with kernel_bar() as report:
        seconds = warm(report)
    typer.echo(f"kernels ready in {seconds:.1f} s, cached in {cache_root()}")


@inspect.command("wal")
def inspect_wal(
    path: Annotated[Path, typer.Argument(help="A log segment, or the folder of them.", exists=True)],
) -> None:
    """Print what a write-ahead log holds, damage included; works on a copy or on a stopped folder."""
    from tsdb.wal.inspect import inspect_wal as lines_of

    for line in lines_of(path):
        typer.echo(line)


@inspect.command("block")
def inspect_block(
    path: Annotated[Path, typer.Argument(help="A block file.", exists=True, dir_okay=False)],
    series: Annotated[int, typer.Option(min=0, help="How many series to name.")] = 20,
) -> None:
    """Print what a block holds and check every checksum; works beside a running server."""
    from tsdb.block.inspect import inspect_block as lines_of
    from tsdb.errors import CorruptionError

    try:
        for line in lines_of(path, series):
            typer.echo(line)
    except CorruptionError as error:
        raise _fail(str(error), 1) from None


@inspect.command("chunk")
def inspect_chunk(
    path: Annotated[Path, typer.Argument(help="A block file.", exists=True, dir_okay=False)],
    selector: Annotated[str, typer.Argument(help="Which series, e.g. 'up{job=\"envoy\"}'.")],
    samples: Annotated[int, typer.Option(min=0, help="Samples to print of each chunk; 0 = all.")] = 0,
) -> None:
    """Print the chunks of some series of a block, samples with their exact bits."""
    from query.promql.parser import ParseError, parse_selector
    from tsdb.block.inspect import inspect_chunks
    from tsdb.errors import MeshpulseError

    try:
        for line in inspect_chunks(path, parse_selector(selector), samples):
            typer.echo(line)
    except (MeshpulseError, ParseError) as error:
        raise _fail(str(error), 1) from None


@app.command("version")
def print_version() -> None:
    """Print the version."""
    typer.echo(f"meshpulse {version()}")


@app.command()
def demo(
    duration: Annotated[float | None, typer.Option(min=1, help="Seconds; without it until Ctrl-C.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Leave the last view there as SVG.")] = None,
) -> None:
    """Watch real Envoys: an upstream fails a little after 15 s, is ejected by EDS, and let back when it heals."""
    from meshpulse.demo.run import run_demo

    raise typer.Exit(run_demo(duration, picture))


def main() -> None:
    """Entry point of the ``meshpulse`` script."""
    app()
