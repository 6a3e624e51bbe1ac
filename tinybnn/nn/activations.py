"""More activations, with PyTorch's names, arguments and defaults.

They take a float Tensor of any shape and return one of the same shape and dtype.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinybnn import functional as F
from tinybnn.nn.module import Module

if TYPE_CHECKING:
    from tinybnn.autograd import Tensor


class ReLU6(Module):
    """Limit x to [0, 6]."""

    def __init__(self, inplace: bool = False) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x)


class SiLU(Module):
    """x sigmoid(x); see `functional.silu`."""

    def __init__(self, inplace: bool = False) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x)


class GELU(Module):
    """x times the probability that a standard normal variable is below x.

    See `functional.gelu`.

    Parameters
    ----------
    approximate : 'none' or 'tanh'
        'tanh' is faster and has a packed form.
    """

    approximate: str

    def __init__(self, approximate: str = "none") -> None:
        if approximate not in ("none", "tanh"):
            raise ValueError(f"GELU: approximate must be 'none' or 'tanh', got {approximate!r}")
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x, self.approximate)

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}"


class Softmax(Module):
    """exp(x) / sum(exp(x)) along an axis; see `functional.softmax`.

    Parameters
    ----------
    dim : int
        Default: -1, where PyTorch warns.
    """

    dim: int

    def __init__(self, dim: int = -1) -> None:
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(x, self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class LogSoftmax(Softmax):
    """The logarithm of Softmax; see `functional.log_softmax`."""

    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(x, self.dim)
