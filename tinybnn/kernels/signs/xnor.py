"""Matrix product and convolution of packed signs.

Two signs multiply to +1 when they agree and to -1 when they differ, so the dot product of K signs
is (number of agreements) - (number of disagreements) = K - 2 * disagreements. One exclusive or and
one population count compare 64 signs at a time::

    dot(a, b) = K - 2 * popcount(a ^ b)

(Courbariaux et al. 2016, arXiv:1602.02830; Rastegari et al. 2016, XNOR-Net, arXiv:1603.05279.) K is
the number of signs, not of bits: the unused bits at the end of a row (its tail) are 0 in both rows,
so they agree and add no disagreement.

A ternary weight, -1, 0 or +1, has a second bit, its mask, which is 0 where the weight is 0. If
``m`` is the mask of the row ``b``, then popcount(m) is the number of non-zero terms, and::

    dot(a, b) = popcount(m) - 2 * popcount((a ^ b) & m)

Each function has a reference, ``*_reference``, that computes the same in plain NumPy.

Matrix product and convolution share one kernel. Programs that use the same weights repeatedly call
it in two steps:

1. `prepare_matmul` or `prepare_conv2d` lays out the weights once and builds the kernel's tables.
   With ``thresholds`` (see `thresholds`), a batch norm and a sign that follow are included: the
   kernel compares the sums while they are in registers, and writes bits only.
2. `run` multiplies or convolves inputs with them. Kernels in other files that process the sums
   while they are in cache call `sums_of` instead.

`xnor_matmul` and `xnor_conv2d` do both in one call. `tinybnn bench kernels` compares the product
with NumPy's on floats.

The parts of the kernel have their own files: `tables` describes the tables that it reads, and
`prepared` builds them; `images` makes padded copies of images; `counting`, `counting_bytes` and
`look_ups` are methods of counting disagreements (the fastest one on the CPU is used); and `results`
turns counts into sums or bits.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from numba.np.numpy_support import as_dtype

from tinybnn.kernels.machine import parallel
from tinybnn.kernels.machine.checks import check_row, check_words, out_array
from tinybnn.kernels.machine.layout import for_kernel
from tinybnn.kernels.machine.memory import empty
from tinybnn.kernels.machine.simd import chosen, kernel, subkernel
from tinybnn.kernels.machine.threads import tasks_for
from tinybnn.kernels.machine.windows import Windows, windows, with_border
from tinybnn.kernels.signs import counting, counting_bytes, look_ups
from tinybnn.kernels.signs.bits import pack_reference, split_groups_reference, unpack_reference
from tinybnn.kernels.signs.images import pad
from tinybnn.kernels.signs.prepared import (
    NO_SUMS,
    NO_WORDS,
    Prepared,  # part of the interface, as the other names with noqa
    best_method,
    check_count,
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

_SPEED = 2.5e12  # sign products per second on a fast core

# ---------------------------------------------------------------------------------- matrix product


def xnor_matmul(
    a: ArrayLike,
    b: ArrayLike,
    count: int,
    mask: ArrayLike | None = None,
    dtype: DTypeLike = np.int32,
) -> Array:
    """Compute dot products of all rows of ``a`` and ``b``: ``a @ b.T`` on signs.

    Parameters
    ----------
    a : (M, W) uint64
    b : (N, W) uint64
        W is at least words_for(count). Unused bits, at the end of a row or of parts of it that are
        padded to whole words (such as pixels), are 0 in both operands and do not count.
    count : int
        K, the number of signs in a row.
    mask : (N, W) uint64, optional
        1 where ``b`` is not 0, for ternary ``b``.
    dtype : int32 or float32
        Output dtype. float32 holds sums exactly below 2**24.

    Returns
    -------
    (M, N) of ``dtype``
        ``K - 2 * popcount(a[i] ^ b[j])``; with mask
        ``popcount(mask[j]) - 2 * popcount((a[i] ^ b[j]) & mask[j])``.

    Raises
    ------
    ValueError
        If a dtype or a shape does not match, or ``count`` is not in 1..2**31 - 1.
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
    """Compute :func:`xnor_matmul` in plain NumPy; shapes as there."""
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
    """Convolve signs in 2-D (cross-correlation, as in PyTorch), channels last.

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
        Divides C and O. Output channel o sees the channels of group ``o // (O // groups)``.
    padding_mode : "zeros" or "ones"
        Value outside the image. A zero is not a sign and has no bit, so taps outside the image add
        nothing to the sum. "ones" pads with +1.
    mask : (O, kh, kw, words_for(channels // groups)) uint64, optional
        1 where ``weight`` is not 0, for ternary weights.

    Returns
    -------
    (N, OH, OW, O) int32
        ``OH = (H + 2 * padding - dilation * (kh - 1) - 1) // stride + 1``, OW likewise. The value
        is ``taps * C / groups - 2 * popcount(x ^ weight)`` over the taps that count (all for
        "ones", those inside the image for "zeros"); with a mask,
        ``popcount(mask) - 2 * popcount((x ^ weight) & mask)`` over these taps.

    Raises
    ------
    ValueError
        If a dtype, a shape or a parameter does not match, the output would be empty, or a filter
        has more than 2**31 - 1 weights.
    """
    name = "xnor_conv2d"
    x, weight = check_words(name, "x", x, 4), check_words(name, "weight", weight, 4)
    check_row(name, "x", x, "channels", channels)
    window = windows(name, x.shape[1:3], weight.shape[1:3], stride, padding, dilation)
    return run(lay_out_conv2d(name, weight, channels, window, groups, padding_mode, mask), x)


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
    """Compute :func:`xnor_conv2d` in plain NumPy: one matrix product per tap and group."""
    filters, *kernel_size, _ = weight.shape
    group_channels, group_filters = channels // groups, filters // groups
    image = with_border(unpack_reference(x, channels), padding, int(padding_mode == "ones"))
    taps = unpack_reference(weight, group_channels)  # (O, kh, kw, C/groups)
    if mask is not None:
        taps *= unpack_reference(mask, group_channels) > 0
    window = windows("xnor_conv2d_reference", x.shape[1:3], kernel_size, stride, padding, dilation)
    out = np.zeros((len(x), *window.out_size, filters), np.float32)
    for ky, kx, seen in window.views(image):  # (N, OH, OW, C)
        for group in range(groups):
            c = slice(group * group_channels, (group + 1) * group_channels)
            o = slice(group * group_filters, (group + 1) * group_filters)
            out[..., o] += seen[..., c] @ taps[o, ky, kx].T
    return out.astype(np.int32)


# ------------------------------------------------------------------------------------------ running


def run(
    prepared: Prepared, x: ArrayLike, out: Array | None = None, workspace: Words | None = None
) -> Array:
    """Multiply or convolve ``x`` with prepared weights.

    Parameters
    ----------
    prepared : Prepared
    x : (N, *prepared.input_shape) uint64
        Unused bits are 0.
    out : array of the returned shape and dtype, or float32 for sums, optional
        Contiguous; receives the result. float32 holds sums exactly below 2**24.
    workspace : (n,) uint64, optional
        Memory for padded images, with at least ``prepared.workspace_words(N)`` words.

    Returns
    -------
    (N, *prepared.output_shape) int32, or float32 as ``out``
        The sums. If the weights were prepared with thresholds, uint64 bits instead, with
        words_for(channels) words in place of the last axis.

    Raises
    ------
    ValueError
        If a dtype or a shape does not match.
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
    """Compute :func:`run` in plain NumPy from the same tables; shapes as there."""
    to_bits, tables, image = prepared.to_bits, prepared.tables, np.asarray(x)
    if tables.copies:
        window = Windows(*tables.windows)
        if tables.groups > 1:
            split = split_groups_reference(image, tables.channels, tables.groups)
        else:
            split = image.reshape(len(image), *window.size, 1, len(tables.outside))
        n, h, w, groups, _ = split.shape
        shape = (n, groups, *window.padded_size, len(tables.outside))
        padded = np.broadcast_to(tables.outside, shape).copy()
        padded[:, :, window.top : window.top + h, window.left : window.left + w] = split.transpose(
            0, 3, 1, 2, 4
        )
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
    """Return the list of panels, a function that counts disagreements, and the factor of a count.

    The function takes a pixel's first word, a column and a width, and returns (N, width) int64. A
    sum is a constant minus the factor times the count.
    """
    tables, masks = prepared.tables, prepared.masks
    record, length = LookUps(*tables.look_ups), len(tables.taps)

    def counted(start, column, width):
        size = length * 8 // tables.panels.itemsize
        at, end = column * size, (column + width) * size
        words = method.words_of_panel(tables.panels[at:end], length)
        differ = image[:, start + tables.taps, None] ^ words
        if len(masks):
            differ = differ & method.words_of_panel(masks[at:end], length)
        return np.bitwise_count(differ).sum(1, dtype=np.int64)

    def looked_up(start, column, width):
        rows = tables.panels[column * record.count : (column + width) * record.count]
        nibbles = look_ups.nibbles(image)
        runs = record.segments.reshape(-1, 2)
        places = [np.arange(first, first + count) for first, count in runs]
        seen = nibbles[:, 16 * start + np.concatenate(places), None]
        differ = seen ^ look_ups.nibbles_of_panel(rows, record.count)
        return np.bitwise_count(differ).sum(1, dtype=np.int64)

    method = prepared.method
    table, _ = panels(tables.groups, tables.group_filters, method.WIDE, method.NARROW)
    step = 1 if record.is_twofold else 2
    return table, looked_up if method is look_ups else counted, step


def bind(
    prepared: Prepared, x: Words, out: Array, workspace: Words | None = None
) -> Callable[[], None]:
    """Bind `run` to its arrays, so that repeated calls only compute, without checks or setup.

    Parameters
    ----------
    prepared, x, out, workspace
        As in `run`, but ``x`` and ``out`` must be contiguous arrays of the right shapes and dtypes:
        they are not checked.

    Returns
    -------
    callable
        Takes no arguments; each call reads ``x`` and writes ``out``.
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
    by_panels = tasks > 1 and items < 8 * tasks  # too few pixels to divide among the tasks
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
    """Compute output pixels first to end - 1 or, if ``by_panels``, all pixels with some panels.

    The panels are then those from ``cuts[first]`` up to ``cuts[end]``.
    """
    tables, (by_panels, items), (workspace, size) = Tables(*arguments), cut, memory
    panel, panel_end, slot = np.int64(0), tables.cuts[-1], task * size
    if by_panels:
        panel, panel_end, first, end = tables.cuts[first], tables.cuts[end], 0, items
    step = tables.together * len(tables.pixels)
    start = first
    while start < end:
        words, base, stop = source, np.int64(0), end
        if tables.copies:  # a few images at a time, so that the copies are read from the cache
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
    """Compute the sums of some output pixels for a kernel that processes them while in cache.

    Such a kernel, in another file, handles pixels in chunks and runs for each chunk::

        words, base = source, 0
        if Tables(*arguments).copies:
            words, base = workspace, xnor.pad(first, end, source, workspace, slot, arguments)
        xnor.sums_of(first, end, words, base, masks, arguments, sums)

    If `pad` is called for a whole image, its padded copy serves all chunks of the image. Chunks
    have an even number of pixels, except the last one; a multiple of 4 is fastest.

    Parameters
    ----------
    first, end : int
        Output pixels first to end - 1, numbered across all images.
    words : (...,) uint64
        The images, or the copies that `pad` made of them.
    base : int
        Image n begins at ``words[base + n * image_stride]``.
    masks, arguments : array and tuple
        ``prepared.masks`` and ``tuple(prepared.tables)`` of weights prepared without thresholds.
    sums : (at least (end - first) * filters,) int32
        Output pixel i writes row ``i - first``, with one sum per filter.
    """
    tables = Tables(*arguments)
    target = first, sums, tables.flips[:0], False
    # A literal 0 would have its own type, and everything would be compiled again for it.
    _blocks(first, end, np.int64(0), tables.cuts[-1], words, base, masks, arguments, target)


_BLOCKS = {method.PANELS: method.blocks for method in (counting, counting_bytes, look_ups)}


def _blocks(first, end, panel, panel_end, words, base, masks, arguments, target):
    """Multiply output pixels first to end - 1 by panels panel to panel_end - 1 (see `Tables`).

    Image n begins at words[base + n * image_stride].

    target : (origin, sums, bits, are_floats)
        Where the results go: each pixel, beginning with pixel ``origin``, has a row of ``sums`` or,
        unless it is empty, of ``bits``. Sums are int32, or the bits of float32.
    """
    blocks = _BLOCKS[arguments[0].dtype.type]
    blocks(first, end, panel, panel_end, words, base, masks, arguments, target)


@chosen(_blocks)
def _compiled_blocks(first, end, panel, panel_end, words, base, masks, arguments, target):
    blocks = _BLOCKS[as_dtype(arguments[0].dtype).type]
    return lambda first, end, panel, panel_end, words, base, masks, arguments, target: blocks(
        first, end, panel, panel_end, words, base, masks, arguments, target
    )


# --------------------------------------------------------------------------------- peak throughput


def register_peak(repetitions: int = 200_000, method: str | None = None) -> float:
    """Measure the sign products per second of one core when nothing has to be loaded.

    It runs the instructions of the product's inner loop on values that stay in registers or, with
    the methods of bytes and of look-ups, in the first-level cache. `xnor_matmul` is slower by the
    cost of its loads, stores and loops.

    Parameters
    ----------
    repetitions : int
        Repetitions of the loop in each run.
    method : 'counting', 'counting_bytes' or 'look_ups', optional
        Default: the fastest one on this CPU.

    Returns
    -------
    float
        Sign products per second, the best of 5 runs.
    """
    method = method_named("register_peak", best_method() if method is None else method)
    method.register_loop(1)  # compiled
    rates = []
    for _ in range(5):
        start = time.perf_counter()
        products = method.register_loop(repetitions)
        rates.append(products / (time.perf_counter() - start))
    return max(rates)
