"""Gradients of binary layers, in the input and in the weight, against their references.

Gradients that are small integers have exact sums in float32, so the order does not matter and the
comparison is ==. Real ones are compared with sums in float64.
"""

import os
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tinybnn import functional as F
from tinybnn.kernels.machine import simd, threads
from tinybnn.kernels.signs import bits
from tinybnn.kernels.training import input_gradient, sign_gradients, weight_gradient
from tinybnn.kernels.training.sign_gradients import geometry_of
from tinybnn.tensor import Tensor

from cpus import compiles_for

seeds = st.integers(0, 2**32 - 1)
channel_counts = st.one_of(st.integers(1, 70), st.sampled_from([15, 16, 17, 63, 64, 65, 128, 130]))
if numba.config.DISABLE_JIT:  # plain Python is slow
    channel_counts = st.sampled_from([1, 2, 3, 7, 16, 17, 33, 64, 65])
CAN = simd.cpu_features()
METHODS = ["lookup", *["masked"] * ("avx512f" in CAN), "float"]


def random_bits(rng, *shape):
    return bits.pack_reference(rng.choice([-1, 1], shape))


def same(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a, b)


@st.composite
def convolutions(draw):
    """Shapes and keywords of a convolution whose output is not empty."""
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
    dilation = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    size = []
    for k, p, d in zip(kernel, padding, dilation, strict=True):
        least = max(1, d * (k - 1) + 1 - 2 * p)
        size.append(draw(st.integers(least, least + 6)))
    counts = draw(st.integers(0, 3)), groups * draw(channel_counts), groups * draw(channel_counts)
    keywords = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
    return counts, tuple(size), kernel, keywords


def out_size(size, kernel, stride, padding, dilation, groups):
    return tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(size, padding, dilation, kernel, stride, strict=True)
    )


def integer_gradient(rng, density, *shape):
    """Small integers; this share of them is not zero."""
    integers = rng.integers(1, 9, shape) * rng.choice([-1, 1], shape)
    return np.where(rng.random(shape) < density, integers, 0).astype(np.float32)


VGG = dict(stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1)


@given(seeds, convolutions(), st.sampled_from([0, 0.25, 1]), st.sampled_from(["zeros", "ones"]))
@example(0, ((2, 128, 64), (6, 5), (3, 3), VGG), 1, "zeros")
@example(0, ((1, 1, 1), (1, 1), (3, 2), dict(VGG, padding=(4, 4), stride=(3, 3))), 1, "zeros")
@example(0, ((0, 64, 64), (4, 4), (3, 3), VGG), 1, "zeros")
def test_integer_gradients_are_exact(seed, case, density, padding_mode):
    (images, channels, filters), size, kernel, geometry = case
    rng = np.random.default_rng(seed)
    grad = integer_gradient(rng, density, images, *out_size(size, kernel, **geometry), filters)
    weight = random_bits(rng, filters, *kernel, channels // geometry["groups"])
    x = random_bits(rng, images, *size, channels)
    shape = geometry_of(channels, filters, size, kernel, **geometry, padding_mode=padding_mode)
    in_input = input_gradient.conv2d_input_gradient_reference(grad, weight, shape)
    in_weight = weight_gradient.conv2d_weight_gradient_reference(grad, x, shape)
    for method in METHODS:
        result = input_gradient.conv2d_input_gradient(grad, weight, shape, method=method)
        assert same(result, in_input), method
        result = weight_gradient.conv2d_weight_gradient(grad, x, shape, method=method)
        assert same(result, in_weight), method


@given(seeds, convolutions(), st.sampled_from(["zeros", "ones"]))
def test_references_are_the_gradients_of_conv2d(seed, case, padding_mode):
    """The engine's convolution on ±1 in float64, differentiated: integers again, so ==."""
    (images, channels, filters), size, kernel, geometry = case
    rng, groups = np.random.default_rng(seed), geometry["groups"]
    images = max(images, 1)
    grad = integer_gradient(rng, 1, images, *out_size(size, kernel, **geometry), filters)
    weight = random_bits(rng, filters, *kernel, channels // groups)
    x = random_bits(rng, images, *size, channels)
    (ph, pw), outside = geometry["padding"], 1 if padding_mode == "ones" else 0
    image = bits.unpack_reference(x, channels, np.float64).transpose(0, 3, 1, 2)
    image = np.pad(image, ((0, 0), (0, 0), (ph, ph), (pw, pw)), constant_values=outside)
    image = Tensor(image, requires_grad=True)
    signs = bits.unpack_reference(weight, channels // groups, np.float64).transpose(0, 3, 1, 2)
    signs = Tensor(signs, requires_grad=True)
    y = F.conv2d(image, signs, None, geometry["stride"], 0, geometry["dilation"], groups)
    y.backward(grad.astype(np.float64).transpose(0, 3, 1, 2))
    inside = np.asarray(image.grad)[:, :, ph : ph + size[0], pw : pw + size[1]]
    shape = geometry_of(channels, filters, size, kernel, **geometry, padding_mode=padding_mode)
    result = input_gradient.conv2d_input_gradient_reference(grad, weight, shape)
    assert np.array_equal(result, inside.transpose(0, 2, 3, 1))
    result = weight_gradient.conv2d_weight_gradient_reference(grad, x, shape)
    assert np.array_equal(result, np.asarray(signs.grad).transpose(0, 2, 3, 1))


# Small where the kernels run as plain Python.
SMALL = numba.config.DISABLE_JIT
SHAPE = (2, 5, 6, 40, 30) if SMALL else (5, 12, 11, 130, 70)


def example_layer(rng, density=1.0):
    """grad, weight, x, geometry of a 3 x 3 convolution with padding 1."""
    images, height, width, channels, filters = SHAPE
    grad = rng.standard_normal((images, height, width, filters)).astype(np.float32)
    grad *= rng.random(grad.shape) < density
    weight, x = random_bits(rng, filters, 3, 3, channels), random_bits(rng, *SHAPE[:4])
    shape = geometry_of(channels, filters, (height, width), (3, 3), padding=(1, 1))
    return grad, weight, x, shape


def both(grad, weight, x, shape, method=None):
    return (
        input_gradient.conv2d_input_gradient(grad, weight, shape, method=method),
        weight_gradient.conv2d_weight_gradient(grad, x, shape, method=method),
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("density", [0.25, 1])
def test_real_gradients(method, density):
    """Errors of float32 sums of K terms grow like sqrt(K), relative to the largest sums."""
    grad, weight, x, shape = example_layer(np.random.default_rng(0), density)
    result = both(grad, weight, x, shape, method=method)
    exact = grad.astype(np.float64)
    expected = (
        input_gradient.conv2d_input_gradient_reference(exact, weight, shape),
        weight_gradient.conv2d_weight_gradient_reference(exact, x, shape),
    )
    for a, b, terms in zip(result, expected, (9 * grad.shape[3], grad[..., 0].size), strict=True):
        assert np.abs(a - b).max() <= 1e-6 * np.sqrt(terms) * np.sqrt(np.mean(b**2))


@pytest.mark.parametrize("method", METHODS)
def test_the_number_of_threads_does_not_matter(method, monkeypatch):
    """Real gradients, for which another order of summation changes the result."""
    monkeypatch.setattr(threads, "tasks_for", lambda seconds: threads.count())
    layer = example_layer(np.random.default_rng(0), 0.5)
    result = []
    for n in {1, min(2, numba.config.NUMBA_NUM_THREADS)}:
        with threads.num_threads(n):
            result.append(both(*layer, method=method))
    for in_input, in_weight in result:
        assert same(in_input, result[0][0])
        assert same(in_weight, result[0][1])


@pytest.mark.parametrize("method", METHODS)
def test_parts_that_are_kept_at_a_time(method, monkeypatch):
    """Bands of one row, one image at a time: every seam is used."""
    rng = np.random.default_rng(0)
    grad, weight, x, shape = example_layer(rng)
    grad = integer_gradient(rng, 0.5, *grad.shape)
    whole = both(grad, weight, x, shape, method=method)
    monkeypatch.setattr(input_gradient, "_BAND_BYTES", 1)
    monkeypatch.setattr(weight_gradient, "_INDEX_BYTES", 1)
    parts = both(grad, weight, x, shape, method=method)
    assert same(whole[0], parts[0])
    assert same(whole[1], parts[1])


@pytest.mark.parametrize("method", METHODS)
def test_the_last_band_may_have_fewer_rows(method, monkeypatch):
    """7 rows of an image, also in bands of 2 and 3: memory behind the last image is not touched."""
    rng = np.random.default_rng(0)
    grad, weight = integer_gradient(rng, 0.5, 2, 7, 3, 4), random_bits(rng, 4, 3, 3, 5)
    shape = geometry_of(5, 4, (7, 3), (3, 3), padding=(1, 1))
    expected = input_gradient.conv2d_input_gradient_reference(grad, weight, shape)
    for size in np.geomspace(200, 40_000, 40).astype(int).tolist():
        monkeypatch.setattr(input_gradient, "_BAND_BYTES", size)
        memory = np.full((3, 7, 3, 5), 7, np.float32)
        input_gradient.conv2d_input_gradient(grad, weight, shape, method=method, out=memory[:2])
        assert np.array_equal(memory[:2], expected) and np.all(memory[2] == 7)


@pytest.mark.parametrize(("images", "filters"), [(2, 0), (0, 3)])
def test_gradients_of_nothing_are_zeros(images, filters):
    shape = geometry_of(70, filters, (4, 5), (3, 3), padding=(1, 1))
    grad, out = np.zeros((images, 4, 5, filters), np.float32), np.full((images, 4, 5, 70), 7)
    weight, x = np.zeros((filters, 3, 3, 2), np.uint64), np.zeros((images, 4, 5, 2), np.uint64)
    for method in METHODS:
        result = input_gradient.conv2d_input_gradient(
            grad, weight, shape, method=method, out=out.astype(np.float32)
        )
        assert result.shape == out.shape and np.all(result == 0)
        result = weight_gradient.conv2d_weight_gradient(grad, x, shape, method=method)
        assert result.shape == (filters, 3, 3, 70) and np.all(result == 0)


def test_long_sums():
    """More pixels than a list or a chunk holds, more filters than a tile."""
    images, side = (1, 20) if SMALL else (5, 23)  # 5 * 23 * 23 = 2645 pixels
    rng = np.random.default_rng(0)
    grad = integer_gradient(rng, 0.5, images, side, side, 3 if SMALL else 19)
    x = random_bits(rng, images, side, side, 3)
    shape = geometry_of(3, grad.shape[3], (side, side), (1, 1))
    expected = weight_gradient.conv2d_weight_gradient_reference(grad, x, shape)
    for method in METHODS:
        result = weight_gradient.conv2d_weight_gradient(grad, x, shape, method=method)
        assert same(result, expected)


def test_infinite_and_nan_gradients_reach_what_depends_on_them():
    rng = np.random.default_rng(0)
    grad, weight, x, shape = example_layer(rng, 0.2)
    grad[0, 2, 2, 1], grad[1, 3, 3, 2] = np.inf, np.nan
    for method in METHODS:
        with np.errstate(invalid="ignore"):
            in_input, in_weight = both(grad, weight, x, shape, method=method)
        finite = np.ones(shape.image[:2], bool)
        finite[1:4, 1:4] = False
        assert np.array_equal(np.isfinite(in_input[0]).all(-1), finite)
        assert not np.isfinite(in_input[0][~finite]).any()
        assert np.array_equal(np.isnan(in_input[1]).all(-1), np.roll(~finite, 1, (0, 1)))
        assert not np.isfinite(in_weight[1]).any()
        assert np.isnan(in_weight[2]).all()
        assert np.isfinite(np.delete(in_weight, [1, 2], 0)).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 33, 100), (40, 10, 200)])
def test_linear(method, shape):
    images, filters, features = shape
    rng = np.random.default_rng(0)
    grad = integer_gradient(rng, 0.7, images, filters)
    weight, x = random_bits(rng, filters, features), random_bits(rng, images, features)
    result = input_gradient.linear_input_gradient(grad, weight, features, method=method)
    assert same(result, grad @ bits.unpack_reference(weight, features))
    out = np.full_like(result, 7)
    again = input_gradient.linear_input_gradient(grad, weight, features, method=method, out=out)
    assert same(out, result) and np.shares_memory(again, out)
    result = weight_gradient.linear_weight_gradient(grad, x, features, method=method)
    assert same(result, grad.T @ bits.unpack_reference(x, features))
    out = np.full_like(result, 7)
    again = weight_gradient.linear_weight_gradient(grad, x, features, method=method, out=out)
    assert same(out, result) and np.shares_memory(again, out)


@pytest.mark.parametrize("method", METHODS)
def test_out_and_strides(method):
    rng = np.random.default_rng(0)
    grad, weight, x, shape = example_layer(rng)
    grad = integer_gradient(rng, 0.5, *grad.shape)
    in_input, in_weight = both(grad, weight, x, shape, method=method)
    out = np.full_like(in_input, 7), np.full_like(in_weight, 7)
    turned, words = np.asfortranarray(grad), np.asfortranarray(x)
    result = input_gradient.conv2d_input_gradient(turned, weight, shape, method=method, out=out[0])
    assert result is out[0] and same(result, in_input)
    result = weight_gradient.conv2d_weight_gradient(turned, words, shape, method=method, out=out[1])
    assert result is out[1] and same(result, in_weight)


@pytest.mark.parametrize(
    ("features", "chosen"),
    [
        ({"avx2"}, "lookup lookup lookup lookup lookup lookup lookup float/lookup"),
        ({"avx512f"}, "lookup masked lookup float lookup float lookup float"),
        ({"neon"}, "lookup lookup lookup lookup lookup lookup lookup float/lookup"),
        ({"sse4.2"}, "lookup lookup lookup lookup lookup lookup lookup float/lookup"),
    ],
)
def test_the_method_suits_the_cpu_and_the_layer(features, chosen, monkeypatch):
    rng = np.random.default_rng(0)
    dense, pooled = (integer_gradient(rng, density, 2, 16, 16, 64) for density in (1, 0.2))
    monkeypatch.setattr(sign_gradients, "cpu_features", lambda: features)
    layers = (
        (dense, 128, 9, 18), (pooled, 128, 9, 18), (pooled, 64, 9, 9), (dense, 32, 9, 9),
        (dense, 32, 9, 5), (dense, 64, 1, 1), (dense, 256, 1, 4), (dense, 16, 1, 1),
    )  # fmt: skip
    for (grad, channels, taps, panels), names in zip(layers, chosen.split(), strict=True):
        result = [
            sign_gradients.choose_method("f", None, grad, side, channels, taps * channels, panels)
            for side in ("input", "weight")
        ]
        assert result == [names.split("/")[0], names.split("/")[-1]], (channels, taps)


def test_refuses_a_method_that_the_cpu_cannot_do(monkeypatch):
    monkeypatch.setattr(sign_gradients, "cpu_features", lambda: {"avx2"})
    message = r"f: this CPU cannot do 'masked', only \['float', 'lookup'\]"
    with pytest.raises(ValueError, match=message):
        sign_gradients.choose_method("f", "masked", np.zeros(4, np.float32), "input", 128, 128, 2)


@pytest.mark.parametrize("images", [1, 3, 16, 17])
@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (3, 2)])
def test_bands_lie_side_by_side(images, stride):
    """A batch that fills no block, one of bands of several images, and one with a rest."""
    rng, size, filters = np.random.default_rng(0), (7, 5), 6
    options = dict(stride=stride, padding=(1, 2), dilation=(1, 2))
    shape = geometry_of(40, filters, size, (3, 3), **options)
    grad = integer_gradient(rng, 1, images, *shape.output[:2], filters)
    weight = random_bits(rng, filters, 3, 3, 40)
    result = input_gradient.conv2d_input_gradient(grad, weight, shape, method="lookup")
    assert same(result, input_gradient.conv2d_input_gradient_reference(grad, weight, shape))


GRAD, WORDS, WEIGHT = (
    np.zeros((2, 8, 8, 4), np.float32),
    np.zeros((2, 8, 8, 2), np.uint64),
    np.zeros((4, 3, 3, 2), np.uint64),
)


GEOMETRY = geometry_of(100, 4, (8, 8), (3, 3), padding=(1, 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(channels=0), "channels must be positive"),
        (dict(groups=3), "groups must divide 100 input channels and 4 output channels, got 3"),
        (dict(size=(8,)), "size must be two integers >= 0"),
        (dict(stride=(0, 1)), "stride must be two integers >= 1"),
        (dict(padding=(-1, 0)), "padding must be two integers >= 0"),
        (dict(dilation=(1,)), "dilation must be two integers >= 1"),
        (dict(padding_mode="circular"), "padding_mode must be"),
        (dict(dilation=(9, 1)), "covers 19 x 3 pixels, the padded image has 10 x 10"),
    ],
)
def test_a_geometry_that_does_not_fit(changes, message):
    arguments = dict(channels=100, filters=4, size=(8, 8), kernel_size=(3, 3), padding=(1, 1))
    with pytest.raises(ValueError, match=f"geometry_of: .*{message}"):
        geometry_of(**arguments | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(grad=GRAD.astype(np.float64)), "grad must be float32 of shape .*, got float64"),
        (dict(grad=GRAD[0]), "grad must be .*, 8, 8, 4.*, got float32 of shape .8, 8, 4"),
        (dict(grad=np.float32(1)), r"grad must be .*, got float32 of shape \(\)"),
        (dict(grad=GRAD[:, :7]), "grad must be .*2, 8, 8, 4.*, got float32 of shape .2, 7, 8, 4"),
        (dict(method="fft"), "method must be one of"),
        (dict(out=np.zeros((1, 1), np.float32)), "out must be contiguous float32 of shape"),
    ],
)
def test_refuses(changes, message):
    grad, options = changes.pop("grad", GRAD), changes
    with pytest.raises(ValueError, match=f"conv2d_input_gradient: .*{message}"):
        input_gradient.conv2d_input_gradient(grad, WEIGHT, GEOMETRY, **options)
    with pytest.raises(ValueError, match=f"conv2d_weight_gradient: .*{message}"):
        weight_gradient.conv2d_weight_gradient(grad, WORDS, GEOMETRY, **options)


def test_refuses_the_other_side():
    refused = WEIGHT.astype(np.int64), WEIGHT[:3], WEIGHT[..., :1]
    for weight in refused:
        with pytest.raises(ValueError, match=r"weight must be uint64 of shape \(4, 3, 3, 2\), got"):
            input_gradient.conv2d_input_gradient(GRAD, weight, GEOMETRY)
    for x in (WORDS[:1], WORDS[..., :1], WORDS.astype(float)):
        with pytest.raises(ValueError, match=r"x must be uint64 of shape \(2, 8, 8, 2\), got"):
            weight_gradient.conv2d_weight_gradient(GRAD, x, GEOMETRY)
    with pytest.raises(ValueError, match="linear_input_gradient: weight must have 2 axes"):
        input_gradient.linear_input_gradient(GRAD[0, 0], WEIGHT, 100)


HERE = Path(__file__)
FILES = [
    HERE, *map(HERE.with_name, ("test_gradient_words.py", "test_lookup.py", "test_masked.py"))
]  # fmt: skip


def run_these_files(**environment):
    """The tests of the gradients and of their parts."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *FILES],
        env={**os.environ, "HYPOTHESIS_PROFILE": "ci", **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


CHILD = numba.config.DISABLE_JIT or "TINYBNN_CHILD" in os.environ


@pytest.mark.skipif(CHILD, reason="one of the runs below")
def test_kernels_run_uncompiled():
    """A student can step through the kernels in a debugger: all of this as plain Python."""
    run = run_these_files(NUMBA_DISABLE_JIT="1")
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.skipif(CHILD or "avx2" not in CAN, reason="needs a CPU with AVX2")
@pytest.mark.parametrize("cpu", ["AVX2", "SSE4.2"])
def test_kernels_run_on_other_cpus(cpu, tmp_path):
    """Without AVX-512, and without the features that look-ups need."""
    run = run_these_files(**compiles_for(cpu), NUMBA_CACHE_DIR=str(tmp_path), TINYBNN_CHILD="1")
    assert run.returncode == 0, run.stdout + run.stderr
