"""Quantizers: their values; the pseudo-gradient is the derivative of the surrogate."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinybnn import nn, quantizers
from tinybnn.quantizers import (
    ApproxSign,
    BitNetTernary,
    DoReFaActivation,
    DoReFaWeight,
    EdeSign,
    MagnitudeAwareSign,
    Quantizer,
    SteHeaviside,
    SteSign,
    SteTern,
    SwishSign,
    sign,
)
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
    "ede_sign": (EdeSign(), [0], lambda x: 1 - np.tanh(x) ** 2),
    "ede_sign_early": (EdeSign(0.01), [0], lambda x: 1 - np.tanh(0.01 * x) ** 2),  # k = 100
    "ede_sign_late": (EdeSign(4.0), [0], lambda x: 4 * (1 - np.tanh(4 * x) ** 2)),
}
each_quantizer = pytest.mark.parametrize("name", CASES)


def samples(kinks, *shape):
    """From -3 to 3; values near a kink are moved 0.05 away, far beyond gradcheck's 1e-6."""
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
        if isinstance(quantizer, EdeSign):
            np.testing.assert_allclose(quantizer.surrogate(1e3 * far), quantizer.k * sign(far))
        elif not isinstance(quantizer, SteSign):
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
    far = np.abs(np.where(finite, x, 0)) > (1e5 if name == "ede_sign_early" else 1e3)
    assert np.isfinite(slope.data[finite]).all()
    assert np.all(slope.data[far] == 0)
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


# --------------------------------------------------------------------- the slope of the schedule


@given(st.floats(1e-3, 10), st.floats(-20, 20))
def test_ede_factor_of_any_t(t, x):
    np.testing.assert_allclose(
        EdeSign(t).pseudo_gradient(np.array([x])),
        max(1 / t, 1) * t * (1 - np.tanh(t * np.array([x])) ** 2),
        1e-7,
        1e-9,
    )


def test_ede_sign_goes_from_a_line_to_the_sign():
    quantizer = EdeSign(1e-3)
    x = Tensor(np.linspace(-2, 2, 9, dtype=np.float32), requires_grad=True)
    np.testing.assert_allclose(quantizer.surrogate(x).data, x.data, 1e-3, 1e-4)
    np.testing.assert_allclose(quantizer.pseudo_gradient(x.data), np.ones(9), 1e-5)
    slopes = []
    for t in np.logspace(-3, 1, 5):  # NumPy numbers, as a schedule sets them
        quantizer.t = t
        y = quantizer(x)
        slope = grad(y.sum(), x, create_graph=True)
        assert y.dtype == slope.dtype == quantizer.surrogate(x).dtype == np.float32
        assert quantizer.pseudo_gradient(x.data).dtype == np.float32
        assert quantizer.surrogate(x.data).dtype == np.float32
        slopes.append(slope.data)
    assert (np.diff([s[4] for s in slopes]) >= 0).all()  # at 0 the slope increases
    assert (np.diff([s[0] for s in slopes]) <= 0).all()  # at -2 it decreases
    np.testing.assert_allclose(quantizer.surrogate(x.data), np.tanh(10 * x.data), 1e-5, 1e-6)


# ------------------------------------------------------------------------ other values than ±1


def round_half_to_even(x):
    return np.array([float(round(v)) for v in np.ravel(x)]).reshape(np.shape(x))


def per_filter(values, x):
    return values.reshape(-1, *(1,) * (x.ndim - 1))


def magnitudes(x):
    return per_filter(np.array([np.mean(np.abs(f)) for f in x]), x)


def ternary(x, delta):
    return np.where(x > delta, 1.0, np.where(x < -delta, -1.0, 0.0))


def inside(x, clip):
    return 1.0 * (np.abs(x) <= clip)


def dorefa(x, bits):
    z = np.tanh(x) / (2 * np.abs(np.tanh(x)).max()) + 0.5
    return 2 * round_half_to_even(z * (2**bits - 1)) / (2**bits - 1) - 1


OTHERS = {  # quantizer, kinks of the surrogate's slope, forward, pseudo-gradient
    "ste_heaviside": (SteHeaviside(), [-1, 1], lambda x: 1.0 * (x > 0), lambda x: inside(x, 1)),
    "ste_heaviside_clip": (
        SteHeaviside(0.7), [-0.7, 0.7], lambda x: 1.0 * (x > 0), lambda x: inside(x, 0.7)
    ),
    "ste_tern": (
        SteTern(), [-1, 1], lambda x: ternary(x, 0.7 * np.mean(np.abs(x))), lambda x: inside(x, 1)
    ),
    "ste_tern_fixed": (
        SteTern(threshold=0.4, clip_value=1.2), [-1.2, 1.2], lambda x: ternary(x, 0.4),
        lambda x: inside(x, 1.2),
    ),
    "magnitude_aware_sign": (
        MagnitudeAwareSign(), [-1, 1], lambda x: np.where(x >= 0, 1, -1) * magnitudes(x),
        lambda x: inside(x, 1) * magnitudes(x),
    ),
    "magnitude_aware_sign_unscaled": (
        MagnitudeAwareSign(1.5, scale_gradient=False), [-1.5, 1.5],
        lambda x: np.where(x >= 0, 1, -1) * magnitudes(x), lambda x: inside(x, 1.5),
    ),
    "bitnet_ternary": (
        BitNetTernary(), [],
        lambda x: np.clip(round_half_to_even(x / np.mean(np.abs(x))), -1, 1) * np.mean(np.abs(x)),
        np.ones_like,
    ),
    "dorefa_activation": (
        DoReFaActivation(), [0, 1], lambda x: round_half_to_even(3 * np.clip(x, 0, 1)) / 3,
        lambda x: 1.0 * ((x >= 0) & (x <= 1)),
    ),
    "dorefa_activation_4": (
        DoReFaActivation(4), [0, 1], lambda x: round_half_to_even(15 * np.clip(x, 0, 1)) / 15,
        lambda x: 1.0 * ((x >= 0) & (x <= 1)),
    ),
    "dorefa_weight": (
        DoReFaWeight(), [0], lambda x: dorefa(x, 2),
        lambda x: (1 - np.tanh(x) ** 2) / np.abs(np.tanh(x)).max(),
    ),
    "dorefa_weight_5": (
        DoReFaWeight(5), [0], lambda x: dorefa(x, 5),
        lambda x: (1 - np.tanh(x) ** 2) / np.abs(np.tanh(x)).max(),
    ),
}  # fmt: skip
each_other = pytest.mark.parametrize("name", OTHERS)


@pytest.fixture
def scales_of_zero_gradient(monkeypatch):
    """Hold mean |x| and max |tanh x| fixed: to the gradient they are constants."""

    def hold(x):
        m, largest = quantizers.magnitude(x), DoReFaWeight().largest(x)
        monkeypatch.setattr(quantizers, "magnitude", lambda x: m)
        monkeypatch.setattr(DoReFaWeight, "largest", lambda self, x: largest)

    return hold


@each_other
@pytest.mark.parametrize("shape", [(50,), (4, 5), (3, 2, 3, 2)], ids=str)
def test_other_forward_and_pseudo_gradient(name, shape):
    quantizer, _, forward, pseudo_gradient = OTHERS[name]
    x = samples([], *shape)
    np.testing.assert_allclose(quantizer(x), forward(x), 1e-12, 1e-12)
    assert_identical(quantizer(Tensor(x)), quantizer(x))
    np.testing.assert_allclose(quantizer.pseudo_gradient(x), pseudo_gradient(x), 1e-9, 1e-12)
    t = Tensor(x, requires_grad=True)
    incoming = np.random.default_rng(1).standard_normal(shape)
    slope = grad(quantizer(t), t, incoming)
    np.testing.assert_allclose(slope.data, incoming * pseudo_gradient(x), 1e-9, 1e-12)
    recorded = quantizer.pseudo_gradient(Tensor(x, requires_grad=True))
    assert_identical(recorded, quantizer.pseudo_gradient(x))
    assert_identical(quantizer.surrogate(Tensor(x)), quantizer.surrogate(x))


@each_other
@pytest.mark.parametrize("shape", [(50,), (4, 5), (3, 2, 3, 2)], ids=str)
def test_other_pseudo_gradient_is_the_slope_of_the_surrogate(name, shape, scales_of_zero_gradient):
    quantizer, kinks, _, _ = OTHERS[name]
    x = samples(kinks, *shape)
    scales_of_zero_gradient(x)
    gradcheck(quantizer, [x], surrogate=quantizer.surrogate)
    gradcheck(quantizer.surrogate, [x])
    gradgradcheck(quantizer, [x])
    gradgradcheck(quantizer.surrogate, [x])
    # Other strides; a filter stays a filter.
    gradcheck(quantizer, [np.asfortranarray(x)], surrogate=quantizer.surrogate)
    gradcheck(quantizer, [np.repeat(x[..., None], 2, -1)[..., 0]], surrogate=quantizer.surrogate)


def test_surrogates_with_the_scale_of_another_x():
    """The arguments that explicitly hold a scale fixed."""
    x, other = samples([-1, 1], 3, 4), 2 * samples([], 3, 4)[::-1]
    quantizer = MagnitudeAwareSign()
    np.testing.assert_allclose(
        quantizer.surrogate(x, factor=magnitudes(other)), np.clip(x, -1, 1) * magnitudes(other)
    )
    largest = DoReFaWeight().largest(other)
    np.testing.assert_allclose(
        DoReFaWeight().surrogate(x, largest=largest), np.tanh(x) / np.tanh(np.abs(other).max())
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@each_other
def test_other_special_values(name, dtype):
    """No warnings either: pytest turns them into errors."""
    quantizer, _, _, _ = OTHERS[name]
    x = np.array([0, -0.0, 1e4, -1e4, 5e-324, -5e-324, 1e-30, 0.5], dtype)
    if name.startswith(("ste", "dorefa_activation")):  # the others have a mean, infinite here
        x = np.concatenate([x, np.array([np.inf, -np.inf], dtype)])
    t = Tensor(x, requires_grad=True)
    y = quantizer(t)
    slope = grad(y, t, np.ones_like(x), create_graph=True)
    assert y.dtype == slope.dtype == quantizer.surrogate(t).dtype == dtype
    assert np.isfinite(y.data).all()
    assert np.isfinite(slope.data).all()
    zeros = np.zeros((2, 3), dtype)
    for array in (zeros, -zeros, np.concatenate([zeros, zeros + dtype(0.5)])):
        t = Tensor(array, requires_grad=True)
        y = quantizer(t)
        slope = grad(y, t, np.ones_like(array))
        for values in (y, slope, quantizer.surrogate(array), quantizer.levels()(array),
                       quantizer.levels().pseudo_gradient(array)):  # fmt: skip
            assert np.isfinite(values.data).all()
            assert values.dtype == dtype
    assert quantizer(np.array([[np.nan, 1.0]], dtype)).dtype == dtype


def test_nan_and_zero():
    nan, zeros = np.array([np.nan, 1.0]), np.array([0.0, -0.0])
    assert_identical(SteHeaviside()(nan), [0.0, 1.0])
    assert_identical(SteHeaviside()(zeros), [0.0, 0.0])
    assert_identical(SteTern(0.0)(nan), [0.0, 1.0])
    assert_identical(SteTern(0.0)(zeros), [0.0, 0.0])
    assert_identical(MagnitudeAwareSign()(zeros[None]), [[0.0, 0.0]])
    assert_identical(MagnitudeAwareSign().levels()(np.append(zeros, np.nan)), [1.0, 1.0, -1.0])
    assert_identical(BitNetTernary()(zeros), zeros)
    assert_identical(DoReFaActivation()(zeros), zeros)


def test_borders_of_the_ternary_levels():
    x = np.array([0.5, -0.5, np.nextafter(0.5, 1), 0.4])
    assert_identical(SteTern(threshold=0.5)(x), [0.0, 0.0, 1.0, 0.0])  # |x| > threshold
    x = np.array([0.5, -0.5, 1.5, -1.5])  # mean 1: a half rounds to even, 0
    assert_identical(BitNetTernary()(x), [0.0, -0.0, 1.0, -1.0])
    tiny = np.full(3, 1e-9)  # the mean magnitude is at least 1e-5
    assert_identical(BitNetTernary()(tiny), np.zeros(3))


@each_other
def test_other_float32_stays_float32(name):
    quantizer = OTHERS[name][0]
    x = Tensor(np.linspace(-2, 2, 9, dtype=np.float32).reshape(3, 3), requires_grad=True)
    for q in (quantizer, quantizer.levels()):
        for y in (q(x), q.surrogate(x), q.pseudo_gradient(x), q.pseudo_gradient(x.data)):
            assert y.dtype == np.float32
        assert grad(q(x).sum(), x, create_graph=True).dtype == np.float32
    scale = quantizer.scale(x.data)
    assert scale is None or scale.dtype == np.float32


# ----------------------------------------------------------------------------- levels and scale

ALL = {name: case[0] for name, case in {**CASES, **OTHERS}.items()}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shape", [(6, 4), (3, 2, 3, 2)], ids=str)
def test_scale_times_levels_is_the_quantizer(name, shape):
    quantizer = ALL[name]
    x = samples([], *shape)
    x[0] = 0  # a filter of zeros
    scale, levels = quantizer.scale(x), quantizer.levels()
    if scale is None:
        assert levels is quantizer
        scale = np.ones(1)
    assert scale.shape in ((1,), (shape[0],))
    values = levels(x)
    assert_identical(values * per_filter(scale, x), quantizer(x))
    if levels.values is not None:
        assert levels.values == quantizer.values
        assert set(np.unique(values)) <= set(levels.values)
    # The gradient of scale * levels(x), scale held constant, is that of the quantizer.
    t = Tensor(x[1:], requires_grad=True)
    incoming = np.random.default_rng(1).standard_normal(x[1:].shape)
    scale_of_rest = quantizer.scale(x[1:])
    kept = 1.0 if scale_of_rest is None else Tensor(per_filter(scale_of_rest, x))
    through_levels = grad(levels(t) * kept, t, incoming)
    np.testing.assert_allclose(through_levels.data, grad(quantizer(t), t, incoming).data, 1e-12)


def test_levels_of_a_filter_of_zeros_have_a_finite_slope():
    for quantizer in (MagnitudeAwareSign(), MagnitudeAwareSign(scale_gradient=False)):
        slope = quantizer.levels().pseudo_gradient(np.zeros((2, 3)))
        assert np.isfinite(slope).all()


@pytest.mark.parametrize("name", ["magnitude_aware_sign", "bitnet_ternary"])
def test_slope_of_levels_is_that_of_their_surrogate(name, scales_of_zero_gradient):
    levels = quantizers.get(name).levels()
    x = samples([-1, 1], 3, 4)
    if name == "magnitude_aware_sign":
        scales_of_zero_gradient(x)
        gradcheck(levels, [x], surrogate=levels.surrogate)
        gradgradcheck(levels, [x])
    factor = quantizers.get(name).pseudo_gradient(x) / per_filter(levels.scaled.scale(x), x)
    np.testing.assert_allclose(levels.pseudo_gradient(x), factor, 1e-12)
    assert levels.scale(x) is None
    assert levels.levels() is levels


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_dorefa_has_2_to_the_bits_levels(bits):
    x = np.linspace(-3, 3, 4001)
    activations, weights = DoReFaActivation(bits)(x), DoReFaWeight(bits)(x)
    np.testing.assert_allclose(np.unique(activations), np.linspace(0, 1, 2**bits), 1e-12)
    np.testing.assert_allclose(np.unique(weights), np.linspace(-1, 1, 2**bits), 1e-12, 1e-12)
    assert (np.diff(activations) >= 0).all()
    assert (np.diff(weights) >= 0).all()
    assert np.abs(activations - np.clip(x, 0, 1)).max() <= 0.5 / (2**bits - 1) + 1e-12


# ------------------------------------------------------------------------------------- names

NAMES = {
    "approx_sign": ApproxSign,
    "bitnet_ternary": BitNetTernary,
    "dorefa_activation": DoReFaActivation,
    "dorefa_weight": DoReFaWeight,
    "ede_sign": EdeSign,
    "magnitude_aware_sign": MagnitudeAwareSign,
    "ste_heaviside": SteHeaviside,
    "ste_sign": SteSign,
    "ste_tern": SteTern,
    "swish_sign": SwishSign,
}


def test_get():
    assert quantizers.get(None) is None
    for name, kind in NAMES.items():
        quantizer = quantizers.get(name)
        assert type(quantizer) is kind
        assert repr(quantizer) == repr(kind())
        assert quantizers.get(quantizer) is quantizer
        assert quantizers.get(name) is not quantizer  # layers do not share settings
    for name in ("ste_sign", "approx_sign", "swish_sign"):
        assert type(getattr(quantizers, name)) is NAMES[name]


@pytest.mark.parametrize("name", NAMES)
def test_quantizers_can_be_copied(name):
    x = samples([], 3, 4)
    quantizer = quantizers.get(name)
    for twin in (copy.deepcopy(quantizer), pickle.loads(pickle.dumps(quantizer))):
        assert_identical(twin(x), quantizer(x))
        assert repr(twin) == repr(quantizer)


@pytest.mark.parametrize("wrong", ["sign", "", 3, SteSign, [], np.sign])
def test_get_of_something_else(wrong):
    with pytest.raises(
        ValueError, match=r"quantizer: expects one of \['approx_sign', 'bitnet_ternary', "
    ) as error:
        quantizers.get(wrong)
    assert str(sorted(NAMES)) in str(error.value)
    assert str(error.value).endswith(f"a Quantizer or None, got {wrong!r}")


@pytest.mark.parametrize("value", [0, -1.0, float("nan")])
def test_settings_are_positive(value):
    with pytest.raises(ValueError, match="SteSign: clip_value must be positive"):
        SteSign(value)
    with pytest.raises(ValueError, match="SwishSign: beta must be positive"):
        SwishSign(value)
    for kind in (SteHeaviside, SteTern, MagnitudeAwareSign):
        with pytest.raises(ValueError, match=f"{kind.__name__}: clip_value must be positive"):
            kind(clip_value=value)
    with pytest.raises(ValueError, match="EdeSign: t must be positive"):
        EdeSign(value)


def test_settings_of_ternary_and_dorefa():
    with pytest.raises(ValueError, match=r"SteTern: threshold must be >= 0, got -0.1"):
        SteTern(-0.1)
    for kind in (DoReFaActivation, DoReFaWeight):
        for bits in (0, 17, 2.0, "2"):
            with pytest.raises(ValueError, match=f"{kind.__name__}: bits must be an int in 1..16"):
                kind(bits)


def test_repr():
    assert repr(SteSign()) == "SteSign(clip_value=1.0)"
    assert repr(ApproxSign()) == "ApproxSign()"
    assert repr(SwishSign(2.0)) == "SwishSign(beta=2.0)"
    assert repr(SteTern()) == "SteTern(threshold=None, clip_value=1.0)"
    assert repr(EdeSign(2.0)) == "EdeSign(t=2.0)"


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


# --------------------------------------------------------------------------- quantizers of users


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape)


class TanhSign(quantizers.Quantizer):
    """A quantizer as a user writes it, with NumPy's functions."""

    def forward(self, x):
        return np.where(x >= 0, 1.0, -1.0).astype(x.dtype)

    def pseudo_gradient(self, x):
        return 1.0 - np.tanh(x) ** 2

    def surrogate(self, x):
        return np.tanh(x)


class ClipSign(TanhSign):
    def pseudo_gradient(self, x):
        return 1.0 * (np.abs(x) <= 1)

    def surrogate(self, x):
        return np.clip(x, -1, 1)


class WhereSign(TanhSign):
    def pseudo_gradient(self, x):
        return np.where(np.abs(x) < 1, 2 - 2 * np.abs(x), 0.0)

    def surrogate(self, x):
        return np.where(np.abs(x) < 1, 2 * x - x * np.abs(x), np.sign(x))


class ArctanSign(TanhSign):
    def pseudo_gradient(self, x):
        return 1.0 / (1.0 + np.square(x))

    def surrogate(self, x):
        return np.arctan(x)


@pytest.mark.parametrize("make", [TanhSign, ClipSign, WhereSign, ArctanSign])
def test_a_quantizer_written_with_numpy(make):
    q = make()
    gradcheck(q, normal(3, 4), surrogate=q.surrogate)
    layer = nn.BinaryLinear(6, 3, input_quantizer=q, weight_quantizer=q)
    x = Tensor(normal(2, 6).astype(np.float32), requires_grad=True)
    layer(x).sum().backward()
    assert np.any(x.grad.data != 0) and np.any(layer.weight.grad.data != 0)
    assert set(np.unique(layer.binary_weight())) <= {-1.0, 1.0}


def test_a_smooth_function_that_loses_its_gradient_says_so():
    with pytest.raises(RuntimeError, match=r"no gradient rule.*use tinybnn's function of that"):
        gradcheck(lambda x: np.where(x > 0, x, 0), normal(3, 4))


@pytest.mark.parametrize("method", ["forward", "pseudo_gradient", "surrogate"])
def test_a_forgotten_method_of_a_quantizer(method):
    class Forgetful(quantizers.Quantizer):
        pass

    for name in {"forward", "pseudo_gradient", "surrogate"} - {method}:
        setattr(Forgetful, name, getattr(TanhSign, name))
    q, x = Forgetful(), Tensor(normal(3), requires_grad=True)
    with pytest.raises(
        NotImplementedError, match=rf"Forgetful: write the method {method}\(self, x\)"
    ):
        q(x).sum().backward()
        q.surrogate(x)
