"""Checks of code that computes gradients.

A gradient rule is compared with central differences, which need only values of the function. One
number suffices for a whole array: for a random direction v of the input and random weights r of the
output, the rule predicts the slope of L(x) = sum(f(x) * r) along v, and

    (L(x + eps v) - L(x - eps v)) / (2 eps)

measures it. A wrong element of the gradient changes the prediction with probability one, and the
check costs two evaluations of f for each input of any size.

The function must be smooth between x - eps v and x + eps v: keep inputs away from kinks (0 for
relu, equal values in a maximum).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tinybnn.autograd import Tensor, as_array, grad

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tinybnn.typing import TensorLike

__all__ = ["gradcheck", "gradgradcheck"]

_LARGEST_SEARCHED = 1000  # after a failure, inputs up to this size are checked by element


def gradcheck(
    function: Callable[..., Tensor],
    inputs: TensorLike | Sequence[TensorLike],
    *,
    surrogate: Callable[..., Any] | None = None,
    rng: np.random.Generator | None = None,
    eps: float = 1e-6,
    rtol: float = 1e-5,
    atol: float = 1e-6,
) -> None:
    """Check the gradient of a function in each of its inputs against central differences.

    Parameters
    ----------
    function : callable
        Takes one Tensor for each input and returns a Tensor of any shape. It must be deterministic:
        a random operation needs a generator that is reseeded in each call.
    inputs : Tensor, array or sequence of them
        They may have any shape, and are converted to float64; strides are kept.
    surrogate : callable, optional
        Function to take differences of instead of `function`: the straight-through estimator of a
        quantizer follows the slope of its surrogate.
    rng : numpy.random.Generator, optional
        Source of the directions; default: a fixed seed.
    eps : float
        Half the distance between the two points of a difference.
    rtol, atol : float
        Slopes may differ by ``atol + rtol * (the larger magnitude of the two)``.

    Raises
    ------
    AssertionError
        With the operation, the input, the shapes, both slopes and the element with the largest
        error.

    Examples
    --------
    >>> from tinybnn import functional as F
    >>> gradcheck(F.softmax, [np.array([[1.0, 2.0, -1.0]])])
    """
    arrays = _float64(inputs)
    measured = function if surrogate is None else surrogate
    _check(
        lambda *xs: (_one_tensor(function(*xs)),),
        lambda *xs: (as_array(measured(*xs)),),
        arrays,
        "the gradient",
        [f"input {i}" for i in range(len(arrays))],
        _Comparison(function, rng, eps, rtol, atol),
    )


def gradgradcheck(
    function: Callable[..., Tensor],
    inputs: TensorLike | Sequence[TensorLike],
    *,
    rng: np.random.Generator | None = None,
    eps: float = 1e-6,
    rtol: float = 1e-5,
    atol: float = 1e-6,
) -> None:
    """Check the gradient of the gradient, in each input and in the incoming gradient.

    The gradients are computed twice: recorded (``create_graph=True``), to be differentiated, and as
    plain arrays, to take central differences of. Both must have the same values.

    Parameters (with their shapes) and errors are those of `gradcheck`.
    """
    arrays = _float64(inputs)
    rng = np.random.default_rng(0) if rng is None else rng
    output = _one_tensor(function(*(Tensor(a) for a in arrays)))
    incoming = rng.standard_normal(output.shape)

    def gradients(*values, create_graph):
        *xs, incoming = values
        xs = [x if x.requires_grad else Tensor(x.data, requires_grad=True) for x in xs]
        return grad(function(*xs), xs, incoming, create_graph=create_graph)

    tensors = [Tensor(a) for a in (*arrays, incoming)]
    as_arrays = gradients(*tensors, create_graph=False)
    as_tensors = gradients(*tensors, create_graph=True)
    for i, (plain, recorded) in enumerate(zip(as_arrays, as_tensors, strict=True)):
        if not np.allclose(plain.data, recorded.data, rtol=1e-9, atol=1e-9):
            raise AssertionError(
                f"gradgradcheck: {_name(function)}: the gradient in input {i} differs by "
                f"{np.abs(plain.data - recorded.data).max():.3g} with and without create_graph"
            )
    _check(
        lambda *xs: gradients(*xs, create_graph=True),
        lambda *xs: tuple(g.data for g in gradients(*xs, create_graph=False)),
        [*arrays, incoming],
        "the gradient of the gradient",
        [*(f"input {i}" for i in range(len(arrays))), "the incoming gradient"],
        _Comparison(function, rng, eps, rtol, atol),
    )


class _Comparison:
    """The settings of one check, and how it compares two slopes."""

    def __init__(self, function, rng, eps, rtol, atol) -> None:
        self.function, self.eps, self.rtol, self.atol = function, eps, rtol, atol
        self.rng = np.random.default_rng(0) if rng is None else rng

    def agree(self, analytic, numeric):
        """Whether two slopes are close; NaN never is."""
        return abs(analytic - numeric) <= self.atol + self.rtol * max(abs(analytic), abs(numeric))


def _float64(inputs):
    inputs = [inputs] if isinstance(inputs, Tensor | np.ndarray) else inputs
    return [np.asarray(as_array(x), np.float64) for x in inputs]


def _one_tensor(output):
    if not isinstance(output, Tensor):
        raise TypeError(
            f"gradcheck: the function must return one Tensor, got {type(output).__name__}"
        )
    return output


def _check(recorded, measured, arrays, what, names, comparison):
    """Compare slopes of sum(output * r), summed over outputs, along a direction in each input.

    ``recorded`` maps Tensors to Tensors with a graph, ``measured`` to plain arrays.
    """
    xs = [Tensor(a, requires_grad=True) for a in arrays]
    outputs = recorded(*xs)
    weights = [comparison.rng.standard_normal(output.shape) for output in outputs]
    for output, r in zip(outputs, weights, strict=True):
        if output.requires_grad:
            output.backward(r, retain_graph=True)
    slopes = [np.zeros(x.shape) if x.grad is None else x.grad.data for x in xs]

    def slope(i, direction):
        values = []
        for step in (comparison.eps, -comparison.eps):
            moved = [a + step * direction if j == i else a for j, a in enumerate(arrays)]
            values.append(measured(*(Tensor(a) for a in moved)))
        # Subtract before summing to lose less to rounding.
        total = sum(np.sum((a - b) * r) for a, b, r in zip(*values, weights, strict=True))
        return float(total) / (2 * comparison.eps)

    for i, (array, gradient, name) in enumerate(zip(arrays, slopes, names, strict=True)):
        direction = comparison.rng.standard_normal(array.shape)
        analytic, numeric = float(np.sum(gradient * direction)), slope(i, direction)
        if comparison.agree(analytic, numeric):
            continue
        shapes = ", ".join(f"{n} {a.shape}" for n, a in zip(names, arrays, strict=True))
        raise AssertionError(
            f"{_name(comparison.function, outputs[0])}: {what} with respect to {name} is wrong\n"
            f"  shapes: {shapes}, output {outputs[0].shape}\n"
            f"  slope along a random direction: analytic {analytic:.9g}, numeric {numeric:.9g}\n"
            f"  {_worst_element(array, gradient, lambda direction, i=i: slope(i, direction))}"
        )


def _worst_element(array, gradient, slope):
    """Describe the element where the analytic gradient is furthest from the measured slope."""
    if not 0 < array.size <= _LARGEST_SEARCHED:
        return f"(more than {_LARGEST_SEARCHED} elements: not searched for the worst one)"
    numeric = np.zeros(array.shape)
    for index in np.ndindex(array.shape):
        direction = np.zeros(array.shape)
        direction[index] = 1.0
        numeric[index] = slope(direction)
    error = np.abs(gradient - numeric)
    worst = np.unravel_index(np.argmax(error), array.shape)  # NaN counts as the largest
    return (
        f"worst element {tuple(int(i) for i in worst)}: "
        f"analytic {gradient[worst]:.9g}, numeric {numeric[worst]:.9g}"
    )


def _name(function, output=None):
    """Return the function's name and the operation that computed its output."""
    name = getattr(function, "__name__", None) or repr(function)
    if output is None or output.function is None:
        return name
    return f"{name} (last operation {type(output.function).__name__})"
