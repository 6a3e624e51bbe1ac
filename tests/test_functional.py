"""Activations, convolution, pooling, normalisation and losses, checked by loops and differences."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinybnn import functional as F
from tinybnn import quantizers
from tinybnn.tensor import Tensor, grad, manual_seed
from tinybnn.testing import assert_identical, gradcheck, gradgradcheck


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def away_from(kinks, *shape, seed=0, gap=0.05):
    """Normal values, those near a kink moved to a distance of `gap` (gradcheck's eps: 1e-6)."""
    x = normal(*shape, seed=seed)
    for kink in kinks:
        x = np.where(np.abs(x - kink) < gap, kink + np.where(x < kink, -gap, gap), x)
    return x


def distinct(*shape, seed=0):
    """Values at least 0.1 apart, so that no difference of 1e-6 changes which one is the largest."""
    order = np.random.default_rng(seed).permutation(int(np.prod(shape)))
    return 0.1 * (order.reshape(shape) - order.size / 2)


def channels_last(x):
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def strided(x):
    """The same values with gaps between them in memory and the first axis reversed."""
    memory = np.full((*x.shape[:-1], 2 * x.shape[-1]), np.nan)
    view = memory[::-1, ..., ::2]
    view[...] = x
    return view


LAYOUTS = {
    "contiguous": np.ascontiguousarray,
    "channels_last": lambda x: channels_last(x) if x.ndim == 4 else np.asfortranarray(x),
    "strided": strided,
    "swapped": lambda x: np.ascontiguousarray(x.swapaxes(0, -1)).swapaxes(0, -1),
}
layouts = pytest.mark.parametrize("lay_out", LAYOUTS.values(), ids=LAYOUTS)


def check(function, *arrays):
    gradcheck(function, arrays)
    gradgradcheck(function, arrays)


def close(actual, expected, rtol=1e-12, atol=1e-12):
    np.testing.assert_allclose(actual.data, expected, rtol, atol)


# ------------------------------------------------------------------------------ activations

ACTIVATIONS = {
    "relu": (F.relu, [0], lambda x: np.maximum(x, 0)),
    "hardtanh": (F.hardtanh, [-1, 1], lambda x: np.clip(x, -1, 1)),
    "hardtanh_limits": (
        lambda x: F.hardtanh(x, -0.5, 2.0), [-0.5, 2], lambda x: np.clip(x, -0.5, 2)
    ),
    "sigmoid": (F.sigmoid, [], lambda x: 1 / (1 + np.exp(-x))),
    "tanh": (F.tanh, [], np.tanh),
    "leaky_relu": (F.leaky_relu, [0], lambda x: np.where(x > 0, x, 0.01 * x)),
    "leaky_relu_slope": (
        lambda x: F.leaky_relu(x, -0.3), [0], lambda x: np.where(x > 0, x, -0.3 * x)
    ),
    "softplus": (F.softplus, [], lambda x: np.log(1 + np.exp(x))),
    "softplus_beta": (
        lambda x: F.softplus(x, 2.5), [], lambda x: np.log(1 + np.exp(2.5 * x)) / 2.5
    ),
    "prelu": (
        lambda x: F.prelu(x, np.array([0.25], np.float32)), [0],
        lambda x: np.where(x > 0, x, 0.25 * x),
    ),
}  # fmt: skip


@layouts
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(name, lay_out):
    function, kinks, reference = ACTIVATIONS[name]
    x = lay_out(2 * away_from([k / 2 for k in kinks], 2, 3, 2, 2))
    close(function(Tensor(x)), reference(x))
    check(function, x)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_of_a_number(name):
    function, _, reference = ACTIVATIONS[name]
    check(function, np.array(0.3))
    close(function(Tensor(0.3, dtype=np.float64)), np.array(reference(0.3)))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_keeps_dtype_and_order_in_memory(name):
    function, _, _ = ACTIVATIONS[name]
    x = Tensor(channels_last(normal(2, 3, 4, 5).astype(np.float32)), requires_grad=True)
    y = function(x)
    assert y.dtype == grad(y.sum(), x, create_graph=True).dtype == np.float32
    assert y.data.transpose(0, 2, 3, 1).flags.c_contiguous


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.leaky_relu(x, np.float64(0.1)),
        lambda x: F.softplus(x, np.float64(2.0)),
        lambda x: F.hardtanh(x, np.float64(-0.5), np.float64(0.5)),
    ],
)
def test_numpy_numbers_as_settings_leave_float32_as_it_is(function):
    x = Tensor(normal(3).astype(np.float32), requires_grad=True)
    y = function(x)
    assert y.dtype == grad(y.sum(), x, create_graph=True).dtype == np.float32


@layouts
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (2, 3, 4, 2)], ids=str)
def test_prelu(shape, count, lay_out):
    x, weight = lay_out(away_from([0], *shape)), normal(count, seed=1)
    slope = weight.reshape(1, -1, *(1,) * (len(shape) - 2))
    close(F.prelu(Tensor(x), Tensor(weight)), np.where(x > 0, x, slope * x))
    check(F.prelu, x, weight)


def test_prelu_without_channels():
    check(F.prelu, away_from([0], 4), normal(1, seed=1))
    check(F.prelu, np.array(-0.3), normal(1, seed=1))
    assert F.prelu(Tensor(-2.0), Tensor([0.5])).shape == ()
    assert F.prelu(Tensor(np.zeros((0, 3))), Tensor(normal(3))).shape == (0, 3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softplus_of_large_values(dtype):
    x = Tensor(
        np.array([1e4, -1e4, 1e30, -1e30, np.inf, -np.inf, 0, 30, -30], dtype), requires_grad=True
    )
    y = F.softplus(x)
    expected = [1e4, 0, 1e30, 0, np.inf, 0, np.log(2), 30, np.exp(-30)]
    np.testing.assert_allclose(y.data, expected, 1e-6, 0)
    slope = grad(y, x, np.ones(9), create_graph=True)
    np.testing.assert_allclose(slope.data, F.sigmoid(x).data)
    slope.backward(np.ones(9))
    assert np.isfinite(x.grad.data).all()
    np.testing.assert_allclose(F.softplus(x[:4], 3.0).data, [1e4, 0, 1e30, 0])


@pytest.mark.parametrize("dim", [0, 1, -1, -3])
@pytest.mark.parametrize("function", [F.softmax, F.log_softmax])
def test_softmax(function, dim):
    x = normal(2, 3, 4)
    expected = np.exp(x) / np.exp(x).sum(dim, keepdims=True)
    close(function(Tensor(x), dim), np.log(expected) if function is F.log_softmax else expected)
    check(lambda x: function(x, dim), x)
    check(lambda x: function(x, dim), strided(x))


def slope_at(function, value):
    x = Tensor([value], requires_grad=True, dtype=np.float64)
    function(x).sum().backward()
    return x.grad.data[0]


def test_slopes_at_corners():
    assert slope_at(F.relu, 0.0) == 0
    assert slope_at(F.relu, -0.0) == 0
    assert slope_at(F.hardtanh, 1.0) == 0  # borders belong to the outside, other than in clamp
    assert slope_at(F.hardtanh, -1.0) == 0
    assert slope_at(F.hardtanh, np.nextafter(1, 0)) == 1
    assert slope_at(lambda x: F.clamp(x, -1, 1), 1.0) == 1
    assert slope_at(lambda x: F.leaky_relu(x, 0.2), 0.0) == 0.2
    assert slope_at(lambda x: F.leaky_relu(x, 0.2), -0.0) == 0.2
    assert slope_at(lambda x: F.prelu(x, np.array([0.2])), 0.0) == 0.2
    assert slope_at(F.softplus, 0.0) == 0.5


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_values_do_not_overflow(dtype):
    x = Tensor(np.array([[1e4, -1e4, 0.0], [1e30, 1e30, -1e30]], dtype), requires_grad=True)
    assert_identical(F.softmax(x), np.array([[1, 0, 0], [0.5, 0.5, 0]]))
    assert_identical(F.log_softmax(x)[0], np.array([0, -2e4, -1e4]))
    assert_identical(F.sigmoid(x)[0], np.array([1, 0, 0.5]))
    assert_identical(F.tanh(x)[0], np.array([1, -1, 0.0]))
    loss = F.cross_entropy(x[:1], np.array([1]))
    assert loss.item() == 2e4
    (loss + F.sigmoid(x).sum() + F.tanh(x).sum() + F.softmax(x)[:, 0].sum()).backward()
    assert np.isfinite(x.grad.data).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: F.softmax(x, 2), r"softmax: dim 2 is out of range for shape \(2, 3\)"),
        (lambda x: F.log_softmax(x, -3), "log_softmax: dim -3 is out of range"),
        (lambda x: F.hardtanh(x, 1, 1), "hardtanh: min_val 1 must be below max_val 1"),
        (lambda x: F.dropout(x, 1.0), r"dropout: p must be in \[0, 1\), got 1.0"),
        (lambda x: F.softplus(x, 0), "softplus: beta must be positive, got 0"),
        (
            lambda x: F.prelu(x, Tensor([1.0, 2.0])),
            r"prelu: weight must have the shape \(1,\) or \(C,\), got \(2,\) for x of .* \(2, 3\)",
        ),
        (lambda x: F.prelu(x, Tensor(1.0)), r"prelu: weight must have the shape .*, got \(\) for"),
        (lambda x: F.prelu(x[0], Tensor([1.0, 2.0, 3.0])), r"prelu: .* for x of shape \(3,\)"),
    ],
)
def test_activation_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(Tensor(normal(2, 3)))


def test_dropout():
    x = normal(3, 4)

    def function(x):
        return F.dropout(x, 0.4, rng=np.random.default_rng(3))

    check(function, x)
    y = function(Tensor(x)).data
    close(Tensor(y[y != 0]), x[y != 0] / 0.6)
    assert 0 < np.count_nonzero(y == 0) < y.size
    assert function(Tensor(x.astype(np.float32))).dtype == np.float32
    assert function(Tensor(2.0)).shape == ()


def test_dropout_that_drops_nothing():
    x = Tensor(normal(3, 4))
    assert F.dropout(x, 0.4, training=False) is x
    assert F.dropout(x, 0.0) is x


def test_dropout_share_and_seed():
    x = Tensor(np.ones(100_000, np.float32))
    manual_seed(5)
    first = F.dropout(x, 0.3).data
    manual_seed(5)
    assert_identical(F.dropout(x, 0.3), first)
    assert np.mean(first == 0) == pytest.approx(0.3, abs=0.01)
    assert first.mean() == pytest.approx(1.0, abs=0.01)


# ---------------------------------------------------------------------------- linear layers


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3,), (2, 3), (4, 2, 3), (0, 3)], ids=str)
def test_linear(shape, bias):
    x, weight = normal(*shape), normal(5, 3, seed=1)
    arrays = [x, weight, normal(5, seed=2)] if bias else [x, weight]
    expected = x @ weight.T + (arrays[2] if bias else 0)
    for fixed_order in (False, True):
        close(F.linear(*map(Tensor, arrays), fixed_order=fixed_order), expected)
        check(lambda *xs, f=fixed_order: F.linear(*xs, fixed_order=f), *arrays)
    check(F.linear, strided(x) if x.ndim > 1 else x, np.asfortranarray(weight), *arrays[2:])


def test_linear_in_fixed_order_does_not_depend_on_the_batch():
    x, weight = normal(9, 33).astype(np.float32), normal(7, 33, seed=1).astype(np.float32)
    whole = F.linear(Tensor(x), Tensor(weight), fixed_order=True).data
    for i in range(9):
        assert_identical(F.linear(Tensor(x[i]), Tensor(weight), fixed_order=True), whole[i])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: F.linear(Tensor(normal(2, 4)), Tensor(normal(5, 3))),
            r"linear: weight of shape \(5, 3\) expects 3 features, x has 4 \(shape \(2, 4\)\)",
        ),
        (lambda: F.linear(Tensor(1.0), Tensor(normal(5, 3))), "x has no axis"),
        (
            lambda: F.linear(Tensor(normal(2, 3)), Tensor(normal(5, 3)), Tensor(normal(1))),
            r"linear: bias must have the shape \(5,\), got \(1,\)",
        ),
    ],
)
def test_linear_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ------------------------------------------------------------------------------ convolution


def two(value):
    return (value, value) if isinstance(value, int) else value


def conv2d_by_loops(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """The definition, one output number at a time."""
    (sh, sw), (ph, pw), (dh, dw) = two(stride), two(padding), two(dilation)
    x = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    (n, _, h, w), (o, c, kh, kw) = x.shape, weight.shape
    oh, ow = (h - dh * (kh - 1) - 1) // sh + 1, (w - dw * (kw - 1) - 1) // sw + 1
    out = np.zeros((n, o, oh, ow))
    for index in np.ndindex(out.shape):
        m, k, i, j = index
        first = k // (o // groups) * c
        patch = x[m, first : first + c, i * sh :, j * sw :][:, : dh * kh : dh, : dw * kw : dw]
        out[index] = np.sum(patch * weight[k]) + (0 if bias is None else bias[k])
    return out


CONVOLUTIONS = {  # x, weight, options
    "plain": ((2, 3, 5, 5), (4, 3, 3, 3), {}),
    "1x1": ((2, 3, 4, 5), (4, 3, 1, 1), {}),
    "1x1_stride": ((2, 3, 5, 4), (4, 3, 1, 1), {"stride": 2}),
    "1x1_groups": ((2, 4, 3, 3), (4, 2, 1, 1), {"groups": 2}),
    "1x1_padding": ((1, 2, 3, 3), (2, 2, 1, 1), {"padding": 1, "stride": 2}),
    "padding": ((2, 2, 4, 5), (3, 2, 3, 3), {"padding": 1}),
    "stride": ((2, 2, 7, 6), (3, 2, 3, 3), {"stride": 2}),
    "stride_unused_border": ((1, 2, 8, 9), (2, 2, 3, 3), {"stride": 4}),
    "stride_over_kernel": ((1, 2, 7, 7), (2, 2, 2, 2), {"stride": 3}),
    "dilation": ((1, 2, 7, 8), (3, 2, 3, 3), {"dilation": 2}),
    "pairs": (
        (2, 2, 8, 9), (3, 2, 3, 2), {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 3)}
    ),
    "pairs_swapped": (
        (1, 2, 9, 8), (3, 2, 2, 3), {"stride": (1, 2), "padding": (2, 0), "dilation": (3, 1)}
    ),
    "everything": ((2, 4, 7, 8), (6, 2, 3, 2),
                   {"stride": 2, "padding": (2, 1), "dilation": 2, "groups": 2}),
    "non_square": ((1, 2, 5, 7), (3, 2, 1, 4), {"padding": (0, 2)}),
    "kernel_is_image": ((2, 2, 3, 4), (3, 2, 3, 4), {}),
    "kernel_larger_than_image": ((1, 1, 2, 2), (1, 1, 5, 5), {"padding": 2}),
    "padding_over_kernel": ((1, 2, 3, 3), (2, 2, 2, 2), {"padding": 3}),
    "groups": ((2, 4, 4, 4), (6, 2, 3, 3), {"groups": 2, "padding": 1}),
    "depthwise": ((2, 3, 5, 5), (3, 1, 3, 3), {"groups": 3, "padding": 1}),
    "depthwise_stride": ((1, 3, 6, 5), (3, 1, 3, 3), {"groups": 3, "padding": 1, "stride": 2}),
    "depthwise_doubled": ((1, 3, 5, 4), (6, 1, 3, 2), {"groups": 3, "dilation": 2, "padding": 1}),
    "one_pixel": ((1, 1, 1, 1), (1, 1, 1, 1), {}),
    "one_row": ((1, 2, 1, 9), (2, 2, 1, 3), {"padding": (0, 1), "stride": (1, 2)}),
}  # fmt: skip


@layouts
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_conv2d(name, lay_out):
    shape, weight_shape, options = CONVOLUTIONS[name]
    x, weight = lay_out(normal(*shape)), lay_out(normal(*weight_shape, seed=1))
    bias = normal(weight_shape[0], seed=2)
    close(F.conv2d(Tensor(x), Tensor(weight), **options), conv2d_by_loops(x, weight, **options))
    expected = conv2d_by_loops(x, weight, bias, **options)
    for fixed_order in (False, True):
        output = F.conv2d(
            Tensor(x), Tensor(weight), Tensor(bias), **options, fixed_order=fixed_order
        )
        close(output, expected)
    check(lambda x, w, b: F.conv2d(x, w, b, **options), x, weight, bias)


@given(data=st.data())
def test_conv2d_of_any_geometry(data):
    side = st.integers(1, 3)
    groups, per_group, outputs = data.draw(side), data.draw(side), data.draw(side)
    kernel, stride, dilation = (data.draw(st.tuples(side, side)) for _ in range(3))
    padding = data.draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    reach = [d * (k - 1) + 1 - 2 * p for k, d, p in zip(kernel, dilation, padding, strict=True)]
    size = [data.draw(st.integers(max(1, r), max(1, r) + 4)) for r in reach]
    x = normal(data.draw(st.integers(0, 2)), groups * per_group, *size)
    weight = normal(groups * outputs, per_group, *kernel, seed=1)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    close(F.conv2d(Tensor(x), Tensor(weight), **options), conv2d_by_loops(x, weight, **options))
    gradcheck(lambda x, w: F.conv2d(x, w, **options), [x, weight])


def test_conv2d_works_through_the_batch_in_blocks(monkeypatch):
    x, weight = normal(5, 2, 6, 5), normal(4, 1, 3, 3, seed=1)

    def results():
        xs = [Tensor(a, requires_grad=True) for a in (x, weight)]
        y = F.conv2d(*xs, padding=1, groups=2)
        return [y, *grad(y, xs, normal(*y.shape, seed=2))]

    whole = results()
    geometry = type(F.conv2d(Tensor(x, requires_grad=True), weight, groups=2).function.geometry)
    patch = 2 * 9 * 6 * 5  # numbers in the patches of one image
    for images in (0, 1, 2, 3):
        monkeypatch.setattr(geometry, "BLOCK", max(images * patch, 1))
        for block, expected in zip(results(), whole, strict=True):
            close(block, expected.data)


def test_conv2d_gradients_are_adjoints():
    """<conv(x, w), g> = <x, gradient in x> = <w, gradient in w>: the convolution is bilinear."""
    x, weight = (
        Tensor(normal(2, 4, 6, 5), requires_grad=True),
        Tensor(normal(6, 2, 3, 2, seed=1), requires_grad=True),
    )
    y = F.conv2d(x, weight, stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2)
    g = normal(*y.shape, seed=2)
    product = np.sum(y.data * g)
    for t, slope in zip((x, weight), grad(y, (x, weight), g), strict=True):
        assert np.sum(t.data * slope.data) == pytest.approx(product, rel=1e-12)


def test_conv2d_by_hand():
    x = Tensor(np.arange(9.0).reshape(1, 1, 3, 3), requires_grad=True)
    weight = Tensor(np.array([[[[1.0, 2.0], [3.0, 4.0]]]]), requires_grad=True)
    y = F.conv2d(x, weight)
    assert_identical(y, [[[[27.0, 37.0], [57.0, 67.0]]]])
    y.sum().backward()
    assert_identical(x.grad, [[[[1.0, 3, 2], [4, 10, 6], [3, 7, 4]]]])
    assert_identical(weight.grad, [[[[8.0, 12.0], [20.0, 24.0]]]])


@pytest.mark.parametrize("options", [{}, {"padding": 1}, {"groups": 2}, {"stride": 2}], ids=str)
def test_conv2d_is_channels_last_in_memory(options):
    weight = Tensor(normal(6, 4 // options.get("groups", 1), 3, 3))
    for lay_out in LAYOUTS.values():
        y = F.conv2d(Tensor(lay_out(normal(2, 4, 7, 6))), weight, **options)
        assert y.data.transpose(0, 2, 3, 1).flags.c_contiguous
        for following in (F.relu(y), y * 2.0, y + Tensor(normal(6)).reshape(1, 6, 1, 1),
                          F.max_pool2d(y, 2, 1), F.avg_pool2d(y, 2, 1)):  # fmt: skip
            assert following.data.transpose(0, 2, 3, 1).flags.c_contiguous


def test_conv2d_of_signs_is_exact():
    rng = np.random.default_rng(0)
    x = rng.choice([-1.0, 1.0], (2, 64, 8, 8)).astype(np.float32)
    weight = rng.choice([-1.0, 1.0], (8, 64, 3, 3)).astype(np.float32)
    y = F.conv2d(Tensor(x), Tensor(weight), padding=1)
    assert y.dtype == np.float32
    assert_identical(y, conv2d_by_loops(x, weight, padding=1))


def test_conv2d_keeps_float32():
    x = Tensor(normal(1, 2, 4, 4).astype(np.float32), requires_grad=True)
    weight = Tensor(normal(3, 2, 3, 3).astype(np.float32), requires_grad=True)
    y = F.conv2d(x, weight, Tensor([1.0, 2.0, 3.0]), fixed_order=True)
    assert y.dtype == np.float32
    for g in grad((y * y).sum(), [x, weight], create_graph=True):
        assert g.dtype == np.float32


def test_conv2d_takes_bytes():
    pixels = np.arange(16, dtype=np.uint8).reshape(1, 1, 4, 4)
    weight = Tensor(np.ones((1, 1, 2, 2), np.float32), requires_grad=True)
    y = F.conv2d(pixels, weight)
    assert y.dtype == np.float32
    assert_identical(y, conv2d_by_loops(pixels.astype(float), weight.data))
    y.sum().backward()
    assert weight.grad.data[0, 0, 0, 0] == pixels[0, 0, :3, :3].sum()


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((3, 5, 5), (4, 3, 3, 3)), {}, r"conv2d: x must have the shape \(N, C, H, W\)"),
        (((2, 3, 5, 5), (4, 3, 3)), {}, r"conv2d: weight must have the shape \(O, C, kh, kw\)"),
        (
            ((8, 3, 32, 32), (8, 16, 3, 3)), {},
            r"conv2d: weight expects 16 input channels, x has 3 \(shape \(8, 3, 32, 32\)\)",
        ),
        (((2, 4, 5, 5), (3, 2, 3, 3)), {"groups": 2}, "groups must divide the 3 output channels"),
        (((2, 3, 5, 5), (4, 3, 3, 3)), {"groups": 0}, "groups must divide"),
        (((2, 3, 5, 5), (4, 3, 3, 3)), {"stride": 0}, "stride must be .* pair of ints >= 1"),
        (((2, 3, 5, 5), (4, 3, 3, 3)), {"padding": -1}, "padding must be .* >= 0, got -1"),
        (((2, 3, 5, 5), (4, 3, 3, 3)), {"dilation": (1, 2, 3)}, "dilation must be"),
        (((2, 3, 5, 5), (4, 3, 3, 3)), {"stride": 2.0}, "stride must be .*, got 2.0"),
        (((2, 3, 5, 5), (4, 3, 3, 3)), {"padding": None}, "padding must be .*, got None"),
        (((2, 3, 5, 5), (4, 3, 3, 3)), {"padding": "full"}, "'valid' or 'same', got 'full'"),
        (((2, 3, 5, 5), (4, 3, 3, 3)), {"padding": "same", "stride": 2}, "needs stride 1"),
        (((2, 3, 5, 5), (4, 3, 2, 3)), {"padding": "same"}, r"needs \(1, 2\) zeros"),
        (((2, 3, 5, 5), (4, 3, 3, 3)), {"dilation": 3}, r"does not fit into images of \(5, 5\)"),
        (((2, 3, 5, 5), (4, 3, 3, 3), (3,)), {}, r"bias must have the shape \(4,\), got \(3,\)"),
    ],
)  # fmt: skip
def test_conv2d_errors(shapes, options, message):
    with pytest.raises(ValueError, match=message):
        F.conv2d(*(Tensor(normal(*shape)) for shape in shapes), **options)


# ------------------------------------------------------------------- transposed convolution


def conv_transpose2d_by_loops(
    x, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1
):
    """The definition: each input pixel adds its multiple of the kernel to the output."""
    (sh, sw), (ph, pw), (dh, dw), (eh, ew) = map(two, (stride, padding, dilation, output_padding))
    (n, c, h, w), (_, per_group, kh, kw) = x.shape, weight.shape
    full = np.zeros(
        (n, per_group * groups, (h - 1) * sh + dh * (kh - 1) + 1 + eh,
         (w - 1) * sw + dw * (kw - 1) + 1 + ew)
    )  # fmt: skip
    for m, k, i, j in np.ndindex(x.shape):
        first = k // (c // groups) * per_group
        for a, b in np.ndindex(kh, kw):
            full[m, first : first + per_group, i * sh + a * dh, j * sw + b * dw] += (
                x[m, k, i, j] * weight[k, :, a, b]
            )
    out = full[:, :, ph : full.shape[2] - ph, pw : full.shape[3] - pw]
    return out if bias is None else out + bias.reshape(1, -1, 1, 1)


TRANSPOSED = {  # x, weight (C, O / groups, kh, kw), options
    "plain": ((2, 3, 3, 4), (3, 2, 3, 3), {}),
    "1x1": ((2, 3, 3, 4), (3, 2, 1, 1), {}),
    "stride": ((2, 2, 3, 3), (2, 3, 3, 3), {"stride": 2}),
    "stride_over_kernel": ((1, 2, 3, 2), (2, 2, 2, 2), {"stride": 3}),
    "padding": ((2, 2, 4, 3), (2, 3, 3, 3), {"padding": 1}),
    "upsampling": ((1, 2, 3, 4), (2, 2, 4, 4), {"stride": 2, "padding": 1}),
    "output_padding": ((2, 2, 3, 4), (2, 3, 3, 3), {"stride": 2, "padding": 1,
                                                    "output_padding": 1}),
    "output_padding_pair": ((1, 2, 3, 3), (2, 2, 3, 2), {"stride": (2, 3),
                                                         "output_padding": (0, 2)}),
    "output_padding_under_dilation": ((2, 2, 3, 4), (2, 3, 3, 2),
                                      {"dilation": 3, "output_padding": (2, 1), "padding": 1}),
    "dilation": ((1, 2, 3, 4), (2, 3, 3, 2), {"dilation": 2}),
    "groups": ((2, 4, 3, 3), (4, 3, 3, 3), {"groups": 2, "stride": 2}),
    "depthwise": ((2, 3, 4, 3), (3, 1, 3, 3), {"groups": 3, "padding": 1}),
    "everything": ((2, 4, 3, 4), (4, 3, 3, 2), {"stride": (3, 2), "padding": (2, 1), "groups": 2,
                                                "dilation": (1, 2), "output_padding": (2, 1)}),
    "one_pixel": ((1, 1, 1, 1), (1, 1, 1, 1), {}),
    "one_pixel_to_image": ((2, 3, 1, 1), (3, 2, 4, 5), {}),
    "no_images": ((0, 2, 3, 3), (2, 3, 3, 3), {"stride": 2}),
}  # fmt: skip


@layouts
@pytest.mark.parametrize("name", TRANSPOSED)
def test_conv_transpose2d(name, lay_out):
    shape, weight_shape, options = TRANSPOSED[name]
    x, weight = lay_out(normal(*shape)), lay_out(normal(*weight_shape, seed=1))
    bias = normal(weight_shape[1] * options.get("groups", 1), seed=2)
    expected = conv_transpose2d_by_loops(x, weight, bias, **options)
    for fixed_order in (False, True):
        y = F.conv_transpose2d(*map(Tensor, (x, weight, bias)), **options, fixed_order=fixed_order)
        close(y, expected)
        assert y.data.transpose(0, 2, 3, 1).flags.c_contiguous or not y.numel()
    close(F.conv_transpose2d(Tensor(x), Tensor(weight), **options),
          conv_transpose2d_by_loops(x, weight, **options))  # fmt: skip
    check(lambda x, w, b: F.conv_transpose2d(x, w, b, **options), x, weight, bias)


@given(data=st.data())
def test_conv_transpose2d_is_the_gradient_of_conv2d(data):
    """Each image size that leads to this output corresponds to one output_padding."""
    side = st.integers(1, 3)
    groups, per_group, outputs = data.draw(side), data.draw(side), data.draw(side)
    kernel, stride, dilation = (data.draw(st.tuples(side, side)) for _ in range(3))
    padding = data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    reach = [d * (k - 1) + 1 - 2 * p for k, d, p in zip(kernel, dilation, padding, strict=True)]
    size = [data.draw(st.integers(max(1, r), max(1, r) + 4)) for r in reach]
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    weight = Tensor(normal(groups * outputs, per_group, *kernel, seed=1))
    image = Tensor(normal(2, groups * per_group, *size), requires_grad=True)
    y = F.conv2d(image, weight, **options)
    incoming = normal(*y.shape, seed=2)
    rest = tuple((n - r) % s for n, r, s in zip(size, reach, stride, strict=True))
    transposed = F.conv_transpose2d(Tensor(incoming), weight, **options, output_padding=rest)
    assert_identical(transposed, grad(y, image, incoming))


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"groups": 2}], ids=str)
def test_conv_transpose2d_in_fixed_order_does_not_depend_on_the_batch(options):
    x = normal(7, 34, 4, 5).astype(np.float32)
    weight = normal(34, 3, 3, 3, seed=1).astype(np.float32)

    def run(x):
        return F.conv_transpose2d(Tensor(x), Tensor(weight), **options, fixed_order=True).data

    whole = run(x)
    assert whole.dtype == np.float32
    for size in range(1, 7):
        for start in range(0, 7, size):
            assert_identical(run(x[start : start + size]), whole[start : start + size])


def test_conv_transpose2d_works_through_the_batch_in_blocks(monkeypatch):
    x, weight = normal(5, 4, 3, 4), normal(4, 2, 3, 3, seed=1)

    def results():
        xs = [Tensor(a, requires_grad=True) for a in (x, weight)]
        y = F.conv_transpose2d(*xs, stride=2, groups=2)
        return [y, *grad(y, xs, normal(*y.shape, seed=2))]

    whole = results()
    for block in (1, 500, 1000):
        monkeypatch.setattr(F.Geometry, "BLOCK", block)
        for part, expected in zip(results(), whole, strict=True):
            close(part, expected.data)


def test_conv_transpose2d_by_hand():
    x = Tensor(np.array([[[[1.0, 2.0]]]]), requires_grad=True)
    weight = Tensor(np.array([[[[1.0, 10.0, 100.0]]]]), requires_grad=True)
    y = F.conv_transpose2d(x, weight, stride=(1, 2))
    assert_identical(y, [[[[1.0, 10, 102, 20, 200]]]])
    y.sum().backward()
    assert_identical(x.grad, [[[[111.0, 111.0]]]])
    assert_identical(weight.grad, [[[[3.0, 3.0, 3.0]]]])


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((3, 5, 5), (3, 4, 3, 3)), {}, r"x must have the shape \(N, C, H, W\), got \(3, 5, 5\)"),
        (((2, 3, 5, 5), (3, 4, 3)), {}, r"weight must have the shape \(C, O, kh, kw\)"),
        (
            ((2, 3, 5, 5), (4, 3, 3, 3)), {},
            r"weight expects 4 input channels, x has 3 \(shape \(2, 3, 5, 5\)\)",
        ),
        (((2, 3, 5, 5), (3, 2, 3, 3)), {"groups": 2}, "groups must divide the 3 channels, got 2"),
        (((2, 3, 5, 5), (3, 2, 3, 3)), {"groups": 0}, "groups must divide"),
        (((2, 3, 5, 5), (3, 2, 3, 3), (3,)), {}, r"bias must have the shape \(2,\), got \(3,\)"),
        (((2, 3, 5, 5), (3, 2, 3, 3)), {"stride": 0}, "stride must be .* >= 1, got 0"),
        (((2, 3, 5, 5), (3, 2, 3, 3)), {"output_padding": -1}, "output_padding must be .* >= 0"),
        (
            ((2, 3, 5, 5), (3, 2, 3, 3)), {"stride": 2, "output_padding": 2},
            r"output_padding \(2, 2\) must be smaller than stride or dilation",
        ),
        (((2, 3, 1, 1), (3, 2, 3, 3)), {"padding": 2}, r"padding \(2, 2\) leaves an output of"),
    ],
)  # fmt: skip
def test_conv_transpose2d_errors(shapes, options, message):
    with pytest.raises(ValueError, match=f"conv_transpose2d: {message}"):
        F.conv_transpose2d(*(Tensor(normal(*shape)) for shape in shapes), **options)


# ---------------------------------------------------------------------------------- pooling


def pool_by_loops(x, kernel, stride=None, padding=0, average=False):
    (kh, kw), (ph, pw) = two(kernel), two(padding)
    sh, sw = two(kernel if stride is None else stride)
    outside = 0.0 if average else -np.inf
    x = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)), constant_values=outside)
    n, c, h, w = x.shape
    out = np.zeros((n, c, (h - kh) // sh + 1, (w - kw) // sw + 1))
    for m, k, i, j in np.ndindex(out.shape):
        window = x[m, k, i * sh : i * sh + kh, j * sw : j * sw + kw]
        out[m, k, i, j] = window.mean() if average else window.max()
    return out


POOLS = {
    "plain": ((2, 3, 4, 6), {"kernel_size": 2}),
    "odd": ((2, 3, 5, 7), {"kernel_size": 2}),
    "overlapping": ((2, 2, 7, 6), {"kernel_size": 3, "stride": 2}),
    "dense": ((1, 2, 5, 5), {"kernel_size": 3, "stride": 1}),
    "padded": ((2, 2, 5, 6), {"kernel_size": 3, "stride": 2, "padding": 1}),
    "padded_dense": ((1, 2, 4, 4), {"kernel_size": 2, "stride": 1, "padding": 1}),
    "gaps": ((1, 2, 7, 8), {"kernel_size": 2, "stride": 3}),
    "non_square": (
        (2, 2, 6, 7), {"kernel_size": (2, 3), "stride": (1, 2), "padding": (0, 1)}
    ),
    "global": ((2, 3, 4, 5), {"kernel_size": (4, 5)}),
    "one": ((2, 3, 3, 3), {"kernel_size": 1}),
}  # fmt: skip


@layouts
@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("kind", ["max", "avg"])
def test_pool(kind, name, lay_out):
    shape, options = POOLS[name]
    x = lay_out(distinct(*shape))
    function = F.max_pool2d if kind == "max" else F.avg_pool2d
    arguments = (options["kernel_size"], options.get("stride"), options.get("padding", 0))
    close(function(Tensor(x), *arguments), pool_by_loops(x, *arguments, average=kind == "avg"))
    check(lambda x: function(x, **options), x)


def test_first_of_equal_maxima_wins():
    x = Tensor(np.array([[[[1.0, 3, 3, 3], [3, 2, 0, 3]]]]), requires_grad=True)
    F.max_pool2d(x, 2).sum().backward()
    assert_identical(x.grad, [[[[0.0, 1, 1, 0], [0, 0, 0, 0]]]])
    x.grad = None
    F.max_pool2d(x, 2, 1).sum().backward()  # the pixel in the middle wins two windows
    assert_identical(x.grad, [[[[0.0, 2, 1, 0], [0, 0, 0, 0]]]])


def test_max_pool_of_signs_is_or():
    x = np.random.default_rng(0).choice([-1.0, 1.0], (2, 3, 6, 6))
    y = F.max_pool2d(Tensor(x), 2).data
    bits = (x > 0).reshape(2, 3, 3, 2, 3, 2).any((3, 5))
    assert_identical(y > 0, bits)


def test_max_pool_padding_never_wins_and_nan_does():
    x = -1.0 - np.abs(normal(1, 1, 3, 3))
    x[0, 0, 0, 0] = np.nan
    y = F.max_pool2d(Tensor(x), 3, 2, 1).data
    assert np.isnan(y[0, 0, 0, 0])
    assert (y[~np.isnan(y)] < 0).all()


def test_max_pool_padding_never_takes_a_gradient():
    """After a relu a window's maximum is often 0, the padding value of other layers."""
    x = Tensor(np.zeros((1, 2, 4, 4)), requires_grad=True)
    y = F.max_pool2d(x, 3, 2, 1)
    y.sum().backward()
    assert x.grad.data.sum() == y.numel()


def test_max_pool_of_a_large_window():
    x = Tensor(distinct(1, 1, 200, 200), requires_grad=True)
    F.max_pool2d(x, 200).sum().backward()
    assert x.grad.data.sum() == 1
    assert x.grad.data.ravel()[np.argmax(x.data)] == 1


def test_avg_pool_counts_padding():
    y = F.avg_pool2d(Tensor(np.ones((1, 1, 2, 2))), 2, 2, 1)
    assert_identical(y, np.full((1, 1, 2, 2), 0.25))


@layouts
@pytest.mark.parametrize("size", [1, 2, (2, 1), (4, 3), (1, 6), (4, 6)], ids=str)
def test_adaptive_avg_pool(size, lay_out):
    x = lay_out(normal(2, 3, 4, 6))
    oh, ow = two(size)
    expected = x.reshape(2, 3, oh, 4 // oh, ow, 6 // ow).mean((3, 5))
    close(F.adaptive_avg_pool2d(Tensor(x), size), expected)
    check(lambda x: F.adaptive_avg_pool2d(x, size), x)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (3, r"output_size \(3, 3\) must divide the image size \(4, 6\)"),
        ((2, 12), r"output_size \(2, 12\) must divide"),
        (0, "output_size must be an int or a pair of ints >= 1, got 0"),
        (None, "output_size must be .*, got None"),
    ],
)
def test_adaptive_avg_pool_errors(size, message):
    with pytest.raises(ValueError, match=f"adaptive_avg_pool2d: {message}"):
        F.adaptive_avg_pool2d(Tensor(normal(2, 3, 4, 6)), size)
    with pytest.raises(ValueError, match=r"adaptive_avg_pool2d: x must have the shape"):
        F.adaptive_avg_pool2d(Tensor(normal(3, 4, 6)), 1)


@pytest.mark.parametrize("function", [F.max_pool2d, F.avg_pool2d])
def test_pool_errors(function):
    x, name = Tensor(normal(1, 2, 4, 4)), function.__name__
    with pytest.raises(ValueError, match=rf"{name}: x must have the shape \(N, C, H, W\)"):
        function(x[0], 2)
    with pytest.raises(ValueError, match=rf"{name}: padding \(2, 2\) must be at most half"):
        function(x, 3, 1, 2)
    with pytest.raises(ValueError, match=rf"{name}: windows of \(5, 5\) do not fit"):
        function(x, 5)
    with pytest.raises(ValueError, match=f"{name}: stride must be"):
        function(x, 2, 0)


# ----------------------------------------------------------------------- batch normalisation

BATCHES = {
    "2d": (6, 3),
    "4d": (4, 3, 3, 2),
    "4d_one_image": (1, 3, 3, 2),
    "one_channel": (5, 1),
    "3d": (2, 3, 4),
}
WEIGHTS = {"positive": [0.5, 1.0, 1.5], "mixed": [-0.7, 0.0, 1.3]}


@layouts
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm(training, name, weights, lay_out):
    shape = BATCHES[name]
    c = shape[1]
    x = lay_out(2 * normal(*shape) + 1)
    weight, bias = np.array(WEIGHTS[weights][-c:]), normal(c, seed=1)
    mean, var = normal(c, seed=2), 0.5 + np.abs(normal(c, seed=3))
    axes = (0, *range(2, len(shape)))
    per_channel = (1, -1) + (1,) * (len(shape) - 2)

    def function(x, weight, bias):
        return F.batch_norm(x, mean.copy(), var.copy(), weight, bias, training, 0.1, 1e-3)

    used = (x.mean(axes), x.var(axes)) if training else (mean, var)
    m, v, w, b = (a.reshape(per_channel) for a in (*used, weight, bias))
    close(function(*map(Tensor, (x, weight, bias))), (x - m) / np.sqrt(v + 1e-3) * w + b)
    check(function, x, weight, bias)


@pytest.mark.parametrize("shape", [(8, 3), (4, 3, 5, 2)], ids=str)
def test_batch_norm_running_statistics(shape):
    x = 2 * normal(*shape) + 1
    axes = (0, *range(2, len(shape)))
    mean, var = np.zeros(3), np.ones(3)
    keep_mean, keep_var = mean, var
    for _ in range(2):
        F.batch_norm(Tensor(x), mean, var, training=True, momentum=0.25)
    assert keep_mean is mean
    assert keep_var is var
    share = 1 - 0.75**2
    np.testing.assert_allclose(mean, share * x.mean(axes), 1e-12)
    np.testing.assert_allclose(var, 1 - share + share * x.var(axes, ddof=1), 1e-12)
    before = mean.copy(), var.copy()
    F.batch_norm(Tensor(x), mean, var, training=False)
    assert_identical(mean, before[0])
    assert_identical(var, before[1])


def test_batch_norm_without_running_statistics_uses_the_batch():
    x = normal(6, 3)
    expected = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    for training in (True, False):
        close(F.batch_norm(Tensor(x), None, None, training=training), expected)
    check(lambda x: F.batch_norm(x, None, None, training=True), x)


def test_batch_norm_of_an_array_with_learned_weights():
    """The batch as a plain array: its statistics are constants."""
    x = normal(6, 3)
    check(lambda w, b: F.batch_norm(x, None, None, w, b, training=True), normal(3), normal(3))


@pytest.mark.parametrize("wanted", [0, 1], ids=["x", "weight"])
@pytest.mark.parametrize("shape", [(5, 2), (3, 2, 2, 2)])
def test_batch_norm_has_third_derivatives(shape, wanted):
    """Its gradients have their own rules, which are also differentiable."""

    def gradient(incoming, x, weight):
        x, weight = (v if v.requires_grad else Tensor(v, requires_grad=True) for v in (x, weight))
        y = F.batch_norm(x, None, None, weight, training=True, eps=0.1)
        return grad(y, [x, weight], incoming, create_graph=True)[wanted]

    incoming, x, weight = normal(*shape, seed=1), normal(*shape), normal(2, seed=2)
    if wanted == 0:
        check(gradient, incoming, x, weight)
    else:  # linear in the weight: its gradient does not depend on it
        check(lambda incoming, x: gradient(incoming, x, Tensor(weight)), incoming, x)


def test_batch_norm_gradient_is_blind_to_shift_and_scale():
    x = Tensor(normal(16, 3), requires_grad=True)
    g = grad(F.batch_norm(x, None, None, training=True, eps=0.0), x, normal(16, 3, seed=1)).data
    np.testing.assert_allclose(g.sum(0), 0, atol=1e-12)
    np.testing.assert_allclose((g * x.data).sum(0), 0, atol=1e-12)


def test_batch_norm_keeps_float32():
    for shape in ((6, 3), (2, 3, 4, 4)):
        for training in (True, False):
            x = Tensor(normal(*shape).astype(np.float32), requires_grad=True)
            weight = Tensor([1.0, 2.0, 3.0], requires_grad=True)
            y = F.batch_norm(x, np.zeros(3), np.ones(3), weight, None, training)
            assert y.dtype == np.float32
            for g in grad((y * y).sum(), [x, weight], create_graph=True):
                assert g.dtype == np.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: F.batch_norm(Tensor(normal(3)), None, None),
            r"x must have the shape \(N, C, ...\)",
        ),
        (
            lambda: F.batch_norm(Tensor(normal(4, 3)), np.zeros(2), np.ones(3)),
            r"batch_norm: running_mean has shape \(2,\), x has 3 channels \(shape \(4, 3\)\)",
        ),
        (
            lambda: F.batch_norm(Tensor(normal(4, 3)), None, None, Tensor(normal(1))),
            r"batch_norm: weight has shape \(1,\)",
        ),
        (
            lambda: F.batch_norm(Tensor(normal(1, 3)), np.zeros(3), np.ones(3), training=True),
            "training needs more than one value for each channel",
        ),
    ],
)
def test_batch_norm_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ----------------------------------------------------------------------------------- losses

TARGET = np.array([2, 0, 1, 2])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy(reduction):
    x = normal(4, 3)
    each = -np.log(np.exp(x) / np.exp(x).sum(1, keepdims=True))[np.arange(4), TARGET]
    expected = {"mean": each.mean(), "sum": each.sum(), "none": each}[reduction]
    close(F.cross_entropy(Tensor(x), TARGET, reduction), expected)
    check(lambda x: F.cross_entropy(x, TARGET, reduction), x)
    check(lambda x: F.cross_entropy(x, TARGET.astype(np.uint8), reduction), strided(x))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_of_soft_targets(smoothing, reduction):
    x, target = normal(4, 3), np.abs(normal(4, 3, seed=1))  # need not sum to 1
    smooth = (1 - smoothing) * target + smoothing / 3 * np.ones((4, 3))
    each = -(smooth * F.log_softmax(x)).sum(1)
    expected = {"mean": each.mean(), "sum": each.sum(), "none": each}[reduction]
    close(F.cross_entropy(Tensor(x), target, reduction, smoothing), expected)
    close(F.cross_entropy(Tensor(x), Tensor(target), reduction, smoothing), expected)
    check(lambda x, t: F.cross_entropy(x, t, reduction, smoothing), x, target)


@pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
def test_labels_are_one_hot_soft_targets(smoothing):
    x = normal(4, 3)
    for reduction in ("mean", "sum", "none"):
        for one_hot in (np.eye(3)[TARGET], np.eye(3, dtype=int)[TARGET]):
            close(
                F.cross_entropy(Tensor(x), TARGET, reduction, smoothing),
                F.cross_entropy(Tensor(x), one_hot, reduction, smoothing).data,
            )
    check(lambda x: F.cross_entropy(x, TARGET, label_smoothing=smoothing), x)


def test_label_smoothing_by_hand():
    """Labels of class 1 among 2, ε = 0.5: target (1/4, 3/4)."""
    x = np.log([[1.0, 3.0]])  # probabilities 1/4, 3/4
    expected = -0.25 * np.log(0.25) - 0.75 * np.log(0.75)
    close(F.cross_entropy(Tensor(x), np.array([1]), label_smoothing=0.5), expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x: F.cross_entropy(x, normal(4, 2)),
            r"soft targets have the shape \(4, 2\), the input \(4, 3\)",
        ),
        (lambda x: F.cross_entropy(x, TARGET, label_smoothing=1.5), r"in \[0, 1\], got 1.5"),
        (lambda x: F.cross_entropy(x, TARGET, label_smoothing=-0.1), r"label_smoothing must be in"),
        (lambda x: F.cross_entropy(x[0], np.array([1])), r"expects logits \(N, classes\)"),
        (lambda x: F.cross_entropy(x[0], normal(2, 2)), r"soft targets have the shape"),
    ],
)
def test_cross_entropy_errors(call, message):
    with pytest.raises(ValueError, match=f"cross_entropy: .*{message}"):
        call(Tensor(normal(4, 3)))


PAIRWISE = {  # loss, input, target, formula of each element
    "mse_loss": (F.mse_loss, normal(4, 3), normal(4, 3, seed=1), lambda x, t: (x - t) ** 2),
    "binary_cross_entropy": (
        F.binary_cross_entropy,
        0.05 + 0.9 * np.random.default_rng(0).random((4, 3)),
        np.random.default_rng(1).random((4, 3)),
        lambda x, t: -(t * np.log(x) + (1 - t) * np.log(1 - x)),
    ),
    "binary_cross_entropy_with_logits": (
        F.binary_cross_entropy_with_logits,
        3 * away_from([0], 4, 3),
        np.random.default_rng(1).random((4, 3)),
        lambda x, t: t * np.log1p(np.exp(-x)) + (1 - t) * np.log1p(np.exp(x)),
    ),
}
pairwise = pytest.mark.parametrize("name", PAIRWISE)


@pairwise
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_pairwise_loss(name, reduction):
    loss, x, target, formula = PAIRWISE[name]
    for hard in (False, True):
        t = np.round(np.clip(target, 0, 1)) if hard else target
        each = formula(x, t)
        expected = {"mean": each.mean(), "sum": each.sum(), "none": each}[reduction]
        close(loss(Tensor(x), t, reduction), expected)
        close(loss(Tensor(x), Tensor(t), reduction), expected)
        close(Tensor(loss(x, t, reduction)), expected)
        check(lambda x, t: loss(x, t, reduction), x, t)
        check(lambda x, t=t: loss(x, t, reduction), strided(x))
    close(loss(Tensor(x[0, 0]), target[0, 0]), formula(x[0, 0], target[0, 0]))


@pairwise
@pytest.mark.parametrize("kind", [np.float32, np.uint8, bool])
def test_pairwise_loss_keeps_float32(name, kind):
    loss, values, _, formula = PAIRWISE[name]
    x = Tensor(values.astype(np.float32), requires_grad=True)
    target = (np.arange(12).reshape(4, 3) % 2).astype(kind)
    y = loss(x, target)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y.item(), formula(values, target.astype(float)).mean(), 1e-5)
    g = grad(y, x, create_graph=True)
    assert g.dtype == np.float32


@pairwise
def test_pairwise_loss_errors(name):
    loss, x, target, _ = PAIRWISE[name]
    with pytest.raises(ValueError, match=rf"{name}: input has the shape \(4, 3\), target \(3,\)"):
        loss(Tensor(x), target[0])
    with pytest.raises(ValueError, match=f"{name}: reduction must be 'mean', 'sum' or 'none'"):
        loss(Tensor(x), target, "average")


def test_binary_cross_entropy_outside_of_0_to_1():
    for wrong in ([0.5, 1.1], [-0.1, 0.5], [np.nan, 0.5]):
        with pytest.raises(ValueError, match=r"binary_cross_entropy: input must lie in \[0, 1\]"):
            F.binary_cross_entropy(Tensor(wrong), np.ones(2))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_binary_cross_entropy_at_its_ends(dtype):
    """Logarithms are clamped at -100 and gradients are finite, even for tiny probabilities."""
    x = np.array([0, 0, 1, 1, 1e-42, 1e-30, 5e-324], dtype)
    target = np.array([0, 1, 0, 1, 1, 1, 1], dtype)
    t = Tensor(x, requires_grad=True)
    y = F.binary_cross_entropy(t, target, "none")
    assert y.dtype == dtype
    expected = [0, 100, 100, 0, 96.7, 69.08, 100]
    np.testing.assert_allclose(y.data, expected, 1e-3)
    slope = grad(y, t, np.ones(7), create_graph=True)
    assert np.isfinite(slope.data).all()
    assert (np.sign(slope.data) == [0, -1, 1, 0, -1, -1, -1]).all()
    soft = Tensor(target, requires_grad=True)
    slope = grad(F.binary_cross_entropy(Tensor(x), soft, "sum"), soft)
    assert np.isfinite(slope.data).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_binary_cross_entropy_of_large_logits(dtype):
    inf = np.inf
    x = np.array([1e4, -1e4, 1e4, -1e4, 1e30, inf, -inf, inf, -inf, 0, 20, -20], dtype)
    target = np.array([1, 0, 0, 1, 1, 1, 0, 0, 1, 1, 1, 0], dtype)
    small = np.log1p(np.exp(-20))
    expected = [0, 0, 1e4, 1e4, 0, 0, 0, inf, inf, np.log(2), small, small]
    t = Tensor(x, requires_grad=True)
    y = F.binary_cross_entropy_with_logits(t, target, "none")
    np.testing.assert_allclose(y.data, expected, 1e-6, 0)  # 2e-9 has all its digits in float32 too
    assert y.dtype == dtype
    slope = grad(y, t, np.ones(12), create_graph=True)
    np.testing.assert_allclose(slope.data, F.sigmoid(x) - target)
    slope.backward(np.ones(12))
    assert np.isfinite(t.grad.data).all()


def test_binary_cross_entropy_of_probabilities_and_of_logits():
    x, target = normal(5, 2), np.random.default_rng(0).random((5, 2))
    close(
        F.binary_cross_entropy(F.sigmoid(Tensor(x)), target),
        F.binary_cross_entropy_with_logits(Tensor(x), target).data,
    )


def test_cross_entropy_gradient_is_probability_minus_target():
    x = Tensor(normal(4, 3), requires_grad=True)
    F.cross_entropy(x, TARGET, "sum").backward()
    close(x.grad, F.softmax(x).data - np.eye(3)[TARGET])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_squared_hinge(reduction):
    x = away_from([-1, 1], 4, 3)
    signs = 2 * np.eye(3)[TARGET] - 1
    each = np.maximum(0, 1 - signs * x) ** 2
    expected = {"mean": each.mean(), "sum": each.sum(), "none": each}[reduction]
    close(F.squared_hinge(Tensor(x), TARGET, reduction), expected)
    check(lambda x: F.squared_hinge(x, TARGET, reduction), x)
    check(lambda x: F.squared_hinge(x, TARGET, reduction), np.asfortranarray(x))


@pytest.mark.parametrize("loss", [F.cross_entropy, F.squared_hinge])
def test_loss_errors(loss):
    x, name = Tensor(normal(4, 3)), loss.__name__
    with pytest.raises(ValueError, match=rf"{name}: labels must lie in 0..2, got 0..3"):
        loss(x, np.array([0, 1, 2, 3]))
    with pytest.raises(ValueError, match=rf"{name}: labels must lie in 0..2, got -1..2"):
        loss(x, np.array([0, 1, 2, -1]))
    with pytest.raises(ValueError, match=rf"{name}: expects logits \(N, classes\)"):
        loss(x, np.array([0, 1, 2]))
    with pytest.raises(ValueError, match="of float64"):
        loss(x, np.array([0.0, 1, 2, 0]))
    with pytest.raises(ValueError, match=f"{name}: reduction must be 'mean', 'sum' or 'none'"):
        loss(x, TARGET, "average")


def test_losses_keep_float32():
    for loss in (F.cross_entropy, F.squared_hinge):
        x = Tensor(normal(4, 3).astype(np.float32), requires_grad=True)
        y = loss(x, TARGET)
        assert y.dtype == np.float32
        assert grad(y, x, create_graph=True).dtype == np.float32


# ------------------------------------------------------------------------------ both worlds


def test_functions_of_arrays_give_arrays():
    x = normal(2, 3, 4, 4)
    rows = x.reshape(4, 24)[:, :3]
    calls = [
        lambda x: F.relu(x), lambda x: F.sigmoid(x), lambda x: F.softmax(x),
        lambda x: F.max_pool2d(x, 2), lambda x: F.avg_pool2d(x, 2),
        lambda x: F.leaky_relu(x), lambda x: F.prelu(x, np.array([0.1, 0.2, 0.3])),
        lambda x: F.softplus(x), lambda x: F.adaptive_avg_pool2d(x, 2),
        lambda x: F.conv_transpose2d(x, x[0].reshape(3, 1, 4, 4)),
        lambda x: F.logsumexp(x, 1), lambda x: F.amin(x, 1), lambda x: F.minimum(x, 0.5),
        lambda x: F.conv2d(x, x[:, :, :3, :3]),
        lambda x: F.batch_norm(x, None, None, training=True), lambda x: F.var(x, 1),
    ]  # fmt: skip
    for call in calls:
        array = call(x)
        assert isinstance(array, np.ndarray)
        assert_identical(call(Tensor(x)), array)
    for loss in (F.cross_entropy, F.squared_hinge):
        assert loss(rows, TARGET) == loss(Tensor(rows), TARGET).item()


def test_a_whole_network_to_second_order():
    """Convolution, batch norm, pooling, activation, linear layer and loss in one graph."""
    x = distinct(3, 2, 6, 6)
    arrays = [
        normal(4, 2, 3, 3, seed=1),
        normal(4, seed=2),
        normal(4, seed=3),
        normal(3, 36, seed=4),
    ]

    def network(w1, weight, bias, w2):
        y = F.conv2d(Tensor(x), w1, padding=1)
        y = F.batch_norm(y, None, None, weight, bias, training=True)
        y = F.tanh(F.max_pool2d(y, 2))
        return F.cross_entropy(F.linear(y.flatten(1), w2), TARGET[:3])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(network, *arrays)


# ------------------------------------------------------------------------- gradients of their own


def leaves(*shapes):
    rng = np.random.default_rng(0)
    return [Tensor(rng.standard_normal(s).astype(np.float32), requires_grad=True) for s in shapes]


STE = quantizers.SteSign()
FRESH = {
    "linear": (lambda x, w, b: F.linear(x, w, b), [(6, 8), (5, 8), (5,)]),
    "conv2d": (lambda x, w: F.conv2d(x, w, padding=1), [(2, 3, 6, 6), (4, 3, 3, 3)]),
    "batch_norm": (
        lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True), [(64, 8), (8,), (8,)]
    ),
    "batch_norm, float32 apart": (
        lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True), [(4, 3), (3,), (3,)]
    ),
    "binary_linear": (
        lambda x, w: F.binary_linear(x, w, STE, STE), [(256, 128), (128, 128)]
    ),
    "binary_conv2d": (
        lambda x, w: F.binary_conv2d(x, w, STE, STE), [(16, 64, 8, 8), (64, 64, 3, 3)]
    ),
    "binary_conv2d, depth-wise": (
        lambda x, w: F.binary_conv2d(x, w, None, STE, groups=64), [(64, 64, 18, 18), (64, 1, 3, 3)]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FRESH)
def test_a_gradient_belongs_to_its_leaf_alone(name):
    function, shapes = FRESH[name]
    inputs = leaves(*shapes)
    output = function(*inputs)
    given = np.ones(output.shape, np.float32)
    output.backward(Tensor(given))
    held = [x.grad.data for x in inputs]
    expected = [g.copy() for g in held]
    others = [given, output.data, *(x.data for x in inputs)]
    for i, g in enumerate(held):
        assert g.flags.writeable
        assert not any(np.shares_memory(g, other) for other in others + held[:i])
    # Neither a second backward pass nor another step's arrays change the saved arrays.
    function(*inputs).backward(Tensor(given))
    for x, g, e in zip(inputs, held, expected, strict=True):
        assert_identical(g, e)
        assert_identical(x.grad.data, 2 * e)


def test_labels_that_cross_entropy_does_not_take_get_the_next_step():
    x = Tensor(normal(4, 3))
    with pytest.raises(ValueError, match=r"int8 to int64.*astype\(np.int64\)"):
        F.cross_entropy(x, np.array([0.0, 1.0, 2.0, 0.0]))
    with pytest.raises(ValueError, match=r"write target\[:, 0\] for a column"):
        F.cross_entropy(x, np.array([[0], [1], [2], [0]]))
