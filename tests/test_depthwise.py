"""Bit-sliced depth-wise convolution against its reference and a float convolution: always ==."""

import itertools
import os
import subprocess
import sys

import numba
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tinybnn import functional as F
from tinybnn.kernels.machine import threads
from tinybnn.kernels.signs import bits, depthwise

seeds = st.integers(0, 2**32 - 1)
channel_counts = st.one_of(
    st.integers(1, 200), st.sampled_from([63, 64, 65, 128]), st.integers(1, 33)
)


def random_signs(rng, *shape):
    return rng.choice(np.array([-1, 1], np.float32), shape)


def same(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a, b)


def tail_is_zero(words, count):
    used = count % 64
    return not used or not np.any(words[..., -1] >> np.uint64(used))


def grouped_conv2d(x, weight, stride, padding, dilation, padding_mode):
    """The float convolution with groups = channels. x : (N, H, W, C), weight : (kh, kw, C)"""
    outside = 1 if padding_mode == "ones" else 0
    border = ((0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0))
    image = np.pad(x, border, constant_values=outside).transpose(0, 3, 1, 2)
    filters = weight.transpose(2, 0, 1)[:, None]  # (C, 1, kh, kw)
    out = F.conv2d(image, filters, None, stride, 0, dilation, groups=x.shape[-1])
    return np.asarray(out).transpose(0, 2, 3, 1)


@st.composite
def convolutions(draw):
    """Shapes and keywords of a convolution whose output is not empty."""
    kernel = draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
    dilation = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    size = []
    for k, p, d in zip(kernel, padding, dilation, strict=True):
        least = max(1, d * (k - 1) + 1 - 2 * p)
        size.append(draw(st.integers(least, least + 6)))
    mode = draw(st.sampled_from(["zeros", "ones"]))
    keywords = dict(stride=stride, padding=padding, dilation=dilation, padding_mode=mode)
    return (draw(st.integers(0, 2)), *size, draw(channel_counts)), kernel, keywords


def thresholds_and_flips(rng, channels, most):
    """Thresholds with frequent ties, some out of reach."""
    thresholds = rng.integers(-most - 2, most + 3, channels).astype(np.int32)
    extremes = np.iinfo(np.int32)
    thresholds[rng.random(channels) < 0.05] = extremes.min
    thresholds[rng.random(channels) < 0.05] = extremes.max
    return thresholds, rng.random(channels) < 0.5


@given(seeds, convolutions())
@example(0, ((2, 9, 9, 65), (7, 7), dict(padding=(3, 3), stride=(1, 1), dilation=(1, 1),
                                        padding_mode="zeros")))  # fmt: skip
@example(0, ((2, 3, 70, 1), (3, 3), dict(padding=(1, 1), stride=(1, 1), dilation=(1, 1),
                                        padding_mode="ones")))  # fmt: skip
@example(0, ((2, 3, 70, 5), (3, 7), dict(padding=(1, 4), stride=(1, 2), dilation=(1, 3),
                                        padding_mode="ones")))  # fmt: skip
@example(0, ((1, 1, 1, 1), (1, 1), dict(padding=(2, 2), stride=(1, 1), dilation=(1, 1),
                                       padding_mode="zeros")))  # fmt: skip
def test_depthwise(seed, case):
    shape, kernel, geometry = case
    rng = np.random.default_rng(seed)
    channels, taps = shape[-1], kernel[0] * kernel[1]
    signs, filters = random_signs(rng, *shape), random_signs(rng, *kernel, channels)
    if rng.random() < 0.3:  # every tap agrees: the highest counts
        signs[:], filters[:] = 1, 1
    thresholds, flip = thresholds_and_flips(rng, channels, taps)
    x, weight = bits.pack(signs), bits.pack(filters)
    plan = depthwise.prepare(
        weight, channels, shape[1:3], **geometry, thresholds=thresholds, flip=flip
    )
    sums = depthwise.conv2d_sums(plan, x)
    assert same(sums, grouped_conv2d(signs, filters, **geometry).astype(np.int32))
    assert same(sums, depthwise.conv2d_sums_reference(x, weight, channels, **geometry))
    for dtype in (np.int8, np.float32):
        assert same(depthwise.conv2d_sums(plan, x, dtype), sums.astype(dtype))
    words = depthwise.conv2d_bits(plan, x)
    assert same(words, bits.pack(np.where((sums >= thresholds) != flip, 1, -1)))
    assert tail_is_zero(words, channels)
    expected = depthwise.conv2d_bits_reference(x, weight, channels, thresholds, flip, **geometry)
    assert same(words, expected)


@pytest.mark.parametrize("taps", [1, 2, 3, 4, 5, 7, 8, 15, 16, 31, 32, 49, 63])
def test_every_threshold_of_every_count(taps):
    """All counts from 0 to T meet all thresholds: carries through every plane."""
    signs = np.ones((1, 1, taps, taps + 1), np.float32)
    filters = np.where(np.arange(taps)[:, None] < np.arange(taps + 1), 1, -1)  # (T, T + 1)
    filters = np.random.default_rng(taps).permuted(filters, axis=0)[None]  # which taps agree varies
    x, weight = bits.pack(signs), bits.pack(filters)
    sums = 2 * np.arange(taps + 1) - taps
    for level, flipped in itertools.product(range(-taps - 1, taps + 2), [False, True]):
        thresholds, flip = np.full(taps + 1, level, np.int32), np.full(taps + 1, flipped)
        plan = depthwise.prepare(weight, taps + 1, (1, taps), thresholds=thresholds, flip=flip)
        words = depthwise.conv2d_bits(plan, x)
        assert np.array_equal(bits.unpack(words, taps + 1)[0, 0, 0] > 0, (sums >= level) != flipped)
    assert np.array_equal(depthwise.conv2d_sums(plan, x)[0, 0, 0], sums)


@pytest.mark.parametrize("channels", [5, 70])
def test_what_stands_in_the_tail_does_not_matter(channels):
    rng, words = np.random.default_rng(0), bits.words_for(channels)
    dirty = (
        rng.integers(0, 2**63, (2, 5, 5, words), np.uint64),
        rng.integers(0, 2**63, (3, 3, words), np.uint64),
    )
    mask = bits.pack(np.ones(channels, np.float32))
    thresholds, flip = thresholds_and_flips(rng, channels, 9)
    results = []
    for x, weight in (dirty, (dirty[0] & mask, dirty[1] & mask)):
        plan = depthwise.prepare(
            weight, channels, (5, 5), padding=(1, 1), thresholds=thresholds, flip=flip
        )
        results.append((depthwise.conv2d_bits(plan, x), depthwise.conv2d_sums(plan, x)))
    assert tail_is_zero(results[0][0], channels)
    assert same(results[0][0], results[1][0])
    assert same(results[0][1], results[1][1])


@pytest.mark.parametrize(
    ("channels", "out_width", "parts", "part_width"),
    [(1, 70, 35, 2), (8, 32, 8, 4), (16, 9, 3, 3), (32, 5, 2, 3), (33, 5, 1, 5), (64, 5, 1, 5),
     (8, 2, 2, 1), (21, 1, 1, 1)],
)  # fmt: skip
def test_pixels_of_few_channels_share_words(channels, out_width, parts, part_width):
    weight = bits.pack(np.ones((3, 3, channels), np.float32))
    plan = depthwise.prepare(weight, channels, (4, out_width), padding=(1, 1))
    assert (plan.parts, plan.part_width) == (parts, part_width)
    assert plan.run == -(-part_width * plan.words // 8) * 8


def example_plan(rng, channels=100, images=3):
    x = bits.pack(random_signs(rng, images, 12, 11, channels))
    weight = bits.pack(random_signs(rng, 3, 3, channels))
    thresholds, flip = thresholds_and_flips(rng, channels, 9)
    plan = depthwise.prepare(
        weight, channels, (12, 11), padding=(1, 1), thresholds=thresholds, flip=flip
    )
    return plan, x


def test_out_and_strides():
    plan, x = example_plan(np.random.default_rng(0))
    words, sums = depthwise.conv2d_bits(plan, x), depthwise.conv2d_sums(plan, x)
    out = np.full_like(words, 7)
    assert depthwise.conv2d_bits(plan, x, out=out) is out
    assert same(out, words)
    out = np.full(sums.shape, 7, np.int8)
    assert depthwise.conv2d_sums(plan, x, np.int8, out) is out
    assert same(out, sums.astype(np.int8))
    turned = np.asfortranarray(x)
    assert same(depthwise.conv2d_bits(plan, turned[::-1]), words[::-1])
    assert same(depthwise.conv2d_sums(plan, turned[::-1]), sums[::-1])


@pytest.mark.parametrize(("images", "channels"), [(2, 100), (5, 100), (64, 100), (5, 8)])
def test_threads(images, channels, monkeypatch):
    monkeypatch.setattr(depthwise, "tasks_for", lambda seconds: threads.count())
    plan, x = example_plan(np.random.default_rng(0), channels, images)
    results = []
    for n in {1, min(2, numba.config.NUMBA_NUM_THREADS)}:
        with threads.num_threads(n):
            results.append((depthwise.conv2d_bits(plan, x), depthwise.conv2d_sums(plan, x)))
    for words, sums in results:
        assert same(words, results[0][0])
        assert same(sums, results[0][1])


WEIGHT = np.zeros((3, 3, 2), np.uint64)


@pytest.mark.parametrize(
    ("weight", "channels", "keywords", "message"),
    [
        (np.zeros((128, 3, 3, 1), np.uint64), 128, {}, "3 axes"),
        (WEIGHT.astype(np.int64), 128, {}, "got int64"),
        (WEIGHT, 0, {}, "channels must be positive"),
        (WEIGHT, 64, {}, "2 words per tap, 64 channels need 1: one filter per channel"),
        (np.zeros((8, 8, 2), np.uint64), 128, {}, "from 1 to 63 taps, got 8 x 8"),
        (np.zeros((0, 3, 2), np.uint64), 128, {}, "from 1 to 63 taps, got 0 x 3"),
        (WEIGHT, 128, dict(stride=(0, 1)), "stride must be two integers >= 1"),
        (WEIGHT, 128, dict(padding=(-1, 0)), "padding must be two integers >= 0"),
        (WEIGHT, 128, dict(dilation=(1,)), "dilation must be two integers"),
        (WEIGHT, 128, dict(dilation=(4, 4)), "covers 9 x 9 pixels, the padded image has 8 x 8"),
        (WEIGHT, 128, dict(padding_mode="circular"), "padding_mode must be"),
        (WEIGHT, 128, dict(thresholds=np.zeros(128, np.int32)), "flip must be bool"),
        (WEIGHT, 128, dict(flip=np.zeros(128, bool)), "thresholds must be int32"),
        (
            WEIGHT,
            128,
            dict(thresholds=np.zeros(100, np.int32), flip=np.zeros(128, bool)),
            r"thresholds must be int32 of shape \(128,\), got int32 of shape \(100,\)",
        ),
    ],
)
def test_prepare_refuses(weight, channels, keywords, message):
    with pytest.raises(ValueError, match=f"depthwise: .*{message}"):
        depthwise.prepare(weight, channels, (8, 8), **keywords)


def test_conv2d_refuses():
    plan, x = example_plan(np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"shape \(N, 12, 11, 2\), got uint64 of shape \(3, 12,"):
        depthwise.conv2d_bits(plan, x[:, :, :10])
    with pytest.raises(ValueError, match="got int64"):
        depthwise.conv2d_sums(plan, x.astype(np.int64))
    with pytest.raises(ValueError, match="dtype must be int32 or int8 or float32, got float64"):
        depthwise.conv2d_sums(plan, x, np.float64)
    with pytest.raises(ValueError, match="out must be contiguous int8"):
        depthwise.conv2d_sums(plan, x, np.int8, np.empty((3, 12, 11, 100), np.int32))
    with pytest.raises(ValueError, match="out must be contiguous uint64"):
        depthwise.conv2d_bits(plan, x, np.empty_like(x)[:, ::-1])
    bare = depthwise.prepare(WEIGHT, 128, (8, 8))
    with pytest.raises(ValueError, match="no thresholds"):
        depthwise.conv2d_bits(bare, np.zeros((1, 8, 8, 2), np.uint64))


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="the run without compilation")
def test_kernels_run_uncompiled():
    """A student can step through the kernels in a debugger: all of this as plain Python."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1", "HYPOTHESIS_PROFILE": "ci"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
