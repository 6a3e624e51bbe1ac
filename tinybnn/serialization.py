"""``save`` and ``load``: Tensors, arrays and plain values in dicts, lists and tuples, in one file.

The files are those of `tinybnn.storage`: reading executes nothing, so untrusted files are safe.
"""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np

from tinybnn import storage
from tinybnn.autograd import Tensor
from tinybnn.autograd.tensor import check_device

__all__ = ["load", "save"]


def __dir__() -> list[str]:
    return __all__.copy()  # what is public, and nothing else


KIND, VERSION = "objects", 1


def save(obj: Any, f: str | os.PathLike[str]) -> None:
    """Write an object to a file, atomically.

    Parameters
    ----------
    obj : dict, list, tuple, Tensor, array, number, str or None
        Containers may be nested: ``{"epoch": 3, "model": model.state_dict()}``. Arrays have any
        shape, and bool, integer or float elements of at most 64 bits.
    f : str or PathLike
        Used as it is; no suffix is added.

    Raises
    ------
    TypeError
        For other values, such as a Module: save its ``state_dict()``.
    """
    arrays = {}
    content = _encoded(obj, arrays, "obj")
    storage.save(f, arrays, kind=KIND, version=VERSION, metadata={"object": content})


def load(
    f: str | os.PathLike[str], map_location: str | None = None, weights_only: bool = True
) -> Any:
    """Read a file that `save` wrote: Tensors come back as Tensors, arrays as arrays.

    Shapes and dtypes are those that were saved.

    Parameters
    ----------
    f : str or PathLike
    map_location : None or "cpu"
    weights_only : bool
        Accepted for PyTorch's sake; only data is ever read.

    Raises
    ------
    StorageError
        If the file is foreign (e.g. one of PyTorch's) or damaged.
    """
    check_device("load", map_location)
    arrays, metadata = storage.load(f, kind=KIND, version=VERSION)
    try:
        return _decoded(metadata["object"], arrays)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise storage.StorageError(f"{f}: damaged: its metadata describes no object") from error


def _encoded(x, arrays, where):
    """x as JSON; its arrays are put into `arrays`, under their number."""
    if isinstance(x, Tensor):
        return {"tensor": _encoded(x.data, arrays, where), "requires_grad": x.requires_grad}
    if isinstance(x, np.ndarray | np.generic):
        name = str(len(arrays))
        arrays[name] = np.asarray(x)
        return {"array" if isinstance(x, np.ndarray) else "scalar": name}
    if isinstance(x, dict):
        for key in x:
            if not isinstance(key, str | int):
                raise TypeError(f"save: {where} has the key {key!r}; expects texts and ints")
        return {"dict": [[k, _encoded(v, arrays, f"{where}[{k!r}]")] for k, v in x.items()]}
    if isinstance(x, list | tuple):
        items = [_encoded(item, arrays, f"{where}[{i}]") for i, item in enumerate(x)]
        return {"list" if isinstance(x, list) else "tuple": items}
    if isinstance(x, float) and not math.isfinite(x):
        return {"float": str(x)}
    if x is None or isinstance(x, bool | int | float | str):
        return x
    instead = "its state_dict()" if hasattr(x, "state_dict") else "its data"
    raise TypeError(f"save: {where} is a {type(x).__name__}; save {instead} instead")


def _decoded(x, arrays):
    if not isinstance(x, dict):
        return x
    if "tensor" in x:
        return Tensor(_decoded(x["tensor"], arrays), requires_grad=x["requires_grad"])
    ((kind, content),) = x.items()
    if kind == "array":
        return arrays[content]
    if kind == "scalar":
        return arrays[content][()]
    if kind == "float":
        return float(content)
    if kind == "dict":
        return {key: _decoded(value, arrays) for key, value in content}
    return {"list": list, "tuple": tuple}[kind](_decoded(item, arrays) for item in content)
