"""More activations, with PyTorch's names, arguments and defaults."""

from __future__ import annotations

from tinybnn import functional as F
from tinybnn.nn.module import Module


class ReLU6(Module):
    """Limit to [0, 6]."""

    def __init__(self, inplace=False):
        pass

    def forward(self, x):
        return F.relu6(x)


class SiLU(Module):
    """x sigmoid(x); see `functional.silu`."""

    def __init__(self, inplace=False):
        pass

    def forward(self, x):
        return F.silu(x)


class GELU(Module):
    """x times the probability that a standard normal variable is below x.

    See `functional.gelu`.

    Parameters
    ----------
    approximate : 'none' or 'tanh'
        'tanh' is faster, and has a packed form.
    """

    def __init__(self, approximate="none"):
        if approximate not in ("none", "tanh"):
            raise ValueError(f"GELU: approximate must be 'none' or 'tanh', got {approximate!r}")
        self.approximate = approximate

    def forward(self, x):
        return F.gelu(x, self.approximate)

    def extra_repr(self):
        return f"approximate={self.approximate!r}"


class Softmax(Module):
    """exp(x) / sum(exp(x)) along an axis; see `functional.softmax`.

    Parameters
    ----------
    dim : int
        -1 by default; PyTorch warns where none is given.
    """

    def __init__(self, dim=-1):
        self.dim = dim

    def forward(self, x):
        return F.softmax(x, self.dim)

    def extra_repr(self):
        return f"dim={self.dim}"


class LogSoftmax(Softmax):
    """The logarithm of Softmax; see `functional.log_softmax`."""

    def forward(self, x):
        return F.log_softmax(x, self.dim)
