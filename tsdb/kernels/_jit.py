"""The one way to make a kernel: declared types, a cache of our own, compiled before the first request.

A kernel is declared with its numba types and compiled for exactly these, on its first call or by
:func:`warm`. Any other argument types are a ``TypeError`` at once, never a one-second compile inside a
request.

The cache lives in our own folder (:func:`cache_root`), one folder per *closure digest*: a hash over the
kernel's source file, every kernel file it imports (directly or not), the numba version, the CPU and the
compile flags. Numba's own cache would keep running a callee that was edited in another file.
"""

from __future__ import annotations

import ast
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np
from llvmlite import binding as llvm
from numba import types
from numba.core import caching, config

F = TypeVar("F", bound=Callable[..., Any])

u1 = types.boolean
u8 = types.uint8
u16 = types.uint16
u32 = types.uint32
u64 = types.uint64
i32 = types.int32
i64 = types.int64
f64 = types.float64
void = types.void

CACHE_ENV = "MESHPULSE_KERNEL_CACHE"
_PACKAGES_ROOT = Path(__file__).resolve().parents[2]


def const(scalar: Any, ndim: int = 1) -> Any:
    """Type of a C-contiguous array the kernel only reads (mmap, Arrow and writable arrays all fit)."""
    return types.Array(scalar, ndim, "C", readonly=True)


def mut(scalar: Any, ndim: int = 1) -> Any:
    """Type of a C-contiguous array the kernel writes."""
    return types.Array(scalar, ndim, "C")


def cache_root() -> Path:
    """Folder of the compiled kernels: ``$MESHPULSE_KERNEL_CACHE``, else ``$XDG_CACHE_HOME/meshpulse/kernels``."""
    given = os.environ.get(CACHE_ENV)
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "meshpulse" / "kernels"


def _kernel_imports(path: Path) -> Iterator[Path]:
    """Kernel source files that ``path`` imports (only files inside a folder named ``kernels``)."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        modules: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        for module in modules:
            if ".kernels" in module:
                candidate = _PACKAGES_ROOT.joinpath(*module.split(".")).with_suffix(".py")
                if candidate.is_file():
                    yield candidate


_digests: dict[Path, str] = {}


def closure_digest(path: Path) -> str:
    """Hex digest of a kernel file, the kernel files it imports, numba, the CPU and the flags."""
    path = path.resolve()
    if path not in _digests:
        seen: set[Path] = set()
        todo = [path, Path(__file__).resolve()]
        while todo:
            file = todo.pop()
            if file not in seen:
                seen.add(file)
                todo.extend(_kernel_imports(file))
        digest = hashlib.sha256()
        cpu = config.CPU_NAME or llvm.get_host_cpu_name()
        for fact in (numba.__version__, np.__version__, cpu, config.CPU_FEATURES or "", str(config.BOUNDSCHECK)):
            digest.update(str(fact).encode() + b"\0")
        for file in sorted(seen):
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
        _digests[path] = digest.hexdigest()[:16]
    return _digests[path]


class _OurCache(caching._CacheLocator):  # type: ignore[misc]  # numba's own extension point, untyped
    """Numba cache locator for files under a ``kernels`` folder of ours; a read-only cache folder is fine."""

    def __init__(self, py_func: Callable[..., Any], py_file: str) -> None:
        self._py_func = py_func
        self._file = Path(py_file)
        self._digest = closure_digest(self._file)

    def get_cache_path(self) -> str:
        return str(cache_root() / f"{self._file.stem}-{self._digest}")

    def ensure_cache_path(self) -> None:
        path = self.get_cache_path()
        if os.access(path, os.F_OK):
            return  # a shipped cache may be read-only: loading from it needs no write access
        os.makedirs(path, exist_ok=True)

    def get_source_stamp(self) -> str:
        return self._digest

    def get_disambiguator(self) -> str:
        return str(self._py_func.__code__.co_firstlineno)

    @classmethod
    def from_function(cls, py_func: Callable[..., Any], py_file: str) -> _OurCache | None:
        file = Path(py_file)
        ours = file.parent.name == "kernels" and _PACKAGES_ROOT in file.resolve().parents
        return cls(py_func, py_file) if ours else None


if _OurCache not in caching.CacheImpl._locator_classes:
    caching.CacheImpl._locator_classes.insert(0, _OurCache)

_registry: list[tuple[Any, Any]] = []
_compile_lock = threading.Lock()


def _refuse(dispatcher: Any, signature: Any) -> Callable[..., Any]:
    def refuse(*args: Any, **_: Any) -> Any:
        given = ", ".join(str(numba.typeof(a)) for a in args)
        raise TypeError(f"kernel {dispatcher.__name__} takes {signature}, not ({given})")

    return refuse


def _compile(dispatcher: Any, signature: Any) -> None:
    """Compile the declared signature (or load it from the cache) and refuse all others from now on."""
    with _compile_lock:
        if not dispatcher.signatures:
            dispatcher.compile(signature)
            dispatcher.disable_compile()  # from here numba may pass writable arrays to read-only parameters
        dispatcher._compile_for_args = dispatcher._explain_matching_error = _refuse(dispatcher, signature)


def kernel(signature: Any) -> Callable[[F], F]:
    """Declare a kernel: a nogil function with one signature, e.g. ``@kernel(i64(const(u8), mut(i64)))``.

    The kernel takes its inputs first (declared ``const``), then its state, then outputs written in place; it
    returns a count >= 0 or a negative status and neither allocates nor raises in its loops. A division by zero gives
    infinity or NaN (numpy's error model), it does not raise. With ``NUMBA_DISABLE_JIT=1`` the plain Python function
    is returned.
    """

    def decorate(function: F) -> F:
        dispatcher: Any = numba.njit(nogil=True, cache=True, error_model="numpy")(function)
        if config.DISABLE_JIT:
            return function

        def first_call(*_args: Any, **_kwargs: Any) -> Any:
            _compile(dispatcher, signature)
            return dispatcher  # numba calls what this hook returns, and the sealed dispatcher checks the types

        dispatcher._compile_for_args = first_call
        _registry.append((dispatcher, signature))
        return dispatcher  # type: ignore[no-any-return]

    return decorate


def device(function: F) -> F:
    """Declare a helper that is inlined into the kernels calling it; its types follow from the caller."""
    return numba.njit(nogil=True, forceinline=True, error_model="numpy")(function)  # type: ignore[no-any-return]


def registered() -> int:
    """Number of kernels declared so far."""
    return len(_registry)


def warm(progress: Callable[[int, int, str], None] | None = None) -> float:
    """Compile or load every declared kernel and seal them.

    Parameters
    ----------
    progress : called with (done, total, name of the next kernel)

    Returns
    -------
    float        seconds it took
    """
    begin = time.perf_counter()
    total = len(_registry)
    for done, (dispatcher, signature) in enumerate(_registry):
        if progress:
            progress(done, total, dispatcher.__name__)
        _compile(dispatcher, signature)
    if progress:
        progress(total, total, "")
    return time.perf_counter() - begin
