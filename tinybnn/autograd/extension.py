"""Own functions with a context: static ``forward(ctx, ...)`` and ``backward(ctx, ...)``.

A `Function` with static methods is written as in PyTorch. In its place the engine applies an
`OwnFunction`, an operation of the engine's form, which passes a context from ``forward`` to
``backward``:

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

Arguments other than Tensors reach ``forward`` unchanged. ``backward`` returns a gradient for each
argument of ``forward``, or None. With ``create_graph=True`` the inputs and outputs passed to
``save_for_backward`` are differentiated again; intermediate results of ``forward`` are constants.
Outputs that are arrays of integers or bools, or were passed to ``mark_non_differentiable``, have no
gradient.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from tinybnn.autograd.engine import Function, Variable, as_array, no_grad, result_of, state
from tinybnn.autograd.floats import FLOATS
from tinybnn.autograd.operations import reshape

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tinybnn.autograd.tensor import Tensor
    from tinybnn.typing import Array, V


class _Context:
    """The ``ctx`` that ``forward`` fills for ``backward``; other attributes may be set freely.

    Attributes
    ----------
    needs_input_grad : tuple of bool
        For each argument of ``forward``, whether it is a Tensor that requires grad.
    saved_tensors : tuple
        The arguments of `save_for_backward`.
    """

    def __init__(self, needs_input_grad) -> None:
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
    """The outputs of ``forward``, which the engine handles as one array.

    Outputs with a gradient are concatenated into it; the others are constants.

    Attributes
    ----------
    shapes : list of tuple or None
        For each output its shape, or None if it has no gradient.
    constants : list
        For each output None, or the output itself if it has no gradient.
    """

    def join(self, results, without_gradient, dtype):
        """Return the array of all outputs with a gradient, and the list of these outputs.

        NumPy arrays and scalars are cast to `dtype`, since arithmetic with comparisons may have
        promoted them to float64.
        """
        self.is_tuple = isinstance(results, tuple)
        results = results if self.is_tuple else (results,)
        with_gradient = [x for x in results if _is_float(x) and _index(x, without_gradient) is None]
        is_joined = [_index(x, with_gradient) is not None for x in results]
        pairs = list(zip(results, is_joined, strict=True))
        self.shapes = [np.shape(x) if joined else None for x, joined in pairs]
        self.constants = [None if joined else x for x, joined in pairs]
        arrays = [
            x.data if isinstance(x, Variable) else np.asarray(x, dtype) for x in with_gradient
        ]
        if len(arrays) == 1:
            return arrays[0], with_gradient
        flat = np.concatenate([x.ravel() for x in arrays] or [np.zeros(0, np.float32)])
        return flat, with_gradient

    def split(self, joined):
        """Split a joined array or Tensor into outputs; None for those without a gradient."""
        if len(self.shapes) - self.shapes.count(None) == 1:
            return [None if shape is None else joined for shape in self.shapes]
        parts, start = [], 0
        for shape in self.shapes:
            stop = start + (0 if shape is None else math.prod(shape))
            parts.append(None if shape is None else reshape(joined[start:stop], shape))
            start = stop
        return parts

    def gradients(self, joined):
        """Split a joined gradient: zeros for float outputs without a gradient, None for others."""
        parts = zip(self.split(joined), self.constants, strict=True)
        return [
            result_of(np.zeros_like(as_array(x))) if part is None and _is_float(x) else part
            for part, x in parts
        ]

    def results(self, joined):
        """The return value of ``apply``."""
        parts = zip(self.split(joined), self.constants, strict=True)
        results = tuple([x if part is None else part for part, x in parts])
        return results if self.is_tuple else results[0]


def _is_float(x):
    return isinstance(x, Variable | np.ndarray | np.generic) and x.dtype in FLOATS


def _index(x, sequence):
    """The index of an object in a sequence by identity, or None."""
    return next((i for i, other in enumerate(sequence) if other is x), None)


class OwnFunction(Function):
    """The operation that the engine applies for a class with static methods.

    Attributes
    ----------
    own : type
        The class with the static methods.
    """

    own: Any = None
    views = True  # forward may return its input

    @classmethod
    def run(cls, *arguments: Any) -> Any:
        """Implement ``own.apply``: return the output of ``forward``, or a tuple of several."""
        tensors = [x for x in arguments if isinstance(x, Variable)]
        rest = [None if isinstance(x, Variable) else x for x in arguments]
        needs = [x.requires_grad if isinstance(x, Variable) else None for x in arguments]
        outputs = _Outputs()
        joined = cls.apply(*tensors, arguments=rest, needs=needs, outputs=outputs)
        return outputs.results(joined if tensors else result_of(joined))

    def forward(
        self, *arrays: Array, arguments: list[Any], needs: list[bool | None], outputs: Any
    ) -> Array:
        self._wants, self._outputs = needs, outputs
        self._context = context = _Context(tuple(map(bool, needs)))
        inputs = [result_of(x) for x in arrays]
        all_arguments = in_places(inputs, arguments, needs)
        for x, need in zip(all_arguments, needs, strict=True):
            if need:
                x.requires_grad = True
        with _unrecorded():
            if hasattr(self.own, "setup_context"):
                results = self.own.forward(*all_arguments)
                self.own.setup_context(context, tuple(all_arguments), results)
            else:
                results = self.own.forward(context, *all_arguments)
        if any([x._version[0] for x in inputs]):
            raise RuntimeError(
                f"{self.own.__name__}.forward changed an input in place; write x = x.clone() first"
            )
        dtype = arrays[0].dtype if arrays else np.float32
        data, with_gradient = outputs.join(results, context._without_gradient, dtype)
        self._keep(inputs, with_gradient)
        is_shared = any([np.may_share_memory(data, x) for x in arrays[1:]])
        return data.copy() if is_shared else data

    def _keep(self, inputs, outputs):
        """Let the engine save the inputs and outputs, which have a place in the graph."""
        self._saved = []
        for x in self._context.saved_tensors:
            indices = {"inputs": _index(x, inputs), "output": _index(x, outputs)}
            source = next((name for name, index in indices.items() if index is not None), None)
            self._saved.append((source, indices[source] if source else x))
        self.saves = {source for source, _ in self._saved}
        self._context.saved_tensors = ()

    def _release(self):
        super()._release()
        self._saved = self._context = None

    def backward(self, grad: V, output: V, *inputs: V) -> tuple[V, ...]:
        kept = {"inputs": inputs}
        if output is not None:
            kept["output"] = [x for x in self._outputs.split(output) if x is not None]
        self._context.saved_tensors = tuple(
            [_as_tensor(kept[source][x]) if source else x for source, x in self._saved]
        )
        if is_array := not isinstance(grad, Variable):
            grad = result_of(np.array(grad, order="K"))  # backward may change it in place
        gradients = self.own.backward(self._context, *self._outputs.gradients(grad))
        self._context.saved_tensors = ()  # else the graph would reference itself
        gradients = gradients if isinstance(gradients, tuple) else (gradients,)
        count = len(self._wants)
        if len(gradients) < count or any(x is not None for x in gradients[count:]):
            raise RuntimeError(
                f"{self.own.__name__}.backward: expects {count} gradients, one for each argument "
                f"of forward (None where there is none), got {len(gradients)}"
            )
        of_tensors = [
            x for x, want in zip(gradients, self._wants, strict=False) if want is not None
        ]
        pairs = zip(of_tensors, self.shapes, strict=True)
        tensors = [_as_tensor(np.zeros(n, grad.dtype) if x is None else x) for x, n in pairs]
        return tuple(map(as_array, tensors)) if is_array else tuple(tensors)


@contextlib.contextmanager
def _unrecorded():
    """Hide the operations inside from graph and tape, which record them as a single one."""
    tape, state.tape = state.tape, None
    try:
        with no_grad():
            yield
    finally:
        state.tape = tape


def in_places(
    tensors: Iterable[Tensor], arguments: Iterable[Any], needs: Iterable[bool | None]
) -> list[Any]:
    """Merge Tensors and other arguments in the order of ``forward``'s parameters.

    A need of None marks an argument that is not a Tensor.
    """
    tensors = iter(tensors)
    pairs = zip(arguments, needs, strict=True)
    return [x if need is None else next(tensors) for x, need in pairs]


def _as_tensor(x):
    return x if isinstance(x, Variable) else result_of(x)


def _with_static_methods(cls, **options):
    """Prepare a subclass of `Function` that has static methods (see the module's docstring)."""
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


# One class Function serves both forms; the engine knows only its own.
Function.__init_subclass__ = classmethod(_with_static_methods)
