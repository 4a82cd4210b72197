"""Comparing what mostly is equal and mostly comes in a known order."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import config
from numba.extending import intrinsic

from tsdb.kernels._jit import device, i64, u64
from tsdb.kernels.keys import equal_bytes, load64

CACHE_LINE_BYTES = 64

if config.DISABLE_JIT:

    def prefetch(array: Any, at: int) -> None:
        """Nothing to hint at without machine code."""

else:

    @intrinsic  # type: ignore[misc]  # numba is untyped
    def prefetch(_typing: Any, array: Any, _at: Any) -> Any:
        """Load the cache line of ``array[at]`` while other work goes on; ``at`` may lie outside."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            data = context.make_array(signature.args[0])(context, builder, args[0]).data
            pointer = builder.bitcast(builder.gep(data, [args[1]]), ir.IntType(8).as_pointer())
            i32 = ir.IntType(32)
            hint = builder.module.declare_intrinsic(
                "llvm.prefetch", [pointer.type], ir.FunctionType(ir.VoidType(), [pointer.type, i32, i32, i32])
            )
            # read, keep in all cache levels, data
            builder.call(hint, [pointer, i32(0), i32(3), i32(1)])
            return context.get_dummy_value()

        return types.void(array, types.int64), codegen


@device
def same_bytes(a, a_at, b, b_at, n):
    """Whether two ranges are the same, for ranges that mostly are: no look at the outcome before 64 bytes are read."""
    k = i64(0)
    while n - k >= 64:
        x = a_at + k
        y = b_at + k
        differ = (
            (load64(a, x) ^ load64(b, y))
            | (load64(a, x + 8) ^ load64(b, y + 8))
            | (load64(a, x + 16) ^ load64(b, y + 16))
            | (load64(a, x + 24) ^ load64(b, y + 24))
            | (load64(a, x + 32) ^ load64(b, y + 32))
            | (load64(a, x + 40) ^ load64(b, y + 40))
            | (load64(a, x + 48) ^ load64(b, y + 48))
            | (load64(a, x + 56) ^ load64(b, y + 56))
        )
        if differ != u64(0):
            return False
        k += 64
    return equal_bytes(a, a_at + k, b, b_at + k, n - k)
