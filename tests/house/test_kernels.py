"""What every kernel obeys: declared types only, found by ``warm``, sealed afterwards."""

from __future__ import annotations

import os

import numpy as np
import pytest

from meshpulse.warm import kernel_modules
from tests.house import sample_kernel
from tsdb.kernels._jit import closure_digest

pytestmark = pytest.mark.kernel
compiled = pytest.mark.skipif(bool(os.environ.get("NUMBA_DISABLE_JIT")), reason="needs the compiler")


def test_declared_types_run() -> None:
    assert sample_kernel.total(np.arange(5, dtype=np.int64)) == 10


def test_read_only_arrays_fit() -> None:
    values = np.arange(5, dtype=np.int64)
    values.flags.writeable = False
    assert sample_kernel.total(values) == 10


@compiled
def test_other_types_are_refused_at_once() -> None:
    with pytest.raises(TypeError, match="kernel total takes"):
        sample_kernel.total(np.arange(5, dtype=np.float64))


def test_warm_finds_modules_in_kernels_folders_only() -> None:
    names = list(kernel_modules())
    assert "tsdb.kernels._jit" in names
    assert all(".kernels." in name for name in names)


def test_digest_is_stable() -> None:
    from pathlib import Path

    file = Path(sample_kernel.__file__)
    assert closure_digest(file) == closure_digest(file)
