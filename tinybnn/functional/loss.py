"""Losses.

With reduction 'none' a loss returns one value for each sample (or element), with 'sum' and 'mean' a
scalar of shape ().
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tinybnn.autograd import Function, abs, as_array, clamp, exp, log, mean, reshape, sum, where
from tinybnn.functional.activation import log_softmax, relu, sigmoid, softmax, softplus
from tinybnn.kernels import dispatch

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from tinybnn.typing import Array, TensorLike, V


class BinaryCrossEntropy(Function):
    """-(target log x + (1 - target) log(1 - x)), each logarithm at least -100."""

    def forward(self, x: Array, target: Array) -> Array:
        with np.errstate(divide="ignore"):
            log_p, log_q = np.maximum(np.log(x), -100), np.maximum(np.log1p(-x), -100)
        return -(target * log_p + (1 - target) * log_q)

    def backward(self, grad: V, output: V, x: V, target: V) -> tuple[V | None, ...]:
        grad_target = None
        if self.needs[1]:
            least = float(np.finfo(np.float32).tiny)
            grad_target = grad * (log(clamp(1.0 - x, min=least)) - log(clamp(x, min=least)))
        return grad * (x - target) / clamp(x * (1.0 - x), min=1e-12), grad_target


class BinaryCrossEntropyWithLogits(Function):
    """Binary cross entropy of sigmoid(x): log(1 + exp(-|x|)) + |x| |target - (1 if x >= 0 else 0)|.

    This form avoids cancellation: the loss of a confident correct prediction is small, not 0.
    """

    def forward(self, x: Array, target: Array) -> Array:
        wrong = np.where(x >= 0, 1 - target, target)
        distance = np.where(wrong == 0, 0, np.abs(x))  # inf * 0 would be NaN
        return np.logaddexp(0, -np.abs(x)) + distance * wrong

    def backward(self, grad: V, output: V, x: V, target: V) -> tuple[V | None, ...]:
        return grad * (sigmoid(x) - target), -grad * x if self.needs[1] else None


class CrossEntropy(Function):
    """-Σ_c q_c log softmax(x)_c with q = (1 - smoothing) one_hot(label) + smoothing / C.

    x (N, C), labels (N,). The gradient of a sample's loss is softmax(x) - q.
    """

    labels: Array  # (N,)
    smoothing: float
    share: float
    slopes: Array | None  # (N, C)

    def forward(self, x: Array, labels: Array, smoothing: float, reduction: str) -> Array:
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

    def backward(self, grad: V, output: V, x: V) -> V:
        slopes = self.slopes
        if slopes is None or not isinstance(x, np.ndarray):
            p = softmax(x, 1)
            slopes = p - self.target(as_array(p))
        return slopes * (reshape(grad, (-1, 1)) * self.share)

    def target(self, p: Array) -> Array:
        """The distribution q (N, C), in the dtype of p (N, C)."""
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
    """Check logits (N, classes) and integer labels (N,), and return the labels as an array.

    None if labels lie outside of the classes and some of them are `ignore_index`.
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
    input: V,
    target: V | ArrayLike,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    weight: V | ArrayLike | None = None,
    ignore_index: int = -100,
) -> V:
    """Compute -Σ_c target_c log softmax(input)_c for each sample.

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
        Factor of each class. The mean over labels is then a weighted mean.
    ignore_index : int
        Samples with this label have loss 0 and do not count in the mean.

    Returns
    -------
    scalar, or (N,) with reduction 'none'
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
            raise ValueError("cross_entropy: the mean of no samples is undefined")
        return CrossEntropy.apply(
            input, labels=labels.astype(np.int64, copy=False), smoothing=float(label_smoothing),
            reduction=reduction,
        )  # fmt: skip
    if np.shape(target) != np.shape(input):
        raise ValueError(
            f"cross_entropy: soft targets have the shape {np.shape(target)}, the input "
            f"{np.shape(input)}; labels must be (N,): write target[:, 0] for a column"
        )
    log_p = _times_weight("cross_entropy", log_softmax(input, 1), weight)
    losses = -sum(log_p * target, 1)
    if label_smoothing:
        losses = losses * (1.0 - label_smoothing) - mean(log_p, 1) * label_smoothing
    return _reduce("cross_entropy", losses, reduction)


def nll_loss(
    input: V,
    target: V | ArrayLike,
    weight: V | ArrayLike | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> V:
    """Compute the negative log likelihood -input[n, target[n]] of log probabilities.

    ``nll_loss(log_softmax(x), target)`` equals ``cross_entropy(x, target)``.

    Parameters
    ----------
    input : (N, classes)
        Log probabilities.
    target : (N,) integers
    weight, ignore_index, reduction
        As in `cross_entropy`.

    Returns
    -------
    scalar, or (N,) with reduction 'none'
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
        raise ValueError(f"{name}: the mean of no samples is undefined, or all weights are 0")
    return sum(losses) * (1.0 / total)


def _times_weight(name, log_p, weight):
    """Multiply log probabilities (N, classes) by a weight for each class (classes,)."""
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


def mse_loss(input: V, target: V | ArrayLike, reduction: str = "mean") -> V:
    """Compute (input - target)².

    Parameters
    ----------
    input, target : (...), of equal shape
    reduction : 'mean', 'sum' or 'none'

    Returns
    -------
    scalar, or (...) with reduction 'none'
    """
    _check_same_shape("mse_loss", input, target)
    difference = input - target
    return _reduce("mse_loss", difference * difference, reduction)


def l1_loss(input: V, target: V | ArrayLike, reduction: str = "mean") -> V:
    """Compute |input - target|.

    Parameters
    ----------
    input, target : (...), of equal shape
    reduction : 'mean', 'sum' or 'none'

    Returns
    -------
    scalar, or (...) with reduction 'none'
    """
    _check_same_shape("l1_loss", input, target)
    return _reduce("l1_loss", abs(input - target), reduction)


def smooth_l1_loss(
    input: V, target: V | ArrayLike, reduction: str = "mean", beta: float = 1.0
) -> V:
    """Compute d² / (2 beta) where |d| < beta, else |d| - beta / 2, with d = input - target.

    Girshick 2015, section 2.3.

    Parameters
    ----------
    input, target : (...), of equal shape
    reduction : 'mean', 'sum' or 'none'
    beta : float
        0 is the L1 loss.

    Returns
    -------
    scalar, or (...) with reduction 'none'
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


def kl_div(input: V, target: V | ArrayLike, reduction: str = "mean", log_target: bool = False) -> V:
    """Compute the terms target (log target - input) of the divergence KL(target || exp(input)).

    Kullback and Leibler 1951. 'mean' averages over all elements, as in PyTorch; 'batchmean' is the
    divergence, averaged over the N samples.

    Parameters
    ----------
    input : (N, ...)
        Log probabilities.
    target : (N, ...)
        Probabilities, or log probabilities if `log_target`.
    reduction : 'mean', 'batchmean', 'sum' or 'none'

    Returns
    -------
    scalar, or (N, ...) with reduction 'none'
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


def binary_cross_entropy(
    input: V, target: V | ArrayLike, reduction: str = "mean", *, weight: V | ArrayLike | None = None
) -> V:
    """Compute -(target log input + (1 - target) log(1 - input)), for probabilities.

    Logarithms are limited to -100, so that the loss stays finite. From logits,
    `binary_cross_entropy_with_logits` is more accurate.

    Parameters
    ----------
    input : (...) in [0, 1]
    target : (...) in [0, 1]
    reduction : 'mean', 'sum' or 'none'
    weight : array, optional
        Factor of each loss; broadcasts to (...).

    Returns
    -------
    scalar, or (...) with reduction 'none'
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
    input: V,
    target: V | ArrayLike,
    reduction: str = "mean",
    *,
    weight: V | ArrayLike | None = None,
    pos_weight: V | ArrayLike | None = None,
) -> V:
    """Compute the binary cross entropy of p = sigmoid(input), in a form that is stable.

    -(target log p + (1 - target) log(1 - p)) = log(1 + exp(-input)) + (1 - target) input.

    Parameters
    ----------
    input : (...)
        Logits.
    target : (...) in [0, 1]
    reduction : 'mean', 'sum' or 'none'
    weight : array, optional
        Factor of each loss; broadcasts to (...).
    pos_weight : array, optional
        Factor of the term target log p, for each class; broadcasts to (...).

    Returns
    -------
    scalar, or (...) with reduction 'none'
    """
    _check_same_shape("binary_cross_entropy_with_logits", input, target)
    if pos_weight is None:
        losses = BinaryCrossEntropyWithLogits.apply(input, target)
    else:
        both = 1.0 + (pos_weight - 1.0) * target
        losses = (1.0 - target) * input + both * softplus(-input)
    losses = losses if weight is None else losses * weight
    return _reduce("binary_cross_entropy_with_logits", losses, reduction)


def squared_hinge(input: V, target: V | ArrayLike, reduction: str = "mean") -> V:
    """Compute max(0, 1 - y input)², where y is +1 at the label's class and -1 at the others.

    The loss of BinaryNet (Courbariaux et al. 2016). 'mean' averages over classes and samples.

    Parameters
    ----------
    input : (N, classes)
    target : (N,) integers
    reduction : 'mean', 'sum' or 'none'

    Returns
    -------
    scalar, or (N, classes) with reduction 'none'
    """
    target = _class_labels("squared_hinge", input, target)
    signs = np.full(np.shape(input), -1.0, as_array(input).dtype)
    signs[np.arange(len(target)), target] = 1.0
    margin = relu(1.0 - input * signs)
    return _reduce("squared_hinge", margin * margin, reduction)


def one_hot(target: TensorLike, num_classes: int = -1) -> NDArray[np.int64]:
    """Encode labels as rows of 0 with a 1 at the label.

    Parameters
    ----------
    target : (...) integers >= 0
    num_classes : int
        Default (-1): the largest label plus 1.

    Returns
    -------
    (..., num_classes) int64 array
        Tensors hold floats only; convert by ``.astype(np.float32)`` for soft targets.
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
