"""Choose the kernel that computes a formula, if one takes the arrays: the only place that decides.

A formula (`functional`, `quantizers`) is plain NumPy. Its first line calls the function of this
file that has the kernel's name, which returns the kernel's result, or None if the formula has to be
evaluated as it is. For arrays of float64, and for Tensors, which record a graph, it always returns
None.

==================== =========================== ==================================================
function             formula                     arrays that it takes; what it gains
==================== =========================== ==================================================
conv2d               Conv2d.forward              float32: no matrix of patches is written to memory
conv2d_input         ConvInput.forward           (the same)
conv2d_weight        ConvWeight.forward          (the same)
ordered_conv2d       Conv2d.forward, fixed order float32: sums in one order, without patches
ordered_matmul       products in fixed order     all: BLAS's order depends on the batch
adapted_conv2d       AdaptedConv2d.forward       float32, at least `MUCH` work, one group or groups
                                                 of one channel: both sums on bits, and their
                                                 combination in the same pass
normalise_batch      BatchNorm.forward, training channels-last float32: one pass for two sums
affine               BatchNorm.forward, eval     the same, at least 128 numbers: one pass for two
normalise            BatchNorm.line              (the same): one pass for four
batch_norm_gradients BatchNorm.backward          channels-last float32, the gradient in any order
two_lines            PReLU, RPReLU, Maxout, ...  channels-last float32, at least `FEW`; others are
two_lines_gradient   their gradients             computed by the kernel's plain reference, which
two_values           RSign, AdaptedSet           sums in float64 as the kernel does: one pass for
two_values_gradient  their gradients             up to eight, including sums for all constants
leaky_relu           LeakyRelu.forward           float32 in one memory order, at least `FEW`: one
leaky_relu_gradient  LeakyRelu.backward          pass over memory for two or three
gated_gradient       Relu, Hardtanh, SteSign     (the same)
tent_gradient        ApproxSign                  (the same)
sign                 quantizers.sign             (the same)
max_pool2d           MaxPool2d.forward           channels-last float32: one pass instead of one per
max_unpool2d         MaxUnpool2d.forward         tap; winners of up to 255 pixels stored as bytes
avg_pool2d           AvgPool2d.forward           (the same, without winners)
avg_unpool2d         AvgUnpool2d.forward         (the same)
take_channels        TakeChannels.forward        channels-last float32: runs of channels are copied
add_channels         AddChannels.forward         (the same)
cross_entropy        CrossEntropy.forward        float32, up to `MANY` logits: one call for twenty
==================== =========================== ==================================================

The bits are the formula's, except for the order of float sums. Kernels are imported only after the
arrays have been checked, because importing Numba takes time. Sign products (`functional.binary`)
and optimizers decide themselves, by the amount of work.
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


FEW = 4096  # numbers; for fewer, NumPy finishes before a kernel is called
MANY = 1 << 14  # logits; for more, NumPy is faster
MUCH = 1 << 22  # products; for fewer, the preparation costs more than float products


# -------------------------------------------------------------------------------------- convolution


def conv2d(x: Array, weight: Array, geometry: ConvolutionGeometry) -> Array | None:
    """Convolve: (N, C, H, W), (O, C / groups, kh, kw) -> (N, O, OH, OW) float32"""
    if not (x.dtype == weight.dtype == np.float32 and len(x)):
        return None
    from tinybnn.kernels.floats import convolution

    options = geometry.options | {"output_size": geometry.output}
    return _as_image(convolution.conv2d(_pixels(x), weight, **options))


def conv2d_input(grad: Array, weight: Array, geometry: ConvolutionGeometry) -> Array | None:
    """Gradient in the image: (N, O, OH, OW), (O, C / groups, kh, kw) -> (N, C, H, W) float32"""
    if not grad.dtype == weight.dtype == np.float32:
        return None
    from tinybnn.kernels.floats import convolution

    size = geometry.image[2:]
    return _as_image(convolution.conv2d_input(_pixels(grad), weight, size, **geometry.options))


def conv2d_weight(x: Array, grad: Array, geometry: ConvolutionGeometry) -> Array | None:
    """Gradient in the weight: (N, C, H, W), (N, O, OH, OW) -> (O, C / groups, kh, kw) float32"""
    if not x.dtype == grad.dtype == np.float32:
        return None
    from tinybnn.kernels.floats import convolution

    taps = geometry.weight[2:]
    return convolution.conv2d_weight(_pixels(x), _pixels(grad), taps, **geometry.options)


def ordered_conv2d(x: Array, weight: Array, geometry: ConvolutionGeometry) -> Array | None:
    """Convolve as `conv2d`, with each sum in the order of a patch: row by row, pixel by pixel."""
    if np.result_type(x, weight) != np.float32 or not len(x):
        return None
    from tinybnn.kernels.floats import ordered

    x, weight = x.astype(np.float32, copy=False), weight.astype(np.float32, copy=False)
    prepared = ordered.prepare_conv2d(weight, x.shape[2:], **geometry.options)
    return _as_image(ordered.conv2d(prepared, x.transpose(0, 2, 3, 1)))


def ordered_matmul(a: Array, b: Array) -> Array:
    """Multiply (M, K) @ (K, N) or (G, M, K) @ (G, K, N), each sum in the order of its terms."""
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
    """Compute scale (scales Σ s v + offsets Σ s + constant), for signs s and v (AdaBin).

    Parameters
    ----------
    s : (N, C, H, W) float32
    v : (O, C / groups, kh, kw) float32
    scales, offsets : (O, 1, 1) float32
    constant : (O, OH, OW) or (O, 1, 1) float32
    scale : (1,) float32

    Returns
    -------
    (N, O, OH, OW) float32, or None
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
    signs, ones = _product_of_signs(v, geometry), _product_of_ones(geometry)
    words, out = bits.pack(s.transpose(0, 2, 3, 1)), empty((len(s), *shape), np.float32)
    fused.run(fused.prepare([signs, ones], program), [words, words], [out])
    return _as_image(out)


def _product_of_signs(v, geometry):
    """Prepare Σ s v on bits, for v (O, C / groups, kh, kw) with one group or C = O groups."""
    from tinybnn.kernels.signs import bits, depthwise, xnor

    options, (_, channels, *size) = geometry.options, geometry.image
    if options["groups"] == 1:
        return xnor.prepare_conv2d(bits.pack(v.transpose(0, 2, 3, 1)), channels, size, **options)
    del options["groups"]
    return depthwise.prepare(bits.pack(v[:, 0].transpose(1, 2, 0)), channels, size, **options)


@functools.lru_cache(maxsize=256)  # a layer in training asks at each step
def _product_of_ones(geometry):
    """Prepare Σ s on bits: one filter for each group."""
    return _product_of_signs(np.ones((geometry.groups, *geometry.weight[1:]), np.float32), geometry)


# ------------------------------------------------------------------------------------ normalisation


def normalise_batch(x: Array, weight: Array, bias: Array, eps: float) -> tuple[Array, ...] | None:
    """Normalise x (N, C, ...) by its own statistics; return it with mean, variance, scale, (C,)."""
    rows = layout.channel_rows(x)
    if rows is None or not weight.dtype == bias.dtype == np.float32:
        return None
    result, *statistics = _kernels().normalization.forward(rows, weight, bias, eps)
    return layout.image(result, x.shape), *statistics


def normalise(x: Array, mean: Array, scale: Array, weight: Array, bias: Array) -> Array | None:
    """Compute (x - mean) * scale * weight + bias for each channel of x (N, C, ...) float32."""
    rows = layout.channel_rows(x)
    if rows is None or not weight.dtype == bias.dtype == np.float32:
        return None
    kernels = _kernels().normalization
    if not kernels.fits(rows):
        return None
    return layout.image(kernels.normalise(rows, mean, scale, weight, bias), x.shape)


def affine(x: Array, alpha: Array, beta: Array) -> Array | None:
    """Compute x * alpha + beta for each channel of x (N, C, ...) float32; alpha and beta: (C,)."""
    rows = layout.channel_rows(x)
    if rows is None:
        return None
    kernels = _kernels().normalization
    if not kernels.fits(rows):
        return None
    return layout.image(kernels.affine(rows, alpha, beta), x.shape)


def batch_norm_gradients(
    grad: Array, x: Array, mean: Array, scale: Array, weight: Array
) -> tuple[Array, ...] | None:
    """Compute gradients in x (N, C, ...), weight and bias, (C,), with the statistics of x."""
    is_array = isinstance(grad, np.ndarray) and isinstance(x, np.ndarray)
    if not (is_array and grad.dtype == weight.dtype == np.float32):
        return None
    rows = layout.channel_rows(x)
    if rows is None:
        return None
    grad_rows = layout.channel_rows(layout.channels_last(grad))
    grad_x, *sums = _kernels().normalization.backward(grad_rows, rows, mean, scale, weight)
    return layout.image(grad_x, x.shape), *sums


# -------------------------------------------------------------------------------------- activations


def two_lines(x: Array, constants: Sequence[Any]) -> Array:
    """Compute (positive * u if u > 0 else negative * u) + offset, with u = x - shift.

    Parameters
    ----------
    x : (N, C, ...)
    constants : shift, positive, negative and offset, each a number or (C,)

    Returns
    -------
    (N, C, ...)
    """
    activations = _kernels().activations
    return _by_channel(activations.two_lines, activations.two_lines_reference, constants, x)


def two_lines_gradient(grad: Array, x: Array, constants: Sequence[Any]) -> tuple[Array, Array]:
    """Compute the gradient in x, and the kernel's sums for the constants, (4, C)."""
    activations = _kernels().activations
    kernels = activations.two_lines_gradient, activations.two_lines_gradient_reference
    return _by_channel(*kernels, constants, grad, x)


def two_values(x: Array, constants: Sequence[Any]) -> Array:
    """Compute high where (x - threshold) / width >= 0, else low.

    Parameters
    ----------
    x : (N, C, ...)
    constants : threshold, width, low and high, each a number or (C,)

    Returns
    -------
    (N, C, ...)
    """
    activations = _kernels().activations
    return _by_channel(activations.two_values, activations.two_values_reference, constants, x)


def two_values_gradient(grad: Array, x: Array, constants: Sequence[Any]) -> tuple[Array, Array]:
    """Compute the gradient in x, and the kernel's sums for the constants, (4, C)."""
    activations = _kernels().activations
    kernels = activations.two_values_gradient, activations.two_values_gradient_reference
    return _by_channel(*kernels, constants, grad, x)


def leaky_relu(x: Array, slope: float) -> Array | None:
    """Compute x where x > 0, else slope * x; any shape."""
    rows = _numbers(x)
    return rows and layout.like(x, _kernels().activations.leaky_relu(*rows, slope))


def leaky_relu_gradient(grad: Array, x: Array, slope: float) -> Array | None:
    """Compute grad where x > 0, else slope * grad; any shape."""
    rows = _numbers(grad, x)
    return rows and layout.like(x, _kernels().activations.leaky_relu_gradient(*rows, slope))


# --------------------------------------------------------------------------- signs and their slopes


def sign(x: Array) -> Array | None:
    """Compute +1 where x >= 0, else -1; any shape."""
    rows = _numbers(x)
    return rows and layout.like(x, _kernels().straight_through.sign(*rows))


def gated_gradient(grad: Array, x: Array, low: float, high: float) -> Array | None:
    """Compute grad * (low <= x <= high); any shape."""
    rows = _numbers(grad, x)
    return rows and layout.like(x, _kernels().straight_through.gated_gradient(*rows, low, high))


def tent_gradient(grad: Array, x: Array) -> Array | None:
    """Compute grad * (2 - 2 |x|) where |x| <= 1, else 0; any shape."""
    rows = _numbers(grad, x)
    return rows and layout.like(x, _kernels().straight_through.tent_gradient(*rows))


# ----------------------------------------------------------------------------- pooling and channels


def max_pool2d(x: Array, windows: PoolingWindows) -> tuple[Array, Array] | None:
    """Pool (N, C, H, W) -> (N, C, OH, OW); also the winning pixel of each window, as uint8."""
    images = layout.channels_last_images(x)
    if images is None or windows.size > _kernels().float_pooling.MOST_TAPS:
        return None
    result, winner = _kernels().float_pooling.max_pool2d(images, windows.geometry)
    return _as_image(result), _as_image(winner)


def max_unpool2d(x: Array, windows: PoolingWindows, winner: Array) -> Array | None:
    """Route (N, C, OH, OW) -> (N, C, H, W): each value to the pixel that won its window."""
    images = layout.channels_last_images(layout.channels_last(x))
    winners = winner.transpose(0, 2, 3, 1)
    if images is None or winners.dtype != np.uint8 or not winners.flags.carray:
        return None
    unpool = _kernels().float_pooling.max_unpool2d
    return _as_image(unpool(images, winners, windows.shape[2:], windows.geometry))


def avg_pool2d(x: Array, windows: PoolingWindows) -> Array | None:
    """Average windows: (N, C, H, W) -> (N, C, OH, OW)"""
    images = layout.channels_last_images(x)
    if images is None:
        return None
    return _as_image(_kernels().float_pooling.avg_pool2d(images, windows.geometry))


def avg_unpool2d(x: Array, windows: PoolingWindows) -> Array | None:
    """Distribute the gradients of averages: (N, C, OH, OW) -> (N, C, H, W)"""
    images = layout.channels_last_images(layout.channels_last(x))
    if images is None:
        return None
    unpool = _kernels().float_pooling.avg_unpool2d
    return _as_image(unpool(images, windows.shape[2:], windows.geometry))


def take_channels(x: Array, index: NDArray[np.integer[Any]]) -> Array | None:
    """Select channels: (N, C, H, W) -> (N, len(index), H, W)"""
    images = layout.channels_last_images(x)
    if images is None:
        return None
    out = empty((*images.shape[:3], len(index)), np.float32)
    return _as_image(_kernels().channel_order.take_channels(images, index, out))


def add_channels(x: Array, index: NDArray[np.integer[Any]], channels: int) -> Array | None:
    """Add channels: (N, len(index), H, W) -> (N, channels, H, W)"""
    images = layout.channels_last_images(x)
    if images is None:
        return None
    out = empty((*images.shape[:3], channels), np.float32)
    return _as_image(_kernels().channel_order.add_channels(images, index, out))


# ------------------------------------------------------------------------------------------- losses


def cross_entropy(x: Array, labels: Array, smoothing: float) -> tuple[Array, Array] | None:
    """Return losses (N,) of logits (N, classes), and their gradients softmax(x) - q, float32."""
    if x.dtype != np.float32 or x.size > MANY:
        return None
    return _kernels().losses.cross_entropy(x, labels, smoothing)


# ------------------------------------------------------------------------------- arrays for kernels


@functools.cache
def _kernels():
    """Import the modules of `training` when one is first needed: importing Numba takes time."""
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
    """View arrays of one shape as rows of numbers in one order; None for few, or for Tensors."""
    if not isinstance(arrays[0], np.ndarray) or arrays[0].size < FEW:
        return None
    return layout.flat(*arrays)


def _by_channel(kernel, reference, constants, *images):
    """Apply a kernel or its reference to images as rows of channels and a table (4, C)."""
    x = images[-1]
    rows = [layout.channel_rows(a) for a in images]
    if x.size < FEW or any([r is None for r in rows]):
        rows, kernel = [np.moveaxis(a, 1, -1).reshape(-1, a.shape[1]) for a in images], reference
    table = np.empty((len(constants), x.shape[1]), x.dtype)
    for target, row in zip(table, constants, strict=True):
        target[...] = row
    result = kernel(*rows, table)
    values, *sums = result if isinstance(result, tuple) else (result,)
    samples, channels, *size = x.shape
    image = np.moveaxis(values.reshape(samples, *size, channels), -1, 1)
    return (image, *sums) if sums else image


def _pixels(x):
    """Return (N, C, H, W) as contiguous (N, H, W, C): a view, if memory is in this order."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def _as_image(pixels):
    """View (N, H, W, C) as (N, C, H, W)."""
    return pixels.transpose(0, 3, 1, 2)
