"""Real-valued sums that do not depend on who computes them.

Floating-point addition is not associative: a sum changes with the order of its terms, and a BLAS
library chooses the order by the shape of the matrices, the number of threads and the CPU. Where two
paths must agree bit for bit, as the eval mode of a model and its packed form do in their first and
last layers, the order has to be fixed. Here it is: ascending k, and each product is rounded before
it is added.

Three products do so:

- `ordered_matmul`, floats with floats;
- `conv2d`, the convolution of float images: a first layer. It is direct, without a matrix of
  patches;
- `signs_matmul`, packed signs with float weights: a last layer.

The last two use weights that are laid out once, by `prepare_conv2d` and `prepare_signs_matmul`, and
share one inner kernel, `sums`. Each function has a twin, ``*_reference``, that computes the same in
plain NumPy.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, overload

from tinybnn.kernels.machine import parallel, threads
from tinybnn.kernels.machine.checks import out_array
from tinybnn.kernels.machine.layout import for_kernel
from tinybnn.kernels.machine.memory import empty, on_lines
from tinybnn.kernels.machine.simd import (
    FLOATS,
    clear,
    copy,
    cpu_features,
    inlined,
    kernel,
    load,
    load_like,
    store,
    subkernel,
    zero_floats,
    zeros,
)
from tinybnn.kernels.machine.tiles import (
    add_lane_products,
    add_products,
    four,
    moved,
    six,
    store_tile,
)
from tinybnn.kernels.machine.windows import Windows, windows, with_border
from tinybnn.kernels.signs.bits import unpack_reference, words_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

    from tinybnn.typing import FloatArray, Shape, Words

_SPEED = 1e11  # multiplications a second, of a fast core

# ------------------------------------------------------------------------------------ float, float


def ordered_matmul(a: ArrayLike, b: ArrayLike) -> FloatArray:
    """Matrix product ``a @ b`` whose sums run in one fixed order.

    ``out[i, j]`` starts at 0 and adds ``a[i, k] * b[k, j]`` for k = 0, 1, 2, ... in this order;
    each product is rounded before it is added (no fused multiply-add). A row of the result is
    therefore the same, bit for bit, whatever the other rows, the number of threads and the CPU.

    Parameters
    ----------
    a : (M, K) float32 or float64
    b : (K, N) of the same dtype

    Returns
    -------
    (M, N) of the same dtype

    Raises
    ------
    ValueError
        If a dtype or a shape does not fit, or K is 0.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype not in (np.float32, np.float64):
        raise ValueError(f"ordered_matmul: a must be float32 or float64, got {a.dtype}")
    if b.dtype != a.dtype:
        raise ValueError(f"ordered_matmul: b must be {a.dtype} as a is, got {b.dtype}")
    if a.ndim != 2 or b.ndim != 2:
        raise ValueError(
            f"ordered_matmul: a and b must have 2 axes, got shapes {a.shape} and {b.shape}"
        )
    if b.shape[0] != a.shape[1]:
        raise ValueError(f"ordered_matmul: b has {b.shape[0]} rows, a has {a.shape[1]} columns")
    if a.shape[1] == 0:
        raise ValueError("ordered_matmul: the summed axis must hold elements, K is 0")
    out = np.empty((a.shape[0], b.shape[1]), a.dtype)
    a, b = for_kernel(a), for_kernel(b)
    if a.dtype == np.float32:
        if out.size:
            bind_ordered_matmul(a, b, out)()
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            _ordered_doubles(a, b, out)
    return out


def bind_ordered_matmul(
    a: NDArray[np.float32], b: NDArray[np.float32], out: NDArray[np.float32]
) -> Callable[[], None]:
    """What `ordered_matmul` does, for the same float32 arrays again and again.

    Parameters
    ----------
    a : (M, K) float32
    b : (K, N) float32
    out : (M, N) float32
        Is written to. All are C-contiguous and not empty.

    Returns
    -------
    callable
        Without arguments. It uses as many threads as are set now.
    """
    (rows, depth), columns = a.shape, b.shape[1]
    flat = a.reshape(-1), b.reshape(-1), out.reshape(-1)
    whole = (
        max(b.size - FLOATS, -1) // columns + 1
    )  # rows of b from which 16 elements can be loaded
    tail = np.zeros((depth - whole) * columns + FLOATS, np.float32)  # and the others
    tail[:-FLOATS] = flat[1][whole * columns :]
    tasks = min(threads.tasks_for(rows * depth * columns / _SPEED), max(rows, 1))
    worker = _ordered_floats_narrow if columns < FLOATS else _ordered_floats
    work = parallel.bind(worker, parallel.shares(rows, tasks), *flat, tail, depth, columns)
    # inf - inf is NaN without a warning in compiled code; the same when the JIT is off.
    return np.errstate(all="ignore")(work) if numba.config.DISABLE_JIT else work


def ordered_matmul_reference(a: FloatArray, b: FloatArray) -> FloatArray:
    """What :func:`ordered_matmul` computes, in plain NumPy."""
    total = np.zeros((a.shape[0], b.shape[1]), a.dtype)  # (M, N)
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(a.shape[1]):
            total += a[:, k : k + 1] * b[k]  # (M, 1) * (N,)
    return total


# The sums of different outputs are independent of each other, so they share vectors: 16 columns a
# vector, and 4 rows times 32 columns in registers at a time, which keeps the adder busy while each
# sum waits for its last addition. Multiplication and addition stay two instructions.
@kernel(allocates=False)
def _ordered_floats(first, end, task, a, b, out, tail, depth, columns):
    """Rows first to end - 1 of the float32 product; flat arrays, columns >= 16."""
    for column in range(0, columns, 2 * FLOATS):
        # The last columns move back over those that are done.
        j0 = min(column, columns - FLOATS)
        j1 = min(column + FLOATS, columns - FLOATS)
        for row in range(first, end, 4):
            # So do the last rows; with fewer than 4, one is computed several times.
            places, targets = _four_rows(row, first, end, depth, columns)
            left, right = four(zero_floats()), four(zero_floats())
            for k in range(depth):
                left = add_products(left, places, a, k, load(b, k * columns + j0))
                right = add_products(right, places, a, k, load(b, k * columns + j1))
            store_tile(left, moved(targets, j0), out, FLOATS)
            store_tile(right, moved(targets, j1), out, FLOATS)


@kernel(allocates=False)
def _ordered_floats_narrow(first, end, task, a, b, out, tail, depth, columns):
    """The same for fewer than 16 columns.

    A vector then holds a row of `b` and the beginning of the next ones, which is computed and not
    stored. `tail` is a copy of the last rows of `b`, with 16 elements more.
    """
    whole = depth - (len(tail) - FLOATS) // columns
    for row in range(first, end, 4):
        places, targets = _four_rows(row, first, end, depth, columns)
        tile = four(zero_floats())
        for k in range(depth):
            b0 = load(b, k * columns) if k < whole else load(tail, (k - whole) * columns)
            tile = add_products(tile, places, a, k, b0)
        store_tile(tile, targets, out, columns)


@inlined
def _four_rows(row, first, end, depth, columns):
    """Where four rows of ``a`` and of the result begin, the last of which are before ``end``."""
    r0 = max(min(row, end - 4), first)
    r1, r2, r3 = min(r0 + 1, end - 1), min(r0 + 2, end - 1), min(r0 + 3, end - 1)
    places = r0 * depth, r1 * depth, r2 * depth, r3 * depth
    return places, (r0 * columns, r1 * columns, r2 * columns, r3 * columns)


# float64 is for gradient checks, where speed does not matter.
@kernel
def _ordered_doubles(a, b, out):
    rows, depth = a.shape
    for i in range(rows):
        out[i] = 0
        for k in range(depth):
            for j in range(b.shape[1]):
                out[i, j] += a[i, k] * b[k, j]


# --------------------------------------------------------------------------------- laid-out weights

# Filters lie in panels of 64 or 16: summation step 0 of each filter of the panel, then step 1 of
# each, and so on, so that one load gives the weights of 16 filters.
_WIDE, _NARROW = 4 * FLOATS, FLOATS
_TOGETHER = 6  # output pixels (or rows of signs) in registers at a time
_PART = 40 * _TOGETHER  # pixels that meet all panels before the next ones: they stay in the cache


# 6 pixels × 64 filters are sums for 24 of the 32 registers of AVX-512; others have 16.
_WIDEST = _WIDE if "avx512f" in cpu_features() else _NARROW


@functools.lru_cache(maxsize=128)
def _panels_of(filters, groups, group_channels, length, widest):
    """The table of panels that `sums` reads, and the number of floats in all panels."""
    group_filters = filters // groups
    if group_channels == group_filters == 1:  # 16 neighbouring channels, each with its own filter
        firsts = np.arange(0, filters, _NARROW)
        spans = [(first, first, min(_NARROW, filters - first), _NARROW) for first in firsts]
    else:
        spans = []
        for group in range(groups):
            first, end = group * group_filters, (group + 1) * group_filters
            while first < end:
                # One wide panel costs less than four narrow ones, not less than three.
                width = widest if end - first > 3 * _NARROW else _NARROW
                count = min(width, end - first)
                spans.append((group * group_channels, first, count, width))
                first += count
    starts = np.cumsum([0] + [length * width for *_, width in spans])
    table = [
        (start, width, channel, first, count)
        for start, (channel, first, count, width) in zip(starts[:-1], spans, strict=True)
    ]
    return np.array(table, np.int64).reshape(-1, 5), int(starts[-1])


def _laid_out(weight, places, table, floats):
    """Filters in panels, in memory of so many floats; step k is element places[k] of each."""
    panels = on_lines(np.zeros(floats, np.float32))
    _lay_out(for_kernel(weight).reshape(-1), places, table, panels)
    return panels


@kernel(allocates=False)
def _lay_out(weight, places, table, panels):
    """Filters, flat and one after the other, into panels; step k is element places[k] of each.

    The unused columns of a panel stay what they are: 0.
    """
    length = len(places)
    for p in range(len(table)):
        q, width, _, first, count = table[p]
        for k in range(length):
            for j in range(count):
                panels[q + j] = weight[(first + j) * length + places[k]]
            q += width


def _workspace(function, workspace, needed):
    """Scratch memory: new, or what the caller gave, or a ValueError if that does not fit."""
    if workspace is None:
        return empty(needed, np.float32)
    if workspace.dtype != np.float32 or workspace.ndim != 1 or len(workspace) < needed:
        raise ValueError(
            f"{function}: workspace must be a row of at least {needed} float32, "
            f"got {workspace.dtype} of shape {workspace.shape}"
        )
    return workspace


# ------------------------------------------------------------------------------------- convolution


class Copying(NamedTuple):
    """Whether and how images are copied with their padding.

    Attributes
    ----------
    windows : Windows
    channels : int
    together : int
        Number of images that are copied at a time.
    copies : bool
        Whether images have to be copied before they are read.
    """

    windows: Windows
    channels: int
    together: int
    copies: bool


class Tables(NamedTuple):
    """Laid-out weights, and which numbers they meet: what `sums` reads.

    An output pixel sees the floats at ``first float of the pixel + taps``, in the order of
    summation. So nothing but tables knows of stride, dilation and the width of the image.

    Attributes
    ----------
    panels : (...,) float32
        The weights of all panels, one panel after the other.
    table : (P, 5) int64
        For each panel: its start in ``panels``, its width, the first input channel, the first
        output channel, the number of output channels.
    taps : (L,) int64
        Where the floats under a filter are, counted from the pixel's first float; L is
        kh * kw * C / groups.
    pixels : (OH * OW,) int64
        Where the first float is that an output pixel sees, counted from the image's first.
    image_stride : int
        Floats of an image with its padding.
    outputs : int
        O.
    depthwise : bool
        Whether each channel has one filter of its own (groups = C = O): lane j of a panel then sees
        channel j, where otherwise all lanes see the same channel.
    """

    panels: np.ndarray
    table: np.ndarray
    taps: np.ndarray
    pixels: np.ndarray
    image_stride: int
    outputs: int
    depthwise: bool


@dataclass(frozen=True, eq=False)
class PreparedConv2d:
    """A convolution laid out for images of one size; made by `prepare_conv2d`.

    The sums run through a filter row by row, in a row pixel by pixel, in a pixel channel by
    channel. All but the panels depends on the geometry only. Convolutions of the same geometry
    share it.

    Attributes
    ----------
    input_shape, output_shape : (int, int, int)
        Of an image: (H, W, C) and (OH, OW, O).
    copying : Copying
    tables : Tables
    work : int
        Multiplications an image.
    """

    input_shape: Shape
    output_shape: Shape
    copying: Copying
    tables: Tables
    work: int

    # Read by `fused`, as of binary products.
    kind: ClassVar[str] = "float"
    products: ClassVar[int] = 0
    to_bits: ClassVar[bool] = False

    def workspace_words(self, images: int) -> int:
        """Words of scratch memory for this number of images, at most."""
        return self.workspace_floats(images) // 2 + 1

    def workspace_floats(self, images: int, tasks: int | None = None) -> int:
        """Floats of the ``workspace`` that `conv2d` needs for this number of images, at most."""
        if not self.copying.copies:
            return 0
        tasks = threads.most() if tasks is None else tasks
        # 16 more than the images: the load of a depth-wise pixel's last channels goes beyond it.
        together = min(self.copying.together, max(images, 1))
        return tasks * together * self.tables.image_stride + FLOATS


def prepare_conv2d(
    weight: ArrayLike,
    size: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> PreparedConv2d:
    """Lay out the filters of `conv2d` for images of one size.

    Parameters
    ----------
    weight : (O, C / groups, kh, kw) float32
        Copied: later changes of the array do not reach the prepared convolution.
    size : (int, int)
        Height and width of the images.
    stride, padding, dilation : (int, int)
        Along height and width. `padding` zeros are added on both sides.
    groups : int
        A divisor of O. Output channel o sees the channels of group ``o // (O / groups)``.

    Returns
    -------
    PreparedConv2d

    Raises
    ------
    ValueError
        If a dtype, a shape or a parameter does not fit, or the output would be empty.
    """
    name = "prepare_conv2d"
    weight = np.asarray(weight)
    if weight.dtype != np.float32 or weight.ndim != 4:
        raise ValueError(
            f"{name}: weight must be float32 with 4 axes (O, C / groups, kh, kw), "
            f"got {weight.dtype} of shape {weight.shape}"
        )
    if 0 in weight.shape[1:]:
        raise ValueError(f"{name}: a filter must hold elements, weight has shape {weight.shape}")
    if groups < 1 or len(weight) % groups:
        raise ValueError(
            f"{name}: groups must divide the {len(weight)} output channels, got {groups}"
        )
    of = windows(name, size, weight.shape[2:], stride, padding, dilation)
    places, floats, copying, tables = _tables(of, weight.shape, int(groups), _WIDEST)
    tables = tables._replace(panels=_laid_out(weight, places, tables.table, floats))
    shapes = (*of.size, copying.channels), (*of.out_size, tables.outputs)
    return PreparedConv2d(*shapes, copying, tables, floats * len(tables.pixels))


@functools.lru_cache(maxsize=128)
def _tables(of, shape, groups, widest):
    """All that does not depend on the values of the weights, computed once.

    Returns
    -------
    places : (L,) int64
        Where in a filter (C / groups, kh, kw) each step of the summation finds its weight.
    floats : int
        Length of the panels.
    copying : Copying
    tables : Tables
        Without panels.
    """
    filters, group_channels, *_ = shape
    channels = groups * group_channels
    pixels, taps = of.places(channels)
    taps = np.add.outer(taps, np.arange(group_channels))  # (kh * kw, C / groups)
    places = np.arange(taps.size).reshape(group_channels, of.taps).T  # (kh * kw, C / groups)
    table, floats = _panels_of(filters, groups, group_channels, taps.size, widest)
    depthwise = groups == channels == filters
    # Without padding they are read where they are; only that the last load of a depth-wise image
    # must not go beyond it.
    copies = of.padding != (0, 0) or (depthwise and channels % FLOATS > 0)
    copying = Copying(of, channels, -(-10 * _TOGETHER // len(pixels)), copies)
    tables = Tables(
        None, table, taps.reshape(-1).astype(np.int64), pixels.astype(np.int64),
        math.prod(of.padded_size) * channels, filters, depthwise,
    )  # fmt: skip
    return places.reshape(-1).astype(np.int64), floats, copying, tables


def conv2d(
    prepared: PreparedConv2d,
    x: ArrayLike,
    out: NDArray[np.float32] | None = None,
    workspace: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """2-D convolution (cross-correlation) of float images whose sums run in one fixed order.

    Each output starts at 0 and adds ``image * weight`` for the taps of the filter row by row, in a
    row pixel by pixel, in a pixel channel by channel; the zeros of the padding take part. Each
    product is rounded before it is added. So it equals, bit for bit, `ordered_matmul` of the matrix
    of patches, whatever the batch, the number of threads and the CPU.

    Parameters
    ----------
    prepared : PreparedConv2d
    x : (N, H, W, C) float32
    out : (N, OH, OW, O) float32, optional
        Contiguous, to be written to.
    workspace : (n,) float32, optional
        Memory for padded images, at least ``prepared.workspace_floats(N)`` floats.

    Returns
    -------
    (N, OH, OW, O) float32
        ``OH = (H + 2 * padding - dilation * (kh - 1) - 1) // stride + 1``, OW likewise.

    Raises
    ------
    ValueError
        If a dtype or a shape does not fit.
    """
    x = np.asarray(x)
    if x.dtype != np.float32 or x.ndim != 4 or x.shape[1:] != prepared.input_shape:
        expected = ", ".join(map(str, ("N", *prepared.input_shape)))
        raise ValueError(
            f"conv2d: x must be float32 of shape ({expected}), got {x.dtype} of shape {x.shape}"
        )
    images = len(x)
    out = out_array("conv2d", out, (images, *prepared.output_shape))
    if out.size == 0:
        return out
    tasks = threads.tasks_for(images * prepared.work / _SPEED)
    needed = prepared.workspace_floats(images, tasks)
    workspace = _workspace("conv2d", workspace, needed)
    copying, tables = prepared.copying, prepared.tables
    items = images * len(tables.pixels)
    slot = (needed - FLOATS) // tasks if copying.copies else 0
    arguments = for_kernel(x).reshape(-1), workspace, copying, tables, out.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):  # as compiled code, when the JIT is off
        parallel.share_out(_conv2d, parallel.shares(items, tasks), slot, *arguments)
    return out


def conv2d_reference(
    x: FloatArray,
    weight: FloatArray,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> FloatArray:
    """What :func:`conv2d` computes, in plain NumPy: one step of all sums at a time.

    x : (N, H, W, C), weight : (O, C / groups, kh, kw)
    """
    filters, group_channels, *kernel_size = weight.shape
    of = windows("conv2d_reference", x.shape[1:3], kernel_size, stride, padding, dilation)
    grouped = weight.reshape(groups, filters // groups, group_channels, *kernel_size)
    total = np.zeros((len(x), *of.out_size, groups, filters // groups), x.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        for ky, kx, seen in of.views(with_border(x, padding)):
            seen = seen.reshape(*total.shape[:4], group_channels)
            for c in range(group_channels):
                # (N, OH, OW, G, 1) * (G, O / G)
                total += seen[..., c : c + 1] * grouped[:, :, c, ky, kx]
    return total.reshape(len(x), *of.out_size, filters)


@kernel(allocates=False)
def _conv2d(first, end, task, size, source, workspace, copying, tables, out):
    """Output pixels first to end - 1, counted through all images."""
    slot = task * size
    per_image, outputs, together = len(tables.pixels), tables.outputs, copying.together
    if not copying.copies:
        sums(first, end, source, np.int64(0), out, first * outputs, tables)
        return
    # A few images at a time are copied and used while they are in cache.
    for image in range(first // per_image, (end - 1) // per_image + 1, together):
        after = min(image + together, (end - 1) // per_image + 1)
        pad_images(source, image, after, workspace, slot, copying)
        start, stop = max(first, image * per_image), min(end, after * per_image)
        base = slot - image * tables.image_stride
        sums(start, stop, workspace, base, out, start * outputs, tables)


@subkernel
def pad_images(
    source: NDArray[np.float32],
    first: int,
    end: int,
    workspace: NDArray[np.float32],
    slot: int,
    copying: Copying,
) -> None:
    """Copy images first to end - 1 between zeros, to workspace[slot] and what follows.

    Parameters
    ----------
    source : (N * H * W * C,) float32
    first, end : int
    workspace : float32
        With room for ``end - first`` times the prepared convolution's ``image_stride``.
    slot : int
    copying : Copying
    """
    of, channels = copying.windows, copying.channels
    margin, inside = of.left * channels, of.width * channels
    border = of.top * (inside + 2 * margin)
    at, place = slot, first * of.height * inside
    for _ in range(first, end):
        clear(workspace, at, border)
        at += border
        for _ in range(of.height):
            clear(workspace, at, margin)
            copy(source, place, workspace, at + margin, inside)
            clear(workspace, at + margin + inside, margin)
            at += inside + 2 * margin
            place += inside
        clear(workspace, at, border)
        at += border


# ------------------------------------------------------------------------------------ signs, float


@dataclass(frozen=True, eq=False)
class PreparedSigns:
    """Float weights laid out for `signs_matmul`; made by `prepare_signs_matmul`.

    Attributes
    ----------
    words : int
        Words that a row of signs has at least.
    tables : Tables
        A row is an image of one pixel, as long as its words.
    """

    words: int
    tables: Tables


def prepare_signs_matmul(weight: ArrayLike, order: ArrayLike | None = None) -> PreparedSigns:
    """Lay out the weights of `signs_matmul`.

    Parameters
    ----------
    weight : (O, K) float32
        Copied.
    order : (K,) int64, optional
        ``order[k]`` is the bit of a row that meets ``weight[:, k]``, the k-th to be added; k itself
        if not given. A flattened image has its bits pixel by pixel, each pixel padded to whole
        words, while its weights and the sum run channel by channel.

    Returns
    -------
    PreparedSigns

    Raises
    ------
    ValueError
        If a dtype or a shape does not fit, or K is 0.
    """
    name = "prepare_signs_matmul"
    weight = np.asarray(weight)
    if weight.dtype != np.float32 or weight.ndim != 2 or weight.shape[1] == 0:
        raise ValueError(
            f"{name}: weight must be float32 of shape (O, K), K > 0, "
            f"got {weight.dtype} of shape {weight.shape}"
        )
    outputs, count = weight.shape
    steps = np.arange(count)
    order = steps if order is None else np.array(order)
    if order.dtype != np.int64 or order.shape != (count,) or order.min() < 0:
        raise ValueError(
            f"{name}: order must be int64 of shape ({count},) and not negative, "
            f"got {order.dtype} of shape {order.shape}"
        )
    table, floats = _panels_of(outputs, 1, count, count, _WIDEST)
    panels, words = _laid_out(weight, steps, table, floats), words_for(int(order.max()) + 1)
    tables = Tables(panels, table, order, np.zeros(1, np.int64), 64 * words, outputs, False)
    return PreparedSigns(words, tables)


def signs_matmul(
    prepared: PreparedSigns,
    words: ArrayLike,
    out: NDArray[np.float32] | None = None,
    workspace: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Product of packed signs with float weights whose sums run in one fixed order.

    ``out[n, o]`` starts at 0 and adds ``sign * weight[o, k]`` for k = 0, 1, 2, ..., where the sign
    is +1 if bit ``order[k]`` of row n is 1, and -1 if it is 0. A sign times a float is exact, so
    this equals `ordered_matmul` of the unpacked signs, bit for bit, with nothing unpacked but the
    few rows in work.

    Parameters
    ----------
    prepared : PreparedSigns
    words : (N, W) uint64
        At least ``prepared.words`` words a row.
    out : (N, O) float32, optional
        Contiguous, to be written to.
    workspace : (n,) float32, optional
        Memory for unpacked rows, at least `signs_floats` of N and W floats.

    Returns
    -------
    (N, O) float32

    Raises
    ------
    ValueError
        If a dtype or a shape does not fit.
    """
    words = np.asarray(words)
    if words.dtype != np.uint64 or words.ndim != 2 or words.shape[1] < prepared.words:
        raise ValueError(
            f"signs_matmul: words must be uint64 of shape (N, {prepared.words} or more), "
            f"got {words.dtype} of shape {words.shape}"
        )
    rows, row_words = words.shape
    out = out_array("signs_matmul", out, (rows, prepared.tables.outputs))
    if out.size == 0:
        return out
    stride = _row_floats(row_words)
    tasks = min(threads.tasks_for(rows * len(prepared.tables.panels) / _SPEED), rows)
    needed = tasks * _TOGETHER * stride
    scratch = _workspace("signs_matmul", workspace, needed)[:needed]
    tables = prepared.tables._replace(image_stride=stride)
    arguments = for_kernel(words).reshape(-1), row_words, scratch, tables, out.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        parallel.share_out(_signs_matmul, parallel.shares(rows, tasks), *arguments)
    return out


def signs_floats(rows: int, row_words: int) -> int:
    """Floats of the ``workspace`` that `signs_matmul` needs, at most."""
    return min(threads.most(), max(rows, 1)) * _TOGETHER * _row_floats(row_words)


def _row_floats(row_words):
    """Floats from one unpacked row to the next: a cache line more than it is long.

    A power of two between rows would put the floats of all into the same few places of the cache.
    """
    return 64 * row_words + FLOATS


def signs_matmul_reference(
    words: Words, weight: FloatArray, order: NDArray[np.int64] | None = None
) -> FloatArray:
    """What :func:`signs_matmul` computes, in plain NumPy.

    words : (N, W) uint64, weight : (O, K)
    """
    order = np.arange(weight.shape[1]) if order is None else order
    signs = unpack_reference(words, 64 * words.shape[1])[:, order]  # (N, K)
    return ordered_matmul_reference(signs.astype(weight.dtype), weight.T)


@kernel(allocates=False)
def _signs_matmul(first, end, task, words, row_words, scratch, tables, out):
    """Rows first to end - 1: a few at a time become floats +1 and -1."""
    stride, outputs = tables.image_stride, tables.outputs
    slot = task * _TOGETHER * stride
    for start in range(first, end, _TOGETHER):
        stop = min(start + _TOGETHER, end)
        for row in range(start, stop):
            at = slot + (row - start) * stride
            for i in range(row * row_words, (row + 1) * row_words):
                for shift in range(0, 64, FLOATS):
                    store(scratch, at, _signs(words[i] >> np.uint64(shift)))
                    at += FLOATS
        sums(start, stop, scratch, slot - start * stride, out, start * outputs, tables)


def _signs(word):
    """16 floats: +1 where a bit of the 16 lowest bits is 1, -1 where it is 0."""
    bits = word >> np.arange(FLOATS, dtype=np.uint64) & np.uint64(1)
    return np.where(bits, 1, -1).astype(np.float32)


@intrinsic
def _select_signs(typing, floats, word):
    """The bits as the mask of 16 lanes. ``floats`` only gives the type of the result."""

    def generate(context, builder, signature, arguments):
        lanes = context.get_value_type(floats)
        bits = builder.trunc(arguments[1], ir.IntType(FLOATS))
        mask = builder.bitcast(bits, ir.VectorType(ir.IntType(1), FLOATS))
        plus, minus = (ir.Constant(lanes, [value] * FLOATS) for value in (1.0, -1.0))
        return builder.select(mask, plus, minus)

    return floats(floats, types.uint64), generate


@overload(_signs)
def _compiled_signs(word):
    return lambda word: _select_signs(zero_floats(), word)


# ---------------------------------------------------------------------------------- the inner loops

# Multiplication and addition stay two instructions, each of which has two execution units, and an
# addition takes a few cycles before the next one of the same sum can start. 6 pixels × 4 vectors of
# filters are 24 sums that are independent of each other, and the loads of a step, 4 of weights and
# 6 of pixels, serve 48 instructions.


@subkernel
def sums(
    first: int,
    end: int,
    source: NDArray[np.float32],
    base: int,
    out: NDArray[np.float32],
    to: int,
    tables: Tables,
) -> None:
    """The sums of output pixels first to end - 1, for all filters.

    Parameters
    ----------
    first, end : int
        Output pixels, counted through all images.
    source : float32
        Image n begins at ``source[base + n * image_stride]``.
    base : int
        May be negative, where ``source`` does not hold the first images.
    out : float32
        Pixel ``first`` is written to ``out[to]`` and the following, with one float a filter; the
        other pixels follow it.
    to : int
    tables : Tables
    """
    panels, table, taps, pixels, image_stride, outputs, depthwise = tables
    per_image = len(pixels)
    for start in range(first, end, _PART):
        stop = min(start + _PART, end)
        for p in range(len(table)):
            q, width, channel, filter_, count = table[p]
            place = base + channel, image_stride, pixels
            image, pixel = start // per_image, start % per_image
            for i in range(start, stop, _TOGETHER):
                # The last block may have fewer pixels: it computes its last one several times.
                more = stop - 1 - i
                a0, image, pixel = _where(image, pixel, more > 0, place)
                a1, image, pixel = _where(image, pixel, more > 1, place)
                a2, image, pixel = _where(image, pixel, more > 2, place)
                a3, image, pixel = _where(image, pixel, more > 3, place)
                a4, image, pixel = _where(image, pixel, more > 4, place)
                a5, image, pixel = _where(image, pixel, more > 5, place)
                places = a0, a1, a2, a3, a4, a5
                t0, last = to + (i - first) * outputs + filter_, min(more, 5)
                targets = (
                    t0, t0 + min(last, 1) * outputs, t0 + min(last, 2) * outputs,
                    t0 + min(last, 3) * outputs, t0 + min(last, 4) * outputs, t0 + last * outputs,
                )  # fmt: skip
                if depthwise:
                    tile = _channelwise(six(zero_floats()), places, source, taps, panels, q)
                    store_tile(tile, targets, out, count)
                elif width == _NARROW and more == 0:
                    tile = _dense((zero_floats(),), (a0,), source, taps, panels, q)
                    store_tile(tile, (t0,), out, count)
                elif width == _NARROW:
                    tile = _dense(six(zero_floats()), places, source, taps, panels, q)
                    store_tile(tile, targets, out, count)
                elif more == 0:
                    tile = _dense((zeros(_WIDE),), (a0,), source, taps, panels, q)
                    store_tile(tile, (t0,), out, count)
                else:
                    tile = _dense(six(zeros(_WIDE)), places, source, taps, panels, q)
                    store_tile(tile, targets, out, count)


@inlined
def _where(image, pixel, more, place):
    """An output pixel's first float; and the pixel that follows if there is one more."""
    start, image_stride, pixels = place
    address = start + image * image_stride + pixels[pixel]
    is_last = pixel + 1 == len(pixels)
    if not more:
        return address, image, pixel
    return address, image + is_last, 0 if is_last else pixel + 1


@inlined
def _dense(tile, places, source, taps, panels, q):
    """The sums of some pixels with the filters of a panel."""
    for j in range(len(taps)):
        tile = add_products(tile, places, source, taps[j], load_like(panels, q, tile[0]))
        q += len(tile[0])
    return tile


@inlined
def _channelwise(tile, places, source, taps, panels, q):
    """The same for 16 channels with a filter each."""
    for j in range(len(taps)):
        tile = add_lane_products(tile, places, source, taps[j], load(panels, q))
        q += _NARROW
    return tile
