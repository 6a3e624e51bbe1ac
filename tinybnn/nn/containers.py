"""Containers of modules by name, and of parameters."""

from __future__ import annotations

from tinybnn.nn.module import Module, Parameter


class ModuleDict(Module):
    """Modules by name, all of them known to the Module that holds the dict.

    Parameters
    ----------
    modules : mapping or iterable of pairs (name, Module), optional
    """

    def __init__(self, modules=None):
        self.update(modules or {})

    def __getitem__(self, key):
        return dict(self.items())[key]

    def __setitem__(self, key, module):
        if not isinstance(module, Module):
            raise TypeError(f"ModuleDict: {key!r} must be a Module, got {type(module).__name__}")
        if not isinstance(key, str) or not key or "." in key:
            raise KeyError(f"ModuleDict: a name must be text without a dot, got {key!r}")
        if key not in self and hasattr(self, key):
            raise KeyError(f"ModuleDict: {key!r} is an attribute of a Module; choose another name")
        setattr(self, key, module)

    def __delitem__(self, key):
        self[key]  # a KeyError for another attribute
        delattr(self, key)

    def __len__(self):
        return len(self.children())

    def __iter__(self):
        return iter(self.keys())

    def __contains__(self, key):
        return key in self.keys()

    def keys(self):
        """The names, in the order in which they were set."""
        return [name for name, _ in self.items()]

    def values(self):
        """The modules."""
        return self.children()

    def items(self):
        """(name, module) pairs."""
        return self.named_children()

    def update(self, modules):
        """Set the modules of a mapping, or of pairs (name, Module)."""
        for key, module in modules.items() if hasattr(modules, "items") else modules:
            self[key] = module

    def pop(self, key):
        """Take a module out, and return it."""
        module = self[key]
        del self[key]
        return module

    def clear(self):
        """Take all modules out."""
        for key in self.keys():
            del self[key]


class ParameterList(Module):
    """A list of Parameters, all of them known to the Module that holds it.

    Parameters
    ----------
    values : iterable of Parameter or Tensor, optional
        A Tensor becomes a Parameter, as in PyTorch.
    """

    def __init__(self, values=None):
        self.extend(values or ())

    def append(self, value):
        """Add a Parameter at the end; returns the list."""
        setattr(self, str(len(self)), value if isinstance(value, Parameter) else Parameter(value))
        return self

    def extend(self, values):
        """Add several at the end; returns the list."""
        for value in values:
            self.append(value)
        return self

    def _own(self):
        return [p for p in vars(self).values() if isinstance(p, Parameter)]

    def __len__(self):
        return len(self._own())

    def __iter__(self):
        return iter(self._own())

    def __getitem__(self, index):
        chosen = self._own()[index]
        return ParameterList(chosen) if isinstance(index, slice) else chosen

    def __setitem__(self, index, value):
        name = range(len(self))[index]  # an IndexError outside
        setattr(self, str(name), value if isinstance(value, Parameter) else Parameter(value))

    def extra_repr(self):
        return ", ".join(str(tuple(p.shape)) for p in self)
