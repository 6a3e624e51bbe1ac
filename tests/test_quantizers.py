"""Quantizers: what they compute, and that the pseudo-gradient is the slope of the surrogate."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinybnn import quantizers
from tinybnn.quantizers import ApproxSign, Quantizer, SteSign, SwishSign, sign
from tinybnn.tensor import Tensor, grad
from tinybnn.testing import assert_identical, gradcheck, gradgradcheck


def swish_factor(beta):
    return lambda x: beta * (2 - beta * x * np.tanh(beta * x / 2)) / (1 + np.cosh(beta * x))


CASES = {  # quantizer, kinks of the surrogate's slope, pseudo-gradient as in the paper
    "ste_sign": (SteSign(), [-1, 1], lambda x: 1.0 * (np.abs(x) <= 1)),
    "ste_sign_clip": (SteSign(1.3), [-1.3, 1.3], lambda x: 1.0 * (np.abs(x) <= 1.3)),
    "approx_sign": (ApproxSign(), [-1, 0, 1], lambda x: np.maximum(2 - 2 * np.abs(x), 0)),
    "swish_sign": (SwishSign(), [], swish_factor(5.0)),
    "swish_sign_beta": (SwishSign(1.7), [], swish_factor(1.7)),
}
each_quantizer = pytest.mark.parametrize("name", CASES)


def samples(kinks, *shape):
    """From -3 to 3; what lies near a kink is moved out to 0.05, far beyond gradcheck's 1e-6."""
    x = np.random.default_rng(0).uniform(-3, 3, shape)
    for kink in kinks:
        x = np.where(np.abs(x - kink) < 0.05, kink + np.where(x < kink, -0.05, 0.05), x)
    return x


@each_quantizer
def test_forward_is_the_sign(name):
    quantizer, _, _ = CASES[name]
    x = samples([], 4, 5).astype(np.float32)
    y = quantizer(Tensor(x))
    assert y.dtype == np.float32
    assert_identical(y, np.where(x >= 0, 1.0, -1.0))
    assert_identical(quantizer(x), y)
    assert set(np.unique(y.data)) <= set(quantizer.values)


@each_quantizer
def test_pseudo_gradient_is_the_formula(name):
    quantizer, _, formula = CASES[name]
    x = samples([], 200)
    np.testing.assert_allclose(quantizer.pseudo_gradient(x), formula(x), 1e-9, 1e-12)
    incoming = np.random.default_rng(1).standard_normal(200)
    t = Tensor(x, requires_grad=True)
    quantizer(t).backward(incoming)
    np.testing.assert_allclose(t.grad.data, incoming * formula(x), 1e-9, 1e-12)


@each_quantizer
@pytest.mark.parametrize("shape", [(), (50,), (2, 3, 4, 2)], ids=str)
def test_pseudo_gradient_is_the_slope_of_the_surrogate(name, shape):
    quantizer, kinks, _ = CASES[name]
    x = np.asarray(samples(kinks, *shape))
    gradcheck(quantizer, [x], surrogate=quantizer.surrogate)
    gradcheck(quantizer.surrogate, [x])
    gradgradcheck(quantizer, [x])
    gradgradcheck(quantizer.surrogate, [x])
    gradcheck(quantizer, [np.asarray(x.T)], surrogate=quantizer.surrogate)
    gradcheck(quantizer, [np.repeat(x[..., None], 2, -1)[..., 0]], surrogate=quantizer.surrogate)


@each_quantizer
def test_estimator_is_not_the_slope_of_the_sign(name):
    quantizer, kinks, _ = CASES[name]
    with pytest.raises(AssertionError, match="last operation Quantize"):
        gradcheck(quantizer, [samples(kinks, 50)])


@each_quantizer
def test_rule_is_the_same_recorded_and_on_arrays(name):
    quantizer, _, _ = CASES[name]
    x = samples([], 30)
    recorded = quantizer.pseudo_gradient(Tensor(x, requires_grad=True))
    assert_identical(recorded, quantizer.pseudo_gradient(x))
    assert_identical(quantizer.surrogate(Tensor(x)), quantizer.surrogate(x))


def test_slopes_at_corners():
    x = np.array([-1.0, -0.0, 0.0, 1.0])
    assert_identical(SteSign().pseudo_gradient(x), [1.0, 1.0, 1.0, 1.0])  # borders learn
    assert_identical(SteSign().pseudo_gradient(np.nextafter(x[[0, 3]], [-2, 2])), [0.0, 0.0])
    assert_identical(ApproxSign().pseudo_gradient(x), [0.0, 2.0, 2.0, 0.0])
    assert SwishSign(3.0).pseudo_gradient(np.zeros(1)) == 3.0


def test_surrogates_run_from_minus_one_to_one():
    far = np.array([-1e4, -50.0, 50.0, 1e4])
    for quantizer, _, _ in CASES.values():
        assert quantizer.surrogate(np.zeros(1)) == 0
        if not isinstance(quantizer, SteSign):
            assert_identical(quantizer.surrogate(far), sign(far))


# ---------------------------------------------------------------------------- special values

SPECIAL = [0.0, -0.0, np.nan, np.inf, -np.inf, 1e4, -1e4, 1e30, -1e30, 5e-324, -5e-324, 1e-30]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@each_quantizer
def test_special_values(name, dtype):
    """No warnings either: pytest turns them into errors."""
    quantizer, _, _ = CASES[name]
    x = np.array(SPECIAL, np.float64).astype(dtype)
    t = Tensor(x, requires_grad=True)
    y = quantizer(t)
    assert_identical(y, np.where(x >= 0, 1.0, -1.0))
    assert y.data[2] == -1  # NaN
    slope = grad(y, t, np.ones_like(x), create_graph=True)
    assert slope.dtype == dtype
    finite = ~np.isnan(x)
    far = np.abs(np.where(finite, x, 0)) > 1e3
    assert np.isfinite(slope.data[finite]).all()
    assert_identical(slope.data[far], np.zeros(far.sum()))
    assert not np.isnan(quantizer.surrogate(x)[finite]).any()
    if slope.requires_grad:  # the slope of a step does not depend on x
        slope.backward(np.ones_like(x))


def test_sign():
    assert_identical(sign(np.array(SPECIAL[:5])), [1.0, 1.0, -1.0, 1.0, -1.0])
    assert sign(np.ones(2, np.float32)).dtype == np.float32
    assert sign(np.ones(2)).dtype == np.float64
    for integers in (np.array([3, 0, -3]), np.array([3, 0, -3], np.int8), [3, 0, -3]):
        assert sign(integers).dtype == np.float32
        assert_identical(sign(integers), [1.0, 1.0, -1.0])


@given(st.lists(st.floats(width=32), min_size=1, max_size=20))
def test_sign_is_plus_one_exactly_where_x_is_at_least_zero(values):
    x = np.array(values, np.float32)
    assert_identical(sign(x), [1.0 if v >= 0 else -1.0 for v in values])


@given(st.floats(0.1, 20), st.floats(-30, 30))
def test_swish_factor_of_any_beta(beta, x):
    np.testing.assert_allclose(
        SwishSign(beta).pseudo_gradient(np.array([x])),
        swish_factor(beta)(np.array([x])),
        1e-7,
        1e-9,
    )


def test_float32_stays_float32():
    for quantizer, _, _ in CASES.values():
        x = Tensor(np.linspace(-2, 2, 9, dtype=np.float32), requires_grad=True)
        for y in (quantizer(x), quantizer.surrogate(x), quantizer.pseudo_gradient(x)):
            assert y.dtype == np.float32
        g = grad(quantizer(x).sum(), x, create_graph=True)
        assert g.dtype == np.float32


# ------------------------------------------------------------------------------------- names


def test_get():
    assert quantizers.get(None) is None
    for name in ("ste_sign", "approx_sign", "swish_sign"):
        quantizer = quantizers.get(name)
        assert quantizer is getattr(quantizers, name)
        assert quantizers.get(quantizer) is quantizer


@pytest.mark.parametrize("wrong", ["sign", "", 3, SteSign, [], np.sign])
def test_get_of_something_else(wrong):
    with pytest.raises(
        ValueError, match=r"quantizer: expects one of \['approx_sign', 'ste_sign', "
    ):
        quantizers.get(wrong)


@pytest.mark.parametrize("value", [0, -1.0, float("nan")])
def test_settings_are_positive(value):
    with pytest.raises(ValueError, match="SteSign: clip_value must be positive"):
        SteSign(value)
    with pytest.raises(ValueError, match="SwishSign: beta must be positive"):
        SwishSign(value)


def test_repr():
    assert repr(SteSign()) == "SteSign(clip_value=1.0)"
    assert repr(ApproxSign()) == "ApproxSign()"
    assert repr(SwishSign(2.0)) == "SwishSign(beta=2.0)"


def test_a_quantizer_of_ones_own():
    class Shifted(Quantizer):
        def forward(self, x):
            return sign(x - 0.5)

        def pseudo_gradient(self, x):
            return 1.0 + 0.0 * x

        def surrogate(self, x):
            return x - 0.5

    gradcheck(Shifted(), [samples([], 5)], surrogate=Shifted().surrogate)
    with pytest.raises(NotImplementedError):
        Quantizer()(Tensor([1.0]))
