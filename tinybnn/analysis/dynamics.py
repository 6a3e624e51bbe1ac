"""What happens to signs while a network trains: flips, starved latent weights, and gradients.

`FlipTracker` counts flips step by step; `latent_statistics` looks at the latent weights as they
are; `batch_statistics` at the variances and gradients of batches; `compare_estimators` holds the
gradients of estimators against the exact one of a small stochastic layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from tinybnn import functional as F
from tinybnn import nn, quantizers
from tinybnn.autograd import Tensor, as_array, grad, trace

# ------------------------------------------------------------------------------------------- flips


class FlipTracker:
    """Counts flipped weights, step by step and layer by layer.

    A weight flips when the value that its layer computes with (`binary_weight`: a sign, or one of
    three levels) is another one than a step before. A flip within `window` steps of the last one of
    the same weight is a return: the weight oscillates (Nagel et al. 2022, section 2.2). Of three
    levels a return need not lead back to the same one.

    Parameters
    ----------
    model : Module
    window : int
        Steps.

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

    def __init__(self, model, window=10):
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

    def step(self):
        """Compare with the last call, or with the beginning. To be called after each step."""
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
    def rows(self):
        """What was counted so far.

        Returns
        -------
        list of dict
            For each layer: ``layer``, ``weights``, ``steps``; ``flip_rate``, flips for each weight
            and step; ``flipped``, the share of weights that flipped at all; ``oscillating``, the
            share of weights that returned at least once; ``return_share``, of all flips.
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


def binary_layers(model):
    """The layers whose weights are quantized to few levels, by path, in order.

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


def latent_statistics(model, bins=40):
    """How the latent weights of each binary layer lie.

    Parameters
    ----------
    model : Module
    bins : int

    Returns
    -------
    list of dict
        For each layer, in order: ``layer``, ``weights``; ``counts`` (bins,) and ``edges``
        (bins + 1,) of a histogram that is symmetric about 0 and holds all of them; ``mean`` |w|;
        ``starved``, the share of weights whose pseudo-gradient is 0: beyond the clip of the
        estimator, where no gradient moves them, whatever the loss.
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
    """What the weight quantizer of a layer gets: AdaBin normalises the weights before."""
    weight = layer.weight.data
    if isinstance(layer, nn.AdaBinConv2d):
        _, scale, offset = F.adapted_weight_parts(weight, layer.weight_quantizer)
        return (weight - offset) / scale
    return weight


# ------------------------------------------------------------------------------ batches, gradients


class BatchStatistics(NamedTuple):
    """What `batch_statistics` has measured.

    Attributes
    ----------
    norms : dict of str to dict
        For each batch norm, by path: ``variance`` of what comes into it and ``factor``
        |α| = |γ| / sqrt(variance + ε), (batches, channels) float64 each.
    gradients : dict of str to dict
        For each group of parameters: ``norm``, the mean length of its gradient; ``agreement``
        between batches, see `agreement`.
    """

    norms: Mapping
    gradients: Mapping


def batch_statistics(model, batches, loss=F.cross_entropy, groups=None):
    """Variances, factors of batch norms, and gradients, of batches in training mode.

    BD-Net (Kim et al. 2025, Eq. 1) blames small variances of depth-wise sums: the batch norm's
    factor α = γ / sqrt(variance + ε) multiplies what comes back as gradient, which then fluctuates
    from batch to batch.

    Parameters
    ----------
    model : Module
        Left as it was, its running statistics included; gradients are forgotten.
    batches : sequence of (x, target)
        At least two.
    loss : callable
        ``loss(output, target)``.
    groups : dict of str to sequence of Parameters, optional
        Whose gradients are joined to one. Default: each parameter by its path.

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
                    found = seen[norms[id(module)]]
                    found["variance"].append(variance)
                    found["factor"].append(
                        np.abs(module.weight.data) / np.sqrt(variance + module.eps)
                    )
            del tape
            value.backward()
            for name, parameters in groups.items():
                gradients[name].append(_joined(parameters))
    model.zero_grad()
    model.load_state_dict(state)
    if any(len(found) < 2 for found in gradients.values()):
        raise ValueError("batch_statistics: batches must hold at least two, to compare gradients")
    return BatchStatistics(
        {path: {k: np.array(v) for k, v in found.items()} for path, found in seen.items()},
        {
            name: {
                "norm": float(np.sqrt((np.array(found) ** 2).sum(1)).mean()),
                "agreement": agreement(found),
            }
            for name, found in gradients.items()
        },
    )


def _joined(parameters):
    """Their gradients as one vector of float64; zeros where there is none."""
    return np.concatenate([
        (np.zeros(p.shape) if p.grad is None else p.grad.data).ravel().astype(np.float64)
        for p in parameters
    ])  # fmt: skip


def agreement(gradients):
    """The mean product of two different gradients over their mean square.

    Parameters
    ----------
    gradients : (batches, n)
        At least two.

    Returns
    -------
    float
        1 where all are equal, 0 where they have nothing in common or are 0.
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
    gradient: np.ndarray
    losses: np.ndarray
    weights: np.ndarray


def sign_patterns(units):
    """All patterns of ±1, (2^units, units) float64: bit i of the row's number is unit i."""
    if not 1 <= units <= MOST_UNITS:
        raise ValueError(f"sign_patterns: units must be in 1..{MOST_UNITS}, got {units!r}")
    numbers = np.arange(1 << units)[:, None]
    return 2.0 * (numbers >> np.arange(units) & 1) - 1.0


def expected_loss(loss, probabilities):
    """The expected loss of independent random signs, over all patterns, and its derivative.

    E = Σ_s ℓ(s) Π_i P(s_i), so ∂E/∂p_i = E[ℓ | s_i = 1] - E[ℓ | s_i = -1]: no sampling, no
    estimator.

    Parameters
    ----------
    loss : callable
        Patterns, a Tensor (P, n) of ±1 in float64, -> losses (P,), a Tensor or an array.
    probabilities : (n,)
        p_i of +1 for each unit, n at most 16.

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
    """One loss for each pattern, as a Tensor."""
    losses = loss(patterns)
    if np.shape(losses) != patterns.shape[:1]:
        raise ValueError(
            f"{name}: loss must give one number for each of the {len(patterns)} patterns, got the "
            f"shape {np.shape(losses)}; pass reduction='none' to a loss function"
        )
    return losses if isinstance(losses, Tensor) else Tensor(losses)


class LogisticNoise:
    """Logistic noise before the sign: P(+1) = 1 / (1 + exp(-a / width)).

    Parameters
    ----------
    width : float
    """

    def __init__(self, width=0.5):
        if not width > 0:
            raise ValueError(f"LogisticNoise: width must be positive, got {width!r}")
        self.width = float(width)

    def probability(self, a):
        """Of +1, for inputs a (n,)."""
        return F.sigmoid(np.asarray(a, np.float64) / self.width)

    def slope(self, a):
        """Its derivative in a."""
        p = self.probability(a)
        return p * (1.0 - p) / self.width


class UniformNoise:
    """Uniform noise in ±width before the sign: P(+1) = clip((a + width) / (2 width), 0, 1).

    Then E[sign] is clip(a / width, -1, 1), the surrogate of the straight-through estimator.

    Parameters
    ----------
    width : float
    """

    def __init__(self, width=1.0):
        if not width > 0:
            raise ValueError(f"UniformNoise: width must be positive, got {width!r}")
        self.width = float(width)

    def probability(self, a):
        """Of +1, for inputs a (n,)."""
        return np.clip(0.5 + 0.5 * np.asarray(a, np.float64) / self.width, 0.0, 1.0)

    def slope(self, a):
        """Its derivative in a."""
        return (np.abs(np.asarray(a, np.float64)) <= self.width) * (0.5 / self.width)


def compare_estimators(loss, a, estimators=None, noise=None):
    """The gradients of estimators beside the exact gradient of the expected loss.

    The units are s_i = sign(a_i + noise), independent, so unit i flips its sign(a_i) with
    probability P(noise_i beyond -a_i). The exact gradient is the derivative of E[ℓ(s)] in a, by
    `expected_loss`. An estimator with the pseudo-gradient q' gives ∂ℓ/∂s_i q'(a_i): at the signs
    of a, as in training, and in the mean over the noise.

    Parameters
    ----------
    loss : callable
        Patterns, a Tensor (P, n), -> a Tensor of losses (P,): what the rest of the network makes
        of each, ``lambda s: F.cross_entropy(rest(s), labels, reduction="none")``.
    a : (n,)
        The inputs of the signs, at most 16.
    estimators : dict of str to Quantizer, optional
        Default: `SteSign`, `ApproxSign`, `SwishSign` and `EdeSign`.
    noise : optional
        With ``probability(a)`` and ``slope(a)``: `LogisticNoise()` (default), `UniformNoise`.

    Returns
    -------
    list of dict
        First the exact one, then each estimator: ``estimator``; ``gradient`` (n,), in the mean
        over the noise; ``at_signs`` (n,), without noise; ``cosine`` and ``cosine_at_signs``, of
        the angle to the exact gradient (NaN where one is 0); ``length``, that of ``gradient`` over
        that of the exact one.
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
