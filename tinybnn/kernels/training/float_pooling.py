"""Maximum and mean over windows of float images, and the way back of their gradients.

Images are (N, H, W, C). The rules that these kernels stand in for are those of
`functional.pooling`, and the numbers are theirs: the pixels of a window in row-major order, a
gradient's shares in the order in which the rule adds them. (`kernels.signs.pooling` is the same for
packed signs.)

On the way back a kernel does not scatter over windows but gathers for each pixel, so that each
number is written once, and threads can share out the rows of the image.

For speed alone: with the rules a step of the CNN for MNIST takes twice as long. `tinybnn bench
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

MOST_TAPS = 255  # pixels of a window; their numbers are bytes
_SPEED = 1.3e10  # floats of the larger image a second, of a fast core

_MAX, _MEAN, _SUM, _MAX_BACK, _MEAN_BACK = range(5)
_NO_BYTES = np.empty(0, np.uint8)


def max_pool2d(
    x: NDArray[np.float32], geometry: tuple[tuple[int, int], ...]
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """The maximum of each window and which pixel it is; NaN is larger than any number.

    Parameters
    ----------
    x : (N, H, W, C) float32, C-contiguous
    geometry : (kernel, stride, padding), pairs of int
        Padded pixels never win.

    Returns
    -------
    maximum : (N, OH, OW, C) float32
    winner : (N, OH, OW, C) uint8
        Row-major position in the window, of the first one of equal maxima.
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
    """The adjoint for fixed winners: each value goes to the pixel that won its window.

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
    """The mean of each window: 0.0 plus its pixels in row-major order, times 1 / size.

    Padded pixels are 0.0, which changes nothing but the sign of a zero; so does the first 0.0.

    Parameters and result as in `max_pool2d`, without the winner.
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
    """What `avg_pool2d` does, for the same arrays again and again.

    Parameters
    ----------
    x : (N, H, W, C) float32, C-contiguous
    geometry : (kernel, stride, padding), pairs of int
    out : (N, OH, OW, C) float32, C-contiguous
        Is written to.
    total : bool
        Whether the sums of the windows are wanted instead of their means.

    Returns
    -------
    callable
        Without arguments. It uses as many threads as are set now.

    Raises
    ------
    ValueError
        If an array is not as above.
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
    """What `avg_pool2d` computes, in plain NumPy: taps added one after the other."""
    of = windows("avg_pool2d_reference", x.shape[1:3], *geometry)
    total = np.zeros((len(x), *of.out_size, x.shape[3]), np.float32)
    for *_, seen in of.views(with_border(x, of.padding)):
        total += seen
    return total * np.float32(1 / of.taps)


def avg_unpool2d(
    grad: NDArray[np.float32], image: tuple[int, int], geometry: tuple[tuple[int, int], ...]
) -> NDArray[np.float32]:
    """The adjoint: each value, times 1 / size, is added to all pixels of its window.

    Parameters and result as in `max_unpool2d`, without the winner.
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
    """The kernel of a step, the rows of each thread, and the kernel's further arguments."""
    of, rows = windows("pooling", shape[1:3], *geometry), len(out) * out.shape[1]
    arrays = source.reshape(-1), winner.reshape(-1), out.reshape(-1)
    arguments = step, of, shape[3], *arrays
    tasks = min(threads.tasks_for(max(source.size, out.size) / _SPEED), max(rows, 1))
    worker = _pool if step in (_MAX, _MEAN, _SUM) else _spread
    return worker, parallel.shares(rows, tasks), arguments


@kernel(allocates=False)
def _pool(first, end, task, step, of, channels, x, winner, out):
    """Rows first to end - 1 of the windows, counted through all images."""
    height, width, oh, ow, kh, kw, sh, sw, ph, pw, _, _ = of
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
                        tap, won = np.uint8(i * kw + j), winner[at : at + channels]
                        for c in range(channels):
                            # All three are loaded first: then AVX2, too, needs no branch.
                            value, best, old = values[c], target[c], won[c]
                            wins = is_first | ((not value <= best) & (best == best))
                            target[c] = value if wins else best
                            won[c] = tap if wins else old
                    is_first = False
            if step == _MEAN:
                for c in range(channels):
                    target[c] *= share


@kernel(allocates=False)
def _spread(first, end, task, step, of, channels, grad, winner, out):
    """Rows of the gradient in the image, pixel by pixel from the windows that it lies in."""
    height, width, oh, ow, kh, kw, sh, sw, ph, pw, _, _ = of
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
                    window = ((image + oy) * ow + ox) * channels
                    given = grad[window : window + channels]
                    if step == _MEAN_BACK:
                        for c in range(channels):
                            more = given[c] * share
                            target[c] = more + (np.float32(0) if is_first else target[c])
                    else:
                        tap, won = np.uint8(i * kw + j), winner[window : window + channels]
                        for c in range(channels):
                            more = given[c] if won[c] == tap else np.float32(0)
                            target[c] = more + (np.float32(0) if is_first else target[c])
                    is_first = False
            if is_first:
                for c in range(channels):
                    target[c] = 0
