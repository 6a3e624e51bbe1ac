"""Windows that slide over images: the one geometry of convolutions and pooling.

A window covers ``kernel`` pixels along each axis, ``dilation`` apart; it moves in steps of
``stride``, and begins ``padding`` pixels before the image. Tap t of window o falls on pixel
``o * stride + t * dilation - padding``, which may lie outside the image.

`Windows` is a tuple of integers, so kernels take it as it is, and plans are cached under it.
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
    """Sizes of the image and of the output, and how the windows lie; made by `windows`.

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
        """Height and width of the image; the other pairs likewise."""
        return self[0:2]

    @property
    def out_size(self) -> tuple[int, int]:
        return self[2:4]

    @property
    def kernel_size(self) -> tuple[int, int]:
        return self[4:6]

    @property
    def stride(self) -> tuple[int, int]:
        return self[6:8]

    @property
    def padding(self) -> tuple[int, int]:
        return self[8:10]

    @property
    def dilation(self) -> tuple[int, int]:
        return self[10:12]

    @property
    def padded_size(self) -> tuple[int, int]:
        """Height and width of the image with its padding."""
        return self.height + 2 * self.top, self.width + 2 * self.left

    @property
    def taps(self) -> int:
        """Pixels of a window."""
        return self.kernel_height * self.kernel_width

    def views(self, padded: Array) -> Iterator[tuple[int, int, Array]]:
        """For each tap ky, kx and the pixels of padded images (N, H', W', C) that it falls on.

        The last is a view, (N, OH, OW, C).
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
        """Where in the image each tap of each window falls along an axis: (outputs, taps)."""
        outputs, taps = np.arange(self.out_size[axis]), np.arange(self.kernel_size[axis])
        starts = outputs * self.stride[axis] - self.padding[axis]
        return starts[:, None] + taps * self.dilation[axis]

    def inside(self, axis: int) -> NDArray[np.bool_]:
        """Which of these are inside the image."""
        positions = self.positions(axis)
        return (positions >= 0) & (positions < self.size[axis])

    def places(self, pixel: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where in a padded image, each of whose pixels has so many numbers, windows and taps are.

        Returns
        -------
        starts : (OH * OW,) int64
            The first number that a window sees.
        taps : (kh * kw,) int64
            The first number under a tap, from there.
        """
        steps = self.padded_size[1] * pixel, pixel
        found = []
        for counts, distances in ((self.out_size, self.stride), (self.kernel_size, self.dilation)):
            rows, columns = (
                np.arange(n) * (distance * step)
                for n, distance, step in zip(counts, distances, steps, strict=True)
            )
            found.append(np.add.outer(rows, columns).reshape(-1))
        return found


def windows(
    function: str,
    size: tuple[int, int],
    kernel_size: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
) -> Windows:
    """The geometry of windows that slide over images of one size.

    Parameters
    ----------
    function : str
        Begins the message of an error.
    size, kernel_size, stride, padding, dilation : (int, int)
        Along height and width.

    Raises
    ------
    ValueError
        If a parameter is not two integers, or no window fits.
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
    """Two integers as a tuple, or a ValueError if one is below ``least``."""
    pair = tuple(pair)
    if len(pair) != 2 or min(pair) < least:
        raise ValueError(f"{function}: {name} must be two integers >= {least}, got {pair}")
    return int(pair[0]), int(pair[1])


def with_border(images: Array, padding: tuple[int, int], value: Any = 0) -> Array:
    """Images (N, H, W, C) with so many rows and columns of a value on each side."""
    border = ((0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0))
    return np.pad(images, border, constant_values=value)
