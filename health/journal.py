"""What survives a restart: the state of every service in one file, the events in a log (docs/format/health.md).

Both are checksummed line by line and synced before anybody is told what they hold.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from health.board import Revision
from health.verdicts import Action, Detector, EndpointState, Guard, Override, Scalar, ServiceState, State

log = logging.getLogger(__name__)

VERSION = 1
SEGMENT_BYTES = 8 << 20
"""An event log is followed by the next when it is this long; the newest :data:`SEGMENTS_KEPT` are kept."""
SEGMENTS_KEPT = 4
_STATE = "state.json"
_EVENTS = "events-"
_INSTANCE = "instance"


@dataclass(frozen=True, slots=True)
class StoredOverride:
    """An order by a person, with its number."""

    id: str
    service: str
    endpoint: str
    order: Override


@dataclass(frozen=True, slots=True)
class Memory:
    """All that must survive.

    Attributes
    ----------
    services : by name
    evidence : service -> endpoint -> evidence of the decision that led to its state
    policies : JSON form by name, those made through the API
    events : how many events there were, so that numbers go on
    """

    revision: Revision
    services: Mapping[str, ServiceState] = field(default_factory=dict)
    evidence: Mapping[str, Mapping[str, Mapping[str, Scalar]]] = field(default_factory=dict)
    overrides: tuple[StoredOverride, ...] = ()
    policies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    events: int = 0


class Journal:
    """The files of one folder; used by one thread.

    Parameters
    ----------
    folder : made when it is not there
    make : False = touch nothing yet
    """

    def __init__(self, folder: Path, *, make: bool = True) -> None:
        self._folder = folder
        self._number = 0
        if make:
            folder.mkdir(parents=True, exist_ok=True)
            self._number = max((int(path.stem.removeprefix(_EVENTS)) for path in self._segments()), default=0)

    def instance(self) -> str:
        """Name of the instance that owns this folder, made at its first start."""
        path = self._folder / _INSTANCE
        try:
            return path.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            name = secrets.token_hex(8)
            path.write_text(f"{name}\n", encoding="ascii")
            self._sync_folder()
            return name

    def load(self, now_ms: int) -> Memory:
        """What was saved last; a new epoch, later than any other, when that cannot be read."""
        path = self._folder / _STATE
        try:
            return _memory(json.loads(_checked(path.read_bytes().rstrip(b"\n"))))
        except FileNotFoundError:
            return Memory(Revision(1, 0))
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.error("health state %s cannot be read, everything is judged anew: %s", path, error)  # noqa: TRY400
            with contextlib.suppress(OSError):
                path.replace(path.with_suffix(".damaged"))
            return Memory(Revision(now_ms // 1000, 0))

    def save(self, memory: Memory) -> None:
        """Replace what was saved; durable on return.

        Raises
        ------
        OSError        the old one still stands
        """
        path = self._folder / _STATE
        new = path.with_suffix(".new")
        with new.open("wb") as file:
            file.write(_line(_memory_data(memory)))
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        self._sync_folder()

    def append(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Write events behind the others; durable on return.

        Raises
        ------
        OSError
        """
        data = b"".join(map(_line, events))
        if not data:
            return
        path = self._folder / f"{_EVENTS}{self._number:08d}.log"
        fresh = not path.exists()
        if not fresh and path.stat().st_size + len(data) > SEGMENT_BYTES:
            self._number += 1
            path = self._folder / f"{_EVENTS}{self._number:08d}.log"
            fresh = True
            for old in self._segments()[: -(SEGMENTS_KEPT - 1)]:
                old.unlink()
        with path.open("ab") as file:
            file.write(data)
            file.flush()
            os.fdatasync(file.fileno())
        if fresh:
            self._sync_folder()

    def events(self) -> list[dict[str, Any]]:
        """All events that are kept and whole, oldest first."""
        out = []
        for path in self._segments():
            for number, line in enumerate(path.read_bytes().split(b"\n")):
                if line:
                    try:
                        out.append(json.loads(_checked(line)))
                    except ValueError as error:  # a torn tail, or damage: the others are still good
                        log.warning("%s line %d left out: %s", path, number + 1, error)
        return out

    def _segments(self) -> list[Path]:
        return sorted(self._folder.glob(f"{_EVENTS}*.log"))

    def _sync_folder(self) -> None:
        handle = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _line(data: Mapping[str, Any]) -> bytes:
    text = json.dumps(data, separators=(",", ":"), default=str).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _checked(line: bytes) -> bytes:
    """The JSON text of a line.

    Raises
    ------
    ValueError        its checksum is another
    """
    crc, _, text = line.partition(b" ")
    if len(crc) != 8 or int(crc, 16) != zlib.crc32(text):
        raise ValueError("checksum does not fit")
    return text


def _memory_data(memory: Memory) -> dict[str, Any]:
    return {
        "version": VERSION,
        "revision": str(memory.revision),
        "events": memory.events,
        "services": {
            name: {
                "last_ejection_ms": state.last_ejection_ms,
                "endpoints": {endpoint: _endpoint_data(known) for endpoint, known in state.endpoints.items()},
            }
            for name, state in memory.services.items()
        },
        "evidence": memory.evidence,
        "overrides": [
            {
                "id": o.id,
                "service": o.service,
                "endpoint": o.endpoint,
                "action": o.order.action,
                "until_ms": o.order.until_ms,
                "author": o.order.author,
                "comment": o.order.comment,
            }
            for o in memory.overrides
        ],
        "policies": memory.policies,
    }


def _memory(data: Mapping[str, Any]) -> Memory:
    if data["version"] != VERSION:
        raise ValueError(f"version {data['version']} is not {VERSION}")
    return Memory(
        revision=Revision.parse(data["revision"]),
        services={
            name: ServiceState(
                started_ms=0,
                endpoints={endpoint: _endpoint(row) for endpoint, row in service["endpoints"].items()},
                last_ejection_ms=service["last_ejection_ms"],
            )
            for name, service in data["services"].items()
        },
        evidence=data["evidence"],
        overrides=tuple(
            StoredOverride(
                row["id"],
                row["service"],
                row["endpoint"],
                Override(Action(row["action"]), row["until_ms"], row["author"], row["comment"]),
            )
            for row in data["overrides"]
        ),
        policies=data["policies"],
        events=data["events"],
    )


def _endpoint_data(state: EndpointState) -> dict[str, Any]:
    return {f.name: getattr(state, f.name) for f in fields(state)}


def _endpoint(row: Mapping[str, Any]) -> EndpointState:
    known = {f.name for f in fields(EndpointState)}
    values = {key: value for key, value in row.items() if key in known}
    values["state"] = State(values["state"])
    for key, kind in (("detector", Detector), ("blocked_by", Guard), ("returning", State)):
        if values.get(key) is not None:
            values[key] = kind(values[key])
    return EndpointState(**values)
