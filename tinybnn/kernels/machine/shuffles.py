"""Words for vectors of bytes: tables of 16 bytes, in which a nibble looks one up.

A byte shuffle (``vpshufb``) takes a table that lies in a register, and looks up one nibble in each
byte of a vector, all in one instruction. `add_look_up` and `add_three_look_ups` do it for the rows
of a tile (see `tiles`). It needs AVX2; with AVX-512 a vector has 64 bytes. LLVM ends the process
when it is asked for an instruction that does not exist, so a caller looks at `has_shuffles` first.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.np import arrayobj
from numba.np.numpy_support import from_dtype

from tinybnn.kernels.machine.simd import (
    Vector,
    address,
    call_llvm,
    compiles,
    cpu_features,
    element_address,
    llvm_type,
)

BYTES = 64 if "avx512bw" in cpu_features() else 32  # lanes
_INTEGERS = 32  # lanes of what is widened
_TABLE = ir.VectorType(ir.IntType(8), 16)


def has_shuffles():
    """Whether the CPU that Numba compiles for shuffles 32 bytes or 64."""
    return bool(cpu_features() & {"avx2", "avx512bw"})


def zero_bytes():
    """A vector of uint8 0."""
    return np.zeros(BYTES, np.uint8)


def add_look_up(tile, places, offsets, tables, panel, at):
    """Add to each row of a tile what some tables have for the nibbles of a panel.

    Parameters
    ----------
    tile : tuple of vectors of bytes
        For each place the counts of the first and those of the second of two pixels, which are the
        lower and the upper half of what its table holds; the counts of a pixel are one vector or
        several, as the panel is wide.
    places : tuple of int
        Entries of ``offsets``, which say where in ``tables`` the tables of these places begin.
    offsets : (...,) uint16
    tables : (...,) uint8
        16 entries a table.
    panel : (...,) uint8
        From entry ``at`` on as many nibbles, 0 to 15, as there are counts of a pixel.
    """
    return _added(tile, places, offsets, tables, panel, at, 1)


def add_three_look_ups(tile, places, offsets, tables, panel, at):
    """The same for three tables, one after the other in ``offsets``, and three rows of nibbles.

    The sum of three entries is below 16 in both halves.
    """
    return _added(tile, places, offsets, tables, panel, at, 3)


def _added(tile, places, offsets, tables, panel, at, times):
    width, result = len(tile) // (2 * len(places)), []
    for i, place in enumerate(places):
        found = np.zeros(width * BYTES, np.uint8)
        for k in range(times):
            start = int(offsets[place + k])
            first = at + k * len(found)
            found += tables[start : start + 16][panel[first : first + len(found)]]
        halves = [*(found & 15).reshape(width, BYTES), *(found >> 4).reshape(width, BYTES)]
        rows = tile[len(halves) * i : len(halves) * (i + 1)]
        result += [row + half for row, half in zip(rows, halves, strict=True)]
    return tuple(result)


def add_widened(sums, index, counts):
    """Add a vector of bytes to uint16 sums: the even lanes from ``index`` on, then the odd ones."""
    sums[index : index + len(counts)] += np.concatenate([counts[::2], counts[1::2]])


def load_widened(sums, index):
    """The 32 lanes sums[index], sums[index + 1], ... of a 1-D uint16 array, as int32."""
    return sums[index : index + _INTEGERS].astype(np.int32)


def store_nibble_pairs(offsets, index, a, b):
    """16 entries: for each nibble of the word ``a``, 16 times (it + 16 times that of ``b``)."""
    shifts = np.arange(0, 64, 4, dtype=np.uint64)
    pairs = (a >> shifts & np.uint64(15)) | (b >> shifts & np.uint64(15)) << np.uint64(4)
    offsets[index : index + 16] = pairs << np.uint64(4)


def on_stack(dtype, count):
    """A function that makes an array on the stack; it lives until the calling kernel returns."""

    def make():
        return np.empty(count, dtype)

    element = from_dtype(np.dtype(dtype))
    array = types.Array(element, 1, "C")

    @compiles(make)
    def _make():
        def generate(context, builder, signature, values):
            kind = context.get_value_type(element)
            with builder.goto_entry_block():
                place = builder.alloca(ir.ArrayType(kind, count))
            size, result = context.get_abi_sizeof(kind), context.make_array(array)(context, builder)
            arrayobj.populate_array(
                result, builder.bitcast(place, kind.as_pointer()),
                shape=[context.get_constant(types.intp, count)],
                strides=[context.get_constant(types.intp, size)],
                itemsize=context.get_constant(types.intp, size), meminfo=None,
            )  # fmt: skip
            return result._getvalue()

        return array(), generate

    return make


# ---------------------------------------------------------------------------------------- compiled

_bytes = Vector(types.uint8, BYTES)


@compiles(zero_bytes)
def _zero_bytes():
    return _bytes(), lambda *_: ir.Constant(llvm_type(_bytes), [0] * BYTES)


def _shuffle(builder, table, index):
    name = {32: "llvm.x86.avx2.pshuf.b", 64: "llvm.x86.avx512.pshuf.b.512"}[BYTES]
    return call_llvm(builder, name, table.type, table, index)


def _repeated(builder, pointer):
    """A table of 16 bytes, as often as a vector holds it."""
    table = builder.load(builder.bitcast(pointer, _TABLE.as_pointer()), align=1)
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), BYTES), list(range(16)) * (BYTES // 16))
    return builder.shuffle_vector(table, ir.Constant(_TABLE, ir.Undefined), lanes)


def _compile_look_ups(function, times):
    kind = llvm_type(_bytes)

    @compiles(function)
    def look_ups(tile, places, offsets, tables, panel, at):
        width = len(tile) // (2 * len(places))

        def generate(context, builder, signature, values):
            tile_value, place_values, offsets_value, tables_value, panel_value, at_value = values

            def element(array_type, array, index, step):
                index = builder.add(index, ir.Constant(index.type, step))
                return element_address(context, builder, array_type, array, index)

            found = {}
            for k in range(times):
                firsts = [(k * width + j) * BYTES for j in range(width)]
                pointers = [element(panel, panel_value, at_value, first) for first in firsts]
                pointers = [builder.bitcast(pointer, kind.as_pointer()) for pointer in pointers]
                nibbles = [builder.load(pointer, align=1) for pointer in pointers]
                for i in range(len(places)):
                    place = builder.extract_value(place_values, i)
                    offset = builder.load(element(offsets, offsets_value, place, k))
                    start = builder.zext(offset, ir.IntType(64))
                    table = _repeated(builder, element(tables, tables_value, start, 0))
                    for j in range(width):
                        count = _shuffle(builder, table, nibbles[j])
                        found[i, j] = builder.add(found[i, j], count) if k else count
            low, four = (ir.Constant(kind, [n] * BYTES) for n in (15, 4))
            halves = []
            for i in range(len(places)):
                halves += [builder.and_(found[i, j], low) for j in range(width)]
                halves += [builder.lshr(found[i, j], four) for j in range(width)]
            rows = [builder.extract_value(tile_value, i) for i in range(len(halves))]
            sums = [builder.add(*pair) for pair in zip(rows, halves, strict=True)]
            return context.make_tuple(builder, signature.return_type, sums)

        return tile(tile, places, offsets, tables, panel, types.intp), generate


_compile_look_ups(add_look_up, 1)
_compile_look_ups(add_three_look_ups, 3)


@compiles(add_widened)
def widened_sum(sums, index, counts):
    half = Vector(types.uint16, BYTES // 2)

    def generate(context, builder, signature, values):
        array, index_value, counts_value = values
        pairs = builder.bitcast(counts_value, llvm_type(half))
        even = builder.and_(pairs, ir.Constant(pairs.type, [255] * half.lanes))
        odd = builder.lshr(pairs, ir.Constant(pairs.type, [8] * half.lanes))
        for part, offset in ((even, 0), (odd, half.lanes)):
            place = builder.add(index_value, ir.Constant(index_value.type, offset))
            pointer = address(context, builder, sums, array, place, half)
            builder.store(builder.add(builder.load(pointer, align=2), part), pointer, align=2)
        return context.get_dummy_value()

    return types.void(sums, types.intp, counts), generate


@compiles(load_widened)
def _load_widened(sums, index):
    integers, halves = Vector(types.int32, _INTEGERS), Vector(types.uint16, _INTEGERS)

    def generate(context, builder, signature, values):
        pointer = address(context, builder, sums, *values, halves)
        return builder.zext(builder.load(pointer, align=2), llvm_type(integers))

    return integers(sums, types.intp), generate


@compiles(store_nibble_pairs)
def _store_nibble_pairs(offsets, index, a, b):
    def generate(context, builder, signature, values):
        array, index_value, *words = values
        mask, four = (ir.Constant(ir.IntType(64), n) for n in (0x0F0F0F0F0F0F0F0F, 4))
        even = [builder.and_(word, mask) for word in words]
        odd = [builder.and_(builder.lshr(word, four), mask) for word in words]
        pairs = [builder.or_(x, builder.shl(y, four)) for x, y in (even, odd)]
        pairs = [builder.bitcast(pair, ir.VectorType(ir.IntType(8), 8)) for pair in pairs]
        order = [lane for i in range(8) for lane in (i, 8 + i)]
        order = ir.Constant(ir.VectorType(ir.IntType(32), 16), order)
        lanes, wide = builder.shuffle_vector(*pairs, order), ir.VectorType(ir.IntType(16), 16)
        result = builder.shl(builder.zext(lanes, wide), ir.Constant(wide, [4] * 16))
        pointer = address(context, builder, offsets, array, index_value, Vector(types.uint16, 16))
        builder.store(result, pointer, align=2)
        return context.get_dummy_value()

    return types.void(offsets, types.intp, types.uint64, types.uint64), generate
