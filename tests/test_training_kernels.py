"""The fused kernels of training against the plain rules that they stand in for.

Elementwise results are the rule's bit for bit; sums are held against float64. The rules run on
float64, or on float32 arrays that are not channels-last: those the kernels leave to them.
"""

import os
import subprocess
import sys

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinybnn import functional as F
from tinybnn import nn, optim, quantizers
from tinybnn.kernels import dispatch
from tinybnn.kernels.machine import layout, threads
from tinybnn.kernels.training import (
    activations,
    channel_order,
    float_pooling,
    losses,
    normalization,
    optimizers,
    straight_through,
)
from tinybnn.tensor import Tensor, as_array, grad, trace
from tinybnn.testing import assert_identical, gradcheck, gradgradcheck

compiled = pytest.mark.skipif(numba.config.DISABLE_JIT, reason="needs compiled kernels")
SPECIAL = np.float32([0, -0.0, np.nan, np.inf, -np.inf, 1, -1, 1e-45, -1e-45, 3e38, 0.5, -2])


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def with_special(x, seed=0):
    """Some elements replaced by zeros, infinities, NaN and limits."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(x.shape) < 0.2, rng.choice(SPECIAL, x.shape), x)


def channels_last(x):
    return layout.channels_last(x)


def fails(*arguments, **keywords):
    raise AssertionError("the kernel was not to be called")


# ------------------------------------------------------------------------------------------- layout


def test_layout_gives_views_of_what_kernels_can_take():
    x = normal(2, 3, 4, 5)
    last = channels_last(x)
    assert_identical(last, x)
    assert channels_last(last).base is not None
    rows = layout.channel_rows(last)
    assert rows.shape == (40, 3)
    assert np.shares_memory(rows, last)
    assert_identical(layout.image(rows, x.shape), x)
    assert np.shares_memory(layout.channels_last_images(last), last)
    (row,) = layout.flat(last)
    assert_identical(layout.like(last, row), x)
    assert_identical(layout.like(x, *layout.flat(x)), x)
    matrix = normal(4, 3)
    assert layout.channel_rows(matrix).base is not None
    assert_identical(layout.image(layout.channel_rows(matrix), matrix.shape), matrix)


def test_layout_refuses_what_kernels_cannot_take():
    x = channels_last(normal(2, 3, 4, 5))
    apart = np.zeros((2, 3, 4, 10), np.float32)[..., ::2]
    for other in (x.astype(np.float64), x.copy(order="C"), apart, x[:0]):
        assert layout.channel_rows(other) is None
        assert layout.channels_last_images(other) is None
    for others in ((x, x.copy(order="C")), (apart,), (x, x.astype(np.float64))):
        assert layout.flat(*others) is None
    assert layout.channel_rows(normal(2, 3, 4)) is None


# ------------------------------------------------------------------------------ batch normalisation


@st.composite
def batches(draw):
    """Rows of channels, their centre far from 0 at times, gradients and parameters."""
    channels = draw(st.sampled_from((1, 3, 10, 16, 17, 64, 70, 100, 128, 130, 200, 257)))
    least = -(-128 // channels)
    rows = least + draw(st.integers(0, 3 * 32))
    seed = draw(st.integers(0, 2**32 - 1))
    centre = draw(st.sampled_from((0, 3, -1000)))
    x = normal(rows, channels, seed=seed) + np.float32(centre)
    return x, normal(rows, channels, seed=seed + 1), normal(4, channels, seed=seed + 2)


@given(batches())
def test_statistics(batch):
    x, _, _ = batch
    mean, var, scale = normalization.statistics(x, 1e-5)
    exact = x.astype(np.float64)
    size = np.abs(exact).max(0)
    assert (np.abs(mean - exact.mean(0)) <= 1.2e-7 * size).all()
    np.testing.assert_allclose(var, exact.var(0), 1e-6, 1e-12)
    np.testing.assert_allclose(scale, 1 / np.sqrt(exact.var(0) + 1e-5), 1e-6)
    assert mean.dtype == var.dtype == scale.dtype == np.float32


@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
def test_statistics_of_channels_without_a_scale():
    x = normal(70, 16)
    x[:, 0], x[3, 1], x[69, 2] = 2, np.inf, np.nan
    mean, var, scale = normalization.statistics(x, 0.0)
    assert (mean[0], var[0], scale[0]) == (2, 0, np.inf)
    assert np.isnan(var[1:3]).all() and np.isnan(scale[1:3]).all()
    assert not np.isfinite(mean[1:3]).any()
    assert np.isfinite([mean[3:], var[3:], scale[3:]]).all()


@given(batches())
def test_normalise(batch):
    x, _, (mean, scale, weight, bias) = batch
    before = x.copy()
    result = normalization.normalise(x, mean, scale, weight, bias)
    assert_identical(result, ((x - mean) * scale) * weight + bias)
    assert_identical(x, before)


@given(batches())
def test_affine(batch):
    x, _, (alpha, beta, _, _) = batch
    before = x.copy()
    assert_identical(normalization.affine(x, alpha, beta), x * alpha + beta)
    assert_identical(x, before)


@given(batches())
def test_gradient_sums(batch):
    x, given_, _ = batch
    mean, _, scale = normalization.statistics(x, 1e-5)
    grad_weight, grad_bias = normalization.gradient_sums(given_, x, mean, scale)
    normalised = (x.astype(np.float64) - mean) * scale
    products = given_ * normalised
    for result, terms in ((grad_weight, products), (grad_bias, given_.astype(np.float64))):
        assert (np.abs(result - terms.sum(0)) <= 3e-7 * np.abs(terms).sum(0)).all()


@given(batches())
def test_gradient(batch):
    x, given_, (mean, scale, weight, sums) = batch
    result = normalization.gradient(given_, x, mean, scale, weight, sums, sums[::-1])
    share = np.float32(1 / len(x))
    expected = given_ - sums[::-1] * share - ((x - mean) * scale) * (sums * share)
    assert_identical(result, expected * (weight * scale))


@given(batches())
def test_all_stages_in_one_call_give_the_same_bits(batch):
    x, given_, (_, _, weight, bias) = batch
    result, mean, var, scale = normalization.forward(x, weight, bias, 1e-5)
    for a, b in zip((mean, var, scale), normalization.statistics(x, 1e-5), strict=True):
        assert_identical(a, b)
    assert_identical(result, normalization.normalise(x, mean, scale, weight, bias))
    result, *sums = normalization.backward(given_, x, mean, scale, weight)
    for a, b in zip(sums, normalization.gradient_sums(given_, x, mean, scale), strict=True):
        assert_identical(a, b)
    assert_identical(result, normalization.gradient(given_, x, mean, scale, weight, *sums))


@given(st.integers(2, 40), st.integers(1, 63), st.integers(0, 99), st.sampled_from((0, 3, -100)))
def test_fewer_numbers_than_a_vector(rows, channels, seed, centre):
    rows = min(rows, 127 // channels)
    x, given_ = normal(2, rows, channels, seed=seed)
    x += np.float32(centre)
    weight, bias = normal(2, channels, seed=seed + 1)
    result, mean, var, scale = normalization.forward(x, weight, bias, 1e-5)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean(0), 1.2e-7)
    np.testing.assert_allclose(var, exact.var(0), 1e-6, 1e-12)
    np.testing.assert_allclose(scale, 1 / np.sqrt(exact.var(0) + 1e-5), 1e-6)
    assert_identical(result, ((x - mean) * scale) * weight + bias)
    of_x, of_weight, of_bias = normalization.backward(given_, x, mean, scale, weight)
    np.testing.assert_allclose(of_weight, (given_ * (exact - mean) * scale).sum(0), 1e-5, 1e-5)
    np.testing.assert_allclose(of_bias, given_.sum(0, np.float64), 1e-6, 1e-6)
    share = np.float32(1 / rows)
    expected = given_ - of_bias * share - ((x - mean) * scale) * (of_weight * share)
    assert_identical(of_x, expected * (weight * scale))


@compiled
@pytest.mark.parametrize("first", [0, 30])
def test_sums_of_a_large_batch_are_accurate(first):
    """NumPy's float32 sums of this many rows are off by 1e-5; also if the first rows are odd."""
    x = normal(1 << 16, 16) + np.float32(3)
    x[: 1 << 8] += np.float32(first)
    exact = x.astype(np.float64)
    mean, var, scale = normalization.statistics(x, 1e-5)
    np.testing.assert_allclose(mean, exact.mean(0), 1.2e-7)
    np.testing.assert_allclose(var, exact.var(0), 3e-7)
    given_ = normal(*x.shape, seed=1)
    grad_weight, grad_bias = normalization.gradient_sums(given_, x, mean, scale)
    normalised = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5)
    np.testing.assert_allclose(grad_weight, (given_ * normalised).sum(0), atol=3e-4)
    np.testing.assert_allclose(grad_bias, given_.sum(0, dtype=np.float64), atol=3e-4)


SHAPES = [(9, 16), (50, 3), (8, 128), (1, 64, 2, 2), (4, 3, 9, 7), (2, 17, 5, 4), (3, 130, 2, 3)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batch_norm_in_training_follows_the_rule(shape, monkeypatch):
    """Channels-last float32 against the rule on float64: output, gradients, running statistics."""
    results = []
    for dtype in (np.float32, np.float64):
        x, weight, bias = (
            Tensor(a.astype(dtype), requires_grad=True)
            for a in (channels_last(2 * normal(*shape) + 1), *normal(2, shape[1], seed=1))
        )
        running = np.zeros(shape[1], dtype), np.ones(shape[1], dtype)
        y = F.batch_norm(x, *running, weight, bias, True, 0.25)
        given_ = channels_last(normal(*shape, seed=2)).astype(dtype)
        results.append((y, *running, *grad(y, [x, weight, bias], Tensor(given_))))
        monkeypatch.setattr(normalization, "forward", fails)  # float64 is not for kernels
    for fused, rule in zip(*results, strict=True):
        fused, rule = np.asarray(as_array(fused)), np.asarray(as_array(rule))
        assert fused.dtype == np.float32
        np.testing.assert_allclose(fused, rule, 2e-5, 2e-6 * np.abs(rule).max())


def test_batch_norm_takes_a_gradient_in_any_layout():
    x = Tensor(channels_last(normal(4, 20, 3, 3)), requires_grad=True)
    y = F.batch_norm(x, None, None, training=True)
    given_ = normal(4, 20, 3, 3, seed=1)
    expected = grad(y, x, channels_last(given_), retain_graph=True)
    for other in (given_, np.ascontiguousarray(given_.T).T, given_[::-1].copy()[::-1]):
        assert_identical(grad(y, x, other, retain_graph=True), expected)
    flat = grad(y, x, np.broadcast_to(np.float32(1), x.shape), retain_graph=True)
    np.testing.assert_allclose(flat.data, 0, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batch_norm_in_evaluation_is_the_rule_bit_for_bit(shape, monkeypatch):
    x, (mean, weight, bias) = channels_last(normal(*shape)), normal(3, shape[1], seed=1)
    var = np.abs(normal(shape[1], seed=2))
    per_channel = (1, -1) + (1,) * (len(shape) - 2)
    alpha = (weight / np.sqrt(var + np.float64(1e-5))).astype(np.float32)
    beta = (bias - mean * np.float64(alpha)).astype(np.float32)
    alpha, beta = (v.reshape(per_channel) for v in (alpha, beta))
    expected = x * alpha + beta
    assert_identical(F.batch_norm(x, mean, var, weight, bias), expected)
    monkeypatch.setattr(normalization, "affine", fails)
    apart = np.repeat(x, 2, axis=-1)[..., ::2]
    assert_identical(F.batch_norm(apart, mean, var, weight, bias), expected)


def test_batch_norm_second_order_on_float32():
    def curvature(dtype):
        x = Tensor(channels_last(normal(3, 16, 3, 3)).astype(dtype), requires_grad=True)
        y = F.batch_norm(x, None, None, training=True)
        (g,) = grad((y * y * y).sum(), [x], create_graph=True)
        return grad((g * g).sum(), x).data

    expected = curvature(np.float64)
    np.testing.assert_allclose(curvature(np.float32), expected, 1e-3, 1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_bad_number_stays_in_its_channel(value):
    x = channels_last(normal(2, 20, 4, 4))
    x[0, 7, 0, 0] = value
    x = Tensor(x, requires_grad=True)
    with np.errstate(invalid="ignore"):
        y = F.batch_norm(x, None, None, training=True)
        g = grad(y, x, normal(*x.shape)).data
    others = np.arange(20) != 7
    for result in (y.data, g):
        assert np.isfinite(result[:, others]).all()
        assert np.isnan(result[:, 7]).all()


def test_the_mean_of_a_channel_with_infinity_is_infinity():
    x = normal(40, 5)
    x[0, 2] = np.inf  # a row that the sums start from
    with np.errstate(invalid="ignore"):
        mean, var, _ = normalization.statistics(x, 1e-5)
    assert mean[2] == np.inf
    assert np.isnan(var[2])


# ------------------------------------------------------------------------------------------ pooling


@st.composite
def windows(draw):
    """An image with many equal numbers, and how it is pooled."""
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    size = [draw(st.integers(max(1, k - 2 * p), 8)) for k, p in zip(kernel, padding, strict=True)]
    channels = draw(st.sampled_from((2, 3, 16, 17, 33)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.integers(-2, 3, (draw(st.integers(1, 3)), channels, *size)).astype(np.float32)
    if draw(st.booleans()):
        x[rng.random(x.shape) < 0.1] = np.nan
    x[rng.random(x.shape) < 0.1] = np.inf
    return x, kernel, stride, padding, rng


def pooled(function, x, arguments, given_):
    """Output, gradient, and the gradient's own gradient."""
    x = Tensor(x, requires_grad=True)
    y = function(x, *arguments)
    given_ = Tensor(given_, requires_grad=True)
    (g,) = grad(y, [x], given_, create_graph=True)
    return y, g, grad((g * g).sum(), given_)


@given(windows())
def test_max_pool_follows_the_rule(case):
    x, *arguments, rng = case
    given_ = rng.integers(-9, 10, F.max_pool2d(x, *arguments).shape).astype(np.float32)
    fused = pooled(F.max_pool2d, channels_last(x), arguments, given_)
    rule = pooled(F.max_pool2d, x.astype(np.float64), arguments, given_.astype(np.float64))
    for a, b in zip(fused, rule, strict=True):
        assert a.dtype == np.float32
        np.testing.assert_array_equal(a.data, b.data)


@given(windows())
def test_max_unpool_adds_in_the_order_of_the_rule(case):
    x, *arguments, rng = case
    rule = F.max_pool2d(Tensor(x, requires_grad=True), *arguments)
    given_ = rng.standard_normal(rule.shape, np.float32)
    fused = F.max_pool2d(Tensor(channels_last(x), requires_grad=True), *arguments)
    rule.function.needs = fused.function.needs = (True,)
    expected = rule.function.backward(given_, rule.data, x)
    assert_identical(fused.function.backward(given_, None, None), expected)


@given(windows())
def test_avg_pool_follows_the_rule(case):
    x, *arguments, rng = case
    x = np.where(np.isfinite(x), rng.standard_normal(x.shape, np.float32), 0)
    rule = F.avg_pool2d(np.repeat(x, 2, -1)[..., ::2], *arguments)
    assert_identical(F.avg_pool2d(channels_last(x), *arguments) + 0.0, rule + 0.0)
    given_ = rng.standard_normal(rule.shape, np.float32)
    fused = pooled(F.avg_pool2d, channels_last(x), arguments, given_)
    rule = pooled(F.avg_pool2d, x.astype(np.float64), arguments, given_.astype(np.float64))
    for a, b in zip(fused, rule, strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a.data, b.data, 1e-5, 1e-5)


def test_max_pool_keeps_the_winners_instead_of_the_image():
    x = Tensor(channels_last(normal(2, 16, 6, 6)), requires_grad=True)
    y = F.max_pool2d(x * 1.0, 2)
    assert y.function._inputs == (None,)
    assert y.function._output is None
    assert y.function.winner.dtype == np.uint8


@pytest.mark.parametrize("side", [15, 16])
def test_windows_of_more_than_255_pixels_are_left_to_the_rule(side, monkeypatch):
    x = Tensor(channels_last(normal(1, 2, 16, 16)), requires_grad=True)
    if side == 16:
        monkeypatch.setattr(float_pooling, "max_pool2d", fails)
    y = F.max_pool2d(x, side)
    y.sum().backward()
    assert_identical(y.data.ravel(), x.data[:, :, :side, :side].max((2, 3)).ravel())
    assert_identical(x.grad.data != 0, x.data == x.data[:, :, :side, :side].max((2, 3), keepdims=1))


def test_the_first_nan_takes_the_gradient():
    for dtype in (np.float32, np.float64):
        x = np.array([[[[1, np.nan], [np.nan, 2]]]], dtype)
        x = Tensor(x, requires_grad=True)
        F.max_pool2d(x, 2).sum().backward()
        assert_identical(x.grad, np.array([[[[0, 1], [0, 0]]]], dtype))


def test_pooled_infinite_gradients_stay_where_they_are():
    x = channels_last(np.float32([[[[1, 2], [3, 4]]]]).repeat(16, 1))
    for dtype in (np.float32, np.float64):
        y = Tensor(x.astype(dtype), requires_grad=True)
        g = grad(F.max_pool2d(y, 2), y, np.full((1, 16, 1, 1), np.inf, dtype)).data
        assert_identical(g, np.array([[0, 0], [0, np.inf]], dtype)[None, None].repeat(16, 1))


# ----------------------------------------------------------------------------------- channel order


@given(st.data())
def test_channels_in_any_order(data):
    """Repeated, in long runs, shuffled: bit for bit what indexing gives, by any number of tasks."""
    channels = data.draw(st.integers(1, 70))
    index = data.draw(
        st.one_of(
            st.lists(st.integers(0, channels - 1), min_size=1, max_size=80).map(np.array),
            st.integers(1, 200).map(lambda count: np.arange(count) % channels),
            st.permutations(range(channels)).map(np.array),
        )
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    shape = data.draw(st.tuples(st.integers(0, 3), st.integers(1, 4), st.integers(1, 4)))
    x = rng.choice(SPECIAL, (*shape, channels))
    out = np.full((*shape, len(index)), 7, np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(channel_order, "_SPEED", data.draw(st.sampled_from((1e-12, 1e12))))
        assert channel_order.take_channels(x, index, out) is out
        expected = channel_order.take_channels_reference(x, index)
        assert np.array_equal(out.view(np.uint32), expected.view(np.uint32))
        with np.errstate(invalid="ignore", over="ignore"):
            expected = channel_order.add_channels_reference(out, index, channels)
            assert_identical(channel_order.add_channels(out, index, np.full_like(x, 7)), expected)


@pytest.mark.parametrize(
    ("x", "index", "out", "message"),
    [
        (normal(2, 1, 1, 3), [0, 3], normal(2, 1, 1, 2), "index must be from 0 to 2, got 0 to 3"),
        (normal(2, 1, 1, 3), [-1], normal(2, 1, 1, 1), "got -1 to -1"),
        (normal(2, 1, 1, 3), [0, 1], normal(2, 1, 1, 3), r"out must be .* \(2, 1, 1, 2\), got"),
        (normal(2, 1, 1, 3).astype(float), [0], normal(2, 1, 1, 1), "x .* got float64"),
    ],
)
def test_channels_that_do_not_fit_are_refused(x, index, out, message):
    with pytest.raises(ValueError, match=message):
        channel_order.take_channels(x, index, out)
    names = {"x": "out", "out": "x"}  # the adjoint has them the other way round
    for a, b in names.items():
        if message.startswith(f"{a} "):
            message = b + message.removeprefix(a)
            break
    with pytest.raises(ValueError, match=message):
        channel_order.add_channels(out, index, x)


# --------------------------------------------------------------------------- signs and their slopes


@pytest.mark.parametrize("shape", [(4096,), (70, 61), (3, 17, 9, 11)], ids=str)
def test_signs_and_their_gradients_are_the_rules(shape):
    x = channels_last(with_special(normal(*shape))) if len(shape) > 1 else normal(*shape)
    given_ = with_special(normal(*shape, seed=1), 1)
    given_ = channels_last(given_) if len(shape) > 1 else given_
    assert_identical(quantizers.sign(x), np.where(x >= 0, np.float32(1), np.float32(-1)))
    with np.errstate(invalid="ignore", over="ignore"):
        for quantizer in (
            quantizers.ste_sign, quantizers.SteSign(1.3), quantizers.SteSign(np.inf),
            quantizers.approx_sign, quantizers.SteHeaviside(0.5), quantizers.SteTern(0.2),
        ):  # fmt: skip
            tensor = Tensor(x, requires_grad=True)
            expected = given_ * quantizer.pseudo_gradient(x)
            assert_identical(grad(quantizer(tensor), tensor, given_), expected)
            kernel = quantizers._KERNELS[quantizer.pseudo_gradient.__func__]
            assert_identical(kernel(quantizer, given_, x), expected)
        for function, inside in (
            (F.relu, x > 0),
            (F.hardtanh, (x > -1) & (x < 1)),
            (lambda x: F.hardtanh(x, -2, 0.5), (x > -2) & (x < 0.5)),
        ):
            tensor = Tensor(x, requires_grad=True)
            assert_identical(grad(function(tensor), tensor, given_), given_ * inside)


def test_gradient_in_another_layout_is_left_to_the_rule():
    x = Tensor(channels_last(normal(4, 16, 10, 10)), requires_grad=True)
    given_ = normal(4, 16, 10, 10, seed=1)
    for function, inside in (
        (quantizers.ste_sign, np.abs(x.data) <= 1),
        (F.relu, x.data > 0),
    ):
        assert_identical(grad(function(x), x, given_), given_ * inside)


def test_a_pseudo_gradient_of_its_own_is_used():
    class Half(quantizers.SteSign):
        def pseudo_gradient(self, x):
            return 0.5 * np.ones_like(x)

    x = Tensor(normal(5000), requires_grad=True)
    assert_identical(grad(Half()(x), x, np.ones(5000, np.float32)), np.full(5000, np.float32(0.5)))


# -------------------------------------------------------------------------------------- activations


@given(st.integers(1, 200), st.integers(0, 99), st.sampled_from((0, 0.01, -2)))
def test_leaky_relu(size, seed, slope):
    x = with_special(normal(size, seed=seed), seed)
    given_ = with_special(normal(size, seed=seed + 1), seed + 1)
    with np.errstate(invalid="ignore", over="ignore"):
        result = activations.leaky_relu(x, slope)
        assert_identical(result, activations.leaky_relu_reference(x, slope))
        result = activations.leaky_relu_gradient(given_, x, slope)
        assert_identical(result, activations.leaky_relu_gradient_reference(given_, x, slope))


@pytest.mark.parametrize("name", ["two_lines", "two_values"])
@given(st.integers(1, 40), st.integers(1, 70), st.integers(0, 99), st.booleans())
def test_two_lines_and_two_values(name, rows, channels, seed, is_special):
    x, given_ = (normal(rows, channels, seed=seed + i) for i in (0, 1))
    constants = normal(4, channels, seed=seed + 2)
    if is_special:
        x, given_ = with_special(x, seed), with_special(given_, seed + 1)
        constants = with_special(constants, seed + 2)
    if name == "two_values":
        constants[1] = np.maximum(np.abs(np.nan_to_num(constants[1])), 0.001)
    x[0] = constants[0]  # on the threshold
    forward, gradient = (getattr(activations, name + suffix) for suffix in ("", "_gradient"))
    plain, plain_gradient = (
        getattr(activations, f"{name}{suffix}_reference") for suffix in ("", "_gradient")
    )
    with np.errstate(invalid="ignore", over="ignore"):
        assert_identical(forward(x, constants), plain(x, constants))
        result, expected = gradient(given_, x, constants), plain_gradient(given_, x, constants)
    assert_identical(result[0], expected[0])
    if not is_special:  # where a sum of 32 may overflow
        np.testing.assert_allclose(result[1], expected[1], rtol=1e-5, atol=1e-4)


def test_constants_that_are_not_there_change_no_bit():
    x = with_special(normal(40, 5), 1)
    constants = np.zeros((4, 5), np.float32)
    constants[1], constants[2], constants[3] = 1, 0.25, -0.0
    expected = np.where(x > 0, x, np.float32(0.25) * x)
    result = activations.two_lines(x, constants)
    assert_identical(result, expected)
    assert_identical(np.signbit(result[expected == 0]), np.signbit(expected[expected == 0]))


def test_constants_of_many_rows_are_summed_in_double_precision():
    """A sum of 500,000 equal numbers in float32 would be off by a thousandth."""
    x = np.full((500_000, 3), -0.1, np.float32)
    given_ = np.full(x.shape, 0.1, np.float32)
    constants = np.float32([[0] * 3, [1] * 3, [0.1, 0.2, 0.3], [0] * 3])
    _, sums = activations.two_lines_gradient(given_, x, constants)
    np.testing.assert_allclose(sums[2], 500_000 * (np.float64(given_[0, 0]) * x[0, 0]), 2e-6)


# The layers' functions: arguments besides the image, and what the kernels stand for.
ADAPTED = {
    "scale_channels": (F.scale_channels, [(0.7, 40)], {}),
    "rsign": (F.rsign, [(0.3, 40)], {"quantizer": quantizers.approx_sign}),
    "adapted_set": (F.adapted_set, [(0.8, 1), (0.2, 1)], {"quantizer": quantizers.approx_sign}),
    "prelu": (F.prelu, [(0.5, 40)], {}),
    "rprelu": (F.rprelu, [(0.3, 40), (0.5, 40), (0.2, 40)], {}),
    "maxout": (F.maxout, [(1.0, 40), (0.3, 40)], {}),
}


@pytest.mark.parametrize("name", ADAPTED)
@pytest.mark.parametrize("shape", [(4, 40, 6, 7), (120, 40)], ids=str)
def test_adapted_activations_follow_the_rule(name, shape, monkeypatch):
    """The same in all bits but those of sums, and in any layout; and their gradients' gradients."""
    apply, learned, options = ADAPTED[name]
    rng = np.random.default_rng(0)
    x, given_ = (rng.standard_normal(shape, np.float32) for _ in range(2))
    constants = [np.float32(size * rng.uniform(0.5, 1.5, n)) for size, n in learned]
    results = []
    for few in (0, 1 << 30):
        monkeypatch.setattr(dispatch, "FEW", few)
        for change in (channels_last, np.ascontiguousarray):
            inputs = [Tensor(change(x), requires_grad=True)]
            inputs += [Tensor(c, requires_grad=True) for c in constants]
            output = apply(*inputs, **options)
            gradients = grad(output, inputs, change(given_), retain_graph=True)
            recorded = grad(output, inputs, change(given_), create_graph=True)
            for a, b in zip(gradients, recorded, strict=True):
                np.testing.assert_allclose(a.data, b.data, 1e-4, 1e-4)
            results.append([output.data, *gradients])
    arrays = [t.data for t in inputs]
    composed = type(output.function).composition(*arrays, **options)
    for output, of_x, *of_learned in results:
        assert_identical(output, composed)
        np.testing.assert_allclose(of_x, results[0][1], 1e-6, 1e-6)
        for a, b in zip(of_learned, results[0][2:], strict=True):
            np.testing.assert_allclose(a, b, 1e-4, 1e-4)


@given(
    st.tuples(st.integers(1, 9), st.integers(1, 70), *[st.integers(1, 5)] * 2),
    st.integers(0, 2**32 - 1),
    st.sampled_from([quantizers.ste_sign, quantizers.approx_sign, quantizers.EdeSign(0.5)]),
)  # fmt: skip
def test_adapted_weights_are_those_of_the_rule(shape, seed, quantizer):
    """Bit for bit, gradients too: it spares bookkeeping and changes nothing."""
    rng = np.random.default_rng(seed)
    weight, given_ = (Tensor(rng.standard_normal(shape, np.float32)) for _ in range(2))
    weight.requires_grad = True
    results = []
    for apply in (F.adapted_weight, F.adabin.AdaptedWeight.composition):
        output = apply(weight, quantizer)
        (gradient,) = grad(output, [weight], given_, retain_graph=True)
        (recorded,) = grad(output, [weight], given_, create_graph=True)
        assert_identical(gradient, recorded)
        (second,) = grad((recorded * given_).sum(), [weight])
        results.append((output.data, gradient.data, second.data))
    for result, expected in zip(*results, strict=True):
        assert_identical(result, expected)
    parts = F.adapted_weight_parts(weight.data, quantizer)
    assert_identical(results[0][0], parts[1] * parts[0] + parts[2])


def test_what_is_no_quantizer_is_composed_with_adapted_weights():
    weight = Tensor(normal(4, 3, 3, 3), requires_grad=True)
    result = F.adapted_weight(weight, lambda x: x)
    np.testing.assert_allclose(result.data, weight.data, 1e-5, 1e-6)
    (gradient,) = grad(result, [weight], np.ones(weight.shape, np.float32))
    np.testing.assert_allclose(gradient.data, np.ones(weight.shape), 1e-4)


class Narrow(quantizers.ApproxSign):
    """A slope of its own, which no kernel knows."""

    def pseudo_gradient(self, x):
        return (np.abs(as_array(x)) <= 0.5).astype(as_array(x).dtype)


@pytest.mark.parametrize("quantizer", [quantizers.ste_sign, Narrow()], ids=["ste", "narrow"])
@pytest.mark.parametrize("name", ["rsign", "adapted_set"])
def test_other_slopes_than_the_tent_are_respected(name, quantizer):
    apply, learned, _ = ADAPTED[name]
    x = Tensor(channels_last(normal(4, 40, 6, 7)), requires_grad=True)
    constants = [np.full(n, size, np.float32) for size, n in learned]
    (result,) = grad(apply(x, *constants, quantizer), [x], np.ones(x.shape, np.float32))
    u = x.data - constants[0].reshape(1, -1, 1, 1) if name == "rsign" else (x.data - 0.2) / 0.8
    expected = np.abs(u) <= (0.5 if isinstance(quantizer, Narrow) else 1)
    np.testing.assert_allclose(result.data, expected, 1e-6)


ADAPTED_LAYERS = [nn.RSign, nn.PReLU, nn.RPReLU, nn.Maxout]


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("layer", ADAPTED_LAYERS, ids=lambda c: c.__name__)
def test_layers_compute_the_same_in_both_modes_and_in_a_trace(layer, special):
    """A trace shows the operations that the compiler knows, in their order and with their bits."""
    layer = layer(40)
    for i, p in enumerate(layer.parameters()):
        p.data[...] = with_special(normal(40, seed=i)) if special else normal(40, seed=i)
    x = Tensor(channels_last(with_special(normal(4, 40, 6, 7))))
    with np.errstate(invalid="ignore", over="ignore"):
        assert_identical(layer.train()(x), layer.eval()(x))
        with trace() as tape:
            traced = layer(x).data
        assert_identical(traced, layer(x).data)
    fused = {F.RSign, F.RPRelu, F.Maxout, F.adapted.PReluOfChannels}
    assert fused.isdisjoint([type(call.function) for call in tape])


@pytest.mark.parametrize("few", [0, 1 << 30])
@pytest.mark.parametrize("name", ["scale_channels", "prelu", "rprelu", "maxout"])
def test_adapted_activations_pass_the_gradient_checks(name, few, monkeypatch):
    monkeypatch.setattr(dispatch, "FEW", few)
    apply, learned, _ = ADAPTED[name]
    x = np.random.default_rng(0).permutation(np.linspace(-2, 2, 24)).reshape(2, 3, 2, 2)
    constants = [size + np.array([0.01, 0.02, 0.03]) for size, _ in learned]
    gradcheck(apply, [x, *constants])
    gradgradcheck(apply, [x, *constants])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: F.rsign(x, np.ones(2), quantizers.approx_sign), r"rsign: threshold .* \(2,\)"),
        (lambda x: F.rprelu(x, np.ones(3), np.ones(1), np.ones(3)), r"rprelu: weight .* \(1,\)"),
        (lambda x: F.maxout(x[0, 0], np.ones(3), np.ones(3)), r"maxout: positive .* \(4,\)"),
        (
            lambda x: F.adapted_set(x, np.ones(3), np.ones(1), quantizers.approx_sign),
            r"adapted_set: scale must have shape \(1,\), got \(3,\)",
        ),
    ],
)
def test_adapted_activations_refuse_other_shapes(call, message):
    with pytest.raises(ValueError, match=message):
        call(normal(2, 3, 4))


@pytest.mark.parametrize("shape", [(4, 40, 6, 7), (90, 64)])
@pytest.mark.parametrize(
    "apply", [lambda x, w: F.leaky_relu(x, 0.2), F.prelu], ids=["leaky", "prelu"]
)
def test_activations_follow_the_rule(apply, shape, monkeypatch):
    """The same in all bits but those of the slopes' sums; and in any layout."""
    x, given_, w = normal(*shape), normal(*shape, seed=1), normal(shape[1], seed=2)
    results = []
    for few in (0, 1 << 30):
        monkeypatch.setattr(dispatch, "FEW", few)
        for change in (channels_last, np.ascontiguousarray, np.asfortranarray):
            inputs = Tensor(change(x), requires_grad=True), Tensor(w, requires_grad=True)
            output = apply(*inputs)
            output.backward(change(given_))
            results.append([output.data, inputs[0].grad, inputs[1].grad])
    for output, of_x, of_w in results:
        assert_identical(output, results[0][0])
        assert_identical(of_x, results[0][1])
        assert (of_w is None) == (results[0][2] is None)
        if of_w is not None:
            np.testing.assert_allclose(of_w, results[0][2], rtol=1e-4)


# ------------------------------------------------------------------------------------------- losses


@given(st.integers(1, 9), st.integers(1, 12), st.integers(0, 99), st.sampled_from((0, 0.1, 1)))
def test_cross_entropy(samples, classes, seed, smoothing):
    x = 5 * normal(samples, classes, seed=seed)
    labels = np.random.default_rng(seed).integers(0, classes, samples)
    exact = x.astype(np.float64)
    log_p = exact - exact.max(1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
    target = np.full_like(exact, smoothing / classes)
    target[np.arange(samples), labels] += 1 - smoothing
    values, slopes = losses.cross_entropy(x, labels, smoothing)
    np.testing.assert_allclose(values, -(target * log_p).sum(1), 2e-7, 1e-7)
    np.testing.assert_allclose(slopes, np.exp(log_p) - target, 2e-7, 1e-7)
    for reduction in ("mean", "sum", "none"):
        results = []
        for dtype in (np.float32, np.float64):
            logits = Tensor(x, requires_grad=True, dtype=dtype)
            loss = F.cross_entropy(logits, labels, reduction, smoothing)
            (g,) = grad(loss.sum(), [logits], create_graph=True)
            results.append((loss, grad(loss.sum(), logits, retain_graph=True), g))
            results[-1] += (grad((g * g).sum(), logits),)
        for fused, rule in zip(*results, strict=True):
            assert fused.dtype == np.float32
            np.testing.assert_allclose(fused.data, rule.data, 1e-5, 1e-6)


def test_cross_entropy_of_extreme_logits():
    x = np.float32([[1e30, 0, -1e30], [-np.inf, 0, 1], [0, np.nan, 0]])
    values, slopes = losses.cross_entropy(x, np.array([0, 1, 2]), 0.0)
    np.testing.assert_allclose(values, [0, np.log1p(np.e), np.nan], 1e-6)
    np.testing.assert_allclose(slopes[0], [0, 0, 0])
    p = 1 / (1 + np.e)
    np.testing.assert_allclose(slopes[1], [0, p - 1, 1 - p], 1e-6)
    assert np.isnan(slopes[2]).all()


def test_cross_entropy_of_no_samples_has_no_mean():
    with pytest.raises(ValueError, match="cross_entropy: the mean of no samples"):
        F.cross_entropy(Tensor(np.zeros((0, 3))), np.zeros(0, int))


# --------------------------------------------------------------------------------------- optimizers

SETTINGS = [
    ("SGD", {}),
    ("SGD", {"weight_decay": 0.1}),
    ("SGD", {"momentum": 0.9}),
    ("SGD", {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01}),
    ("SGD", {"momentum": 0.8, "nesterov": True}),
    ("Adam", {}),
    ("Adam", {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}),
    ("AdamW", {}),
    ("AdamW", {"weight_decay": 0.3}),
]


@pytest.mark.parametrize("decay_latents", [False, True])
@pytest.mark.parametrize("clip", [None, 1, 0.3])
@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_updates_are_the_rules_bit_for_bit(name, settings, clip, decay_latents, monkeypatch):
    fused = getattr(optim, name)

    class Rule(fused):
        def update(self, *arguments):
            super().update(*arguments)

    start = with_special(normal(5, 7, 3, 3), 1)
    start[~(np.abs(start) < 10)] = np.nan  # stays NaN, in both
    results = []
    for kind in (fused, Rule):
        plain = nn.Parameter(start.copy())
        latent = nn.LatentParameter(channels_last(start).copy(order="K"), clip_value=clip)
        optimizer = kind([plain, latent], lr=0.1, decay_latents=decay_latents, **settings)
        for step in range(4):
            for p in optimizer.parameters:
                p.grad = Tensor(normal(*start.shape, seed=step) * np.float32(10) ** (step - 2))
            optimizer.step()
        results.append([plain, latent, *(a for s in optimizer.state for a in s.values())])
        monkeypatch.setattr(optimizers, "_run", fails)  # a rule of its own has no kernel
    for a, b in zip(*results, strict=True):
        assert_identical(a, b)
    assert clip is None or np.nanmax(np.abs(results[0][1].data)) == np.float32(clip)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_float64_parameters_are_left_to_the_rule(name, monkeypatch):
    monkeypatch.setattr(optimizers, "_run", fails)
    p = nn.Parameter(np.ones(4))
    optimizer = getattr(optim, name)([p])
    for _ in range(2):
        p.grad = Tensor(np.ones(4))
        optimizer.step()
    assert (p.data < 1).all()


# ------------------------------------------------------------------------------------------ threads


def all_kernels():
    """The results of each parallel kernel on arrays of some hundred thousand numbers."""
    x, given_ = normal(3000, 130), normal(3000, 130, seed=1)
    constants = normal(4, 130, seed=2)
    yield from normalization.statistics(x, 1e-5)
    yield normalization.normalise(x, *constants)
    yield normalization.affine(x, *constants[:2])
    yield from normalization.gradient_sums(given_, x, *constants[:2])
    yield normalization.gradient(given_, x, *constants[[0, 1, 2, 3, 0]])
    image, geometry = x.reshape(10, 15, 20, 130), ((3, 3), (2, 2), (1, 1))
    maximum, winner = float_pooling.max_pool2d(image, geometry)
    yield from (maximum, winner)
    yield float_pooling.max_unpool2d(maximum, winner, (15, 20), geometry)
    yield float_pooling.avg_pool2d(image, geometry)
    yield float_pooling.avg_unpool2d(maximum, (15, 20), geometry)
    flat = x.reshape(-1)
    yield straight_through.sign(flat)
    yield straight_through.gated_gradient(given_.reshape(-1), flat, -1, 1)
    yield straight_through.tent_gradient(given_.reshape(-1), flat)
    yield activations.leaky_relu(flat, 0.1)
    yield activations.leaky_relu_gradient(given_.reshape(-1), flat, 0.1)
    for name in ("two_lines", "two_values"):
        yield getattr(activations, name)(x, constants)
        yield from getattr(activations, f"{name}_gradient")(given_, x, constants)
    weight, mean, square = flat.copy(), flat.copy(), flat * flat
    step = optimizers.AdamStep(0.1, 0.9, 0.99, root=0.5, eps=1e-8, shrink=0.9, clip=1.0)
    optimizers.adam(weight, given_.reshape(-1), mean, square, step)
    yield from (weight, mean, square)


@compiled
def test_results_do_not_depend_on_the_threads(monkeypatch):
    with threads.num_threads(1):
        expected = list(all_kernels())
    for module in (activations, normalization, float_pooling, straight_through, optimizers):
        monkeypatch.setattr(module, "_SPEED", 1e-12)  # all through the parallel kernels
    monkeypatch.setattr(threads, "count", lambda: 2)
    for n in {1, min(2, numba.config.NUMBA_NUM_THREADS), numba.config.NUMBA_NUM_THREADS}:
        with threads.num_threads(n):
            for a, b in zip(all_kernels(), expected, strict=True):
                assert_identical(a, b)


# ------------------------------------------------------------------------- this file, run otherwise


@compiled
def test_kernels_run_uncompiled():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    environment = {**os.environ, "HYPOTHESIS_PROFILE": "ci", "NUMBA_DISABLE_JIT": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
