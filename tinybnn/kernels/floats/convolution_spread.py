"""Float convolutions with few target channels: multiply each pixel once, then scatter.

A vector has 16 columns; with fewer filters, or channels of the image, most of it is wasted. Then it
is better to use all taps as columns: multiply each pixel by all weights it meets, a 1x1
convolution, and add the products to the pixels they belong to.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np

from tinybnn.kernels.floats.convolution_plans import (
    BEFORE,
    PANEL_WIDTH,
    UNIT_PIXELS,
    Tables,
    panels_of,
)
from tinybnn.kernels.floats.convolution_tasks import lay_out
from tinybnn.kernels.floats.gathered import (
    TOGETHER,
    Panel,
    Patches,
    Sums,
    panel_widths,
    product,
)
from tinybnn.kernels.machine import parallel, threads
from tinybnn.kernels.machine.memory import empty
from tinybnn.kernels.machine.simd import FLOATS, inlined, kernel
from tinybnn.kernels.machine.windows import Windows

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SPEED = 2e11  # multiplications per second on a fast core
_CYCLES_OF_SPREADING = 4  # estimated cycles per scattered add


@functools.cache
def is_spread(sources: int, targets: int, kh: int, kw: int) -> bool:
    """Tell whether scattering takes fewer cycles, for each 6 pixels of the source."""
    columns = kh * kw * targets
    spread = sources * _cycles(columns) + TOGETHER * columns * _CYCLES_OF_SPREADING
    return kh * kw > 1 and spread < kh * kw * sources * _cycles(targets)


def _cycles(columns):
    """Estimate the cycles of one step of a product of 6 rows."""
    return sum(max(TOGETHER * width // (2 * FLOATS), 4) for width in panel_widths(columns))


def spread(
    source: NDArray[np.float32],
    weight: NDArray[np.float32],
    out: NDArray[np.float32],
    window: Windows,
) -> NDArray[np.float32]:
    """For each pixel and tap: out[pixel * stride + tap * dilation - padding] += product.

    source : (N, OH, OW, K), weight : (K, M, kh, kw), out : (N, H, W, M)
    """
    out[...] = 0
    if 0 in source.shape or out.size == 0:
        return out
    images, height, width, channels = source.shape
    columns = math.prod(weight.shape[1:])
    table, total = panels_of(1, channels, columns, 0, 1)
    phases = np.array([(0, channels, 0, 0, 0, 0)])
    panels = empty((channels * total,), np.float32)
    of_weight = np.arange(channels)
    lay_out(weight.reshape(-1), 1, of_weight * columns, phases, table, panels)
    pixels = min(max(1, UNIT_PIXELS // width), height) * width
    number = np.arange(pixels)
    tasks = min(threads.tasks_for(source.size * total / _SPEED), images)
    products = empty((tasks * pixels * total,), np.float32)
    tables = Tables(number * channels, number * total, of_weight, phases, table)
    arrays = source.reshape(-1), panels, products, out.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        parallel.share_out(
            _spread_images, parallel.shares(images, tasks), window, weight.shape[1], arrays, tables
        )
    return out


@kernel(allocates=False)
def _spread_images(first, end, thread, window, out_channels, arrays, tables):
    """Compute images first to end - 1, some rows at a time."""
    (source, panels, products, out), table = arrays, tables.panels
    height, width, channels = window.out_height, window.out_width, len(tables.steps)
    together, total = len(tables.places) // width, table[-1, BEFORE] + table[-1, PANEL_WIDTH]
    slot = thread * len(tables.places) * total
    for image in range(first, end):
        for top in range(0, height, together):
            rows = min(together, height - top)
            for p in range(len(table)):
                before, columns = table[p, BEFORE], table[p, PANEL_WIDTH]
                start = (image * height + top) * width * channels
                patches = Patches(source, start, tables.places, tables.steps)
                weights = Panel(panels, before * channels, columns, columns)
                # False, but not a constant, so that `product` is compiled once.
                sums = Sums(products, slot + before, tables.targets, image < first)
                product(0, rows * width, 0, channels, patches, weights, sums)
            for i in range(rows * width):
                y, x = top + i // width, i % width
                _spread_pixel(image, y, x, window, out_channels, products, slot + i * total, out)


@inlined
def _spread_pixel(image, y, x, window, channels, products, at, out):
    """Add the products of one pixel to the target pixels that it meets."""
    top, left = y * window.row_stride - window.top, x * window.column_stride - window.left
    for channel in range(channels):
        for i in range(window.kernel_height):
            row = top + i * window.row_dilation
            if 0 <= row < window.height:
                to = (image * window.height + row) * window.width * channels + channel
                for j in range(window.kernel_width):
                    column = left + j * window.column_dilation
                    if 0 <= column < window.width:
                        out[to + column * channels] += products[at + j]
            at += window.kernel_width
