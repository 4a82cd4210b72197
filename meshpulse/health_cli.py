"""``meshpulse health``: ask a running server why it judges an endpoint as it does."""

from __future__ import annotations

import contextlib
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

app = typer.Typer(help="Ask a running server about endpoints.", no_args_is_help=True)

_TIMEOUT_S = 10.0
_EVENTS_SHOWN = 8


class AskError(Exception):
    """The server did not answer as wanted; the text is for a person."""


def ask(url: str, token: str, path: str, **params: str) -> Any:
    """``data`` of an answer of the health API.

    Raises
    ------
    AskError
    """
    query = urllib.parse.urlencode({key: value for key, value in params.items() if value})
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"{url.rstrip('/')}/api/v1/health/{path}?{query}", headers=headers)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as reply:  # noqa: S310  # the user's own URL
            return json.load(reply)["data"]
    except urllib.error.HTTPError as error:
        text = error.read().decode(errors="replace")
        with contextlib.suppress(ValueError, KeyError, TypeError):
            text = json.loads(text)["error"]
        raise AskError(f"{error.code}: {text.strip()}") from None
    except (OSError, ValueError, KeyError) as error:
        raise AskError(f"{url} does not answer: {error}") from None


def explanation_lines(data: Mapping[str, Any]) -> Iterator[str]:
    """An explanation for a terminal."""
    yield f"{data['service']} {data['endpoint']} is {data['state']} since {data['since']} ({data['mode']})"
    if data["until"]:
        yield f"  until {data['until']}, ejected {data['ejections']} times"
    if data["reason"]:
        yield f"  {data['reason']}"
    found = data.get("conviction")
    if found:
        yield f"  convicted {found['time']} by {found['detector']}: {found['reason']}"
        why = found["evidence"]
        if "mh_z" in why:
            needs = why["threshold"]
            yield (
                f"  over {why['window']}: excess {_short(why['excess'])} (needs {_short(needs['min_excess'])}), "
                f"z {_short(why['mh_z'])} (needs {_short(needs['z'])}), chance {_short(why['p'])}"
            )
    stats = data["statistics"]
    if stats:
        yield (
            f"  {stats['detector']} over {stats['window']}: {stats['errors']:.0f} of {stats['attempts']:.0f} attempts, "
            f"peers {100 * float(stats['baseline']):.2f} %, z {float(stats['z']):.2f}"
        )
    for gate in data["conditions"]:
        mark = "ok " if gate["ok"] else "no "
        yield f"  {mark} {gate['name']:<14} {_short(gate['value']):>12}   needs {gate['needs']}"
    yield f"  {data['counterfactual']}"
    yield "guards:"
    for guard in data["guards"]:
        detail = ", ".join(f"{key} {_short(value)}" for key, value in guard["detail"].items())
        yield f"  {'ok ' if guard['ok'] else 'no '} {guard['name']:<14} {detail}".rstrip()
    if data.get("per_observer"):
        yield "observers:"
        for row in data["per_observer"][:10]:
            yield (
                f"  {row['observer']:<28} {row['errors']:>6} of {row['requests']:<8} "
                f"peers {row['peer_errors']} of {row['peer_requests']}"
            )
    if data["events"]:
        yield "events:"
        for event in data["events"][-_EVENTS_SHOWN:]:
            yield f"  {event['time']} {event['type']:<10} {event.get('reason', '')}".rstrip()
    if data["promql"]:
        yield f"query: {data['promql']}"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@app.command()
def explain(
    service: Annotated[str, typer.Argument(help="Name of the service.")],
    endpoint: Annotated[str, typer.Argument(help="ADDRESS:PORT of the endpoint.")],
    url: Annotated[str, typer.Option(help="Where the server listens.")] = "http://127.0.0.1:9090",
    token: Annotated[str, typer.Option(envvar="MESHPULSE_TOKEN", help="A token with the role read.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as it came.")] = False,
) -> None:
    """Why an endpoint stands where it stands: statistics, gates, guards, observers, events."""
    try:
        data = ask(url, token, "explain", service=service, endpoint=endpoint)
    except AskError as error:
        typer.echo(f"meshpulse: {error}", err=True)
        raise typer.Exit(1) from None
    for line in [json.dumps(data, indent=2)] if as_json else explanation_lines(data):
        typer.echo(line)


@app.command()
def gate(
    rollout: Annotated[str, typer.Argument(help="Name of the rollout, for logs.")],
    service: Annotated[str, typer.Option(help="Name of the service.")],
    version: Annotated[str, typer.Option(help="The version that is being rolled out.")],
    window: Annotated[str, typer.Option(help="How far to look back.")] = "10m",
    url: Annotated[str, typer.Option(help="Where the server listens.")] = "http://127.0.0.1:9090",
    token: Annotated[str, typer.Option(envvar="MESHPULSE_TOKEN", help="A token with the role read.")] = "",
) -> None:
    """Whether a rollout may go on: exit code 0 go, 1 halt, 2 not enough evidence (or no answer)."""
    try:
        path = f"gates/{urllib.parse.quote(rollout, safe='')}"
        data = ask(url, token, path, service=service, version=version, window=window, status="200")
    except AskError as error:
        typer.echo(f"meshpulse: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(f"{data['verdict']}: {data['reason']}")
    raise typer.Exit({"go": 0, "halt": 1}.get(data["verdict"], 2))
