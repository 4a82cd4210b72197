"""What nobody uses any more goes back to the system."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CHILD = """
import time
from meshpulse.memory import MemoryKeeper

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

held = [bytes(900) for _ in range(200_000)]
before = resident()
kept = held[::100]  # keep all below them
del held
keeper = MemoryKeeper(0.05)
keeper.start()
deadline = time.monotonic() + 60
while resident() > before - 100e6 and time.monotonic() < deadline:
    time.sleep(0.05)
    sum(range(100_000))  # busy
keeper.close()
print(resident() <= before - 100e6, len(kept))
"""


@pytest.mark.skipif(
    not hasattr(os, "confstr") or "glibc" not in (os.confstr("CS_GNU_LIBC_VERSION") or ""), reason="no glibc"
)
def test_freed_memory_is_given_back_though_some_is_in_use() -> None:
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["True", "2000"]
