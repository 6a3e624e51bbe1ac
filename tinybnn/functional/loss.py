"""Losses."""

from __future__ import annotations

import numpy as np

from tinybnn.autograd import Function, abs, as_array, clamp, exp, log, mean, reshape, sum, where
from tinybnn.functional.activation import log_softmax, relu, sigmoid, softmax, softplus
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


def _class_labels(name, x, target, ignore_index=None):
    """Check logits (N, classes) and integer labels (N,); give the labels as an array.

    None if there are labels outside of the classes, and some of them are `ignore_index`.
    """
    target = np.asarray(as_array(target))
    shape = np.shape(x)
    if len(shape) != 2 or target.shape != shape[:1] or target.dtype.kind not in "iu":
        raise ValueError(
            f"{name}: expects logits (N, classes) and labels (N,) of integers (int8 to int64, "
            f"uint8 to uint64), got shapes {shape} and {target.shape} of {target.dtype}; "
            "convert floats by .astype(np.int64)"
        )
    if target.size and (target.min() < 0 or target.max() >= shape[1]):
        if ignore_index is not None and np.any(target == ignore_index):
            return None
        raise ValueError(
            f"{name}: labels must lie in 0..{shape[1] - 1}, got {target.min()}..{target.max()}"
        )
    return target


def cross_entropy(
    input, target, reduction="mean", label_smoothing=0.0, *, weight=None, ignore_index=-100
):
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
    weight : (classes,), optional
        Factor of each class. The mean over labels is then the weighted one.
    ignore_index : int
        Samples with this label have the loss 0 and do not count in the mean.
    """
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"cross_entropy: label_smoothing must be in [0, 1], got {label_smoothing}")
    if np.ndim(target) != 2:
        labels = None
        if weight is None and ignore_index < 0:
            labels = _class_labels("cross_entropy", input, target, ignore_index)
        if labels is None:
            return _weighted_nll(
                "cross_entropy", log_softmax(input, 1), np.asarray(as_array(target)), weight,
                ignore_index, reduction, label_smoothing,
            )  # fmt: skip
        _check_reduction("cross_entropy", reduction)
        if reduction == "mean" and not len(labels):
            raise ValueError("cross_entropy: the mean of no samples does not exist")
        return CrossEntropy.apply(
            input, labels=labels.astype(np.int64, copy=False), smoothing=float(label_smoothing),
            reduction=reduction,
        )  # fmt: skip
    if np.shape(target) != np.shape(input):
        raise ValueError(
            f"cross_entropy: soft targets have the shape {np.shape(target)}, the input "
            f"{np.shape(input)}; labels are (N,), of a column write target[:, 0]"
        )
    log_p = _times_weight("cross_entropy", log_softmax(input, 1), weight)
    losses = -sum(log_p * target, 1)
    if label_smoothing:
        losses = losses * (1.0 - label_smoothing) - mean(log_p, 1) * label_smoothing
    return _reduce("cross_entropy", losses, reduction)


def nll_loss(input, target, weight=None, *, ignore_index=-100, reduction="mean"):
    """-input at the label: the negative log likelihood, for log probabilities.

    ``nll_loss(log_softmax(x), target)`` is ``cross_entropy(x, target)``.

    Parameters
    ----------
    input : (N, classes)
        Log probabilities.
    target : (N,) integers
    weight, ignore_index, reduction
        As in `cross_entropy`.
    """
    target = np.asarray(as_array(target))
    return _weighted_nll("nll_loss", input, target, weight, ignore_index, reduction)


def _weighted_nll(name, log_p, target, weight, ignore_index, reduction, smoothing=0.0):
    kept = target != ignore_index
    labels = _class_labels(name, log_p, np.where(kept, target, 0).astype(target.dtype))
    rows, weighted = np.arange(len(labels)), _times_weight(name, log_p, weight)
    losses = -weighted[rows, labels]
    if smoothing:
        losses = losses * (1.0 - smoothing) - mean(weighted, 1) * smoothing
    losses = losses * kept
    if reduction != "mean":
        return _reduce(name, losses, reduction)
    counts = kept if weight is None else kept * as_array(weight)[labels]
    if not (total := float(np.sum(counts))):
        raise ValueError(f"{name}: the mean of no samples does not exist, or all weights are 0")
    return sum(losses) * (1.0 / total)


def _times_weight(name, log_p, weight):
    """Log probabilities (N, classes) times a weight for each class."""
    if weight is None:
        return log_p
    if np.shape(weight) != np.shape(log_p)[1:]:
        raise ValueError(
            f"{name}: weight must have the shape {np.shape(log_p)[1:]}, a factor for each class, "
            f"got {np.shape(weight)}"
        )
    return log_p * as_array(weight)


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


def l1_loss(input, target, reduction="mean"):
    """|input - target|.

    Parameters
    ----------
    input, target : arrays of equal shape
    reduction : 'mean', 'sum' or 'none'
    """
    _check_same_shape("l1_loss", input, target)
    return _reduce("l1_loss", abs(input - target), reduction)


def smooth_l1_loss(input, target, reduction="mean", beta=1.0):
    """|d| - beta / 2 for d = input - target; d² / (2 beta) where |d| < beta.

    Girshick 2015, section 2.3.

    Parameters
    ----------
    input, target : arrays of equal shape
    reduction : 'mean', 'sum' or 'none'
    beta : float
        0 is the L1 loss.
    """
    if not beta >= 0:
        raise ValueError(f"smooth_l1_loss: beta must be >= 0, got {beta!r}")
    if beta == 0:
        return l1_loss(input, target, reduction)
    _check_same_shape("smooth_l1_loss", input, target)
    difference = input - target
    size = abs(difference)
    near = as_array(size) < beta
    losses = where(near, difference * difference * (0.5 / beta), size - 0.5 * beta)
    return _reduce("smooth_l1_loss", losses, reduction)


def kl_div(input, target, reduction="mean", log_target=False):
    """target (log target - input): the divergence of exp(input) from target, summand by summand.

    The mean is over all elements, as in PyTorch; 'batchmean' is the divergence itself.

    Parameters
    ----------
    input : (N, ...)
        Log probabilities.
    target : (N, ...)
        Probabilities, or log probabilities if `log_target`.
    reduction : 'mean', 'batchmean', 'sum' or 'none'
    """
    _check_same_shape("kl_div", input, target)
    if log_target:
        losses = exp(target) * (target - input)
    else:  # 0 log 0 is 0
        positive = as_array(target) > 0
        losses = target * (log(where(positive, target, 1.0)) - input)
    if reduction == "batchmean":
        return sum(losses) * (1.0 / len(input))
    return _reduce("kl_div", losses, reduction)


def binary_cross_entropy(input, target, reduction="mean", *, weight=None):
    """-(target log input + (1 - target) log(1 - input)), for probabilities.

    Logarithms are limited to -100, so that the loss stays finite. From logits,
    `binary_cross_entropy_with_logits` is more accurate.

    Parameters
    ----------
    input : (...) in [0, 1]
    target : (...) in [0, 1]
    reduction : 'mean', 'sum' or 'none'
    weight : array, optional
        Factor of each loss; it broadcasts.
    """
    _check_same_shape("binary_cross_entropy", input, target)
    values = as_array(input)
    if values.size and not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(
            f"binary_cross_entropy: input must lie in [0, 1], got {values.min()} to {values.max()}"
        )
    losses = BinaryCrossEntropy.apply(input, target)
    losses = losses if weight is None else losses * weight
    return _reduce("binary_cross_entropy", losses, reduction)


def binary_cross_entropy_with_logits(
    input, target, reduction="mean", *, weight=None, pos_weight=None
):
    """Binary cross entropy of sigmoid(input).

    Parameters
    ----------
    input : (...)
        Logits.
    target : (...) in [0, 1]
    reduction : 'mean', 'sum' or 'none'
    weight : array, optional
        Factor of each loss; it broadcasts.
    pos_weight : array, optional
        Factor of the part with target 1, for each class; it broadcasts.
    """
    _check_same_shape("binary_cross_entropy_with_logits", input, target)
    if pos_weight is None:
        losses = BinaryCrossEntropyWithLogits.apply(input, target)
    else:
        both = 1.0 + (pos_weight - 1.0) * target
        losses = (1.0 - target) * input + both * softplus(-input)
    losses = losses if weight is None else losses * weight
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


def one_hot(target, num_classes=-1):
    """Rows of 0 with a 1 at the label.

    Parameters
    ----------
    target : (...) integers >= 0
    num_classes : int
        -1: the largest label and 1.

    Returns
    -------
    (..., num_classes) int64 array
        An array, as all integers are; ``.astype(np.float32)`` makes soft targets of it.
    """
    target = np.asarray(as_array(target))
    if target.dtype.kind not in "iu" or (target.size and target.min() < 0):
        raise ValueError(f"one_hot: target must hold integers >= 0, got {target.dtype} {target}")
    largest = int(target.max()) + 1 if target.size else 0
    if num_classes == -1 and not target.size:
        raise ValueError("one_hot: no labels; give num_classes")
    if num_classes != -1 and num_classes < max(largest, 1):
        raise ValueError(
            f"one_hot: num_classes must be -1 or above the largest label {largest - 1}, got "
            f"{num_classes}"
        )
    return (target[..., None] == np.arange(largest if num_classes == -1 else num_classes)).astype(
        np.int64
    )
