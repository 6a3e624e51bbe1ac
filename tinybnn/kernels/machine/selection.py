"""More words for vectors: lanes that bits choose.

Packed signs are bits, and one bit can say what happens in one lane: `or_where`, `add_where` and
`compress` take 16 of them for 16 lanes, as they lie in a packed row; `nonzero` makes such bits. Or
four bits are a number, and choose one of 16 table entries for their lane: `look_up`.

`simd` has the words that every CPU has instructions for. Not so here: `look_up` needs AVX2 or
AVX-512 and `compress` AVX-512. LLVM ends the process when it is asked for an instruction that does
not exist, so a caller looks at `simd.cpu_features` first.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba.core import types

from tinybnn.kernels.machine.simd import FLOATS, call_llvm, compiles, cpu_features

# ------------------------------------------------------------------------------ four bits: a number


def look_up(table, index):
    """The floats table[index % 16], lane by lane; entry 15 - i of the table is minus entry i."""
    return table[index & 15]


def next_four(index):
    """The integers shifted by four bits, so that the next four signs are the lowest bits."""
    return (index.view(np.uint32) >> np.uint32(4)).view(np.int32)


@compiles(look_up)
def _look_up(table, index):
    def generate(context, builder, signature, arguments):
        return pick(builder, *arguments)

    return table(table, index), generate


def pick(builder, table, index):
    """The entries of a table of 16 floats that the lowest four bits of each lane name."""
    of_16 = _pick_of_16 if "avx512f" in cpu_features() else _pick_of_8
    parts = []
    for first in range(0, index.type.count, 16):
        lanes = ir.VectorType(ir.IntType(32), 16)(list(range(first, first + 16)))
        parts.append(of_16(builder, table, builder.shuffle_vector(index, index, lanes)))
    while len(parts) > 1:  # side by side
        count = 2 * parts[0].type.count
        lanes = ir.VectorType(ir.IntType(32), count)(list(range(count)))
        pairs = zip(parts[::2], parts[1::2], strict=True)
        parts = [builder.shuffle_vector(*pair, lanes) for pair in pairs]
    return parts[0]


def _pick_of_16(builder, table, index):
    """AVX-512: the instruction itself looks at the lowest four bits only."""
    return call_llvm(builder, "llvm.x86.avx512.permvar.sf.512", table.type, table, index)


def _pick_of_8(builder, table, index):
    """AVX2: entries 8 to 15; where the fourth bit is 0, minus the entry of the inverted bits."""
    integers, half = index.type, ir.VectorType(ir.FloatType(), 8)
    fourth = builder.shl(index, _llvm_constant(integers, 28))
    is_plus = builder.ashr(fourth, _llvm_constant(integers, 31))  # all bits 1, or none
    is_minus = builder.not_(is_plus)
    index = builder.xor(index, is_minus)
    numbers = ir.VectorType(ir.IntType(32), 8)
    upper = builder.shuffle_vector(table, table, ir.Constant(numbers, list(range(8, 16))))
    picked = []
    for first in (0, 8):
        lanes = ir.Constant(numbers, list(range(first, first + 8)))
        part = builder.shuffle_vector(index, index, lanes)
        picked.append(call_llvm(builder, "llvm.x86.avx2.permps", half, upper, part))
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), 16), list(range(16)))
    both = builder.bitcast(builder.shuffle_vector(*picked, lanes), integers)
    sign = builder.and_(is_minus, _llvm_constant(integers, -(2**31)))
    return builder.bitcast(builder.xor(both, sign), table.type)


@compiles(next_four)
def _next_four(index):
    def generate(context, builder, signature, arguments):
        return builder.lshr(arguments[0], _llvm_constant(arguments[0].type, 4))

    return index(index), generate


def _llvm_constant(kind, value):
    return ir.Constant(kind, [value] * kind.count)


# -------------------------------------------------------------------------- a bit: one of the lanes


def or_where(integers, value, bits):
    """integers | value in lane i if bit i of the uint64 ``bits`` is 1; elsewhere integers."""
    return np.where(_lanes_set(bits), integers | value, integers)


def add_where(floats, value, bits):
    """floats + value in lane i if bit i of the uint64 ``bits`` is 1; elsewhere floats."""
    return np.where(_lanes_set(bits, len(floats)), floats + value, floats)


def nonzero(floats):
    """A uint64 whose bit i is 1 where lane i is not zero."""
    return np.uint64(((floats != 0) << np.arange(FLOATS)).sum())


def compress(vector, bits):
    """The lanes of floats or integers whose bit is 1, at the front; behind them zeros."""
    kept = vector[_lanes_set(bits) > 0]
    return np.concatenate([kept, np.zeros(FLOATS - len(kept), vector.dtype)])


def count_ones(bits):
    """The number of bits of a uint64 that are 1."""
    return int(bits).bit_count()


def _lanes_set(bits, lanes=FLOATS):
    """1 in each lane whose bit is 1."""
    return (np.uint64(bits) >> np.arange(lanes, dtype=np.uint64) & np.uint64(1)).astype(np.int32)


def _mask(builder, bits, lanes=FLOATS):
    """The lowest bits of a word as a vector of conditions."""
    low = bits if lanes == 64 else builder.trunc(bits, ir.IntType(lanes))
    return builder.bitcast(low, ir.VectorType(ir.IntType(1), lanes))


@compiles(or_where)
def _or_where(integers, value, bits):
    def generate(context, builder, signature, arguments):
        integers_value, value_value, bits_value = arguments
        either = builder.or_(integers_value, value_value)
        return builder.select(_mask(builder, bits_value), either, integers_value)

    return integers(integers, value, bits), generate


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
