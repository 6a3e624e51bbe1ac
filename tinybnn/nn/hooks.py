"""Hooks: functions that a Module calls around its forward and in its backward."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from tinybnn.autograd import Function, Tensor, is_tracing, traced_forward

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self


class Hooks:
    """The hooks of a Module, in the order in which they were registered."""

    _keys = itertools.count()

    def __init__(self) -> None:
        self.forward_pre: dict[int, Callable[..., Any]] = {}
        self.forward: dict[int, Callable[..., Any]] = {}
        self.backward: dict[int, Callable[..., Any]] = {}

    def add(self, kind: str, hook: Callable[..., Any]) -> RemovableHandle:
        """Register a hook of the kind 'forward_pre', 'forward' or 'backward'."""
        hooks, key = getattr(self, kind), next(self._keys)
        hooks[key] = hook
        return RemovableHandle(hooks, key)

    def call(self, module: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Run the module's forward with its hooks, and return the output."""
        for hook in [*self.forward_pre.values()]:
            replacement = hook(module, inputs)
            if replacement is not None:
                inputs = replacement if isinstance(replacement, tuple) else (replacement,)
        crossing = _Crossing(module, [*self.backward.values()]) if self.backward else None
        entering = crossing.enter(inputs) if crossing else inputs
        if is_tracing():
            output = traced_forward(module, entering, options)
        else:
            output = module.forward(*entering, **options)
        for hook in [*self.forward.values()]:
            replacement = hook(module, inputs, output)
            output = output if replacement is None else replacement
        return crossing.leave(output) if crossing else output


class RemovableHandle:
    """Handle of a registered hook; as a context manager it unregisters the hook at the end.

    Parameters
    ----------
    hooks : dict
    key : int
    """

    hooks: dict[int, Callable[..., Any]]
    key: int

    def __init__(self, hooks: dict[int, Callable[..., Any]], key: int) -> None:
        self.hooks, self.key = hooks, key

    def remove(self) -> None:
        """Unregister the hook."""
        self.hooks.pop(self.key, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.remove()


class _Crossing:
    """One call of a Module with backward hooks: collects the gradients of outputs and inputs."""

    def __init__(self, module: Any, hooks: list[Callable[..., Any]]) -> None:
        self.module, self.hooks = module, hooks
        self.indices = []  # of inputs with a gradient

    def enter(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Wrap the inputs, so that the hooks are called with their gradients."""
        self.count = len(inputs)
        self.indices = _with_gradient(inputs)
        return _through(self._call_hooks, inputs, self.indices)

    def leave(self, output) -> Any:
        """Wrap the output, so that its gradients are kept."""
        outputs = output if isinstance(output, tuple) else (output,)
        passed = _through(self._keep, outputs, _with_gradient(outputs))
        return passed if isinstance(output, tuple) else passed[0]

    def _keep(self, gradients):
        self.grad_output = gradients
        if not self.indices:
            self._call_hooks(())
        return gradients

    def _call_hooks(self, gradients):
        grad_input = [None] * self.count
        for index, gradient in zip(self.indices, gradients, strict=True):
            grad_input[index] = gradient
        for hook in self.hooks:
            replacement = hook(self.module, tuple(grad_input), self.grad_output)
            if replacement is not None:
                grad_input = replacement if isinstance(replacement, tuple) else (replacement,)
                if len(grad_input) != self.count:
                    raise RuntimeError(
                        f"full_backward_hook: {type(self.module).__name__} has {self.count} "
                        f"inputs, the hook returned {len(grad_input)} gradients"
                    )
        return tuple([grad_input[index] for index in self.indices])


class _Identity(Function):
    """Return Tensors unchanged; pass their gradients through a function."""

    @staticmethod
    def forward(ctx, pass_on, *tensors):
        ctx.pass_on = pass_on
        return tensors

    @staticmethod
    def backward(ctx, *gradients):
        return None, *ctx.pass_on(gradients)


def _with_gradient(values):
    return [i for i, x in enumerate(values) if isinstance(x, Tensor) and x.requires_grad]


def _through(pass_on, values, indices):
    """Pass the values at `indices` through an `_Identity`."""
    values = list(values)
    if indices:
        passed = _Identity.apply(pass_on, *[values[i] for i in indices])
        for i, x in zip(indices, passed, strict=True):
            values[i] = x
    return tuple(values)
