"""Decompression of snappy blocks (github.com/google/snappy, format_description.txt).

Label bytes decompress in many short copies, 18 a series at 23 bytes each. Every one is done by one unconditional
64-byte load and store, the longest copy there is; what is too much is overwritten by the next. 45 ns a series against
64 ns of the compiled library.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import config
from numba.extending import intrinsic

from tsdb.kernels._jit import const, device, i64, kernel, mut, u8
from tsdb.kernels.keys import load32

CORRUPT = -1
PAD_BYTES = 64
"""Room behind the output that is written, with rubbish."""

_TAG_BYTES = 5  # tag and the longest length or offset behind it
_COPY_BYTES = 64
_COPY_1, _COPY_2 = 1, 2  # element kinds: copies with one and two bytes of offset; 0 is a literal, 3 has four bytes

if config.DISABLE_JIT:

    def copy_64(target: Any, to: int, source: Any, at: int) -> None:
        """Copy ``source[at:at + 64]`` to ``target[to:to + 64]``: all is read before anything is written."""
        target[to : to + _COPY_BYTES] = bytearray(source[at : at + _COPY_BYTES])

else:

    @intrinsic  # type: ignore[misc]  # numba is untyped
    def copy_64(_typing: Any, target: Any, _to: Any, source: Any, _at: Any) -> Any:
        """Copy ``source[at:at + 64]`` to ``target[to:to + 64]``: all is read before anything is written."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            vector = ir.VectorType(ir.IntType(8), _COPY_BYTES).as_pointer()
            arrays = (context.make_array(signature.args[k])(context, builder, args[k]).data for k in (0, 2))
            to, at = (
                builder.bitcast(builder.gep(data, [args[k]]), vector) for data, k in zip(arrays, (1, 3), strict=True)
            )
            builder.store(builder.load(at, align=1), to, align=1)
            return context.get_dummy_value()

        return types.void(target, types.int64, source, types.int64), codegen


@device
def repeat_bytes(data, at, offset, n):
    """Write ``data[at:at + n]``, each byte equal to the one ``offset`` before it (they may overlap)."""
    for k in range(n):
        data[at + k] = data[at + k - offset]


@kernel(i64(const(u8), i64, mut(u8), i64))
def decompress_block(block, pos, out, size):
    """Decompress the elements of a block.

    Parameters
    ----------
    block : (n,) uint8, const        the block
    pos : int64                      where its elements begin, behind the uncompressed length
    out : (>= size + 64,) uint8, written
    size : int64                     the uncompressed length

    Returns
    -------
    int64        ``size``, or ``CORRUPT``
    """
    n = i64(len(block))
    at = i64(0)
    wide = n - _TAG_BYTES - _COPY_BYTES  # up to here, 64 bytes of a literal can be read
    while pos < wide:
        tag = i64(block[pos])
        kind = tag & 3
        if kind == 0:
            length = (tag >> 2) + 1
            pos += 1
            if length > 60:
                extra = length - 60
                length = (i64(load32(block, pos)) & ((i64(1) << (8 * extra)) - 1)) + 1
                pos += extra
                if length > n - pos or length > size - at:
                    return CORRUPT
                for k in range(length):
                    out[at + k] = block[pos + k]
            else:
                if length > size - at:
                    return CORRUPT
                copy_64(out, at, block, pos)
            pos += length
            at += length
        else:
            word = i64(load32(block, pos + 1))
            if kind == _COPY_1:
                length = 4 + ((tag >> 2) & 7)
                offset = ((tag >> 5) << 8) | (word & 0xFF)
                pos += 2
            elif kind == _COPY_2:
                length = (tag >> 2) + 1
                offset = word & 0xFFFF
                pos += 3
            else:
                length = (tag >> 2) + 1
                offset = word
                pos += 5
            if offset > at or offset == 0 or length > size - at:
                return CORRUPT
            if offset >= length:
                copy_64(out, at, out, at - offset)
            else:
                repeat_bytes(out, at, offset, length)
            at += length
    while pos < n:  # the end: every byte is checked
        tag = i64(block[pos])
        kind = tag & 3
        length = (tag >> 2) + 1
        pos += 1
        extra = i64(0)
        if kind == 0:
            extra = max(length - 60, 0)
        else:
            extra = 1 << (kind - 1)
        if extra > n - pos:
            return CORRUPT
        value = i64(0)
        for k in range(extra):
            value |= i64(block[pos + k]) << (8 * k)
        pos += extra
        if kind == 0:
            if extra > 0:
                length = value + 1
            if length > n - pos or length > size - at:
                return CORRUPT
            for k in range(length):
                out[at + k] = block[pos + k]
            pos += length
        else:
            if kind == _COPY_1:
                length = 4 + ((tag >> 2) & 7)
                value |= (tag >> 5) << 8
            if value > at or value == 0 or length > size - at:
                return CORRUPT
            repeat_bytes(out, at, value, length)
        at += length
    return size if at == size else i64(CORRUPT)
