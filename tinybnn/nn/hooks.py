"""Hooks: functions that a Module calls around its forward and in its backward."""

from __future__ import annotations

import itertools

from tinybnn.autograd import Function, Tensor, is_tracing, traced_forward


class Hooks:
    """The hooks of a Module, in the order in which they were registered."""

    _keys = itertools.count()

    def __init__(self):
        self.forward_pre, self.forward, self.backward = {}, {}, {}

    def add(self, kind, hook):
        """Register a hook under one of the three names; gives what removes it."""
        hooks, key = getattr(self, kind), next(self._keys)
        hooks[key] = hook
        return RemovableHandle(hooks, key)

    def call(self, module, inputs, options):
        """What the module's forward gives, and what the hooks make of it and of gradients."""
        for hook in [*self.forward_pre.values()]:
            found = hook(module, inputs)
            if found is not None:
                inputs = found if isinstance(found, tuple) else (found,)
        crossing = _Crossing(module, [*self.backward.values()]) if self.backward else None
        entering = crossing.enter(inputs) if crossing else inputs
        if is_tracing():
            output = traced_forward(module, entering, options)
        else:
            output = module.forward(*entering, **options)
        for hook in [*self.forward.values()]:
            found = hook(module, inputs, output)
            output = output if found is None else found
        return crossing.leave(output) if crossing else output


class RemovableHandle:
    """What registering a hook gives; also a context manager that removes it at the end.

    Parameters
    ----------
    hooks : dict
    key : int
    """

    def __init__(self, hooks, key):
        self.hooks, self.key = hooks, key

    def remove(self):
        """Take the hook away."""
        self.hooks.pop(self.key, None)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.remove()


class _Crossing:
    """Gradients that pass through a Module once, out of its output and into its inputs."""

    def __init__(self, module, hooks):
        self.module, self.hooks = module, hooks
        self.places = []  # of inputs with a gradient

    def enter(self, inputs):
        """The inputs as the Module gets them."""
        self.count = len(inputs)
        self.places = _with_gradient(inputs)
        return _through(self._call_hooks, inputs, self.places)

    def leave(self, output):
        """The output as others get it."""
        outputs = output if isinstance(output, tuple) else (output,)
        passed = _through(self._keep, outputs, _with_gradient(outputs))
        return passed if isinstance(output, tuple) else passed[0]

    def _keep(self, gradients):
        self.grad_output = gradients
        if not self.places:
            self._call_hooks(())
        return gradients

    def _call_hooks(self, gradients):
        found = [None] * self.count
        for place, gradient in zip(self.places, gradients, strict=True):
            found[place] = gradient
        for hook in self.hooks:
            changed = hook(self.module, tuple(found), self.grad_output)
            if changed is not None:
                found = changed if isinstance(changed, tuple) else (changed,)
                if len(found) != self.count:
                    raise RuntimeError(
                        f"full_backward_hook: {type(self.module).__name__} has {self.count} "
                        f"inputs, the hook gave {len(found)} gradients"
                    )
        return tuple([found[place] for place in self.places])


class _Identity(Function):
    """Tensors as they are, and a function that their gradients are given to."""

    @staticmethod
    def forward(ctx, pass_on, *tensors):
        ctx.pass_on = pass_on
        return tensors

    @staticmethod
    def backward(ctx, *gradients):
        return None, *ctx.pass_on(gradients)


def _with_gradient(values):
    return [i for i, x in enumerate(values) if isinstance(x, Tensor) and x.requires_grad]


def _through(pass_on, values, places):
    """The values, those at `places` passed through an `_Identity`."""
    values = list(values)
    if places:
        passed = _Identity.apply(pass_on, *[values[i] for i in places])
        for place, x in zip(places, passed, strict=True):
            values[place] = x
    return tuple(values)
