"""All gradients or parameters of a model as one vector; the name of the file is PyTorch's."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from tinybnn.autograd import Tensor, as_array

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tinybnn.typing import TensorLike

__all__ = [
    "clip_grad_norm_", "clip_grad_value_", "parameters_to_vector", "vector_to_parameters",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__.copy()  # what is public, and nothing else


def _gradients(parameters):
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    return [p.grad.data for p in parameters if p.grad is not None]


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """Scale the gradients of all parameters, taken as one vector, to at most `max_norm`.

    As in PyTorch they are multiplied by min(max_norm / (norm + 1e-6), 1), in place.

    Parameters
    ----------
    parameters : Tensor or iterable of Tensors, of any shapes
    max_norm : float
    norm_type : float
        The p of the norm; infinity for the largest magnitude.
    error_if_nonfinite : bool
        Raise a RuntimeError if the norm is NaN or infinite; by default such gradients become NaN
        or 0.

    Returns
    -------
    Tensor of shape ()
        The norm before scaling.
    """
    gradients = _gradients(parameters)
    norms = [np.linalg.norm(g.ravel(order="K"), norm_type) for g in gradients]
    norm = np.linalg.norm(norms, norm_type) if norms else 0.0
    if error_if_nonfinite and not math.isfinite(norm):
        raise RuntimeError(f"clip_grad_norm_: the norm of the gradients is {norm}")
    factor = min(float(max_norm) / (float(norm) + 1e-6), 1.0)
    factor = float("nan") if math.isnan(norm) else factor
    for g in gradients:
        g *= g.dtype.type(factor)
    return Tensor(np.asarray(norm, gradients[0].dtype if gradients else np.float32))


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Limit each element of the gradients, of any shapes, to ± `clip_value`, in place."""
    for g in _gradients(parameters):
        np.clip(g, -float(clip_value), float(clip_value), out=g)


def parameters_to_vector(parameters: Iterable[Tensor]) -> Tensor:
    """Copy the values of all parameters into one vector (total size,), without a graph."""
    return Tensor(np.concatenate([as_array(p).ravel() for p in parameters]))


def vector_to_parameters(vec: TensorLike, parameters: Iterable[Tensor]) -> None:
    """Copy the elements of a vector (total size,) into the parameters, in order."""
    parameters, values = list(parameters), as_array(vec)
    count = sum(p.numel() for p in parameters)
    if values.shape != (count,):
        raise ValueError(
            f"vector_to_parameters: the parameters hold {count} numbers, vec has the shape "
            f"{values.shape}"
        )
    for p in parameters:
        p.data[...] = values[: p.numel()].reshape(p.shape)
        values = values[p.numel() :]
