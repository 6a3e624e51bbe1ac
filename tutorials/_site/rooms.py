"""What the reference says of a room: a page with its names, in the order of its files."""

import importlib
import inspect
import sys

from docstrings import escaped

TENSOR = "tinybnn.tensor"  # documents the names of `autograd`, wherever else they are


def groups(room):
    """The files that define a room's public names: title, text, classes and functions of each."""
    module = importlib.import_module(room)
    files = {}
    for name, value in public(module):
        if not is_elsewhere(room, value):
            files.setdefault(value.__module__, []).append((name, value))
    return [
        {
            "title": file.rpartition(".")[2].replace("_", " ").capitalize(),
            "text": "\n".join(escaped(inspect.getdoc(sys.modules[file]).splitlines())),
            "classes": [name for name, value in named if inspect.isclass(value)],
            "functions": [name for name, value in named if not inspect.isclass(value)],
        }
        for file, named in files.items()
    ]


def borrowed(room):
    """Names of a room that the page of `tinybnn.tensor` documents."""
    return [n for n, v in public(importlib.import_module(room)) if is_elsewhere(room, v)]


def public(module):
    """Classes and functions of ``__all__``, or else those that the module itself defines."""
    own = [n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__]
    names = getattr(module, "__all__", [n for n in own if not n.startswith("_")])
    values = [(name, getattr(module, name)) for name in names]
    return [(n, v) for n, v in values if getattr(v, "__module__", "").startswith("tinybnn")]


def is_elsewhere(room, value):
    return room != TENSOR and value.__module__.startswith("tinybnn.autograd")
