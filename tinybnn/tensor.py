"""`tinybnn.autograd`, by the name that users know; ``tinybnn.tensor(data)`` makes a Tensor."""

import sys
from types import ModuleType

from tinybnn.autograd import *  # noqa: F403
from tinybnn.autograd import __all__ as __all__
from tinybnn.autograd.creation import tensor as _tensor


def __dir__() -> list[str]:
    return __all__.copy()  # what is public, and nothing else


class _Callable(ModuleType):
    """A module that is called as PyTorch's function of its name."""

    __call__ = staticmethod(_tensor)


sys.modules[__name__].__class__ = _Callable
