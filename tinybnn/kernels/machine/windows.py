"""Sliding windows: the common geometry of convolutions and pooling.

A window covers ``kernel`` pixels along each axis, ``dilation`` apart. It moves in steps of
``stride``, starting ``padding`` pixels before the image. Tap t of window o lies on pixel
``o * stride + t * dilation - padding``, which may be outside the image.

`Windows` is a tuple of integers, so that kernels can take it as it is and plans can be cached by
it.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from tinybnn.typing import Array


class Windows(NamedTuple):
    """Sizes of image and output, and the windows' geometry; made by `windows`.

    ``top`` and ``left`` are the padding, on both sides.
    """

    height: int
    width: int
    out_height: int
    out_width: int
    kernel_height: int
    kernel_width: int
    row_stride: int
    column_stride: int
    top: int
    left: int
    row_dilation: int
    column_dilation: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image. The other properties are pairs, too."""
        return self[0:2]

    @property
    def out_size(self) -> tuple[int, int]:
        """Height and width of the output."""
        return self[2:4]

    @property
    def kernel_size(self) -> tuple[int, int]:
        """Height and width of a window in taps."""
        return self[4:6]

    @property
    def stride(self) -> tuple[int, int]:
        """Stride along height and width."""
        return self[6:8]

    @property
    def padding(self) -> tuple[int, int]:
        """Padding along height and width."""
        return self[8:10]

    @property
    def dilation(self) -> tuple[int, int]:
        """Dilation along height and width."""
        return self[10:12]

    @property
    def padded_size(self) -> tuple[int, int]:
        """Height and width of the image with its padding."""
        return self.height + 2 * self.top, self.width + 2 * self.left

    @property
    def taps(self) -> int:
        """Number of pixels of a window."""
        return self.kernel_height * self.kernel_width

    def views(self, padded: Array) -> Iterator[tuple[int, int, Array]]:
        """Yield each tap ky, kx with the pixels of padded images (N, H', W', C) that it sees.

        The pixels are a view, (N, OH, OW, C).
        """
        for ky, kx in np.ndindex(*self.kernel_size):
            rows, columns = (
                slice(tap * d, tap * d + (n - 1) * s + 1, s)
                for tap, d, n, s in zip(
                    (ky, kx), self.dilation, self.out_size, self.stride, strict=True
                )
            )
            yield ky, kx, padded[:, rows, columns]

    def positions(self, axis: int) -> NDArray[np.int64]:
        """Return the position in the image of each tap along an axis: (outputs, taps) int64."""
        outputs, taps = np.arange(self.out_size[axis]), np.arange(self.kernel_size[axis])
        starts = outputs * self.stride[axis] - self.padding[axis]
        return starts[:, None] + taps * self.dilation[axis]

    def inside(self, axis: int) -> NDArray[np.bool_]:
        """Return which of `positions` are inside the image: (outputs, taps) bool."""
        positions = self.positions(axis)
        return (positions >= 0) & (positions < self.size[axis])

    def places(self, pixel: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return flat offsets of windows and taps in a padded image of ``pixel`` numbers per pixel.

        Returns
        -------
        starts : (OH * OW,) int64
            Offset of the first number that a window sees.
        taps : (kh * kw,) int64
            Offset of the first number under a tap, relative to the window's.
        """
        steps = self.padded_size[1] * pixel, pixel
        offsets = []
        for counts, distances in ((self.out_size, self.stride), (self.kernel_size, self.dilation)):
            rows, columns = (
                np.arange(n) * (distance * step)
                for n, distance, step in zip(counts, distances, steps, strict=True)
            )
            offsets.append(np.add.outer(rows, columns).reshape(-1))
        starts, taps = offsets
        return starts, taps


def windows(
    function: str,
    size: tuple[int, int],
    kernel_size: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
) -> Windows:
    """Compute the geometry of windows that slide over images of one size.

    Parameters
    ----------
    function : str
        Name of the function, for errors.
    size, kernel_size, stride, padding, dilation : (int, int)
        Along height and width.

    Returns
    -------
    Windows

    Raises
    ------
    ValueError
        If a parameter is not two integers in range, or the image is smaller than a window.
    """
    return _windows(function, *map(tuple, (size, kernel_size, stride, padding, dilation)))


@functools.lru_cache(maxsize=1024)  # a layer in training asks at each step
def _windows(function, size, kernel_size, stride, padding, dilation):
    size = pair(function, "size", size, 0)
    kernel_size = pair(function, "kernel_size", kernel_size, 0)
    stride, padding = pair(function, "stride", stride, 1), pair(function, "padding", padding, 0)
    dilation = pair(function, "dilation", dilation, 1)
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel_size, strict=True)]
    padded = [n + 2 * p for n, p in zip(size, padding, strict=True)]
    if min(kernel_size) < 1 or padded[0] < spans[0] or padded[1] < spans[1]:
        raise ValueError(
            f"{function}: the kernel covers {spans[0]} x {spans[1]} pixels, "
            f"the padded image has {padded[0]} x {padded[1]}"
        )
    out = [(n - span) // s + 1 for n, span, s in zip(padded, spans, stride, strict=True)]
    return Windows(*size, *out, *kernel_size, *stride, *padding, *dilation)


def pair(function: str, name: str, pair: Sequence[int], least: int) -> tuple[int, int]:
    """Return two integers as a tuple; a ValueError if one is below ``least``."""
    pair = tuple(pair)
    if len(pair) != 2 or min(pair) < least:
        raise ValueError(f"{function}: {name} must be two integers >= {least}, got {pair}")
    return int(pair[0]), int(pair[1])


def with_border(images: Array, padding: tuple[int, int], value: Any = 0) -> Array:
    """Pad images (N, H, W, C) with ``padding`` rows and columns of a value on each side."""
    border = ((0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0))
    return np.pad(images, border, constant_values=value)
