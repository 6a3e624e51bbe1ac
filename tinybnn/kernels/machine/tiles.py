"""Tiles: several rows of sums in registers that share each loaded vector of weights.

A product is limited by its loads unless each loaded number is used several times. So inner loops
keep a *tile*, a tuple of vectors, one for each row: a step loads one vector of weights and a number
for each row, and multiplies them all (register blocking; Goto and van de Geijn 2008, "Anatomy of
High-Performance Matrix Multiplication")::

    tile = six(zeros(64))
    for k in range(depth):
        tile = add_products(tile, places, source, k, load_like(weights, 64 * k, tile[0]))

A row may be wider than a register: LLVM splits it. In compiled code the loops over rows below are
unrolled, one instruction per row: a loop would keep the tile in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.extending import intrinsic

from tinybnn.kernels.machine.simd import (
    address,
    call_llvm,
    chosen,
    compiles,
    element_address,
    emit_store_first,
    entry,
    everywhere,
    inlined,
    store_first,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from tinybnn.kernels.machine.simd import Tile
    from tinybnn.typing import Array


def add_products(
    tile: Tile,
    places: tuple[int, ...],
    source: NDArray[np.float32],
    step: int,
    weights: NDArray[np.float32],
) -> Tile:
    """Add ``source[place + step] * weights`` to each row; the product is rounded first."""
    return tuple([r + source[p + step] * weights for r, p in zip(tile, places, strict=True)])


def fuse_products(
    tile: Tile,
    places: tuple[int, ...],
    source: NDArray[np.float32],
    step: int,
    weights: NDArray[np.float32],
) -> Tile:
    """Do the same, rounding once where the CPU can, else twice."""
    return add_products(tile, places, source, step, weights)


def add_lane_products(
    tile: Tile,
    places: tuple[int, ...],
    source: NDArray[np.float32],
    step: int,
    weights: NDArray[np.float32],
) -> Tile:
    """Add ``source[place + step : ...] * weights``, lane by lane, to each row."""
    starts = [place + step for place in places]
    lanes = [source[start : start + len(weights)] for start in starts]
    return tuple([row + x * weights for row, x in zip(tile, lanes, strict=True)])


def fuse_lane_products(
    tile: Tile,
    places: tuple[int, ...],
    source: NDArray[np.float32],
    step: int,
    weights: NDArray[np.float32],
) -> Tile:
    """Do the same, rounding once where the CPU can, else twice."""
    return add_lane_products(tile, places, source, step, weights)


def add_stored(tile: Tile, places: tuple[int, ...], array: Array) -> Tile:
    """Add to each row the lanes that an array holds from the row's place on."""
    rows = zip(tile, places, strict=True)
    return tuple([row + array[place : place + len(row)] for row, place in rows])


def transposed(tile: Tile) -> Tile:
    """Transpose four rows of four lanes."""
    return tuple(np.array(tile).T.copy())


def store_tile(tile: Tile, places: tuple[int, ...], array: Array, count: int) -> None:
    """Store the first ``count`` lanes of each row at its place; the memory behind is unchanged."""
    for row, place in zip(tile, places, strict=True):
        store_first(array, place, row, count)


def compile_rows(function: Callable[..., Any], emit: Callable[..., Any]) -> None:
    """Compile ``function(tile, places, array, step, weights)``, row by row.

    ``emit(builder, row, pointer, weights)`` returns the new row; the pointer is that of array[place
    + step].
    """

    @compiles(function)
    def rows(tile, places, array, step, weights):
        def generate(context, builder, signature, values):
            vectors, starts, array_value, step_value, factors = values
            results = []
            for i in range(len(tile)):
                at = builder.add(builder.extract_value(starts, i), step_value)
                pointer = element_address(context, builder, array, array_value, at)
                row = builder.extract_value(vectors, i)
                results.append(emit(builder, row, pointer, factors))
            return context.make_tuple(builder, signature.return_type, results)

        return tile(tile, places, array, types.intp, weights), generate


def load_lanes(builder: Any, pointer: Any, lanes: int) -> Any:
    """Emit the load of ``lanes`` adjacent elements from a pointer on."""
    kind = ir.VectorType(pointer.type.pointee, lanes)
    return builder.load(builder.bitcast(pointer, kind.as_pointer()), align=4)


def _in_all_lanes(builder, pointer, lanes):
    return everywhere(builder, builder.load(pointer), lanes)


def _rounded_twice(read):
    def emit(builder, row, pointer, weights):
        return builder.fadd(row, builder.fmul(read(builder, pointer, row.type.count), weights))

    return emit


def _fused(read):
    def emit(builder, row, pointer, weights):
        # Unlike llvm.fma, which would call a library function for each lane on a CPU without it.
        name, x = f"llvm.fmuladd.v{row.type.count}f32", read(builder, pointer, row.type.count)
        return call_llvm(builder, name, row.type, x, weights, row)

    return emit


compile_rows(add_products, _rounded_twice(_in_all_lanes))
compile_rows(fuse_products, _fused(_in_all_lanes))
compile_rows(add_lane_products, _rounded_twice(load_lanes))
compile_rows(fuse_lane_products, _fused(load_lanes))


@compiles(transposed)
def _transposed(tile):
    def generate(context, builder, signature, values):
        a, b, c, d = (builder.extract_value(values[0], i) for i in range(4))
        pairs = _zipped(builder, a, c), _zipped(builder, b, d)
        rows = [_zipped(builder, *two) for two in zip(*pairs, strict=True)]
        return context.make_tuple(builder, signature.return_type, [*rows[0], *rows[1]])

    return tile(tile), generate


def _zipped(builder, a, b):
    """Interleave the lanes of two vectors of four, as two vectors."""
    kind = ir.VectorType(ir.IntType(32), 4)
    lanes = ir.Constant(kind, [0, 4, 1, 5]), ir.Constant(kind, [2, 6, 3, 7])
    return [builder.shuffle_vector(a, b, order) for order in lanes]


@compiles(add_stored)
def _add_stored(tile, places, array):
    def generate(context, builder, signature, values):
        rows = _rows_at(context, builder, tile, array, *values)
        results = [builder.fadd(row, builder.load(pointer, align=4)) for row, pointer in rows]
        return context.make_tuple(builder, signature.return_type, results)

    return tile(tile, places, array), generate


@intrinsic
def _store_tile(typing, tile, places, array):
    def generate(context, builder, signature, values):
        for row, pointer in _rows_at(context, builder, tile, array, *values):
            builder.store(row, pointer, align=4)
        return context.get_dummy_value()

    return types.void(tile, places, array), generate


@intrinsic
def _store_columns(typing, tile, places, array, count):
    def generate(context, builder, signature, values):
        *operands, count_value = values
        for row, pointer in _rows_at(context, builder, tile, array, *operands):
            emit_store_first(builder, row, pointer, count_value)
        return context.get_dummy_value()

    return types.void(tile, places, array, types.intp), generate


def _rows_at(context, builder, tile, array, rows, places, array_value):
    """Yield each row of a tile, and a pointer to the elements at its place."""
    for i in range(len(tile)):
        place = builder.extract_value(places, i)
        pointer = address(context, builder, array, array_value, place, tile.dtype)
        yield builder.extract_value(rows, i), pointer


@chosen(store_tile)
def _compiled_store_tile(tile, places, array, count):
    lanes = tile.dtype.lanes

    def store(tile, places, array, count):
        if count >= lanes:
            _store_tile(tile, places, array)
        else:
            _store_columns(tile, places, array, count)

    return store


@inlined
def four(row: Array) -> Tile:
    """Return a tile of four equal rows."""
    return row, row, row, row


@inlined
def moved(places: tuple[int, int, int, int], step: int) -> tuple[int, int, int, int]:
    """Advance the places of four rows by ``step``."""
    a, b, c, d = places
    return a + step, b + step, c + step, d + step


@inlined
def six(row: Array) -> Tile:
    """Return a tile of six equal rows."""
    return row, row, row, row, row, row


@inlined
def six_entries(table: NDArray[np.int64], first: int, last: int, base: int) -> tuple[int, ...]:
    """Return ``base`` plus six entries of a table from ``first`` on; the last one is repeated."""
    i1, i2, i3 = min(first + 1, last), min(first + 2, last), min(first + 3, last)
    i4, i5 = min(first + 4, last), min(first + 5, last)
    return (
        base + entry(table, first), base + entry(table, i1), base + entry(table, i2),
        base + entry(table, i3), base + entry(table, i4), base + entry(table, i5),
    )  # fmt: skip


@inlined
def three_entries(table: NDArray[np.int64], first: int, last: int, base: int) -> tuple[int, ...]:
    """Return ``base`` plus three entries; ``first`` may be beyond the last."""
    i0, i1, i2 = min(first, last), min(first + 1, last), min(first + 2, last)
    return base + entry(table, i0), base + entry(table, i1), base + entry(table, i2)
