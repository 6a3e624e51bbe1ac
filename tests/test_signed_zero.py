"""0.0 and -0.0: one rule in the float model, in its kernels and in the packed model.

They are equal, but 1 / 0.0 and 1 / -0.0 are not. Which of the two NumPy's maximum gives depends on
the CPU and on the size of the array, so the rules stand in the docstrings of the operations.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinybnn import deploy, nn
from tinybnn import functional as F
from tinybnn import tensor as T
from tinybnn.kernels.machine import threads
from tinybnn.tensor import Tensor, no_grad
from tinybnn.testing import assert_identical

VALUES = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-40, -1e-40], np.float32)


def first_of_equals(a, b, wins):
    """Number by number, in plain Python."""
    return a if wins(a, b) or a != a else b


def picked(rng, *shape):
    """Numbers, half of them zeros."""
    x = rng.choice(VALUES, shape)
    return np.where(rng.random(shape) < 0.5, rng.choice(VALUES[:2], shape), x).astype(np.float32)


SIZES = (1, 3, 16, 17, 100, 5000)  # vectors and their rests, NumPy's loops and kernels


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_maximum_is_the_first_of_equals(size, dtype):
    rng = np.random.default_rng(size)
    a, b = (picked(rng, size).astype(dtype) for _ in range(2))
    largest = [first_of_equals(x, y, lambda x, y: x >= y) for x, y in zip(a, b, strict=True)]
    smallest = [first_of_equals(x, y, lambda x, y: x <= y) for x, y in zip(a, b, strict=True)]
    for convert in (np.asarray, Tensor):
        assert_identical(T.maximum(convert(a), convert(b)), np.array(largest, dtype))
        assert_identical(T.minimum(convert(a), convert(b)), np.array(smallest, dtype))
    assert_identical(T.maximum(a, 0.0), np.array([x if x >= 0 or x != x else 0 for x in a], dtype))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("limits", [(0.0, 1.0), (-0.0, 0.0), (-1.0, 0.0), (None, -0.0), (0, None)])
def test_clamp_and_hardtanh_give_x_where_it_equals_a_limit(size, limits):
    x = picked(np.random.default_rng(size), size)
    low, high = limits
    expected = []
    for value in x:
        for limit, wins in ((low, lambda x, y: x >= y), (high, lambda x, y: x <= y)):
            value = value if limit is None else first_of_equals(value, np.float32(limit), wins)
        expected.append(value)
    assert_identical(T.clamp(x, low, high), np.array(expected, np.float32))
    if None not in limits and low < high:
        assert_identical(F.hardtanh(x, low, high), np.array(expected, np.float32))


@pytest.mark.parametrize("size", SIZES)
def test_relu_gives_no_negative_zero(size):
    x = picked(np.random.default_rng(size), size)
    expected = np.array([v if v > 0 or v != v else 0.0 for v in x], np.float32)
    assert_identical(F.relu(x), expected)
    assert_identical(F.relu(x.astype(np.float64)), expected.astype(np.float64))


@pytest.mark.parametrize("rows", [1, 300])
def test_prelu_and_its_relatives_give_the_slope_times_zero(rows):
    rng = np.random.default_rng(rows)
    x, slope = picked(rng, rows, 20), rng.choice([0.25, -0.5, 0.0, -0.0], 20).astype(np.float32)
    with np.errstate(all="ignore"):
        expected = np.where(x > 0, x, slope * x)
        assert_identical(F.prelu(x, slope), expected)
        assert_identical(F.leaky_relu(x, 0.25), np.where(x > 0, x, np.float32(0.25) * x))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kernel", [(2, 2), (3, 1), (16, 17)])  # the last has too many pixels
def test_a_max_pool_gives_the_first_of_equals(dtype, kernel):
    x = picked(np.random.default_rng(0), 2, 3, 17, 18).astype(dtype)
    result = F.max_pool2d(x, kernel, 1)
    for index in np.ndindex(result.shape):
        n, c, i, j = index
        window = x[n, c, i : i + kernel[0], j : j + kernel[1]].reshape(-1)
        expected = window[0]
        for value in window[1:]:
            expected = first_of_equals(expected, value, lambda x, y: x >= y)
        assert_identical(result[index], expected)


@pytest.mark.parametrize("dim", [0, 1, (0, 1), (1, 2), (2, 0), None])
@pytest.mark.parametrize("keepdim", [False, True])
def test_a_maximum_over_axes_is_the_first_of_equals(dim, keepdim):
    shares = [0.4, 0.4, 0.1, 0.1]
    x = np.random.default_rng(0).choice(np.float32([0.0, -0.0, 1.0, -1.0]), (4, 5, 6), p=shares)
    axes = sorted(range(3) if dim is None else np.atleast_1d(dim))
    rows = np.moveaxis(x, axes, range(-len(axes), 0))
    rows = rows.reshape(*rows.shape[: 3 - len(axes)], -1)
    for function, wins in ((T.amax, lambda a, b: a >= b), (T.amin, lambda a, b: a <= b)):
        result = function(x, dim, keepdim)
        expected = np.empty(rows.shape[:-1], np.float32)
        for index in np.ndindex(expected.shape):
            best = rows[index][0]
            for value in rows[index][1:]:
                best = first_of_equals(best, value, wins)
            expected[index] = best
        assert result.ndim == (3 if keepdim else 3 - len(axes))
        assert_identical(np.reshape(result, expected.shape), expected)


# -------------------------------------------------------------------------------- both paths

STEPS = {
    "relu": lambda x, c: F.relu(x),
    "relu of minus": lambda x, c: F.relu(-x),
    "prelu": lambda x, c: F.prelu(x, c),
    "leaky": lambda x, c: F.leaky_relu(x, 0.5),
    "hardtanh": lambda x, c: F.hardtanh(x, -1.0, 0.0),
    "clamp": lambda x, c: F.clamp(x, 0.0, None),
    "clamp to minus zero": lambda x, c: F.clamp(x, None, -0.0),
    "maximum": lambda x, c: F.maximum(x, -x),
    "maximum with zero": lambda x, c: F.maximum(x, -0.0),
    "maximum of zero": lambda x, c: F.maximum(np.float32([0.0]), x),
    "where": lambda x, c: F.where(x > 0, x, -0.0),
    "product": lambda x, c: x * (x > 0),
    "abs": lambda x, c: F.abs(x),
    "minus": lambda x, c: -x,
    "add": lambda x, c: x + c.reshape(_by_channel(x)),
    "multiply": lambda x, c: x * c.reshape(_by_channel(x)),
    "divide": lambda x, c: c.reshape(_by_channel(x)) / x,
    "sqrt": lambda x, c: F.sqrt(x),
    "self": lambda x, c: x - x,
}


def _by_channel(x):
    return (1, -1, *(1,) * (x.ndim - 2))


class Steps(nn.Module):
    """Operations one after the other, between layers that make zeros."""

    def __init__(self, names, first, constants, pool):
        self.first, self.names, self.pool = first, names, pool
        self.constants = nn.Parameter(constants)

    def forward(self, x):
        x = self.first(x)
        for name in self.names:
            x = STEPS[name](x, self.constants)
        return F.max_pool2d(x, 2, 1) if self.pool else x


def layers(rng, image):
    """A layer whose sums are 0 now and then, of many kinds; and nothing."""
    if not image:
        dead, ternary = nn.Linear(4, 4, rng=rng), nn.BinaryLinear(4, 4, weight_quantizer="ste_tern")
        dead.weight.data[...], dead.bias.data[...] = rng.choice([0.0, -0.0], (4, 4)), -0.0
        ternary.weight.data[:2] = -0.0
        return [nn.Identity(), nn.BinaryLinear(4, 4, rng=rng), ternary, dead]
    dead, ternary = (
        nn.Conv2d(4, 4, 1, bias=False, rng=rng),
        nn.BinaryConv2d(4, 4, 1, weight_quantizer="ste_tern", rng=rng),
    )
    dead.weight.data[...] = rng.choice([0.0, -0.0], dead.weight.shape)
    ternary.weight.data[:2] = 0.0
    return [
        nn.Identity(), nn.BinaryConv2d(4, 4, 3, padding=1, rng=rng), ternary, dead,
        nn.BinaryConv2d(4, 4, 3, groups=4, padding=1, rng=rng), nn.AvgPool2d(1),
        nn.BinaryConv2d(4, 4, 1, input_quantizer=None, rng=rng),
    ]  # fmt: skip


@given(st.data())
def test_packed_models_keep_the_sign_of_zero(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    image = data.draw(st.booleans())
    shape = (4, 3, 5) if image else (4,)
    names = data.draw(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=5))
    first = data.draw(st.sampled_from(layers(rng, image)))
    constants = rng.choice([0.0, -0.0, 1.0, -2.0], 4).astype(np.float32)
    model = Steps(names, first, constants, image and data.draw(st.booleans()))
    packed = deploy.compile(model, shape)
    x = picked(rng, data.draw(st.sampled_from((1, 2, 90))), *shape)
    with no_grad(), np.errstate(all="ignore"):
        expected = model.eval()(Tensor(x)).data
        assert_identical(packed.predict(x), expected)
        deploy.verify(model, packed, x)
        with threads.num_threads(1):
            assert_identical(packed.predict(x, batch_size=7), expected)


def test_equal_means_equal_bits():
    with pytest.raises(AssertionError, match=r"1 of 2 values differ, first at \(1,\)"):
        assert_identical([1.0, 0.0], [1.0, -0.0])
    assert_identical([np.nan, -0.0], [-np.nan, -0.0])
    model = nn.Sequential(nn.Identity(), nn.Hardtanh())
    packed = deploy.compile(model, (2,))

    class Other(nn.Module):
        def forward(self, x):
            return F.hardtanh(F.where(x != 0, x, 0.0))

    with pytest.raises(AssertionError):
        deploy.verify(Other(), packed, np.full((1, 2), -0.0, np.float32))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(2, 8, 1, 2), (2, 3, 4, 5), (1, 1, 1, 1), (1, 65, 3, 1)])
def test_an_average_pool_begins_with_zero(dtype, shape):
    """So that padding, and where an image lies in memory, make no difference."""
    x = picked(np.random.default_rng(0), *shape).astype(dtype)
    x[0] = -0.0
    for padding in (0, 1):
        if min(shape[2:]) + 2 * padding < 2:
            continue
        result = [
            F.avg_pool2d(one, 2, 1, padding)
            for one in (
                x,
                x.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2),
                np.asfortranarray(x),
            )
        ]
        assert_identical(result[0][0], np.zeros_like(result[0][0]))
        for other in result[1:]:
            assert_identical(other, result[0])


@pytest.mark.parametrize("pool", [F.avg_pool2d, F.max_pool2d])
@pytest.mark.parametrize("geometry", [(2, 2, 0), (2, 1, 1), (3, 2, 1)])
def test_gradients_of_pools_have_the_zeros_of_the_rule(pool, geometry):
    """The kernel for float32 and NumPy in float64: sums begin with 0.0."""
    rng = np.random.default_rng(0)
    values, result = rng.integers(-2, 3, (2, 3, 5, 6)), []
    for dtype in (np.float32, np.float64):
        x = Tensor(values, requires_grad=True, dtype=dtype)
        y = pool(x, *geometry)
        y.backward(np.random.default_rng(1).choice([0.0, -0.0, 4.0, -4.0], y.shape).astype(dtype))
        result.append(x.grad.data.astype(np.float32))
    assert_identical(*result)
