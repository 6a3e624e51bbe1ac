"""Containers of modules by name, and of parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tinybnn.nn.module import Module, Parameter

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from typing_extensions import Self

    from tinybnn.autograd import Tensor


class ModuleDict(Module):
    """Modules by name that are registered with the Module that holds the dict.

    Parameters
    ----------
    modules : mapping or iterable of pairs (name, Module), optional
    """

    def __init__(
        self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]] | None = None
    ) -> None:
        self.update(modules or {})

    def __getitem__(self, key: str) -> Module:
        return dict(self.items())[key]

    def __setitem__(self, key: str, module: Module) -> None:
        if not isinstance(module, Module):
            raise TypeError(f"ModuleDict: {key!r} must be a Module, got {type(module).__name__}")
        if not isinstance(key, str) or not key or "." in key:
            raise KeyError(f"ModuleDict: a name must be text without a dot, got {key!r}")
        if key not in self and hasattr(self, key):
            raise KeyError(f"ModuleDict: {key!r} is an attribute of a Module; choose another name")
        setattr(self, key, module)

    def __delitem__(self, key: str) -> None:
        self[key]  # a KeyError for another attribute
        delattr(self, key)

    def __len__(self) -> int:
        return len(self.children())

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __contains__(self, key: object) -> bool:
        return key in self.keys()

    def keys(self) -> list[str]:
        """List the names, in the order in which they were set."""
        return [name for name, _ in self.items()]

    def values(self) -> list[Module]:
        """List the modules."""
        return self.children()

    def items(self) -> list[tuple[str, Module]]:
        """List pairs (name, module)."""
        return self.named_children()

    def update(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]]) -> None:
        """Set the modules of a mapping, or of pairs (name, Module)."""
        for key, module in modules.items() if hasattr(modules, "items") else modules:
            self[key] = module

    def pop(self, key: str) -> Module:
        """Remove a module and return it."""
        module = self[key]
        del self[key]
        return module

    def clear(self) -> None:
        """Remove all modules."""
        for key in self.keys():
            del self[key]


class ParameterList(Module):
    """A list of Parameters that are registered with the Module that holds it.

    Parameters
    ----------
    values : iterable of Parameter or Tensor, optional
        A Tensor becomes a Parameter, as in PyTorch.
    """

    def __init__(self, values: Iterable[Parameter | Tensor] | None = None) -> None:
        self.extend(values or ())

    def append(self, value: Parameter | Tensor) -> Self:
        """Append a Parameter; returns the list."""
        setattr(self, str(len(self)), value if isinstance(value, Parameter) else Parameter(value))
        return self

    def extend(self, values: Iterable[Parameter | Tensor]) -> Self:
        """Append several Parameters; returns the list."""
        for value in values:
            self.append(value)
        return self

    def _own(self) -> list[Parameter]:
        return [p for p in vars(self).values() if isinstance(p, Parameter)]

    def __len__(self) -> int:
        return len(self._own())

    def __iter__(self) -> Iterator[Parameter]:
        return iter(self._own())

    def __getitem__(self, index: int | slice) -> Any:
        selected = self._own()[index]
        return ParameterList(selected) if isinstance(index, slice) else selected

    def __setitem__(self, index: int, value: Parameter | Tensor) -> None:
        name = range(len(self))[index]  # an IndexError outside
        setattr(self, str(name), value if isinstance(value, Parameter) else Parameter(value))

    def extra_repr(self) -> str:
        return ", ".join(str(tuple(p.shape)) for p in self)
