"""Pooling: the maximum or the mean over windows of an image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tinybnn.autograd import Function, as_array
from tinybnn.functional.convolution import empty_image, pair
from tinybnn.kernels import dispatch

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from tinybnn.typing import Array, Pair, Shape, V


class _Windows:
    """Pooling windows over (N, C, H, W): the pixels under one tap are a strided view."""

    shape: Shape
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    output: tuple[int, ...]  # (OH, OW)

    def __init__(
        self,
        shape: Shape,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> None:
        self.shape, self.kernel, self.stride, self.padding = shape, kernel, stride, padding
        self.output = tuple(
            (n + 2 * p - k) // s + 1
            for n, k, s, p in zip(shape[2:], kernel, stride, padding, strict=True)
        )

    @property
    def geometry(self) -> tuple[tuple[int, int], ...]:
        """Kernel, stride and padding, in the form that compiled kernels take."""
        return self.kernel, self.stride, self.padding

    @property
    def size(self) -> int:
        """Number of pixels of a window."""
        return self.kernel[0] * self.kernel[1]

    def padded(self, dtype: DTypeLike, value: float) -> Array:
        (n, c, h, w), (ph, pw) = self.shape, self.padding
        result = empty_image((n, c, h + 2 * ph, w + 2 * pw), dtype)
        result[...] = value
        return result

    def inside(self, padded: Array) -> Array:
        (h, w), (ph, pw) = self.shape[2:], self.padding
        return padded[:, :, ph : ph + h, pw : pw + w]

    def pad(self, x: Array, value: float) -> Array:
        if self.padding == (0, 0):
            return x
        padded = self.padded(x.dtype, value)
        self.inside(padded)[...] = x
        return padded

    def places(self, shape: Shape) -> tuple[Array, Array]:
        """Flat indices of windows in the padded pixels (H, W, C) of a sample.

        Returns
        -------
        first : (OH, OW, C) int
            Index of the first tap of each window and channel.
        taps : (kh * kw,) int
            Offset of each tap from the first.
        """
        _, w, c = shape
        (oh, ow), (sh, sw), (kh, kw) = self.output, self.stride, self.kernel
        pixels = np.arange(oh)[:, None] * (sh * w) + np.arange(ow) * sw  # (OH, OW)
        taps = np.arange(kh)[:, None] * w + np.arange(kw)
        return pixels[..., None] * c + np.arange(c), taps.reshape(-1) * c

    def taps(self, padded: Array) -> list[Array]:
        """The pixels at each position in the window: kh * kw views (N, C, OH, OW)."""
        (oh, ow), (sh, sw), (kh, kw) = self.output, self.stride, self.kernel
        return [
            padded[:, :, i : i + (oh - 1) * sh + 1 : sh, j : j + (ow - 1) * sw + 1 : sw]
            for i in range(kh)
            for j in range(kw)
        ]


class MaxPool2d(Function):
    """Maximum of each window: (N, C, H, W) -> (N, C, OH, OW).

    The first of equal values (also of 0.0 and -0.0) is the winner, which receives the gradient. A
    NaN wins.
    """

    windows: _Windows
    winner: Array | None  # (N, C, OH, OW)
    saves: tuple[str, ...] = ("inputs", "output")

    def forward(self, x: Array, windows: _Windows) -> Array:
        self.windows = windows
        self.winner = None
        if (pooled := dispatch.max_pool2d(x, windows)) is not None:
            result, self.winner = pooled
            self.saves = ()  # backward needs the winners only
            return result
        taps = windows.taps(windows.pad(x, -np.inf))
        result = taps[0].copy(order="K")
        for tap in taps[1:]:
            np.copyto(result, tap, where=~(tap <= result) & (result == result))
        return result

    def backward(self, grad: V, output: V, x: V) -> V:
        winner = self.winner
        if winner is None:
            taps = self.windows.taps(self.windows.pad(as_array(x), -np.inf))
            dtype = np.min_scalar_type(len(taps))  # one byte for windows of up to 255 pixels
            winner = np.empty_like(as_array(output), dtype=dtype)
            for i in reversed(range(len(taps))):
                winner[(taps[i] == as_array(output)) | np.isnan(taps[i])] = i
        return MaxUnpool2d.apply(grad, windows=self.windows, winner=winner)


class MaxUnpool2d(Function):
    """The adjoint of `PickWinners`: add each value to the pixel that won its window.

    x (N, C, OH, OW) -> (N, C, H, W).
    """

    windows: _Windows
    winner: Array  # (N, C, OH, OW)
    saves: tuple[str, ...] = ()
    fresh = True

    def forward(self, x: Array, windows: _Windows, winner: Array) -> Array:
        self.windows, self.winner = windows, winner
        if (result := dispatch.max_unpool2d(x, windows, winner)) is not None:
            return result
        padded = windows.padded(x.dtype, 0)
        for i, tap in enumerate(windows.taps(padded)):
            tap += np.where(winner == i, x, x.dtype.type(0))
        return windows.inside(padded)

    def backward(self, grad: V, output: V, x: V) -> V:
        return PickWinners.apply(grad, windows=self.windows, winner=self.winner)


class PickWinners(Function):
    """Take from each window the recorded winner: x (N, C, H, W) -> (N, C, OH, OW)."""

    windows: _Windows
    winner: Array  # (N, C, OH, OW)
    saves: tuple[str, ...] = ()

    def forward(self, x: Array, windows: _Windows, winner: Array) -> Array:
        self.windows, self.winner = windows, winner
        result = empty_image(winner.shape, x.dtype)
        images = [a.transpose(0, 2, 3, 1) for a in (windows.pad(x, 0), winner, result)]
        first, taps = windows.places(images[0].shape[1:])
        for pixels, won, out in zip(*images, strict=True):  # a sample's indices fit the cache
            np.take(pixels, taps[won] + first, out=out, mode="clip")
        return result

    def backward(self, grad: V, output: V, x: V) -> V:
        return MaxUnpool2d.apply(grad, windows=self.windows, winner=self.winner)


class AvgPool2d(Function):
    """Mean of each window: (N, C, H, W) -> (N, C, OH, OW).

    0.0 plus the taps in row-major order, divided by their number; padding zeros count.
    """

    windows: _Windows
    saves: tuple[str, ...] = ()

    def forward(self, x: Array, windows: _Windows) -> Array:
        self.windows = windows
        if (result := dispatch.avg_pool2d(x, windows)) is not None:
            return result
        taps = windows.taps(windows.pad(x, 0))
        result = taps[0] + x.dtype.type(0)
        for tap in taps[1:]:
            result += tap
        result *= 1.0 / len(taps)
        return result

    def backward(self, grad: V, output: V, x: V) -> V:
        return AvgUnpool2d.apply(grad, windows=self.windows)


class AvgUnpool2d(Function):
    """The adjoint of AvgPool2d: spread each value evenly over its window.

    x (N, C, OH, OW) -> (N, C, H, W).
    """

    windows: _Windows
    saves: tuple[str, ...] = ()

    def forward(self, x: Array, windows: _Windows) -> Array:
        self.windows = windows
        if (result := dispatch.avg_unpool2d(x, windows)) is not None:
            return result
        padded = windows.padded(x.dtype, 0)
        taps = windows.taps(padded)
        share = x * (1.0 / len(taps))
        for tap in taps:
            tap += share
        return windows.inside(padded)

    def backward(self, grad: V, output: V, x: V) -> V:
        return AvgPool2d.apply(grad, windows=self.windows)


def _windows(name, x, kernel_size, stride, padding):
    shape = np.shape(x)
    if len(shape) != 4:
        raise ValueError(f"{name}: x must have the shape (N, C, H, W), got {shape}")
    kernel = pair(name, "kernel_size", kernel_size, 1)
    stride = kernel if stride is None else pair(name, "stride", stride, 1)
    padding = pair(name, "padding", padding, 0)
    if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        raise ValueError(
            f"{name}: padding {padding} must be at most half of kernel_size {kernel}, "
            "so that every window contains a pixel"
        )
    if any(k > n + 2 * p for k, n, p in zip(kernel, shape[2:], padding, strict=True)):
        raise ValueError(f"{name}: windows of {kernel} do not fit into images of {shape[2:]}")
    return _Windows(shape, kernel, stride, padding)


def max_pool2d(x: V, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0) -> V:
    """Compute the maximum over windows of each channel.

    Parameters
    ----------
    x : (N, C, H, W)
    kernel_size, stride, padding : int or pair of ints
        `stride` is the kernel size by default; padded pixels are -inf.

    Returns
    -------
    (N, C, OH, OW), where OH = (H + 2 padding - kernel_size) // stride + 1
    """
    return MaxPool2d.apply(x, windows=_windows("max_pool2d", x, kernel_size, stride, padding))


def adaptive_avg_pool2d(x: V, output_size: Pair) -> V:
    """Compute the mean over a grid of equal windows; output_size=1 is the global mean.

    Parameters
    ----------
    x : (N, C, H, W)
    output_size : int or pair of ints
        Number of windows along each axis; must divide H and W.

    Returns
    -------
    (N, C, *output_size)
    """
    size = pair("adaptive_avg_pool2d", "output_size", output_size, 1)
    shape = np.shape(x)
    if len(shape) != 4:
        raise ValueError(f"adaptive_avg_pool2d: x must have the shape (N, C, H, W), got {shape}")
    if shape[2] % size[0] or shape[3] % size[1]:
        raise ValueError(
            f"adaptive_avg_pool2d: output_size {size} must divide the image size {shape[2:]}"
        )
    return avg_pool2d(x, (shape[2] // size[0], shape[3] // size[1]))


def avg_pool2d(x: V, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0) -> V:
    """Compute the mean over windows of each channel; padding zeros count (PyTorch's default).

    Parameters
    ----------
    x : (N, C, H, W)
    kernel_size, stride, padding : int or pair of ints
        `stride` is the kernel size by default.

    Returns
    -------
    (N, C, OH, OW), where OH = (H + 2 padding - kernel_size) // stride + 1
    """
    return AvgPool2d.apply(x, windows=_windows("avg_pool2d", x, kernel_size, stride, padding))
