"""Own functions with a context: static ``forward(ctx, ...)`` and ``backward(ctx, ...)``.

A `Function` with static methods is written as in PyTorch. The engine applies an operation of its
own form in its place, which hands a context from one method to the other:

>>> from tinybnn.tensor import Function, Tensor
>>> class Sign(Function):
...     @staticmethod
...     def forward(ctx, x):
...         ctx.save_for_backward(x)
...         return 2.0 * (x >= 0) - 1.0
...
...     @staticmethod
...     def backward(ctx, grad):
...         (x,) = ctx.saved_tensors
...         return grad * (x.abs() <= 1)
>>> x = Tensor([-0.5, 0.0, 2.0], requires_grad=True)
>>> Sign.apply(x).sum().backward()
>>> x.grad
Tensor([1., 1., 0.])

Arguments that are no Tensors reach ``forward`` as they are. ``backward`` returns a gradient for
each argument of ``forward``, None where there is none. Inputs and outputs that
``save_for_backward`` is given are differentiated again by ``create_graph=True``; what ``forward``
computes on the way is a constant there. Outputs that are arrays of integers or bools, or are given
to ``mark_non_differentiable``, have no gradient.
"""

from __future__ import annotations

import contextlib
import inspect
import math

import numpy as np

from tinybnn.autograd.engine import FLOATS, Function, Variable, as_array, no_grad, result_of, state
from tinybnn.autograd.operations import reshape


class _Context:
    """What ``forward`` leaves for ``backward``: ``ctx``. Attributes of other names may be set.

    Attributes
    ----------
    needs_input_grad : tuple of bool
        For each argument of ``forward``, whether it is a Tensor that requires grad.
    saved_tensors : tuple
        What `save_for_backward` was given.
    """

    def __init__(self, needs_input_grad):
        self.needs_input_grad = needs_input_grad
        self.saved_tensors = self._without_gradient = ()

    def save_for_backward(self, *tensors):
        """Keep Tensors, arrays or None for ``backward``."""
        for x in tensors:
            if not (x is None or isinstance(x, Variable | np.ndarray)):
                raise TypeError(
                    f"save_for_backward: expects Tensors, arrays or None, got a {type(x).__name__}"
                    "; set an attribute of ctx instead"
                )
        self.saved_tensors = tensors

    def mark_non_differentiable(self, *outputs):
        """Declare outputs of ``forward`` that no gradient passes through."""
        self._without_gradient = outputs


class _Outputs:
    """What ``forward`` gave. The engine sees one array, in which all with a gradient are in a row.

    Attributes
    ----------
    shapes : list of tuple or None
        None where an output has no gradient.
    constants : list
        The output there, else None.
    """

    def join(self, results, without_gradient, dtype):
        """The array of those with a gradient, and the outputs that are in it.

        Arrays and numbers of NumPy's get the dtype: arithmetic with comparisons gives float64.
        """
        self.is_tuple = isinstance(results, tuple)
        results = results if self.is_tuple else (results,)
        chosen = [x for x in results if _is_float(x) and _place(x, without_gradient) is None]
        is_chosen = [_place(x, chosen) is not None for x in results]
        pairs = list(zip(results, is_chosen, strict=True))
        self.shapes = [np.shape(x) if is_in else None for x, is_in in pairs]
        self.constants = [None if is_in else x for x, is_in in pairs]
        arrays = [x.data if isinstance(x, Variable) else np.asarray(x, dtype) for x in chosen]
        if len(arrays) == 1:
            return arrays[0], chosen
        return np.concatenate([x.ravel() for x in arrays] or [np.zeros(0, np.float32)]), chosen

    def split(self, joined):
        """The parts of such an array or Tensor; None for outputs without a gradient."""
        if len(self.shapes) - self.shapes.count(None) == 1:
            return [None if shape is None else joined for shape in self.shapes]
        parts, start = [], 0
        for shape in self.shapes:
            stop = start + (0 if shape is None else math.prod(shape))
            parts.append(None if shape is None else reshape(joined[start:stop], shape))
            start = stop
        return parts

    def gradients(self, joined):
        """The gradients of all outputs: 0 where there is none, None for an array."""
        parts = zip(self.split(joined), self.constants, strict=True)
        return [
            result_of(np.zeros_like(as_array(x))) if part is None and _is_float(x) else part
            for part, x in parts
        ]

    def results(self, joined):
        """What ``apply`` gives."""
        parts = zip(self.split(joined), self.constants, strict=True)
        results = tuple([x if part is None else part for part, x in parts])
        return results if self.is_tuple else results[0]


def _is_float(x):
    return isinstance(x, Variable | np.ndarray | np.generic) and x.dtype in FLOATS


def _place(x, sequence):
    """Where an object is in a sequence; None if it is not."""
    return next((i for i, other in enumerate(sequence) if other is x), None)


class OwnFunction(Function):
    """The operation that the engine applies for a class with static methods.

    Attributes
    ----------
    own : type
        The class.
    """

    own = None
    views = True  # forward may give its input back

    @classmethod
    def run(cls, *arguments):
        """``own.apply``: the output of ``forward``, or a tuple of several."""
        tensors = [x for x in arguments if isinstance(x, Variable)]
        rest = [None if isinstance(x, Variable) else x for x in arguments]
        needs = [x.requires_grad if isinstance(x, Variable) else None for x in arguments]
        outputs = _Outputs()
        joined = cls.apply(*tensors, arguments=rest, needs=needs, outputs=outputs)
        return outputs.results(joined if tensors else result_of(joined))

    def forward(self, *arrays, arguments, needs, outputs):
        self.wants, self.outputs = needs, outputs
        self.context = context = _Context(tuple(map(bool, needs)))
        inputs = [result_of(x) for x in arrays]
        given = in_places(inputs, arguments, needs)
        for x, need in zip(given, needs, strict=True):
            if need:
                x.requires_grad = True
        with _apart():
            if hasattr(self.own, "setup_context"):
                results = self.own.forward(*given)
                self.own.setup_context(context, tuple(given), results)
            else:
                results = self.own.forward(context, *given)
        if any([x._version[0] for x in inputs]):
            raise RuntimeError(
                f"{self.own.__name__}.forward changed an input in place; write x = x.clone() first"
            )
        dtype = arrays[0].dtype if arrays else np.float32
        data, chosen = outputs.join(results, context._without_gradient, dtype)
        self._keep(inputs, chosen)
        is_shared = any([np.may_share_memory(data, x) for x in arrays[1:]])
        return data.copy() if is_shared else data

    def _keep(self, inputs, outputs):
        """Leave saved inputs and outputs to the engine: they have a place in the graph."""
        self.saved = []
        for x in self.context.saved_tensors:
            places = {"inputs": _place(x, inputs), "output": _place(x, outputs)}
            kind = next((kind for kind, place in places.items() if place is not None), None)
            self.saved.append((kind, places[kind] if kind else x))
        self.saves = {kind for kind, _ in self.saved}
        self.context.saved_tensors = ()

    def _release(self):
        super()._release()
        self.saved = self.context = None

    def backward(self, grad, output, *inputs):
        kept = {"inputs": inputs}
        if output is not None:
            kept["output"] = [x for x in self.outputs.split(output) if x is not None]
        self.context.saved_tensors = tuple(
            [_as_tensor(kept[kind][x]) if kind else x for kind, x in self.saved]
        )
        if is_array := not isinstance(grad, Variable):
            grad = result_of(np.array(grad, order="K"))  # backward may change it in place
        found = self.own.backward(self.context, *self.outputs.gradients(grad))
        self.context.saved_tensors = ()  # else the graph would hold itself
        found = found if isinstance(found, tuple) else (found,)
        count = len(self.wants)
        if len(found) < count or any(x is not None for x in found[count:]):
            raise RuntimeError(
                f"{self.own.__name__}.backward: expects {count} gradients, one for each argument "
                f"of forward (None where there is none), got {len(found)}"
            )
        found = [x for x, want in zip(found, self.wants, strict=False) if want is not None]
        pairs = zip(found, self.shapes, strict=True)
        found = [_as_tensor(np.zeros(n, grad.dtype) if x is None else x) for x, n in pairs]
        return tuple(map(as_array, found)) if is_array else tuple(found)


@contextlib.contextmanager
def _apart():
    """Neither a graph nor a tape sees what runs inside: to them it is one operation."""
    tape, state.tape = state.tape, None
    try:
        with no_grad():
            yield
    finally:
        state.tape = tape


def in_places(tensors, arguments, needs):
    """The arguments of ``forward``: Tensors where they belong, the others where they are."""
    tensors = iter(tensors)
    pairs = zip(arguments, needs, strict=True)
    return [x if need is None else next(tensors) for x, need in pairs]


def _as_tensor(x):
    return x if isinstance(x, Variable) else result_of(x)


def _with_static_methods(cls, **options):
    """What happens to a subclass of `Function`: see the module's text."""
    super(Function, cls).__init_subclass__(**options)
    forward = inspect.getattr_static(cls, "forward", None)
    if isinstance(forward, staticmethod):
        names = {"own": cls, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
        cls.apply = type(cls.__name__, (OwnFunction,), names).run
    elif (
        inspect.isfunction(forward)
        and next(iter(inspect.signature(forward).parameters), "") == "ctx"
    ):
        raise TypeError(
            f"{cls.__name__}: forward(ctx, ...) and backward(ctx, ...) are static methods; write "
            "@staticmethod above them"
        )


# One class Function for both forms; the engine knows its own only.
Function.__init_subclass__ = classmethod(_with_static_methods)
