"""Thresholds and max-pool on packed signs against plain arithmetic on ±1 values: always ==."""

import os
import subprocess
import sys

import numba
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tinybnn.kernels.signs import bits, pooling, thresholds

seeds = st.integers(0, 2**32 - 1)
lengths = st.one_of(st.integers(1, 300), st.sampled_from([64, 512, 600]))
tasks = st.integers(1, 4)  # even for small work


compiled = pytest.mark.skipif(numba.config.DISABLE_JIT, reason="the run without compilation")


def random_signs(rng, *shape):
    return rng.choice(np.array([-1, 1], np.float32), shape)


def same(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a, b)


def tail_is_zero(words, count):
    used = count % 64
    return not used or not np.any(words[..., -1] >> np.uint64(used))


def shared_out(module, number, function, *arguments):
    """Run a function whose work is divided into ``number`` tasks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "tasks_for", lambda seconds: number)
        return function(*arguments)


# -------------------------------------------------------------------------------------- thresholds


@given(seeds, st.integers(0, 9), lengths, tasks)
@example(0, 150, 70, 1)  # more rows than are compared at a time
def test_threshold(seed, rows, channels, number):
    rng = np.random.default_rng(seed)
    extremes = np.iinfo(np.int32)
    accumulator = rng.integers(-3, 4, (rows, 2, channels), np.int32)  # ties are frequent
    levels = rng.integers(-3, 4, channels, np.int32)
    levels[rng.random(channels) < 0.1] = extremes.min
    levels[rng.random(channels) < 0.1] = extremes.max
    accumulator[rng.random(accumulator.shape) < 0.02] = extremes.min
    accumulator[rng.random(accumulator.shape) < 0.02] = extremes.max
    flip = rng.random(channels) < 0.5
    arguments = accumulator, levels, flip
    words = shared_out(thresholds, number, thresholds.threshold, *arguments)
    assert same(bits.unpack(words, channels) > 0, (accumulator >= levels) != flip)
    assert same(words, thresholds.threshold_reference(*arguments))
    assert tail_is_zero(words, channels)
    out = np.full_like(words, 77)
    assert thresholds.threshold(*arguments, out) is out and same(out, words)
    turned = np.ascontiguousarray(accumulator.T).T
    assert same(thresholds.threshold(turned[:, ::-1], levels, flip), words[:, ::-1])


def test_threshold_at_ties():
    accumulator = np.array([4, 5, 6] * 2, np.int32)
    flip = np.array([False] * 3 + [True] * 3)
    words = thresholds.threshold(accumulator, np.full(6, 5, np.int32), flip)
    assert bits.unpack(words, 6).tolist() == [-1, 1, 1, 1, -1, -1]


# ---------------------------------------------------------------------------------------- max-pool


@st.composite
def pools(draw):
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 4)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    size = [draw(st.integers(max(1, k - 2 * p), 9)) for k, p in zip(kernel, padding, strict=True)]
    return (draw(st.integers(0, 3)), *size, draw(lengths)), kernel, stride, padding


@given(seeds, pools(), tasks)
def test_max_pool2d(seed, case, number):
    shape, kernel, stride, padding = case
    rng = np.random.default_rng(seed)
    channels = shape[-1]
    signs, minimum = random_signs(rng, *shape), rng.random(channels) < 0.5
    arguments = bits.pack(signs), channels, kernel, stride, padding, minimum
    words = shared_out(pooling, number, pooling.max_pool2d, *arguments)
    assert tail_is_zero(words, channels)
    assert same(words, pooling.max_pool2d_reference(*arguments))
    # Memory around the result is not touched.
    frame = np.full(words.size + 20, 77, np.uint64)
    out = frame[10:-10].reshape(words.shape)
    assert pooling.max_pool2d(*arguments, out) is out and same(out, words)
    assert np.all(frame[:10] == 77) and np.all(frame[-10:] == 77)
    out = bits.unpack(words, channels)
    for oy, ox in np.ndindex(out.shape[1:3]):
        top, left = oy * stride[0] - padding[0], ox * stride[1] - padding[1]
        window = signs[
            :, max(top, 0) : top + kernel[0], max(left, 0) : left + kernel[1]
        ]  # the part inside the image
        expected = np.where(minimum, window.min((1, 2)), window.max((1, 2)))
        assert np.array_equal(out[:, oy, ox], expected)


@compiled
def test_max_pool2d_in_parallel():
    """Each task has its own memory."""
    rng = np.random.default_rng(0)
    minimum = rng.random(128) < 0.5
    words = rng.integers(0, 2**64, (64, 16, 16, 2), np.uint64)
    arguments = words, 128, (3, 3), (1, 1), (1, 1), minimum
    expected = shared_out(pooling, 1, pooling.max_pool2d, *arguments)
    for _ in range(20):
        assert same(shared_out(pooling, 4, pooling.max_pool2d, *arguments), expected)


@given(seeds, lengths, st.integers(1, 3))
def test_max_pool2d_and_threshold_commute(seed, channels, size):
    """Pooling sums before comparing and comparing before pooling bits give the same signs."""
    rng = np.random.default_rng(seed)
    sums = rng.integers(-4, 5, (2, 2 * size, 2 * size, channels), np.int32)
    levels = rng.integers(-3, 4, channels, np.int32)
    flip = rng.random(channels) < 0.5
    pooled = sums.reshape(2, size, 2, size, 2, channels).max((2, 4))
    before = thresholds.threshold(pooled, levels, flip)
    after = thresholds.threshold(sums, levels, flip)
    assert same(pooling.max_pool2d(after, channels, (2, 2), (2, 2), (0, 0), flip), before)


# ---------------------------------------------------------------------------------------- refusals


def refused(message, function, *arguments, **keywords):
    """A row of the table of refusals; its message omits the function's name."""
    message = f"{function.__name__}: {message}"
    return pytest.param(function, arguments, keywords, message, id=message)


SUMS, FLIP, FLOATS = np.zeros((2, 3), np.int32), np.zeros(3, np.bool_), np.zeros((3, 2))
IMAGE = np.zeros((1, 4, 4, 2), np.uint64)  # 70 channels
POOL = dict(kernel_size=(2, 2), stride=(2, 2), padding=(0, 0), minimum=np.zeros(70, np.bool_))


@pytest.mark.parametrize(
    ("function", "arguments", "keywords", "message"),
    [
        refused(
            "accumulator must be int32 with elements in its last axis, got float64 of shape (3, 2)",
            thresholds.threshold, FLOATS, SUMS[0], FLIP,
        ),
        refused(
            "accumulator must be int32 with elements in its last axis, got int32 of shape (2, 0)",
            thresholds.threshold, SUMS[:, :0], SUMS[0, :0], FLIP[:0],
        ),
        refused(
            "thresholds must be int32 of shape (3,), got int32 of shape (2,)",
            thresholds.threshold, SUMS, SUMS[0, :2], FLIP,
        ),
        refused(
            "flip must be bool of shape (3,), got int32 of shape (3,)",
            thresholds.threshold, SUMS, SUMS[0], SUMS[0],
        ),
        refused(
            "out must be contiguous uint64 of shape (2, 1), got int32 of shape (2, 3)",
            thresholds.threshold, SUMS, SUMS[0], FLIP, SUMS,
        ),
        refused(
            "words must be uint64 with 4 axes, got uint64 of shape (4, 4, 2)",
            pooling.max_pool2d, IMAGE[0], 70, **POOL,
        ),
        refused(
            "words has 2 words a row, channels 64 needs 1", pooling.max_pool2d, IMAGE, 64, **POOL
        ),
        refused(
            "padding must be at most half of kernel_size (2, 2), got (1, 2)",
            pooling.max_pool2d, IMAGE, 70, **{**POOL, "padding": (1, 2)},
        ),
        refused(
            "stride must be two integers >= 1, got (1, 0)",
            pooling.max_pool2d, IMAGE, 70, **{**POOL, "stride": (1, 0)},
        ),
        refused(
            "minimum must be bool of shape (70,), got bool of shape (3,)",
            pooling.max_pool2d, IMAGE, 70, **{**POOL, "minimum": FLIP},
        ),
        refused(
            "the kernel covers 5 x 1 pixels, the padded image has 4 x 4",
            pooling.max_pool2d, IMAGE, 70, **{**POOL, "kernel_size": (5, 1)},
        ),
    ],
)  # fmt: skip
def test_refusals(function, arguments, keywords, message):
    with pytest.raises(ValueError) as refusal:
        function(*arguments, **keywords)
    assert str(refusal.value) == message


# ------------------------------------------------------------------------- this file, run otherwise


@compiled
def test_kernels_run_uncompiled():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    environment = {**os.environ, "HYPOTHESIS_PROFILE": "ci", "NUMBA_DISABLE_JIT": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stdout + run.stderr
