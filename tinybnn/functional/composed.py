"""Operations that compute a composition of simpler ones in one pass."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from tinybnn.autograd import Function, Tensor
from tinybnn.autograd import grad as gradients

if TYPE_CHECKING:
    from tinybnn.typing import V


class Composed(Function):
    """A `Function` whose gradient rule on Tensors is that of an equivalent composition.

    A subclass defines ``composition(*inputs, **options)``, in simpler operations, and
    ``gradients(grad, *inputs)``, the same gradients for arrays. Its ``forward`` stores the
    ``options``.
    """

    options: dict[str, Any]
    fresh = True

    def backward(self, grad: V, output: V, *inputs: V) -> tuple[V | None, ...]:
        rule = recorded_gradients if isinstance(grad, Tensor) else type(self).gradients
        return rule(self, grad, *inputs)


@functools.singledispatch
def recorded_gradients(
    function: Composed, grad: Tensor, *inputs: Tensor
) -> tuple[Tensor | None, ...]:
    """Compute the gradients of a `Composed` as Tensors, which can be differentiated again.

    The default evaluates the whole composition again; a faster rule for a class is registered with
    ``@recorded_gradients.register``.

    Parameters
    ----------
    function : Composed
    grad : Tensor of the output's shape
    *inputs : Tensor

    Returns
    -------
    tuple of Tensor or None
        For each input a gradient of its shape; None where it needs none.
    """
    wanted = [x for x, needed in zip(inputs, function.needs, strict=True) if needed]
    value = function.composition(*inputs, **function.options)
    results = iter(gradients(value, wanted, grad, create_graph=True))
    return tuple([next(results) if needed else None for needed in function.needs])
