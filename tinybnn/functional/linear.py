"""The dense layer, and the product of matrices whose sums run in one fixed order."""

from __future__ import annotations

import numpy as np

from tinybnn.autograd import Function, reshape
from tinybnn.kernels import dispatch
from tinybnn.kernels.machine.memory import empty


class Linear(Function):
    """x @ weight.T for rows x : (M, K), weight : (N, K)."""

    fresh = True

    def forward(self, x, weight, fixed_order=False):
        return product(x, weight.T, fixed_order)

    def backward(self, grad, output, x, weight):
        return (
            LinearInput.apply(grad, weight) if self.needs[0] else None,
            LinearWeight.apply(x, grad) if self.needs[1] else None,
        )


class LinearInput(Function):
    """grad @ weight for rows grad : (M, N), weight : (N, K); the gradient of the rows."""

    fresh = True

    def forward(self, grad, weight):
        return product(grad, weight, False)

    def backward(self, grad, output, g, weight):
        return (
            Linear.apply(grad, weight) if self.needs[0] else None,
            LinearWeight.apply(grad, g) if self.needs[1] else None,
        )


class LinearWeight(Function):
    """grad.T @ x for rows grad : (M, N), x : (M, K); the gradient of the weight."""

    fresh = True

    def forward(self, x, grad):
        return product(grad.T, x, False)

    def backward(self, grad, output, x, g):
        return (
            LinearInput.apply(g, grad) if self.needs[0] else None,
            Linear.apply(x, grad) if self.needs[1] else None,
        )


def linear(x, weight, bias=None, *, fixed_order=False):
    """y = x @ weight.T + bias.

    Parameters
    ----------
    x : (..., in_features)
    weight : (out_features, in_features)
    bias : (out_features,), optional
    fixed_order : bool
        Evaluate the sums in one fixed order (`kernels.floats.ordered_matmul`) rather than by BLAS,
        whose order depends on the batch. Layers in eval mode do, so that a packed model can
        give the same floats.
    """
    shape, expected = np.shape(x), np.shape(weight)
    check_linear("linear", shape, expected)
    check_bias("linear", bias, expected[0])
    rows = x if len(shape) == 2 else reshape(x, (-1, shape[-1]))
    output = Linear.apply(rows, weight, fixed_order=fixed_order)
    if len(shape) != 2:
        output = reshape(output, (*shape[:-1], expected[0]))
    return output if bias is None else output + bias


def check_linear(name, shape, expected):
    """The rows of x must have one value for each column of the weight."""
    if len(expected) != 2 or not shape or shape[-1] != expected[1]:
        raise ValueError(
            f"{name}: weight of shape {expected} expects {expected[-1]} features, "
            f"x has {shape[-1] if shape else 'no axis'} (shape {shape})"
        )


def check_bias(name, bias, outputs):
    """A bias must have one value for each output."""
    if bias is not None and np.shape(bias) != (outputs,):
        raise ValueError(f"{name}: bias must have the shape ({outputs},), got {np.shape(bias)}")


def product(a, b, fixed_order):
    """a @ b, of matrices or stacks of them; with `fixed_order` each sum adds its terms in order."""
    if fixed_order:
        return dispatch.ordered_matmul(a, b)
    if not a.ndim == b.ndim == 2 or a.dtype != b.dtype:
        return a @ b
    return np.matmul(a, b, out=empty((len(a), b.shape[1]), a.dtype))
