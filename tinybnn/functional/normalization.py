"""Batch normalisation."""

from __future__ import annotations

import math

import numpy as np

from tinybnn.autograd import Function, as_array, mean, plain, reshape, sqrt, sum, var
from tinybnn.kernels import dispatch


class BatchNorm(Function):
    """(x - mean) / sqrt(var + eps) * weight + bias for each channel (axis 1).

    With statistics of the batch (`mean` is None) they depend on x, and the gradient loses the
    part that a shift or a change of scale of the batch would have: Ioffe and Szegedy 2015,
    section 3. The running statistics then take a share of them.
    """

    fresh = True

    def forward(self, x, weight, bias, mean, var, eps, running=None):
        self.eps, self.from_batch = eps, mean is None
        if not self.from_batch:
            self.mean = mean.astype(x.dtype)
            self.scale = (1.0 / np.sqrt(var + eps)).astype(x.dtype)
            return _normalised(x, self.mean, self.scale, weight, bias)
        result, self.mean, var, self.scale = _normalised_batch(x, weight, bias, eps)
        if running is not None:
            _move(*running, self.mean, var, x.size // x.shape[1])
        return result

    def backward(self, grad, output, x, weight, bias):
        if self.from_batch:
            gradients = dispatch.batch_norm_gradients(grad, x, self.mean, self.scale, weight)
            if gradients is not None:
                return gradients
        dims = _all_but_channel(x)
        is_recorded = not isinstance(x, np.ndarray)
        if self.from_batch and is_recorded:  # the statistics as functions of x
            mean_, _, scale = _statistics(x, self.eps)
        else:
            mean_, scale = per_channel(self.mean, x), per_channel(self.scale, x)
        normalised = (x - mean_) * scale
        grad_weight = sum(grad * normalised, dims)
        grad_bias = sum(grad, dims)
        grad_x = None
        if self.needs[0]:
            grad_x = grad
            if self.from_batch:
                count = np.size(as_array(x)) // np.shape(x)[1]
                grad_x = grad_x - per_channel(grad_bias * (1.0 / count), x)
                grad_x = grad_x - normalised * per_channel(grad_weight * (1.0 / count), x)
            grad_x = grad_x * (per_channel(weight, x) * scale)
        return grad_x, grad_weight, grad_bias


def _normalised(x, mean, scale, weight, bias):
    """x (N, C, ...) with one of each of the others, (C,), for each channel."""
    if (result := dispatch.normalise(x, mean, scale, weight, bias)) is not None:
        return result
    result = x - per_channel(mean, x)
    result *= per_channel(scale, x)
    result *= per_channel(weight, x)
    result += per_channel(bias, x)
    return result


def _normalised_batch(x, weight, bias, eps):
    """x normalised by its own statistics; and these, (C,) each."""
    if (result := dispatch.normalise_batch(x, weight, bias, eps)) is not None:
        return result
    mean_, var_, scale = (v.ravel() for v in _statistics(x, eps))
    return _normalised(x, mean_, scale, weight, bias), mean_, var_, scale


def _statistics(x, eps):
    """Mean, biased variance and 1 / sqrt(variance + eps) of each channel, (1, C, 1, ...)."""
    mean_ = mean(x, _all_but_channel(x), keepdim=True)
    var_ = var(x, _all_but_channel(x), correction=0, keepdim=True)
    return mean_, var_, 1.0 / sqrt(var_ + eps)


def _move(running_mean, running_var, momentum, mean, var, count):
    """Let the running statistics take a share of the batch's, with the unbiased variance."""
    running_mean += momentum * (mean - running_mean)
    running_var += momentum * (var * (count / (count - 1)) - running_var)


def _all_but_channel(x):
    return (0, *range(2, np.ndim(x)))


def per_channel(v, x):
    """(C,) -> (1, C, 1, ...), to meet x of shape (N, C, ...)."""
    return reshape(v, (1, -1, *(1,) * (np.ndim(x) - 2)))


def batch_norm(
    x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
):
    """Batch normalisation of each channel.

    Parameters
    ----------
    x : (N, C) or (N, C, H, W)
    running_mean, running_var : (C,) arrays or None
        In training they are updated in place (unbiased variance, as in PyTorch); in evaluation
        they are the statistics. Without them the batch's statistics serve in both modes.
    weight, bias : (C,), optional
        Scale γ and shift β; 1 and 0 by default.
    training : bool
        Normalise by the statistics of the batch.
    momentum : float
        Share of the new statistics in the running ones.
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
            f"{shape}; where the last batch of an epoch is a single sample, choose drop_last=True "
            "or another batch_size in the DataLoader; to predict, call model.eval() first"
        )
    running = None if running_mean is None else (running_mean, running_var, momentum)
    return BatchNorm.apply(x, weight, bias, mean=None, var=None, eps=eps, running=running)
