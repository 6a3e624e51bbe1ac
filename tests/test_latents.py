"""Estimators of gradients through binary latents, compared with sums over all codes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinybnn import functional as F
from tinybnn import optim
from tinybnn.models import latents
from tinybnn.quantizers import SteSign, SteTern
from tinybnn.tensor import Tensor, no_grad
from tinybnn.testing import assert_identical, gradcheck

LIMIT = 4.5  # standard errors; a normal variable exceeds it once in 150,000 draws

BITS, IMAGES = 4, 3


def logits_of(seed=0, images=IMAGES, bits=BITS, spread=1.5):
    return spread * np.random.default_rng(seed).standard_normal((images, bits))


def tensor(*shape, seed=0):
    return Tensor(np.random.default_rng(seed).standard_normal(shape), requires_grad=True)


def small_decoder(seed=0):
    """A cost, curved in every bit and different for each image, and its parameters."""
    w, v, target = (tensor(BITS, 6, seed=seed), tensor(6, seed=seed + 1), tensor(IMAGES, 6, seed=9))

    def cost(codes):
        assert codes.ndim == 2 and codes.shape[1] == BITS and len(codes) % IMAGES == 0
        rows = np.tile(target.data, (len(codes) // IMAGES, 1))
        hidden = F.tanh(codes @ w + rows)
        return (hidden * hidden * v + 2.0 * hidden).sum(1)

    return cost, [w, v]


# -------------------------------------------------------------------------------- the distribution


def test_all_codes_are_enumerated_once():
    codes = latents.Enumeration.codes(5)
    assert codes.shape == (32, 5) and set(np.unique(codes)) == {-1.0, 1.0}
    assert len(np.unique(codes, axis=0)) == 32


@pytest.mark.parametrize("bits", [0, 11])
def test_too_many_codes_are_refused(bits):
    with pytest.raises(ValueError, match="bits must be from 1 to 10"):
        latents.Enumeration.codes(bits)


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_probabilities_and_rate_are_those_of_the_enumerated_distribution(seed, bits):
    logits = logits_of(seed, images=2, bits=bits, spread=4.0)
    estimator, codes = latents.get("disarm"), latents.Enumeration.codes(bits, np.float64)
    log_q = estimator.log_prob(logits, codes[:, None])  # (2^bits, 2)
    p = 1 / (1 + np.exp(-logits))
    product = np.prod(np.where(codes[:, None] > 0, p, 1 - p), axis=2)
    np.testing.assert_allclose(np.exp(log_q), product, rtol=1e-9)
    kl = np.sum(product * (log_q + bits * np.log(2)), axis=0)
    np.testing.assert_allclose(estimator.rate(Tensor(logits)).data, kl, rtol=1e-9, atol=1e-12)


def test_the_rate_of_certain_bits_stays_finite():
    rate = latents.get("disarm").rate(Tensor(np.float32([[200.0, -200.0, 0.0]])))
    np.testing.assert_allclose(rate.data, [2 * np.log(2)], rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_samples_have_the_probabilities_of_the_logits(dtype):
    n, row = 20_000, np.array([-3.0, -0.5, 0.0, 1.0, 4.0])
    logits = np.broadcast_to(row, (n, 5)).astype(dtype)
    codes = latents.get("straight_through").sample(logits, np.random.default_rng(0))
    assert codes.dtype == dtype and set(np.unique(codes)) == {-1.0, 1.0}
    p = 1 / (1 + np.exp(-row))
    z = ((codes > 0).mean(0) - p) / np.sqrt(p * (1 - p) / n)
    assert np.abs(z).max() < LIMIT


def test_the_sign_is_certain_and_its_rate_constant():
    estimator, logits = latents.Sign(), logits_of(bits=7)
    assert_identical(estimator.sample(logits, None), np.where(logits >= 0, 1.0, -1.0))
    np.testing.assert_allclose(estimator.rate(Tensor(logits)).data, 7 * np.log(2))
    assert_identical(estimator.log_prob(logits, None), np.zeros(IMAGES))


# ---------------------------------------------------------------------------------------- gradients


def test_enumeration_has_the_gradient_of_finite_differences():
    cost, parameters = small_decoder()
    gradcheck(lambda x: latents.Enumeration().expectation(x, cost), [logits_of()])

    def of_parameters(w, v):
        rows = np.random.default_rng(9).standard_normal((IMAGES, 6))

        def cost(codes):
            hidden = F.tanh(codes @ w + np.tile(rows, (len(codes) // IMAGES, 1)))
            return (hidden * hidden * v).sum(1)

        return latents.Enumeration().expectation(Tensor(logits_of()), cost)

    gradcheck(of_parameters, [p.data for p in parameters])


def test_enumeration_is_the_weighted_sum_over_codes():
    cost, _ = small_decoder()
    logits, codes = logits_of(), latents.Enumeration.codes(BITS, np.float64)
    expected = np.zeros(IMAGES)
    for code in codes:
        q = np.prod(1 / (1 + np.exp(-code * logits)), axis=1)
        with no_grad():
            expected += q * cost(Tensor(np.tile(code, (IMAGES, 1)))).data
    expectation = latents.Enumeration().expectation(Tensor(logits), cost)
    np.testing.assert_allclose(expectation.data, expected, rtol=1e-12)


UNBIASED = [latents.ScoreFunction(2), latents.ScoreFunction(5), latents.DisARM()]
BIASED = [
    latents.StraightThrough(),
    latents.GumbelSoftmax(1.0),
    latents.StraightThroughGumbel(1.0),
]


def compare(estimator, samples=3000):
    cost, parameters = small_decoder()
    return latents.compare_gradients(
        estimator, logits_of(), cost, parameters, samples, np.random.default_rng(1)
    )


@pytest.mark.parametrize("estimator", UNBIASED, ids=repr)
def test_unbiased_estimators_agree_with_the_exact_gradient(estimator):
    assert estimator.is_unbiased
    comparison = compare(estimator)
    assert [g.shape for g in comparison.exact] == [(IMAGES, BITS), (BITS, 6), (6,)]
    for z, error, exact in zip(
        comparison.z, comparison.standard_error, comparison.exact, strict=True
    ):
        assert np.all(error > 0) and np.all(error < 0.2 * np.abs(exact).max())
        assert np.abs(z).max() < LIMIT


@pytest.mark.parametrize("estimator", BIASED, ids=repr)
def test_the_bias_of_biased_estimators_is_seen(estimator):
    assert not estimator.is_unbiased
    comparison = compare(estimator)
    assert np.abs(comparison.z[0]).max() > 3 * LIMIT
    hard = type(estimator) is not latents.GumbelSoftmax
    # Codes of ±1 are drawn from q itself, so the decoder's gradient is still unbiased.
    assert all((np.abs(z).max() < LIMIT) == hard for z in comparison.z[1:])


def test_the_relaxation_loses_bias_as_it_cools():
    def bias(temperature):
        comparison = compare(latents.GumbelSoftmax(temperature), samples=2000)
        return np.abs(comparison.bias[0]).mean(), comparison.standard_error[0].mean()

    (warm, small_error), (cold, large_error) = bias(2.0), bias(0.3)
    assert cold < 0.5 * warm and large_error > 2 * small_error


def test_straight_through_is_exact_for_linear_costs():
    slope, logits = np.array([1.0, -2.0, 3.0, 0.5]), logits_of()
    comparison = latents.compare_gradients(
        "straight_through", logits, lambda z: (z * slope).sum(1), samples=2
    )
    np.testing.assert_allclose(comparison.mean[0], comparison.exact[0], rtol=1e-12)
    assert np.abs(comparison.z[0]).max() < LIMIT  # although the error is 0


@pytest.mark.parametrize("estimator", [*UNBIASED, *BIASED[::2]], ids=repr)
def test_the_mean_cost_is_estimated_without_bias(estimator):
    cost, _ = small_decoder()
    logits, rng, n = Tensor(logits_of()), np.random.default_rng(3), 2000
    with no_grad():
        exact = latents.Enumeration().expectation(logits, cost).data
        values = np.array([estimator.expectation(logits, cost, rng).data for _ in range(n)])
    z = (values.mean(0) - exact) / (values.std(0, ddof=1) / np.sqrt(n))
    assert np.abs(z).max() < LIMIT


@pytest.mark.parametrize("name", ["sign", "straight_through", "straight_through_gumbel", "disarm",
                                  "score_function", "enumeration"])  # fmt: skip
def test_all_but_the_relaxation_show_the_decoder_codes_of_signs(name):
    seen = []

    def cost(codes):
        seen.append(codes.data)
        return codes.sum(1)

    logits = Tensor(np.float32(logits_of(spread=3.0)), requires_grad=True)
    total = latents.get(name).expectation(logits, cost, np.random.default_rng(0)).sum()
    total.backward()
    assert np.all(np.abs(np.concatenate(seen)) == 1)
    assert total.dtype == logits.grad.dtype == np.float32 and np.isfinite(logits.grad.data).all()


def test_the_sign_passes_the_gradient_straight_through():
    logits = Tensor(np.array([[-3.0, -0.5, 0.5, 3.0]]), requires_grad=True)
    slope = np.array([1.0, 2.0, 3.0, 4.0])
    for quantizer, gate in (("ste_sign", [0, 1, 1, 0]), (SteSign(np.inf), [1, 1, 1, 1])):
        logits.grad = None
        value = latents.Sign(quantizer).expectation(logits, lambda z: (z * slope).sum(1), None)
        value.backward()
        assert value.data == -1 - 2 + 3 + 4
        assert_identical(logits.grad.data, (slope * gate)[None])


def test_the_same_seed_gives_the_same_gradient():
    cost, _ = small_decoder()
    for name in latents._BY_NAME:
        results = []
        for seed in (5, 5, 6):
            logits = Tensor(logits_of(), requires_grad=True)
            rng = np.random.default_rng(seed)
            latents.get(name).expectation(logits, cost, rng).sum().backward()
            results.append(logits.grad.data)
        assert_identical(results[0], results[1])
        assert (results[0] == results[2]).all() == (name in ("sign", "enumeration"))


def test_the_relaxed_code_is_a_sigmoid_of_the_noisy_logit_over_the_temperature():
    noisy = np.random.default_rng(0).standard_normal((5, 4))
    for temperature in (0.2, 1.0, 3.0):
        code = latents.GumbelSoftmax(temperature).relaxed(Tensor(noisy)).data
        np.testing.assert_allclose(code, 2 / (1 + np.exp(-noisy / temperature)) - 1, rtol=1e-12)


def test_the_noise_makes_a_bit_positive_as_often_as_q_says():
    n, row = 20_000, np.array([-2.0, 0.0, 0.7, 3.0])
    seen = []

    def cost(codes):
        seen.append(codes.data > 0)
        return codes.sum(1)

    logits = Tensor(np.broadcast_to(row, (n, 4)))
    for name in ("gumbel_softmax", "straight_through_gumbel", "disarm", "score_function"):
        seen.clear()
        latents.get(name).expectation(logits, cost, np.random.default_rng(0))
        p = 1 / (1 + np.exp(-row))
        z = (seen[0].mean(0) - p) / np.sqrt(p * (1 - p) / n)
        assert np.abs(z).max() < LIMIT, name


# --------------------------------------------------------------------------- schedule, arguments


def test_the_temperature_falls_evenly_in_its_logarithm():
    estimator = latents.StraightThroughGumbel(3.0)
    schedule = latents.TemperatureSchedule(estimator, T_max=4, start=1.0, end=0.25)
    seen = [estimator.temperature]
    for _ in range(6):
        schedule.step()
        seen.append(estimator.temperature)
    np.testing.assert_allclose(seen, [2.0 ** (-i / 2) for i in (0, 1, 2, 3, 4, 4, 4)])


def test_a_temperature_schedule_is_restored():
    first, second = latents.GumbelSoftmax(), latents.GumbelSoftmax()
    schedule = latents.TemperatureSchedule(first, T_max=10)
    other = latents.TemperatureSchedule(second, T_max=3, start=9.0, end=0.1)
    chained = optim.ChainedScheduler([schedule])  # accepted by `training.fit`
    for _ in range(4):
        chained.step()
    optim.ChainedScheduler([other]).load_state_dict(chained.state_dict())
    assert second.temperature == first.temperature != 1.0 and other.last_epoch == 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: latents.get("bernoulli"), "expects one of .*'disarm'.* got 'bernoulli'"),
        (lambda: latents.Sign(None), "Sign: expects a quantizer with the values ±1, got None"),
        (lambda: latents.Sign(SteTern()), "Sign: expects a quantizer with the values ±1"),
        (lambda: latents.ScoreFunction(1), "ScoreFunction: samples must be an int >= 2, got 1"),
        (lambda: latents.GumbelSoftmax(0.0), "GumbelSoftmax: temperature must be positive"),
        (
            lambda: latents.StraightThroughGumbel(float("nan")),
            "StraightThroughGumbel: temperature must be positive, got nan",
        ),
        (
            lambda: latents.TemperatureSchedule(latents.DisARM(), 5),
            "expects an estimator with a temperature",
        ),
        (lambda: latents.TemperatureSchedule(latents.GumbelSoftmax(), 0), "T_max must be >= 1"),
        (
            lambda: latents.TemperatureSchedule(latents.GumbelSoftmax(), 5, 0.5, 1.0),
            "expects 0 < end <= start, got end=1.0, start=0.5",
        ),
        (
            lambda: latents.compare_gradients("disarm", logits_of(), lambda z: z.sum(1), samples=1),
            "compare_gradients: samples must be >= 2, got 1",
        ),
        (
            lambda: latents.compare_gradients("disarm", logits_of(bits=11), lambda z: z.sum(1)),
            "bits must be from 1 to 10 .*, got 11",
        ),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_estimator_of_ones_own_is_taken_as_it_is():
    own = latents.DisARM()
    assert latents.get(own) is own
    assert repr(latents.get("gumbel_softmax")) == "GumbelSoftmax(temperature=1.0)"
