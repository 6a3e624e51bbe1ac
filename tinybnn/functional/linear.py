"""The dense layer, and matrix products with a fixed order of summation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tinybnn.autograd import Function, reshape
from tinybnn.kernels import dispatch
from tinybnn.kernels.machine.memory import empty

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from tinybnn.typing import Array, Shape, V


class Linear(Function):
    """x @ weight.T for rows x : (M, K), weight : (N, K)."""

    fresh = True

    def forward(self, x: Array, weight: Array, fixed_order: bool = False) -> Array:
        return product(x, weight.T, fixed_order)

    def backward(self, grad: V, output: V, x: V, weight: V) -> tuple[V | None, ...]:
        return (
            LinearInput.apply(grad, weight) if self.needs[0] else None,
            LinearWeight.apply(x, grad) if self.needs[1] else None,
        )


class LinearInput(Function):
    """grad @ weight for rows grad : (M, N), weight : (N, K); the gradient of the rows."""

    fresh = True

    def forward(self, grad: Array, weight: Array) -> Array:
        return product(grad, weight, False)

    def backward(self, grad: V, output: V, g: V, weight: V) -> tuple[V | None, ...]:
        return (
            Linear.apply(grad, weight) if self.needs[0] else None,
            LinearWeight.apply(grad, g) if self.needs[1] else None,
        )


class LinearWeight(Function):
    """grad.T @ x for rows grad : (M, N), x : (M, K); the gradient of the weight."""

    fresh = True

    def forward(self, x: Array, grad: Array) -> Array:
        return product(grad.T, x, False)

    def backward(self, grad: V, output: V, x: V, g: V) -> tuple[V | None, ...]:
        return (
            LinearInput.apply(g, grad) if self.needs[0] else None,
            Linear.apply(x, grad) if self.needs[1] else None,
        )


def linear(
    x: V | ArrayLike,
    weight: V | ArrayLike,
    bias: V | ArrayLike | None = None,
    *,
    fixed_order: bool = False,
) -> V:
    """Compute x @ weight.T + bias: (..., in_features) -> (..., out_features).

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


def check_linear(name: str, shape: Shape, expected: Shape) -> None:
    """Raise a ValueError unless x (shape) has as many features as the weight (expected) columns."""
    if len(expected) != 2 or not shape or shape[-1] != expected[1]:
        raise ValueError(
            f"{name}: weight of shape {expected} expects {expected[-1]} features, "
            f"x has {shape[-1] if shape else 'no axis'} (shape {shape})"
        )


def check_bias(name: str, bias: Any, outputs: int) -> None:
    """Raise a ValueError unless a bias is None or of shape (outputs,)."""
    if bias is not None and np.shape(bias) != (outputs,):
        raise ValueError(f"{name}: bias must have the shape ({outputs},), got {np.shape(bias)}")


def product(a: Array, b: Array, fixed_order: bool) -> Array:
    """Compute a @ b: (..., M, K), (..., K, N) -> (..., M, N).

    With `fixed_order` each sum adds its terms in order.
    """
    if fixed_order:
        return dispatch.ordered_matmul(a, b)
    if not a.ndim == b.ndim == 2 or a.dtype != b.dtype:
        return a @ b
    return np.matmul(a, b, out=empty((len(a), b.shape[1]), a.dtype))
