"""Float sums in a fixed order, reproducible bit for bit.

Floating-point addition is not associative: a sum changes with the order of its terms, and a BLAS
library chooses the order by the shapes of the matrices, the number of threads and the CPU. Where
two paths must agree bit for bit, such as the eval mode of a model and its packed form in their
first and last layers, the order has to be fixed. It is ascending k, and each product is rounded
before it is added.

Three products use this order:

- `ordered_matmul.ordered_matmul`, floats with floats;
- `conv2d`, the convolution of float images: a first layer. It is direct, without a matrix of
  patches;
- `signs_matmul`, packed signs with float weights: a last layer.

The last two use weights that `prepare_conv2d` and `prepare_signs_matmul` lay out once, and share
one inner loop, `ordered_sums.sums`. Each function has a reference, ``*_reference``, that computes
the same in plain NumPy.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, overload

from tinybnn.kernels.floats.ordered_matmul import ordered_matmul_reference
from tinybnn.kernels.floats.ordered_sums import (
    NARROW,
    TOGETHER,
    WIDE,
    Tables,
    laid_out,
    panels_of,
    sums,
)
from tinybnn.kernels.machine import parallel, threads
from tinybnn.kernels.machine.checks import out_array
from tinybnn.kernels.machine.layout import for_kernel
from tinybnn.kernels.machine.memory import empty
from tinybnn.kernels.machine.simd import (
    FLOATS,
    clear,
    copy,
    cpu_features,
    kernel,
    store,
    subkernel,
    zero_floats,
)
from tinybnn.kernels.machine.windows import Windows, windows, with_border
from tinybnn.kernels.signs.bits import unpack_reference, words_for

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from tinybnn.typing import FloatArray, Shape, Words

_SPEED = 1e11  # multiplications per second on a fast core

# 6 pixels × 64 filters are sums for 24 of the 32 registers of AVX-512; others have 16.
_WIDEST = WIDE if "avx512f" in cpu_features() else NARROW


def _workspace(function, workspace, needed):
    """Return the caller's scratch memory, or new memory; a ValueError if it does not match."""
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
        Number of images copied at a time.
    copies : bool
        Whether images have to be copied before they are read.
    """

    windows: Windows
    channels: int
    together: int
    copies: bool


@dataclass(frozen=True, eq=False)
class PreparedConv2d:
    """A convolution laid out for images of one size; made by `prepare_conv2d`.

    The sums run through a filter row by row, in a row pixel by pixel, in a pixel channel by
    channel. Everything except the panels depends on the geometry alone, and convolutions of the
    same geometry share it.

    Attributes
    ----------
    input_shape, output_shape : (int, int, int)
        Shapes of an image: (H, W, C) and (OH, OW, O).
    copying : Copying
    tables : Tables
    work : int
        Multiplications per image.
    """

    input_shape: Shape
    output_shape: Shape
    copying: Copying
    tables: Tables
    work: int

    # `fused` reads these of every product.
    kind: ClassVar[str] = "float"
    products: ClassVar[int] = 0
    to_bits: ClassVar[bool] = False

    def workspace_words(self, images: int) -> int:
        """Return the most words of scratch memory that this number of images needs."""
        return self.workspace_floats(images) // 2 + 1

    def workspace_floats(self, images: int, tasks: int | None = None) -> int:
        """Return the most floats of ``workspace`` that `conv2d` needs for this number of images."""
        if not self.copying.copies:
            return 0
        tasks = threads.most() if tasks is None else tasks
        # 16 more than the images: loading a depth-wise pixel's last channels reads beyond it.
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
        Copied, so later changes to the array have no effect.
    size : (int, int)
        Height and width of the images.
    stride, padding, dilation : (int, int)
        Along height and width. ``padding`` zeros are added on both sides.
    groups : int
        Divides O. Output channel o sees the channels of group ``o // (O / groups)``.

    Returns
    -------
    PreparedConv2d

    Raises
    ------
    ValueError
        If a dtype, a shape or a parameter does not match, or the output would be empty.
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
    window = windows(name, size, weight.shape[2:], stride, padding, dilation)
    places, floats, copying, tables = _tables(window, weight.shape, int(groups), _WIDEST)
    tables = tables._replace(panels=laid_out(weight, places, tables.table, floats))
    shapes = (*window.size, copying.channels), (*window.out_size, tables.outputs)
    return PreparedConv2d(*shapes, copying, tables, floats * len(tables.pixels))


@functools.lru_cache(maxsize=128)
def _tables(window, shape, groups, widest):
    """Compute and cache the part that does not depend on the values of the weights.

    Returns
    -------
    places : (L,) int64
        Index in a filter (C / groups, kh, kw) of the weight of each summation step.
    floats : int
        Length of the panels.
    copying : Copying
    tables : Tables
        Without panels.
    """
    filters, group_channels, *_ = shape
    channels = groups * group_channels
    pixels, taps = window.places(channels)
    taps = np.add.outer(taps, np.arange(group_channels))  # (kh * kw, C / groups)
    places = np.arange(taps.size).reshape(group_channels, window.taps).T  # (kh * kw, C / groups)
    table, floats = panels_of(filters, groups, group_channels, taps.size, widest)
    depthwise = groups == channels == filters
    # Without padding, images are read in place, unless loading a depth-wise image's last channels
    # would read beyond it.
    copies = window.padding != (0, 0) or (depthwise and channels % FLOATS > 0)
    copying = Copying(window, channels, -(-10 * TOGETHER // len(pixels)), copies)
    tables = Tables(
        None, table, taps.reshape(-1).astype(np.int64), pixels.astype(np.int64),
        math.prod(window.padded_size) * channels, filters, depthwise,
    )  # fmt: skip
    return places.reshape(-1).astype(np.int64), floats, copying, tables


def conv2d(
    prepared: PreparedConv2d,
    x: ArrayLike,
    out: NDArray[np.float32] | None = None,
    workspace: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Convolve float images in 2-D (cross-correlation), with all sums in one fixed order.

    Each output starts at 0 and adds ``image * weight`` for the taps of the filter row by row, in a
    row pixel by pixel, in a pixel channel by channel, including the zeros of the padding. Each
    product is rounded before it is added. So the result equals, bit for bit, `ordered_matmul` of
    the matrix of patches, whatever the batch, the number of threads and the CPU.

    Parameters
    ----------
    prepared : PreparedConv2d
    x : (N, H, W, C) float32
    out : (N, OH, OW, O) float32, optional
        Contiguous array for the result.
    workspace : (n,) float32, optional
        Memory for padded images, at least ``prepared.workspace_floats(N)`` floats.

    Returns
    -------
    (N, OH, OW, O) float32
        ``OH = (H + 2 * padding - dilation * (kh - 1) - 1) // stride + 1``, OW likewise.

    Raises
    ------
    ValueError
        If a dtype or a shape does not match.
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
    """Compute :func:`conv2d` in plain NumPy: one step of all sums at a time.

    x : (N, H, W, C), weight : (O, C / groups, kh, kw) -> (N, OH, OW, O); any float dtype
    """
    filters, group_channels, *kernel_size = weight.shape
    window = windows("conv2d_reference", x.shape[1:3], kernel_size, stride, padding, dilation)
    grouped = weight.reshape(groups, filters // groups, group_channels, *kernel_size)
    total = np.zeros((len(x), *window.out_size, groups, filters // groups), x.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        for ky, kx, pixels in window.views(with_border(x, padding)):
            pixels = pixels.reshape(*total.shape[:4], group_channels)
            for c in range(group_channels):
                # (N, OH, OW, G, 1) * (G, O / G)
                total += pixels[..., c : c + 1] * grouped[:, :, c, ky, kx]
    return total.reshape(len(x), *window.out_size, filters)


@kernel(allocates=False)
def _conv2d(first, end, task, size, source, workspace, copying, tables, out):
    """Compute output pixels first to end - 1, numbered across all images."""
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
    """Copy images first to end - 1, surrounded by zeros, to workspace[slot] and following.

    Parameters
    ----------
    source : (N * H * W * C,) float32
    first, end : int
    workspace : (...,) float32
        With room for ``end - first`` times the prepared convolution's ``image_stride``.
    slot : int
    copying : Copying
    """
    window, channels = copying.windows, copying.channels
    margin, inside = window.left * channels, window.width * channels
    border = window.top * (inside + 2 * margin)
    at, place = slot, first * window.height * inside
    for _ in range(first, end):
        clear(workspace, at, border)
        at += border
        for _ in range(window.height):
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
        Least number of words in a row of signs.
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
        ``order[k]`` is the bit of a row that ``weight[:, k]`` multiplies in the k-th addition;
        default: k. A flattened image has its bits pixel by pixel, each pixel padded to whole words,
        while its weights and the sum run channel by channel.

    Returns
    -------
    PreparedSigns

    Raises
    ------
    ValueError
        If a dtype or a shape does not match, or K is 0.
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
    table, floats = panels_of(outputs, 1, count, count, _WIDEST)
    panels, words = laid_out(weight, steps, table, floats), words_for(int(order.max()) + 1)
    tables = Tables(panels, table, order, np.zeros(1, np.int64), 64 * words, outputs, False)
    return PreparedSigns(words, tables)


def signs_matmul(
    prepared: PreparedSigns,
    words: ArrayLike,
    out: NDArray[np.float32] | None = None,
    workspace: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Multiply packed signs by float weights, with all sums in one fixed order.

    ``out[n, o]`` starts at 0 and adds ``sign * weight[o, k]`` for k = 0, 1, 2, ..., where the sign
    is +1 if bit ``order[k]`` of row n is 1, and -1 if it is 0. A sign times a float is exact, so
    this equals `ordered_matmul` of the unpacked signs, bit for bit, but unpacks only a few rows at
    a time.

    Parameters
    ----------
    prepared : PreparedSigns
    words : (N, W) uint64
        At least ``prepared.words`` words per row.
    out : (N, O) float32, optional
        Contiguous array for the result.
    workspace : (n,) float32, optional
        Memory for unpacked rows, at least ``signs_floats(N, W)`` floats.

    Returns
    -------
    (N, O) float32

    Raises
    ------
    ValueError
        If a dtype or a shape does not match.
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
    needed = tasks * TOGETHER * stride
    scratch = _workspace("signs_matmul", workspace, needed)[:needed]
    tables = prepared.tables._replace(image_stride=stride)
    arguments = for_kernel(words).reshape(-1), row_words, scratch, tables, out.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        parallel.share_out(_signs_matmul, parallel.shares(rows, tasks), *arguments)
    return out


def signs_floats(rows: int, row_words: int) -> int:
    """Return the most floats of ``workspace`` that `signs_matmul` needs."""
    return min(threads.most(), max(rows, 1)) * TOGETHER * _row_floats(row_words)


def _row_floats(row_words):
    """Return the floats from one unpacked row to the next: its length plus a cache line.

    If the distance were a power of two, all rows would map to the same few cache sets.
    """
    return 64 * row_words + FLOATS


def signs_matmul_reference(
    words: Words, weight: FloatArray, order: NDArray[np.int64] | None = None
) -> FloatArray:
    """Compute :func:`signs_matmul` in plain NumPy.

    words : (N, W) uint64, weight : (O, K) float, order : (K,) int64 -> (N, O)
    """
    order = np.arange(weight.shape[1]) if order is None else order
    signs = unpack_reference(words, 64 * words.shape[1])[:, order]  # (N, K)
    return ordered_matmul_reference(signs.astype(weight.dtype), weight.T)


@kernel(allocates=False)
def _signs_matmul(first, end, task, words, row_words, scratch, tables, out):
    """Compute rows first to end - 1: a few at a time are unpacked to +1.0 and -1.0."""
    stride, outputs = tables.image_stride, tables.outputs
    slot = task * TOGETHER * stride
    for start in range(first, end, TOGETHER):
        stop = min(start + TOGETHER, end)
        for row in range(start, stop):
            at = slot + (row - start) * stride
            for i in range(row * row_words, (row + 1) * row_words):
                for shift in range(0, 64, FLOATS):
                    store(scratch, at, _signs(words[i] >> np.uint64(shift)))
                    at += FLOATS
        sums(start, stop, scratch, slot - start * stride, out, start * outputs, tables)


def _signs(word):
    """Unpack the 16 lowest bits to floats: +1 where a bit is 1, -1 where it is 0."""
    bits = word >> np.arange(FLOATS, dtype=np.uint64) & np.uint64(1)
    return np.where(bits, 1, -1).astype(np.float32)


@intrinsic
def _select_signs(typing, floats, word):
    """Use the bits as a mask of 16 lanes; ``floats`` only determines the type of the result."""

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
