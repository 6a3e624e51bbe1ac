"""Losses."""

from __future__ import annotations

import numpy as np

from tinybnn.functional.activation import log_softmax, relu, softplus
from tinybnn.tensor import as_array, clamp, log, mean, sum


def _reduce(name, values, reduction):
    if reduction == "mean":
        return mean(values)
    if reduction == "sum":
        return sum(values)
    if reduction == "none":
        return values
    raise ValueError(f"{name}: reduction must be 'mean', 'sum' or 'none', got {reduction!r}")


def _class_labels(name, x, target):
    """Check logits (N, classes) and integer labels (N,); give the labels as an array."""
    target = np.asarray(as_array(target))
    shape = np.shape(x)
    if len(shape) != 2 or target.shape != shape[:1] or target.dtype.kind not in "iu":
        raise ValueError(
            f"{name}: expects logits (N, classes) and integer labels (N,), got shapes {shape} and "
            f"{target.shape} of {target.dtype}"
        )
    if target.size and (target.min() < 0 or target.max() >= shape[1]):
        raise ValueError(
            f"{name}: labels must lie in 0..{shape[1] - 1}, got {target.min()}..{target.max()}"
        )
    return target


def cross_entropy(input, target, reduction="mean", label_smoothing=0.0):
    """-sum over classes of target * log softmax(input).

    Parameters
    ----------
    input : (N, classes)
        Logits.
    target : (N,) integers, or (N, classes) floats
        Labels, or a distribution over the classes for each sample (soft targets).
    reduction : 'mean', 'sum' or 'none'
    label_smoothing : float
        Share of the target that is spread evenly over all classes (Szegedy et al. 2016,
        section 7).
    """
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"cross_entropy: label_smoothing must be in [0, 1], got {label_smoothing}")
    log_p = log_softmax(input, 1)
    if np.ndim(target) == 2:
        if np.shape(target) != np.shape(input):
            raise ValueError(
                f"cross_entropy: soft targets have the shape {np.shape(target)}, "
                f"the input {np.shape(input)}"
            )
        losses = -sum(log_p * target, 1)
    else:
        target = _class_labels("cross_entropy", input, target)
        losses = -log_p[np.arange(len(target)), target]
    if label_smoothing:
        losses = losses * (1.0 - label_smoothing) - mean(log_p, 1) * label_smoothing
    return _reduce("cross_entropy", losses, reduction)


def _check_same_shape(name, input, target):
    if np.shape(input) != np.shape(target):
        raise ValueError(
            f"{name}: input has the shape {np.shape(input)}, target {np.shape(target)}"
        )


def mse_loss(input, target, reduction="mean"):
    """(input - target)².

    Parameters
    ----------
    input, target : arrays of equal shape
    reduction : 'mean', 'sum' or 'none'
    """
    _check_same_shape("mse_loss", input, target)
    difference = input - target
    return _reduce("mse_loss", difference * difference, reduction)


def binary_cross_entropy(input, target, reduction="mean"):
    """-(target log input + (1 - target) log(1 - input)), for probabilities.

    Logarithms are limited to -100, so that the loss stays finite. From logits,
    `binary_cross_entropy_with_logits` is more accurate.

    Parameters
    ----------
    input : (...) in [0, 1]
    target : (...) in [0, 1]
    reduction : 'mean', 'sum' or 'none'
    """
    _check_same_shape("binary_cross_entropy", input, target)
    values = as_array(input)
    if values.size and not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(
            f"binary_cross_entropy: input must lie in [0, 1], got {values.min()} to {values.max()}"
        )
    least = float(np.exp(-100.0))
    log_p = log(clamp(input, min=least))
    log_q = log(clamp(1.0 - input, min=least))
    losses = -(log_p * target + log_q * (1.0 - target))
    return _reduce("binary_cross_entropy", losses, reduction)


def binary_cross_entropy_with_logits(input, target, reduction="mean"):
    """Binary cross entropy of sigmoid(input): softplus(input) - input * target.

    Parameters
    ----------
    input : (...)
        Logits.
    target : (...) in [0, 1]
    reduction : 'mean', 'sum' or 'none'
    """
    _check_same_shape("binary_cross_entropy_with_logits", input, target)
    losses = softplus(input) - input * target
    return _reduce("binary_cross_entropy_with_logits", losses, reduction)


def squared_hinge(input, target, reduction="mean"):
    """max(0, 1 - y * input)², where y is +1 at the label's class and -1 at the others.

    The loss of BinaryNet (Courbariaux et al. 2016). Means are over classes and samples.

    Parameters
    ----------
    input : (N, classes)
    target : (N,) integers
    reduction : 'mean', 'sum' or 'none'
    """
    target = _class_labels("squared_hinge", input, target)
    signs = np.full(np.shape(input), -1.0, as_array(input).dtype)
    signs[np.arange(len(target)), target] = 1.0
    margin = relu(1.0 - input * signs)
    return _reduce("squared_hinge", margin * margin, reduction)
