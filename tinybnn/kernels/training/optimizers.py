"""One optimizer step of one parameter, with clipping of latent weights, in one pass over memory.

The formulas are the `update` methods in `optim`. The kernels perform the same float32 operations in
the same order, none contracted, so the results are equal bit for bit. Each number is independent,
so they do not depend on the number of threads.

All arrays are (n,) float32 and C-contiguous; those that hold the state are changed in place.

For speed alone: NumPy makes a dozen passes, and a step of the MLP 784-1024-1024-10 takes twice as
long. `tinybnn bench train --profile` shows the share of updates.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tinybnn.kernels.machine import parallel, threads
from tinybnn.kernels.machine.layout import described, for_kernel
from tinybnn.kernels.machine.simd import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SPEED = 6e9  # numbers per second on a fast core
_NONE = np.empty(0, np.float32)


class AdamStep(NamedTuple):
    """Constants of a step of Adam or AdamW.

    Attributes
    ----------
    size : float
        Learning rate divided by 1 - beta1 ** step.
    beta1, beta2 : float
    root : float
        sqrt(1 - beta2 ** step).
    eps : float
    shrink : float
        Factor applied to the weight first: 1 - lr * decay in AdamW, else 1.
    decay : float
        L2 penalty.
    clip : float
        The weight is then clipped to [-clip, clip]; infinity for no clipping.
    """

    size: float
    beta1: float
    beta2: float
    root: float
    eps: float
    shrink: float = 1.0
    decay: float = 0.0
    clip: float = math.inf


class SgdStep(NamedTuple):
    """Constants of a step of stochastic gradient descent; the last two as in `AdamStep`."""

    lr: float
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    decay: float = 0.0
    clip: float = math.inf


def adam(
    weight: NDArray[np.float32],
    grad: NDArray[np.float32],
    mean: NDArray[np.float32],
    square: NDArray[np.float32],
    step: AdamStep,
) -> None:
    """Update a weight by Adam or AdamW.

    Parameters
    ----------
    weight, grad, mean, square : (n,) float32
        All except grad are changed.
    step : AdamStep
    """
    _run(_adam, weight, grad, (mean, square), step)


def sgd(
    weight: NDArray[np.float32],
    grad: NDArray[np.float32],
    velocity: NDArray[np.float32] | None,
    step: SgdStep,
) -> None:
    """Update a weight by stochastic gradient descent.

    Parameters
    ----------
    weight, grad : (n,) float32
        weight is changed.
    velocity : (n,) float32 or None
        Changed; None without momentum.
    step : SgdStep
    """
    _run(_sgd, weight, grad, (_NONE if velocity is None else velocity,), step)


def _run(worker, weight, grad, state, step):
    for array in (weight, *state):
        if not array.flags.carray:
            raise ValueError(
                "optimizers: all arrays except grad must be contiguous and writable, "
                f"got {described(array)}"
            )
    # Converted to floats, so that the kernel is compiled for these types only.
    constants = tuple(map(float, step))
    shares = parallel.shares(len(weight), threads.tasks_for(len(weight) / _SPEED))
    parallel.share_out(worker, shares, weight, for_kernel(grad), *state, constants)


# ---------------------------------------------------------------------------------------- kernels


@kernel(allocates=False)
def _adam(first, end, task, weight, grad, mean, square, constants):
    """Update numbers first to end - 1."""
    step = AdamStep(*constants)
    weight, grad = weight[first:end], grad[first:end]
    mean, square = mean[first:end], square[first:end]
    mean_rate, square_rate = np.float32(1 - step.beta1), np.float32(1 - step.beta2)
    keep, size, root = np.float32(step.beta2), np.float32(step.size), np.float32(step.root)
    eps, shrink, decay = np.float32(step.eps), np.float32(step.shrink), np.float32(step.decay)
    clip = np.float32(step.clip)
    for i in range(len(weight)):
        w = weight[i] * shrink
        g = grad[i] + decay * w if decay else grad[i]
        m = mean[i] + mean_rate * (g - mean[i])
        s = square[i] * keep + square_rate * (g * g)
        mean[i], square[i] = m, s
        w -= size * (m / (np.sqrt(s) / root + eps))
        weight[i] = min(max(w, -clip), clip)


@kernel(allocates=False)
def _sgd(first, end, task, weight, grad, velocity, constants):
    """Update numbers first to end - 1; ``velocity`` is empty without momentum."""
    step = SgdStep(*constants)
    weight, grad, velocity = weight[first:end], grad[first:end], velocity[first:end]
    momentum, share = np.float32(step.momentum), np.float32(1 - step.dampening)
    lr, decay, clip = np.float32(step.lr), np.float32(step.decay), np.float32(step.clip)
    for i in range(len(weight)):
        g = grad[i] + decay * weight[i] if decay else grad[i]
        if len(velocity):
            v = velocity[i] * momentum + share * g
            velocity[i] = v
            g = g + momentum * v if step.nesterov else v
        weight[i] = min(max(weight[i] - lr * g, -clip), clip)
