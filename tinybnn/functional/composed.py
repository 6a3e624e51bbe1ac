"""Operations that stand for a composition of simpler ones, and compute it in one go."""

from __future__ import annotations

import functools

from tinybnn.autograd import Function, Tensor
from tinybnn.autograd import grad as gradients


class Composed(Function):
    """A `Function` whose rule on Tensors is that of the composition it stands for.

    A subclass gives ``composition(*inputs, **options)``, of simpler operations, and
    ``gradients(grad, *inputs)``, the same gradients of arrays. Its ``forward`` keeps the
    ``options``.
    """

    fresh = True

    def backward(self, grad, output, *inputs):
        rule = recorded_gradients if isinstance(grad, Tensor) else type(self).gradients
        return rule(self, grad, *inputs)


@functools.singledispatch
def recorded_gradients(function, grad, *inputs):
    """The gradients of a `Composed` as Tensors, which can be differentiated again.

    It evaluates the whole composition again. What does without is registered for a class:
    ``@recorded_gradients.register``.
    """
    wanted = [x for x, needed in zip(inputs, function.needs, strict=True) if needed]
    value = function.composition(*inputs, **function.options)
    found = iter(gradients(value, wanted, grad, create_graph=True))
    return tuple([next(found) if needed else None for needed in function.needs])
