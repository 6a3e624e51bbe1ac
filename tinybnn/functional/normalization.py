"""Batch normalisation."""

from __future__ import annotations

import functools
import math

import numpy as np

from tinybnn.autograd import Function, as_array, mean, plain, reshape, sqrt, sum, var
from tinybnn.kernels.machine import layout


class BatchNorm(Function):
    """(x - mean) / sqrt(var + eps) * weight + bias for each channel (axis 1).

    With statistics of the batch (`mean` is None) they depend on x, and the gradient loses the
    part that a shift or a change of scale of the batch would have: Ioffe and Szegedy 2015,
    section 3. The running statistics then take a share of them.

    float32 arrays that are channels-last in memory go through `kernels.training.normalization`.
    """

    fresh = True

    def forward(self, x, weight, bias, mean, var, eps, running=None):
        self.eps = eps
        self.from_batch = mean is None
        rows, result = _kernel_rows(x, weight, bias), None
        if self.from_batch and rows is not None:
            result, self.mean, var, self.scale = _kernels().forward(rows, weight, bias, eps)
        elif self.from_batch:
            self.mean, var, self.scale = (v.ravel() for v in self.statistics(x))
        else:
            scale = 1.0 / np.sqrt(var + eps)
            self.mean, self.scale = mean.astype(x.dtype), scale.astype(x.dtype)
            if rows is not None and _kernels().fits(rows):
                result = _kernels().normalise(rows, self.mean, self.scale, weight, bias)
        if self.from_batch and running is not None:
            _move(*running, self.mean, var, x.size // x.shape[1])
        if result is not None:
            return layout.image(result, x.shape)
        result = x - _per_channel(self.mean, x)
        result *= _per_channel(self.scale, x)
        result *= _per_channel(weight, x)
        result += _per_channel(bias, x)
        return result

    def statistics(self, x):
        """Mean, biased variance and 1 / sqrt(variance + eps) of each channel, (1, C, 1, ...)."""
        mean_ = mean(x, _all_but_channel(x), keepdim=True)
        var_ = var(x, _all_but_channel(x), correction=0, keepdim=True)
        return mean_, var_, 1.0 / sqrt(var_ + self.eps)

    def backward(self, grad, output, x, weight, bias):
        if self.from_batch and isinstance(grad, np.ndarray):
            rows = _kernel_rows(x, weight, grad)
            if rows is not None:  # the rule below on arrays
                grad_rows = layout.channel_rows(layout.channels_last(grad))
                of_x, *sums = _kernels().backward(grad_rows, rows, self.mean, self.scale, weight)
                return layout.image(of_x, x.shape), *sums
        dims = _all_but_channel(x)
        is_recorded = not isinstance(x, np.ndarray)
        if self.from_batch and is_recorded:  # the statistics as functions of x
            mean_, _, scale = self.statistics(x)
        else:
            mean_, scale = _per_channel(self.mean, x), _per_channel(self.scale, x)
        normalised = (x - mean_) * scale
        grad_weight = sum(grad * normalised, dims)
        grad_bias = sum(grad, dims)
        grad_x = None
        if self.needs[0]:
            grad_x = grad
            if self.from_batch:
                count = np.size(as_array(x)) // np.shape(x)[1]
                grad_x = grad_x - _per_channel(grad_bias * (1.0 / count), x)
                grad_x = grad_x - normalised * _per_channel(grad_weight * (1.0 / count), x)
            grad_x = grad_x * (_per_channel(weight, x) * scale)
        return grad_x, grad_weight, grad_bias


@functools.cache
def _kernels():
    from tinybnn.kernels.training import normalization

    return normalization


def _kernel_rows(x, *others):
    """x as rows of channels if kernels take it together with these; else None."""
    if any([other.dtype != np.float32 for other in others]):
        return None
    return layout.channel_rows(x)


def _move(running_mean, running_var, momentum, mean, var, count):
    """Let the running statistics take a share of the batch's, with the unbiased variance."""
    running_mean += momentum * (mean - running_mean)
    running_var += momentum * (var * (count / (count - 1)) - running_var)


def _all_but_channel(x):
    return (0, *range(2, np.ndim(x)))


def _per_channel(v, x):
    """(C,) -> (1, C, 1, ...), to meet x of shape (N, C, ...)."""
    return reshape(v, (1, -1) + (1,) * (np.ndim(x) - 2))


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
