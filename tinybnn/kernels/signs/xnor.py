"""Arithmetic on packed signs: matrix product and convolution.

Two signs multiply to +1 when they agree and to -1 when they differ, so the dot product of K signs
is (number of agreements) - (number of disagreements) = K - 2 * disagreements, and 64 signs at a
time are compared by one exclusive or and one population count::

    dot(a, b) = K - 2 * popcount(a ^ b)

(Courbariaux et al. 2016, arXiv:1602.02830; Rastegari et al. 2016, XNOR-Net,
arXiv:1603.05279.) K is the true length: the tails of both rows are 0, agree, and add
no disagreement.

A ternary weight, -1, 0 or +1, takes a second bit, its mask, which is 0 where the weight is. Where
``m`` is the mask of ``b``, and so popcount(m) the number of terms::

    dot(a, b) = popcount(m) - 2 * popcount((a ^ b) & m)

Each function has a twin, ``*_reference``, that computes the same in plain NumPy.

Product and convolution are one kernel, in two steps, for programs that use the same weights again
and again:

1. `prepare_matmul` or `prepare_conv2d` lays the weights out once and makes the tables the kernel
   needs. With ``thresholds`` a batch norm and a sign follow (see `thresholds`) and the kernel
   writes bits: the sums stay in registers, no array of them exists.
2. `run` computes. Kernels in other files, which go on with the sums while they are in cache, call
   `sums_of` instead.

`xnor_matmul` and `xnor_conv2d` do both in one call.

The parts of the kernel are in files of their own: `tables`, what it reads; `prepared`, which lays
that out; `images`, padded copies; `counting` and `look_ups`, two methods of finding disagreements,
of which the faster one on the CPU is taken; and `results`, which makes sums or bits of them.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from numba.core import types

from tinybnn.kernels.machine import parallel
from tinybnn.kernels.machine.checks import check_row, check_words, out_array
from tinybnn.kernels.machine.layout import for_kernel
from tinybnn.kernels.machine.memory import empty
from tinybnn.kernels.machine.simd import chosen, kernel, subkernel
from tinybnn.kernels.machine.threads import tasks_for
from tinybnn.kernels.machine.windows import Windows, windows, with_border
from tinybnn.kernels.signs import counting, look_ups
from tinybnn.kernels.signs.bits import pack_reference, split_groups_reference, unpack_reference
from tinybnn.kernels.signs.images import pad
from tinybnn.kernels.signs.prepared import (
    NO_SUMS,
    NO_WORDS,
    Prepared,
    check_count,
    has_fast_look_ups,
    lay_out_conv2d,
    lay_out_matmul,
    method_named,
    prepare_conv2d,  # noqa: F401
    prepare_matmul,  # noqa: F401
)
from tinybnn.kernels.signs.tables import LookUps, Tables, panels

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, DTypeLike, NDArray

    from tinybnn.typing import Array, Words

_SPEED = 2.5e12  # products of signs a second, of a fast core

# ---------------------------------------------------------------------------------- matrix product


def xnor_matmul(
    a: ArrayLike,
    b: ArrayLike,
    count: int,
    mask: ArrayLike | None = None,
    dtype: DTypeLike = np.int32,
) -> Array:
    """Dot products of all rows of ``a`` with all rows of ``b``: ``a @ b.T`` on signs.

    Parameters
    ----------
    a : (M, W) uint64
    b : (N, W) uint64
        At least words_for(count) words a row. Bits that are no signs, at the tail or between parts
        that are padded to whole words (pixels, say), are 0 on both sides and do not count.
    count : int
        K, the number of signs a row.
    mask : (N, W) uint64, optional
        1 where ``b`` is not 0, for ternary ``b``.
    dtype : int32 or float32
        Of the sums, which float32 holds exactly below 2**24.

    Returns
    -------
    (M, N) of ``dtype``
        ``K - 2 * popcount(a[i] ^ b[j])``; with mask
        ``popcount(mask[j]) - 2 * popcount((a[i] ^ b[j]) & mask[j])``.

    Raises
    ------
    ValueError
        If a dtype or a shape does not fit, or ``count`` is not positive or above 2**31 - 1.
    """
    name = "xnor_matmul"
    a, b = check_words(name, "a", a, 2), check_words(name, "b", b, 2)
    check_count(name, "a", a.shape[1], count)
    if b.shape[1] != a.shape[1]:
        raise ValueError(f"{name}: b has {b.shape[1]} words a row, a has {a.shape[1]}")
    if dtype not in (np.int32, np.float32):
        raise ValueError(f"{name}: dtype must be int32 or float32, got {np.dtype(dtype)}")
    prepared = lay_out_matmul(name, b, count, mask)
    return run(prepared, a, empty((len(a), len(b)), dtype))


def xnor_matmul_reference(
    a: Words, b: Words, count: int, mask: Words | None = None
) -> NDArray[np.int32]:
    """What :func:`xnor_matmul` computes, in plain NumPy."""
    differ = a[:, None, :] ^ b[None, :, :]  # (M, N, W)
    if mask is not None:
        differ &= mask
        count = np.bitwise_count(mask).sum(axis=1, dtype=np.int64)  # (N,)
    return (count - 2 * np.bitwise_count(differ).sum(axis=2, dtype=np.int64)).astype(np.int32)


# ------------------------------------------------------------------------------------- convolution


def xnor_conv2d(
    x: ArrayLike,
    weight: ArrayLike,
    channels: int,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    padding_mode: str = "zeros",
    mask: ArrayLike | None = None,
) -> NDArray[np.int32]:
    """2-D convolution (cross-correlation, as in PyTorch) of signs, channels last.

    Parameters
    ----------
    x : (N, H, W, words_for(channels)) uint64
    weight : (O, kh, kw, words_for(channels // groups)) uint64
        Tail bits are 0.
    channels : int
        C, the channels of ``x``.
    stride, padding, dilation : (int, int)
        Along height and width.
    groups : int
        A divisor of C and of O. Output channel o sees the channels of group ``o // (O // groups)``.
    padding_mode : "zeros" or "ones"
        What stands outside the image. A zero is not a sign and has no bit: a tap of the filter that
        falls on it adds nothing. "ones" puts +1 there.
    mask : (O, kh, kw, words_for(channels // groups)) uint64, optional
        1 where ``weight`` is not 0, for ternary weights.

    Returns
    -------
    (N, OH, OW, O) int32
        ``OH = (H + 2 * padding - dilation * (kh - 1) - 1) // stride + 1``, OW likewise. With the
        taps that count (all for "ones", those inside the image for "zeros") and C / groups channels
        each, ``taps * C / groups - 2 * popcount(x ^ weight over these taps)``; with mask
        ``popcount(mask) - 2 * popcount((x ^ weight) & mask)`` over these taps.

    Raises
    ------
    ValueError
        If a dtype, a shape or a parameter does not fit, the output would be empty, or a filter has
        more than 2**31 - 1 weights.
    """
    name = "xnor_conv2d"
    x, weight = check_words(name, "x", x, 4), check_words(name, "weight", weight, 4)
    check_row(name, "x", x, "channels", channels)
    of = windows(name, x.shape[1:3], weight.shape[1:3], stride, padding, dilation)
    return run(lay_out_conv2d(name, weight, channels, of, groups, padding_mode, mask), x)


def xnor_conv2d_reference(
    x: Words,
    weight: Words,
    channels: int,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    padding_mode: str = "zeros",
    mask: Words | None = None,
) -> NDArray[np.int32]:
    """What :func:`xnor_conv2d` computes, in plain NumPy: one matrix product a tap and group."""
    filters, *kernel_size, _ = weight.shape
    group_channels, group_filters = channels // groups, filters // groups
    image = with_border(unpack_reference(x, channels), padding, int(padding_mode == "ones"))
    taps = unpack_reference(weight, group_channels)  # (O, kh, kw, C/groups)
    if mask is not None:
        taps *= unpack_reference(mask, group_channels) > 0
    of = windows("xnor_conv2d_reference", x.shape[1:3], kernel_size, stride, padding, dilation)
    out = np.zeros((len(x), *of.out_size, filters), np.float32)
    for ky, kx, seen in of.views(image):  # (N, OH, OW, C)
        for group in range(groups):
            c = slice(group * group_channels, (group + 1) * group_channels)
            o = slice(group * group_filters, (group + 1) * group_filters)
            out[..., o] += seen[..., c] @ taps[o, ky, kx].T
    return out.astype(np.int32)


# ------------------------------------------------------------------------------------------ running


def run(
    prepared: Prepared, x: ArrayLike, out: Array | None = None, workspace: Words | None = None
) -> Array:
    """The product or convolution of ``x`` with prepared weights.

    Parameters
    ----------
    prepared : Prepared
    x : (N, *prepared.input_shape) uint64
        Bits that are no signs are 0.
    out : array, optional
        Contiguous, of the result's shape and dtype, to be written to. Sums are also written to
        float32, which holds them exactly below 2**24.
    workspace : (n,) uint64, optional
        Memory for padded images, at least ``prepared.workspace_words(N)`` words.

    Returns
    -------
    (N, *prepared.output_shape) int32
        Sums; or, if the weights were prepared with thresholds, uint64 words of bits with
        words_for(channels) words in place of the channels.

    Raises
    ------
    ValueError
        If a dtype or a shape does not fit.
    """
    x = np.asarray(x)
    if x.dtype != np.uint64 or x.shape[1:] != prepared.input_shape or x.ndim == 0:
        expected = ", ".join(map(str, ("N", *prepared.input_shape)))
        raise ValueError(
            f"run: x must be uint64 of shape ({expected}), got {x.dtype} of shape {x.shape}"
        )
    dtype = np.uint64 if prepared.to_bits else np.int32
    if dtype == np.int32 and out is not None and out.dtype == np.float32:
        dtype = np.float32
    shape = prepared.out_shape(len(x))
    x, out = for_kernel(x), out_array("run", out, shape, dtype)
    bind(prepared, x, out, workspace)()
    return out


def run_reference(prepared: Prepared, x: ArrayLike) -> Array:
    """What :func:`run` computes, in plain NumPy, from the same tables: one output at a time."""
    to_bits, tables, image = prepared.to_bits, prepared.tables, np.asarray(x)
    if tables.copies:
        of = Windows(*tables.windows)
        if tables.groups > 1:
            split = split_groups_reference(image, tables.channels, tables.groups)
        else:
            split = image.reshape(len(image), *of.size, 1, len(tables.outside))
        n, h, w, groups, _ = split.shape
        shape = (n, groups, *of.padded_size, len(tables.outside))
        padded = np.broadcast_to(tables.outside, shape).copy()
        padded[:, :, of.top : of.top + h, of.left : of.left + w] = split.transpose(0, 3, 1, 2, 4)
        image = padded
    image = image.reshape(len(image), math.prod(image.shape[1:]))
    sums = np.zeros((len(image), len(tables.pixels), tables.filters), np.int64)
    table, disagreements, step = _reference_method(prepared, image)
    for column, width, group, first, count in table:
        for pixel, (first_word, row) in enumerate(zip(tables.pixels, tables.rows, strict=True)):
            start = group * tables.group_stride + first_word
            differ = disagreements(start, column, width)  # (N, width)
            constant = tables.constants[row + column : row + column + width]
            if to_bits:
                flips = tables.flips[column // 16 : (column + width) // 16]
                flips = flips[:: 2 if width > 16 else 1, None]
                turned = unpack_reference(flips, min(width, 32)).reshape(-1) > 0
                value = (differ <= constant) != turned
            else:
                value = constant - step * differ
            sums[:, pixel, first : first + count] = value[:, :count]
    shape = (len(image), *prepared.output_shape)
    if to_bits:
        return pack_reference(2 * sums.reshape(shape) - 1)
    return sums.reshape(shape).astype(np.int32)


def _reference_method(prepared, image):
    """The table of panels; a function of a pixel's first word and of a panel that finds (N, width)
    disagreements; and what each of them takes away from a sum.
    """
    tables, masks = prepared.tables, prepared.masks
    found, length = LookUps(*tables.look_ups), len(tables.taps)

    def counted(start, column, width):
        at, end = column * length, (column + width) * length
        words = counting.words_of_panel(tables.panels[at:end], length)
        differ = image[:, start + tables.taps, None] ^ words
        if prepared.kind == "ternary":
            differ = differ & counting.words_of_panel(masks[at:end], length)
        return np.bitwise_count(differ).sum(1, dtype=np.int64)

    def looked_up(start, column, width):
        rows = tables.panels[column * found.count : (column + width) * found.count]
        nibbles = look_ups.nibbles(image)
        runs = found.segments.reshape(-1, 2)
        places = [np.arange(first, first + count) for first, count in runs]
        seen = nibbles[:, 16 * start + np.concatenate(places), None]
        differ = seen ^ look_ups.nibbles_of_panel(rows, found.count)
        return np.bitwise_count(differ).sum(1, dtype=np.int64)

    is_looked_up = prepared.kind == "look_ups"
    method = look_ups if is_looked_up else counting
    table, _ = panels(tables.groups, tables.group_filters, method.WIDE, method.NARROW)
    step = 1 if found.is_twofold else 2
    return table, looked_up if is_looked_up else counted, step


def bind(
    prepared: Prepared, x: Words, out: Array, workspace: Words | None = None
) -> Callable[[], None]:
    """What `run` does, for the same arrays again and again: all but the work itself is done here.

    Parameters
    ----------
    prepared, x, out, workspace
        As in `run`; ``x`` and ``out`` are contiguous and fit.

    Returns
    -------
    callable
        Without arguments.
    """
    images, tables = len(x), prepared.tables
    tasks = tasks_for(images * prepared.work / _SPEED)
    slot = prepared.slot_words(images)
    if workspace is None:
        workspace = empty(tasks * slot, np.uint64) if slot else NO_WORDS
    elif workspace.dtype != np.uint64 or workspace.ndim != 1 or len(workspace) < tasks * slot:
        raise ValueError(
            f"run: workspace must be a row of at least {tasks * slot} words, "
            f"got {workspace.dtype} of shape {workspace.shape}"
        )
    flat, items = out.reshape(-1), images * len(tables.pixels) if out.size else 0
    are_floats = flat.dtype == np.float32
    sums = flat.view(np.int32) if are_floats else flat
    target = (0, NO_SUMS, flat, False) if prepared.to_bits else (0, sums, NO_WORDS, are_floats)
    by_panels = tasks > 1 and items < 8 * tasks  # few pixels, and as many weights as ever
    if by_panels:
        shares = parallel.shares(len(tables.cuts) - 1, tasks)
    else:
        shares = parallel.shares(items, tasks, 4)  # whole blocks of 4 pixels
    return parallel.bind(
        _task, shares, (by_panels, items), x.reshape(-1), (workspace, slot), prepared.masks,
        tuple(tables), target,
    )  # fmt: skip


@kernel(allocates=False)
def _task(first, end, task, cut, source, memory, masks, arguments, target):
    """Output pixels first to end - 1; or, ``by_panels``, all pixels of the panels of these cuts."""
    tables, (by_panels, items), (workspace, size) = Tables(*arguments), cut, memory
    panel, panel_end, slot = np.int64(0), tables.cuts[-1], task * size
    if by_panels:
        panel, panel_end, first, end = tables.cuts[first], tables.cuts[end], 0, items
    step = tables.together * len(tables.pixels)
    start = first
    while start < end:
        words, base, stop = source, np.int64(0), end
        if tables.copies:  # a few images at a time, which are used while they are in cache
            stop = min(start // step * step + step, end)
            words, base = workspace, pad(start, stop, source, workspace, slot, arguments)
        _blocks(start, stop, panel, panel_end, words, base, masks, arguments, target)
        start = stop


# ---------------------------------------------------------------------- for kernels in other files


@subkernel
def sums_of(
    first: int,
    end: int,
    words: Words,
    base: int,
    masks: Array,
    arguments: tuple[Any, ...],
    sums: NDArray[np.int32],
) -> None:
    """The sums of a range of output pixels, for a kernel that goes on with them while in cache.

    Such a kernel lies in another file, takes pixels in chunks and calls, for each chunk::

        words, base = source, 0
        if Tables(*arguments).copies:
            words, base = workspace, xnor.pad(first, end, source, workspace, slot, arguments)
        xnor.sums_of(first, end, words, base, masks, arguments, sums)

    Padded copies serve all chunks of an image if `pad` is called for the whole image before. Chunks
    have an even number of pixels, but for the last one; a multiple of 4 is fastest.

    Parameters
    ----------
    first, end : int
        Output pixels first to end - 1, counted through all images.
    words : (...,) uint64
        The images; or, where they need copies, what `pad` made of them.
    base : int
        Image n begins at ``words[base + n * image_stride]``.
    masks, arguments : array and tuple
        Those of `Prepared`, of weights that were prepared without thresholds.
    sums : (at least (end - first) * filters,) int32
        Row ``i - first``, of as many sums as there are filters, is written for output pixel i.
    """
    tables = Tables(*arguments)
    target = first, sums, tables.flips[:0], False
    # A literal 0 would be a type of its own, and all would be compiled again.
    _blocks(first, end, np.int64(0), tables.cuts[-1], words, base, masks, arguments, target)


def _blocks(first, end, panel, panel_end, words, base, masks, arguments, target):
    """Output pixels first to end - 1 of some panels; image n begins at base + n * image_stride.

    target : (origin, sums, bits, are_floats)
        Where the results go: a row of ``sums`` or, unless it is empty, of ``bits`` for each pixel,
        beginning with pixel ``origin``. Sums are int32, or the bits of floats.
    """
    method = look_ups if arguments[0].dtype == np.uint8 else counting
    method.blocks(first, end, panel, panel_end, words, base, masks, arguments, target)


@chosen(_blocks)
def _compiled_blocks(first, end, panel, panel_end, words, base, masks, arguments, target):
    blocks = look_ups.blocks if arguments[0].dtype == types.uint8 else counting.blocks
    return lambda first, end, panel, panel_end, words, base, masks, arguments, target: blocks(
        first, end, panel, panel_end, words, base, masks, arguments, target
    )


# ------------------------------------------------------------------------------ what can be reached


def register_peak(repetitions: int = 200_000, method: str | None = None) -> float:
    """Products of signs a second that one core can do when nothing has to be fetched.

    The same instructions as the inner loop of the product, on values that stay in registers (of
    look-ups, in the nearest cache). What `xnor_matmul` reaches of it is what loads, stores and
    loops leave.

    Parameters
    ----------
    repetitions : int
        Of the loop, in each run.
    method : 'counting' or 'look_ups', optional
        By default what suits the CPU.

    Returns
    -------
    float
        Sign products a second, the best of 5 runs.
    """
    if method is None:
        method = "look_ups" if has_fast_look_ups() else "counting"
    method = method_named("register_peak", method)
    method.register_loop(1)  # compiled
    rates = []
    for _ in range(5):
        start = time.perf_counter()
        products = method.register_loop(repetitions)
        rates.append(products / (time.perf_counter() - start))
    return max(rates)
