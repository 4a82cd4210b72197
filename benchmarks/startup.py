"""CPU seconds from process start to ready: kernels from a warm cache, and compiled into an empty one.

python -m benchmarks.startup
"""

from __future__ import annotations

import os
import tempfile

from benchmarks.peers import meshpulse

CACHE_ENV = "MESHPULSE_KERNEL_CACHE"


def ready_cpu_seconds() -> float:
    """CPU seconds of one server until /-/ready says 200."""
    with meshpulse() as server:
        return server.cpu_seconds()


def measure() -> tuple[float, float]:
    """CPU seconds to ready with an empty kernel cache, and with a warm one (best of 5)."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ[CACHE_ENV] = cache
        cold = ready_cpu_seconds()
        warm = min(ready_cpu_seconds() for _ in range(5))
    del os.environ[CACHE_ENV]
    return cold, warm


def main() -> None:
    """Print both figures."""
    cold, warm = measure()
    print("| start | CPU seconds |")
    print("|---|---|")
    print(f"| kernels compiled into an empty cache | {cold:.1f} |")
    print(f"| kernels from a warm cache, best of 5 | {warm:.2f} |")


if __name__ == "__main__":
    main()
