"""Binary latent variables, and gradient estimators for them.

An encoder maps an image to logits l, one for each latent bit, which define a distribution of codes

    q(z) = Π q(z_i),   q(z_i = +1) = σ(l_i),   q(z_i = -1) = σ(-l_i).

Under a uniform prior p(z) = 2^-bits, the negative evidence lower bound (ELBO) of the image, in
nats, is the sum of two terms:

    reconstruction   E_q[cost(z)],   cost(z) = -log p(x | z)
    rate             KL(q || p) = Σ (σ(l_i) l_i - softplus(l_i) + ln 2)

The rate has this closed form. The expectation runs over 2^bits codes, so it is sampled; but a
sampled bit is a step function of its logit and has no useful derivative. Each class below is an
estimator of the gradient in l, by the method `Estimator.expectation`, which yields the gradient of
the decoder's parameters too.

For few bits no sampling is needed: `Enumeration` sums over all codes, and `compare_gradients`
measures the other estimators against it.
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

LN2: float = math.log(2.0)


class PassThrough(Function):
    """The value of `hard` with the gradient of `soft` (same shape): soft + constant(hard - soft).

    The value is exactly `hard`, without the rounding of that sum.
    """

    saves: tuple[str, ...] = ()

    def forward(self, soft: Array, hard: Array) -> Array:
        return hard

    def backward(self, grad: V, output: V, soft: V, hard: V) -> tuple[V, None]:
        return grad, None


def _with_gradient_of(value, surrogate):
    """The value of `value`, with the sum of the gradients of `value` and `surrogate`."""
    return value + (surrogate - surrogate.detach())


def _logistic(logits, rng):
    """Noise e with P(l + e >= 0) = σ(l): the difference of two Gumbel variables."""
    return rng.logistic(size=logits.shape).astype(logits.dtype)


# -------------------------------------------------------------------------------------- estimators


class Estimator:
    """Base class: the distribution q of codes; subclasses implement `expectation`.

    Attributes
    ----------
    is_random : bool
        Whether codes are drawn from q. If not, q is a single code, the signs of the logits.
    is_unbiased : bool
        Whether the expected gradient in the logits is the gradient of the expectation.
    """

    is_random: bool = True
    is_unbiased: bool = False

    def expectation(self, logits: Tensor, cost: Cost, rng: np.random.Generator) -> Tensor:
        """Estimate E_q[cost(z)] of each image, with a gradient.

        Parameters
        ----------
        logits : (N, bits) Tensor
        cost : callable
            (M, bits) Tensor of codes -> (M,) Tensor of costs. M is a multiple of N, and row i
            belongs to image i mod N. The cost of a row must depend on that row only: with a batch
            norm that uses batch statistics, the statements about bias below are not exact.
        rng : numpy.random.Generator

        Returns
        -------
        (N,) Tensor
            The mean cost of the sampled codes. Its gradient, in the logits and in all other inputs
            of the cost, is the estimate.
        """
        raise NotImplementedError

    def sample(self, logits: Array, rng: np.random.Generator) -> Array:
        """Draw a code of ±1 from q for each row of logits: array (..., bits) -> (..., bits)."""
        uniform = rng.random(logits.shape, dtype=logits.dtype)
        return np.where(uniform < F.sigmoid(logits), 1, -1).astype(logits.dtype)

    def log_prob(self, logits: V, codes: V | Array) -> V:
        """Compute log q(z) = -Σ softplus(-z_i l_i): Tensors or arrays (..., bits) -> (...)."""
        return -F.sum(F.softplus(-1.0 * (codes * logits)), -1)

    def rate(self, logits: Tensor) -> Tensor:
        """Compute KL(q || uniform) of each image in nats: (N, bits) Tensor -> (N,) Tensor."""
        return F.sum(F.sigmoid(logits) * logits - F.softplus(logits) + LN2, 1)

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({settings})"


class Sign(Estimator):
    """No noise: the code is the sign of the logits, with a straight-through gradient.

    code       z = sign(l)
    gradient   ∂z/∂l := 1 where |l| <= 1, else 0 (or the quantizer's pseudo-gradient)
    rate       bits · ln 2 for every image: q is a single code, whose prior probability is 2^-bits.
               The rate has no gradient; the model is an autoencoder, and its ELBO a valid but loose
               bound.

    The binary autoencoder of Fajtl et al. 2020 (LBAE), whose gradient is 1 everywhere; the
    saturating one is BinaryNet's (Courbariaux et al. 2016).

    Parameters
    ----------
    quantizer : Quantizer or name
    """

    quantizer: Quantizer
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
        """Return 0 for each image, since the code is certain: (..., bits) -> (...)."""
        return F.sum(0.0 * logits, -1)

    def rate(self, logits: Tensor) -> Tensor:
        return F.sum(0.0 * logits + LN2, 1)


class StraightThrough(Estimator):
    """A sampled code with the gradient of its mean.

    code       z ~ q
    gradient   ∂z/∂l := ∂E[z]/∂l = 2 σ(l) σ(-l)

    Biased in the logits, unless the cost is linear in the code. Bengio et al. 2013
    (arXiv:1308.3432).
    """

    def expectation(self, logits: Tensor, cost: Cost, rng: np.random.Generator) -> Tensor:
        mean = 2.0 * F.sigmoid(logits) - 1.0
        return cost(PassThrough.apply(mean, self.sample(logits.data, rng)))


class GumbelSoftmax(Estimator):
    """A relaxed, differentiable code between -1 and +1.

    code       z = tanh((l + e) / 2τ),  e logistic noise; ±1 in the limit τ -> 0
    gradient   ∂z/∂l, exact for the relaxed code

    The two-class case of Gumbel-softmax (Jang et al. 2017, eq. 2), or binary concrete (Maddison et
    al. 2017, appendix B), mapped from (0, 1) to (-1, 1). A small τ means low bias and high
    variance. Training combines relaxed codes with the rate of the binary ones (as in Jang et al.),
    which is not a bound: evaluate with codes of ±1, as `BinaryVAE` does in evaluation mode.

    Parameters
    ----------
    temperature : float
        τ; see `TemperatureSchedule`.
    """

    temperature: float

    def __init__(self, temperature: float = 1.0) -> None:
        if not temperature > 0:
            name = type(self).__name__
            raise ValueError(f"{name}: temperature must be positive, got {temperature!r}")
        self.temperature = float(temperature)

    def relaxed(self, noisy: Tensor) -> Tensor:
        """Compute the relaxed code of noisy logits l + e: (N, bits) -> (N, bits)."""
        return F.tanh(noisy * (0.5 / self.temperature))

    def expectation(self, logits: Tensor, cost: Cost, rng: np.random.Generator) -> Tensor:
        return cost(self.relaxed(logits + _logistic(logits, rng)))


class StraightThroughGumbel(GumbelSoftmax):
    """A sampled code with the gradient of the relaxed code for the same noise.

    code       z = sign(l + e),  e logistic noise: a sample of q
    gradient   ∂z/∂l := ∂/∂l tanh((l + e) / 2τ)

    Jang et al. 2017, section 2.2. Biased, but the decoder is trained on binary codes.

    Parameters
    ----------
    temperature : float
        τ; see `TemperatureSchedule`.
    """

    def expectation(self, logits: Tensor, cost: Cost, rng: np.random.Generator) -> Tensor:
        noisy = logits + _logistic(logits, rng)
        return cost(PassThrough.apply(self.relaxed(noisy), quantizers.sign(noisy.data)))


class ScoreFunction(Estimator):
    """The log-derivative trick, with the mean cost of the other samples as baseline.

    codes      z_1, ..., z_m ~ q
    gradient   1/m Σ_k (cost(z_k) - 1/(m-1) Σ_{j≠k} cost(z_j)) ∂ log q(z_k)/∂l,
               where ∂ log q(z)/∂l = (z - E[z]) / 2

    Unbiased: the baseline of a sample does not depend on that sample. REINFORCE (Williams 1992)
    with leave-one-out baselines (Salimans and Knowles 2014; Kool et al. 2019).

    Parameters
    ----------
    samples : int
        m >= 2: number of codes sampled for each image.
    """

    samples: int
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
    """Two codes from antithetic noise; bits on which they agree have no gradient.

    codes      z  = +1 where u < σ(l),  z' = +1 where 1 - u < σ(l),  else -1;  u uniform
    gradient   ½ (cost(z) - cost(z')) s σ(|l|),   s = (z - z') / 2

    Unbiased. The mean of ARM's gradient (Yin and Zhou 2019) over all noise that leads to these two
    codes, hence with no more variance. Dong, Mnih and Tucker 2020; also U2G (Yin et al. 2020).
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
    """No sampling: the sum over all codes, with its exact gradient.

    codes      all 2^bits
    gradient   that of Σ_z q(z) cost(z), by differentiation

    For at most 10 bits; a reference for the other estimators.
    """

    is_unbiased = True
    MOST_BITS: int = 10

    @classmethod
    def codes(cls, bits: int, dtype: DTypeLike = np.float32) -> Array:
        """Return all codes of ±1: (2^bits, bits) of `dtype`."""
        if not 1 <= bits <= cls.MOST_BITS:
            raise ValueError(
                f"Enumeration: bits must be from 1 to {cls.MOST_BITS} (2^bits codes), got {bits}"
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
    """Return the estimator of a name; an Estimator is returned as it is."""
    if isinstance(estimator, Estimator):
        return estimator
    if isinstance(estimator, str) and estimator in _BY_NAME:
        return _BY_NAME[estimator]()
    raise ValueError(
        f"estimator: expects one of {sorted(_BY_NAME)} or an Estimator, got {estimator!r}"
    )


class TemperatureSchedule:
    """Decrease the temperature τ of a Gumbel-softmax estimator exponentially, then keep it.

    τ(t) = max(end, start e^{-rt}) with r = ln(start / end) / T_max: the schedule of Jang et al.
    2017 (section 4), who end at 0.5. Call `step` after each batch, or after each epoch; T_max
    counts these steps.

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

    estimator: GumbelSoftmax
    T_max: int
    start: float
    end: float
    last_epoch: int

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
        """Return τ after `epoch` steps."""
        return self.start * (self.end / self.start) ** min(epoch / self.T_max, 1.0)

    def step(self) -> None:
        """Advance by one step."""
        self.last_epoch += 1
        self._set()

    def _set(self):
        self.estimator.temperature = float(self.temperature(self.last_epoch))

    def state_dict(self) -> dict[str, Any]:
        """Return the settings and the step count, without the estimator."""
        return {name: value for name, value in vars(self).items() if name != "estimator"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state from `state_dict`, and set the estimator's temperature."""
        vars(self).update(state_dict)
        self._set()


# ------------------------------------------------------------------------------------ measurements


@dataclass(frozen=True)
class GradientComparison:
    """Estimated and exact gradients; each attribute is a list of arrays.

    The first array is the gradient of the logits (N, bits), the others those of the parameters, in
    their order and shapes.

    Attributes
    ----------
    exact : list of arrays
    mean : list of arrays
        Mean of the estimates.
    standard_error : list of arrays
        Standard error of the mean.
    """

    exact: list[Array]
    mean: list[Array]
    standard_error: list[Array]

    @property
    def bias(self) -> list[Array]:
        """Mean minus exact gradients, in their shapes."""
        return [mean - exact for mean, exact in zip(self.mean, self.exact, strict=True)]

    @property
    def z(self) -> list[Array]:
        """Bias divided by its standard error; roughly standard normal without bias.

        Standard errors are at least the rounding error of the gradient.
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
        Further Tensors to compare gradients of, such as the parameters of a decoder in `cost`.
    samples : int
        Number of independent estimates, at least 2.
    rng : numpy.random.Generator, optional

    Returns
    -------
    GradientComparison
        The exact gradient is that of the expectation over Bernoulli codes, also for `Sign`, which
        has no randomness.
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
