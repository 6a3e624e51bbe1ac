"""Signs in training: flips, starved latent weights, and gradients.

`FlipTracker` counts flips step by step; `latent_statistics` describes the current latent weights;
`batch_statistics` the variances and gradients of batches; `compare_estimators` compares the
gradients of estimators with the exact one of a small stochastic layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from tinybnn import functional as F
from tinybnn import nn, quantizers
from tinybnn.autograd import Tensor, as_array, grad, trace
from tinybnn.typing import Array, FloatArray

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from tinybnn.analysis.curvature import Batches, Loss

# ------------------------------------------------------------------------------------------- flips


class FlipTracker:
    """Counts flipped weights, step by step and layer by layer.

    A weight flips when the value that its layer computes with (`binary_weight`: a sign, or one of
    three levels) differs from that of the step before. A flip within `window` steps of the same
    weight's last flip is a return: the weight oscillates (Nagel et al. 2022, section 2.2). With
    three levels a return may lead to another level.

    Parameters
    ----------
    model : Module
    window : int
        Number of steps.

    Attributes
    ----------
    flips, returns : dict of str to list of int
        For each binary layer, by its path, the count of each step.

    Examples
    --------
    >>> model = nn.Sequential(nn.BinaryLinear(2, 1))
    >>> model[0].weight.data[...] = 0.5
    >>> tracker = FlipTracker(model)
    >>> for value in (-0.5, 0.5, 0.5):
    ...     model[0].weight.data[0, 0] = value  # a step of an optimizer
    ...     tracker.step()
    >>> tracker.flips, tracker.returns
    ({'0': [1, 1, 0]}, {'0': [0, 1, 0]})
    """

    model: nn.Module
    window: int
    steps: int
    flips: dict[str, list[int]]
    returns: dict[str, list[int]]

    def __init__(self, model: nn.Module, window: int = 10) -> None:
        if window < 1:
            raise ValueError(f"FlipTracker: window must be at least 1 step, got {window!r}")
        self.model, self.window, self.steps = model, window, 0
        layers = binary_layers(model)
        if not layers:
            raise ValueError("FlipTracker: the model has no layer with binary weights")
        self.flips, self.returns = {path: [] for path in layers}, {path: [] for path in layers}
        self._values = {path: layer.binary_weight() for path, layer in layers.items()}
        self._last = {path: np.full(v.shape, -1, np.int32) for path, v in self._values.items()}
        self._returned = {path: np.zeros(v.shape, bool) for path, v in self._values.items()}

    def step(self) -> None:
        """Count the changes since the last call or the start; call it after each step."""
        self.steps += 1
        for path, layer in binary_layers(self.model).items():
            now, last = layer.binary_weight(), self._last[path]
            flipped = now != self._values[path]
            returned = flipped & (last >= 0) & (self.steps - last <= self.window)
            last = np.where(flipped, self.steps, last).astype(np.int32)
            # New dicts and lists: a copy of the tracker keeps its own.
            self._values, self._last = self._values | {path: now}, self._last | {path: last}
            self._returned = self._returned | {path: self._returned[path] | returned}
            self.flips = self.flips | {path: [*self.flips[path], int(flipped.sum())]}
            self.returns = self.returns | {path: [*self.returns[path], int(returned.sum())]}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The counts so far.

        Returns
        -------
        list of dict
            For each layer: ``layer``, ``weights``, ``steps``; ``flip_rate``, flips per weight and
            step; ``flipped``, the share of weights that flipped at least once; ``oscillating``, the
            share of weights that returned at least once; ``return_share``, the share of returns
            among all flips.
        """
        return [
            {
                "layer": path,
                "weights": values.size,
                "steps": self.steps,
                "flip_rate": sum(self.flips[path]) / max(1, values.size * self.steps),
                "flipped": float((self._last[path] >= 0).mean()),
                "oscillating": float(self._returned[path].mean()),
                "return_share": sum(self.returns[path]) / max(1, sum(self.flips[path])),
            }
            for path, values in self._values.items()
        ]


def binary_layers(model: nn.Module) -> dict[str, nn.Module]:
    """List the layers whose weights are quantized, by path, in order.

    Parameters
    ----------
    model : Module

    Returns
    -------
    dict of str to Module
    """
    return {
        path: module
        for path, module in model.named_modules()
        if getattr(module, "weight_quantizer", None) is not None
        and hasattr(module, "binary_weight")
        and isinstance(getattr(module, "weight", None), nn.Parameter)
    }


# ------------------------------------------------------------------------------------------ latents


def latent_statistics(model: nn.Module, bins: int = 40) -> list[dict[str, Any]]:
    """Describe the distribution of the latent weights of each binary layer.

    Parameters
    ----------
    model : Module
    bins : int

    Returns
    -------
    list of dict
        For each layer, in order: ``layer``, ``weights``; ``counts`` (bins,) and ``edges``
        (bins + 1,) of a histogram of all weights, symmetric about 0; ``mean`` |w|; ``starved``, the
        share of weights whose pseudo-gradient is 0: beyond the clip of the estimator, where no
        gradient moves them, whatever the loss.
    """
    rows = []
    for path, layer in binary_layers(model).items():
        weight = layer.weight.data
        if not np.isfinite(weight).all():
            raise ValueError(f"latent_statistics: the weights of layer {path!r} are not finite")
        limit = max(float(np.abs(weight).max()), np.finfo(np.float32).tiny)
        counts, edges = np.histogram(weight, bins, (-limit, limit))
        slope = as_array(layer.weight_quantizer.pseudo_gradient(_quantized(layer)))
        rows.append(
            {
                "layer": path,
                "weights": weight.size,
                "counts": counts,
                "edges": edges,
                "mean": float(np.abs(weight).mean()),
                "starved": float(np.mean(np.broadcast_to(slope, weight.shape) == 0)),
            }
        )
    return rows


def _quantized(layer):
    """The input of a layer's weight quantizer; AdaBin normalises the weights first."""
    weight = layer.weight.data
    if isinstance(layer, nn.AdaBinConv2d):
        _, scale, offset = F.adapted_weight_parts(weight, layer.weight_quantizer)
        return (weight - offset) / scale
    return weight


# ------------------------------------------------------------------------------ batches, gradients


class BatchStatistics(NamedTuple):
    """The result of `batch_statistics`.

    Attributes
    ----------
    norms : dict of str to dict
        For each batch norm, by path: ``variance`` of its input and ``factor``
        |α| = |γ| / sqrt(variance + ε), (batches, channels) float64 each.
    gradients : dict of str to dict
        For each group of parameters: ``norm``, the mean length of its gradient; ``agreement``
        between batches, see `agreement`.
    """

    norms: Mapping[str, Mapping[str, FloatArray]]
    gradients: Mapping[str, Mapping[str, float]]


def batch_statistics(
    model: nn.Module,
    batches: Batches,
    loss: Loss = F.cross_entropy,
    groups: Mapping[str, Iterable[nn.Parameter]] | None = None,
) -> BatchStatistics:
    """Measure batch norm variances and factors, and gradients, of batches in training mode.

    BD-Net (Kim et al. 2025, Eq. 1) blames small variances of depth-wise sums: the batch norm's
    factor α = γ / sqrt(variance + ε) multiplies the gradient, which then fluctuates from batch to
    batch.

    Parameters
    ----------
    model : Module
        Unchanged afterwards, including running statistics; gradients are cleared.
    batches : sequence of (x, target)
        At least two.
    loss : callable
        ``loss(output, target)``.
    groups : dict of str to sequence of Parameters, optional
        Parameters whose gradients are joined. Default: each parameter by its path.

    Returns
    -------
    BatchStatistics
    """
    if groups is None:
        groups = {path: [p] for path, p in model.named_parameters() if p.requires_grad}
    norms = {
        id(m): path
        for path, m in model.named_modules()
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)
    }
    seen = {path: {"variance": [], "factor": []} for path in norms.values()}
    gradients = {name: [] for name in groups}
    state = {name: array.copy() for name, array in model.state_dict().items()}
    with model.in_mode(training=True):
        for x, target in batches:
            model.zero_grad()
            with trace() as tape:
                value = loss(model(Tensor(x)), target)
            for module, inputs, _ in tape.modules:
                if id(module) in norms:
                    axes = (0, *range(2, inputs[0].ndim))
                    variance = inputs[0].data.var(axes, dtype=np.float64)  # (C,)
                    statistics = seen[norms[id(module)]]
                    statistics["variance"].append(variance)
                    statistics["factor"].append(
                        np.abs(module.weight.data) / np.sqrt(variance + module.eps)
                    )
            del tape
            value.backward()
            for name, parameters in groups.items():
                gradients[name].append(_joined(parameters))
    model.zero_grad()
    model.load_state_dict(state)
    if any(len(vectors) < 2 for vectors in gradients.values()):
        raise ValueError("batch_statistics: batches must hold at least two, to compare gradients")
    return BatchStatistics(
        {path: {k: np.array(v) for k, v in rows.items()} for path, rows in seen.items()},
        {
            name: {
                "norm": float(np.sqrt((np.array(vectors) ** 2).sum(1)).mean()),
                "agreement": agreement(vectors),
            }
            for name, vectors in gradients.items()
        },
    )


def _joined(parameters):
    """Join the gradients of parameters to one float64 vector; zeros for missing ones."""
    return np.concatenate([
        (np.zeros(p.shape) if p.grad is None else p.grad.data).ravel().astype(np.float64)
        for p in parameters
    ])  # fmt: skip


def agreement(gradients: ArrayLike | Sequence[Array]) -> float:
    """Compute the mean product of two different gradients over their mean square.

    Parameters
    ----------
    gradients : (batches, n)
        At least two.

    Returns
    -------
    float
        1 for equal gradients, 0 for orthogonal ones or zeros.
    """
    gradients = np.asarray(gradients, np.float64)
    if gradients.ndim != 2 or len(gradients) < 2:
        raise ValueError(
            f"agreement: expects at least two gradients, (batches, n), got {gradients.shape}"
        )
    squares = (gradients**2).sum(1)
    pairs = len(squares) * (len(squares) - 1)
    products = float((gradients.sum(0) ** 2).sum() - squares.sum()) / pairs
    return products / float(squares.mean()) if squares.any() else 0.0


# ---------------------------------------------------------------------- exact expected gradients

MOST_UNITS = 16


class ExpectedLoss(NamedTuple):
    """An expectation over all patterns of signs; see `expected_loss`.

    Attributes
    ----------
    value : float
    gradient : (n,) float64
        Its exact derivative in the probabilities.
    losses, weights : (2^n,) float64
        The loss of each pattern and its probability.
    """

    value: float
    gradient: FloatArray
    losses: FloatArray
    weights: FloatArray


def sign_patterns(units: int) -> FloatArray:
    """List all patterns of ±1, (2^units, units) float64: bit i of the row index is unit i."""
    if not 1 <= units <= MOST_UNITS:
        raise ValueError(f"sign_patterns: units must be in 1..{MOST_UNITS}, got {units!r}")
    numbers = np.arange(1 << units)[:, None]
    return 2.0 * (numbers >> np.arange(units) & 1) - 1.0


def expected_loss(
    loss: Callable[[Tensor], Tensor | Array], probabilities: ArrayLike
) -> ExpectedLoss:
    """Compute the expected loss of independent random signs over all patterns, and its derivative.

    E = Σ_s ℓ(s) Π_i P(s_i), so ∂E/∂p_i = E[ℓ | s_i = 1] - E[ℓ | s_i = -1]: no sampling, no
    estimator.

    Parameters
    ----------
    loss : callable
        Maps patterns, a Tensor (P, n) of ±1 in float64, to losses (P,), a Tensor or an array.
    probabilities : (n,)
        Probability p_i of +1 for each unit, n at most 16.

    Returns
    -------
    ExpectedLoss
    """
    p = np.asarray(probabilities, np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(
            "expected_loss: probabilities must be numbers in [0, 1] of shape (n,), got "
            f"{np.shape(probabilities)}"
        )
    patterns = sign_patterns(len(p))
    losses = _losses("expected_loss", loss, Tensor(patterns)).data.astype(np.float64)
    factors = np.where(patterns > 0, p, 1.0 - p)  # (2^n, n)
    weights = factors.prod(1)
    gradient = np.empty(len(p))
    for i in range(len(p)):
        others = np.delete(factors, i, axis=1).prod(1)
        gradient[i] = (patterns[:, i] * others) @ losses
    return ExpectedLoss(float(weights @ losses), gradient, losses, weights)


def _losses(name, loss, patterns):
    """Compute one loss per pattern, as a Tensor."""
    losses = loss(patterns)
    if np.shape(losses) != patterns.shape[:1]:
        raise ValueError(
            f"{name}: loss must return one number for each of the {len(patterns)} patterns, got "
            f"the shape {np.shape(losses)}; pass reduction='none' to a loss function"
        )
    return losses if isinstance(losses, Tensor) else Tensor(losses)


class Noise(Protocol):
    """Noise before a sign, for `compare_estimators`."""

    def probability(self, a: ArrayLike) -> FloatArray:
        """Compute the probability of +1 for inputs a (n,), float64 (n,)."""
        ...

    def slope(self, a: ArrayLike) -> FloatArray:
        """Compute the derivative of the probability in a (n,), float64 (n,)."""
        ...


class LogisticNoise:
    """Logistic noise before the sign: P(+1) = 1 / (1 + exp(-a / width)).

    Parameters
    ----------
    width : float
    """

    def __init__(self, width: float = 0.5) -> None:
        if not width > 0:
            raise ValueError(f"LogisticNoise: width must be positive, got {width!r}")
        self.width: float = float(width)

    def probability(self, a: ArrayLike) -> FloatArray:
        """Compute the probability of +1 for inputs a (n,), float64 (n,)."""
        return F.sigmoid(np.asarray(a, np.float64) / self.width)

    def slope(self, a: ArrayLike) -> FloatArray:
        """Compute the derivative of the probability in a (n,), float64 (n,)."""
        p = self.probability(a)
        return p * (1.0 - p) / self.width


class UniformNoise:
    """Uniform noise in ±width before the sign: P(+1) = clip((a + width) / (2 width), 0, 1).

    Then E[sign] is clip(a / width, -1, 1), the surrogate of the straight-through estimator.

    Parameters
    ----------
    width : float
    """

    def __init__(self, width: float = 1.0) -> None:
        if not width > 0:
            raise ValueError(f"UniformNoise: width must be positive, got {width!r}")
        self.width: float = float(width)

    def probability(self, a: ArrayLike) -> FloatArray:
        """Compute the probability of +1 for inputs a (n,), float64 (n,)."""
        return np.clip(0.5 + 0.5 * np.asarray(a, np.float64) / self.width, 0.0, 1.0)

    def slope(self, a: ArrayLike) -> FloatArray:
        """Compute the derivative of the probability in a (n,), float64 (n,)."""
        return (np.abs(np.asarray(a, np.float64)) <= self.width) * (0.5 / self.width)


def compare_estimators(
    loss: Callable[[Tensor], Tensor],
    a: ArrayLike,
    estimators: Mapping[str, quantizers.Quantizer] | None = None,
    noise: Noise | None = None,
) -> list[dict[str, Any]]:
    """Compare the gradients of estimators with the exact gradient of the expected loss.

    The units are s_i = sign(a_i + noise), independent, so unit i flips its sign(a_i) with
    probability P(noise_i beyond -a_i). The exact gradient is the derivative of E[ℓ(s)] in a, by
    `expected_loss`. The gradient of an estimator with pseudo-gradient q' is ∂ℓ/∂s_i q'(a_i),
    evaluated at the signs of a, as in training, and averaged over the noise.

    Parameters
    ----------
    loss : callable
        Maps patterns, a Tensor (P, n), to a Tensor of losses (P,), by the rest of the network:
        ``lambda s: F.cross_entropy(rest(s), labels, reduction="none")``.
    a : (n,)
        The inputs of the signs, at most 16.
    estimators : dict of str to Quantizer, optional
        Default: `SteSign`, `ApproxSign`, `SwishSign` and `EdeSign`.
    noise : optional
        With ``probability(a)`` and ``slope(a)``: `LogisticNoise()` (default), `UniformNoise`.

    Returns
    -------
    list of dict
        First the exact one, then each estimator: ``estimator``; ``gradient`` (n,), averaged over
        the noise; ``at_signs`` (n,), without noise; ``cosine`` and ``cosine_at_signs``, cosines of
        the angle to the exact gradient (NaN where one is 0); ``length``, the length of ``gradient``
        over that of the exact one.
    """
    a, noise = np.asarray(a, np.float64), LogisticNoise() if noise is None else noise
    if a.ndim != 1:
        raise ValueError(f"compare_estimators: a must have the shape (n,), got {a.shape}")
    if estimators is None:
        classes = quantizers.SteSign, quantizers.ApproxSign, quantizers.SwishSign
        estimators = {cls.__name__: cls() for cls in (*classes, quantizers.EdeSign)}
    expected = expected_loss(loss, noise.probability(a))
    exact = expected.gradient * noise.slope(a)
    patterns = Tensor(np.concatenate([sign_patterns(len(a)), quantizers.sign(a)[None]]))
    patterns.requires_grad = True
    losses = _losses("compare_estimators", loss, patterns)
    slopes = np.zeros(patterns.shape)
    if losses.requires_grad:
        slopes = grad(losses.sum(), patterns).data
    mean_slope = expected.weights @ slopes[:-1]
    rows = [_compared("exact", exact, exact, exact)]
    for name, estimator in estimators.items():
        factor = as_array(estimator.pseudo_gradient(a))
        rows.append(_compared(name, mean_slope * factor, slopes[-1] * factor, exact))
    return rows


def _compared(name, gradient, at_signs, exact):
    length = math.sqrt(exact @ exact)
    return {
        "estimator": name,
        "gradient": gradient,
        "at_signs": at_signs,
        "cosine": _cosine(gradient, exact),
        "cosine_at_signs": _cosine(at_signs, exact),
        "length": math.sqrt(gradient @ gradient) / length if length else math.nan,
    }


def _cosine(a, b):
    lengths = math.sqrt((a @ a) * (b @ b))
    return float(a @ b) / lengths if lengths else math.nan
