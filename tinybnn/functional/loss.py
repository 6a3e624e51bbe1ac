"""Losses."""

from __future__ import annotations

import numpy as np

from tinybnn.autograd import Function, as_array, clamp, log, mean, reshape, sum
from tinybnn.functional.activation import log_softmax, relu, sigmoid, softmax
from tinybnn.kernels import dispatch


class BinaryCrossEntropy(Function):
    """-(target log x + (1 - target) log(1 - x)), each logarithm at least -100."""

    def forward(self, x, target):
        with np.errstate(divide="ignore"):
            log_p, log_q = np.maximum(np.log(x), -100), np.maximum(np.log1p(-x), -100)
        return -(target * log_p + (1 - target) * log_q)

    def backward(self, grad, output, x, target):
        grad_target = None
        if self.needs[1]:
            least = float(np.finfo(np.float32).tiny)
            grad_target = grad * (log(clamp(1.0 - x, min=least)) - log(clamp(x, min=least)))
        return grad * (x - target) / clamp(x * (1.0 - x), min=1e-12), grad_target


class BinaryCrossEntropyWithLogits(Function):
    """Binary cross entropy of sigmoid(x): log(1 + exp(-|x|)) + |x| |target - (1 if x >= 0 else 0)|.

    Nothing cancels in this form: the loss of a sure and right answer is small, not 0.
    """

    def forward(self, x, target):
        wrong = np.where(x >= 0, 1 - target, target)
        distance = np.where(wrong == 0, 0, np.abs(x))  # inf * 0 would be NaN
        return np.logaddexp(0, -np.abs(x)) + distance * wrong

    def backward(self, grad, output, x, target):
        return grad * (sigmoid(x) - target), -grad * x if self.needs[1] else None


class CrossEntropy(Function):
    """-sum over classes of q log softmax(x), q = (1 - smoothing) at the label, + smoothing / C.

    The gradient of a sample's loss is softmax(x) - q.
    """

    def forward(self, x, labels, smoothing, reduction):
        self.labels, self.smoothing = labels, smoothing
        self.share = 1.0 / len(x) if reduction == "mean" else 1.0
        self.slopes = None
        if (computed := dispatch.cross_entropy(x, labels, smoothing)) is not None:
            losses, self.slopes = computed
        else:
            log_p = log_softmax(x, 1)
            losses = -log_p[np.arange(len(x)), labels]
            if smoothing:
                losses = losses * (1.0 - smoothing) - mean(log_p, 1) * smoothing
        return losses if reduction == "none" else losses.sum() * self.share

    def backward(self, grad, output, x):
        slopes = self.slopes
        if slopes is None or not isinstance(x, np.ndarray):
            p = softmax(x, 1)
            slopes = p - self.target(as_array(p))
        return slopes * (reshape(grad, (-1, 1)) * self.share)

    def target(self, p):
        """The distribution q, in shape and dtype of p."""
        q = np.full_like(p, self.smoothing / p.shape[1])
        q[np.arange(len(p)), self.labels] += 1.0 - self.smoothing
        return q


def _check_reduction(name, reduction):
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{name}: reduction must be 'mean', 'sum' or 'none', got {reduction!r}")


def _reduce(name, values, reduction):
    _check_reduction(name, reduction)
    return {"mean": mean, "sum": sum, "none": lambda values: values}[reduction](values)


def _class_labels(name, x, target):
    """Check logits (N, classes) and integer labels (N,); give the labels as an array."""
    target = np.asarray(as_array(target))
    shape = np.shape(x)
    if len(shape) != 2 or target.shape != shape[:1] or target.dtype.kind not in "iu":
        raise ValueError(
            f"{name}: expects logits (N, classes) and labels (N,) of integers (int8 to int64, "
            f"uint8 to uint64), got shapes {shape} and {target.shape} of {target.dtype}; "
            "convert floats by .astype(np.int64)"
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
    is_soft = np.ndim(target) == 2
    if not is_soft:
        target = _class_labels("cross_entropy", input, target)
    elif np.shape(target) != np.shape(input):
        raise ValueError(
            f"cross_entropy: soft targets have the shape {np.shape(target)}, the input "
            f"{np.shape(input)}; labels are (N,), of a column write target[:, 0]"
        )
    if not is_soft:
        _check_reduction("cross_entropy", reduction)
        if reduction == "mean" and not len(target):
            raise ValueError("cross_entropy: the mean of no samples does not exist")
        return CrossEntropy.apply(
            input, labels=target.astype(np.int64, copy=False), smoothing=float(label_smoothing),
            reduction=reduction,
        )  # fmt: skip
    log_p = log_softmax(input, 1)
    losses = -sum(log_p * target, 1)
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
    losses = BinaryCrossEntropy.apply(input, target)
    return _reduce("binary_cross_entropy", losses, reduction)


def binary_cross_entropy_with_logits(input, target, reduction="mean"):
    """Binary cross entropy of sigmoid(input).

    Parameters
    ----------
    input : (...)
        Logits.
    target : (...) in [0, 1]
    reduction : 'mean', 'sum' or 'none'
    """
    _check_same_shape("binary_cross_entropy_with_logits", input, target)
    losses = BinaryCrossEntropyWithLogits.apply(input, target)
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
