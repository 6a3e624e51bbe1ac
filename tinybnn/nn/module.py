"""Module: a function with parameters, made of other such functions."""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import NamedTuple

import numpy as np

from tinybnn import tables
from tinybnn.autograd import (
    SizeError,
    Tensor,
    as_array,
    is_tracing,
    no_grad,
    plain,
    traced_forward,
)
from tinybnn.autograd.tensor import as_dtype
from tinybnn.nn.hooks import Hooks


@dataclass(frozen=True)
class Cost:
    """What a layer costs for one sample.

    Attributes
    ----------
    output_shape : tuple of int
    weight_bits : int
        Bits of parameters and statistics, as the layer computes with them: 1 for a sign.
    bops, flops : int
        Multiply-accumulates between signs, and those with a float on either side. Batch norm,
        activations, scales and pooling are not counted, as usual for binary networks.
    """

    output_shape: tuple
    weight_bits: int = 0
    bops: int = 0
    flops: int = 0


class Parameter(Tensor):
    """A Tensor that a Module learns."""

    __slots__ = ()

    def __init__(self, data, *more, requires_grad=True, dtype=None):
        super().__init__(data, *more, requires_grad=requires_grad, dtype=dtype)


class LatentParameter(Parameter):
    """The float weight behind a binary one: it gathers small updates until its sign flips.

    Optimizers clip it to [-clip_value, clip_value] after each step, since beyond the clip of the
    straight-through estimator it would get no gradient any more, and leave weight decay off.

    Attributes
    ----------
    clip_value : float or None
        None: no clipping.
    """

    __slots__ = ("clip_value",)

    def __init__(self, data, *more, clip_value=1.0, requires_grad=True, dtype=None):
        super().__init__(data, *more, requires_grad=requires_grad, dtype=dtype)
        self.clip_value = clip_value


class StateError(KeyError, RuntimeError):
    """A state of another model: PyTorch's RuntimeError, and keys that are wrong."""

    __str__ = Exception.__str__  # a KeyError quotes its text


class IncompatibleKeys(NamedTuple):
    """What `Module.load_state_dict` did not load."""

    missing_keys: list
    unexpected_keys: list


class _Listed(list):
    """A list that ``next`` takes too, as PyTorch's iterators are taken."""

    def __next__(self):
        if not hasattr(self, "_rest"):
            self._rest = iter(self)
        return next(self._rest)


class Module:
    """Base class of layers and models: assign Parameters and Modules, write ``forward``.

    Attributes of type `Parameter` and `Module` are registered automatically; state that is not
    learned is added with `register_buffer`. Layers in a plain list or dict are not registered: see
    `ModuleList` and `unregistered`.

    Attributes
    ----------
    training : bool
        Set by `train` and `eval`; batch norm and dropout act on it, and in eval mode real-valued
        sums run in one fixed order, so that a packed model can repeat them exactly.
    frozen : bool
        Set by `freeze`: the module stays in evaluation mode, and its parameters do not learn.
    """

    training = True
    frozen = False
    _buffer_names = ()
    _hooks = None

    def forward(self, *inputs, **options):
        """Compute the output; subclasses override this and callers use ``module(x)``."""
        raise NotImplementedError(f"{type(self).__name__} has no forward method")

    def __call__(self, *inputs, **options):
        if self._hooks is not None:
            return self._hooks.call(self, inputs, options)
        if is_tracing():
            return traced_forward(self, inputs, options)
        return self.forward(*inputs, **options)

    # ------------------------------------------------------------------------------------ hooks

    def register_forward_pre_hook(self, hook):
        """Call ``hook(module, inputs)`` before forward; what it returns replaces the inputs.

        Returns
        -------
        RemovableHandle
            Its method ``remove`` takes the hook away.
        """
        return self._add_hook("forward_pre", hook)

    def register_forward_hook(self, hook):
        """Call ``hook(module, inputs, output)`` after forward; what it returns replaces the output.

        ``inputs`` is the tuple of positional arguments. A hook that returns None changes nothing.
        """
        return self._add_hook("forward", hook)

    def register_full_backward_hook(self, hook):
        """Call ``hook(module, grad_input, grad_output)`` when gradients reach the inputs.

        Both are tuples, with None for what has no gradient; a tuple that the hook returns replaces
        `grad_input`. Where no input has a gradient, it is called with those of the output.
        """
        return self._add_hook("backward", hook)

    def _add_hook(self, kind, hook):
        if self._hooks is None:
            self._hooks = Hooks()
        return self._hooks.add(kind, hook)

    # ------------------------------------------------------------------------------- attributes

    def register_buffer(self, name, array):
        """Add an array of the state (saved and loaded) that is not a parameter."""
        if name not in self._buffer_names:
            self._buffer_names = (*self._buffer_names, name)
        setattr(self, name, np.asarray(as_array(array)))

    def register_parameter(self, name, parameter):
        """Assign a Parameter (or None) under a name."""
        setattr(self, name, parameter)

    def add_module(self, name, module):
        """Assign a Module (or None) under a name, which may be a number."""
        if not (module is None or isinstance(module, Module)):
            raise TypeError(f"add_module: {name} must be a Module, got a {type(module).__name__}")
        setattr(self, name, module)

    def __setattr__(self, name, value):
        """Set an attribute; a Parameter, buffer or Module is replaced by its own kind only.

        A NumPy scalar becomes a number of Python's, so that settings do not decide dtypes.

        Raises
        ------
        TypeError
            Where it would vanish from `parameters` and `state_dict`. A Parameter and a Module may
            be set to None.
        """
        if name in self._buffer_names:
            if isinstance(value, np.generic | Tensor) and not isinstance(value, Parameter):
                value = np.asarray(as_array(value))  # array + 1 is a NumPy scalar if it has no axes
            if not isinstance(value, np.ndarray):
                raise self._would_vanish(name, value, "a buffer", "an array")
        elif value is not None and not isinstance(value, Parameter | Module):
            old = vars(self).get(name)
            if isinstance(old, Parameter):
                raise self._would_vanish(
                    name, value, "a Parameter",
                    f"its values with {name}.data = array, or a {type(old).__name__}, or None",
                )  # fmt: skip
            if isinstance(old, Module):
                raise self._would_vanish(name, value, "a Module", "a Module or None")
        object.__setattr__(self, name, plain(value) if isinstance(value, np.generic) else value)

    def __delattr__(self, name):
        object.__delattr__(self, name)
        if name in self._buffer_names:
            self._buffer_names = tuple(n for n in self._buffer_names if n != name)

    def _would_vanish(self, name, value, kind, expected):
        return TypeError(
            f"{type(self).__name__}.{name} is {kind}, and would vanish from the model if it became "
            f"a {type(value).__name__}; assign {expected}"
        )

    # ------------------------------------------------------------------------- walking the tree

    def named_children(self):
        """(name, module) for each direct child, in order of assignment."""
        return _Listed((name, m) for name, m in vars(self).items() if isinstance(m, Module))

    def children(self):
        """The direct children, in order of assignment."""
        return _Listed(m for _, m in self.named_children())

    def named_modules(self, prefix=""):
        """(path, module) for this module (empty path) and all below it; each module once."""
        found, stack = {}, [(prefix, self)]
        while stack:
            path, module = stack.pop()
            if id(module) not in found:
                found[id(module)] = (path, module)
                stack.extend(
                    (f"{path}.{name}" if path else name, child)
                    for name, child in reversed(module.named_children())
                )
        return _Listed(found.values())

    def modules(self):
        """This module and all below it."""
        return _Listed(m for _, m in self.named_modules())

    def get_submodule(self, target):
        """The module at a path such as ``"features.3.conv"``; this one for the empty path."""
        module = self
        for name in target.split(".") if target else ():
            child = vars(module).get(name)
            if not isinstance(child, Module):
                names = ", ".join(n for n, _ in module.named_children()) or "none"
                raise AttributeError(
                    f"get_submodule: {type(module).__name__} has no module {name!r} of {target!r}; "
                    f"it has {names}"
                )
            module = child
        return module

    def apply(self, function):
        """Call ``function(module)`` for all modules below, then for this one, and return it."""
        for child in self.children():
            child.apply(function)
        function(self)
        return self

    def named_parameters(self):
        """(path, parameter), each parameter once."""
        found = {}
        for path, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter):
                    found.setdefault(id(value), (f"{path}.{name}" if path else name, value))
        return _Listed(found.values())

    def parameters(self):
        """All parameters, each once: a list, which ``next`` takes too."""
        return _Listed(p for _, p in self.named_parameters())

    def binary_weights(self):
        """The weights that the binary layers compute with, by the names of their parameters.

        They are the signs of the parameters, which are latent weights and real. A factor of a
        layer (see its `scale`) multiplies sums, and is not in them.

        Returns
        -------
        dict of str to numpy.ndarray
            -1 and 1; 0 as well for a ternary quantizer.
        """
        return {
            f"{path}.weight" if path else "weight": module.binary_weight()
            for path, module in self.named_modules()
            if hasattr(module, "binary_weight")
            and hasattr(module, "weight")
            and module.weight_quantizer is not None
        }

    def named_buffers(self):
        """(path, array) of the buffers."""
        return _Listed(
            (f"{path}.{name}" if path else name, getattr(module, name))
            for path, module in self.named_modules()
            for name in module._buffer_names
        )

    def buffers(self):
        """The buffers: arrays."""
        return _Listed(array for _, array in self.named_buffers())

    # ------------------------------------------------------------------------------------ state

    def state_dict(self):
        """Parameters and buffers by path, as arrays (shared memory, no copies)."""
        result = {}
        for path, module in self.named_modules():
            start = f"{path}." if path else ""
            for name, value in vars(module).items():
                if isinstance(value, Parameter):
                    result[start + name] = value.data
            for name in module._buffer_names:
                result[start + name] = getattr(module, name)
        return result

    def load_state_dict(self, state, strict=True):
        """Copy arrays into the parameters and buffers.

        Parameters
        ----------
        state : dict of str to array or Tensor
        strict : bool
            With False, keys that are missing or not known are left alone.

        Returns
        -------
        IncompatibleKeys
            Which these are.

        Raises
        ------
        StateError
            If there are some and `strict` is True: a weight that is dropped is an error.
        SizeError
            If a shape differs. Nothing has been changed when an error is raised.
        """
        own = self.state_dict()
        missing = [name for name in own if name not in state]
        unexpected = [name for name in state if name not in own]
        parts = [f"misses {', '.join(missing)}"] if missing else []
        parts += [f"has no place for {', '.join(unexpected)}"] if unexpected else []
        if parts and strict:
            raise StateError(
                f"load_state_dict: {type(self).__name__} {' and '.join(parts)}; the state is of "
                "another model, or pass strict=False"
            )
        own = {name: array for name, array in own.items() if name in state}
        for name, array in own.items():
            if np.shape(state[name]) != array.shape:
                raise SizeError(
                    f"load_state_dict: {name} has shape {np.shape(state[name])}, "
                    f"expected {array.shape}"
                )
        values = {  # every conversion that might fail comes before the first change
            name: np.asarray(as_array(state[name]), array.dtype) for name, array in own.items()
        }
        for name, array in own.items():
            array[...] = values[name]
        return IncompatibleKeys(missing, unexpected)

    # ------------------------------------------------------------------------------------- mode

    def train(self, mode=True):
        """Switch this module and all below it to training (or evaluation) mode.

        Frozen modules stay in evaluation mode.
        """
        for module in self.modules():
            module.training = bool(mode) and not module.frozen
        return self

    def eval(self):
        """Switch this module and all below it to evaluation mode."""
        return self.train(False)

    @contextlib.contextmanager
    def in_mode(self, *, training):
        """Context manager: `train` or `eval` inside, afterwards each module in the mode it had."""
        modes = [(module, module.training) for module in self.modules()]
        self.train(training)
        try:
            yield self
        finally:
            for module, training in modes:
                module.training = training

    def freeze(self, frozen=True):
        """Keep this module and all below it as they are while others around them are trained.

        Their parameters take no gradient, and they stay in evaluation mode when `train` is called:
        batch norm leaves its running statistics alone. Only `load_state_dict` changes them.

        Parameters
        ----------
        frozen : bool
            False: let them learn again; the mode is not changed.
        """
        for module in self.modules():
            module.frozen = bool(frozen)
        self.requires_grad_(not frozen)
        if frozen:
            self.zero_grad()  # an optimizer takes no step without a gradient
            self.eval()
        return self

    def requires_grad_(self, requires_grad=True):
        """Let all parameters below take gradients, or not; those of frozen modules never do."""
        own = [(p, m.frozen) for m in self.modules() for p in vars(m).values()]
        frozen = {id(p) for p, is_frozen in own if is_frozen}
        for parameter in self.parameters():
            parameter.requires_grad = bool(requires_grad) and id(parameter) not in frozen
        return self

    def zero_grad(self):
        """Forget the gradients of all parameters."""
        for parameter in self.parameters():
            parameter.grad = None

    def to(self, *target, dtype=None, device=None):
        """Convert parameters and floating-point buffers, in place; gradients are forgotten.

        Parameters
        ----------
        target : dtype, "cpu" or Tensor, whose dtype is taken
        dtype, device : optional
            The same by name.
        """
        dtype = as_dtype("to", target, dtype, device)
        if dtype is None:
            return self
        for module in self.modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter):
                    value.data = value.data.astype(dtype)
                    value.grad = None
                elif name in module._buffer_names and value.dtype.kind == "f":
                    setattr(module, name, value.astype(dtype))
        return self

    def cpu(self):
        """The module: it is on the CPU."""
        return self

    def float(self):
        """Convert to float32, in place."""
        return self.to(np.float32)

    def double(self):
        """Convert to float64, in place; a packed model is float32."""
        return self.to(np.float64)

    # ------------------------------------------------------------------------------------- cost

    def cost(self, input_shape):
        """The `Cost` of this layer alone for one sample of `input_shape`.

        Layers that multiply override it; this one counts parameters and buffers as floats.
        """
        floats = [p for p in vars(self).values() if isinstance(p, Parameter)]
        floats += [getattr(self, name) for name in self._buffer_names]
        bits = sum(8 * x.dtype.itemsize * int(np.prod(x.shape)) for x in floats if x.shape)
        with self.in_mode(training=False), no_grad():
            output = self(Tensor(np.zeros((1, *input_shape), np.float32)))
        return Cost(output.shape[1:], weight_bits=bits)

    # --------------------------------------------------------------------------------- printing

    def extra_repr(self):
        """Settings shown in the layer's line."""
        return ""

    def __repr__(self):
        children = self.named_children()
        if not children:
            return f"{type(self).__name__}({self.extra_repr()})"
        lines = [f"  ({name}): " + repr(child).replace("\n", "\n  ") for name, child in children]
        return f"{type(self).__name__}(\n" + "\n".join(lines) + "\n)"

    def _repr_html_(self):
        rows = []
        for path, module in self.named_modules():
            own = [p.numel() for p in vars(module).values() if isinstance(p, Parameter)]
            if own or not module.children():
                kind = type(module).__name__
                rows.append((path, kind, module.extra_repr(), f"{sum(own):,}" if own else ""))
        count = sum(p.numel() for p in self.parameters())
        title = f"{type(self).__name__}: {count:,} parameters"
        return tables.html(("name", "layer", "settings", "parameters"), rows, "<<<>", title)


def unregistered(model):
    """Layers and parameters that a model reaches, but does not own.

    A layer in a plain list, dict or object does not learn, is not saved, and keeps its mode.

    Returns
    -------
    dict
        Path, such as ``layers[0]``, -> Module that is not frozen, or Tensor that requires grad.
    """
    owned = {id(x) for x in (*model.modules(), *model.parameters())}
    found, seen = {}, set(owned)
    stack = [
        (f"{path}.{name}" if path else name, value)
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if name != "_hooks"
    ]
    while stack:
        path, value = stack.pop()
        if id(value) in seen or isinstance(value, type | FunctionType | ModuleType | np.ndarray):
            continue
        seen.add(id(value))
        if isinstance(value, Module):
            if not value.frozen:
                found[path] = value
        elif isinstance(value, Tensor):
            if value.requires_grad and value.is_leaf:
                found[path] = value
        elif isinstance(value, list | tuple | set):
            stack.extend((f"{path}[{i}]", item) for i, item in enumerate(value))
        elif isinstance(value, dict):
            stack.extend((f"{path}[{key!r}]", item) for key, item in value.items())
        else:
            stack.extend((f"{path}.{key}", v) for key, v in getattr(value, "__dict__", {}).items())
    return dict(sorted(found.items()))


def warn_of_unregistered(model, where):
    """Warn of what `unregistered` finds, in the name of a function that the user called."""
    found = unregistered(model)
    if found:
        path = next(iter(found))
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        warnings.warn(
            f"{where}: {type(model).__name__} reaches {path} ({type(found[path]).__name__}){more} "
            "without owning it: it does not learn, is not saved, and keeps its mode. Use "
            "nn.ModuleList in place of a list, nn.Parameter in place of a Tensor, or freeze() it",
            stacklevel=3,
        )


class ModuleList(Module):
    """A list of Modules, all of them known to the Module that holds it.

    Parameters
    ----------
    modules : iterable of Module
    """

    def __init__(self, modules=()):
        self.extend(modules)

    def append(self, module):
        """Add a Module at the end; returns the list."""
        setattr(self, str(len(self)), self._checked(module, len(self)))
        return self

    def extend(self, modules):
        """Add several at the end; returns the list."""
        for module in modules:
            self.append(module)
        return self

    def insert(self, index, module):
        """Add a Module before the one at `index`; those behind get the next numbers as names."""
        modules = list(self.children())
        modules.insert(index, self._checked(module, index))
        self._renumber(modules)
        return self

    def _checked(self, module, index):
        if not isinstance(module, Module):
            raise TypeError(
                f"{type(self).__name__}: expects Modules, item {index} is a {type(module).__name__}"
            )
        return module

    def _renumber(self, modules):
        """Hold these modules in place of its own, which must have numbers as names."""
        names = [name for name, _ in self.named_children()]
        if names != [str(i) for i in range(len(names))]:
            raise TypeError(
                f"{type(self).__name__}: its modules have names ({', '.join(names)}), which would "
                "change; make a new one"
            )
        for name in names:
            delattr(self, name)
        self.extend(modules)

    def __len__(self):
        return len(self.children())

    def __iter__(self):
        return iter(self.children())

    def __getitem__(self, index):
        chosen = self.children()[index]
        if not isinstance(index, slice):
            return chosen
        part = type(self)()
        for module in chosen:
            part.append(module)
        return part

    def __setitem__(self, index, module):
        name, _ = self.named_children()[index]
        setattr(self, name, self._checked(module, index))

    def __delitem__(self, index):
        modules = list(self.children())
        del modules[index]
        self._renumber(modules)


class Sequential(ModuleList):
    """Modules one after the other.

    Parameters
    ----------
    *modules : Module
        Or one dict (an OrderedDict, say) of their names and modules.

    Examples
    --------
    >>> from tinybnn import nn
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    >>> model[1]
    Linear(64, 10, bias=True)
    >>> nn.Sequential({"flatten": nn.Flatten(), "head": nn.Linear(64, 10)}).head
    Linear(64, 10, bias=True)
    """

    def __init__(self, *modules):
        if len(modules) == 1 and isinstance(modules[0], dict):
            for name, module in modules[0].items():
                self.add_module(name, self._checked(module, name))
        else:
            super().__init__(modules)

    def forward(self, x):
        for module in self.children():
            x = module(x)
        return x
