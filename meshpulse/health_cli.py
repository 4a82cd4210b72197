"""``meshpulse health``: ask a running server why it judges an endpoint as it does."""

from __future__ import annotations

import contextlib
import json
import signal
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from health.adapters.eds import service_name
from health.adapters.follower import Follower, Poller
from health.policy_text import parse_duration_ms
from health.topology import parse_static

app = typer.Typer(help="Ask a running server about endpoints.", no_args_is_help=True)

_REPLAY_TIMEOUT_S = 600.0
"""The most evaluations a replay may have take about half a minute a service of 100 endpoints, on a free core."""
_EVENTS_SHOWN = 8


class AskError(Exception):
    """The server did not answer as wanted; the text is for a person."""


def ask(
    url: str, token: str, path: str, *, body: Mapping[str, Any] | None = None, timeout_s: float = 10.0, **params: str
) -> Any:
    """``data`` of an answer of the health API; with a ``body`` it is posted.

    Raises
    ------
    AskError
    """
    query = urllib.parse.urlencode({key: value for key, value in params.items() if value})
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    data = None if body is None else json.dumps(body).encode()
    address = f"{url.rstrip('/')}/api/v1/health/{path}" + (f"?{query}" if query else "")
    request = urllib.request.Request(address, data, headers | ({"Content-Type": "application/json"} if data else {}))  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as reply:  # noqa: S310  # the user's own URL
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
    for reason in data.get("approximations", ()):
        yield f"  approximate: {reason}"
    if data["until"]:
        yield f"  until {data['until']}, ejected {data['ejections']} times"
    if data.get("reason"):
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
    at: Annotated[
        str, typer.Option("--time", help="Another time than now: RFC 3339, unix seconds, or how long ago.")
    ] = "",
    url: Annotated[str, typer.Option(help="Where the server listens.")] = "http://127.0.0.1:9090",
    token: Annotated[str, typer.Option(envvar="MESHPULSE_TOKEN", help="A token with the role read.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as it came.")] = False,
) -> None:
    """Why an endpoint stands where it stands: statistics, gates, guards, observers, events."""
    try:
        when = _moment(at) if at else ""
        timeout_s = _REPLAY_TIMEOUT_S if at else 10.0
        data = ask(url, token, "explain", timeout_s=timeout_s, service=service, endpoint=endpoint, time=when)
    except AskError as error:
        typer.echo(f"meshpulse: {error}", err=True)
        raise typer.Exit(1) from None
    for line in [json.dumps(data, indent=2)] if as_json else explanation_lines(data):
        typer.echo(line)


def replay_lines(data: Mapping[str, Any]) -> Iterator[str]:
    """A replay for a terminal."""
    yield f"{data['service']} by policy {data['policy']}, {data['start']} to {data['end']}"
    if data["exact"]:
        yield f"  exact: {data['evaluations']:,} evaluations saw what the live ones saw"
    for reason in data["approximations"]:
        yield f"  approximate: {reason}"
    waited = data["time_to_detect_s"]
    if waited["count"]:
        yield f"  time to detect: p50 {waited['p50']:g} s, p90 {waited['p90']:g} s over {waited['count']} ejections"
    yield (
        f"  ejected for {data['ejected_endpoint_seconds']:,.0f} endpoint seconds, at most "
        f"{data['peak_ejected_percent']:g} % at once"
    )
    yield f"  about {data['errors_avoided']:,} errors avoided ({data['errors_avoided_real']:,} really happened)"
    added, removed = (data["diff_vs_live"][key] for key in ("added", "removed"))
    yield f"  against what happened: {added} ejections more, {removed} that it would not have made"
    yield "decisions:" if data["decisions"] else "no decisions"
    for decision in data["decisions"]:
        yield f"  {decision['time']} {decision['type']:<10} {decision['endpoint']:<24} {decision['reason']}".rstrip()


@app.command()
def replay(
    service: Annotated[str, typer.Argument(help="Name of the service.")],
    start: Annotated[str, typer.Option(help="RFC 3339, unix seconds, or how long ago: 30m, 6h.")],
    end: Annotated[str, typer.Option(help="The same; now when left out.")] = "",
    policy: Annotated[
        Path | None, typer.Option(help="YAML or JSON file with another policy than the one in force.", exists=True)
    ] = None,
    step: Annotated[str, typer.Option(help="Between evaluations, where it is not known when they were.")] = "",
    url: Annotated[str, typer.Option(help="Where the server listens.")] = "http://127.0.0.1:9090",
    token: Annotated[str, typer.Option(envvar="MESHPULSE_TOKEN", help="A token with the role actuate.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as it came.")] = False,
) -> None:
    """What a policy would have decided over stored history, beside what was decided."""
    body: dict[str, Any] = {"service": service, "start": _moment(start)}
    if end:
        body["end"] = _moment(end)
    if step:
        body["step"] = step
    try:
        if policy is not None:
            body["policy"] = _policy_file(policy)
        data = ask(url, token, "replay", body=body, timeout_s=_REPLAY_TIMEOUT_S)
    except AskError as error:
        typer.echo(f"meshpulse: {error}", err=True)
        raise typer.Exit(1) from None
    for line in [json.dumps(data, indent=2)] if as_json else replay_lines(data):
        typer.echo(line)


def _moment(text: str) -> str:
    """A time as the API reads it; a duration counts back from now."""
    try:
        return str(time.time() - parse_duration_ms(text) / 1000)
    except ValueError:
        return text


def _policy_file(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise AskError(f"{path}: {error}") from None


@app.command()
def follow(
    cluster: Annotated[str, typer.Argument(help="Name of the cluster in Envoy.")],
    topology: Annotated[
        Path, typer.Option(help="Its endpoints, as a file of health.topology lists them.", exists=True)
    ],
    path: Annotated[Path, typer.Option(help="EDS file to write, in a folder that Envoy watches.")],
    url: Annotated[str, typer.Option(help="Where the server listens.")] = "http://127.0.0.1:9090",
    token: Annotated[str, typer.Option(envvar="MESHPULSE_TOKEN", help="A token with the role read.")] = "",
) -> None:
    """Write an EDS file by the verdicts of a server elsewhere; all endpoints are usable when it is silent for long."""
    service = service_name(cluster)
    try:
        facts = parse_static(topology.read_text(encoding="utf-8")).get(service) or {}
    except (OSError, ValueError) as error:
        typer.echo(f"meshpulse: {topology}: {error}", err=True)
        raise typer.Exit(1) from None
    if not facts:
        typer.echo(f"meshpulse: {topology} lists no endpoints of {service}", err=True)
        raise typer.Exit(1)
    follower = Follower(cluster, facts, path, Poller(url, service, token))
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        follower.let_go()  # Envoy needs a file to begin with
        while True:
            follower.step()
    except KeyboardInterrupt:
        pass
    except OSError as error:
        typer.echo(f"meshpulse: {path}: {error}", err=True)
        raise typer.Exit(1) from None
    finally:
        with contextlib.suppress(OSError):
            follower.let_go()


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


@app.command()
def gate(
    rollout: Annotated[str, typer.Argument(help="Name of the rollout, for logs.")],
    service: Annotated[str, typer.Option(help="Name of the service; with --version.")] = "",
    version: Annotated[str, typer.Option(help="The version that is being rolled out.")] = "",
    site: Annotated[str, typer.Option(help="nginx: the site whose configuration was changed.")] = "",
    host: Annotated[str, typer.Option(help="nginx: the machine it was changed on; without --site all its sites.")] = "",
    changed_at: Annotated[str, typer.Option(help="nginx: when, RFC 3339 or seconds since 1970.")] = "",
    baseline: Annotated[str, typer.Option(help="nginx: how long before the change to compare with.")] = "10m",
    updated: Annotated[str, typer.Option(help="nginx: machines changed before, which are no peers: A,B,...")] = "",
    window: Annotated[str, typer.Option(help="How far to look back for a version.")] = "10m",
    url: Annotated[str, typer.Option(help="Where the server listens.")] = "http://127.0.0.1:9090",
    token: Annotated[str, typer.Option(envvar="MESHPULSE_TOKEN", help="A token with the role read.")] = "",
) -> None:
    """Whether a rollout may go on: exit code 0 go, 1 halt, 2 not enough evidence (or no answer)."""
    path = f"gates/{urllib.parse.quote(rollout, safe='')}"
    try:
        if site or host:
            data = ask(
                url, token, path, status="200", site=site, host=host, changed_at=changed_at, baseline=baseline,
                updated=updated,
            )  # fmt: skip
        else:
            data = ask(url, token, path, status="200", service=service, version=version, window=window)
    except AskError as error:
        typer.echo(f"meshpulse: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(f"{data['verdict']}: {data['reason']}")
    raise typer.Exit({"go": 0, "halt": 1}.get(data["verdict"], 2))
