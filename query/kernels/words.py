"""Machine words in byte buffers: what numba has no function for, as LLVM instructions.

With ``NUMBA_DISABLE_JIT=1`` the same names are plain Python with the same results.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import config
from numba.extending import intrinsic

if config.DISABLE_JIT:

    def mulhi(a: Any, b: Any) -> Any:
        """High 64 bits of the 128-bit product of two uint64."""
        return np.uint64((int(a) * int(b)) >> 64)

    def mullo(a: Any, b: Any) -> Any:
        """Low 64 bits of the product of two uint64."""
        return np.uint64((int(a) * int(b)) & 0xFFFF_FFFF_FFFF_FFFF)

    def leading_zeros(x: Any) -> Any:
        """Zero bits above the highest one of a uint64; 64 for 0."""
        return 64 - int(x).bit_length()

    def trailing_zeros(x: Any) -> Any:
        """Zero bits below the lowest one of a uint64; 64 for 0."""
        return (int(x) & -int(x)).bit_length() - 1 if x else 64

    def load8(buffer: Any, pos: Any) -> Any:
        """Eight bytes of a uint8 array from ``pos`` as a little-endian uint64; unaligned, unchecked."""
        return np.uint64(int.from_bytes(buffer[pos : pos + 8].tobytes(), "little"))

    def store8(buffer: Any, pos: Any, word: Any) -> None:
        """Write a uint64 as eight little-endian bytes from ``pos``; unaligned, unchecked."""
        buffer[pos : pos + 8] = np.frombuffer(int(word).to_bytes(8, "little"), np.uint8)

else:

    def _product(builder: Any, args: Any) -> Any:
        wide = ir.IntType(128)
        return builder.mul(builder.zext(args[0], wide), builder.zext(args[1], wide))

    @intrinsic
    def mulhi(_typing: Any, _a: Any, _b: Any) -> Any:
        """High 64 bits of the 128-bit product of two uint64."""

        def code(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            product = _product(builder, args)
            return builder.trunc(builder.lshr(product, ir.Constant(product.type, 64)), ir.IntType(64))

        return types.uint64(types.uint64, types.uint64), code

    @intrinsic
    def mullo(_typing: Any, _a: Any, _b: Any) -> Any:
        """Low 64 bits of the product of two uint64."""

        def code(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            return builder.mul(*args)

        return types.uint64(types.uint64, types.uint64), code

    @intrinsic
    def leading_zeros(_typing: Any, _x: Any) -> Any:
        """Zero bits above the highest one of a uint64; 64 for 0."""

        def code(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            return builder.ctlz(args[0], ir.Constant(ir.IntType(1), 0))

        return types.int64(types.uint64), code

    @intrinsic
    def trailing_zeros(_typing: Any, _x: Any) -> Any:
        """Zero bits below the lowest one of a uint64; 64 for 0."""

        def code(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            return builder.cttz(args[0], ir.Constant(ir.IntType(1), 0))

        return types.int64(types.uint64), code

    def _word_pointer(context: Any, builder: Any, array_type: Any, array: Any, pos: Any) -> Any:
        data = context.make_array(array_type)(context, builder, array).data
        return builder.bitcast(builder.gep(data, [pos]), ir.IntType(64).as_pointer())

    @intrinsic
    def load8(_typing: Any, buffer: Any, _pos: Any) -> Any:
        """Eight bytes of a uint8 array from ``pos`` as a little-endian uint64; unaligned, unchecked."""

        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.load(_word_pointer(context, builder, signature.args[0], *args), align=1)

        return types.uint64(buffer, types.int64), code

    @intrinsic
    def store8(_typing: Any, buffer: Any, _pos: Any, _word: Any) -> Any:
        """Write a uint64 as eight little-endian bytes from ``pos``; unaligned, unchecked."""

        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            array, pos, word = args
            builder.store(word, _word_pointer(context, builder, signature.args[0], array, pos), align=1)
            return context.get_dummy_value()

        return types.void(buffer, types.int64, types.uint64), code
