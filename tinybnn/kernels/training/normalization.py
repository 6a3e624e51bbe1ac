"""Batch normalisation of rows of channels: statistics, forward and backward in training.

Forward and backward make two passes over memory each, one for the sums of all rows and one for the
rows themselves. They compute the formula of `functional.BatchNorm`. Given the sums, the results
equal the formula's bit for bit: the same operations in the same order, none contracted into fused
multiply-adds. The sums are more accurate than the formula's, which are float32 throughout. They are
computed in three stages:

- 32 rows in float32, as moments around a value near the channel's mean, so that little cancels
  (Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance", section 3),
- these in float64, for each of up to 64 blocks of rows,
- the blocks one after the other.

Threads share the blocks, whose number depends on the shape alone, so the result is the same for any
number of threads.

For speed alone: with the formula a step of the depth-wise separable network takes 1.6 times as
long. `tinybnn bench train --profile` shows its share of a step. Small inputs pass through all
stages in a single call, which takes a third of the time of five.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tinybnn.kernels.machine import parallel, threads
from tinybnn.kernels.machine.layout import for_kernel
from tinybnn.kernels.machine.memory import empty, empty_like
from tinybnn.kernels.machine.simd import (
    FLOATS,
    copy,
    entry,
    inlined,
    kernel,
    load,
    load_like,
    store,
    subkernel,
    zeros,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

_RUN = 32  # rows summed in float32
_MOST_BLOCKS = 64
_PER_BLOCK = 1 << 17  # least floats of a block
_SPEED = 1.3e10  # floats per second on a fast core

_FORWARD, _BACKWARD, _AFFINE = range(3)  # steps that a pass over memory can belong to
_NUMBERS = 128  # of a wide row at least
_LANES = 64  # columns at a time, whose sums stay in registers
_SAMPLE = 16  # rows whose mean approximates the mean of all
_NO_SCALE = np.empty(0, np.float32)


def fits(x: NDArray[np.float32]) -> bool:
    """Tell whether all kernels take rows (M, C): those with at least 128 numbers.

    `forward` and `backward` take any.
    """
    return x.size >= _NUMBERS


def statistics(x: NDArray[np.float32], eps: float) -> tuple[NDArray[np.float32], ...]:
    """Compute mean, biased variance and 1 / sqrt(variance + eps) of each channel.

    Parameters
    ----------
    x : (M, C) float32, C-contiguous, at least 128 numbers
    eps : float

    Returns
    -------
    mean, var, scale : (C,) float32
    """
    x = for_kernel(x)
    near = empty(_joined(*x.shape) * x.shape[1], np.float32)
    _near(x.reshape(-1), x.shape[1], near)
    result = np.empty((3, x.shape[1]), np.float32)
    _sums(_FORWARD, x, x, near, eps, _NO_SCALE, result)
    return tuple(result)


def normalise(
    x: NDArray[np.float32],
    mean: NDArray[np.float32],
    scale: NDArray[np.float32],
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Compute ``((x - mean) * scale) * weight + bias`` per channel, each operation rounded.

    Parameters
    ----------
    x : (M, C) float32, C-contiguous, at least 128 numbers
    mean, scale, weight, bias : (C,) float32

    Returns
    -------
    (M, C) float32
    """
    return _elementwise(_FORWARD, x, x, (mean, scale, weight, bias))


def affine(
    x: NDArray[np.float32], alpha: NDArray[np.float32], beta: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Compute ``x * alpha + beta`` per channel, both operations rounded.

    Parameters
    ----------
    x : (M, C) float32, C-contiguous, at least 128 numbers
    alpha, beta : (C,) float32

    Returns
    -------
    (M, C) float32
    """
    return _elementwise(_AFFINE, x, x, (alpha, beta))


def gradient_sums(
    grad: NDArray[np.float32],
    x: NDArray[np.float32],
    mean: NDArray[np.float32],
    scale: NDArray[np.float32],
) -> tuple[NDArray[np.float32], ...]:
    """Compute the gradients of weight and bias: sums of grad times the normalised x, and of grad.

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
    _sums(_BACKWARD, x, grad, near, 0.0, scale, result)
    return tuple(result)


def gradient(
    grad: NDArray[np.float32],
    x: NDArray[np.float32],
    mean: NDArray[np.float32],
    scale: NDArray[np.float32],
    weight: NDArray[np.float32],
    grad_weight: NDArray[np.float32],
    grad_bias: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Compute the gradient in x, with batch statistics (Ioffe and Szegedy 2015, section 3).

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
    return _elementwise(_BACKWARD, x, grad, constants)


def forward(
    x: NDArray[np.float32], weight: NDArray[np.float32], bias: NDArray[np.float32], eps: float
) -> tuple[NDArray[np.float32], ...]:
    """Compute `statistics` and `normalise`; small inputs in a single call.

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
    result = np.empty((3, x.shape[1]), np.float32)
    constants = result[0], result[2], weight, bias
    return _all_stages(_FORWARD, x, x, constants, eps, result), *result


def backward(
    grad: NDArray[np.float32],
    x: NDArray[np.float32],
    mean: NDArray[np.float32],
    scale: NDArray[np.float32],
    weight: NDArray[np.float32],
) -> tuple[NDArray[np.float32], ...]:
    """Compute gradients in x, weight and bias; small inputs in a single call.

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
    result = np.empty((2, x.shape[1]), np.float32)
    constants = mean, scale, weight, weight
    return _all_stages(_BACKWARD, x, grad, constants, 0.0, result), *result


# ------------------------------------------------------------------------------------- wide rows


@functools.lru_cache(256)
def _joined(rows, channels):
    """Return how many rows form one wide row: at least 128 floats, close to whole blocks of 128.

    The last wide row overlaps its predecessor if it would not be full.
    """

    def wasted(joined):
        width = joined * channels
        return -(-width // _NUMBERS) * _NUMBERS / width

    least = -(-_NUMBERS // channels)
    most = max(least, min(rows, 8 * _NUMBERS // channels))
    return min(range(least, most + 1), key=wasted)


class _Pass(NamedTuple):
    """A pass over memory: its step, and the number and width of wide rows, which blocks share."""

    step: int
    rows: int
    blocks: int
    width: int


@functools.lru_cache(256)
def _pass_of_sums(step, rows, channels):
    """Plan the pass over the full wide rows."""
    joined = _joined(rows, channels)
    whole = rows // joined
    blocks = max(1, min(_MOST_BLOCKS, rows * channels // _PER_BLOCK, whole // _RUN))
    return _Pass(step, whole, blocks, joined * channels)


def _sums(step, x, grad, near, eps, scale, result):
    """Compute two sums over the rows for each channel, and the `_finish` of them."""
    plan = _pass_of_sums(step, *x.shape)
    run, partial = _scratch_of_sums(plan)
    _run(_add, plan, x, grad.reshape(-1), near, run, partial)
    _finish(plan, len(x), x.reshape(-1), grad.reshape(-1), near, partial, eps, scale, result)


def _scratch_of_sums(plan):
    """Return memory for the float32 sums of a run of rows and the float64 sums, for each block."""
    sums = 2 * plan.blocks * plan.width
    return empty(sums, np.float32), np.zeros(sums)


def _all_stages(step, x, grad, constants, eps, result):
    """Compute the output of `forward`, or the gradient in the input, in a single call."""
    (_, whole, blocks, width), out = _pass_of_sums(step, *x.shape), empty_like(x)
    floats, partial = np.empty((6 + 2 * blocks) * width, np.float32), np.zeros(2 * blocks * width)
    flat = wide = x.reshape(-1), grad.reshape(-1), out.reshape(-1)
    if x.size < width:  # fewer numbers than one wide row: padded with zeros
        wide = np.zeros((3, width), np.float32)
        wide[:2, : x.size] = flat[:2]
    sizes = whole, blocks, width, len(x)
    _all(step, *sizes, *wide, *constants, eps, result, floats, partial)
    if x.size < width:
        flat[2][:] = wide[2, : x.size]
    return out


def _elementwise(step, x, grad, constants):
    x, grad = for_kernel(x), for_kernel(grad)
    out, joined = empty_like(x), _joined(*x.shape)
    constants = _repeated(joined, *constants).reshape(-1)
    plan = _Pass(step, -(-len(x) // joined), _MOST_BLOCKS, joined * x.shape[1])
    _run(_change, plan, x, grad.reshape(-1), constants, out.reshape(-1))
    return out


def _run(worker, plan, x, *arrays):
    tasks = min(threads.tasks_for(x.size / _SPEED), plan.blocks)
    parallel.share_out(worker, parallel.shares(plan.blocks, tasks), plan, x.reshape(-1), *arrays)


def _repeated(times, *vectors):
    """Repeat each vector for the rows that are joined: (len(vectors), times, C)."""
    rows = empty((len(vectors), times, len(vectors[0])), np.float32)
    for row, vector in zip(rows, vectors, strict=True):
        row[:] = vector
    return rows


# ---------------------------------------------------------------------------------------- kernels

# The last vector of a wide row may overlap its predecessor; the overlap is computed twice.


@subkernel
def _add(first, end, task, plan, x, grad, near, run, partial):
    """Compute two sums for each lane of the wide rows of blocks first to end - 1."""
    step, rows, blocks, width = plan
    for block in range(first, end):
        to, block_end = 2 * block * width, (block + 1) * rows // blocks
        block_sums = partial[to : to + 2 * width]
        for row in range(block * rows // blocks, block_end, _RUN):
            after = min(row + _RUN, block_end)
            for i in range(0, width, _LANES):
                lane = min(i, width - _LANES)
                total, products = zeros(_LANES), zeros(_LANES)
                center = load_like(near, lane, total)
                start, stop = row * width + lane, after * width + lane
                if step == _FORWARD:
                    for at in range(start, stop, width):
                        distance = load_like(x, at, total) - center
                        total = total + distance
                        products = products + distance * distance
                else:
                    for at in range(start, stop, width):
                        value = load_like(grad, at, total)
                        total = total + value
                        products = products + value * (load_like(x, at, total) - center)
                store(run, to + lane, total)
                store(run, to + width + lane, products)
            for i in range(2 * width):
                block_sums[i] += entry(run, to + i)


@subkernel
def _near(x, channels, near):
    """Compute a value near the mean of each channel: the mean of some rows of the batch."""
    rows = len(x) // channels
    step = (rows + _SAMPLE - 1) // _SAMPLE
    for channel in range(channels):
        total, count = np.float32(0), np.float32(0)
        for row in range(0, rows, step):
            total += x[row * channels + channel]
            count += np.float32(1)
        mean = total / count
        near[channel] = mean if np.isfinite(mean) else np.float32(0)
    _repeat(near, 0, len(near), channels)


@subkernel
def _finish(plan, rows, x, grad, near, partial, eps, scale, result):
    """Add up blocks, joined rows and the last rows, which do not fill another wide one.

    The moments of a channel give its mean, variance and 1 / sqrt(variance + eps); the products give
    the gradients of weight and bias.
    """
    (step, whole, blocks, width), channels = plan, result.shape[1]
    done = whole * (width // channels)
    for channel in range(channels):
        total = products = 0.0
        for at in range(channel, width, channels):
            total_at = products_at = 0.0
            for block in range(blocks):
                total_at += partial[2 * block * width + at]
                products_at += partial[2 * block * width + width + at]
            total += total_at
            products += products_at
        center = np.float64(near[channel])
        for row in range(done, rows):
            distance = x[row * channels + channel] - center
            value = distance
            if step == _BACKWARD:
                value = np.float64(grad[row * channels + channel])
            total += value
            products += value * distance
        if step == _FORWARD:
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


@subkernel
def _change(first, end, task, plan, x, grad, constants, out):
    """Compute blocks first to end - 1 of the output, or of the gradient in the input."""
    step, rows, blocks, width = plan
    for row in range(first * rows // blocks, end * rows // blocks):
        start = min(row * width, len(x) - width)  # the last row may overlap its predecessor
        if step == _FORWARD:
            for i in range(0, width, FLOATS):
                lane = min(i, width - FLOATS)
                normalised = _normalised(x, start + lane, constants, lane, width)
                result = normalised * load(constants, 2 * width + lane)
                store(out, start + lane, result + load(constants, 3 * width + lane))
        elif step == _AFFINE:
            for i in range(0, width, FLOATS):
                lane = min(i, width - FLOATS)
                scaled = load(x, start + lane) * load(constants, lane)
                store(out, start + lane, scaled + load(constants, width + lane))
        else:
            for i in range(0, width, FLOATS):
                lane = min(i, width - FLOATS)
                normalised = _normalised(x, start + lane, constants, lane, width)
                result = load(grad, start + lane) - load(constants, 2 * width + lane)
                result = result - normalised * load(constants, 3 * width + lane)
                store(out, start + lane, result * load(constants, 4 * width + lane))


@inlined
def _normalised(x, at, constants, lane, width):
    return (load(x, at) - load(constants, lane)) * load(constants, width + lane)


@kernel(allocates=False)
def _all(
    step, whole, blocks, width, rows, x, grad, out, mean, scale, weight, bias, eps, result, floats,
    partial,
):  # fmt: skip
    """Compute all stages of `forward`, or of `backward`, on one thread.

    ``floats`` hold six wide rows and a run of sums. ``mean`` and ``scale`` may be rows of the
    result.
    """
    channels, plan = len(mean), _Pass(step, whole, blocks, width)
    near, repeated, run = floats[:width], floats[width : 6 * width], floats[6 * width :]
    if step == _FORWARD:
        _near(x[: rows * channels], channels, near)
    else:
        copy(mean, 0, near, 0, channels)
        _repeat(near, 0, width, channels)
    _add(0, blocks, 0, plan, x, grad, near, run, partial)
    _finish(plan, rows, x, grad, near, partial, eps, scale, result)
    share = np.float32(1 / rows)
    for c in range(channels):
        repeated[c], repeated[width + c] = mean[c], scale[c]
        third, fourth = weight[c], bias[c]
        if step == _BACKWARD:
            third, fourth = result[1, c] * share, result[0, c] * share
        repeated[2 * width + c], repeated[3 * width + c] = third, fourth
        repeated[4 * width + c] = weight[c] * scale[c]
    for i in range(0, 5 * width, width):
        _repeat(repeated, i, width, channels)
    joined = width // channels
    all_rows = _Pass(step, (rows + joined - 1) // joined, 1, width)
    _change(0, 1, 0, all_rows, x, grad, repeated, out)


@subkernel
def _repeat(floats, start, width, channels):
    """Copy the first channels of a wide row to the rest of it."""
    for i in range(start + channels, start + width, channels):
        copy(floats, start, floats, i, channels)
