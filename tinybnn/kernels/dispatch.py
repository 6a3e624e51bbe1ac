"""Which kernel computes which formula, and for which arrays: the one place that decides it.

A formula (`functional`, `quantizers`) is plain NumPy. Its first line asks the function of this file
that has the kernel's name; the answer is the kernel's result, or None where the formula is to be
evaluated as it stands. Arrays of float64, and Tensors, which record a rule, always get None.

==================== =========================== ==================================================
here                 stands in for               arrays that it takes; why
==================== =========================== ==================================================
conv2d               Conv2d.forward              float32: no matrix of patches is written to memory
conv2d_input         ConvInput.forward           (the same)
conv2d_weight        ConvWeight.forward          (the same)
ordered_conv2d       Conv2d.forward, fixed order float32: sums in one order, without patches
ordered_matmul       products in fixed order     all: BLAS's order depends on the batch
adapted_conv2d       AdaptedConv2d.forward       float32 and `MUCH` work, groups of one channel or
                                                 one group: both sums on bits and what is made of
                                                 them in one pass
normalise_batch      BatchNorm.forward, training channels-last float32: one pass for two sums
normalise            BatchNorm.forward, eval     the same, of 128 numbers or more: one pass for four
batch_norm_gradients BatchNorm.backward          channels-last float32, the gradient in any order
two_lines            PReLU, RPReLU, Maxout, ...  channels-last float32 that are `FEW` or more; of
two_lines_gradient   their gradients             others the kernel's plain reference, which sums in
two_values           RSign, AdaptedSet           float64 as the kernel does: one pass for up to
two_values_gradient  their gradients             eight, and sums for all constants in it
leaky_relu           LeakyRelu.forward           float32 in one order in memory, `FEW` or more: one
leaky_relu_gradient  LeakyRelu.backward          pass over memory for two or three
gated_gradient       Relu, Hardtanh, SteSign     (the same)
tent_gradient        ApproxSign                  (the same)
sign                 quantizers.sign             (the same)
max_pool2d           MaxPool2d.forward           channels-last float32: a pass for one a tap, and
max_unpool2d         MaxUnpool2d.forward         the winners of windows of up to 255 pixels as bytes
avg_pool2d           AvgPool2d.forward           (the same, without winners)
avg_unpool2d         AvgUnpool2d.forward         (the same)
take_channels        TakeChannels.forward        channels-last float32: runs of channels are copied
add_channels         AddChannels.forward         (the same)
cross_entropy        CrossEntropy.forward        float32 of up to `MANY` logits: one call for twenty
==================== =========================== ==================================================

The bits are the formula's, but for the order of float sums. Kernels are imported after the arrays
were looked at: Numba takes its time. Products of signs decide for themselves, by the amount of work
(`functional.binary`), and so do optimizers.
"""

from __future__ import annotations

import functools
import math
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tinybnn.kernels.machine import layout
from tinybnn.kernels.machine.memory import empty

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tinybnn.typing import Array, Shape

FEW = 4096  # numbers; of fewer NumPy is done before a kernel is called
MANY = 1 << 14  # logits; of more NumPy's vectors are faster
MUCH = 1 << 22  # products; of fewer the preparation costs more than floats


class ConvolutionGeometry(Protocol):
    """Sizes of a convolution: `functional.convolution.Geometry`, without its batches.

    Attributes
    ----------
    image : (N, C, H, W)
    weight : (O, C / groups, kh, kw)
    output : (OH, OW)
    groups : int
    options : dict
        "stride", "padding", "dilation", "groups".
    """

    image: Shape
    weight: Shape
    output: tuple[int, int]
    groups: int

    @property
    def options(self) -> dict[str, Any]: ...


class PoolingWindows(Protocol):
    """Sizes of a pooling layer.

    Attributes
    ----------
    shape : (N, C, H, W)
        Shape of the image.
    size : int
        Pixels of a window.
    geometry : (kernel, stride, padding), pairs of int
    """

    shape: Shape

    @property
    def size(self) -> int: ...
    @property
    def geometry(self) -> tuple[tuple[int, int], ...]: ...


# -------------------------------------------------------------------------------------- convolution


def conv2d(x: Array, weight: Array, geometry: ConvolutionGeometry) -> Array | None:
    """(N, C, H, W), (O, C / groups, kh, kw) -> (N, O, OH, OW)."""
    if not (x.dtype == weight.dtype == np.float32 and len(x)):
        return None
    from tinybnn.kernels.floats import convolution

    options = geometry.options | {"output_size": geometry.output}
    return _as_image(convolution.conv2d(_pixels(x), weight, **options))


def conv2d_input(
    grad: NDArray[np.float32], weight: Array, geometry: ConvolutionGeometry
) -> Array | None:
    """(N, O, OH, OW), (O, C / groups, kh, kw) -> (N, C, H, W)."""
    if not grad.dtype == weight.dtype == np.float32:
        return None
    from tinybnn.kernels.floats import convolution

    size = geometry.image[2:]
    return _as_image(convolution.conv2d_input(_pixels(grad), weight, size, **geometry.options))


def conv2d_weight(
    x: Array, grad: NDArray[np.float32], geometry: ConvolutionGeometry
) -> Array | None:
    """(N, C, H, W), (N, O, OH, OW) -> (O, C / groups, kh, kw)."""
    if not x.dtype == grad.dtype == np.float32:
        return None
    from tinybnn.kernels.floats import convolution

    taps = geometry.weight[2:]
    return convolution.conv2d_weight(_pixels(x), _pixels(grad), taps, **geometry.options)


def ordered_conv2d(x: Array, weight: Array, geometry: ConvolutionGeometry) -> Array | None:
    """As `conv2d`, with each sum in the order of a patch: row by row, pixel by pixel."""
    if np.result_type(x, weight) != np.float32 or not len(x):
        return None
    from tinybnn.kernels.floats import ordered

    x, weight = x.astype(np.float32, copy=False), weight.astype(np.float32, copy=False)
    prepared = ordered.prepare_conv2d(weight, x.shape[2:], **geometry.options)
    return _as_image(ordered.conv2d(prepared, x.transpose(0, 2, 3, 1)))


def ordered_matmul(a: Array, b: Array) -> Array:
    """(M, K) @ (K, N), or (G, M, K) @ (G, K, N), with each sum in the order of its terms."""
    from tinybnn.kernels.floats import ordered_matmul

    dtype = np.result_type(a, b)
    a, b = a.astype(dtype, copy=False), b.astype(dtype, copy=False)
    if a.ndim == 2:
        return ordered_matmul.ordered_matmul(a, b)
    if len(a) == 1:
        return ordered_matmul.ordered_matmul(a[0], b[0])[None]
    return np.stack([ordered_matmul.ordered_matmul(*pair) for pair in zip(a, b, strict=True)])


def adapted_conv2d(
    s: Array,
    v: Array,
    scales: Array,
    offsets: Array,
    constant: Array,
    scale: Array,
    geometry: ConvolutionGeometry,
) -> Array | None:
    """scale (scales Σ s v + offsets Σ s + constant), of signs s and v (AdaBin).

    Parameters
    ----------
    s : (N, C, H, W)
    v : (O, C / groups, kh, kw)
    scales, offsets : (O, 1, 1)
    constant : (O, OH, OW) or (O, 1, 1)
    scale : (1,)
    """
    filters, _, *taps = v.shape
    is_depthwise = geometry.groups == filters == geometry.image[1] > 1
    is_large = v.size * len(s) * math.prod(geometry.output) >= MUCH
    fits = s.dtype == v.dtype == np.float32 and (is_depthwise or geometry.groups == 1)
    if not (is_large and fits):
        return None
    from tinybnn.kernels.floats import fused, pointwise
    from tinybnn.kernels.signs import bits, depthwise

    if is_depthwise and math.prod(taps) > depthwise.MAX_TAPS:
        return None
    shape = *geometry.output, filters
    program = pointwise.prepare(
        shape, ["sums", "sums" if is_depthwise else "pixels"],
        [
            ("mul", 0, scales.reshape(-1)), ("mul", 1, offsets.reshape(-1)), ("add", 2, 3),
            ("add", 4, constant.transpose(1, 2, 0)), ("mul", 5, scale),
        ],
        [("floats", 6)],
    )  # fmt: skip
    of_v, of_ones = _product_of_signs(v, geometry), _product_of_ones(geometry)
    words, out = bits.pack(s.transpose(0, 2, 3, 1)), empty((len(s), *shape), np.float32)
    fused.run(fused.prepare([of_v, of_ones], program), [words, words], [out])
    return _as_image(out)


def _product_of_signs(v, geometry):
    """Σ s v on bits, prepared, for v (O, C / groups, kh, kw) with one group or C = O groups."""
    from tinybnn.kernels.signs import bits, depthwise, xnor

    options, (_, channels, *size) = geometry.options, geometry.image
    if options["groups"] == 1:
        return xnor.prepare_conv2d(bits.pack(v.transpose(0, 2, 3, 1)), channels, size, **options)
    del options["groups"]
    return depthwise.prepare(bits.pack(v[:, 0].transpose(1, 2, 0)), channels, size, **options)


@functools.lru_cache(maxsize=256)  # a layer in training asks at each step
def _product_of_ones(geometry):
    """Σ s on bits, prepared: one filter for each group."""
    return _product_of_signs(np.ones((geometry.groups, *geometry.weight[1:]), np.float32), geometry)


# ------------------------------------------------------------------------------------ normalisation


def normalise_batch(x: Array, weight: Array, bias: Array, eps: float) -> tuple[Array, ...] | None:
    """x (N, C, ...) normalised by its own statistics; and mean, variance and scale, (C,) each."""
    rows = layout.channel_rows(x)
    if rows is None or not weight.dtype == bias.dtype == np.float32:
        return None
    result, *statistics = _kernels().normalization.forward(rows, weight, bias, eps)
    return layout.image(result, x.shape), *statistics


def normalise(x: Array, mean: Array, scale: Array, weight: Array, bias: Array) -> Array | None:
    """(x - mean) * scale * weight + bias for each channel of x (N, C, ...)."""
    rows = layout.channel_rows(x)
    if rows is None or not weight.dtype == bias.dtype == np.float32:
        return None
    kernels = _kernels().normalization
    if not kernels.fits(rows):
        return None
    return layout.image(kernels.normalise(rows, mean, scale, weight, bias), x.shape)


def batch_norm_gradients(
    grad: NDArray[np.float32], x: Array, mean: Array, scale: Array, weight: Array
) -> tuple[Array, ...] | None:
    """Gradients in x (N, C, ...), weight and bias, where the statistics are those of x."""
    is_array = isinstance(grad, np.ndarray) and isinstance(x, np.ndarray)
    if not (is_array and grad.dtype == weight.dtype == np.float32):
        return None
    rows = layout.channel_rows(x)
    if rows is None:
        return None
    grad_rows = layout.channel_rows(layout.channels_last(grad))
    of_x, *sums = _kernels().normalization.backward(grad_rows, rows, mean, scale, weight)
    return layout.image(of_x, x.shape), *sums


# -------------------------------------------------------------------------------------- activations


def two_lines(x: Array, constants: Sequence[Any]) -> Array:
    """u > 0 ? positive u : negative u, plus offset, with u = x - shift.

    Parameters
    ----------
    x : (N, C, ...)
    constants : shift, positive, negative and offset, each a number or (C,)
    """
    of = _kernels().activations
    return _by_channel(of.two_lines, of.two_lines_reference, constants, x)


def two_lines_gradient(
    grad: NDArray[np.float32], x: Array, constants: Sequence[Any]
) -> tuple[Array, Array]:
    """The gradient in x, and what the kernel sums up for the constants, (4, C)."""
    of = _kernels().activations
    kernels = of.two_lines_gradient, of.two_lines_gradient_reference
    return _by_channel(*kernels, constants, grad, x)


def two_values(x: Array, constants: Sequence[Any]) -> Array:
    """High where (x - threshold) / width >= 0, else low.

    Parameters
    ----------
    x : (N, C, ...)
    constants : threshold, width, low and high, each a number or (C,)
    """
    of = _kernels().activations
    return _by_channel(of.two_values, of.two_values_reference, constants, x)


def two_values_gradient(
    grad: NDArray[np.float32], x: Array, constants: Sequence[Any]
) -> tuple[Array, Array]:
    """The gradient in x, and what the kernel sums up for the constants, (4, C)."""
    of = _kernels().activations
    kernels = of.two_values_gradient, of.two_values_gradient_reference
    return _by_channel(*kernels, constants, grad, x)


def leaky_relu(x: Array, slope: float) -> Array | None:
    """x where x > 0, else slope * x."""
    rows = _numbers(x)
    return rows and layout.like(x, _kernels().activations.leaky_relu(*rows, slope))


def leaky_relu_gradient(grad: NDArray[np.float32], x: Array, slope: float) -> Array | None:
    """grad where x > 0, else slope * grad."""
    rows = _numbers(grad, x)
    return rows and layout.like(x, _kernels().activations.leaky_relu_gradient(*rows, slope))


# --------------------------------------------------------------------------- signs and their slopes


def sign(x: Array) -> Array | None:
    """+1 where x >= 0, else -1."""
    rows = _numbers(x)
    return rows and layout.like(x, _kernels().straight_through.sign(*rows))


def gated_gradient(grad: NDArray[np.float32], x: Array, low: float, high: float) -> Array | None:
    """grad * (low <= x <= high)."""
    rows = _numbers(grad, x)
    return rows and layout.like(x, _kernels().straight_through.gated_gradient(*rows, low, high))


def tent_gradient(grad: NDArray[np.float32], x: Array) -> Array | None:
    """grad * (2 - 2 |x|) where |x| <= 1, else 0."""
    rows = _numbers(grad, x)
    return rows and layout.like(x, _kernels().straight_through.tent_gradient(*rows))


# ----------------------------------------------------------------------------- pooling and channels


def max_pool2d(x: Array, windows: PoolingWindows) -> tuple[Array, Array] | None:
    """(N, C, H, W) -> (N, C, OH, OW), and which pixel of its window each one is, as bytes."""
    images = layout.channels_inside(x)
    if images is None or windows.size > _kernels().float_pooling.MOST_TAPS:
        return None
    result, winner = _kernels().float_pooling.max_pool2d(images, windows.geometry)
    return _as_image(result), _as_image(winner)


def max_unpool2d(x: Array, windows: PoolingWindows, winner: Array) -> Array | None:
    """(N, C, OH, OW) -> (N, C, H, W): each value at the pixel that won its window."""
    images, won = layout.channels_inside(layout.channels_last(x)), winner.transpose(0, 2, 3, 1)
    if images is None or won.dtype != np.uint8 or not won.flags.carray:
        return None
    unpool = _kernels().float_pooling.max_unpool2d
    return _as_image(unpool(images, won, windows.shape[2:], windows.geometry))


def avg_pool2d(x: Array, windows: PoolingWindows) -> Array | None:
    """(N, C, H, W) -> (N, C, OH, OW)."""
    images = layout.channels_inside(x)
    if images is None:
        return None
    return _as_image(_kernels().float_pooling.avg_pool2d(images, windows.geometry))


def avg_unpool2d(x: Array, windows: PoolingWindows) -> Array | None:
    """(N, C, OH, OW) -> (N, C, H, W)."""
    images = layout.channels_inside(layout.channels_last(x))
    if images is None:
        return None
    unpool = _kernels().float_pooling.avg_unpool2d
    return _as_image(unpool(images, windows.shape[2:], windows.geometry))


def take_channels(x: Array, index: NDArray[np.integer[Any]]) -> Array | None:
    """(N, C, H, W) -> (N, len(index), H, W)."""
    images = layout.channels_inside(x)
    if images is None:
        return None
    out = empty((*images.shape[:3], len(index)), np.float32)
    return _as_image(_kernels().channel_order.take_channels(images, index, out))


def add_channels(x: Array, index: NDArray[np.integer[Any]], channels: int) -> Array | None:
    """(N, len(index), H, W) -> (N, channels, H, W)."""
    images = layout.channels_inside(x)
    if images is None:
        return None
    out = empty((*images.shape[:3], channels), np.float32)
    return _as_image(_kernels().channel_order.add_channels(images, index, out))


# ------------------------------------------------------------------------------------------- losses


def cross_entropy(x: Array, labels: Array, smoothing: float) -> tuple[Array, Array] | None:
    """Losses (N,) of logits (N, classes), and their slopes, softmax(x) - q, in float32."""
    if x.dtype != np.float32 or x.size > MANY:
        return None
    return _kernels().losses.cross_entropy(x, labels, smoothing)


# ------------------------------------------------------------------------------- arrays for kernels


@functools.cache
def _kernels():
    """The modules of `training`, imported when one is needed first: Numba takes its time."""
    from tinybnn.kernels.training import (
        activations,
        channel_order,
        float_pooling,
        losses,
        normalization,
        straight_through,
    )

    return SimpleNamespace(
        activations=activations, channel_order=channel_order, float_pooling=float_pooling,
        losses=losses, normalization=normalization, straight_through=straight_through,
    )  # fmt: skip


def _numbers(*arrays):
    """Arrays of one shape as rows of numbers in one order; None of a few, or of Tensors."""
    if not isinstance(arrays[0], np.ndarray) or arrays[0].size < FEW:
        return None
    return layout.flat(*arrays)


def _by_channel(kernel, reference, constants, *images):
    """What one of both makes of images as rows of channels and a table (4, C), as images."""
    x = images[-1]
    rows = [layout.channel_rows(a) for a in images]
    if x.size < FEW or any([r is None for r in rows]):
        rows, kernel = [np.moveaxis(a, 1, -1).reshape(-1, a.shape[1]) for a in images], reference
    table = np.empty((len(constants), x.shape[1]), x.dtype)
    for target, row in zip(table, constants, strict=True):
        target[...] = row
    found = kernel(*rows, table)
    values, *sums = found if isinstance(found, tuple) else (found,)
    samples, channels, *size = x.shape
    image = np.moveaxis(values.reshape(samples, *size, channels), -1, 1)
    return (image, *sums) if sums else image


def _pixels(x):
    """(N, C, H, W) -> (N, H, W, C), contiguous: a view, if that is how it lies in memory."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def _as_image(pixels):
    """(N, H, W, C) -> (N, C, H, W), a view."""
    return pixels.transpose(0, 3, 1, 2)
