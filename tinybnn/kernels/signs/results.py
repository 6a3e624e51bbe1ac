"""Turn counted disagreements into sums or bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from llvmlite import ir
from numba.core import types

from tinybnn.kernels.machine.shuffles import on_stack
from tinybnn.kernels.machine.simd import (
    at_most,
    compiles,
    copy,
    cpu_features,
    inlined,
    load_like,
    store,
    store_first,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray


def numbers_of(integers: NDArray[np.int32], are_floats: bool) -> NDArray[np.int32]:
    """Return integers unchanged, or the bits of equal float32: one kernel writes both."""
    return integers.astype(np.float32).view(np.int32) if are_floats else integers


@compiles(numbers_of)
def _numbers_of(integers, are_floats):
    def generate(context, builder, signature, values):
        value, is_float = values
        floats = builder.sitofp(value, ir.VectorType(ir.FloatType(), integers.lanes))
        return builder.select(is_float, builder.bitcast(floats, value.type), value)

    return integers(integers, types.boolean), generate


_buffer = on_stack(np.int32, 32)


@inlined
def _copy_some(sums, at, numbers, count):
    """Do what `store_first` does, faster where stores have no masks: AVX2's take 18 cycles."""
    buffer = _buffer()
    store(buffer, 0, numbers)
    copy(buffer, 0, sums, at, count)


_store_some = store_first if "avx512f" in cpu_features() else _copy_some


@inlined
def finish(
    n: NDArray[np.int32],
    taken: NDArray[np.int32],
    c: int,
    r: int,
    row: int,
    place: tuple[int, int],
    results: tuple[Any, ...],
) -> None:
    """Write the sums or the bits of one pixel and some filters of a panel.

    Parameters
    ----------
    n, taken : vectors of int32
        Disagreements, and what is subtracted from the constant.
    c, r : int
        The first of these columns, and the start of the pixel's row of constants.
    row : int
        Row of the output.
    place : (int, int)
        First output channel, and the number of channels from there on.
    results : tuple
        constants, flips, filters, sums, bits, are_floats: see `Tables` and `xnor._blocks`.
    """
    (channel, count), (constants, flips, filters, sums, bits, are_floats) = place, results
    constant, count = load_like(constants, r + c, n), min(count, len(n))
    if len(bits) > 0:
        _put(at_most(n, constant) ^ flips[c >> 4], row, filters, channel, count, bits)
    elif count == len(n):
        store(sums, row * filters + channel, numbers_of(constant - taken, are_floats))
    else:  # the panel is not full: the memory behind it holds other results
        numbers = numbers_of(constant - taken, are_floats)
        _store_some(sums, row * filters + channel, numbers, count)


@inlined
def _put(mask, row, filters, channel, count, bits):
    """Write ``count`` bits from ``channel`` on. The channels of a row come in ascending order."""
    at, shift = row * ((filters + 63) >> 6) + (channel >> 6), channel & 63
    if shift == 0:
        bits[at] = mask
    else:
        bits[at] |= mask << np.uint64(shift)
        if shift + count > 64:
            bits[at + 1] = mask >> np.uint64(64 - shift)
