"""Child processes that end with the demo, whatever ends it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class DemoError(Exception):
    """The demo cannot run here; the text says what is missing."""


def _end_with_parent() -> None:
    """Between fork and exec: the kernel ends the child when this process dies without a chance to clean up."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Child:
    """One process of the demo: output in a file, SIGTERM first, SIGKILL when that is not enough."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, output: Path) -> None:
        self.name = name
        self._process = process
        self._output = output

    @classmethod
    async def start(cls, name: str, command: Sequence[str], folder: Path) -> Child:
        """Start ``command`` with its output in ``folder/NAME.log``."""
        output = folder / f"{name}.log"
        with output.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd=folder,
                env=_environment(),
                start_new_session=True,  # Ctrl-C reaches the demo alone, which then ends its children in order
                preexec_fn=_end_with_parent,
            )
        return cls(name, process, output)

    def check(self) -> None:
        """Raise when the process is gone.

        Raises
        ------
        DemoError        with the last lines it wrote
        """
        if self._process.returncode is not None:
            tail = "\n".join(self._output.read_text(errors="replace").splitlines()[-15:])
            raise DemoError(f"{self.name} ended with exit code {self._process.returncode}:\n{tail}")

    async def end(self, patience_s: float = 15.0) -> int:
        """End the process and wait for it; its exit code."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            return await asyncio.wait_for(self._process.wait(), patience_s)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            return await self._process.wait()


def _environment() -> Mapping[str, str]:
    """Ours, so that the server finds the kernel cache; unbuffered, so that a log file is complete."""
    return {**os.environ, "PYTHONUNBUFFERED": "1"}


def console_script(name: str) -> str:
    """Path of a program that lies beside this Python.

    Raises
    ------
    DemoError        it is not installed
    """
    path = Path(sys.executable).parent / name
    if not path.is_file():
        raise DemoError(f"{name} is not installed beside {sys.executable}: run `make install`")
    return str(path)
