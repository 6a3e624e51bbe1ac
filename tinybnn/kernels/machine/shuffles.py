"""Operations on vectors of bytes: look-ups of nibbles in tables of 16 bytes.

A byte shuffle (``vpshufb``) looks up one nibble per byte of a vector in a table that is in a
register, all in one instruction. `add_look_up` and `add_three_look_ups` do it for the rows of a
tile (see `tiles`). This needs AVX2; with AVX-512 a vector has 64 bytes. LLVM ends the process if an
instruction does not exist, so callers must check `has_shuffles` first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import DTypeLike, NDArray

    from tinybnn.kernels.machine.simd import Tile
    from tinybnn.typing import Array, Words

BYTES = 64 if "avx512bw" in cpu_features() else 32  # lanes
_INTEGERS = 32  # lanes of a widened vector
_TABLE = ir.VectorType(ir.IntType(8), 16)


def has_shuffles() -> bool:
    """Tell whether the CPU that Numba compiles for can shuffle 32 or 64 bytes."""
    return bool(cpu_features() & {"avx2", "avx512bw"})


def zero_tile_of(width: int) -> Callable[[], Tile]:
    """Return a function that creates a tile of zeros for a pair of pixels and ``width`` columns.

    A tile is a tuple of vectors of bytes: for each byte of ``width`` its total, and then for each
    the total of the bytes shifted right by a nibble; `add_tile` turns them into counts.
    """
    rows = 2 * width // BYTES

    def make():
        return tuple([np.zeros(BYTES, np.uint8) for _ in range(rows)])

    @compiles(make)
    def _make():
        kind = types.UniTuple(_bytes, rows)

        def generate(context, builder, signature, values):
            zero = ir.Constant(llvm_type(_bytes), None)
            return context.make_tuple(builder, kind, [zero] * rows)

        return kind(), generate

    return make


def add_look_up(
    tile: Tile,
    place: int,
    places: Words,
    tables: NDArray[np.uint8],
    panel: NDArray[np.uint8],
    at: int,
) -> Tile:
    """Add the table entries for the nibbles of a panel to a tile.

    Parameters
    ----------
    tile : tuple of vectors of bytes
        As created by `zero_tile_of`.
    place : int
        Index in ``places``, of the address in ``tables`` of the table of a pair of pixels.
    places : (...,) uint64
        Four addresses per word.
    tables : (...,) uint8
        16 entries per table: the count for the first pixel in the lower half of each, the count for
        the second in the upper half.
    panel : (...,) uint8
        From entry ``at`` on a nibble, 0 to 15, for each column.
    """
    return _added(tile, place, places, tables, panel, at, 1)


def add_three_look_ups(
    tile: Tile,
    place: int,
    places: Words,
    tables: NDArray[np.uint8],
    panel: NDArray[np.uint8],
    at: int,
) -> Tile:
    """Do the same for three consecutive ``places`` and three rows of nibbles.

    The sum of three entries is below 16 in both halves.
    """
    return _added(tile, place, places, tables, panel, at, 3)


def _added(tile, place, places, tables, panel, at, times):
    count = len(tile) // 2
    entries = np.zeros(count * BYTES, np.uint8)
    for k in range(times):
        start, first = int(places.view(np.uint16)[place + k]), at + k * len(entries)
        entries += tables[start : start + 16][panel[first : first + len(entries)]]
    above = (entries.view(np.uint16) >> np.uint16(4)).view(np.uint8)
    rows = *entries.reshape(count, BYTES), *above.reshape(count, BYTES)
    return tuple([row + new for row, new in zip(tile, rows, strict=True)])


def add_tile(sums: NDArray[np.uint16], to: int, before: int, tile: Tile) -> None:
    """Write the counts of a tile plus sums[before : ...] to sums[to : ...]; sums : (...,) uint16

    First come those of the first pixel, then those of the second; for each vector the even lanes,
    then the odd ones.

    Bytes overflow, without loss. With c and d the counts of both pixels in one byte, its total is c
    + 16 d modulo 256. The total of the shifted bytes is d in odd bytes. In even ones it is d + 16
    c', with c' of the next byte, because shifts move 16 bits. So d is known in odd bytes, then c
    there, and finally both in even bytes, if no count exceeds 255.
    """
    count = len(tile) // 2
    totals, above = (
        np.concatenate(rows).view(np.uint16).reshape(count, -1)
        for rows in (tile[:count], tile[count:])
    )
    odd_second = above >> 8
    odd_first = ((totals >> 8) - (odd_second << 4)) & 255
    even_second = (above - (odd_first << 4)) & 255
    even_first = (totals - (even_second << 4)) & 255
    first = np.stack([even_first, odd_first], 1).reshape(-1)
    new = np.concatenate([first, np.stack([even_second, odd_second], 1).reshape(-1)])
    sums[to : to + len(new)] = sums[before : before + len(new)] + new


def load_widened(sums: NDArray[np.uint16], index: int) -> NDArray[np.int32]:
    """Load the 32 lanes sums[index], sums[index + 1], ... of a 1-D uint16 array as int32."""
    return sums[index : index + _INTEGERS].astype(np.int32)


def store_nibble_pairs(places: Words, to: int, words: Words, a: int, b: int) -> None:
    """Store 16 table addresses: for each nibble, 16 * (that of words[a] + 16 * that of words[b]).

    A word of ``places`` has four addresses; ``to`` counts them. Both arrays are 1-D uint64.
    """
    shifts = np.arange(0, 64, 4, dtype=np.uint64)
    first, second = (words[i] >> shifts & np.uint64(15) for i in (a, b))
    places.view(np.uint16)[to : to + 16] = (first | second << np.uint64(4)) << np.uint64(4)


def on_stack(dtype: DTypeLike, count: int) -> Callable[[], Array]:
    """Return a function that creates a 1-D array on the stack, alive until the kernel returns."""

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
                place.align = 64
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

_bytes, _halves = Vector(types.uint8, BYTES), Vector(types.uint16, BYTES // 2)


def _shuffle(builder, table, index):
    name = {32: "llvm.x86.avx2.pshuf.b", 64: "llvm.x86.avx512.pshuf.b.512"}[BYTES]
    return call_llvm(builder, name, table.type, table, index)


def _repeated(builder, pointer):
    """Emit the load of a table of 16 bytes, repeated to fill a vector."""
    table = builder.load(builder.bitcast(pointer, _TABLE.as_pointer()), align=1)
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), BYTES), list(range(16)) * (BYTES // 16))
    return builder.shuffle_vector(table, ir.Constant(_TABLE, ir.Undefined), lanes)


def _place(context, builder, array_type, array, index, step):
    """Emit a pointer to a place."""
    first = element_address(context, builder, array_type, array, ir.Constant(ir.IntType(64), 0))
    index = builder.add(index, ir.Constant(index.type, step))
    return builder.gep(builder.bitcast(first, ir.IntType(16).as_pointer()), [index])


def _compile_look_ups(function, times):
    kind, halves = llvm_type(_bytes), llvm_type(_halves)

    @compiles(function)
    def look_ups(tile, place, places, tables, panel, at):
        count = len(tile) // 2

        def generate(context, builder, signature, values):
            tile_value, place_value, places_value, tables_value, panel_value, at_value = values

            def element(array_type, array, index, step):
                index = builder.add(index, ir.Constant(index.type, step))
                return element_address(context, builder, array_type, array, index)

            looked_up = []
            for k in range(times):
                start = builder.load(_place(context, builder, places, places_value, place_value, k))
                start = builder.zext(start, ir.IntType(64))
                table = _repeated(builder, element(tables, tables_value, start, 0))
                new = []
                for j in range(count):
                    pointer = element(panel, panel_value, at_value, (k * count + j) * BYTES)
                    pointer = builder.bitcast(pointer, kind.as_pointer())
                    new.append(_shuffle(builder, table, builder.load(pointer, align=1)))
                looked_up = (
                    [builder.add(*pair) for pair in zip(looked_up, new, strict=True)] if k else new
                )
            four = ir.Constant(halves, [4] * _halves.lanes)
            above = [builder.lshr(builder.bitcast(row, halves), four) for row in looked_up]
            looked_up += [builder.bitcast(row, kind) for row in above]
            rows = [builder.extract_value(tile_value, i) for i in range(len(looked_up))]
            sums = [builder.add(*pair) for pair in zip(rows, looked_up, strict=True)]
            return context.make_tuple(builder, signature.return_type, sums)

        return tile(tile, types.intp, places, tables, panel, types.intp), generate


_compile_look_ups(add_look_up, 1)
_compile_look_ups(add_three_look_ups, 3)


@compiles(add_tile)
def _add_tile(sums, to, before, tile):
    kind, count = llvm_type(_halves), len(tile) // 2
    four, eight, low = (ir.Constant(kind, [n] * _halves.lanes) for n in (4, 8, 255))

    def generate(context, builder, signature, values):
        array, to_value, before_value, tile_value = values

        def less(total, times_16):
            return builder.sub(total, builder.shl(times_16, four))

        for i in range(count):
            totals, above = (
                builder.bitcast(builder.extract_value(tile_value, j), kind) for j in (i, i + count)
            )
            odd_second = builder.lshr(above, eight)
            odd_first = builder.and_(less(builder.lshr(totals, eight), odd_second), low)
            even_second = builder.and_(less(above, odd_first), low)
            even_first = builder.and_(less(totals, even_second), low)
            for j, counts in enumerate((even_first, odd_first, even_second, odd_second)):
                place = i * BYTES + j // 2 * count * BYTES + j % 2 * _halves.lanes
                pointers = []
                for index in (before_value, to_value):
                    index = builder.add(index, ir.Constant(index.type, place))
                    pointers.append(address(context, builder, sums, array, index, _halves))
                counts = builder.add(builder.load(pointers[0], align=2), counts)
                builder.store(counts, pointers[1], align=2)
        return context.get_dummy_value()

    return types.void(sums, types.intp, types.intp, tile), generate


@compiles(load_widened)
def _load_widened(sums, index):
    integers, halves = Vector(types.int32, _INTEGERS), Vector(types.uint16, _INTEGERS)

    def generate(context, builder, signature, values):
        pointer = address(context, builder, sums, *values, halves)
        return builder.zext(builder.load(pointer, align=2), llvm_type(integers))

    return integers(sums, types.intp), generate


@compiles(store_nibble_pairs)
def _store_nibble_pairs(places, to, words, a, b):
    octets, wide = ir.VectorType(ir.IntType(8), 8), ir.VectorType(ir.IntType(32), 8)

    def generate(context, builder, signature, values):
        places_value, to_value, words_value, *indices = values

        def nibbles(index, shift):
            """Both nibbles of each byte, shifted in the lower and upper half of 32 bits."""
            pointer = element_address(context, builder, words, words_value, index)
            value = builder.load(builder.bitcast(pointer, octets.as_pointer()), align=8)
            value = builder.zext(value, wide)
            low, high = (
                builder.shl(value, ir.Constant(wide, [n] * 8)) for n in (shift, shift + 12)
            )
            mask = ir.Constant(wide, [(15 | 15 << 16) << shift] * 8)
            return builder.and_(builder.or_(low, high), mask)

        pairs = builder.or_(*(nibbles(index, 4 + 4 * i) for i, index in enumerate(indices)))
        pointer = _place(context, builder, places, places_value, to_value, 0)
        builder.store(pairs, builder.bitcast(pointer, wide.as_pointer()), align=2)
        return context.get_dummy_value()

    return types.void(places, types.intp, words, types.intp, types.intp), generate
