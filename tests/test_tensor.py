"""The engine: graph and backward pass, and every operation of tinybnn.tensor."""

import gc
import operator
import threading
import tracemalloc
import weakref

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinybnn.tensor as T
from tinybnn import nn
from tinybnn.tensor import Function, Tensor, as_array, grad, no_grad
from tinybnn.testing import assert_identical, gradcheck, gradgradcheck


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def positive(*shape, seed=0):
    return 0.5 + np.random.default_rng(seed).random(shape)


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


def strided(x):
    """The same values with gaps between them in memory and the first axis reversed."""
    memory = np.full((*x.shape[:-1], 2 * x.shape[-1]), np.nan)
    view = memory[::-1, ..., ::2]
    view[...] = x
    return view


LAYOUTS = {
    "contiguous": np.ascontiguousarray,
    "fortran": np.asfortranarray,
    "strided": strided,
    "swapped": lambda x: np.ascontiguousarray(x.swapaxes(0, -1)).swapaxes(0, -1),
}


def check(function, *arrays):
    """Check first and second order, for every memory layout of the arrays."""
    gradcheck(function, arrays)
    gradgradcheck(function, arrays)
    expected = function(*(Tensor(a) for a in arrays)).data
    for lay_out in list(LAYOUTS.values())[1:]:
        others = [lay_out(a) if np.ndim(a) > 1 else a for a in arrays]
        if any(np.ndim(a) > 1 for a in arrays):
            np.testing.assert_allclose(function(*(Tensor(a) for a in others)).data, expected, 1e-12)
            gradcheck(function, others)


# ------------------------------------------------------------------------------ elementwise

UNARY = {
    "neg": (operator.neg, normal),
    "exp": (T.exp, normal),
    "log": (T.log, positive),
    "sqrt": (T.sqrt, positive),
    "abs": (T.abs, lambda *s: away_from([0], *s)),
    "clamp": (lambda x: T.clamp(x, -0.5, 0.8), lambda *s: away_from([-0.5, 0.8], *s)),
    "clamp_min": (lambda x: x.clamp(min=0.2), lambda *s: away_from([0.2], *s)),
    "clamp_max": (lambda x: x.clamp(max=-0.2), lambda *s: away_from([-0.2], *s)),
    "square": (lambda x: x**2, normal),
    "cube": (lambda x: x**3.0, normal),
    "power_one": (lambda x: x**1, normal),
    "power_half": (lambda x: x**0.5, positive),
    "power_negative": (lambda x: x**-1.5, positive),
    "number_to_power": (lambda x: 1.7**x, normal),
    "number_minus": (lambda x: 2 - x, normal),
    "number_over": (lambda x: 2.5 / x, positive),
    "over_number": (lambda x: x / 2.5, normal),
    "times_itself": (lambda x: x * x, normal),
    "over_itself_plus": (lambda x: x / (x + 3.0), positive),
    "cast": (lambda x: x.to(np.float64) * 2, normal),
}


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 2)], ids=str)
@pytest.mark.parametrize("name", UNARY)
def test_unary(name, shape):
    function, values = UNARY[name]
    check(function, np.asarray(values(*shape)))


BINARY = {
    "add": (operator.add, normal),
    "sub": (operator.sub, normal),
    "mul": (operator.mul, normal),
    "div": (operator.truediv, positive),
    "pow": (operator.pow, positive),
    "maximum": (T.maximum, normal),
    "minimum": (T.minimum, normal),
}
BROADCASTS = [
    ((2, 3), (2, 3)), ((2, 3), (3,)), ((3,), (2, 3)), ((2, 1), (1, 3)), ((1, 1), (2, 3)),
    ((), (2, 3)), ((2, 3), ()), ((), ()), ((1,), ()), ((2, 1, 3), (4, 1)), ((1, 3), (3,)),
]  # fmt: skip


@pytest.mark.parametrize("shapes", BROADCASTS, ids=str)
@pytest.mark.parametrize("name", BINARY)
def test_binary(name, shapes):
    function, values = BINARY[name]
    a, b = (np.asarray(values(*shape, seed=i)) for i, shape in enumerate(shapes))
    check(function, a, b)


@pytest.mark.parametrize("shapes", BROADCASTS, ids=str)
def test_where(shapes):
    a, b = (normal(*shape, seed=i) for i, shape in enumerate(shapes))
    condition = normal(*np.broadcast_shapes(*shapes), seed=2) > 0
    check(lambda a, b: T.where(condition, a, b), np.asarray(a), np.asarray(b))


@given(data=st.data())
def test_where_selects_the_bits_that_numpy_selects(data):
    """Including -0.0 and the payloads of NaN."""
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    shapes = data.draw(hnp.mutually_broadcastable_shapes(num_shapes=3, max_dims=3)).input_shapes
    condition = data.draw(hnp.arrays(bool, shapes[0]))
    bits = f"u{np.dtype(dtype).itemsize}"
    a, b = (data.draw(hnp.arrays(bits, shape)).view(dtype) for shape in shapes[1:])
    result = T.where(condition, T.Tensor(a), T.Tensor(b)).data
    expected = np.where(condition, a, b)
    assert result.dtype == expected.dtype
    assert np.array_equal(result.view(bits), expected.view(bits))


def test_where_with_a_condition_of_more_axes_than_its_values():
    condition = normal(4, 2, 3) > 0
    check(lambda a, b: T.where(condition, a, b), normal(3), normal(2, 1, seed=1))


@given(
    shapes=hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=3),
    name=st.sampled_from(sorted(BINARY)),
)
def test_binary_operations_broadcast_as_numpy_does(shapes, name):
    function, values = BINARY[name]
    a, b = (np.asarray(values(*s, seed=i)) for i, s in enumerate(shapes.input_shapes))
    assert_identical(function(Tensor(a), Tensor(b)), function(a, b))
    gradcheck(function, [a, b])


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize(
    "number",
    [2, 2.0, np.float64(2), np.float32(2), np.int64(2), np.array([1, 2]), np.array([True, True])],
    ids=repr,
)
def test_numbers_and_integers_leave_float32_as_it_is(name, number):
    function, _ = BINARY[name]
    for swap in (False, True):
        x = Tensor([1.0, 2.0], requires_grad=True)
        y = function(number, x) if swap else function(x, number)
        assert isinstance(y, Tensor)
        assert y.dtype == np.float32
        (g,) = grad(y, [x], np.ones(2, np.float32), create_graph=True)
        assert g.dtype == np.float32
        if g.requires_grad:
            g.sum().backward()
            assert x.grad.dtype == np.float32
        expected = function(np.full(2, number, float), x.data.astype(float))
        np.testing.assert_allclose(
            y.data, expected if swap else function(x.data.astype(float), number), 1e-6
        )


FLOAT32_OPERATIONS = {
    **{name: function for name, (function, _) in UNARY.items() if name != "cast"},
    "sum": T.sum,
    "mean": lambda x: T.mean(x, 0),
    "var": lambda x: T.var(x, 1),
    "amax": lambda x: T.amax(x, 0),
    "amin": lambda x: T.amin(x, 0),
    "logsumexp": lambda x: T.logsumexp(x, 1),
    "maximum": lambda x: T.maximum(x, 1.0),
    "minimum": lambda x: T.minimum(np.float64(1.0), x),
    "minimum of integers": lambda x: T.minimum(x, np.array([1, 0, 2])),
    "clamp to NumPy numbers": lambda x: x.clamp(np.float64(0.7), np.float64(1.2)),
    "matmul": lambda x: x @ x.T,
    "pad": lambda x: T.pad(x, (1, 1), 2.0),
    "cat": lambda x: T.cat([x, x * 2.0]),
    "index": lambda x: x[[0, 0, 1]],
    "where": lambda x: T.where(x > 1, x, 0.0),
    "scalar": lambda x: x.sum() * 2 + np.float64(1.0),
}


@pytest.mark.parametrize("name", FLOAT32_OPERATIONS)
def test_dtype_stays_float32(name):
    x = Tensor(positive(2, 3).astype(np.float32), requires_grad=True)
    y = FLOAT32_OPERATIONS[name](x)
    assert y.dtype == np.float32
    total = (y * y).sum()
    assert total.dtype == np.float32
    g = grad(total, x, create_graph=True)
    assert g.dtype == np.float32
    (g * g).sum().backward()
    assert x.grad.dtype == np.float32


def test_the_gradient_has_the_dtype_of_its_leaf():
    x = Tensor([1.0, 2.0], requires_grad=True)
    y = x.to(np.float64) * np.array([1.5, 2.5])
    assert y.dtype == np.float64
    y.sum().backward()
    assert_identical(x.grad, [1.5, 2.5])
    assert x.grad.dtype == np.float32


def slope_at(function, *values):
    xs = [Tensor([v], requires_grad=True, dtype=np.float64) for v in values]
    function(*xs).sum().backward()
    slopes = tuple(x.grad.data[0] for x in xs)
    return slopes[0] if len(slopes) == 1 else slopes


def test_slopes_at_corners():
    assert slope_at(T.abs, 0.0) == 0
    assert slope_at(T.abs, -0.0) == 0
    assert slope_at(lambda x: T.clamp(x, -1, 1), 1.0) == 1  # borders belong to the inside
    assert slope_at(lambda x: T.clamp(x, -1, 1), -1.0) == 1
    assert slope_at(lambda x: T.clamp(x, -1, 1), np.nextafter(1, 2)) == 0
    assert slope_at(lambda x: x**0, 0.0) == 0
    assert slope_at(lambda x: x**1, 0.0) == 1
    assert slope_at(lambda x: x**2, 0.0) == 0
    assert slope_at(lambda x: x**2.5, 0.0) == 0
    assert slope_at(operator.pow, 0.0, 2.0) == (0, 0)
    assert slope_at(operator.pow, 0.0, 1.0) == (1, 0)
    assert slope_at(operator.pow, 0.0, 0.0) == (0, 0)
    assert slope_at(lambda p: 0.0**p, 2.0) == 0
    for function in (T.maximum, T.minimum):
        assert slope_at(function, 2.0, 2.0) == (0.5, 0.5)
        assert slope_at(function, 0.0, -0.0) == (0.5, 0.5)
        assert slope_at(lambda x, f=function: f(x, 2.0), 2.0) == 0.5
        assert slope_at(lambda x, f=function: f(x, x), 2.0) == 1
    assert slope_at(T.maximum, 3.0, 2.0) == slope_at(T.minimum, 2.0, 3.0) == (1, 0)
    assert slope_at(T.maximum, np.inf, np.inf) == (0.5, 0.5)


def test_maximum_and_minimum_as_methods():
    a, b = normal(2, 3), normal(3, seed=1)
    assert_identical(Tensor(a).maximum(Tensor(b)), np.maximum(a, b))
    assert_identical(Tensor(a).minimum(b), np.minimum(a, b))
    assert_identical(T.minimum(a, Tensor(b)), np.minimum(a, b))
    for function in (T.maximum, T.minimum):
        assert np.isnan(function(Tensor([np.nan, 1.0]), Tensor([1.0, np.nan])).data).all()
    with pytest.raises(ValueError, match=r"Minimum: shapes \(2, 3\) and \(2,\) do not fit"):
        T.minimum(Tensor(a), Tensor([1.0, 2.0]))


def test_division_by_large_and_small_float32():
    for scale in (1e25, 1e-25):
        b = Tensor([scale], requires_grad=True)
        (Tensor([scale]) / b).sum().backward()
        np.testing.assert_allclose(b.grad.data, -1 / scale, 1e-6)


def test_second_derivative_of_a_square_at_zero():
    x = Tensor(0.0, requires_grad=True, dtype=np.float64)
    slope = grad(x**2, x, create_graph=True)
    assert grad(slope, x).item() == 2


def test_clamp_without_limits():
    with pytest.raises(ValueError, match="clamp: give min, max or both"):
        T.clamp(Tensor([1.0]))


# ------------------------------------------------------------------------------- reductions

REDUCTIONS = {
    "sum": (T.sum, np.sum),
    "mean": (T.mean, np.mean),
    "amax": (T.amax, np.max),
    "amin": (T.amin, np.min),
    "amin_of_method": (Tensor.amin, np.min),
    "logsumexp": (T.logsumexp, lambda x, **options: np.log(np.sum(np.exp(x), **options))),
    "var": (T.var, lambda x, **options: np.var(x, ddof=1, **options)),
    "var_of_method": (lambda x, dim, *, keepdim: x.var(dim, correction=0, keepdim=keepdim), np.var),
}
DIMS = [None, 0, 1, -1, (0,), (0, 2), (-1, 1), (2, 0, 1)]


@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("dim", DIMS, ids=str)
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reduction(name, dim, keepdim):
    function, reference = REDUCTIONS[name]
    x = distinct(2, 3, 4)
    expected = reference(x, axis=dim, keepdims=keepdim)
    np.testing.assert_allclose(function(Tensor(x), dim, keepdim=keepdim).data, expected, 1e-12)
    check(lambda x: function(x, dim, keepdim=keepdim), x)


def test_reduction_of_a_number():
    for function in (T.sum, T.mean, T.amax, T.amin, lambda x: T.logsumexp(x, None)):
        check(function, np.array(3.0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logsumexp_of_large_and_infinite_values(dtype):
    """No warnings either: pytest turns them into errors."""
    inf = np.inf
    x = np.array(
        [[1e4, 1e4], [-1e4, -1e4], [1e4, -1e4], [1e30, 0], [-inf, 3], [-inf, -inf], [inf, 1e4],
         [inf, -inf], [inf, inf]], dtype,
    )  # fmt: skip
    log2 = np.log(2)
    expected = np.array([1e4 + log2, -1e4 + log2, 1e4, 1e30, 3, -inf, inf, inf, inf], dtype)
    np.testing.assert_allclose(T.logsumexp(x, 1), expected, 1e-6)
    assert_identical(Tensor(x).logsumexp(1, keepdim=True), T.logsumexp(x, 1)[:, None])
    finite = Tensor(x[:6], requires_grad=True)
    y = finite.logsumexp(1)
    assert y.dtype == dtype
    slope = grad(y, finite, np.ones(6), create_graph=True)  # the softmax
    expected = [[0.5, 0.5], [0.5, 0.5], [1, 0], [1, 0], [0, 1], [0, 0]]
    np.testing.assert_allclose(slope.data, expected, 2e-3 if dtype == np.float32 else 1e-9)
    slope.backward(np.ones((6, 2)))
    assert np.isfinite(finite.grad.data).all()
    assert np.isnan(T.logsumexp(np.array([np.nan, 1.0]), 0))


def test_logsumexp_is_close_to_the_largest_value():
    x = normal(4, 5)
    np.testing.assert_allclose(T.logsumexp(1e3 * x, 1) / 1e3, x.max(1), atol=np.log(5) / 1e3)
    np.testing.assert_allclose(T.logsumexp(x + 7.0, 1), T.logsumexp(x, 1) + 7.0, 1e-12)


def test_amax_shares_the_gradient_among_equal_maxima():
    x = Tensor([[1.0, 3.0, 3.0], [2.0, 0.0, 1.0]], requires_grad=True)
    x.amax(1).sum().backward()
    assert_identical(x.grad, [[0, 0.5, 0.5], [1.0, 0, 0]])
    x.grad = None
    x.amax().backward()
    assert_identical(x.grad, [[0, 0.5, 0.5], [0.0, 0, 0]])
    x = Tensor([[1.0, 3.0, 1.0], [2.0, 0.0, 1.0]], requires_grad=True)
    x.amin(1).sum().backward()
    assert_identical(x.grad, [[0.5, 0, 0.5], [0, 1.0, 0]])


def test_var_of_known_numbers():
    x = Tensor([1.0, 2.0, 3.0, 6.0])
    np.testing.assert_allclose(x.var().item(), 14 / 3, 1e-6)
    assert x.var(correction=0).item() == 3.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: x.sum(2), "dim 2 is out of range for a tensor of 2 dimensions"),
        (lambda x: x.mean((0, -2)), r"dim \(0, -2\) names an axis twice"),
        (lambda x: x[:1].var(0), "var: 1 elements with correction=1"),
        (lambda x: x[:0].mean(), r"mean: no elements along dim None of shape \(0, 3\)"),
    ],
)
def test_reduction_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(Tensor(normal(2, 3)))


# ---------------------------------------------------------------------------- matrix product

PRODUCTS = [
    ((3,), (3,)), ((2, 3), (3,)), ((3,), (3, 4)), ((2, 3), (3, 4)), ((5, 2, 3), (5, 3, 4)),
    ((5, 2, 3), (3, 4)), ((2, 3), (5, 3, 4)), ((5, 2, 3), (3,)), ((3,), (5, 3, 4)),
    ((1, 2, 3), (5, 3, 4)), ((6, 1, 2, 3), (5, 3, 1)), ((1, 1), (1, 1)), ((1, 3), (5, 3, 1)),
]  # fmt: skip


@pytest.mark.parametrize("shapes", PRODUCTS, ids=str)
def test_matmul(shapes):
    a, b = (normal(*shape, seed=i) for i, shape in enumerate(shapes))
    assert_identical((Tensor(a) @ Tensor(b)).shape, (a @ b).shape)
    np.testing.assert_allclose((Tensor(a) @ Tensor(b)).data, a @ b, 1e-12)
    check(operator.matmul, a, b)


def test_matmul_with_arrays_on_either_side():
    a, b = normal(2, 3), normal(3, 4)
    for product in (a @ Tensor(b), Tensor(a) @ b, T.matmul(a, Tensor(b))):
        assert isinstance(product, Tensor)
        assert_identical(product, a @ b)
    assert_identical(T.matmul(a, b), a @ b)


def test_matmul_errors():
    with pytest.raises(ValueError, match=r"matmul: inner sizes differ .*\(2, 3\) and \(2, 3\)"):
        Tensor(normal(2, 3)) @ Tensor(normal(2, 3))
    with pytest.raises(ValueError, match="matmul: expects at least one axis"):
        Tensor(1.0) @ Tensor([1.0])
    with pytest.raises(ValueError, match=r"MatMul: shapes \(2, 3, 4\) and \(5, 4, 2\) do not fit"):
        Tensor(normal(2, 3, 4)) @ Tensor(normal(5, 4, 2))


# -------------------------------------------------------------------------- shape operations

SHAPES = {
    "reshape": lambda x: x.reshape(3, 8),
    "reshape_tuple": lambda x: x.reshape((4, -1)),
    "reshape_number": lambda x: x[0, 0, 0].reshape(()),
    "permute": lambda x: x.permute(2, 0, 1),
    "permute_negative": lambda x: x.permute((-1, 1, 0)),
    "transpose": lambda x: x.transpose(0, -1),
    "T": lambda x: x.T,
    "flip": lambda x: x.flip(1),
    "flip_two": lambda x: x.flip((0, -1)),
    "flatten": lambda x: x.flatten(),
    "flatten_tail": lambda x: x.flatten(1),
    "flatten_head": lambda x: x.flatten(0, 1),
    "broadcast_new": lambda x: x.broadcast_to(2, 2, 3, 4),
    "broadcast_ones": lambda x: x[:, :1].broadcast_to((2, 5, 4)),
    "pad_last": lambda x: T.pad(x, (1, 2)),
    "pad_two": lambda x: T.pad(x, (0, 1, 2, 0), -3.0),
    "pad_all": lambda x: T.pad(x, (1, 0, 0, 1, 2, 2), 1.0),
    "cat": lambda x: T.cat([x, x * 2.0, x[:1]]),
    "cat_last": lambda x: T.cat([x, x[..., :2] * x[..., 1:3]], dim=-1),
    "cat_same_twice": lambda x: T.cat([x, x], 1) * 3.0,
    "stack": lambda x: T.stack([x, x * x]),
    "stack_last": lambda x: T.stack([x, x * x], -1),
    "stack_middle": lambda x: T.stack([x, x * x], 1),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shape_operation(name):
    check(SHAPES[name], normal(2, 3, 4))


def test_shape_operations_against_numpy():
    x = normal(2, 3, 4)
    t = Tensor(x)
    assert_identical(t.permute(2, 0, 1), x.transpose(2, 0, 1))
    assert_identical(t.transpose(0, -1), x.swapaxes(0, 2))
    assert_identical(t.flip(0, 2), x[::-1, :, ::-1])
    assert_identical(t.flatten(0, 1), x.reshape(6, 4))
    assert_identical(T.cat([t, x], -1), np.concatenate([x, x], -1))
    assert_identical(T.stack([t, x], -1), np.stack([x, x], -1))
    assert_identical(T.stack([Tensor(1.0), Tensor(2.0)]), [1.0, 2.0])
    # Pairs start at the last axis.
    assert_identical(
        T.pad(t, (1, 2, 3, 0), 7.0), np.pad(x, ((0, 0), (3, 0), (1, 2)), constant_values=7)
    )


@pytest.mark.parametrize("pad", [(1, 2), (1, 0, 0, 1), (0, 0, 1, 1, 2, 0), (0,) * 8], ids=str)
def test_pad_keeps_the_order_in_memory(pad):
    x = normal(2, 5, 6, 3)  # N, H, W, C
    y = T.pad(Tensor(x.transpose(0, 3, 1, 2)), pad, 1.0)
    assert y.data.transpose(0, 2, 3, 1).flags.c_contiguous
    assert T.pad(Tensor(x), pad, 1.0).data.flags.c_contiguous
    assert T.pad(Tensor(x.astype(np.float32)), pad).dtype == np.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: x.reshape(4, 2), r"reshape: \(2, 3\) does not fit into \(4, 2\)"),
        (lambda x: x.permute(0, 0), r"dim \(0, 0\) names an axis twice"),
        (lambda x: x.permute(0), r"permute: \(0,\) does not name each of the 2 axes once"),
        (lambda x: x.transpose(0, 2), "dim 2 is out of range"),
        (lambda x: x.flatten(1, 0), "flatten: start_dim 1 is after end_dim 0"),
        (lambda x: x.broadcast_to(3, 3), "BroadcastTo: .*do not fit"),
        (lambda x: T.pad(x, (1,)), "pad: expects pairs"),
        (lambda x: T.pad(x, (-1, 0)), "pad: expects pairs"),
        (lambda x: T.pad(x, (0,) * 6), "pad: expects pairs"),
        (lambda x: T.cat([x, x.T]), r"cat: shapes .* differ outside of dim 0"),
        (lambda x: T.cat([]), "cat: expects at least one tensor"),
        (lambda x: T.stack([x, x.T]), "stack: expects equal shapes"),
        (lambda x: T.stack([]), "stack: expects at least one tensor"),
        (lambda x: x.item(), "item: the tensor has 6 elements"),
    ],
)
def test_shape_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(Tensor(normal(2, 3)))


INDICES = {
    "integer": 1,
    "negative": -1,
    "numpy_integer": np.int64(1),
    "integers": (1, 2, 3),
    "slice": slice(0, 1),
    "stepped": (slice(None), slice(None, None, 2)),
    "backwards": (slice(None), slice(None, None, -1)),
    "ellipsis": (..., 0),
    "newaxis": (None, slice(None), None, 1),
    "empty": slice(0, 0),
    "all": ...,
    "list": [0, 1, 0, 0],
    "array": np.array([1, 1, 0]),
    "nested_tuple": ((1, 1, 0),),
    "two_arrays": (np.array([0, 1, 0]), np.array([2, 2, 2])),
    "outer": (np.array([[0], [1]]), np.array([[0, 0, 2]])),
    "array_behind_slice": (slice(None), np.array([2, 0, 2])),
    "array_and_newaxis": (np.array([1, 1]), None, slice(1, 3)),
    "arrays_apart": (np.array([1, 1]), slice(None), np.array([0, 0])),
    "mask": normal(2, 3, 4) > 0,
    "mask_of_rows": np.array([True, False]),
    "mask_behind_slice": (slice(None), np.array([True, False, True])),
    "empty_mask": np.zeros((2, 3, 4), bool),
}


@pytest.mark.parametrize("name", INDICES)
def test_index(name):
    index = INDICES[name]
    x = normal(2, 3, 4)
    assert_identical(Tensor(x)[index], x[index])
    check(lambda x: x[index] * 2.0, x)


@given(data=st.data(), shape=hnp.array_shapes(max_dims=3, max_side=4))
def test_any_basic_index(data, shape):
    index = data.draw(hnp.basic_indices(shape, allow_newaxis=True))
    x = normal(*shape)
    assert_identical(Tensor(x)[index], x[index])
    gradcheck(lambda x: x[index], [x])


def test_repeated_index_receives_every_share():
    x = Tensor([1.0, 2.0, 3.0], requires_grad=True)
    (x[[0, 2, 0, 0]] * np.array([1, 10, 100, 1000])).sum().backward()
    assert_identical(x.grad, [1101.0, 0, 10])


# ---------------------------------------------------------------------------------- the graph


def test_hand_computed_gradients():
    x = Tensor([1.0, 2.0], requires_grad=True)
    w = Tensor([[3.0, 4.0], [5.0, 6.0]], requires_grad=True)
    y = (w @ x) * x  # (3 + 8) * 1, (5 + 12) * 2
    assert_identical(y, [11.0, 34.0])
    y.sum().backward()
    assert_identical(w.grad, [[1.0, 2.0], [2.0, 4.0]])  # x x^T
    assert_identical(x.grad, [24.0, 33.0])  # (w + w^T) x


def test_10000_chained_operations():
    x = Tensor(1.0, requires_grad=True)
    y = x
    for _ in range(10_000):
        y = y * 1.0 + 1.0
    assert y.item() == 10_001
    y.backward(retain_graph=True)
    assert x.grad.item() == 1
    x.grad = None
    y.backward(create_graph=True)
    assert x.grad.item() == 1


def test_a_long_graph_is_dropped_without_recursion():
    y = Tensor(1.0, requires_grad=True)
    for _ in range(100_000):
        y = y * y
    del y
    gc.collect()


def test_diamond_waits_for_both_branches():
    class Spy(Function):
        calls = 0

        def forward(self, x):
            return x * 1.0

        def backward(self, grad, output, x):
            Spy.calls += 1
            return grad

    x = Tensor(3.0, requires_grad=True)
    y = Spy.apply(x * x)
    z = y * 2.0 + T.exp(y * 0.0) * y + y
    z.backward()
    assert Spy.calls == 1
    assert x.grad.item() == 2 * 3 * 4


def test_stacked_diamonds_stay_linear():
    x = y = Tensor(1.0, requires_grad=True)
    for _ in range(60):  # 2 ** 60 paths
        y = y + y
    y.backward()
    assert x.grad.item() == 2.0**60


def test_same_tensor_twice_in_an_operation():
    x = Tensor([2.0, 3.0], requires_grad=True)
    (x * x).sum().backward()
    assert_identical(x.grad, [4.0, 6.0])
    x.grad = None
    (x - x).sum().backward()
    assert_identical(x.grad, [0.0, 0.0])
    x.grad = None
    (x @ x).backward()
    assert_identical(x.grad, [4.0, 6.0])


def test_leaf_used_in_several_outputs_accumulates():
    x = Tensor([1.0, 2.0], requires_grad=True)
    (x * 2.0).sum().backward()
    (x * x).sum().backward()
    assert_identical(x.grad, [4.0, 6.0])


def test_gradients_do_not_share_memory():
    a, b = Tensor([1.0, 2.0], requires_grad=True), Tensor([3.0, 4.0], requires_grad=True)
    y = a + b
    seed = np.ones(2, np.float32)
    y.backward(seed)
    a.grad.data[0] = 100
    assert_identical(b.grad, [1.0, 1.0])
    assert_identical(seed, [1.0, 1.0])
    total = a.sum()
    total.backward()
    assert_identical(a.grad, [101.0, 2.0])


class Tripled(Function):
    fresh = True
    saves = ()

    def forward(self, x):
        return 3.0 * x

    def backward(self, grad, output, x):
        return 3.0 * grad


@pytest.mark.parametrize("fresh", [(True,), (False,), (True, False), (False, True)])
@pytest.mark.parametrize("flip", [False, True])
def test_sums_of_gradients_change_no_gradient_of_others(fresh, flip):
    # Add gives both inputs the same array; adding to one's gradient must not change the other's.
    a, b = Tensor([1.0, 2.0], requires_grad=True), Tensor([3.0, 4.0], requires_grad=True)
    u, v = a * 1.0, b * 1.0
    parts = [Tripled.apply(u) if is_fresh else u * 3.0 for is_fresh in fresh]
    parts.insert(0 if flip else len(parts), u + v)
    seed = Tensor([1.0, 10.0])
    of_a, of_b, of_part = grad(sum(parts[1:], parts[0]), [a, b, parts[0]], seed, create_graph=False)
    times = 1.0 + 3.0 * len(fresh)
    assert_identical(of_a, [times, 10.0 * times])
    assert_identical(of_b, [1.0, 10.0])
    assert_identical(of_part, [1.0, 10.0])
    assert_identical(seed, [1.0, 10.0])


def test_second_backward_is_refused():
    x = Tensor([1.0, 2.0], requires_grad=True)
    y = (x * x).sum()
    y.backward()
    with pytest.raises(RuntimeError, match=r"graph behind Sum was freed .* retain_graph=True"):
        y.backward()
    assert_identical(x.grad, [2.0, 4.0])  # nothing was added


def test_a_freed_part_of_a_graph_is_refused():
    x = Tensor(2.0, requires_grad=True)
    shared = x * x
    (shared * 3.0).backward()
    with pytest.raises(RuntimeError, match="graph behind Mul was freed"):
        (shared * 4.0).backward()


def test_retain_graph_accumulates():
    x = Tensor([1.0, 2.0], requires_grad=True)
    y = (x * x).sum()
    for i in range(1, 4):
        y.backward(retain_graph=True)
        assert_identical(x.grad, [2.0 * i, 4.0 * i])
    y.backward()
    assert_identical(x.grad, [8.0, 16.0])


def test_intermediate_results_keep_no_gradient():
    x = Tensor(2.0, requires_grad=True)
    y = x * x
    (y * 3.0).backward()
    assert y.grad is None
    assert x.is_leaf
    assert not y.is_leaf


def test_grad_of_intermediate_results():
    x = Tensor(2.0, requires_grad=True)
    y = x * x
    z = y * y * x
    dz_dy, dz_dx = grad(z, [y, x])
    assert dz_dy.item() == 2 * 4 * 2
    assert dz_dx.item() == 5 * 2**4
    assert x.grad is None
    assert y.grad is None


def test_grad_of_an_output_in_itself():
    x = Tensor(2.0, requires_grad=True)
    y = x * x
    assert grad(y, y).item() == 1
    assert grad(x, x).item() == 1


def test_grad_skips_what_leads_to_no_wanted_input():
    class Expensive(Function):
        def forward(self, x):
            return x * 1.0

        def backward(self, grad, output, x):
            raise AssertionError("this rule is not needed")

    x, w = Tensor(2.0, requires_grad=True), Tensor(3.0, requires_grad=True)
    assert grad(Expensive.apply(x) * w, w).item() == 2


def test_grad_of_several_outputs():
    x = Tensor([1.0, 2.0], requires_grad=True)
    (g,) = grad([x * 2.0, (x * x).sum()], [x], [np.array([1.0, 10.0]), None])
    assert_identical(g, [2 + 2.0, 20 + 4.0])


def test_grad_of_an_unused_input():
    x, unused = Tensor(2.0, requires_grad=True), Tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(RuntimeError, match=r"inputs\[1\] \(shape \(2,\)\) was not used"):
        grad(x * x, [x, unused])


def test_grad_gives_none_for_an_unused_input_where_it_may_be_unused():
    x, unused = Tensor(2.0, requires_grad=True), Tensor([1.0, 2.0], requires_grad=True)
    gradient, nothing = grad(x * x, [x, unused], allow_unused=True)
    assert gradient.item() == 4.0 and nothing is None


def test_create_graph_gives_higher_derivatives():
    x = Tensor(2.0, requires_grad=True, dtype=np.float64)
    y = x**5
    for expected in (5 * 16, 20 * 8, 60 * 4, 120 * 2, 120, 0):
        y = grad(y, x, create_graph=True)
        assert y.item() == expected


def test_backward_with_create_graph_records_the_gradient():
    x = Tensor([1.0, 2.0], requires_grad=True)
    (x * x * x).sum().backward(create_graph=True)
    g, x.grad = x.grad, None
    assert_identical(g, [3.0, 12.0])
    g.sum().backward()
    assert_identical(x.grad, [6.0, 12.0])


def test_backward_without_create_graph_records_nothing():
    x = Tensor([1.0, 2.0], requires_grad=True)
    y = (x * x).sum()
    assert not grad(y, x).requires_grad


def test_hessian_vector_product():
    a = normal(4, 4)
    x = Tensor(normal(4, seed=1), requires_grad=True)
    g = grad((x * (Tensor(a) @ x)).sum(), x, create_graph=True)
    v = normal(4, seed=2)
    np.testing.assert_allclose(grad(g, x, v).data, (a + a.T) @ v, 1e-12)


def test_incoming_gradient_of_the_wrong_shape():
    x = Tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(ValueError, match=r"gradient has shape \(3,\), the output \(2,\)"):
        (x * x).backward(np.ones(3))
    with pytest.raises(ValueError, match="1 gradients for 2 outputs"):
        grad([x * x, x + x], x, [np.ones(2)])


def test_backward_of_many_numbers_needs_a_gradient():
    x = Tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(RuntimeError, match=r"an output of shape \(2,\) needs a gradient"):
        (x * x).backward()


def test_backward_of_a_constant():
    with pytest.raises(RuntimeError, match="depends on nothing that requires grad"):
        (Tensor(1.0) * 2.0).backward()


# ------------------------------------------------------------------------------------- no_grad


def test_no_grad():
    x = Tensor(2.0, requires_grad=True)
    with no_grad():
        assert not (x * x).requires_grad
        with no_grad():
            assert not (x * x).requires_grad
        assert not (x * x).requires_grad
    assert (x * x).requires_grad


def test_no_grad_ends_with_an_exception():
    with pytest.raises(ZeroDivisionError), no_grad():
        raise ZeroDivisionError
    assert (Tensor(2.0, requires_grad=True) * 2.0).requires_grad


def test_no_grad_as_decorator():
    x = Tensor(2.0, requires_grad=True)

    @no_grad()
    def power(n):
        """Recursive: one decorator, entered while it is active."""
        return x if n == 1 else x * power(n - 1)

    for _ in range(2):
        assert power(3).item() == 8
        assert not power(3).requires_grad
        assert (x * x).requires_grad


def test_no_grad_belongs_to_its_thread():
    x = Tensor(2.0, requires_grad=True)
    seen = []
    with no_grad():
        thread = threading.Thread(target=lambda: seen.append((x * x).requires_grad))
        thread.start()
        thread.join()
    assert seen == [True]


def test_detach():
    x = Tensor([2.0], requires_grad=True)
    y = (x * x).detach()
    assert not y.requires_grad
    (x * y).sum().backward()
    assert_identical(x.grad, [4.0])


# -------------------------------------------------------------------------- in-place operators

IN_PLACE = {
    "+=": operator.iadd,
    "-=": operator.isub,
    "*=": operator.imul,
    "/=": operator.itruediv,
    "[...] =": lambda x, y: x.__setitem__(0, y),
}
each_in_place = pytest.mark.parametrize("symbol", IN_PLACE)


@each_in_place
@pytest.mark.parametrize("other", [2.0, np.float64(2), np.array([2, 4]), "tensor"], ids=str)
def test_in_place_operators_change_the_array_itself(symbol, other):
    other = Tensor([2.0, 4.0], dtype=np.float64) if isinstance(other, str) else other
    memory = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    x, expected = Tensor(memory), memory.copy()
    IN_PLACE[symbol](expected, np.asarray(T.as_array(other), np.float32))
    result = IN_PLACE[symbol](x, other)
    assert result is x or symbol == "[...] ="
    assert x.data is memory
    assert memory.dtype == np.float32
    assert_identical(memory, expected)


@each_in_place
def test_in_place_operators_refuse_leaves_that_a_graph_needs(symbol):
    operate = IN_PLACE[symbol]
    x = Tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(RuntimeError) as error:
        operate(x, 3.0)
    assert str(error.value).startswith(f"{symbol} on a Tensor that a graph needs (a leaf")
    assert "shape (2,)" in str(error.value)
    assert_identical(x, [1.0, 2.0])
    with no_grad():
        before = x
        operate(x, 3.0)
        assert x is before
        assert x.requires_grad
    operate(x.detach(), 3.0)


each_operator = pytest.mark.parametrize("symbol", list(IN_PLACE)[:4])
PLAIN = {
    "+=": operator.add, "-=": operator.sub, "*=": operator.mul, "/=": operator.truediv,
}  # fmt: skip


@each_operator
def test_in_place_operators_of_a_graph_make_a_new_tensor(symbol):
    """There `x += y` means `x = x + y`, so arrays saved by rules stay unchanged."""
    for x_needs, y_needs in ((True, False), (False, True), (True, True)):
        results = []
        for operators in (IN_PLACE, PLAIN):
            w = Tensor([1.0, 2.0], requires_grad=x_needs)
            y = Tensor([[3.0, 5.0]], requires_grad=y_needs)
            x = T.exp(w * 2.0).reshape(1, 2)
            before, values = x, x.data.copy()
            result = operators[symbol](x, y)
            assert result is not x
            assert_identical(before, values)
            (result * x).sum().backward()
            results.append((result, w.grad, y.grad))
        for actual, expected in zip(*results, strict=True):
            assert (actual is None) == (expected is None)
            if actual is not None:
                assert_identical(actual, expected)


@each_operator
def test_in_place_operators_of_a_graph_keep_shape_and_dtype(symbol):
    operate, w = IN_PLACE[symbol], Tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(ValueError, match=r"right side of shape \(3, 2\) does not fit into \(2,\)"):
        operate(w * 1.0, np.ones((3, 2), np.float32))
    result = operate(w * 1.0, Tensor([2.0, 4.0], dtype=np.float64))
    assert result.dtype == np.float32
    result.sum().backward()
    assert w.grad.dtype == np.float32


def test_the_last_line_of_a_residual_block():
    w = Tensor([1.0, -2.0], requires_grad=True)
    out = T.maximum(w * 3.0, 0.0)
    out += w
    out = T.maximum(out, 0.0)
    out.sum().backward()
    assert_identical(out, [4.0, 0.0])
    assert_identical(w.grad, [4.0, 0.0])


def test_index_assignment_refuses_what_a_graph_needs_or_would_not_record():
    """`total[0] = w` on a plain total: the gradient of w would silently be lost."""
    w, total = Tensor([1.0, 2.0], requires_grad=True), Tensor([[0.0, 0.0]])
    with pytest.raises(RuntimeError, match="the result of Mul that requires grad"):
        (w * 2.0)[0] = 3.0
    with pytest.raises(RuntimeError, match=r"requires grad \(shape \(2,\)\) on its right"):
        total[0] = w
    assert_identical(total, [[0.0, 0.0]])
    total[0] = w.detach()
    with no_grad():
        total[0] = w


def test_other_in_place_operators_make_a_new_tensor():
    x = y = Tensor([1.0, 2.0], requires_grad=True)
    y **= 2
    assert y is not x
    y.sum().backward()
    assert_identical(x.grad, [2.0, 4.0])


@each_in_place
def test_backward_needs_what_was_saved(symbol):
    operate = IN_PLACE[symbol]

    def changed(change, use=lambda w, x: (w * x).sum()):
        w, x = Tensor([1.0, 2.0], requires_grad=True), Tensor([3.0, 4.0])
        y = use(w, x)
        with no_grad():
            change(w, x, y)
        return y

    mul = "backward: a Tensor that Mul needs was changed by an in-place operator"
    for change in (
        lambda w, x, y: operate(x, 5.0),
        lambda w, x, y: operate(w, 5.0),
        lambda w, x, y: operate(x.detach(), 5.0),
        lambda w, x, y: operate(Tensor(x), 5.0),
        lambda w, x, y: operate(x[:1], 5.0),
        lambda w, x, y: operate(x.reshape(2, 1), 5.0),
        lambda w, x, y: operate(x.reshape(2, 1).T.flip(0), 5.0),
    ):
        with pytest.raises(RuntimeError, match=mul):
            changed(change).backward()
    with pytest.raises(RuntimeError, match="a Tensor that Exp needs was changed"):
        y = changed(lambda w, x, y: operate(y, 5.0), lambda w, x: T.exp(w))
        y.backward(np.ones(2))
    # Arrays that no rule reads may change: the sum saves nothing, and copies have their own memory.
    changed(lambda w, x, y: operate(x, 5.0), lambda w, x: (w + x).sum()).backward()
    changed(lambda w, x, y: operate(x[[0]], 5.0)).backward()
    changed(lambda w, x, y: operate(x * 1.0, 5.0)).backward()
    changed(lambda w, x, y: operate(Tensor(x, dtype=np.float64), 5.0)).backward()


def test_a_change_before_the_use_is_no_harm():
    w, x = Tensor([1.0, 2.0], requires_grad=True), Tensor([3.0, 4.0])
    x += 1.0
    x[0] = 7.0
    (w * x).sum().backward()
    assert_identical(w.grad, [7.0, 5.0])


def test_an_update_between_two_backwards_of_one_graph():
    w = Tensor([2.0], requires_grad=True)
    y = (w * w).sum()
    y.backward(retain_graph=True)
    with no_grad():
        w -= 0.1 * w.grad
    assert_identical(w, np.array([1.6], np.float32))
    with pytest.raises(RuntimeError, match="Mul needs was changed"):
        y.backward()
    (w * w).sum().backward()  # a new graph sees the new value


def test_a_masked_assignment():
    x = Tensor([1.0, -2.0, 3.0])
    x[x < 0] = 0.0
    x[[0, 2]] *= 2.0
    assert_identical(x, [2.0, 0.0, 6.0])


# -------------------------------------------------------------------------------------- memory


def training_step(x, w):
    w.grad = None
    hidden = T.clamp(x @ w, -1.0, 1.0)
    loss = (hidden * hidden).mean() + T.exp(hidden).sum() * 1e-3
    loss.backward()
    return loss


def test_memory_does_not_grow():
    x, w = Tensor(normal(8, 4)), Tensor(normal(4, 4), requires_grad=True)
    gc.collect()
    gc.disable()  # memory that only the cyclic collector would free counts as growth
    try:
        tracemalloc.start()
        for i in range(2000):
            training_step(x, w)
            if i == 1300:  # Python's free lists are full by now
                before, _ = tracemalloc.get_traced_memory()
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    finally:
        gc.enable()
    assert after - before < 10_000  # 700 steps: 14 bytes a step


@pytest.mark.parametrize("use_backward", [True, False])
def test_graphs_are_free_of_reference_cycles(use_backward):
    x, w = Tensor(normal(8, 4)), Tensor(normal(4, 4), requires_grad=True)
    gc.disable()
    try:
        hidden = T.exp(x @ w)
        loss = (hidden * hidden).sum()
        references = [weakref.ref(t) for t in (hidden, loss, hidden.function, loss.function)]
        if use_backward:
            loss.backward()
        else:
            g = grad(loss, w, create_graph=True)
            references += [weakref.ref(g), weakref.ref(g.function)]
            del g
        del hidden, loss
        assert [r() for r in references] == [None] * len(references)
    finally:
        gc.enable()


def test_backward_frees_what_rules_saved():
    w = Tensor(normal(4, 4), requires_grad=True)
    hidden = T.exp(w)
    reference = weakref.ref(hidden)
    loss = (hidden * hidden).sum()
    del hidden
    assert reference() is not None  # Mul saved it
    loss.backward()
    assert reference() is None


# ---------------------------------------------------------------------------- custom functions


class Swish(Function):
    """x * sigmoid(x), written as in the documentation."""

    def forward(self, x):
        return x / (1 + np.exp(-x))

    def backward(self, grad, output, x):
        s = 1.0 / (1.0 + T.exp(-x))
        return grad * (s + x * s * (1.0 - s))


def test_custom_function():
    check(Swish.apply, normal(2, 3))
    assert isinstance(Swish.apply(np.ones(2)), np.ndarray)  # arrays in, an array out


def custom(rule, **attributes):
    return type(
        "Custom",
        (Function,),
        {"forward": lambda self, *xs: xs[0] * 1.0, "backward": rule, **attributes},
    )


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            lambda self, grad, output, x: grad[:1],
            r"Custom.backward: the gradient of input 0 has shape \(1,\), the input .* \(2,\)",
        ),
        (
            lambda self, grad, output, x: (grad, grad),
            "Custom.backward returned 2 gradients for 1 input",
        ),
        (lambda self, grad, output, x: None, "Custom.backward returned no gradient for input 0"),
    ],
)
def test_wrong_rules_are_named(rule, message):
    x = Tensor([1.0, 2.0], requires_grad=True)
    y = custom(rule).apply(x).sum()
    with pytest.raises(RuntimeError, match=message):
        y.backward()


def test_rule_may_skip_what_is_not_needed():
    seen = []

    def rule(self, grad, output, a, b):
        seen.append(self.needs)
        return grad, None

    x = Tensor([1.0, 2.0], requires_grad=True)
    custom(rule).apply(x, Tensor([3.0, 4.0])).sum().backward()
    assert seen == [(True, False)]
    assert_identical(x.grad, [1.0, 1.0])


def test_rule_gets_what_it_saves():
    seen = []

    def rule(self, grad, output, x):
        seen.append((output is not None, x is not None))
        return grad

    for saves in ((), ("inputs",), ("output",), ("inputs", "output")):
        x = Tensor([1.0], requires_grad=True)
        custom(rule, saves=saves).apply(x).backward()
    assert seen == [(False, False), (False, True), (True, False), (True, True)]


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (operator.add, "Add"),
        (operator.sub, "Sub"),
        (operator.mul, "Mul"),
        (operator.truediv, "Div"),
    ],
)
def test_shapes_that_do_not_fit_are_named(call, name):
    with pytest.raises(ValueError, match=rf"{name}: shapes \(2,\) and \(3,\) do not fit"):
        call(Tensor([1.0, 2.0]), Tensor([1.0, 2.0, 3.0]))


# ---------------------------------------------------------------------------- the tensor itself


def test_construction():
    assert Tensor([1, 2]).dtype == np.float32
    assert Tensor(np.arange(3)).dtype == np.float32
    assert Tensor(np.array([True])).dtype == np.float32
    assert Tensor(2.5).dtype == np.float32
    assert Tensor(np.float64(2.5)).dtype == np.float64
    assert Tensor([1.0], dtype=np.float64).dtype == np.float64
    memory = np.ones(3)
    assert Tensor(memory).data is memory
    assert Tensor(Tensor(memory)).data is memory
    with pytest.raises(TypeError, match="float32 or float64"):
        Tensor([1], dtype=np.int64)
    with pytest.raises(TypeError, match="float32 or float64"):
        Tensor([1.0]).to(np.int64)


def test_protocols():
    x = Tensor([[1.0, -2.0], [3.0, 4.0]])
    assert x.shape == (2, 2)
    assert x.ndim == 2
    assert x.numel() == 4
    assert len(x) == 2
    assert [row.data.tolist() for row in x] == [[1.0, -2.0], [3.0, 4.0]]
    assert float(x[0, 0]) == 1
    assert bool(x[0, 0])
    assert x.to(np.float32) is x
    assert np.array(x, dtype=np.float64).dtype == np.float64
    assert np.asarray(x) is x.data
    assert abs(x)[0, 1].item() == 2
    with pytest.raises(TypeError):
        iter_of_number = Tensor(1.0)
        len(iter_of_number)


def test_comparisons_give_arrays():
    x = Tensor([1.0, 2.0, 3.0])
    for compare in (operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne):
        for other in (2.0, np.array([1.0, 3.0, 3.0]), Tensor([1.0, 3.0, 3.0])):
            result = compare(x, other)
            assert result.dtype == bool
            assert_identical(result, compare(x.data, np.asarray(other)))
    assert len({x, x, Tensor([1.0])}) == 2  # hashed by identity


def test_repr():
    assert repr(Tensor([1.0, 2.0])) == "Tensor([1., 2.])"
    x = Tensor([1.0], requires_grad=True, dtype=np.float64)
    assert repr(x) == "Tensor([1.], dtype=float64, requires_grad=True)"
    assert repr(x * 2.0) == "Tensor([2.], dtype=float64, grad_fn=<Mul>)"


@pytest.mark.parametrize("ufunc", T.OF_NUMPY, ids=lambda ufunc: ufunc.__name__)
def test_numpy_functions_of_tensors_are_recorded(ufunc):
    shape = (2, 2) if ufunc is np.matmul else (3,)
    rng = np.random.default_rng(0)
    arrays = [rng.uniform(0.5, 1.0, shape) for _ in range(ufunc.nin)]
    tensors = [Tensor(a, requires_grad=True) for a in arrays]
    result = ufunc(*tensors)
    if ufunc in T.COMPARISONS.values():
        assert result.dtype == bool and np.array_equal(result, ufunc(*arrays))
        return
    assert isinstance(result, Tensor) and result.requires_grad
    np.testing.assert_allclose(result.data, ufunc(*arrays), 1e-12)
    gradcheck(ufunc, arrays)
    mixed = ufunc(arrays[0], *tensors[1:]) if ufunc.nin == 2 else result
    assert isinstance(mixed, Tensor) and mixed.requires_grad


def test_numpy_functions_without_a_rule_take_values_but_no_gradient():
    x = Tensor([1.0, -2.0], requires_grad=True)
    for function in (np.arctan, np.sign, np.floor, lambda x: np.where(x > 0, x, 0),
                     lambda x: np.clip(x, 0, 1), np.add.reduce, np.sort):  # fmt: skip
        with pytest.raises(RuntimeError, match=r"no gradient rule.*x\.detach"):
            function(x)
        expected = function(x.data)
        with no_grad():
            assert np.array_equal(as_array(function(x)), expected)
        assert np.array_equal(as_array(function(x.detach())), expected)
    assert isinstance(np.arctan(x.detach()), Tensor)


def test_an_array_that_meets_a_tensor_gives_a_tensor():
    x = Tensor([1.0, 2.0], requires_grad=True)
    for y in (x, x.detach()):
        array = np.ones(2, np.float32)
        array += y
        assert isinstance(array, Tensor) and array.requires_grad == y.requires_grad
        assert np.array_equal(array.data, [2.0, 3.0])
        for result in (np.ones(2) * y, np.ones(2) @ y, np.float64(2) - y, np.float32(2) / y):
            assert isinstance(result, Tensor) and result.requires_grad == y.requires_grad
        assert (np.float64(2) * y).dtype == np.float32


@pytest.mark.parametrize("kind", ["array", "Tensor"])
@pytest.mark.parametrize("form", ["in place", "anew", "no_grad", "number"])
def test_updates_written_by_hand(kind, form):
    """Updates as in from-scratch courses, with arrays and Tensors on the right."""
    p = Tensor([1.0, 2.0], requires_grad=True)
    for _ in range(2):
        p.grad = None
        (p * p).sum().backward()
        step = p.grad if kind == "Tensor" else p.grad.data
        if form == "in place":
            p.data -= 0.25 * step
        elif form == "anew":
            p.data = p.data - 0.25 * step
        elif form == "no_grad":
            with no_grad():
                p -= 0.25 * step
        else:
            p.data -= np.float64(0.25) * step
        assert type(p.data) is np.ndarray and p.data.dtype == np.float32
        assert p.requires_grad and p.is_leaf
    assert np.array_equal(p.data, [0.25, 0.5])


def test_data_in_place_keeps_the_memory():
    p = Tensor([1.0, 2.0], requires_grad=True)
    memory = p.data
    p.data -= Tensor([1.0, 1.0])
    assert p.data is memory


def test_data_that_changes_under_a_graph_is_noticed():
    p = Tensor([1.0, 2.0], requires_grad=True)
    loss = (p * p).sum()
    p.data = p.data - 1.0
    with pytest.raises(RuntimeError, match="changed"):
        loss.backward()


def test_data_is_checked_as_in_the_constructor():
    p = Tensor([1.0, 2.0])
    p.data = [3, 4]
    assert type(p.data) is np.ndarray and p.data.dtype == np.float32
    with pytest.raises(TypeError, match=r"Tensor\.data: expects float32, float64"):
        p.data = np.array([1j, 2j])


def test_more_than_one_value_to_the_constructor():
    for make in (Tensor, nn.Parameter, nn.LatentParameter):
        with pytest.raises(TypeError, match=r"takes one value, got 2; write .*\(\[3.0, 4.0\]\)"):
            make(3, 4)
    with pytest.raises(TypeError, match="requires_grad=True"):
        Tensor(np.ones(2), True)


@pytest.mark.parametrize(
    "data",
    [
        np.ones(2, np.float16), np.ones(2, np.longdouble), np.ones(2, complex), np.array([1, None]),
        np.array(["1"]), np.array(["2020-01-01"], "M8[D]"), 1j, "one", None,
    ],
    ids=["float16", "longdouble", "complex", "object", "str", "time", "1j", "text", "None"],
)  # fmt: skip
def test_dtypes_without_a_right_answer(data):
    with pytest.raises(TypeError, match="expects float32, float64, integers or bools, got"):
        Tensor(data)


@pytest.mark.parametrize("dtype", [np.float16, np.longdouble, complex, int, object])
def test_dtypes_that_are_no_tensors(dtype):
    for convert in (lambda: Tensor(1.0, dtype=dtype), lambda: Tensor(1.0).to(dtype)):
        with pytest.raises(TypeError, match="dtype must be float32 or float64, got"):
            convert()


def test_dtypes_that_have_a_right_answer():
    for dtype in ("?", "i1", "u1", "i8", "u8", ">i4"):
        assert Tensor(np.ones(2, dtype)).dtype == np.float32
    for dtype in (">f4", ">f8"):  # as in some files
        x = Tensor(np.array([1.0, 2.0], dtype))
        assert x.dtype == np.dtype(dtype).newbyteorder("=") and x.data.tolist() == [1.0, 2.0]


def test_trace_collects_operations():
    x = Tensor([1.0, 2.0], requires_grad=True)
    with T.trace() as calls:
        assert T.is_tracing()
        y = (x * 2.0).sum()
    assert not T.is_tracing()
    assert [type(call.function).__name__ for call in calls] == ["Mul", "Sum"]
    assert calls[-1].output is y
    assert calls[0].inputs[0] is x


@each_operator
def test_trace_records_in_place_operators(symbol):
    memory = np.array([1.0, 2.0], np.float32)
    x = y = Tensor(memory)
    with no_grad(), T.trace() as tape:
        y = IN_PLACE[symbol](y, 4.0)
    assert y is not x
    assert_identical(memory, [1.0, 2.0])
    assert_identical(y, PLAIN[symbol](x, 4.0))
    assert len(tape) == 1
    assert tape[0].inputs == (x, 4.0)
    assert tape[0].output is y
    assert not tape.escapes


def test_trace_notes_reads_of_what_an_in_place_operator_left_behind():
    for read in (lambda x, view: x * 1.0, lambda x, view: view * 1.0):
        x = Tensor([1.0, 2.0])
        with no_grad(), T.trace() as tape:
            y, view = x, x.reshape(2, 1)
            y += 1.0
            y * 1.0
            assert not tape.escapes
            read(x, view)
        assert [escape.reason[:10] for escape in tape.escapes] == ["it is read"]


def test_trace_knows_a_detached_tensor():
    x = Tensor([1.0, 2.0])
    with T.trace() as tape:
        y = Tensor(x.detach())
        z = Tensor(x, dtype=np.float64)
    assert tape.source(y) is x
    assert tape.source(x) is x
    assert tape.source(z) is z  # a copy


COMPARED = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq,
    "!=": operator.ne,
}  # fmt: skip


@pytest.mark.parametrize("symbol", COMPARED)
def test_comparisons_are_arrays_and_recorded_where_they_end_in_where_or_a_product(symbol):
    compare = COMPARED[symbol]
    x, y = Tensor([1.0, 2.0, 3.0]), Tensor([3.0, 2.0, 1.0])
    plain = compare(x, y)
    assert plain.dtype == bool
    assert_identical(plain, compare(x.data, y.data))
    assert_identical(compare(x, 2.0), compare(x.data, 2.0))
    uses = (
        lambda c: x * c, lambda c: c * x, lambda c: x - c, lambda c: T.where(c, x, y),
        lambda c: T.where(c, 1.0, -1.0), lambda c: y / T.where(c, x, 2.0),
    )  # fmt: skip
    for use in uses:
        with no_grad(), T.trace() as tape:
            result = use(compare(x, y))
        assert_identical(result, use(plain))
        assert not tape.escapes
        assert type(tape[0].function) is T.Compare
        assert tape[0].inputs == (x, y)
        assert tape[0].options == {"operator": symbol}


def test_all_else_that_is_made_of_a_comparison_is_noted():
    """It works like the array, and the tape notes that it did not record the operation."""
    x = Tensor([1.0, -2.0, 3.0])
    uses = (
        lambda c: ~c, lambda c: c & c, lambda c: c.sum(), lambda c: c.any(), lambda c: c[0],
        lambda c: 1.0 - c, lambda c: c * 2.0, lambda c: c.astype(np.float32), lambda c: list(c),
        lambda c: np.where(c, 1.0, 2.0), lambda c: np.asarray(c), lambda c: c == c,
        lambda c: bool(c[:1]), lambda c: len(c),
    )  # fmt: skip
    for use in uses:
        with T.trace() as tape:
            comparison = x > 0
            assert comparison.shape == (3,)
            assert comparison.dtype == bool
            assert not tape.escapes
            output = use(comparison)
        assert tape.escapes, use
        assert all(escape.tensors == (x,) for escape in tape.escapes)
        np.testing.assert_array_equal(output, use(x > 0))


def test_values_that_leave_the_tape_are_noted():
    ways = (
        lambda x: x.item(), float, bool, np.asarray, lambda x: x.numpy(),
        lambda x: x.__setitem__(0, 1.0),
    )  # fmt: skip
    for way in ways:
        with no_grad(), T.trace() as tape:
            x = Tensor([2.0])
            way(x)
        (escape,) = tape.escapes
        assert escape.tensors == (x,)
        way(x)


def test_manual_seed():
    T.manual_seed(7)
    first = T.default_generator().random(4)
    T.manual_seed(7)
    assert_identical(T.default_generator().random(4), first)


# ----------------------------------------------------------------------- tinybnn.testing itself


class WrongMul(Function):
    broadcasts = True

    def forward(self, a, b):
        return a * b

    def backward(self, grad, output, a, b):
        return grad * b, -grad * a


class WrongSecond(Function):
    """x³ whose rule has the right value but hides its dependence on x from differentiation."""

    def forward(self, x):
        return x**3

    def backward(self, grad, output, x):
        return grad * (3.0 * T.as_array(x) ** 2)


def test_gradcheck_reports_what_is_wrong():
    with pytest.raises(AssertionError) as error:
        gradcheck(WrongMul.apply, [positive(2, 3), positive(3)])
    text = str(error.value)
    assert "last operation WrongMul" in text
    assert "with respect to input 1" in text
    assert "input 0 (2, 3), input 1 (3,), output (2, 3)" in text
    assert "analytic" in text
    assert "worst element (" in text


def test_gradgradcheck_reports_what_is_wrong():
    gradcheck(WrongSecond.apply, normal(3))
    with pytest.raises(AssertionError, match=r"the gradient of the gradient .* input 0 is wrong"):
        gradgradcheck(WrongSecond.apply, normal(3))


def test_gradcheck_finds_one_wrong_element():
    class Almost(Function):
        def forward(self, x):
            return x * x

        def backward(self, grad, output, x):
            wrong = np.zeros(np.shape(x))
            wrong[1, 2] = 1e-3
            return grad * (2.0 * x + wrong)

    with pytest.raises(AssertionError, match=r"worst element \(1, 2\)"):
        gradcheck(Almost.apply, normal(4, 5))


def test_gradcheck_finds_an_input_that_is_cut_off():
    with pytest.raises(AssertionError, match="analytic 0, numeric"):
        gradcheck(lambda x, y: x * y.detach(), [normal(3), normal(3)])


def test_gradcheck_rejects_what_is_no_tensor():
    with pytest.raises(TypeError, match="must return one Tensor, got ndarray"):
        gradcheck(lambda x: x.data, normal(3))


def test_gradcheck_with_a_surrogate():
    class Round(Function):
        def forward(self, x):
            return np.round(x)

        def backward(self, grad, output, x):
            return grad

    gradcheck(Round.apply, normal(5), surrogate=lambda x: x)
    with pytest.raises(AssertionError):
        gradcheck(Round.apply, normal(5))


def test_assert_identical():
    assert_identical(np.array([np.nan, -0.0]), np.array([-np.nan, -0.0]))
    with pytest.raises(
        AssertionError, match=r"1 of 2 values differ, first at \(1,\): 0.0, expected"
    ):
        assert_identical(np.array([np.nan, 0.0]), np.array([np.nan, -0.0]))
    assert_identical(np.array([1, 2], np.int32), np.array([1, 2], np.int64))
    assert_identical(Tensor([1.0]), np.array([1.0]))
    assert_identical(np.zeros((0, 3)), np.zeros((0, 3)))
    with pytest.raises(AssertionError, match=r"bits: 2 of 4 values differ, first at \(0, 1\): 2, "):
        assert_identical(np.array([[1, 2], [3, 4]]), np.array([[1, 0], [0, 4]]), "bits")
    with pytest.raises(AssertionError, match=r"shape \(2,\), expected \(1, 2\)"):
        assert_identical(np.ones(2), np.ones((1, 2)))
    with pytest.raises(AssertionError, match="dtype float64, expected int64"):
        assert_identical(np.ones(2), np.ones(2, np.int64))
    with pytest.raises(AssertionError, match="1 of 2 values differ"):
        assert_identical(np.array([np.nan, 1.0]), np.array([1.0, 1.0]))


def test_a_tensor_is_no_out_of_numpy():
    """It would change although a graph has saved it."""
    x, y = Tensor([1.0, 2.0], requires_grad=True), Tensor([0.0, 0.0])
    loss = (x * y).sum()
    for inputs in ((y, y), (x, y), (np.ones(2), np.ones(2))):
        with pytest.raises(TypeError, match=r"np.add: out must be an array, got a Tensor"):
            np.add(*inputs, out=y)
    assert np.array_equal(y.data, [0.0, 0.0])
    loss.backward()
