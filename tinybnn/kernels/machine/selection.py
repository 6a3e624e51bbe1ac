"""Additional vector operations: lanes selected by bits.

Packed signs are bits, and one bit can control one lane: `add_where` and `compress` use 16 bits of a
packed row for 16 lanes; `nonzero` produces such bits. `four_signs` combines the bits of four rows
to a number in each lane.

The operations in `simd` exist on every CPU. `compress` does not: it needs AVX-512. LLVM ends the
process if an instruction does not exist, so callers must check `simd.cpu_features` first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from llvmlite import ir
from numba.core import types

from tinybnn.kernels.machine.simd import FLOATS, Vector, call_llvm, compiles

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tinybnn.typing import Array


def add_where(
    floats: NDArray[np.float32], value: NDArray[np.float32], bits: np.uint64
) -> NDArray[np.float32]:
    """Add ``value`` in each lane i whose bit i of the uint64 ``bits`` is 1.

    floats, value : (lanes,) float32
    """
    return np.where(_lanes_set(bits, len(floats)), floats + value, floats)


def nonzero(floats: NDArray[np.float32]) -> np.uint64:
    """Return a uint64 whose bit i is 1 where lane i of 16 float32 is not zero."""
    return np.uint64(((floats != 0) << np.arange(FLOATS)).sum())


def compress(vector: Array, bits: np.uint64) -> Array:
    """Move the lanes (16 float32 or int32) whose bit is 1 to the front, followed by zeros."""
    kept = vector[_lanes_set(bits) > 0]
    return np.concatenate([kept, np.zeros(FLOATS - len(kept), vector.dtype)])


def count_ones(bits: np.uint64) -> int:
    """Count the 1 bits of a uint64."""
    return int(bits).bit_count()


def _lanes_set(bits, lanes=FLOATS):
    """Return 1 in each lane whose bit is 1."""
    return (np.uint64(bits) >> np.arange(lanes, dtype=np.uint64) & np.uint64(1)).astype(np.int32)


def _mask(builder, bits, lanes=FLOATS):
    """Emit the lowest bits of a word as a vector of conditions."""
    low = bits if lanes == 64 else builder.trunc(bits, ir.IntType(lanes))
    return builder.bitcast(low, ir.VectorType(ir.IntType(1), lanes))


@compiles(add_where)
def _add_where(floats, value, bits):
    def generate(context, builder, signature, arguments):
        floats_value, value_value, bits_value = arguments
        added = builder.fadd(floats_value, value_value)
        return builder.select(_mask(builder, bits_value, floats.lanes), added, floats_value)

    return floats(floats, value, bits), generate


@compiles(nonzero)
def _nonzero(floats):
    def generate(context, builder, signature, arguments):
        zero = ir.Constant(arguments[0].type, None)
        lanes = builder.fcmp_unordered("!=", arguments[0], zero)  # NaN is not zero
        return builder.zext(builder.bitcast(lanes, ir.IntType(FLOATS)), ir.IntType(64))

    return types.uint64(floats), generate


@compiles(compress)
def _compress(vector, bits):
    def generate(context, builder, signature, arguments):
        value, zero = arguments[0], ir.Constant(arguments[0].type, None)
        element = "f32" if isinstance(vector.element, types.Float) else "i32"
        name = f"llvm.x86.avx512.mask.compress.v16{element}"
        return call_llvm(builder, name, value.type, value, zero, _mask(builder, arguments[1]))

    return vector(vector, bits), generate


@compiles(count_ones)
def _count_ones(bits):
    def generate(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return types.int64(bits), generate


# ----------------------------------------------------------------------- a bit of each of four rows


def four_signs(a: np.uint64, b: np.uint64, c: np.uint64, d: np.uint64) -> NDArray[np.int32]:
    """Combine bits i of four uint64 to 16 * (a + 2 b + 4 c + 8 d): 16 bytes, as four int32."""
    bits = np.array([a, b, c, d], np.uint64)[:, None] >> np.arange(16, dtype=np.uint64)
    numbers = (bits & np.uint64(1)) << np.arange(4, 8, dtype=np.uint64)[:, None]
    return numbers.sum(0).astype(np.uint8).view(np.int32)


@compiles(four_signs)
def _four_signs(a, b, c, d):
    lanes = ir.VectorType(ir.IntType(8), 16)

    def generate(context, builder, signature, arguments):
        numbers = ir.Constant(lanes, None)
        for i, bits in enumerate(arguments):
            ones = builder.sext(_mask(builder, bits), lanes)  # all bits 1, or none
            power = ir.Constant(lanes, [16 << i] * 16)
            numbers = builder.or_(numbers, builder.and_(ones, power))
        return builder.bitcast(numbers, ir.VectorType(ir.IntType(32), 4))

    return Vector(types.int32, 4)(a, b, c, d), generate
