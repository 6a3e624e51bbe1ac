"""Packing with thresholds and in both layouts of images; test_kernels.py holds the other tests."""

import os
import subprocess
import sys

import numba
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tinybnn.kernels.signs import bits

seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from([np.float32, np.float64])
channel_counts = st.one_of(st.integers(1, 200), st.sampled_from([63, 64, 65, 128]))


def special_values(dtype):
    info = np.finfo(dtype)
    positive = [0.0, info.smallest_subnormal, 3 * info.smallest_subnormal, info.tiny]
    positive += [1.0, np.nextafter(dtype(1), dtype(2)), info.max, np.inf, np.nan]
    return np.array([*positive, *(-v for v in positive)], dtype)


def random_values(rng, *shape, dtype=np.float32):
    """Normal values, some replaced by special ones."""
    x = rng.standard_normal(shape).astype(dtype)
    special = rng.random(shape) < 0.3
    x[special] = rng.choice(special_values(dtype), special.sum())
    return x


def sign_of_difference(x, thresholds):
    """Compute the bits of RSign in the dtype of x."""
    with np.errstate(over="ignore", invalid="ignore"):
        difference = x - thresholds
    assert difference.dtype == x.dtype
    return np.where(difference >= 0, 1, -1)


def same(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a, b)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_thresholds_on_special_values(dtype):
    """Each value against each: the sign of the difference is x >= threshold, but for inf - inf."""
    values = special_values(dtype)
    x = np.repeat(values[:, None], len(values), axis=1)
    plus = bits.unpack(bits.pack(x, values), len(values)) > 0
    assert np.array_equal(plus, sign_of_difference(x, values) > 0)
    assert np.array_equal(plus, (x >= values) & ~(np.isinf(x) & (x == values)))


@given(seeds, st.integers(0, 4), channel_counts, dtypes)
def test_thresholds(seed, rows, count, dtype):
    rng = np.random.default_rng(seed)
    x = random_values(rng, rows, 3, count, dtype=dtype)
    thresholds = random_values(rng, count, dtype=dtype)
    ties = rng.random(x.shape) < 0.2
    x[ties] = np.broadcast_to(thresholds, x.shape)[ties]
    words = bits.pack(x, thresholds)
    assert same(words, bits.pack_reference(x, thresholds))
    assert np.array_equal(bits.unpack(words, count), sign_of_difference(x, thresholds))
    assert same(bits.pack(x[:, ::-2], thresholds), words[:, ::-2])
    assert same(bits.pack(x, np.repeat(thresholds, 2)[::2]), words)


@given(seeds, st.integers(0, 3), channel_counts, st.integers(0, 12), st.integers(1, 13), dtypes)
@example(0, 2, 70, 33, 40, np.float32)  # more pixels than are packed at a time
def test_channels_first(seed, images, channels, height, width, dtype):
    """Images (N, C, H, W) in memory, packed along C."""
    rng = np.random.default_rng(seed)
    x = random_values(rng, images, channels, height, width, dtype=dtype).transpose(0, 2, 3, 1)
    thresholds = random_values(rng, channels, dtype=dtype)
    assert same(bits.pack(x), bits.pack_reference(x))
    assert same(bits.pack(x, thresholds), bits.pack_reference(x, thresholds))
    assert same(bits.pack(x[:, :, 0]), bits.pack_reference(x[:, :, 0]))  # a copy first
    assert same(bits.pack(x[:1].transpose(0, 2, 1, 3)), bits.pack(x[:1]).transpose(0, 2, 1, 3))


@pytest.mark.parametrize("width", [10, 20])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, ">f4", ">i4"])
def test_channels_first_of_other_dtypes(dtype, width):
    x = np.random.default_rng(0).integers(-3, 3, (2, 70, 9, width))
    x = x.astype(dtype).transpose(0, 2, 3, 1)
    assert same(bits.pack(x), bits.pack_reference(x))


def test_channels_first_in_odd_memory():
    x = np.random.default_rng(0).standard_normal((2, 70, 9, 10)).astype(np.float32)
    unaligned = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape)
    read_only = x.copy()
    read_only.flags.writeable = False
    for odd in (unaligned, read_only, x.astype(">f4")):
        assert same(bits.pack(odd.transpose(0, 2, 3, 1)), bits.pack(x.transpose(0, 2, 3, 1)))


@given(seeds, channel_counts, st.sampled_from([np.float32, np.float64, np.int8, np.int32]))
def test_unpack(seed, count, dtype):
    words = bits.pack(np.random.default_rng(seed).standard_normal((3, count)))
    assert same(bits.unpack(words, count, dtype), bits.unpack_reference(words, count, dtype))


@pytest.mark.parametrize(
    ("x", "thresholds"),
    [
        (np.zeros((2, 5), np.float32), np.zeros(4, np.float32)),
        (np.zeros((2, 5), np.float32), np.float32(0)),
        (np.zeros((2, 5), np.float32), np.zeros(5)),
        (np.zeros((2, 5), np.int32), np.zeros(5, np.int32)),
    ],
)
def test_pack_refuses_thresholds(x, thresholds):
    with pytest.raises(ValueError, match=r"pack: thresholds must have shape \(5,\) and the dtype"):
        bits.pack(x, thresholds)


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="the run without compilation")
def test_kernels_run_uncompiled():
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1", "HYPOTHESIS_PROFILE": "ci"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
