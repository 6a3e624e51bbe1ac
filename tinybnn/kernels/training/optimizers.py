"""One optimizer step of one parameter, and the clipping of latent weights, in one pass over memory.

The rules are the `update` methods in `optim`. The kernels do the same operations in the same order,
in float32, none contracted: the results are the rules' bit for bit. Each number is for itself, so
they do not depend on the number of threads.

All arrays are (n,) float32 and C-contiguous; those that hold the state are changed in place.

For speed alone: NumPy takes a dozen passes. `tinybnn bench train --profile` shows the share of
updates.
"""

from __future__ import annotations

import numpy as np

from tinybnn.kernels.machine import parallel, threads
from tinybnn.kernels.machine.layout import described, for_kernel
from tinybnn.kernels.machine.simd import kernel

_SPEED = 6e9  # numbers a second, of a fast core
_NONE = np.empty(0, np.float32)

_ADAM, _SGD, _MOMENTUM, _NESTEROV = range(4)


def adam(weight, grad, mean, square, *, size, betas, root, eps, shrink, decay, clip):
    """Adam, AdamW.

    Parameters
    ----------
    weight, grad, mean, square : (n,) float32
        All but grad are changed.
    size : float
        Learning rate divided by 1 - beta1 ** step.
    betas : pair of float
    root : float
        sqrt(1 - beta2 ** step).
    eps : float
    shrink : float
        What the weight is multiplied by first: 1 - lr * decay in AdamW, else 1.
    decay : float
        L2 penalty.
    clip : float
        The weight is then limited to ± this number; infinity for none.
    """
    beta1, beta2 = betas
    constants = 1 - beta1, beta2, 1 - beta2, size, root, eps, shrink
    _run(_ADAM, weight, grad, mean, square, decay, clip, constants)


def sgd(weight, grad, velocity=None, *, lr, momentum, dampening, nesterov, decay, clip):
    """Stochastic gradient descent.

    Parameters
    ----------
    weight, grad : (n,) float32
        weight is changed.
    velocity : (n,) float32 or None
        Changed; None without momentum.
    lr, momentum, dampening : float
    nesterov : bool
    decay, clip : float
        As in `adam`.
    """
    step = _SGD if velocity is None else _NESTEROV if nesterov else _MOMENTUM
    velocity = _NONE if velocity is None else velocity
    constants = momentum, 1 - dampening, lr, 0, 0, 0, 0
    _run(step, weight, grad, velocity, _NONE, decay, clip, constants)


def _run(step, weight, grad, first, second, decay, clip, constants):
    for array in (weight, first, second):
        if not array.flags.carray:
            raise ValueError(
                "optimizers: all arrays but grad must be contiguous and writable, "
                f"got {described(array)}"
            )
    grad = for_kernel(grad)
    # As floats whatever they were: the kernel is compiled for these types alone.
    constants = tuple(map(float, (decay, clip, *constants)))
    tasks = threads.tasks_for(len(weight) / _SPEED)
    arguments = step, weight, grad, (first, second), constants
    parallel.share_out(_update, parallel.shares(len(weight), tasks), *arguments)


@kernel(allocates=False)
def _update(start, stop, task, step, weight, grad, state, constants):
    """Numbers start to stop - 1."""
    weight, grad, first = weight[start:stop], grad[start:stop], state[0][start:stop]
    decay, clip = np.float32(constants[0]), np.float32(constants[1])
    if step == _ADAM:
        mean, square = first, state[1][start:stop]
        of_mean, of_square = np.float32(constants[2]), np.float32(constants[4])
        keep, size = np.float32(constants[3]), np.float32(constants[5])
        root, eps = np.float32(constants[6]), np.float32(constants[7])
        shrink = np.float32(constants[8])
        for i in range(len(weight)):
            w = weight[i] * shrink
            g = grad[i] + decay * w if decay else grad[i]
            m = mean[i] + of_mean * (g - mean[i])
            s = square[i] * keep + of_square * (g * g)
            mean[i], square[i] = m, s
            w -= size * (m / (np.sqrt(s) / root + eps))
            weight[i] = min(max(w, -clip), clip)
        return
    momentum, share = np.float32(constants[2]), np.float32(constants[3])
    lr, velocity = np.float32(constants[4]), first
    for i in range(len(weight)):
        g = grad[i] + decay * weight[i] if decay else grad[i]
        if step != _SGD:
            v = velocity[i] * momentum + share * g
            velocity[i] = v
            g = g + momentum * v if step == _NESTEROV else v
        weight[i] = min(max(weight[i] - lr * g, -clip), clip)
