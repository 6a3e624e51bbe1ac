"""The complete parts of the exercise files work, together with right answers."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

SOLUTIONS = Path(__file__).parent / "solutions"


@pytest.fixture
def convolution(monkeypatch):
    monkeypatch.syspath_prepend(SOLUTIONS)
    yield importlib.import_module("mybnn.convolution")
    for module in [m for m in sys.modules if m.split(".")[0] == "mybnn"]:
        del sys.modules[module]


@pytest.fixture
def dual(convolution):
    return importlib.import_module("mybnn.dual")


def operands(dtype):
    rng = np.random.default_rng(0)
    x = np.where(rng.normal(size=(2, 3, 5, 4)) >= 0, 1, -1).astype(dtype)
    return x, rng.uniform(-1.5, 1.5, (4, 3, 3, 3)).astype(dtype)


def test_the_binary_convolution_is_the_scale_times_sums_of_words(convolution):
    x, latent = operands(np.float32)
    signs = np.where(latent >= 0, np.float32(1), np.float32(-1))
    y = convolution.binary_conv2d(convolution.Tensor(x), convolution.Tensor(latent), padding=1)
    sums = convolution.xnor_conv2d(x, signs, padding=1)
    scale = convolution.weight_scale(latent)[:, None, None]
    assert y.dtype == np.float32
    assert np.array_equal(y.data, scale * sums.astype(np.float32))


def test_the_gradients_of_the_binary_convolution(convolution):
    x, latent = operands(np.float64)
    a, b = convolution.Tensor(x), convolution.Tensor(latent)
    y = convolution.binary_conv2d(a, b, padding=1)
    grad = np.random.default_rng(1).normal(size=y.shape)
    (y * grad).sum().backward()
    signs, scale = np.where(latent >= 0, 1.0, -1.0), np.abs(latent).mean((1, 2, 3))
    seen = convolution.windows(x, 3, padding=1).reshape(2, 5, 4, 3, 3, 3)
    products = np.einsum("nohw,nhwcij->ocij", grad, seen)  # by a filter's weights
    by_signs = products * scale[:, None, None, None] * (np.abs(latent) <= 1)
    by_scale = (products * signs).sum((1, 2, 3), keepdims=True) * signs / 27
    assert np.allclose(b.grad, by_signs + by_scale)
    by_windows = np.einsum("nohw,ocij->nhwcij", grad, scale[:, None, None, None] * signs)
    by_x = convolution.fold_windows(by_windows.reshape(2, 5, 4, 27), x.shape, 3, padding=1)
    assert np.allclose(a.grad, by_x)


@pytest.mark.parametrize("padding, value", [(0, 0), (1, 0), (1, -1)])
def test_the_gradients_of_the_depthwise_convolution(dual, padding, value):
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(2, 3, 3 + 2 * padding, 2 + 2 * padding))

    def function(x, weight):
        return dual.depthwise_conv2d(x, weight, padding, value) * factors

    operands = rng.normal(size=(2, 3, 5, 4)), rng.normal(size=(3, 3, 3))
    assert importlib.import_module("mybnn.engine").gradcheck(function, *operands) < 1e-7
