"""tinybnn: binary neural networks from scratch, trained on floats and run on bits.

>>> import tinybnn as tb
>>> x = tb.Tensor([-0.5, 0.3, 2.0], requires_grad=True)
>>> y = tb.quantizers.ste_sign(x)
>>> y.sum().backward()
>>> y.data, x.grad.data
(array([-1.,  1.,  1.], dtype=float32), array([1., 1., 0.], dtype=float32))

The functions of `tinybnn.tensor` are available here too: ``tb.zeros(2, 3)``,
``tb.where(x > 0, x, y)``.
"""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tinybnn import autograd, functional, nn, quantizers
from tinybnn.autograd import Function, Tensor, grad, manual_seed, no_grad
from tinybnn.serialization import load, save

if TYPE_CHECKING:
    from tinybnn import (
        analysis,
        course,
        datasets,
        deploy,
        federated,
        models,
        optim,
        plots,
        testing,
        training,
    )

__version__: str = "0.2.0"

__all__ = [
    "Function", "Tensor", "__version__", "analysis", "autograd", "course", "datasets", "deploy",
    "federated", "functional", "grad", "load", "manual_seed", "models", "nn", "no_grad", "optim",
    "plots", "quantizers", "save", "tensor", "testing", "training",
]  # fmt: skip
__dir__: Callable[[], list[str]] = __all__.copy  # dir() lists the public names only


def __getattr__(name: str) -> Any:
    """Import a subpackage on first access, so that no program waits for those it does not use."""
    if name in __all__:
        return importlib.import_module(f"tinybnn.{name}")
    if name in autograd.__all__:
        return getattr(autograd, name)
    raise AttributeError(f"module 'tinybnn' has no attribute {name!r}")
