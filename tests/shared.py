"""Where the conformance data and captures beside the project lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("MESHPULSE_SHARED") or Path(__file__).resolve().parents[2] / "shared")


def shared_path(relative: str) -> Path:
    """Path of one shared file; skips the test, saying so, where the data is absent."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"needs {relative} of the shared data folder (set MESHPULSE_SHARED)")
    return path
