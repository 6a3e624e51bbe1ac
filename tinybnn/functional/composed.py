"""Operations that stand for a composition of simpler ones, and compute it in one go."""

from __future__ import annotations

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
        if not isinstance(grad, Tensor):
            return self.gradients(grad, *inputs)
        wanted = [x for x, needed in zip(inputs, self.needs, strict=True) if needed]
        value = self.composition(*inputs, **self.options)
        found = iter(gradients(value, wanted, grad, create_graph=True))
        return tuple([next(found) if needed else None for needed in self.needs])
