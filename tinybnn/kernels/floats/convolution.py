"""Float convolutions for training: forward, gradient in the image, gradient in the weight.

With images x, filters w, and the gradient g of the output, the three are::

    conv2d          out[n, y, o]  = sum over tap, c of  x[n, z, c] * w[o, c, tap]
    conv2d_input    dx[n, z, c]   = sum over tap, o of  g[n, y, o] * w[o, c, tap]
    conv2d_weight   dw[o, c, tap] = sum over n, y of    g[n, y, o] * x[n, z, c]

    where z = y * stride + tap - padding.

(y, z and tap stand for two coordinates each; tap counts pixels, so it includes the dilation.) Each
is a product with a matrix of patches, and none builds that matrix: `gathered.product` reads the
image through two tables of offsets.

- **Forward**: rows are output pixels, steps are taps and channels, and the filters are laid out in
  panels.
- **Gradient in the image**: for stride 1 the same, with flipped filters whose input and output
  channels are exchanged. With a larger stride s, a pixel z sees only the taps for which
  z + padding - tap is a multiple of s. Pixels with the same remainder see the same taps, so the
  image splits into s * s *phases*. Each is a dense convolution of g with some of the taps
  (the sub-pixel view of Shi et al. 2016, arXiv:1609.07009), and no zeros are multiplied. This is
  also the transposed convolution.
- **Gradient in the weight**: rows are taps and channels, steps are pixels: the tables of the
  forward pass exchanged. The gradients of a few hundred pixels at a time are laid out in panels.

A 1×1 convolution is the plain matrix product of pixels and filters: its tables say so, and nothing
is copied. A depth-wise one (groups = C = O) computes 16 channels, each with its own filter, at a
time. Where there are too few filters (or channels of the image) to fill a vector, the taps fill it:
see `convolution_spread`.

Work is divided into *units*: a number of rows of an image, or whole images, chosen so that the
pixels they see stay in the cache. There they are copied with their zero padding. Threads share rows
and images; in the gradient in the weight also taps. The grouping of sums depends on shapes only, so
the result is the same for any number of threads. BLAS is not used, so its threads do not compete
with these.

Arrays are float32; images are (N, H, W, C) and contiguous, weights (O, C / groups, kh, kw).

For speed alone: each function has a plain NumPy ``*_reference``, and `tinybnn bench train
--profile` shows the share of convolutions in a step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tinybnn.kernels.floats.convolution_plans import forward_plan, input_plan
from tinybnn.kernels.floats.convolution_spread import is_spread, spread
from tinybnn.kernels.floats.convolution_tasks import convolve, weight_gradient
from tinybnn.kernels.machine.checks import out_array
from tinybnn.kernels.machine.layout import for_kernel
from tinybnn.kernels.machine.windows import Windows, pair, windows, with_border

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from tinybnn.typing import FloatArray

# ------------------------------------------------------------------------------- the three products


def conv2d(
    x: ArrayLike,
    weight: ArrayLike,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    out: NDArray[np.float32] | None = None,
    output_size: tuple[int, int] | None = None,
) -> NDArray[np.float32]:
    """Convolve float images in 2-D (cross-correlation).

    Parameters
    ----------
    x : (N, H, W, C) float32
    weight : (O, C / groups, kh, kw) float32
    stride, padding, dilation : (int, int)
        Along height and width. ``padding`` zeros are added on both sides.
    groups : int
        Divides C and O. Output channel o sees the channels of group ``o // (O / groups)``.
    out : (N, OH, OW, O) float32, optional
        Contiguous array for the result.
    output_size : (int, int), optional
        Height and width of the output, to compute only its top left part.

    Returns
    -------
    (N, OH, OW, O) float32
        ``OH = (H + 2 * padding - dilation * (kh - 1) - 1) // stride + 1``, OW likewise.

    Raises
    ------
    ValueError
        If a dtype, a shape or a parameter does not match, or the output would be empty.
    """
    x, weight = _images("conv2d", "x", x), _filters("conv2d", weight)
    _check_groups("conv2d", weight.shape, groups)
    _check_channels("conv2d", "x", x, weight.shape[1] * groups, "input")
    sizes = x.shape[1:3], weight.shape[2:], stride, padding, dilation
    window = _windows("conv2d", output_size, *sizes)
    out = out_array("conv2d", out, (len(x), *window.out_size, len(weight)))
    filters, channels, *taps = weight.shape
    if groups == 1 and window.stride == (1, 1) and is_spread(channels, filters, *taps):
        # Scatter each pixel's products to the output pixels that see it.
        turned = Windows(
            *window.out_size,
            *window.size,
            *taps,
            1,
            1,
            -window.top,
            -window.left,
            *(-d for d in window.dilation),
        )
        return spread(x, for_kernel(weight.transpose(1, 0, 2, 3)), out, turned)
    return convolve(forward_plan(x.shape, weight.shape, window, int(groups)), x, weight, out)


def conv2d_reference(
    x: FloatArray,
    weight: FloatArray,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    output_size: tuple[int, int] | None = None,
) -> FloatArray:
    """Compute :func:`conv2d` in plain NumPy: one tap at a time; shapes as there, any floats."""
    sizes = x.shape[1:3], weight.shape[2:], stride, padding, dilation
    window = _windows("conv2d_reference", output_size, *sizes)
    shape = len(x), *window.out_size, groups, len(weight) // groups
    total = np.zeros(shape, np.result_type(x, weight))
    for pixels, filters in _taps(with_border(x, padding), weight, window, groups):
        total += np.einsum("nyxgc,goc->nyxgo", pixels, filters)
    return total.reshape(len(x), *window.out_size, len(weight))


def conv2d_input(
    grad: ArrayLike,
    weight: ArrayLike,
    size: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Compute the gradient of `conv2d` in the image: the transposed convolution.

    Parameters
    ----------
    grad : (N, OH, OW, O) float32
        The gradient of the output.
    weight : (O, C / groups, kh, kw) float32
    size : (int, int)
        Height H and width W of the images.
    stride, padding, dilation : (int, int)
    groups : int
    out : (N, H, W, C) float32, optional
        Contiguous array for the result.

    Returns
    -------
    (N, H, W, C) float32

    Raises
    ------
    ValueError
        If a dtype, a shape or a parameter does not match.
    """
    name = "conv2d_input"
    grad, weight = _images(name, "grad", grad), _filters(name, weight)
    _check_groups(name, weight.shape, groups)
    _check_channels(name, "grad", grad, len(weight), "output")
    size = pair(name, "size", size, 1)
    window = _windows(name, grad.shape[1:3], size, weight.shape[2:], stride, padding, dilation)
    out = out_array(name, out, (len(grad), *size, weight.shape[1] * groups))
    if groups == 1 and is_spread(*weight.shape):
        return spread(grad, weight, out, window)
    return convolve(input_plan(grad.shape, weight.shape, window, int(groups)), grad, weight, out)


def conv2d_input_reference(
    grad: FloatArray,
    weight: FloatArray,
    size: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> FloatArray:
    """Compute :func:`conv2d_input` in plain NumPy by scattering gradients; shapes as there."""
    images, *output, filters = grad.shape
    sizes = size, weight.shape[2:], stride, padding, dilation
    window = _windows("conv2d_input_reference", output, *sizes)
    shape = images, *window.padded_size, weight.shape[1] * groups
    padded = np.zeros(shape, np.result_type(grad, weight))
    grouped = grad.reshape(images, *output, groups, filters // groups)
    for pixels, taps in _taps(padded, weight, window, groups):
        pixels += np.einsum("nyxgo,goc->nyxgc", grouped, taps)  # a view of `padded`
    return padded[
        :, window.top : window.top + window.height, window.left : window.left + window.width
    ]


def conv2d_weight(
    x: ArrayLike,
    grad: ArrayLike,
    kernel_size: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Compute the gradient of `conv2d` in the weight.

    Parameters
    ----------
    x : (N, H, W, C) float32
    grad : (N, OH, OW, O) float32
        The gradient of the output.
    kernel_size : (int, int)
        Height kh and width kw of the filters.
    stride, padding, dilation : (int, int)
    groups : int
    out : (O, C / groups, kh, kw) float32, optional
        Contiguous array for the result.

    Returns
    -------
    (O, C / groups, kh, kw) float32

    Raises
    ------
    ValueError
        If a dtype, a shape or a parameter does not match.
    """
    name = "conv2d_weight"
    x, grad = _images(name, "x", x), _images(name, "grad", grad)
    kernel_size = pair(name, "kernel_size", kernel_size, 1)
    if groups < 1 or x.shape[3] % groups:
        raise ValueError(f"{name}: groups must divide the {x.shape[3]} channels of x, got {groups}")
    shape = grad.shape[3], x.shape[3] // groups, *kernel_size
    _check_groups(name, shape, groups)
    if len(grad) != len(x):
        raise ValueError(f"{name}: grad must have the {len(x)} images of x, got {len(grad)}")
    window = _windows(name, grad.shape[1:3], x.shape[1:3], kernel_size, stride, padding, dilation)
    out = out_array(name, out, shape)
    if 0 in x.shape or 0 in grad.shape:
        out[...] = 0
        return out
    return weight_gradient(forward_plan(x.shape, shape, window, int(groups)), x, grad, out)


def conv2d_weight_reference(
    x: FloatArray,
    grad: FloatArray,
    kernel_size: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> FloatArray:
    """Compute :func:`conv2d_weight` in plain NumPy: one tap at a time; shapes as there."""
    images, *output, filters = grad.shape
    weight = np.zeros((filters, x.shape[3] // groups, *kernel_size), np.result_type(x, grad))
    grouped = grad.reshape(images, *output, groups, filters // groups)
    sizes = x.shape[1:3], kernel_size, stride, padding, dilation
    window = _windows("conv2d_weight_reference", output, *sizes)
    for pixels, taps in _taps(with_border(x, padding), weight, window, groups):
        taps += np.einsum("nyxgc,nyxgo->goc", pixels, grouped)  # a view of `weight`
    return weight


def _taps(padded, weight, window, groups):
    """Yield for each tap its pixels, (N, OH, OW, G, C / G), and its weights, (G, O / G, C / G).

    Both are views.
    """
    image = padded.reshape(*padded.shape[:3], groups, -1)
    grouped = weight.reshape(groups, -1, *weight.shape[1:])
    for ky, kx, pixels in window.views(image):
        yield pixels, grouped[..., ky, kx]


# ------------------------------------------------------------------------------------------- checks


def _images(function, name, x):
    """Return ``x`` as images for a kernel; a ValueError if it is not float32 (N, H, W, C)."""
    x = np.asarray(x)
    if x.dtype != np.float32 or x.ndim != 4:
        raise ValueError(
            f"{function}: {name} must be float32 with 4 axes (N, H, W, C), "
            f"got {x.dtype} of shape {x.shape}"
        )
    return for_kernel(x)


def _filters(function, weight):
    weight = np.asarray(weight)
    if weight.dtype != np.float32 or weight.ndim != 4 or 0 in weight.shape[2:]:
        raise ValueError(
            f"{function}: weight must be float32 of shape (O, C / groups, kh, kw), "
            f"got {weight.dtype} of shape {weight.shape}"
        )
    return for_kernel(weight)


def _check_groups(function, weight, groups):
    if groups < 1 or weight[0] % groups:
        raise ValueError(
            f"{function}: groups must divide the {weight[0]} output channels, got {groups}"
        )


def _check_channels(function, name, x, channels, kind):
    if x.shape[3] != channels:
        raise ValueError(
            f"{function}: weight has {channels} {kind} channels, {name} has {x.shape[3]} "
            f"(shape {x.shape})"
        )


def _windows(function, size, *sizes):
    """Return the windows, cut to a smaller output size if one is given."""
    window = windows(function, *sizes)
    if size is None:
        return window
    height, width = size = pair(function, "output size", size, 1)
    if height > window.out_height or width > window.out_width:
        raise ValueError(
            f"{function}: the output must have at most {window.out_height} x {window.out_width} "
            f"pixels, got {height} x {width}"
        )
    return window._replace(out_height=height, out_width=width)
