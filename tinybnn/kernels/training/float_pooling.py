"""Maximum and mean over windows of float images, and their gradients.

Images are (N, H, W, C). These kernels compute the formulas of `functional.pooling`, bit for bit:
the pixels of a window in row-major order, a gradient's shares in the order in which the formula
adds them. (`kernels.signs.pooling` pools packed signs.)

Gradients are not scattered over windows but gathered for each pixel, so that each number is written
once and threads can share the rows of the image.

For speed alone: with the formulas a step of the CNN for MNIST takes twice as long. `tinybnn bench
train --profile` shows its share of a step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tinybnn.kernels.machine import parallel, threads
from tinybnn.kernels.machine.checks import check_floats
from tinybnn.kernels.machine.layout import for_kernel
from tinybnn.kernels.machine.memory import empty
from tinybnn.kernels.machine.simd import kernel
from tinybnn.kernels.machine.windows import windows, with_border

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

MOST_TAPS = 255  # pixels of a window, which are numbered by bytes
_SPEED = 1.3e10  # floats of the larger image per second on a fast core

_MAX, _MEAN, _SUM, _MAX_BACK, _MEAN_BACK = range(5)
_NO_BYTES = np.empty(0, np.uint8)


def max_pool2d(
    x: NDArray[np.float32], geometry: tuple[tuple[int, int], ...]
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Compute the maximum of each window and its position; NaN is larger than any number.

    Parameters
    ----------
    x : (N, H, W, C) float32, C-contiguous
    geometry : (kernel, stride, padding), pairs of int
        Padded pixels never win.

    Returns
    -------
    maximum : (N, OH, OW, C) float32
    winner : (N, OH, OW, C) uint8
        Row-major position in the window, the first one of equal maxima.
    """
    out = empty(_pooled(x.shape, geometry), np.float32)
    winner = empty(out.shape, np.uint8)
    _run(_MAX, x.shape, geometry, x, winner, out)
    return out, winner


def max_unpool2d(
    grad: NDArray[np.float32],
    winner: NDArray[np.uint8],
    image: tuple[int, int],
    geometry: tuple[tuple[int, int], ...],
) -> NDArray[np.float32]:
    """Apply the adjoint for fixed winners: each value goes to the pixel that won its window.

    Parameters
    ----------
    grad : (N, OH, OW, C) float32, C-contiguous
    winner : (N, OH, OW, C) uint8, C-contiguous
    image : (H, W)
    geometry : (kernel, stride, padding), pairs of int

    Returns
    -------
    (N, H, W, C) float32
    """
    out = empty((len(grad), *image, grad.shape[-1]), np.float32)
    _run(_MAX_BACK, out.shape, geometry, grad, winner, out)
    return out


def avg_pool2d(
    x: NDArray[np.float32], geometry: tuple[tuple[int, int], ...]
) -> NDArray[np.float32]:
    """Compute the mean of each window: 0.0 plus its pixels in row-major order, times 1 / size.

    Padded pixels are 0.0, which, like the first 0.0, changes only the sign of a zero.

    Parameters
    ----------
    x : (N, H, W, C) float32, C-contiguous
    geometry : (kernel, stride, padding), pairs of int

    Returns
    -------
    (N, OH, OW, C) float32
    """
    out = empty(_pooled(x.shape, geometry), np.float32)
    _run(_MEAN, x.shape, geometry, x, _NO_BYTES, out)
    return out


def bind_avg_pool2d(
    x: NDArray[np.float32],
    geometry: tuple[tuple[int, int], ...],
    out: NDArray[np.float32],
    total: bool = False,
) -> Callable[[], None]:
    """Prepare `avg_pool2d` for repeated calls on the same arrays.

    Parameters
    ----------
    x : (N, H, W, C) float32, C-contiguous
    geometry : (kernel, stride, padding), pairs of int
    out : (N, OH, OW, C) float32, C-contiguous
        Array for the result.
    total : bool
        Compute the sums of the windows instead of their means.

    Returns
    -------
    callable
        Takes no arguments. It uses as many threads as are set now.

    Raises
    ------
    ValueError
        If an array is not as described.
    """
    name = "bind_avg_pool2d"
    check_floats(name, "x", x, x.shape if x.ndim == 4 else "(N, H, W, C)")
    check_floats(name, "out", out, _pooled(x.shape, geometry))
    step = _SUM if total else _MEAN
    worker, shares, arguments = _work(step, x.shape, geometry, x, _NO_BYTES, out)
    return parallel.bind(worker, shares, *arguments)


def avg_pool2d_reference(
    x: NDArray[np.float32], geometry: tuple[tuple[int, int], ...]
) -> NDArray[np.float32]:
    """Compute `avg_pool2d` in plain NumPy, adding one tap at a time; shapes as there."""
    window = windows("avg_pool2d_reference", x.shape[1:3], *geometry)
    total = np.zeros((len(x), *window.out_size, x.shape[3]), np.float32)
    for *_, seen in window.views(with_border(x, window.padding)):
        total += seen
    return total * np.float32(1 / window.taps)


def avg_unpool2d(
    grad: NDArray[np.float32], image: tuple[int, int], geometry: tuple[tuple[int, int], ...]
) -> NDArray[np.float32]:
    """Apply the adjoint: add each value, times 1 / size, to all pixels of its window.

    Parameters
    ----------
    grad : (N, OH, OW, C) float32, C-contiguous
    image : (H, W)
    geometry : (kernel, stride, padding), pairs of int

    Returns
    -------
    (N, H, W, C) float32
    """
    out = empty((len(grad), *image, grad.shape[-1]), np.float32)
    _run(_MEAN_BACK, out.shape, geometry, grad, _NO_BYTES, out)
    return out


def _pooled(shape, geometry):
    n, h, w, c = shape
    return n, *windows("pooling", (h, w), *geometry).out_size, c


def _run(step, shape, geometry, source, winner, out):
    arrays = for_kernel(source), for_kernel(winner), out
    worker, shares, arguments = _work(step, shape, geometry, *arrays)
    parallel.share_out(worker, shares, *arguments)


def _work(step, shape, geometry, source, winner, out):
    """Return the kernel of a step, the rows of each thread, and the kernel's other arguments."""
    window, rows = windows("pooling", shape[1:3], *geometry), len(out) * out.shape[1]
    arrays = source.reshape(-1), winner.reshape(-1), out.reshape(-1)
    arguments = step, window, shape[3], *arrays
    tasks = min(threads.tasks_for(max(source.size, out.size) / _SPEED), max(rows, 1))
    worker = _pool if step in (_MAX, _MEAN, _SUM) else _spread
    return worker, parallel.shares(rows, tasks), arguments


@kernel(allocates=False)
def _pool(first, end, task, step, window, channels, x, winner, out):
    """Compute rows first to end - 1 of the windows, numbered across all images."""
    height, width, oh, ow, kh, kw, sh, sw, ph, pw, _, _ = window
    share = np.float32(1 / (kh * kw))
    for row in range(first, end):
        image, top = row // oh * height, row % oh * sh - ph
        for ox in range(ow):
            left, at = ox * sw - pw, (row * ow + ox) * channels
            target = out[at : at + channels]
            is_first = True
            for i in range(max(0, -top), min(kh, height - top)):
                for j in range(max(0, -left), min(kw, width - left)):
                    pixel = ((image + top + i) * width + left + j) * channels
                    values = x[pixel : pixel + channels]
                    if step != _MAX:
                        for c in range(channels):
                            target[c] = values[c] + (np.float32(0) if is_first else target[c])
                    else:
                        tap, winners = np.uint8(i * kw + j), winner[at : at + channels]
                        for c in range(channels):
                            # All three are loaded first, so that AVX2 needs no branch either.
                            value, best, old = values[c], target[c], winners[c]
                            wins = is_first | ((not value <= best) & (best == best))
                            target[c] = value if wins else best
                            winners[c] = tap if wins else old
                    is_first = False
            if step == _MEAN:
                for c in range(channels):
                    target[c] *= share


@kernel(allocates=False)
def _spread(first, end, task, step, window, channels, grad, winner, out):
    """Compute rows of the gradient in the image, each pixel from the windows that contain it."""
    height, width, oh, ow, kh, kw, sh, sw, ph, pw, _, _ = window
    share = np.float32(1 / (kh * kw))
    for row in range(first, end):
        image, y = row // height * oh, row % height + ph
        for x in range(pw, width + pw):
            at = (row * width + x - pw) * channels
            target = out[at : at + channels]
            is_first = True
            # The pixel is tap (i, j) of window ((y - i) / sh, (x - j) / sw) where these are whole.
            for i in range(y % sh, min(kh, y + 1), sh):
                for j in range(x % sw, min(kw, x + 1), sw):
                    oy, ox = (y - i) // sh, (x - j) // sw
                    if oy >= oh or ox >= ow:
                        continue
                    start = ((image + oy) * ow + ox) * channels
                    grads = grad[start : start + channels]
                    if step == _MEAN_BACK:
                        for c in range(channels):
                            more = grads[c] * share
                            target[c] = more + (np.float32(0) if is_first else target[c])
                    else:
                        tap, winners = np.uint8(i * kw + j), winner[start : start + channels]
                        for c in range(channels):
                            more = grads[c] if winners[c] == tap else np.float32(0)
                            target[c] = more + (np.float32(0) if is_first else target[c])
                    is_first = False
            if is_first:
                for c in range(channels):
                    target[c] = 0
