"""Normalization over batches, groups of channels, layers and rows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from tinybnn.autograd import (
    Function,
    Variable,
    abs,
    amax,
    as_array,
    clamp,
    mean,
    plain,
    reshape,
    sqrt,
    sum,
    var,
)
from tinybnn.kernels import dispatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, DTypeLike

    from tinybnn.typing import Array, V


class BatchNorm(Function):
    """(x - mean) / sqrt(var + eps) * weight + bias for each channel (axis 1).

    If `mean` is None, the statistics are those of the batch (Ioffe and Szegedy 2015, algorithm 1):
    they depend on x, and the gradient has no component along a shift or a change of scale of the
    batch (section 3). The running statistics are then updated. Otherwise the statistics are
    constants, and the result is alpha x + beta, with the constants of `affine_constants`.
    """

    eps: float
    from_batch: bool
    mean: Array  # (C,)
    scale: Array  # (C,)
    fresh = True

    def forward(
        self,
        x: Array,
        weight: Array,
        bias: Array,
        mean: Array | None,
        var: Array | None,
        eps: float,
        running: tuple[Array, Array, float] | None = None,
    ) -> Array:
        self.eps, self.from_batch = eps, mean is None
        if not self.from_batch:
            self.mean = mean.astype(x.dtype)
            self.scale = (1.0 / np.sqrt(var + eps)).astype(x.dtype)
            return _affine_of_channels(x, *affine_constants(weight, bias, mean, var, eps, x.dtype))
        result, self.mean, var, self.scale = _normalised_batch(x, weight, bias, eps)
        if running is not None:
            _move(*running, self.mean, var, x.size // x.shape[1])
        return result

    def backward(self, grad: V, output: V, x: V, weight: V, bias: V) -> tuple[V | None, ...]:
        if self.from_batch:
            return self.batch_gradients(grad, x, weight, self.needs[0])
        normalised = (x - per_channel(self.mean, x)) * per_channel(self.scale, x)
        grad_x = grad * per_channel(weight * self.scale, x) if self.needs[0] else None
        return grad_x, sum(grad * normalised, _all_but_channel(x)), sum(grad, _all_but_channel(x))

    def batch_gradients(
        self, grad: V, x: V, weight: V, needs_x: bool = True
    ) -> tuple[V | None, V, V]:
        """Gradients of x (N, C, ...), weight (C,) and bias (C,) with statistics of the batch."""
        gradients = dispatch.batch_norm_gradients(grad, x, self.mean, self.scale, weight)
        if gradients is not None:
            return gradients
        dims = _all_but_channel(x)
        if is_recorded(grad, x):  # as two Functions; the first computes both
            grad_x = BatchNormInput.apply(grad, x, weight, norm=self) if needs_x else None
            value = grad_x.function.grad_weight if needs_x and grad_x.function else None
            grad_weight = BatchNormWeight.apply(grad, x, norm=self, value=value)
            return grad_x, grad_weight, sum(grad, dims)
        share = x.shape[1] / x.size
        normalised = (x - per_channel(self.mean, x)) * per_channel(self.scale, x)
        grad_weight, grad_bias = sum(grad * normalised, dims), sum(grad, dims)
        grad_x = None
        if needs_x:
            grad_x = grad - per_channel(grad_bias * share, x)
            grad_x = grad_x - normalised * per_channel(grad_weight * share, x)
            grad_x = grad_x * per_channel(weight * self.scale, x)
        return grad_x, grad_weight, grad_bias

    def line(self, x: V, weight: V, bias: V) -> V:
        """(x - mean) * scale * weight + bias (N, C, ...), with mean and scale of the batch."""
        if is_recorded(x, weight, bias):
            return BatchNorm.apply(x, weight, bias, mean=None, var=None, eps=self.eps)
        return _normalised(x, self.mean, self.scale, weight, bias)

    def scale_of(self, x: V) -> V:
        """The scale 1 / sqrt(var + eps) of the batch (C,); a Tensor if x is one."""
        return reshape(_statistics(x, self.eps)[2], (-1,)) if is_recorded(x) else self.scale


class BatchNormInput(Function):
    """The gradient of x in a batch norm with statistics of the batch.

    With the normalized x̂, its scale s, the weight w, the output's gradient g and means over each
    channel, it is w s (g - mean(g) - x̂ mean(g x̂)) (Ioffe and Szegedy 2015, section 3). The map is
    linear and symmetric in g; its own gradient with respect to x, for an incoming gradient a, is

        -w s² [q (a - mean(a)) + p (g - mean(g)) + x̂ (mean(a g) - mean(a) mean(g) - 3 p q)]

    with p = mean(a x̂) and q = mean(g x̂).
    """

    norm: BatchNorm
    grad_weight: Array  # (C,)
    grad_bias: Array  # (C,)
    fresh = True

    def forward(self, grad: Array, x: Array, weight: Array, norm: BatchNorm) -> Array:
        self.norm = norm
        result, self.grad_weight, self.grad_bias = norm.batch_gradients(grad, x, weight)
        return result

    def backward(self, grad: V, output: V, g: V, x: V, weight: V) -> tuple[V | None, ...]:
        dims, share = _all_but_channel(x), np.shape(x)[1] / np.size(as_array(x))
        grad_grad, sum_a_x, sum_a = self.norm.batch_gradients(grad, x, weight)
        sum_g_x, sum_g = self.grad_weight, self.grad_bias
        if is_recorded(g, x):
            sum_g_x, sum_g = BatchNormWeight.apply(g, x, norm=self.norm), sum(g, dims)
        mean_a, mean_g, p, q = (share * v for v in (sum_a, sum_g, sum_a_x, sum_g_x))
        spread = mean(grad * g, dims) - mean_a * mean_g - p * q
        scale, grad_x, grad_weight = self.norm.scale_of(x), None, None
        if self.needs[1]:
            factor = weight * scale * scale * -1.0
            shift = factor * (q * mean_a + p * mean_g) * -1.0
            grad_x = self.norm.line(x, factor * (spread - 2.0 * p * q), shift)
            grad_x = grad_x + grad * per_channel(factor * q, x) + g * per_channel(factor * p, x)
        if self.needs[2]:
            grad_weight = scale * spread * (1.0 / share)
        return grad_grad, grad_x, grad_weight


class BatchNormWeight(Function):
    """The gradient of the weight in a batch norm with statistics of the batch: Σ grad x̂, (C,)."""

    norm: BatchNorm
    fresh = True

    def forward(self, grad: Array, x: Array, norm: BatchNorm, value: Array | None = None) -> Array:
        """Return `value` if the result is already known, else compute it."""
        self.norm = norm
        return norm.batch_gradients(grad, x, norm.scale, False)[1] if value is None else value

    def backward(self, grad: V, output: V, g: V, x: V) -> tuple[V | None, ...]:
        grad_grad = self.norm.line(x, grad, np.zeros_like(self.norm.scale))
        grad_x = self.norm.batch_gradients(g, x, grad)[0] if self.needs[1] else None
        return grad_grad, grad_x


def affine_constants(
    weight: Array, bias: Array, mean: Array, var: Array, eps: float, dtype: DTypeLike = np.float32
) -> tuple[Array, Array]:
    """Compute alpha and beta such that batch norm in evaluation is alpha x + beta.

    alpha = weight / sqrt(var + eps) is evaluated in float64 and rounded to `dtype`. Then beta =
    bias - mean alpha, with the rounded alpha, is evaluated in float64 and rounded to `dtype`; so
    the rounding of alpha matters for the distance of x from the mean only. The product alpha x and
    the sum are rounded one after the other, to the dtype of x. Float model and packed model take
    the constants from here.

    Parameters
    ----------
    weight, bias, mean, var : (C,)
    eps : float
    dtype : dtype of x

    Returns
    -------
    alpha, beta : (C,)
        Not finite where they exceed the dtype's range.
    """
    weight, bias, mean, var = (v.astype(np.float64) for v in (weight, bias, mean, var))
    with np.errstate(over="ignore", invalid="ignore"):  # infinite beyond the dtype's range
        alpha = (weight / np.sqrt(var + eps)).astype(dtype)
        return alpha, (bias - mean * alpha.astype(np.float64)).astype(dtype)


def _affine_of_channels(x, alpha, beta):
    """x * alpha + beta: x (N, C, ...), the others (C,)."""
    if (result := dispatch.affine(x, alpha, beta)) is not None:
        return result
    result = x * per_channel(alpha, x)
    result += per_channel(beta, x)
    return result


def _normalised(x, mean, scale, weight, bias):
    """(x - mean) * scale * weight + bias: x (N, C, ...), the others (C,)."""
    if (result := dispatch.normalise(x, mean, scale, weight, bias)) is not None:
        return result
    result = x - per_channel(mean, x)
    result *= per_channel(scale, x)
    result *= per_channel(weight, x)
    result += per_channel(bias, x)
    return result


def _normalised_batch(x, weight, bias, eps):
    """x normalized by its own statistics, with mean, variance and scale (C,)."""
    if (result := dispatch.normalise_batch(x, weight, bias, eps)) is not None:
        return result
    mean_, var_, scale = (v.ravel() for v in _statistics(x, eps))
    return _normalised(x, mean_, scale, weight, bias), mean_, var_, scale


def _statistics(x, eps):
    """Mean, biased variance and 1 / sqrt(variance + eps) of each channel: (1, C, 1, ...)."""
    mean_ = mean(x, _all_but_channel(x), keepdim=True)
    var_ = var(x, _all_but_channel(x), correction=0, keepdim=True)
    return mean_, var_, 1.0 / sqrt(var_ + eps)


def _move(running_mean, running_var, momentum, mean, var, count):
    """Update the running statistics in place: running += momentum (batch - running).

    The variance is the unbiased one.
    """
    running_mean += momentum * (mean - running_mean)
    running_var += momentum * (var * (count / (count - 1)) - running_var)


def is_recorded(*values: Any) -> bool:
    """Whether one of the values is a Tensor, so that results can be differentiated."""
    return any(isinstance(value, Variable) for value in values)


def _all_but_channel(x):
    return (0, *range(2, np.ndim(x)))


def per_channel(v: V, x: V) -> V:
    """Reshape (C,) to (1, C, 1, ...), which broadcasts with x (N, C, ...)."""
    return reshape(v, (1, -1, *(1,) * (np.ndim(x) - 2)))


def batch_norm(
    x: V,
    running_mean: Array | None,
    running_var: Array | None,
    weight: V | ArrayLike | None = None,
    bias: V | ArrayLike | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> V:
    """Normalize each channel: (x - mean) / sqrt(var + eps) * weight + bias.

    Ioffe and Szegedy 2015, algorithm 1. With running statistics, in evaluation, it is evaluated as
    alpha x + beta, where alpha = weight / sqrt(var + eps) and beta = bias - mean alpha are computed
    in float64 and rounded to the dtype of x.

    Parameters
    ----------
    x : (N, C) or (N, C, H, W)
    running_mean, running_var : (C,) arrays or None
        Updated in place in training (with the unbiased variance, as in PyTorch), used in
        evaluation. None: the statistics of the batch are used in both modes.
    weight, bias : (C,), optional
        Scale γ and shift β; default: 1 and 0.
    training : bool
        Normalize by the statistics of the batch.
    momentum : float
        Weight of the new statistics in the running ones.
    eps : float

    Returns
    -------
    array or Tensor of the shape of x
    """
    shape, momentum, eps = x.shape, plain(momentum), plain(eps)
    if len(shape) < 2:
        raise ValueError(f"batch_norm: x must have the shape (N, C, ...), got {shape}")
    expected = shape[1:2]
    for name, v in (
        ("running_mean", running_mean),
        ("running_var", running_var),
        ("weight", weight),
        ("bias", bias),
    ):
        if v is not None and v.shape != expected:
            raise ValueError(
                f"batch_norm: {name} has shape {v.shape}, x has {shape[1]} channels (shape {shape})"
            )
    weight = np.ones(expected, x.dtype) if weight is None else weight
    bias = np.zeros(expected, x.dtype) if bias is None else bias
    if not training and running_mean is not None:
        return BatchNorm.apply(x, weight, bias, mean=running_mean, var=running_var, eps=eps)
    count = math.prod(shape) // shape[1] if shape[1] else 0
    if count < 2:
        raise ValueError(
            f"batch_norm: training needs more than one value for each channel, x has shape "
            f"{shape}; if the last batch of an epoch is a single sample, use drop_last=True "
            "or another batch_size in the DataLoader; to predict, call model.eval() first"
        )
    running = None if running_mean is None else (running_mean, running_var, momentum)
    return BatchNorm.apply(x, weight, bias, mean=None, var=None, eps=eps, running=running)


def group_norm(
    input: V,
    num_groups: int,
    weight: V | ArrayLike | None = None,
    bias: V | ArrayLike | None = None,
    eps: float = 1e-5,
) -> V:
    """Normalize each sample by the statistics of each group of its channels.

    (x - mean) / sqrt(var + eps) * weight + bias (Wu and He 2018, eq. 1 and 7). The same in training
    and evaluation; has a packed form.

    Parameters
    ----------
    input : (N, C, ...)
    num_groups : int
        Must divide C.
    weight, bias : (C,), optional
    eps : float

    Returns
    -------
    (N, C, ...)
    """
    shape = np.shape(input)
    if len(shape) < 2:
        raise ValueError(f"group_norm: input must have the shape (N, C, ...), got {shape}")
    if not isinstance(num_groups, int | np.integer) or num_groups < 1 or shape[1] % num_groups:
        raise ValueError(
            f"group_norm: num_groups must divide the {shape[1]} channels, got {num_groups!r}"
        )
    for name, v in (("weight", weight), ("bias", bias)):
        if v is not None and np.shape(v) != shape[1:2]:
            raise ValueError(
                f"group_norm: {name} has shape {np.shape(v)}, input has {shape[1]} channels"
            )
    result = _standardised(input, (shape[0], int(num_groups), -1, 1), eps)
    return _affine(result, *(v if v is None else per_channel(v, input) for v in (weight, bias)))


def layer_norm(
    input: V,
    normalized_shape: int | Sequence[int],
    weight: V | ArrayLike | None = None,
    bias: V | ArrayLike | None = None,
    eps: float = 1e-5,
) -> V:
    """Normalize over the last axes, each row by its own statistics.

    (x - mean) / sqrt(var + eps) * weight + bias (Ba et al. 2016, eq. 3). The same in training and
    evaluation; has a packed form.

    Parameters
    ----------
    input : (N, ..., *normalized_shape)
    normalized_shape : int or tuple of int
        The sizes of the last axes.
    weight, bias : (*normalized_shape), optional
    eps : float

    Returns
    -------
    (N, ..., *normalized_shape)
    """
    shape, last = np.shape(input), np.atleast_1d(normalized_shape)
    last = tuple(int(n) for n in last)
    if not last or shape[-len(last) :] != last:
        raise ValueError(
            f"layer_norm: the last axes of input must be normalized_shape {last}, got shape {shape}"
        )
    for name, v in (("weight", weight), ("bias", bias)):
        if v is not None and np.shape(v) != last:
            raise ValueError(f"layer_norm: {name} has shape {np.shape(v)}, expected {last}")
    rows = shape[1 : len(shape) - len(last)]
    samples = shape[0] if len(shape) > len(last) else 1
    result = _standardised(input, (samples, math.prod(rows), math.prod(last), 1), eps)
    return _affine(result, weight, bias)


def _standardised(x, rows, eps):
    """(x - mean) / sqrt(var + eps), with statistics over the last two axes of x reshaped to `rows`.

    Sums over axes behind the second are evaluated in one fixed order (`autograd.sum`).
    """
    rows = reshape(x, rows)
    centred = rows - mean(rows, (2, 3), keepdim=True)
    variance = mean(centred * centred, (2, 3), keepdim=True)
    return reshape(centred / sqrt(variance + plain(eps)), np.shape(x))


def _affine(x, weight, bias):
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def fan_in_scale(x: V, fan_in: int, bias: V | ArrayLike | None = None) -> V:
    """Compute x / sqrt(fan_in) + bias: the scale of a sum of `fan_in` signs, without statistics.

    A sum of K independent signs has variance K, so that the quotient has variance 1 (Jacot et al.
    2018, section 3). Both operations round to the dtype of x, in this order.

    Parameters
    ----------
    x : (N, C) or (N, C, H, W)
    fan_in : int
        K, the number of terms of each sum.
    bias : (C,), optional

    Returns
    -------
    array or Tensor of the shape of x
    """
    shape = np.shape(x)
    if len(shape) < 2:
        raise ValueError(f"fan_in_scale: x must have the shape (N, C, ...), got {shape}")
    if bias is not None and np.shape(bias) != shape[1:2]:
        raise ValueError(
            f"fan_in_scale: bias has shape {np.shape(bias)}, x has {shape[1]} channels "
            f"(shape {shape})"
        )
    if not isinstance(fan_in, int | np.integer) or fan_in < 1:
        raise ValueError(f"fan_in_scale: fan_in must be an int >= 1, got {fan_in!r}")
    scaled = x / math.sqrt(fan_in)
    return scaled if bias is None else scaled + per_channel(bias, x)


def normalize(input: V, p: float = 2.0, dim: int | Sequence[int] = 1, eps: float = 1e-12) -> V:
    """Compute input / max(||input||_p, eps), with the p-norm along `dim`.

    Parameters
    ----------
    input : (...)
    p : float
        Above 0; infinity for the largest magnitude.
    dim : int or tuple of int
    eps : float

    Returns
    -------
    (...)
    """
    if not p > 0:
        raise ValueError(f"normalize: p must be positive, got {p!r}")
    if p == 2:  # clamped before the square root, whose derivative at 0 is infinite
        norm = sqrt(clamp(sum(input * input, dim, keepdim=True), min=max(eps * eps, 1e-38)))
    elif p in (1, math.inf):
        norm = (sum if p == 1 else amax)(abs(input), dim, keepdim=True)
    else:
        norm = clamp(sum(abs(input) ** p, dim, keepdim=True), min=max(eps**p, 1e-38)) ** (1.0 / p)
    return input / clamp(norm, min=eps)
