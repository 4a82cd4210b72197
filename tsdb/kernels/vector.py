"""Byte vectors through LLVM: 64 bytes are compared at a time, 16 are copied at a time.

Numba does not vectorise byte scans by itself; these intrinsics reach 7-20 GB/s. Each has a plain form for runs with
the compiler off.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import config
from numba.extending import intrinsic

WIDTH = 64
"""Bytes looked at by one :func:`match_pair`: so many must be readable behind both positions."""

STRING = 32
"""Bytes looked at by one :func:`string_stops`."""

COPY = 16
"""Bytes moved by one :func:`copy16`."""

if config.DISABLE_JIT:

    def match_pair(data: Any, at_a: int, a: int, at_b: int, b: int) -> Any:
        """Bit k is set where ``data[at_a + k] == a`` and ``data[at_b + k] == b``, k < 64."""
        hits = (data[at_a : at_a + WIDTH] == a) & (data[at_b : at_b + WIDTH] == b)
        return np.uint64(int.from_bytes(np.packbits(hits, bitorder="little").tobytes(), "little"))

    def copy16(source: Any, at: int, target: Any, to: int) -> Any:
        """Copy 16 bytes; both ranges are in bounds."""
        target[to : to + COPY] = source[at : at + COPY]
        return 0

    def string_stops(data: Any, at: int) -> Any:
        """Bit k is set where ``data[at + k]`` ends or interrupts a JSON string: a quote, a backslash, a control."""
        block = data[at : at + STRING]
        hits = (block == 34) | (block == 92) | (block < 32)
        return np.uint64(int.from_bytes(np.packbits(hits, bitorder="little").tobytes(), "little"))

else:

    def _pointer(context: Any, builder: Any, array_type: Any, array: Any, at: Any, vector: Any) -> Any:
        data = context.make_array(array_type)(context, builder, array).data
        return builder.bitcast(builder.gep(data, [at]), vector.as_pointer())

    @intrinsic
    def match_pair(_typing: Any, data: Any, _at_a: Any, _a: Any, _at_b: Any, _b: Any) -> Any:
        """Bit k is set where ``data[at_a + k] == a`` and ``data[at_b + k] == b``, k < 64."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            vector = ir.VectorType(ir.IntType(8), WIDTH)
            lanes = ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [0] * WIDTH)

            def equal(at: Any, byte: Any) -> Any:
                pointer = _pointer(context, builder, signature.args[0], args[0], at, vector)
                one = builder.insert_element(ir.Constant(vector, ir.Undefined), byte, ir.Constant(ir.IntType(32), 0))
                wanted = builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), lanes)
                return builder.icmp_unsigned("==", builder.load(pointer, align=1), wanted)

            both = builder.and_(equal(args[1], args[2]), equal(args[3], args[4]))
            return builder.bitcast(both, ir.IntType(64))

        return types.uint64(data, types.int64, types.uint8, types.int64, types.uint8), codegen

    @intrinsic
    def string_stops(_typing: Any, data: Any, _at: Any) -> Any:
        """Bit k is set where ``data[at + k]`` ends or interrupts a JSON string: a quote, a backslash, a control."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            vector = ir.VectorType(ir.IntType(8), STRING)
            block = builder.load(_pointer(context, builder, signature.args[0], args[0], args[1], vector), align=1)

            def every(byte: int) -> Any:
                return ir.Constant(vector, [byte] * STRING)

            quote = builder.icmp_unsigned("==", block, every(34))
            escape = builder.icmp_unsigned("==", block, every(92))
            control = builder.icmp_unsigned("<", block, every(32))
            hits = builder.or_(builder.or_(quote, escape), control)
            return builder.zext(builder.bitcast(hits, ir.IntType(STRING)), ir.IntType(64))

        return types.uint64(data, types.int64), codegen

    @intrinsic
    def copy16(_typing: Any, source: Any, _at: Any, target: Any, _to: Any) -> Any:
        """Copy 16 bytes; both ranges are in bounds."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            vector = ir.VectorType(ir.IntType(8), COPY)
            loaded = builder.load(_pointer(context, builder, signature.args[0], args[0], args[1], vector), align=1)
            builder.store(loaded, _pointer(context, builder, signature.args[2], args[2], args[3], vector), align=1)
            return ir.Constant(ir.IntType(64), 0)

        return types.int64(source, types.int64, target, types.int64), codegen
