"""Batch normalisation of rows of channels: statistics, forward and backward in training.

Forward and backward take two passes over memory each, one for the sums of all rows and one for the
rows themselves. The rule that they stand in for is `functional.BatchNorm`. Given the sums, results
are those of the rule bit for bit: the same operations in the same order, none contracted into
fused multiply-adds. The sums are more accurate than the rule's, which are float32 all the way. They
are made in three stages:

- 32 rows in float32, moments around a value near the channel's mean, so that little cancels (Chan,
  Golub and LeVeque 1983, "Algorithms for computing the sample variance", section 3),
- these in float64, for each of up to 64 blocks of rows,
- the blocks one after the other.

Threads share out the blocks, and their number depends on the shape alone: the result is the same
for any number of threads.

For speed alone: with the rule a step of the depth-wise separable network takes 1.6 times as long.
`tinybnn bench train --profile` shows its share of a step. Small rows pass through all stages in a
single call, which takes a third of the time of five.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from tinybnn.kernels.machine import parallel, threads
from tinybnn.kernels.machine.layout import for_kernel
from tinybnn.kernels.machine.memory import empty, empty_like
from tinybnn.kernels.machine.simd import (
    BLOCK,
    FLOATS,
    inlined,
    kernel,
    load,
    load_block,
    store,
    zeros,
)

_RUN = 32  # rows whose sums are float32
_MOST_BLOCKS = 64
_PER_BLOCK = 1 << 17  # floats of a block, at least
_SPEED = 1.3e10  # floats a second, of a fast core

_MOMENTS, _PRODUCTS, _NORMALISE, _GRADIENT = range(4)  # what a pass over memory does
_SAMPLE = 16  # rows whose mean is near the mean of all
_NO_SCALE = np.empty(0, np.float32)


def fits(x):
    """Whether all kernels take these rows: 128 floats at least; `forward` and `backward` any."""
    return x.size >= BLOCK


def statistics(x, eps):
    """Mean, biased variance and 1 / sqrt(variance + eps) of each channel.

    Parameters
    ----------
    x : (M, C) float32, C-contiguous, at least 128 numbers
    eps : float

    Returns
    -------
    mean, var, scale : (C,) float32
    """
    x = for_kernel(x)
    near = empty((_joined(*x.shape), x.shape[1]), np.float32)
    _near(x, -(-len(x) // _SAMPLE), near)
    result = np.empty((3, x.shape[1]), np.float32)
    _sums(_MOMENTS, x, x, near.reshape(-1), eps, _NO_SCALE, result)
    return tuple(result)


def normalise(x, mean, scale, weight, bias):
    """``((x - mean) * scale) * weight + bias`` for each channel, each operation rounded.

    Parameters
    ----------
    x : (M, C) float32, C-contiguous, at least 128 numbers
    mean, scale, weight, bias : (C,) float32

    Returns
    -------
    (M, C) float32
    """
    return _elementwise(_NORMALISE, x, x, (mean, scale, weight, bias))


def gradient_sums(grad, x, mean, scale):
    """Gradients of weight and bias: sums of grad times the normalised x, and of grad.

    Parameters
    ----------
    grad, x : (M, C) float32, C-contiguous, at least 128 numbers
    mean, scale : (C,) float32

    Returns
    -------
    grad_weight, grad_bias : (C,) float32
    """
    grad, x, scale = map(for_kernel, (grad, x, scale))
    near = _repeated(_joined(*x.shape), mean).reshape(-1)
    result = np.empty((2, x.shape[1]), np.float32)
    _sums(_PRODUCTS, x, grad, near, 0.0, scale, result)
    return tuple(result)


def gradient(grad, x, mean, scale, weight, grad_weight, grad_bias):
    """The gradient in x, with statistics of the batch (Ioffe and Szegedy 2015, section 3).

    ``(grad - grad_bias / M - normalised * grad_weight / M) * weight * scale``, where normalised is
    ``(x - mean) * scale``.

    Parameters
    ----------
    grad, x : (M, C) float32, C-contiguous, at least 128 numbers
    mean, scale, weight, grad_weight, grad_bias : (C,) float32

    Returns
    -------
    (M, C) float32
    """
    share = 1.0 / len(x)
    constants = mean, scale, grad_bias * share, grad_weight * share, weight * scale
    return _elementwise(_GRADIENT, x, grad, constants)


def forward(x, weight, bias, eps):
    """Statistics and `normalise` by them: small rows in a single call.

    Parameters
    ----------
    x : (M, C) float32, C-contiguous
    weight, bias : (C,) float32
    eps : float

    Returns
    -------
    out : (M, C) float32
    mean, var, scale : (C,) float32
    """
    x, weight, bias = map(for_kernel, (x, weight, bias))
    if threads.tasks_for(x.size / _SPEED) > 1:
        mean, var, scale = statistics(x, eps)
        return normalise(x, mean, scale, weight, bias), mean, var, scale
    out, result = empty_like(x), np.empty((3, x.shape[1]), np.float32)
    _forward(_joined(*x.shape), x, weight, bias, eps, result, out)
    return out, *result


def backward(grad, x, mean, scale, weight):
    """Gradients in x, weight and bias: `gradient_sums` and `gradient`, small rows in a single call.

    Parameters
    ----------
    grad, x : (M, C) float32, C-contiguous
    mean, scale, weight : (C,) float32

    Returns
    -------
    grad_x : (M, C) float32
    grad_weight, grad_bias : (C,) float32
    """
    grad, x, mean, scale, weight = map(for_kernel, (grad, x, mean, scale, weight))
    if threads.tasks_for(x.size / _SPEED) > 1:
        sums = gradient_sums(grad, x, mean, scale)
        return gradient(grad, x, mean, scale, weight, *sums), *sums
    out, result = empty_like(x), np.empty((2, x.shape[1]), np.float32)
    _backward(_joined(*x.shape), x, grad, mean, scale, weight, result, out)
    return out, *result


# ------------------------------------------------------------------------------------- wide rows


@functools.lru_cache(256)
def _joined(rows, channels):
    """How many rows are seen as one wide row: at least 128 floats, as near to whole blocks of 128
    as may be. The last wide row begins early enough to be full."""

    def wasted(joined):
        width = joined * channels
        return -(-width // BLOCK) * BLOCK / width

    least = -(-BLOCK // channels)
    most = max(least, min(rows, 8 * BLOCK // channels))
    return min(range(least, most + 1), key=wasted)


@inlined
def _blocks(size, whole):
    """How many blocks share the full wide rows of so many numbers."""
    return max(1, min(_MOST_BLOCKS, size // _PER_BLOCK, whole // _RUN))


class _Pass(NamedTuple):
    """A pass over memory: what it does, and so many wide rows, which blocks share."""

    step: int
    rows: int
    blocks: int
    width: int


def _sums(step, x, grad, near, eps, scale, result):
    """Two sums over the rows for each channel, and what `_finish` makes of them."""
    joined, width = _joined(*x.shape), len(near)
    whole = len(x) // joined
    blocks = _blocks(x.size, whole)
    run, partial = empty((blocks, 2, width), np.float32), np.zeros((blocks, 2, width))
    of = _Pass(step, whole, blocks, width)
    _run(_add, of, x, grad.reshape(-1), near, run.reshape(-1), partial)
    _finish(step, whole * joined, x, grad, near, partial, eps, scale, result)


def _elementwise(step, x, grad, constants):
    x, grad = for_kernel(x), for_kernel(grad)
    out, joined = empty_like(x), _joined(*x.shape)
    constants = _repeated(joined, *constants).reshape(-1)
    of = _Pass(step, -(-len(x) // joined), _MOST_BLOCKS, joined * x.shape[1])
    _run(_change, of, x, grad.reshape(-1), constants, out.reshape(-1))
    return out


def _run(worker, of, x, *arrays):
    tasks = min(threads.tasks_for(x.size / _SPEED), of.blocks)
    parallel.share_out(worker, parallel.shares(of.blocks, tasks), of, x.reshape(-1), *arrays)


def _repeated(times, *vectors):
    """Each vector as often as rows are joined: (len(vectors), times, C)."""
    rows = empty((len(vectors), times, len(vectors[0])), np.float32)
    for row, vector in zip(rows, vectors, strict=True):
        row[:] = vector
    return rows


# ---------------------------------------------------------------------------------------- kernels

# The last vector of a wide row may overlap the one before; what both hold is then computed twice.


@kernel(allocates=False)
def _add(first, end, task, of, x, grad, near, run, partial):
    """Two sums for each lane of the wide rows of blocks first to end - 1."""
    step, rows, blocks, width = of
    for block in range(first, end):
        to, behind = 2 * block * width, (block + 1) * rows // blocks
        for row in range(block * rows // blocks, behind, _RUN):
            after = min(row + _RUN, behind)
            for i in range(0, width, BLOCK):
                lane = min(i, width - BLOCK)
                center = load_block(near, lane)
                total, products = zeros(BLOCK), zeros(BLOCK)
                for at in range(row * width + lane, after * width + lane, width):
                    distance = load_block(x, at) - center
                    if step == _MOMENTS:
                        total = total + distance
                        products = products + distance * distance
                    else:
                        given = load_block(grad, at)
                        total = total + given
                        products = products + given * distance
                store(run, to + lane, total)
                store(run, to + width + lane, products)
            for i in range(width):
                partial[block, 0, i] += run[to + i]
                partial[block, 1, i] += run[to + width + i]


@kernel(allocates=False)
def _near(x, step, out):
    """A value near the mean of each channel: the mean of some rows from all over the batch."""
    for channel in range(x.shape[1]):
        total, count = np.float32(0), np.float32(0)
        for row in range(0, len(x), step):
            total += x[row, channel]
            count += np.float32(1)
        near = total / count
        for i in range(len(out)):
            out[i, channel] = near if np.isfinite(near) else np.float32(0)


@kernel(allocates=False)
def _finish(step, done, x, grad, near, partial, eps, scale, result):
    """Add up blocks, joined rows and, from row ``done`` on, those that do not fill another one.

    Of the moments of a channel come its mean, variance and 1 / sqrt(variance + eps); of products
    the gradients of weight and bias.
    """
    blocks, _, width = partial.shape
    rows, channels = x.shape
    for channel in range(channels):
        total = products = 0.0
        for at in range(channel, width, channels):
            total_at = products_at = 0.0
            for block in range(blocks):
                total_at += partial[block, 0, at]
                products_at += partial[block, 1, at]
            total += total_at
            products += products_at
        center = np.float64(near[channel])
        for row in range(done, rows):
            distance = x[row, channel] - center
            given = distance if step == _MOMENTS else np.float64(grad[row, channel])
            total += given
            products += given * distance
        if step == _MOMENTS:
            offset = total / rows
            variance = products / rows - offset * offset
            if variance < 0:  # by rounding
                variance = 0.0
            deviation = np.sqrt(variance + eps)
            result[0, channel] = center + offset
            result[1, channel] = variance
            result[2, channel] = 1 / deviation if deviation != 0 else np.inf
        else:
            result[0, channel] = products * scale[channel]
            result[1, channel] = total


@kernel(allocates=False)
def _change(first, end, task, of, x, grad, constants, out):
    """Blocks first to end - 1 of the output, or of the gradient in the input."""
    step, rows, blocks, width = of
    for row in range(first * rows // blocks, end * rows // blocks):
        start = min(row * width, len(x) - width)  # the last row may overlap the one before
        for i in range(0, width, FLOATS):
            lane = min(i, width - FLOATS)
            at = start + lane
            distance = load(x, at) - load(constants, lane)
            normalised = distance * load(constants, width + lane)
            third = load(constants, 2 * width + lane)
            fourth = load(constants, 3 * width + lane)
            if step == _NORMALISE:
                result = normalised * third + fourth
            else:
                result = load(grad, at) - third - normalised * fourth
                result = result * load(constants, 4 * width + lane)
            store(out, at, result)


@kernel
def _forward(joined, x, weight, bias, eps, result, out):
    """All stages of `forward` on one thread."""
    near = np.empty((joined, x.shape[1]), np.float32)
    _near(x, -(-len(x) // _SAMPLE), near)
    _all_sums(_MOMENTS, joined, x, x, near.reshape(-1), eps, weight, result)
    constants = np.empty((4, joined, x.shape[1]), np.float32)
    for i in range(joined):
        for c in range(x.shape[1]):
            constants[0, i, c], constants[1, i, c] = result[0, c], result[2, c]
            constants[2, i, c], constants[3, i, c] = weight[c], bias[c]
    _all_rows(_NORMALISE, joined, x, x, constants, out)


@kernel
def _backward(joined, x, grad, mean, scale, weight, result, out):
    """All stages of `backward` on one thread."""
    near = np.empty((joined, x.shape[1]), np.float32)
    for i in range(joined):
        for c in range(x.shape[1]):
            near[i, c] = mean[c]
    _all_sums(_PRODUCTS, joined, x, grad, near.reshape(-1), 0.0, scale, result)
    constants, share = np.empty((5, joined, x.shape[1]), np.float32), np.float32(1 / len(x))
    for i in range(joined):
        for c in range(x.shape[1]):
            constants[0, i, c], constants[1, i, c] = mean[c], scale[c]
            constants[2, i, c] = result[1, c] * share
            constants[3, i, c] = result[0, c] * share
            constants[4, i, c] = weight[c] * scale[c]
    _all_rows(_GRADIENT, joined, x, grad, constants, out)


@kernel
def _all_sums(step, joined, x, grad, near, eps, scale, result):
    whole, width = len(x) // joined, len(near)
    blocks = _blocks(x.size, whole)
    run, partial = np.empty(2 * blocks * width, np.float32), np.zeros((blocks, 2, width))
    of = _Pass(step, whole, blocks, width)
    _add(0, blocks, 0, of, x.reshape(-1), grad.reshape(-1), near, run, partial)
    _finish(step, whole * joined, x, grad, near, partial, eps, scale, result)


@kernel
def _all_rows(step, joined, x, grad, constants, out):
    width = joined * x.shape[1]
    of, constants = _Pass(step, -(-len(x) // joined), 1, width), constants.reshape(-1)
    x, grad, out = x.reshape(-1), grad.reshape(-1), out.reshape(-1)
    if len(x) >= width:
        _change(0, 1, 0, of, x, grad, constants, out)
        return
    wide = np.zeros((3, width), np.float32)  # fewer numbers than a wide row has are filled up
    for i in range(len(x)):
        wide[0, i], wide[1, i] = x[i], grad[i]
    _change(0, 1, 0, of, wide[0], wide[1], constants, wide[2])
    for i in range(len(x)):
        out[i] = wide[2, i]
