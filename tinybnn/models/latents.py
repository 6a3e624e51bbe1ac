"""Binary latent variables, and estimators of gradients through them.

An encoder gives an image logits l, one for each latent bit, and with them a distribution of codes

    q(z) = Π q(z_i),   q(z_i = +1) = σ(l_i),   q(z_i = -1) = σ(-l_i).

Under a uniform prior p(z) = 2^-bits, the negative evidence lower bound (ELBO) of the image, in
nats, is the sum of two terms:

    reconstruction   E_q[cost(z)],   cost(z) = -log p(x | z)
    rate             KL(q || p) = Σ (σ(l_i) l_i - softplus(l_i) + ln 2)

The rate has this closed form. The expectation runs over 2^bits codes, so it is sampled, and here
the trouble begins: a sampled bit jumps where its logit passes a threshold, and has no derivative.
Each class below is one way to get a gradient in l all the same. All have one method for it,
`Estimator.expectation`; the gradient in the decoder's parameters comes with it.

For few bits nothing needs to be sampled: `Enumeration` sums over all codes. It is the measure of
the others (`compare_gradients`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tinybnn import functional as F
from tinybnn import quantizers
from tinybnn.autograd import Function, Tensor, default_generator, grad

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import ArrayLike, DTypeLike

    from tinybnn.quantizers import Quantizer
    from tinybnn.typing import Array, V

    Cost = Callable[[Tensor], Tensor]

LN2 = math.log(2.0)


class PassThrough(Function):
    """The value of `hard`, and the gradient of `soft`: soft + constant(hard - soft), unrounded."""

    saves = ()

    def forward(self, soft: Array, hard: Array) -> Array:
        return hard

    def backward(self, grad: V, output: V, soft: V, hard: V) -> tuple[V, None]:
        return grad, None


def _with_gradient_of(value, surrogate):
    """`value` as it is, its gradient plus that of `surrogate`."""
    return value + (surrogate - surrogate.detach())


def _logistic(logits, rng):
    """Noise e with P(l + e >= 0) = σ(l): the difference of two Gumbel variables."""
    return rng.logistic(size=logits.shape).astype(logits.dtype)


# -------------------------------------------------------------------------------------- estimators


class Estimator:
    """Base class: the distribution q, and what subclasses must give.

    Attributes
    ----------
    is_random : bool
        Whether codes are drawn from q. If not, q is the sign of the logits and nothing else.
    is_unbiased : bool
        Whether the mean of the gradient in the logits is the gradient of the mean.
    """

    is_random = True
    is_unbiased = False

    def expectation(self, logits: Tensor, cost: Cost, rng: np.random.Generator) -> Tensor:
        """E_q[cost(z)] of each image, with a gradient.

        Parameters
        ----------
        logits : (N, bits) Tensor
        cost : callable
            (M, bits) Tensor of codes -> (M,) Tensor of costs. M is a multiple of N, and row i
            belongs to image i mod N. The cost of a row may depend on that row alone: with a batch
            norm in it, whose statistics are those of the batch, no statement below about bias is
            exact.
        rng : numpy.random.Generator

        Returns
        -------
        (N,) Tensor
            The mean cost of the codes that were tried. Its gradient, in the logits and in whatever
            else the cost depends on, is the estimate.
        """
        raise NotImplementedError

    def sample(self, logits: Array, rng: np.random.Generator) -> Array:
        """A code of ±1 for each row of logits, drawn from q; arrays (N, bits)."""
        uniform = rng.random(logits.shape, dtype=logits.dtype)
        return np.where(uniform < F.sigmoid(logits), 1, -1).astype(logits.dtype)

    def log_prob(self, logits: V, codes: V | Array) -> V:
        """log q(z) = -Σ softplus(-z_i l_i), for Tensors or arrays (..., bits)."""
        return -F.sum(F.softplus(-1.0 * (codes * logits)), -1)

    def rate(self, logits: Tensor) -> Tensor:
        """KL(q || uniform) of each image in nats, (N, bits) Tensor -> (N,) Tensor."""
        return F.sum(F.sigmoid(logits) * logits - F.softplus(logits) + LN2, 1)

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({settings})"


class Sign(Estimator):
    """No noise: the code is the sign of the logits, with a straight-through gradient.

    code       z = sign(l)
    gradient   ∂z/∂l := 1 where |l| <= 1, else 0 (or what the quantizer says)
    rate       bits · ln 2, whatever the image: q is a single code, and the prior gives each code
               2^-bits. So the rate teaches nothing; the model is an autoencoder, and its ELBO a
               true but loose bound.

    The binary autoencoder of Fajtl et al. 2020 (LBAE), whose gradient is 1 everywhere; the
    saturating one is BinaryNet's (Courbariaux et al. 2016).

    Parameters
    ----------
    quantizer : Quantizer or name
    """

    is_random = False

    def __init__(self, quantizer: str | Quantizer = "ste_sign") -> None:
        self.quantizer = quantizers.get(quantizer)
        if self.quantizer is None or self.quantizer.values != (-1.0, 1.0):
            raise ValueError(f"Sign: expects a quantizer with the values ±1, got {quantizer!r}")

    def expectation(self, logits: Tensor, cost: Cost, rng: np.random.Generator) -> Tensor:
        return cost(self.quantizer(logits))

    def sample(self, logits: Array, rng: np.random.Generator) -> Array:
        return quantizers.sign(logits)

    def log_prob(self, logits: V, codes: V | Array) -> V:
        """0: the code is certain."""
        return F.sum(0.0 * logits, -1)

    def rate(self, logits: Tensor) -> Tensor:
        return F.sum(0.0 * logits + LN2, 1)


class StraightThrough(Estimator):
    """A sampled code, with the gradient of its mean.

    code       z ~ q
    gradient   ∂z/∂l := ∂E[z]/∂l = 2 σ(l) σ(-l)

    Biased in the logits, unless the cost is linear in the code. Bengio et al. 2013
    (arXiv:1308.3432).
    """

    def expectation(self, logits: Tensor, cost: Cost, rng: np.random.Generator) -> Tensor:
        mean = 2.0 * F.sigmoid(logits) - 1.0
        return cost(PassThrough.apply(mean, self.sample(logits.data, rng)))


class GumbelSoftmax(Estimator):
    """A relaxed code between -1 and +1, which has a derivative.

    code       z = tanh((l + e) / 2τ),  e logistic noise; ±1 in the limit τ -> 0
    gradient   ∂z/∂l, exact for the relaxed code

    The two-class case of Gumbel-softmax (Jang et al. 2017, eq. 2), or binary concrete (Maddison et
    al. 2017, appendix B), mapped from (0, 1) to (-1, 1). Small τ: little bias, much variance.
    Training sees relaxed codes with the rate of the hard ones (as in Jang et al.), which bounds
    nothing: evaluate with codes of ±1, as `BinaryVAE` does in evaluation mode.

    Parameters
    ----------
    temperature : float
        τ; see `TemperatureSchedule`.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        if not temperature > 0:
            name = type(self).__name__
            raise ValueError(f"{name}: temperature must be positive, got {temperature!r}")
        self.temperature = float(temperature)

    def relaxed(self, noisy: Tensor) -> Tensor:
        """The relaxed code of noisy logits l + e."""
        return F.tanh(noisy * (0.5 / self.temperature))

    def expectation(self, logits: Tensor, cost: Cost, rng: np.random.Generator) -> Tensor:
        return cost(self.relaxed(logits + _logistic(logits, rng)))


class StraightThroughGumbel(GumbelSoftmax):
    """A sampled code, with the gradient of the relaxed code of the same noise.

    code       z = sign(l + e),  e logistic noise: a sample of q
    gradient   ∂z/∂l := ∂/∂l tanh((l + e) / 2τ)

    Jang et al. 2017, section 2.2. Biased, but the decoder sees what it will see later.

    Parameters
    ----------
    temperature : float
        τ; see `TemperatureSchedule`.
    """

    def expectation(self, logits: Tensor, cost: Cost, rng: np.random.Generator) -> Tensor:
        noisy = logits + _logistic(logits, rng)
        return cost(PassThrough.apply(self.relaxed(noisy), quantizers.sign(noisy.data)))


class ScoreFunction(Estimator):
    """The log-derivative trick, with the other samples' mean cost as the baseline.

    codes      z_1, ..., z_m ~ q
    gradient   1/m Σ_k (cost(z_k) - 1/(m-1) Σ_{j≠k} cost(z_j)) ∂ log q(z_k)/∂l,
               where ∂ log q(z)/∂l = (z - E[z]) / 2

    Unbiased: the baseline of a sample does not depend on that sample. REINFORCE (Williams 1992)
    with leave-one-out baselines (Salimans and Knowles 2014; Kool et al. 2019).

    Parameters
    ----------
    samples : int
        m, from 2: codes that are tried for each image.
    """

    is_unbiased = True

    def __init__(self, samples: int = 2) -> None:
        if not isinstance(samples, int | np.integer) or samples < 2:
            raise ValueError(f"ScoreFunction: samples must be an int >= 2, got {samples!r}")
        self.samples = int(samples)

    def expectation(self, logits: Tensor, cost: Cost, rng: np.random.Generator) -> Tensor:
        m, (n, bits) = self.samples, logits.shape
        tiled = np.broadcast_to(logits.data, (m, n, bits))
        codes = self.sample(tiled, rng)  # (m, N, bits)
        costs = cost(Tensor(codes.reshape(m * n, bits))).reshape(m, n)
        # c_k - (S - c_k) / (m - 1) = (c_k - S/m) m / (m - 1)
        advantage = (costs.data - costs.data.mean(0)) * (m / (m - 1))
        surrogate = self.log_prob(logits, codes) * advantage  # (m, N)
        return _with_gradient_of(costs.mean(0), surrogate.mean(0))


class DisARM(Estimator):
    """Two codes from one noise and its mirror image; bits that agree get no gradient.

    codes      z  = +1 where u < σ(l),  z' = +1 where 1 - u < σ(l),  else -1;  u uniform
    gradient   ½ (cost(z) - cost(z')) s σ(|l|),   s = (z - z') / 2

    Unbiased. The mean of ARM's gradient (Yin and Zhou 2019) over all noise that gives these two
    codes, so of no more variance. Dong, Mnih and Tucker 2020; found as U2G by Yin et al. 2020.
    """

    is_unbiased = True

    def expectation(self, logits: Tensor, cost: Cost, rng: np.random.Generator) -> Tensor:
        n, bits = logits.shape
        uniform = rng.random((n, bits), dtype=logits.dtype)
        p = F.sigmoid(logits.data)
        codes = np.where(np.stack([uniform, 1 - uniform]) < p, 1, -1).astype(logits.dtype)
        costs = cost(Tensor(codes.reshape(2 * n, bits))).reshape(2, n)
        difference = 0.5 * (costs.data[0] - costs.data[1])  # (N,)
        slope = 0.5 * (codes[0] - codes[1]) * F.sigmoid(np.abs(logits.data))  # (N, bits)
        surrogate = (logits * (difference[:, None] * slope)).sum(1)
        return _with_gradient_of(costs.mean(0), surrogate)


class Enumeration(Estimator):
    """No sampling: the sum over all codes, and so its exact gradient.

    codes      all 2^bits
    gradient   that of Σ_z q(z) cost(z), by differentiation

    For at most 10 bits, and to measure the others.
    """

    is_unbiased = True
    MOST_BITS = 10

    @classmethod
    def codes(cls, bits: int, dtype: DTypeLike = np.float32) -> Array:
        """All codes of so many bits, (2^bits, bits) of ±1."""
        if not 1 <= bits <= cls.MOST_BITS:
            raise ValueError(
                f"Enumeration: 2^bits codes are summed up for 1 to {cls.MOST_BITS} bits, got {bits}"
            )
        numbers = np.arange(2**bits)[:, None]
        return np.where(numbers >> np.arange(bits) & 1, 1, -1).astype(dtype)

    def expectation(
        self, logits: Tensor, cost: Cost, rng: np.random.Generator | None = None
    ) -> Tensor:
        n, bits = logits.shape
        codes = self.codes(bits, logits.dtype)
        costs = cost(Tensor(np.repeat(codes, n, axis=0))).reshape(-1, n)  # (2^bits, N)
        q = F.exp(self.log_prob(logits, codes[:, None]))  # (2^bits, N)
        return F.sum(q * costs, 0)


_BY_NAME = {
    "sign": Sign,
    "straight_through": StraightThrough,
    "gumbel_softmax": GumbelSoftmax,
    "straight_through_gumbel": StraightThroughGumbel,
    "score_function": ScoreFunction,
    "disarm": DisARM,
    "enumeration": Enumeration,
}


def get(estimator: str | Estimator) -> Estimator:
    """An estimator by its name; an Estimator is returned as it is."""
    if isinstance(estimator, Estimator):
        return estimator
    if isinstance(estimator, str) and estimator in _BY_NAME:
        return _BY_NAME[estimator]()
    raise ValueError(
        f"estimator: expects one of {sorted(_BY_NAME)} or an Estimator, got {estimator!r}"
    )


class TemperatureSchedule:
    """Cool a Gumbel-softmax estimator: τ falls evenly in log τ, and stays.

    τ(t) = max(end, start e^{-rt}) with r = ln(start / end) / T_max: the schedule of Jang et al.
    2017 (section 4), who end at 0.5. Call `step` once after each batch or epoch: the unit is
    yours.

    Parameters
    ----------
    estimator : GumbelSoftmax or StraightThroughGumbel
    T_max : int
        Number of steps from `start` to `end`; constant afterwards.
    start, end : float

    Attributes
    ----------
    last_epoch : int
        Number of steps so far.
    """

    def __init__(
        self, estimator: GumbelSoftmax, T_max: int, start: float = 1.0, end: float = 0.5
    ) -> None:
        if not isinstance(estimator, GumbelSoftmax):
            raise ValueError(
                f"TemperatureSchedule: expects an estimator with a temperature, got {estimator!r}"
            )
        if T_max < 1:
            raise ValueError(f"TemperatureSchedule: T_max must be >= 1, got {T_max!r}")
        if not 0 < end <= start:
            raise ValueError(
                f"TemperatureSchedule: expects 0 < end <= start, got end={end!r}, start={start!r}"
            )
        self.estimator = estimator
        self.T_max, self.start, self.end = T_max, start, end
        self.last_epoch = 0
        self._set()

    def temperature(self, epoch: float) -> float:
        """τ after so many steps."""
        return self.start * (self.end / self.start) ** min(epoch / self.T_max, 1.0)

    def step(self) -> None:
        """Go on by one step."""
        self.last_epoch += 1
        self._set()

    def _set(self):
        self.estimator.temperature = float(self.temperature(self.last_epoch))

    def state_dict(self) -> dict[str, Any]:
        """The settings and the step count, without the estimator."""
        return {name: value for name, value in vars(self).items() if name != "estimator"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave; the estimator's temperature with it."""
        vars(self).update(state_dict)
        self._set()


# ------------------------------------------------------------------------------------ measurements


@dataclass(frozen=True)
class GradientComparison:
    """Estimated gradients beside the exact ones; each attribute is a list of arrays.

    The first array belongs to the logits, the others to the parameters in their order.

    Attributes
    ----------
    exact, mean : list of arrays
    standard_error : list of arrays
        Of the mean.
    """

    exact: list
    mean: list
    standard_error: list

    @property
    def bias(self) -> list[Array]:
        """Mean minus exact."""
        return [mean - exact for mean, exact in zip(self.mean, self.exact, strict=True)]

    @property
    def z(self) -> list[Array]:
        """Bias in units of its standard error; for an unbiased estimator, nearly standard normal.

        An error below the rounding of the gradient counts as that rounding.
        """
        result = []
        for bias, error, exact in zip(self.bias, self.standard_error, self.exact, strict=True):
            rounding = 64 * np.finfo(exact.dtype).eps * np.abs(exact).max()
            result.append(bias / np.maximum(error, max(rounding, np.finfo(exact.dtype).tiny)))
        return result


def compare_gradients(
    estimator: str | Estimator,
    logits: ArrayLike,
    cost: Cost,
    parameters: Sequence[Tensor] = (),
    samples: int = 1000,
    rng: np.random.Generator | None = None,
) -> GradientComparison:
    """Measure an estimator's gradients of E_q[cost(z)], summed over the images.

    Parameters
    ----------
    estimator : Estimator or name
    logits : (N, bits) array
        At most 10 bits. float64 for small biases.
    cost : callable
        As in `Estimator.expectation`.
    parameters : sequence of Tensors
        Whose gradients are of interest as well, say those of a decoder inside of `cost`.
    samples : int
        Number of independent estimates, from 2.
    rng : numpy.random.Generator, optional

    Returns
    -------
    GradientComparison
        The exact gradient is that of the expectation over Bernoulli codes, also for `Sign`, which
        draws none.
    """
    if samples < 2:
        raise ValueError(f"compare_gradients: samples must be >= 2, got {samples!r}")
    estimator = get(estimator)
    rng = default_generator() if rng is None else rng
    inputs = [Tensor(np.asarray(logits), requires_grad=True), *parameters]

    def gradients(estimator):
        total = estimator.expectation(inputs[0], cost, rng).sum()
        return [g.data for g in grad(total, inputs)]

    exact = gradients(Enumeration())
    mean = [np.zeros_like(g) for g in exact]
    squares = [np.zeros_like(g) for g in exact]  # sums of squared deviations: Welford 1962
    for count in range(1, samples + 1):
        for g, m, s in zip(gradients(estimator), mean, squares, strict=True):
            deviation = g - m
            m += deviation / count
            s += deviation * (g - m)
    errors = [np.sqrt(s / (samples - 1) / samples) for s in squares]
    return GradientComparison(exact, mean, errors)
