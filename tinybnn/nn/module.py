"""Module: a function with parameters, composed of other modules."""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

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

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import DTypeLike
    from typing_extensions import Self

    from tinybnn.nn.hooks import RemovableHandle
    from tinybnn.typing import Array, FloatArray, Shape, TensorLike

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Cost:
    """The cost of a layer for one sample.

    Attributes
    ----------
    output_shape : tuple of int
    weight_bits : int
        Bits of the parameters and statistics in the form that the layer computes with: 1 per sign.
    bops, flops : int
        Multiply-accumulates between two signs, and those with at least one float. Batch norm,
        activations, scales and pooling are not counted, as usual for binary networks.
    """

    output_shape: Shape
    weight_bits: int = 0
    bops: int = 0
    flops: int = 0


class Parameter(Tensor):
    """A Tensor of any shape that a Module learns; it requires grad by default."""

    __slots__ = ()

    def __init__(
        self,
        data: TensorLike,
        *more: Any,
        requires_grad: bool = True,
        dtype: DTypeLike | None = None,
    ) -> None:
        super().__init__(data, *more, requires_grad=requires_grad, dtype=dtype)


class LatentParameter(Parameter):
    """The float weight behind a binary one: it accumulates small updates until its sign flips.

    Optimizers clip it to [-clip_value, clip_value] after each step, since the straight-through
    estimator passes no gradient beyond its clip, and apply no weight decay to it.

    Attributes
    ----------
    clip_value : float or None
        None: no clipping.
    """

    __slots__ = ("clip_value",)
    clip_value: float | None

    def __init__(
        self,
        data: TensorLike,
        *more: Any,
        clip_value: float | None = 1.0,
        requires_grad: bool = True,
        dtype: DTypeLike | None = None,
    ) -> None:
        super().__init__(data, *more, requires_grad=requires_grad, dtype=dtype)
        self.clip_value = clip_value


class StateError(KeyError, RuntimeError):
    """A state of another model: a RuntimeError as in PyTorch, and a KeyError."""

    def __str__(self) -> str:
        return Exception.__str__(self)  # KeyError's would put the text in quotes


class IncompatibleKeys(NamedTuple):
    """The keys that `Module.load_state_dict` skipped."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class _Listed(list[_Item]):
    """A list that also works with ``next``, like PyTorch's iterators."""

    def __next__(self) -> _Item:
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
        Set by `train` and `eval`. Batch norm and dropout depend on it, and in evaluation mode float
        sums run in a fixed order, so that a packed model can reproduce them exactly.
    frozen : bool
        Set by `freeze`: the module stays in evaluation mode and its parameters do not learn.
    """

    training: bool = True
    frozen: bool = False
    _buffer_names = ()
    _hooks = None

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Compute the output; subclasses override this, callers use ``module(x)``.

        A layer of this package documents its shapes; unless it says otherwise, it maps a float
        Tensor (N, ...) to a Tensor of the same shape and dtype.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward method")

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        if self._hooks is not None:
            return self._hooks.call(self, inputs, options)
        if is_tracing():
            return traced_forward(self, inputs, options)
        return self.forward(*inputs, **options)

    # ------------------------------------------------------------------------------------ hooks

    def register_forward_pre_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Call ``hook(module, inputs)`` before forward; a returned value replaces the inputs.

        Returns
        -------
        RemovableHandle
            Its method ``remove`` unregisters the hook.
        """
        return self._add_hook("forward_pre", hook)

    def register_forward_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Call ``hook(module, inputs, output)`` after forward; a returned value replaces it.

        ``inputs`` is the tuple of positional arguments. A hook that returns None changes nothing.
        """
        return self._add_hook("forward", hook)

    def register_full_backward_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Call ``hook(module, grad_input, grad_output)`` when gradients reach the inputs.

        Both are tuples of Tensors, with None where there is no gradient; a tuple that the hook
        returns replaces `grad_input`. If no input takes a gradient, the hook is called when the
        gradients of the output are known.
        """
        return self._add_hook("backward", hook)

    def _add_hook(self, kind, hook: Callable[..., Any]):
        if self._hooks is None:
            self._hooks = Hooks()
        return self._hooks.add(kind, hook)

    # ------------------------------------------------------------------------------- attributes

    def register_buffer(self, name: str, array: TensorLike) -> None:
        """Add an array of any shape and dtype to the state; it is saved, but not learned."""
        if name not in self._buffer_names:
            self._buffer_names = (*self._buffer_names, name)
        setattr(self, name, np.asarray(as_array(array)))

    def register_parameter(self, name: str, parameter: Parameter | None) -> None:
        """Assign a Parameter (or None) under a name."""
        setattr(self, name, parameter)

    def add_module(self, name: str, module: Module | None) -> None:
        """Assign a Module (or None) under a name, which may be a number."""
        if not (module is None or isinstance(module, Module)):
            raise TypeError(f"add_module: {name} must be a Module, got a {type(module).__name__}")
        setattr(self, name, module)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a Parameter, buffer or Module can only be replaced by its own kind.

        A NumPy scalar becomes a Python number, so that settings do not affect dtypes.

        Raises
        ------
        TypeError
            If the old value would vanish from `parameters` and `state_dict`. A Parameter or a
            Module may be set to None.
        """
        if name in self._buffer_names:
            if isinstance(value, np.generic | Tensor) and not isinstance(value, Parameter):
                value = np.asarray(as_array(value))  # a 0-d array + 1 is a NumPy scalar
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

    def __delattr__(self, name: str) -> None:
        object.__delattr__(self, name)
        if name in self._buffer_names:
            self._buffer_names = tuple(n for n in self._buffer_names if n != name)

    def _would_vanish(self, name: str, value: Any, kind, expected):
        return TypeError(
            f"{type(self).__name__}.{name} is {kind}, and would vanish from the model if it became "
            f"a {type(value).__name__}; assign {expected}"
        )

    # ------------------------------------------------------------------------- walking the tree

    def named_children(self) -> list[tuple[str, Module]]:
        """List (name, module) for each direct child, in order of assignment."""
        return _Listed((name, m) for name, m in vars(self).items() if isinstance(m, Module))

    def children(self) -> list[Module]:
        """List the direct children, in order of assignment."""
        return _Listed(m for _, m in self.named_children())

    def named_modules(self, prefix: str = "") -> list[tuple[str, Module]]:
        """List (path, module) for this module (empty path) and all below it, each module once."""
        by_id, stack = {}, [(prefix, self)]
        while stack:
            path, module = stack.pop()
            if id(module) not in by_id:
                by_id[id(module)] = (path, module)
                stack.extend(
                    (f"{path}.{name}" if path else name, child)
                    for name, child in reversed(module.named_children())
                )
        return _Listed(by_id.values())

    def modules(self) -> list[Module]:
        """List this module and all below it."""
        return _Listed(m for _, m in self.named_modules())

    def get_submodule(self, target: str) -> Module:
        """Return the module at a path such as ``"features.3.conv"``; the empty path is this one."""
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

    def apply(self, function: Callable[[Module], Any]) -> Self:
        """Call ``function(module)`` for all modules below, then for this one; returns this one."""
        for child in self.children():
            child.apply(function)
        function(self)
        return self

    def named_parameters(self) -> list[tuple[str, Parameter]]:
        """List (path, parameter), each parameter once."""
        by_id = {}
        for path, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter):
                    by_id.setdefault(id(value), (f"{path}.{name}" if path else name, value))
        return _Listed(by_id.values())

    def parameters(self) -> list[Parameter]:
        """List all parameters, each once; the list also works with ``next``."""
        return _Listed(p for _, p in self.named_parameters())

    def binary_weights(self) -> dict[str, FloatArray]:
        """Return the weights that binary layers compute with, by the names of their parameters.

        They are the signs of the parameters, which are real latent weights. A layer's `scale`
        multiplies sums and is not included.

        Returns
        -------
        dict of str to numpy.ndarray
            The elements are -1 and 1, and 0 for a ternary quantizer; shapes and dtypes are those of
            the parameters.
        """
        return {
            f"{path}.weight" if path else "weight": module.binary_weight()
            for path, module in self.named_modules()
            if hasattr(module, "binary_weight")
            and hasattr(module, "weight")
            and module.weight_quantizer is not None
        }

    def named_buffers(self) -> list[tuple[str, Array]]:
        """List (path, array) of the buffers."""
        return _Listed(
            (f"{path}.{name}" if path else name, getattr(module, name))
            for path, module in self.named_modules()
            for name in module._buffer_names
        )

    def buffers(self) -> list[Array]:
        """List the buffers, which are arrays."""
        return _Listed(array for _, array in self.named_buffers())

    # ------------------------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Array]:
        """Return the arrays of parameters and buffers by path (shared memory, no copies)."""
        result = {}
        for path, module in self.named_modules():
            start = f"{path}." if path else ""
            for name, value in vars(module).items():
                if isinstance(value, Parameter):
                    result[start + name] = value.data
            for name in module._buffer_names:
                result[start + name] = getattr(module, name)
        return result

    def load_state_dict(
        self, state: Mapping[str, TensorLike], strict: bool = True
    ) -> IncompatibleKeys:
        """Copy arrays into the parameters and buffers, converted to their dtypes.

        Parameters
        ----------
        state : dict of str to array or Tensor
            With the shapes of `state_dict`.
        strict : bool
            With False, missing and unexpected keys are skipped.

        Returns
        -------
        IncompatibleKeys
            The skipped keys.

        Raises
        ------
        StateError
            If a key is missing or unexpected and `strict` is True.
        SizeError
            If a shape differs. Nothing is changed when an error is raised.
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
        values = {  # convert all before the first change, since a conversion may fail
            name: np.asarray(as_array(state[name]), array.dtype) for name, array in own.items()
        }
        for name, array in own.items():
            array[...] = values[name]
        return IncompatibleKeys(missing, unexpected)

    # ------------------------------------------------------------------------------------- mode

    def train(self, mode: bool = True) -> Self:
        """Switch this module and all below it to training (or evaluation) mode.

        Frozen modules stay in evaluation mode.
        """
        for module in self.modules():
            module.training = bool(mode) and not module.frozen
        return self

    def eval(self) -> Self:
        """Switch this module and all below it to evaluation mode."""
        return self.train(False)

    @contextlib.contextmanager
    def in_mode(self, *, training: bool) -> Iterator[Self]:
        """Context manager: call `train` or `eval`, and restore each module's mode at the end."""
        modes = [(module, module.training) for module in self.modules()]
        self.train(training)
        try:
            yield self
        finally:
            for module, training in modes:
                module.training = training

    def freeze(self, frozen: bool = True) -> Self:
        """Exclude this module and all below it from training.

        Their parameters take no gradient, and they stay in evaluation mode when `train` is called,
        so batch norm keeps its running statistics. Only `load_state_dict` changes them.

        Parameters
        ----------
        frozen : bool
            With False they learn again; the mode is not changed.
        """
        for module in self.modules():
            module.frozen = bool(frozen)
        self.requires_grad_(not frozen)
        if frozen:
            self.zero_grad()  # optimizers skip parameters without a gradient
            self.eval()
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Set whether all parameters below take gradients; those of frozen modules never do."""
        own = [(p, m.frozen) for m in self.modules() for p in vars(m).values()]
        frozen = {id(p) for p, is_frozen in own if is_frozen}
        for parameter in self.parameters():
            parameter.requires_grad = bool(requires_grad) and id(parameter) not in frozen
        return self

    def zero_grad(self) -> None:
        """Set the gradients of all parameters to None."""
        for parameter in self.parameters():
            parameter.grad = None

    def to(self, *target: Any, dtype: DTypeLike | None = None, device: str | None = None) -> Self:
        """Convert parameters and floating-point buffers in place, and set gradients to None.

        Parameters
        ----------
        target : dtype, "cpu", or Tensor to take the dtype from
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

    def cpu(self) -> Self:
        """Return the module: it is on the CPU."""
        return self

    def float(self) -> Self:
        """Convert to float32 in place."""
        return self.to(np.float32)

    def double(self) -> Self:
        """Convert to float64 in place; a packed model is always float32."""
        return self.to(np.float64)

    # ------------------------------------------------------------------------------------- cost

    def cost(self, input_shape: Sequence[int]) -> Cost:
        """Compute the `Cost` of this layer alone for one sample of `input_shape`, a tuple of int.

        Layers that multiply override it; the base class counts parameters and buffers as floats.
        """
        floats = [p for p in vars(self).values() if isinstance(p, Parameter)]
        floats += [getattr(self, name) for name in self._buffer_names]
        bits = sum(8 * x.dtype.itemsize * int(np.prod(x.shape)) for x in floats if x.shape)
        with self.in_mode(training=False), no_grad():
            output = self(Tensor(np.zeros((1, *input_shape), np.float32)))
        return Cost(output.shape[1:], weight_bits=bits)

    # --------------------------------------------------------------------------------- printing

    def extra_repr(self) -> str:
        """Return the settings shown in the layer's line of a printed model."""
        return ""

    def __repr__(self) -> str:
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


def unregistered(model: Module) -> dict[str, Module | Tensor]:
    """Find layers and parameters that a model refers to without owning them.

    A layer in a plain list, dict or object does not learn, is not saved, and keeps its mode.

    Returns
    -------
    dict
        From a path such as ``layers[0]`` to a Module that is not frozen, or a Tensor that requires
        grad.
    """
    owned = {id(x) for x in (*model.modules(), *model.parameters())}
    strays, seen = {}, set(owned)
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
                strays[path] = value
        elif isinstance(value, Tensor):
            if value.requires_grad and value.is_leaf:
                strays[path] = value
        elif isinstance(value, list | tuple | set):
            stack.extend((f"{path}[{i}]", item) for i, item in enumerate(value))
        elif isinstance(value, dict):
            stack.extend((f"{path}[{key!r}]", item) for key, item in value.items())
        else:
            stack.extend((f"{path}.{key}", v) for key, v in getattr(value, "__dict__", {}).items())
    return dict(sorted(strays.items()))


def warn_of_unregistered(model: Module, where: str) -> None:
    """Warn of `unregistered` layers in the name of `where`, a function that the user called."""
    strays = unregistered(model)
    if strays:
        path = next(iter(strays))
        more = f" and {len(strays) - 1} more" if len(strays) > 1 else ""
        warnings.warn(
            f"{where}: {type(model).__name__} reaches {path} ({type(strays[path]).__name__}){more} "
            "without owning it: it does not learn, is not saved, and keeps its mode. Use "
            "nn.ModuleList in place of a list, nn.Parameter in place of a Tensor, or freeze() it",
            stacklevel=3,
        )


class ModuleList(Module):
    """A list of Modules that are registered with the Module that holds it.

    Parameters
    ----------
    modules : iterable of Module
    """

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        self.extend(modules)

    def append(self, module: Module) -> Self:
        """Append a Module; returns the list."""
        setattr(self, str(len(self)), self._checked(module, len(self)))
        return self

    def extend(self, modules: Iterable[Module]) -> Self:
        """Append several Modules; returns the list."""
        for module in modules:
            self.append(module)
        return self

    def insert(self, index: int, module: Module) -> Self:
        """Insert a Module before the one at `index`; the following ones are renumbered."""
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

    def _renumber(self, modules: Iterable[Module]):
        """Replace the modules of the list, which must have numbers as names."""
        names = [name for name, _ in self.named_children()]
        if names != [str(i) for i in range(len(names))]:
            raise TypeError(
                f"{type(self).__name__}: its modules have names ({', '.join(names)}), which would "
                "change; make a new one"
            )
        for name in names:
            delattr(self, name)
        self.extend(modules)

    def __len__(self) -> int:
        return len(self.children())

    def __iter__(self) -> Iterator[Module]:
        return iter(self.children())

    def __getitem__(self, index: int | slice) -> Any:
        selected = self.children()[index]
        if not isinstance(index, slice):
            return selected
        part = type(self)()
        for module in selected:
            part.append(module)
        return part

    def __setitem__(self, index: int, module: Module) -> None:
        name, _ = self.named_children()[index]
        setattr(self, name, self._checked(module, index))

    def __delitem__(self, index: int) -> None:
        modules = list(self.children())
        del modules[index]
        self._renumber(modules)


class Sequential(ModuleList):
    """Apply modules one after the other.

    Parameters
    ----------
    *modules : Module
        Or a single dict of names to modules.

    Examples
    --------
    >>> from tinybnn import nn
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    >>> model[1]
    Linear(64, 10, bias=True)
    >>> nn.Sequential({"flatten": nn.Flatten(), "head": nn.Linear(64, 10)}).head
    Linear(64, 10, bias=True)
    """

    def __init__(self, *modules: Module | dict[str, Module]) -> None:
        if len(modules) == 1 and isinstance(modules[0], dict):
            for name, module in modules[0].items():
                self.add_module(name, self._checked(module, name))
        else:
            super().__init__(modules)

    def forward(self, x: Any) -> Any:
        for module in self.children():
            x = module(x)
        return x
