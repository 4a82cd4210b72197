"""Before any test: kernels compiled once for all workers."""

from __future__ import annotations

import os

import pytest


def pytest_sessionstart(session: pytest.Session) -> None:
    """Under xdist, compile every kernel in one worker while the others wait; alone, kernels compile when called."""
    if hasattr(session.config, "workerinput") and not os.environ.get("NUMBA_DISABLE_JIT"):
        from meshpulse.warm import warm

        warm()
