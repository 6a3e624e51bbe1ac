"""Dynamics of training: flips, latent weights, gradients of batches, and exact expectations."""

import itertools

import numpy as np
import pytest

from tinybnn import analysis, nn, optim, quantizers
from tinybnn import functional as F
from tinybnn.tensor import Tensor

# -------------------------------------------------------------------------------------------- flips


def two_layers():
    rng = np.random.default_rng(0)
    return nn.Sequential(
        nn.BinaryLinear(4, 3, rng=rng), nn.BatchNorm1d(3), nn.BinaryLinear(3, 2, rng=rng)
    )


def test_flips_by_hand():
    model = two_layers()
    weight = model[0].weight.data
    weight[...] = 0.5
    tracker = analysis.FlipTracker(model, window=2)
    #          flips at step 1, back at 2;  at 1, back at 4: too late;  at 3;  never
    signs = [(-1, -1, 1, 1), (1, -1, 1, 1), (1, -1, -1, 1), (1, 1, -1, 1)]
    for values in signs:
        weight[0] = 0.1 * np.array(values)
        tracker.step()
    assert tracker.flips == {"0": [2, 1, 1, 1], "2": [0] * 4}
    assert tracker.returns == {"0": [0, 1, 0, 0], "2": [0] * 4}
    row = tracker.rows[0]
    assert row == {
        "layer": "0", "weights": 12, "steps": 4, "flip_rate": 5 / 48, "flipped": 3 / 12,
        "oscillating": 1 / 12, "return_share": 1 / 5,
    }  # fmt: skip


def test_a_later_return_counts_in_a_wider_window():
    model = two_layers()
    tracker = analysis.FlipTracker(model, window=3)
    for _ in range(2):
        model[2].weight.data *= -1
        for _ in range(3):
            tracker.step()
    assert tracker.returns["2"] == [0, 0, 0, 6, 0, 0]


@pytest.mark.parametrize("layer", [
    nn.BinaryConv2d(2, 3, 3, weight_quantizer="ste_tern"), nn.AdaBinConv2d(2, 3, 3),
    nn.BinaryConv2d(2, 3, 3, weight_quantizer="magnitude_aware_sign"),
])  # fmt: skip
def test_flips_are_those_of_what_the_layer_computes_with(layer):
    """Not flips of the latent's sign: AdaBin takes the sign around the filter's mean."""
    tracker, rng = analysis.FlipTracker(nn.Sequential(layer)), np.random.default_rng(0)
    for _ in range(3):
        before = layer.binary_weight()
        layer.weight.data += 0.2 * rng.standard_normal(layer.weight.shape).astype(np.float32)
        tracker.step()
        assert tracker.flips["0"][-1] == np.count_nonzero(before != layer.binary_weight()) > 0


def test_flips_of_a_training_are_those_of_its_weights():
    model, rng = two_layers(), np.random.default_rng(1)
    optimizer = optim.Adam(model.parameters(), lr=0.1)
    tracker, history = analysis.FlipTracker(model), [model[0].binary_weight()]
    for _ in range(20):
        optimizer.zero_grad()
        x, y = rng.standard_normal((8, 4), np.float32), rng.integers(0, 2, 8)
        F.cross_entropy(model(Tensor(x)), y).backward()
        optimizer.step()
        tracker.step()
        history.append(model[0].binary_weight())
    flips = [int(np.count_nonzero(a != b)) for a, b in itertools.pairwise(history)]
    assert tracker.flips["0"] == flips and sum(flips) > 0
    at_all = np.any([a != b for a, b in itertools.pairwise(history)], axis=0)
    assert tracker.rows[0]["flipped"] == pytest.approx(at_all.mean())


def test_a_model_without_binary_weights():
    with pytest.raises(ValueError, match="no layer with binary weights"):
        analysis.FlipTracker(nn.Sequential(nn.Linear(2, 2), nn.BinaryLinear(
            2, 2, weight_quantizer=None)))  # fmt: skip
    with pytest.raises(ValueError, match="window must be at least 1"):
        analysis.FlipTracker(two_layers(), 0)


# ------------------------------------------------------------------------------------------ latents


def test_latents_by_hand():
    model = two_layers()
    model[0].weight.data[...] = np.linspace(-2.2, 2.2, 12).reshape(3, 4)
    model[2].weight.data *= 0.5
    first, second = analysis.latent_statistics(model, bins=4)
    assert first["starved"] == pytest.approx(6 / 12)  # ±1.0 is the clip, ±1 itself learns
    assert second["starved"] == 0
    assert first["counts"].tolist() == [3, 3, 3, 3] and first["weights"] == 12
    np.testing.assert_allclose(first["edges"], [-2.2, -1.1, 0, 1.1, 2.2], rtol=1e-6)
    assert first["mean"] == pytest.approx(1.2)


@pytest.mark.parametrize("layer", [
    nn.BinaryConv2d(2, 3, 3, weight_quantizer="approx_sign"),
    nn.AdaBinConv2d(2, 3, 3, weight_quantizer="ste_sign"),
    nn.BinaryConv2d(2, 3, 3, weight_quantizer=quantizers.SteSign(0.1)),
])  # fmt: skip
def test_starved_latents_get_no_gradient(layer):
    rng = np.random.default_rng(0)
    layer.weight.data[...] = 0.8 * rng.standard_normal(layer.weight.shape)
    [row] = analysis.latent_statistics(nn.Sequential(layer))
    x = Tensor(rng.standard_normal((4, 2, 5, 5), np.float32))
    y = layer(x)
    (y * rng.standard_normal(y.shape).astype(np.float32)).sum().backward()
    if isinstance(layer, nn.AdaBinConv2d):  # scale and offset pass gradients on; the sign does not
        _, scale, offset = F.adapted_weight_parts(layer.weight.data, layer.weight_quantizer)
        assert row["starved"] == np.mean(np.abs((layer.weight.data - offset) / scale) > 1)
    else:
        assert row["starved"] == np.mean(layer.weight.grad.data == 0)
    assert 0 < row["starved"] < 1


def test_weights_that_are_not_finite():
    model = two_layers()
    model[2].weight.data[0, 0] = np.nan
    with pytest.raises(ValueError, match="layer '2' are not finite"):
        analysis.latent_statistics(model)


# ------------------------------------------------------------------------------ batches, gradients


def some_batches(count=3, seed=0):
    rng = np.random.default_rng(seed)
    return [(rng.standard_normal((8, 4), np.float32), rng.integers(0, 2, 8)) for _ in range(count)]


def test_statistics_of_batches_by_hand():
    model, batches = two_layers().eval(), some_batches()
    model[1].weight.data[...] = [1.0, -2.0, 0.5]
    before = {k: v.copy() for k, v in model.state_dict().items()}
    statistics = analysis.batch_statistics(model, batches, groups={"first": [model[0].weight]})
    assert not model.training and model[0].weight.grad is None
    for name, array in model.state_dict().items():
        assert np.array_equal(array, before[name])
    model.train()
    gradients = []
    for i, (x, y) in enumerate(batches):
        h = model[0](Tensor(x))
        variance = h.data.astype(np.float64).var(0)
        np.testing.assert_allclose(statistics.norms["1"]["variance"][i], variance)
        factor = np.array([1.0, 2.0, 0.5]) / np.sqrt(variance + 1e-5)
        np.testing.assert_allclose(statistics.norms["1"]["factor"][i], factor)
        model.zero_grad()
        F.cross_entropy(model(Tensor(x)), y).backward()
        gradients.append(model[0].weight.grad.data.ravel().astype(np.float64))
    norms = [np.sqrt(g @ g) for g in gradients]
    assert statistics.gradients["first"]["norm"] == pytest.approx(np.mean(norms))
    pairs = [a @ b for a, b in itertools.combinations(gradients, 2)]
    expected = np.mean(pairs) / np.mean(np.square(norms))
    assert statistics.gradients["first"]["agreement"] == pytest.approx(expected)


def test_each_parameter_is_a_group_by_default():
    model = two_layers()
    statistics = analysis.batch_statistics(model, some_batches())
    assert [*statistics.gradients] == [name for name, _ in model.named_parameters()]
    with pytest.raises(ValueError, match="at least two"):
        analysis.batch_statistics(model, some_batches(1))


def test_agreement_of_equal_and_of_opposite_gradients():
    g = np.random.default_rng(0).standard_normal(5)
    assert analysis.agreement([g, g, g]) == pytest.approx(1.0)
    assert analysis.agreement([g, -g]) == pytest.approx(-1.0)
    assert analysis.agreement(np.eye(3)) == pytest.approx(0.0)
    assert analysis.agreement(np.zeros((2, 3))) == 0.0
    with pytest.raises(ValueError, match="at least two gradients"):
        analysis.agreement([g])


# ---------------------------------------------------------------------- exact expected gradients


def tail(n, seed=0):
    """The loss of a network for each pattern of n signs."""
    rng = np.random.default_rng(seed)
    v, u = rng.standard_normal((4, n)), rng.standard_normal((3, 4))
    return lambda s: F.cross_entropy(
        F.linear(F.tanh(F.linear(s, v)), u), np.zeros(len(s), int), reduction="none"
    )


def test_patterns_are_all_and_different():
    patterns = analysis.sign_patterns(5)
    assert patterns.shape == (32, 5) and len({tuple(row) for row in patterns}) == 32
    assert set(np.unique(patterns)) == {-1.0, 1.0}
    for units in (0, 17):
        with pytest.raises(ValueError, match=r"units must be in 1\.\.16"):
            analysis.sign_patterns(units)


def test_the_expected_loss_and_its_derivative():
    loss, p = tail(5), np.array([0.1, 0.5, 0.9, 1.0, 0.0])
    result = analysis.expected_loss(loss, p)
    total = 0.0
    for s in itertools.product([-1.0, 1.0], repeat=5):
        weight = np.prod([q if v > 0 else 1 - q for v, q in zip(s, p, strict=True)])
        total += weight * loss(Tensor(np.array([s]))).data[0]
    assert result.value == pytest.approx(total)
    inner = np.clip(p, 0.01, 0.99)
    result = analysis.expected_loss(loss, inner)
    for i in range(5):
        shift = 1e-6 * np.eye(5)[i]
        above, below = (analysis.expected_loss(loss, inner + d).value for d in (shift, -shift))
        assert result.gradient[i] == pytest.approx((above - below) / 2e-6, rel=1e-6)


def test_sixteen_units():
    result = analysis.expected_loss(lambda s: s.sum(1), np.full(16, 0.75))
    assert result.value == pytest.approx(8.0) and result.gradient == pytest.approx(np.full(16, 2.0))
    assert result.weights.sum() == pytest.approx(1.0) and len(result.losses) == 65536


@pytest.mark.parametrize("noise", [analysis.LogisticNoise(0.7), analysis.UniformNoise(1.5)])
def test_slopes_of_noises(noise):
    a = np.array([-2.0, -0.4, 0.0, 0.3, 1.1])
    slope = (noise.probability(a + 1e-6) - noise.probability(a - 1e-6)) / 2e-6
    np.testing.assert_allclose(noise.slope(a), slope, atol=1e-9)


def test_the_straight_through_estimator_is_exact_for_a_linear_loss_under_uniform_noise():
    """There its surrogate is the expected sign; for a loss with products of units it is biased."""
    rng = np.random.default_rng(0)
    a, w = rng.uniform(-0.9, 0.9, 6), rng.standard_normal(6)
    noise = analysis.UniformNoise(1.0)
    exact, ste, tent, *_ = analysis.compare_estimators(lambda s: (s * w).sum(1), a, noise=noise)
    np.testing.assert_allclose(exact["gradient"], w, rtol=1e-12)
    np.testing.assert_allclose(ste["gradient"], w, rtol=1e-12)
    np.testing.assert_allclose(ste["at_signs"], w, rtol=1e-12)
    np.testing.assert_allclose(tent["gradient"], w * (2 - 2 * np.abs(a)), rtol=1e-12)
    assert ste["cosine"] == pytest.approx(1) and ste["length"] == pytest.approx(1)
    exact, ste, *_ = analysis.compare_estimators(tail(6), a, noise=noise)
    assert 0 < ste["cosine"] < 0.9999


def test_estimators_beside_the_exact_gradient():
    loss, a = tail(4), np.array([0.3, -0.2, 1.4, -0.05])
    own = {"wide": quantizers.SteSign(2.0)}
    exact, wide = analysis.compare_estimators(loss, a, own, analysis.LogisticNoise(0.5))
    assert (exact["estimator"], wide["estimator"]) == ("exact", "wide")
    for i in range(4):
        shift = 1e-6 * np.eye(4)[i]
        values = [
            analysis.expected_loss(loss, 1 / (1 + np.exp(-(a + d) / 0.5))).value
            for d in (shift, -shift)
        ]
        assert exact["gradient"][i] == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5)
    signs = Tensor(np.sign(a)[None], requires_grad=True)
    loss(signs).sum().backward()
    np.testing.assert_allclose(wide["at_signs"], signs.grad.data[0], rtol=1e-12)
    patterns = Tensor(analysis.sign_patterns(4), requires_grad=True)
    loss(patterns).sum().backward()
    weights = analysis.expected_loss(loss, 1 / (1 + np.exp(-a / 0.5))).weights
    np.testing.assert_allclose(wide["gradient"], weights @ patterns.grad.data, rtol=1e-12)


def test_wrong_losses_and_probabilities():
    with pytest.raises(ValueError, match=r"numbers in \[0, 1\]"):
        analysis.expected_loss(tail(2), [0.5, 1.5])
    with pytest.raises(ValueError, match="reduction='none'"):
        analysis.expected_loss(lambda s: s.sum(), [0.5, 0.5])
    with pytest.raises(ValueError, match=r"a must have the shape \(n,\)"):
        analysis.compare_estimators(tail(2), np.zeros((2, 2)))
    for noise in (analysis.LogisticNoise, analysis.UniformNoise):
        with pytest.raises(ValueError, match="width must be positive"):
            noise(0)
    rows = analysis.compare_estimators(lambda s: np.zeros(len(s)), np.zeros(2))
    assert all(np.isnan(row["cosine"]) for row in rows)
