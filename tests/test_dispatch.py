"""Which kernel computes which formula: the table of `kernels.dispatch` is what happens."""

import functools
import inspect
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinybnn import functional as F
from tinybnn import quantizers
from tinybnn.kernels import dispatch
from tinybnn.tensor import Tensor, grad, trace

ROWS = {
    name
    for name, value in vars(dispatch).items()
    if inspect.isfunction(value) and value.__module__ == dispatch.__name__ and name[0] != "_"
}
# Rows that answer for all arrays: the kernel's reference does where the kernel does not.
ALWAYS = {"ordered_matmul", "two_lines", "two_lines_gradient", "two_values", "two_values_gradient"}
LABELS = np.arange(32) % 8
CONSTANT = np.full(16, 0.5)


def adapted_conv2d(x, weight, **options):
    quantizer, scale = quantizers.ste_sign, np.array([0.7], x.dtype)
    options = {"padding": 1, "groups": x.shape[1] // weight.shape[1]} | options
    return F.adapted_conv2d(
        x, weight.astype(x.dtype), scale, -scale, quantizers.approx_sign, quantizer, quantizer,
        **options,
    )  # fmt: skip


# What a user calls, on images (8, 16, 8, 8) or the shape that stands there, and the rows asked for.


def in_line(x):
    """The formula that second derivatives of a batch norm evaluate, added to the norm itself."""
    y = F.batch_norm(x, None, None, training=True)
    ones = np.ones(16, x.dtype)
    return y + Tensor(y.function.line(x.data, ones, ones)) if y.function else y


CALLS = {
    "conv2d": (
        lambda x: F.conv2d(x, np.ones((4, 16, 3, 3), x.dtype)), ["conv2d", "conv2d_input"],
    ),
    "weight": (
        lambda w: F.conv2d(np.ones((2, 16, 9, 9), w.dtype), w), ["conv2d", "conv2d_weight"],
    ),
    "eval": (
        lambda x: F.conv2d(x, np.ones((4, 16, 3, 3), x.dtype), fixed_order=True),
        ["ordered_conv2d", "conv2d_input"],
    ),
    "transposed": (
        lambda x: F.conv_transpose2d(x, np.ones((16, 4, 3, 3), x.dtype)),
        ["conv2d_input", "conv2d"],
    ),
    "adabin": (
        lambda x: adapted_conv2d(x, np.random.default_rng(1).standard_normal((16, 16, 3, 3))),
        ["two_values", "conv2d_input", "adapted_conv2d", "two_values_gradient"],
    ),
    "depthwise adabin": (
        lambda x: adapted_conv2d(x, np.random.default_rng(1).standard_normal((32, 1, 3, 3))),
        ["two_values", "conv2d_input", "adapted_conv2d", "two_values_gradient"],
    ),
    "linear": (
        lambda x: F.linear(x, np.ones((4, 8), x.dtype), fixed_order=True),
        ["ordered_matmul"],
    ),
    "batch norm": (
        lambda x: F.batch_norm(x, None, None, training=True),
        ["normalise_batch", "batch_norm_gradients"],
    ),
    "its eval": (
        lambda x: F.batch_norm(x, np.zeros(16, np.float32), np.ones(16, np.float32)),
        ["affine"],
    ),
    "its line": (in_line, ["normalise_batch", "normalise", "batch_norm_gradients"]),
    "prelu": (lambda x: F.prelu(x, CONSTANT), ["two_lines", "two_lines_gradient"]),
    "rsign": (
        lambda x: F.rsign(x, CONSTANT, quantizers.approx_sign),
        ["two_values", "two_values_gradient"],
    ),
    "leaky": (F.leaky_relu, ["leaky_relu", "leaky_relu_gradient"]),
    "relu": (F.relu, ["gated_gradient"]),
    "hardtanh": (F.hardtanh, ["gated_gradient"]),
    "ste_sign": (quantizers.ste_sign, ["sign", "gated_gradient"]),
    "ste_tern": (quantizers.SteTern(), ["sign", "gated_gradient"]),
    "approx_sign": (quantizers.approx_sign, ["sign", "tent_gradient"]),
    "max_pool2d": (lambda x: F.max_pool2d(x, 2), ["max_pool2d", "max_unpool2d"]),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 2), ["avg_pool2d", "avg_unpool2d"]),
    "channels": (lambda x: F.channel_shuffle(x, 4), ["take_channels", "add_channels"]),
    "cross_entropy": (lambda x: F.cross_entropy(x, LABELS), ["cross_entropy"]),
}  # fmt: skip
SHAPES = {
    "weight": (4, 16, 3, 3), "linear": (32, 8), "cross_entropy": (32, 8),
    "depthwise adabin": (32, 32, 24, 24),
}  # fmt: skip


def images(name, dtype=np.float32):
    shape = SHAPES.get(name, (8, 16, 8, 8))
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    if x.ndim == 4:
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    return x


def answers(name, x, monkeypatch, switched_off=False):
    """Value and gradient of a call; and for each row that was asked, whether it had an answer."""
    asked = {}

    def spy(row, function):
        def ask(*arguments):
            answer = None if switched_off else function(*arguments)
            asked[row] = asked.get(row, False) or answer is not None
            return answer

        return ask

    monkeypatch.setattr(dispatch, "MUCH", 1 << 20)
    for row in ROWS - ALWAYS:
        monkeypatch.setattr(dispatch, row, spy(row, getattr(dispatch, row)))
    x = Tensor(x, requires_grad=True)
    y = CALLS[name][0](x)
    (gradient,) = grad(y, [x], np.ones_like(y.data))
    monkeypatch.undo()
    return y.data, gradient.data, asked


def test_a_row_that_the_table_leaves_out():
    table = dispatch.__doc__.split("\n====")[2]
    assert set(re.findall(r"^(\w+) +\S", table, re.MULTILINE)) == ROWS
    assert set().union(*(rows for _, rows in CALLS.values())) == ROWS


@pytest.mark.parametrize("name", CALLS)
def test_a_formula_that_forgets_its_kernel(name, monkeypatch):
    asked = answers(name, images(name), monkeypatch)[2]
    assert {row for row, taken in asked.items() if taken} == {*CALLS[name][1]} - ALWAYS


@pytest.mark.parametrize("name", CALLS)
def test_a_kernel_of_floats_that_takes_doubles(name, monkeypatch):
    asked = answers(name, images(name, np.float64), monkeypatch)[2]
    assert not any(asked.values())


@pytest.mark.parametrize("name", CALLS)
def test_a_formula_that_is_not_what_its_kernel_computes(name, monkeypatch):
    x = images(name)
    for a, b in zip(
        answers(name, x, monkeypatch)[:2], answers(name, x, monkeypatch, True)[:2], strict=True
    ):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_allclose(a, b, 1e-4, 1e-4)


def test_a_pseudo_gradient_of_its_own_that_gets_the_kernel_of_another():
    class Half(quantizers.SteSign):
        @functools.wraps(quantizers.SteSign.pseudo_gradient)
        def pseudo_gradient(self, x):
            return super().pseudo_gradient(x) / 2

    x = Tensor(images("ste_sign"), requires_grad=True)
    for quantizer in (Half(), quantizers.SteSign()):
        (gradient,) = grad(quantizer(x), [x], np.ones_like(x.data))
        assert np.array_equal(gradient.data, quantizer.pseudo_gradient(x.data))
    assert quantizers.ApproxSign().is_tent and not Half().is_tent


def test_a_few_numbers_that_wait_for_the_compiler():
    code = """
import sys
from tinybnn import functional as F, nn, quantizers
from tinybnn.tensor import Tensor
x = Tensor([[1.0, -2.0]], requires_grad=True)
y = F.leaky_relu(F.hardtanh(F.relu(quantizers.approx_sign(quantizers.ste_sign(x)))))
F.linear(y, Tensor([[1.0, 2.0]])).sum().backward()
sys.exit("numba" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@given(
    st.sampled_from([3, 20, 70]), st.booleans(), st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 9), st.integers(1, 3)),
    st.tuples(st.integers(0, 2), st.integers(0, 2)), st.integers(1, 2), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_adabin_of_another_geometry_on_bits_or_on_floats(
    channels, is_depthwise, kernel, stride, padding, dilation, seed
):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((3, channels, 5, 6), np.float32)
    weight = (channels, 1) if is_depthwise else (5, channels)
    weight = rng.standard_normal((*weight, *kernel), np.float32)
    options, result = {"stride": stride, "padding": padding, "dilation": dilation}, []
    for much in (0, np.inf):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dispatch, "MUCH", much)
            result.append(adapted_conv2d(x, weight, **options).data)
    with trace():
        expected = adapted_conv2d(x, weight, **options).data
    assert all(np.array_equal(sums, expected) for sums in result)
