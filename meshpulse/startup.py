"""What the program is doing between its first breath and being ready, for everybody who asks."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from enum import StrEnum


class Phase(StrEnum):
    """Where the program is in its life."""

    STARTING = "starting"
    WARMING = "compiling kernels"
    REPLAYING = "replaying the log"
    READY = "ready"
    STOPPING = "stopping"
    FAILED = "failed"


class StoppedError(Exception):
    """The program was told to end while it was still starting."""


@dataclass(slots=True)
class Progress:
    """Phase of the program; written by the thread that starts it, read by everybody.

    Attributes
    ----------
    phase : Phase
    detail : what exactly, e.g. ``12 of 40: append``
    warm_seconds : wall seconds it took to compile or load the kernels, None before that is done
    replay_seconds : the same for opening the store
    """

    phase: Phase = Phase.STARTING
    detail: str = ""
    warm_seconds: float | None = None
    replay_seconds: float | None = None
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def ready(self) -> bool:
        """Whether requests can be answered."""
        return self.phase is Phase.READY

    def enter(self, phase: Phase, detail: str = "") -> None:
        """Go on to the next phase.

        Raises
        ------
        StoppedError        the program was told to end
        """
        if self.stopping.is_set() and phase not in (Phase.STOPPING, Phase.FAILED):
            raise StoppedError
        self.phase = phase
        self.detail = detail

    def on_kernel(self, done: int, total: int, name: str) -> None:
        """Progress of :func:`meshpulse.warm.warm`.

        Raises
        ------
        StoppedError        the program was told to end
        """
        self.enter(Phase.WARMING, f"{done} of {total}: {name}" if name else f"{done} of {total}")

    def describe(self) -> str:
        """One line for a person."""
        return f"{self.phase} ({self.detail})" if self.detail else str(self.phase)
