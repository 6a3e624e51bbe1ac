"""Initial values, with PyTorch's names, arguments and defaults.

Each function fills a Tensor of any shape in place, whether it requires grad or not, and returns
it. Where a fan is needed, the shape is (out, in, ...). Layers draw their weights when they are
created; these functions replace them:

>>> from tinybnn import nn
>>> layer = nn.Linear(4, 3)
>>> _ = nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
>>> nn.init.zeros_(layer.bias).data
array([0., 0., 0.], dtype=float32)

`generator` is a numpy.random.Generator; by default the one that `tinybnn.manual_seed` restarts.
The numbers differ from PyTorch's for the same seed; their distribution is the same.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from tinybnn.autograd import Tensor, default_generator, no_grad

if TYPE_CHECKING:
    from numpy.random import Generator

    T = TypeVar("T", bound=Tensor)

__all__ = [
    "calculate_gain", "constant_", "kaiming_normal_", "kaiming_uniform_", "normal_", "ones_",
    "orthogonal_", "uniform_", "xavier_normal_", "xavier_uniform_", "zeros_",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__.copy()  # what is public, and nothing else


_GAINS = {
    "linear": 1.0, "conv2d": 1.0, "conv_transpose2d": 1.0, "sigmoid": 1.0, "tanh": 5 / 3,
    "relu": math.sqrt(2.0), "selu": 0.75,
}  # fmt: skip


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """Return the gain of weights that compensates for the variance a nonlinearity removes.

    Parameters
    ----------
    nonlinearity : 'linear', 'conv2d', 'sigmoid', 'tanh', 'relu', 'leaky_relu' or 'selu'
    param : float, optional
        Slope of a leaky ReLU; default: 0.01.
    """
    if nonlinearity == "leaky_relu":
        return math.sqrt(2.0 / (1 + (0.01 if param is None else param) ** 2))
    if nonlinearity not in _GAINS:
        known = ", ".join(("leaky_relu", *_GAINS))
        raise ValueError(f"calculate_gain: nonlinearity must be one of {known}, got {nonlinearity}")
    return _GAINS[nonlinearity]


def _fill(name, tensor, values):
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: fills a Tensor or Parameter, got {type(tensor).__name__}")
    with no_grad():
        tensor[...] = values
    return tensor


def _rng(generator):
    return default_generator() if generator is None else generator


def uniform_(tensor: T, a: float = 0.0, b: float = 1.0, generator: Generator | None = None) -> T:
    """Fill a Tensor of any shape with uniform numbers in [a, b)."""
    return _fill("uniform_", tensor, _rng(generator).uniform(a, b, np.shape(tensor)))


def normal_(
    tensor: T, mean: float = 0.0, std: float = 1.0, generator: Generator | None = None
) -> T:
    """Fill a Tensor of any shape with normally distributed numbers."""
    return _fill("normal_", tensor, _rng(generator).normal(mean, std, np.shape(tensor)))


def constant_(tensor: T, val: float) -> T:
    """Fill a Tensor of any shape with `val`."""
    return _fill("constant_", tensor, val)


def ones_(tensor: T) -> T:
    """Fill a Tensor of any shape with 1."""
    return _fill("ones_", tensor, 1.0)


def zeros_(tensor: T) -> T:
    """Fill a Tensor of any shape with 0."""
    return _fill("zeros_", tensor, 0.0)


def _fans(name, tensor):
    """fan_in and fan_out of a weight (out, in, ...)."""
    shape = np.shape(tensor)
    if len(shape) < 2:
        raise ValueError(
            f"{name}: a tensor of fewer than 2 axes has no fan in and fan out, got shape {shape}"
        )
    taps = math.prod(shape[2:])
    return shape[1] * taps, shape[0] * taps


def xavier_uniform_(tensor: T, gain: float = 1.0, generator: Generator | None = None) -> T:
    """Fill (out, in, ...) uniformly in ± gain sqrt(6 / (fan_in + fan_out)).

    Glorot and Bengio 2010, eq. 16.
    """
    bound = gain * math.sqrt(6.0 / sum(_fans("xavier_uniform_", tensor)))
    return uniform_(tensor, -bound, bound, generator)


def xavier_normal_(tensor: T, gain: float = 1.0, generator: Generator | None = None) -> T:
    """Fill (out, in, ...) normally with std gain sqrt(2 / (fan_in + fan_out)).

    Glorot and Bengio 2010.
    """
    return normal_(
        tensor, 0.0, gain * math.sqrt(2.0 / sum(_fans("xavier_normal_", tensor))), generator
    )


def _kaiming_deviation(name, tensor, a, mode, nonlinearity):
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"{name}: mode must be 'fan_in' or 'fan_out', got {mode!r}")
    fan = _fans(name, tensor)[mode == "fan_out"]
    return calculate_gain(nonlinearity, a) / math.sqrt(fan)


def kaiming_uniform_(
    tensor: T,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> T:
    """Fill uniformly in ± gain sqrt(3 / fan) (He et al. 2015, eq. 14).

    Parameters
    ----------
    tensor : Tensor (out, in, ...)
    a : float
        Slope of the leaky ReLU.
    mode : 'fan_in' or 'fan_out'
        Preserve the variance of the values, or of the gradients.
    nonlinearity : str
        See `calculate_gain`.
    """
    bound = math.sqrt(3.0) * _kaiming_deviation("kaiming_uniform_", tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound, generator)


def kaiming_normal_(
    tensor: T,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> T:
    """Fill (out, in, ...) normally with std gain / sqrt(fan); see `kaiming_uniform_`."""
    std = _kaiming_deviation("kaiming_normal_", tensor, a, mode, nonlinearity)
    return normal_(tensor, 0.0, std, generator)


def orthogonal_(tensor: T, gain: float = 1, generator: Generator | None = None) -> T:
    """Fill with a (semi-)orthogonal matrix (out, in * ...) times `gain` (Saxe et al. 2013)."""
    _fans("orthogonal_", tensor)
    rows, columns = len(tensor.data), tensor.data.size // len(tensor.data)
    matrix = _rng(generator).standard_normal((max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(matrix)
    q *= np.sign(np.diag(r))  # else Q would not be uniformly distributed
    q = q if rows >= columns else q.T
    return _fill("orthogonal_", tensor, gain * q.reshape(np.shape(tensor)))
