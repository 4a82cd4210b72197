"""Bit counting and prefetching: single machine instructions that numba has no public name for.

With the JIT off the same names are plain Python.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic


def _count_zeros(instruction: str, bits: Any) -> Any:
    """Signature and code generator of ``llvm.ctlz`` or ``llvm.cttz`` on uint64; 64 for zero."""
    if bits != types.uint64:
        return None

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        word = ir.IntType(64)
        declared = ir.FunctionType(word, [word, ir.IntType(1)])
        function = cgutils.get_or_insert_function(builder.module, declared, f"llvm.{instruction}.i64")
        return builder.call(function, [args[0], cgutils.false_bit])

    return types.uint64(types.uint64), generate


if config.DISABLE_JIT:

    def leading_zeros(bits: Any) -> Any:
        """Zero bits above the highest set bit of a uint64; 64 for zero."""
        return np.uint64(64 - int(bits).bit_length())

    def trailing_zeros(bits: Any) -> Any:
        """Zero bits below the lowest set bit of a uint64; 64 for zero."""
        value = int(bits)
        return np.uint64((value & -value).bit_length() - 1 if value else 64)

    def prefetch(array: Any, index: Any) -> None:
        """Ask for the cache line of ``array[index]``, to be written soon: nothing to do without machine code."""

else:

    @intrinsic
    def leading_zeros(_typing: Any, bits: Any) -> Any:
        """Zero bits above the highest set bit of a uint64; 64 for zero."""
        return _count_zeros("ctlz", bits)

    @intrinsic
    def trailing_zeros(_typing: Any, bits: Any) -> Any:
        """Zero bits below the lowest set bit of a uint64; 64 for zero."""
        return _count_zeros("cttz", bits)

    @intrinsic
    def prefetch(_typing: Any, array: Any, index: Any) -> Any:
        """Ask for the cache line of ``array[index]`` (1-D, C order), to be written soon; any index is harmless."""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            view = context.make_array(signature.args[0])(context, builder, args[0])
            byte = ir.IntType(8).as_pointer()
            address = builder.bitcast(builder.gep(view.data, [args[1]]), byte)
            flag = ir.IntType(32)
            declared = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
            function = cgutils.get_or_insert_function(builder.module, declared, "llvm.prefetch.p0")
            write, keep, data = flag(1), flag(3), flag(1)
            builder.call(function, [address, write, keep, data])
            return context.get_dummy_value()

        return types.void(array, index), generate
