"""Kernels against their references and against plain arithmetic on ±1 values: always ==."""

import functools
import itertools
import math
import os
import subprocess
import sys
import threading
from unittest.mock import Mock

import numba
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tinybnn.kernels.floats.ordered_matmul import ordered_matmul, ordered_matmul_reference
from tinybnn.kernels.machine import threads
from tinybnn.kernels.machine.shuffles import has_shuffles
from tinybnn.kernels.signs import bits, look_ups, xnor
from tinybnn.kernels.signs import prepared as prepared_
from tinybnn.kernels.signs.thresholds import threshold_reference

FLOATS = [np.float32, np.float64]
SIGNED = [np.float32, np.float64, np.int8, np.int32, np.int64]
SPECIAL = [0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, -1e-45]

seeds = st.integers(0, 2**32 - 1)
lengths = st.integers(1, 300)
few = st.integers(0, 4)  # rows; an empty batch is a batch


compiled = pytest.mark.skipif(numba.config.DISABLE_JIT, reason="the run without compilation")


def sign(x):
    return np.where(x >= 0, 1, -1)


def random_signs(rng, *shape):
    return rng.choice(np.array([-1, 1], np.float32), shape)


def random_values(rng, *shape, dtype=np.float32):
    """Normal values, some replaced by special ones."""
    x = rng.standard_normal(shape).astype(dtype)
    special = rng.random(shape) < 0.3
    x[special] = rng.choice(np.array(SPECIAL, dtype), special.sum())
    return x


def tail_is_zero(words, count):
    used = count % 64
    return not used or not np.any(words[..., -1] >> np.uint64(used))


def same(a, b):
    """Equal in shape, dtype and value; NaN equals NaN, and 0.0 is not -0.0."""
    return (
        a.shape == b.shape
        and a.dtype == b.dtype
        and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
        and np.array_equal(np.signbit(a[a == 0]), np.signbit(b[b == 0]))
    )


# ------------------------------------------------------------------------------------------- bits


def test_words_for():
    assert [bits.words_for(n) for n in (0, 1, 63, 64, 65, 128, 129)] == [0, 1, 1, 1, 2, 2, 3]
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        bits.words_for(-1)


def test_pack_special_values():
    x = np.array([0.0, -0.0, np.nan, -np.nan, np.inf, -np.inf, 1e-45, -1e-45], np.float32)
    assert bits.pack(x).tolist() == [0b01010011]
    assert bits.pack(x.astype(np.float64)).tolist() == [0b01010011]


def test_pack_bit_order():
    for k in range(130):
        x = np.full(130, -1.0)
        x[k] = 1.0
        assert [int(w) for w in bits.pack(x)] == [
            1 << k % 64 if j == k // 64 else 0 for j in range(3)
        ]


@given(seeds, few, lengths, st.sampled_from(FLOATS))
def test_pack_unpack(seed, rows, count, dtype):
    x = random_values(np.random.default_rng(seed), rows, 2, count, dtype=dtype)
    words = bits.pack(x)
    assert words.shape == (rows, 2, bits.words_for(count))
    assert same(words, bits.pack_reference(x))
    assert tail_is_zero(words, count)
    assert same(bits.unpack(words, count), sign(x).astype(np.float32))


@given(seeds, lengths, st.sampled_from(SIGNED))
def test_unpack_dtypes(seed, count, dtype):
    signs = random_signs(np.random.default_rng(seed), 2, count)
    words = bits.pack(signs)
    out = bits.unpack(words, count, dtype)
    assert same(out, signs.astype(dtype))
    assert same(out, bits.unpack_reference(words, count, dtype))


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64, np.uint8, np.uint64])
def test_pack_integers(dtype):
    x = np.random.default_rng(0).integers(-3, 3, (5, 100)).astype(dtype)
    assert same(bits.pack(x), bits.pack_reference(x))


@given(seeds, st.integers(1, 80), st.integers(-3, 3).filter(bool))
def test_pack_strides(seed, count, step):
    base = random_values(np.random.default_rng(seed), 3, count, 4)
    for x in (base[:, ::step], base.T, base.transpose(2, 0, 1), base[::-1, :, 1], base[:, :, ::2]):
        assert same(bits.pack(x), bits.pack(x.copy()))
        assert same(bits.pack(x), bits.pack_reference(x))
    words = bits.pack(base.transpose(0, 2, 1))
    assert same(bits.unpack(words[::-1, ::2], count), bits.unpack(words[::-1, ::2].copy(), count))


def test_pack_odd_memory():
    x = np.random.default_rng(0).standard_normal(70).astype(np.float32)
    read_only = x.copy()
    read_only.flags.writeable = False
    unaligned = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32)
    for odd in (read_only, unaligned, x.astype(">f4"), np.broadcast_to(x, (3, 70))[1]):
        assert same(bits.pack(odd), bits.pack(x))


@given(seeds, few, st.integers(1, 100), st.integers(1, 6))
@example(0, 4, 13, 5)  # the fifth group is bits 52 to 64: one bit in the next word
@example(0, 2, 64, 2)
@example(0, 2, 1, 130)
def test_split_groups(seed, rows, group_channels, groups):
    channels = group_channels * groups
    signs = random_signs(np.random.default_rng(seed), rows, 3, channels)
    split = bits.split_groups(bits.pack(signs), channels, groups)
    assert same(split, bits.pack(signs.reshape(rows, 3, groups, group_channels)))
    assert same(split, bits.split_groups_reference(bits.pack(signs), channels, groups))
    assert tail_is_zero(split, group_channels)


@given(seeds, few, lengths)
@example(0, 3, 200)
def test_bytes(seed, rows, count):
    signs = random_signs(np.random.default_rng(seed), rows, 2, count)
    words = bits.pack(signs)
    as_bytes = bits.to_bytes(words, count)
    assert as_bytes.shape == (rows, 2, -(-count // 8))
    assert same(as_bytes, np.packbits(signs > 0, axis=-1, bitorder="little"))
    assert same(bits.from_bytes(as_bytes, count), words)
    assert same(bits.from_bytes(as_bytes[:, ::-1], count), words[:, ::-1])


def test_bytes_on_disk():
    assert bits.to_bytes(bits.pack(np.ones(200)), 200).size == 25


# ---------------------------------------------------------------------------------- matrix product


METHODS = ["counting", "counting_bytes", *["look_ups"] * has_shuffles()]


def by_each_method(test):
    """Run a test once for each method that finds disagreements, whichever the CPU is best at."""

    @functools.wraps(test)
    def run(*arguments, **keywords):
        for method in METHODS:
            with pytest.MonkeyPatch.context() as patch:
                for module in (prepared_, xnor):
                    patch.setattr(module, "best_method", Mock(return_value=method))
                patch.setattr(look_ups, "LEAST_TERMS", 0)
                test(*arguments, **keywords)

    return run


def test_dot_product_of_all_6_bit_vectors():
    vectors = np.array(list(itertools.product([-1, 1], repeat=6)), np.float32)  # (64, 6)
    words = bits.pack(vectors)
    assert np.array_equal(xnor.xnor_matmul(words, words, 6), vectors @ vectors.T)
    for (a, x), (b, y) in itertools.product(zip(vectors, words[:, 0], strict=True), repeat=2):
        assert a @ b == 6 - 2 * (int(x) ^ int(y)).bit_count()


@given(seeds, few, st.integers(0, 9), lengths)
@by_each_method
def test_xnor_matmul(seed, rows, columns, count):
    rng = np.random.default_rng(seed)
    a, b = random_values(rng, rows, count), random_values(rng, columns, count)
    packed = bits.pack(a), bits.pack(b)
    out = xnor.xnor_matmul(*packed, count)
    assert same(out, (sign(a) @ sign(b).T).astype(np.int32))
    assert same(out, xnor.xnor_matmul_reference(*packed, count))
    assert same(xnor.xnor_matmul(*packed, count, dtype=np.float32), out.astype(np.float32))


@given(seeds, few, st.integers(1, 70), lengths)
def test_products_by_the_method_that_is_named(seed, rows, columns, count):
    rng = np.random.default_rng(seed)
    a, b = (bits.pack(random_signs(rng, n, count)) for n in (rows, columns))
    plans = {m: xnor.prepare_matmul(b, count, method=m) for m in METHODS}
    kinds = {"counting": "xnor", "counting_bytes": "xnor_bytes", "look_ups": "look_ups"}
    assert {m: plan.kind for m, plan in plans.items()} == {m: kinds[m] for m in METHODS}
    expected = xnor.xnor_matmul_reference(a, b, count)
    for plan in plans.values():
        assert same(xnor.run(plan, a), expected)


def test_methods_that_are_not_possible(monkeypatch):
    b = np.zeros((2, 512), np.uint64)
    with pytest.raises(ValueError, match="prepare_matmul: method must be 'counting', 'counting_by"):
        xnor.prepare_matmul(b, 100, method="xor")
    with pytest.raises(ValueError, match=r"register_peak: method must be .* got 3"):
        xnor.register_peak(method=3)
    monkeypatch.setattr(prepared_, "has_shuffles", lambda: True)
    with pytest.raises(ValueError, match="takes up to 32767 signs a row, got 32768"):
        xnor.prepare_matmul(b, 100, method="look_ups")
    monkeypatch.setattr(prepared_, "has_shuffles", lambda: False)
    with pytest.raises(ValueError, match="needs AVX2, which this CPU lacks"):
        xnor.prepare_matmul(b[:, :2], 100, method="look_ups")


def random_ternary(rng, *shape):
    """Weights -1, 0 and 1, as floats and as two planes of words: where they are 1, and not 0.

    Where a weight is 0, its other bit may be anything.
    """
    weight = rng.integers(-1, 2, shape).astype(np.float32)
    signs = np.where(weight == 0, random_signs(rng, *shape), weight)
    return weight, bits.pack(signs), bits.pack(2 * np.abs(weight) - 1)


@given(seeds, few, st.integers(0, 9), lengths)
@by_each_method
def test_xnor_matmul_with_a_mask(seed, rows, columns, count):
    rng = np.random.default_rng(seed)
    a = random_values(rng, rows, count)
    b, words, mask = random_ternary(rng, columns, count)
    out = xnor.xnor_matmul(bits.pack(a), words, count, mask)
    assert same(out, (sign(a) @ b.T).astype(np.int32))
    assert same(out, xnor.xnor_matmul_reference(bits.pack(a), words, count, mask))


@given(seeds, st.integers(1, 6), st.integers(1, 130))
@by_each_method
def test_xnor_matmul_of_padded_parts(seed, pixels, channels):
    """Rows whose pixels are padded to whole words, as a flattened image has them."""
    rng = np.random.default_rng(seed)
    a, b = random_signs(rng, 3, pixels, channels), random_signs(rng, 4, pixels, channels)
    rows = bits.pack(a).reshape(3, -1), bits.pack(b).reshape(4, -1)
    out = xnor.xnor_matmul(*rows, pixels * channels)
    assert np.array_equal(out, a.reshape(3, -1) @ b.reshape(4, -1).T)
    assert same(out, xnor.xnor_matmul_reference(*rows, pixels * channels))


def test_xnor_matmul_strides():
    rng = np.random.default_rng(0)
    a, b = bits.pack(random_signs(rng, 8, 300)), bits.pack(random_signs(rng, 6, 300))
    out = xnor.xnor_matmul(a, b, 300)
    assert same(xnor.xnor_matmul(a[::-2], np.asfortranarray(b), 300), out[::-2])


# ------------------------------------------------------------------------------------- convolution


def naive_conv2d(x, weight, stride, padding, dilation, groups, outside):
    """Convolution by its definition. x : (N, H, W, C), weight : (O, kh, kw, C / groups)."""
    x = np.pad(x, ((0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0)), constant_values=outside)
    filters, kh, kw, group_channels = weight.shape
    oh = (x.shape[1] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    ow = (x.shape[2] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    out = np.empty((len(x), oh, ow, filters))
    for oy, ox, o in np.ndindex(oh, ow, filters):
        rows = oy * stride[0] + dilation[0] * np.arange(kh)
        columns = ox * stride[1] + dilation[1] * np.arange(kw)
        first = o // (filters // groups) * group_channels
        seen = x[:, rows][:, :, columns][..., first : first + group_channels]
        out[:, oy, ox, o] = (seen * weight[o]).sum((1, 2, 3))
    return out


@st.composite
def convolutions(draw):
    """Shapes and keywords of a convolution whose output is not empty."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    group_channels = draw(st.one_of(st.integers(1, 6), st.sampled_from([32, 48, 64, 65, 100])))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    strides = st.sampled_from([1, 1, 2, 3, 20])  # 20: beyond the image
    stride = draw(st.tuples(strides, strides))
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    size = [
        draw(st.integers(max(1, d * (k - 1) + 1 - 2 * p), 6))
        for k, p, d in zip(kernel, padding, dilation, strict=True)
    ]
    x_shape = (draw(st.integers(0, 2)), *size, groups * group_channels)
    w_shape = (groups * draw(st.integers(1, 2)), *kernel, group_channels)
    mode = draw(st.sampled_from(["zeros", "ones"]))
    keywords = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
    return x_shape, w_shape, mode, keywords


@given(seeds, convolutions())
def test_xnor_conv2d(seed, case):
    x_shape, w_shape, mode, keywords = case
    rng = np.random.default_rng(seed)
    x, weight = random_values(rng, *x_shape), random_values(rng, *w_shape)
    packed = bits.pack(x), bits.pack(weight), x_shape[-1]
    out = xnor.xnor_conv2d(*packed, **keywords, padding_mode=mode)
    naive = naive_conv2d(sign(x), sign(weight), **keywords, outside=1 if mode == "ones" else 0)
    assert same(out, naive.astype(np.int32))
    assert same(out, xnor.xnor_conv2d_reference(*packed, **keywords, padding_mode=mode))


@given(seeds, convolutions())
def test_xnor_conv2d_with_a_mask(seed, case):
    x_shape, w_shape, mode, keywords = case
    rng = np.random.default_rng(seed)
    x, (weight, words, mask) = random_values(rng, *x_shape), random_ternary(rng, *w_shape)
    packed = bits.pack(x), words, x_shape[-1]
    keywords |= {"padding_mode": mode, "mask": mask}
    out = xnor.xnor_conv2d(*packed, **keywords)
    assert same(out, xnor.xnor_conv2d_reference(*packed, **keywords))
    del keywords["padding_mode"], keywords["mask"]
    naive = naive_conv2d(sign(x), weight, **keywords, outside=1 if mode == "ones" else 0)
    assert same(out, naive.astype(np.int32))


def test_xnor_conv2d_defaults():
    rng = np.random.default_rng(0)
    x, weight = random_signs(rng, 2, 5, 4, 70), random_signs(rng, 3, 3, 2, 70)
    naive = naive_conv2d(x, weight, (1, 1), (0, 0), (1, 1), 1, 0)
    assert np.array_equal(xnor.xnor_conv2d(bits.pack(x), bits.pack(weight), 70), naive)


@pytest.mark.parametrize(("mode", "outside"), [("zeros", 0), ("ones", 1)])
def test_xnor_conv2d_depthwise(mode, outside):
    rng = np.random.default_rng(0)
    x, weight = random_signs(rng, 2, 5, 5, 70), random_signs(rng, 70, 3, 3, 1)
    keywords = dict(stride=(2, 1), padding=(1, 1), dilation=(1, 1), groups=70)
    out = xnor.xnor_conv2d(bits.pack(x), bits.pack(weight), 70, **keywords, padding_mode=mode)
    assert np.array_equal(out, naive_conv2d(x, weight, **keywords, outside=outside))


def test_xnor_conv2d_only_padding():
    """Taps that all lie outside add nothing with zeros, and the filter's own sum with ones."""
    weight = random_signs(np.random.default_rng(0), 3, 1, 1, 70)
    packed = bits.pack(np.ones((1, 1, 1, 70))), bits.pack(weight), 70
    out = xnor.xnor_conv2d(*packed, padding=(1, 1))
    assert np.array_equal(out[0, 0, 0], [0, 0, 0])
    out = xnor.xnor_conv2d(*packed, padding=(1, 1), padding_mode="ones")
    assert np.array_equal(out[0, 0, 0], weight.sum((1, 2, 3)))


# -------------------------------------------------------------------------------- prepared weights


def random_thresholds(rng, sums):
    """Thresholds at which many of the sums lie, some of them out of reach; and flips."""
    channels = sums.shape[-1]
    thresholds = rng.integers(-3, 4, channels, np.int32)
    if sums.size:
        thresholds += sums.reshape(-1, channels)[rng.integers(sums.size // channels)]
    extremes = np.iinfo(np.int32)
    thresholds[rng.random(channels) < 0.05] = extremes.min
    thresholds[rng.random(channels) < 0.05] = extremes.max
    return thresholds, rng.random(channels) < 0.5


def guarded(shape, dtype):
    """An array of 77s, and the numbers before and behind it, 77 too."""
    memory = np.full(128 + math.prod(shape), 77, dtype)
    return memory[64:-64].reshape(shape), (memory[:64], memory[-64:])


def check_runs(rng, prepare, x, sums):
    """Sums and bits of prepared weights, into new memory, given memory and by two threads."""
    thresholds, flip = random_thresholds(rng, sums)
    bits_ = threshold_reference(sums, thresholds, flip)
    for keywords, expected in (({}, sums), (dict(thresholds=thresholds, flip=flip), bits_)):
        prepared = prepare(**keywords)
        assert same(xnor.run_reference(prepared, x), expected)
        assert same(xnor.run(prepared, x), expected)
        out, around_out = guarded(prepared.out_shape(len(x)), expected.dtype)
        workspace, around = guarded((prepared.workspace_words(len(x)),), np.uint64)
        assert xnor.run(prepared, x, out, workspace) is out
        assert same(out, expected)
        assert all(np.all(numbers == 77) for numbers in (*around_out, *around))
        if not keywords:
            floats = np.full(sums.shape, 77, np.float32)
            assert same(xnor.run(prepared, x, floats), sums.astype(np.float32))
        for tasks in (2, 5):  # small work, shared out all the same
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(xnor, "tasks_for", Mock(return_value=tasks))
                assert same(xnor.run(prepared, x), expected)


def binary_or_ternary(rng, ternary, *shape):
    """Random weights as words, and their mask as a keyword, if they are ternary."""
    if not ternary:
        return bits.pack(random_signs(rng, *shape)), {}
    _, words, mask = random_ternary(rng, *shape)
    return words, {"mask": mask}


@given(seeds, st.integers(0, 20), st.integers(1, 150), st.integers(1, 200), st.booleans())
@example(0, 259, 140, 2100, False)  # more pixels and panels than are kept in cache together
@by_each_method
def test_prepared_matmul(seed, rows, columns, count, ternary):
    rng = np.random.default_rng(seed)
    a = bits.pack(random_signs(rng, rows, count))
    b, mask = binary_or_ternary(rng, ternary, columns, count)
    sums = xnor.xnor_matmul_reference(a, b, count, **mask)
    check_runs(rng, lambda **keywords: xnor.prepare_matmul(b, count, **mask, **keywords), a, sums)


@st.composite
def larger_convolutions(draw):
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    group_channels = draw(st.sampled_from([1, 7, 64, 65, 100]))
    kernel = draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    strides = st.sampled_from([1, 1, 2, 3, 20])  # 20: beyond the image
    stride = draw(st.tuples(strides, strides))
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    size = [
        max(1, d * (k - 1) + 1 - 2 * p) + draw(st.integers(0, 5))
        for k, p, d in zip(kernel, padding, dilation, strict=True)
    ]
    x_shape = (draw(st.integers(0, 5)), *size, groups * group_channels)
    w_shape = (groups * draw(st.integers(1, 40)), *kernel, group_channels)
    mode = draw(st.sampled_from(["zeros", "ones"]))
    return (
        x_shape,
        w_shape,
        dict(stride=stride, padding=padding, dilation=dilation, groups=groups, padding_mode=mode),
    )


# A panel of a group's bits reaches one bit into the next word.
ACROSS_WORDS = (1, 3, 3, 14), (66, 1, 1, 7), dict(groups=2)


@given(seeds, larger_convolutions(), st.booleans())
@example(0, ACROSS_WORDS, False)
@by_each_method
def test_prepared_conv2d(seed, case, ternary):
    x_shape, w_shape, geometry = case
    rng = np.random.default_rng(seed)
    x = bits.pack(random_signs(rng, *x_shape))
    weight, mask = binary_or_ternary(rng, ternary, *w_shape)
    geometry = geometry | mask
    _, *size, channels = x_shape
    sums = xnor.xnor_conv2d_reference(x, weight, channels, **geometry)
    assert same(xnor.xnor_conv2d(x, weight, channels, **geometry), sums)

    def prepare(**keywords):
        return xnor.prepare_conv2d(weight, channels, size, **geometry, **keywords)

    check_runs(rng, prepare, x, sums)


@given(seeds, larger_convolutions(), st.integers(1, 40))
@by_each_method
def test_sums_of(seed, case, chunk):
    """Chunk by chunk, each into scratch memory that begins with its first pixel."""
    x_shape, w_shape, geometry = case
    rng = np.random.default_rng(seed)
    x, weight = bits.pack(random_signs(rng, *x_shape)), bits.pack(random_signs(rng, *w_shape))
    _, *size, channels = x_shape
    prepared = xnor.prepare_conv2d(weight, channels, size, **geometry)
    sums = xnor.xnor_conv2d_reference(x, weight, channels, **geometry)
    check_chunks(prepared, x, sums, chunk)


@given(seeds, st.integers(0, 20), st.integers(1, 150), st.integers(1, 40))
@by_each_method
def test_sums_of_a_product(seed, rows, columns, chunk):
    rng = np.random.default_rng(seed)
    a, b = (bits.pack(random_signs(rng, n, 100)) for n in (rows, columns))
    check_chunks(xnor.prepare_matmul(b, 100), a, xnor.xnor_matmul_reference(a, b, 100), chunk)


def check_chunks(prepared, x, sums, chunk):
    tables, arguments = prepared.tables, tuple(prepared.tables)
    per_image, filters, slot, behind = len(tables.pixels), tables.filters, 5, 64
    sums = sums.reshape(len(x) * per_image, filters)
    for first in range(0, len(sums), chunk):
        end = min(first + chunk, len(sums))
        source = words = x.reshape(-1)
        base = 0
        if tables.copies:
            images = (end - 1) // per_image - first // per_image + 1
            images += images % 2
            words = np.full(slot + images * tables.image_stride + behind, 77, np.uint64)
            base = xnor.pad(first, end, source, words, slot, arguments)
            assert np.all(words[:slot] == 77) and np.all(words[-behind:] == 77)
        scratch = np.full((end - first + 1) * filters, 77, np.int32)
        xnor.sums_of(first, end, words, base, prepared.masks, arguments, scratch)
        assert same(scratch[:-filters].reshape(-1, filters), sums[first:end])
        assert np.all(scratch[-filters:] == 77)


def test_border_classes():
    """Nine for a 3 x 3 filter with one pixel of zeros, one where nothing has to be corrected."""
    weight = words(5, 3, 3, 1)
    for mode, classes in (("zeros", 9), ("ones", 1)):
        prepared = xnor.prepare_conv2d(weight, 64, (8, 8), padding=(1, 1), padding_mode=mode)
        assert len(set(prepared.tables.rows.tolist())) == classes
    assert len(set(xnor.prepare_conv2d(weight, 64, (8, 8)).tables.rows.tolist())) == 1


def test_prepared_holds_arrays_and_integers():
    for prepared in (
        xnor.prepare_matmul(words(5, 2), 100),
        xnor.prepare_conv2d(words(5, 3, 3, 1), 64, (8, 8), padding=(1, 1)),
    ):
        for name, value in vars(prepared).items():
            assert isinstance(value, np.ndarray | int | tuple), name


@given(seeds, larger_convolutions(), st.booleans())
@by_each_method
def test_masks_alone_choose_the_code(seed, case, to_bits):
    """All other tables of a method have the same types, whatever they describe."""
    x_shape, w_shape, geometry = case
    rng = np.random.default_rng(seed)
    weight, mask = binary_or_ternary(rng, True, *w_shape)
    limits = {}
    if to_bits:
        limits = {"thresholds": np.zeros(w_shape[0], np.int32), "flip": np.zeros(w_shape[0], bool)}
    _, *size, channels = x_shape
    binary = xnor.prepare_conv2d(weight, channels, size, **geometry, **limits)
    ternary = xnor.prepare_conv2d(weight, channels, size, **geometry, **limits, **mask)
    product = xnor.prepare_matmul(words(5, 2), 100, mask=words(5, 2))
    kinds = {numba.typeof(tuple(prepared.tables)) for prepared in (binary, ternary, product)}
    assert len(kinds) == 1
    assert binary.masks.dtype == np.uint8
    assert (ternary.masks.dtype == np.uint8) == (ternary.kind == "look_ups")


@pytest.mark.skipif(not has_shuffles(), reason="the CPU has no byte shuffles")
def test_long_and_short_rows_are_counted(monkeypatch):
    """A sum of look-ups has 16 bits; and finding the tables takes its time."""
    monkeypatch.setattr(prepared_, "has_fast_look_ups", lambda: True)
    rng = np.random.default_rng(0)
    for count, kind in ((64, "xnor"), (2**15 - 64, "look_ups"), (2**16, "xnor")):
        b = bits.pack(random_signs(rng, 3, count))
        assert xnor.prepare_matmul(b, count).kind == kind
        # All signs differ, or none: in one row of a pair, in the other one, in both.
        expected = count * np.array([[-1, 1, 1, -1, -1, -1]], np.int32).T
        for row in b[:2]:
            result = xnor.xnor_matmul(
                np.stack([~row, row, row, ~row, ~row, ~row]), row[None], count
            )
            assert same(result, expected)


@pytest.mark.parametrize("words_of_a_row", [1, 30, 31, 32, 61, 62, 63, 93, 300])
@by_each_method
def test_a_byte_that_overflows(words_of_a_row):
    """All signs of a row differ: each word adds 8 to each byte of a counter."""
    count = 64 * words_of_a_row
    row = bits.pack(random_signs(np.random.default_rng(0), 1, count))
    a, b = np.concatenate([~row, row] * 3), np.concatenate([row] * 9)
    expected = count * np.array([[-1], [1]] * 3, np.int32)
    assert same(xnor.xnor_matmul(a, b, count), np.broadcast_to(expected, (6, 9)))
    mask = ~np.zeros_like(b)
    assert same(xnor.xnor_matmul(a, b, count, mask), np.broadcast_to(expected, (6, 9)))


@pytest.mark.parametrize(
    ("has_look_ups", "is_arm64", "terms", "method"),
    [
        (False, False, 1000, "counting"),
        (False, True, 1000, "counting_bytes"),
        (False, True, 10, "counting_bytes"),
        (False, True, 10**6, "counting_bytes"),
        (True, False, 1000, "look_ups"),
        (True, False, 10, "counting"),
        (True, False, 10**6, "counting"),
    ],
)
def test_the_method_suits_the_cpu(has_look_ups, is_arm64, terms, method, monkeypatch):
    monkeypatch.setattr(prepared_, "has_fast_look_ups", lambda: has_look_ups)
    monkeypatch.setattr(prepared_, "is_arm64", lambda: is_arm64)
    assert prepared_.method_for(terms).__name__ == f"tinybnn.kernels.signs.{method}"


@by_each_method
def test_register_peak():
    assert xnor.register_peak(100) > 0


# --------------------------------------------------------------------------------- ordered product


@given(seeds, few, st.integers(1, 40), st.integers(0, 40), st.sampled_from(FLOATS))
def test_ordered_matmul(seed, rows, depth, columns, dtype):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((rows, depth)).astype(dtype)
    b = (rng.standard_normal((depth, columns)) * 10.0 ** rng.integers(-3, 4)).astype(dtype)
    out = ordered_matmul(a, b)
    integers = f"i{out.itemsize}"
    expected = ordered_matmul_reference(a, b)
    assert same(out, expected)
    assert np.array_equal(out.view(integers), expected.view(integers))
    assert same(ordered_matmul(np.asfortranarray(a), b[:, ::-1]), out[:, ::-1])


@given(seeds, st.integers(1, 4), st.integers(1, 12), st.integers(1, 20))
def test_ordered_matmul_special_values(seed, rows, depth, columns):
    rng = np.random.default_rng(seed)
    a, b = random_values(rng, rows, depth), random_values(rng, depth, columns)
    a *= np.float32(1e30)  # products overflow
    b *= np.float32(1e30)
    assert same(ordered_matmul(a, b), ordered_matmul_reference(a, b))


def test_ordered_matmul_order():
    """1e8 swallows the ones that follow it, not the ones before."""
    a = np.ones((1, 5), np.float32)
    b = np.array([[1, 1e8], [1, 1], [1, 1], [1, 1], [1e8, 1]], np.float32)
    assert ordered_matmul(a, b).tolist() == [[np.float32(1e8 + 4), np.float32(1e8)]]
    b = np.array([[3, 1e8], [-1e8, 3], [1e8, -1e8], [0, 0], [0, 0]], np.float32)
    assert ordered_matmul(a, b).tolist() == [[0, 0]]


def test_ordered_matmul_rounds_each_product():
    """A fused multiply-add would keep the tail of x * x and give 2**-24, not 0."""
    x = np.float32(1 + 2**-12)
    a = np.array([[1, x]], np.float32)
    b = np.array([[-np.float32(x * x)], [x]], np.float32)
    assert ordered_matmul(a, b).tolist() == [[0]]
    assert float(x) * float(x) - float(x * x) == 2**-24


def test_ordered_matmul_negative_zero():
    """The sum starts at +0, so that it is never -0."""
    out = ordered_matmul(np.array([[-0.0]]), np.array([[1.0, 0.0]]))
    assert np.signbit(out).tolist() == [[False, False]]


@given(seeds, st.integers(2, 9), st.integers(1, 50), st.sampled_from([1, 10, 33]))
def test_ordered_matmul_batch_splits(seed, rows, depth, columns):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((rows, depth)).astype(np.float32)
    b = rng.standard_normal((depth, columns)).astype(np.float32)
    whole = ordered_matmul(a, b)
    for cut in range(1, rows):
        parts = [ordered_matmul(part, b) for part in (a[:cut], a[cut:])]
        assert same(np.concatenate(parts), whole)


# ----------------------------------------------------------------------------------------- threads


def heavy_kernels(seed):
    """One call of each parallel kernel."""
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((17, 70)).astype(np.float32)
    image, weight = random_signs(rng, 3, 7, 7, 70), random_signs(rng, 5, 3, 3, 70)
    return [
        ordered_matmul(a, a.T.copy()),
        xnor.xnor_matmul(bits.pack(a), bits.pack(a), 70),
        xnor.xnor_conv2d(bits.pack(image), bits.pack(weight), 70, padding=(1, 1)),
    ]


def test_thread_count_does_not_matter():
    results = []
    for n in (1, min(2, numba.config.NUMBA_NUM_THREADS)):
        with threads.num_threads(n):
            results.append(heavy_kernels(0))
    assert all(same(one, two) for one, two in zip(*results, strict=True))


def test_num_threads_restores():
    before = numba.get_num_threads()
    with threads.num_threads(1):
        assert numba.get_num_threads() == 1
    assert numba.get_num_threads() == before
    with pytest.raises(KeyError), threads.num_threads(1):
        raise KeyError
    assert numba.get_num_threads() == before
    most = numba.config.NUMBA_NUM_THREADS
    for n in (0, -1, most + 1):
        with (
            pytest.raises(ValueError, match=f"n must be from 1 to {most}, got {n}"),
            threads.num_threads(n),
        ):
            pass


def test_python_threads_take_turns():
    """Kernels called from several Python threads at once give the same results."""
    expected = heavy_kernels(0)
    matches = []

    def work():
        for _ in range(20):
            matches.append(all(map(same, heavy_kernels(0), expected)))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert matches == [True] * 80


@compiled
@pytest.mark.parametrize(("images", "tasks"), [(1, 2), (1, 4), (40, 2)])
def test_tasks_work_in_memory_of_their_own(images, tasks):
    rng = np.random.default_rng(0)
    x, weight = words_of(rng, images, 16, 16, 2), words_of(rng, 64, 3, 3, 2)
    prepared = xnor.prepare_conv2d(weight, 128, (16, 16), padding=(1, 1))
    with threads.num_threads(1):
        expected = xnor.run(prepared, x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(xnor, "tasks_for", Mock(return_value=tasks))
        for _ in range(20):
            assert same(xnor.run(prepared, x), expected)


def words_of(rng, *shape):
    return rng.integers(0, 2**64, shape, np.uint64)


# ---------------------------------------------------------------------------------------- refusals


def words(*shape):
    return np.zeros(shape, np.uint64)


def refused(message, function, *arguments, **keywords):
    """A row of the table of refusals; the message is given without the function's name."""
    message = f"{function.__name__}: {message}"
    return pytest.param(function, arguments, keywords, message, id=message)


SUMS, FLIP, BYTES = np.zeros((2, 3), np.int32), np.zeros(3, np.bool_), np.zeros((4, 2), np.uint8)
IMAGE, WEIGHT = words(1, 4, 4, 2), words(2, 3, 3, 2)  # 70 channels
F32, F64 = np.zeros((2, 3), np.float32), np.zeros((3, 2))


@pytest.mark.parametrize(
    ("function", "arguments", "keywords", "message"),
    [
        refused("x must be float32, float64 or integer, got bool", bits.pack, FLIP),
        refused("x must be float32, float64 or integer, got complex64", bits.pack, np.complex64(1)),
        refused("the last axis of x must hold elements, x has shape ()", bits.pack, 1.0),
        refused("the last axis of x must hold elements, x has shape (3, 0)", bits.pack, F64[:, :0]),
        refused("count must be positive, got 0", bits.unpack, words(2, 0), 0),
        refused("words has 2 words a row, count 64 needs 1", bits.unpack, words(3, 2), 64),
        refused(
            "words must be an array of uint64 with at least one axis, got int32 of shape (2, 3)",
            bits.unpack, SUMS, 70,
        ),
        refused(
            "dtype must be float32, float64 or signed integer, got uint8",
            bits.unpack, words(1), 3, np.uint8,
        ),
        refused("groups must divide 70 channels, got 4", bits.split_groups, words(2), 70, 4),
        refused("groups must divide 70 channels, got 0", bits.split_groups, words(2), 70, 0),
        refused(
            "words has 1 words a row, channels 70 needs 2", bits.split_groups, words(1), 70, 2
        ),
        refused("words has 1 words a row, count 70 needs 2", bits.to_bytes, words(1), 70),
        refused(
            "words has bits set behind the 12 bits of a row",
            bits.to_bytes, words(1) + np.uint64(1 << 12), 12,
        ),
        refused("count must be positive, got 0", bits.from_bytes, BYTES, 0),
        refused("bytes_ has 2 bytes a row, 17 bits need 3", bits.from_bytes, BYTES, 17),
        refused(
            "bytes_ must be an array of uint8 with at least one axis, got int32 of shape (2, 3)",
            bits.from_bytes, SUMS, 24,
        ),
        refused(
            "bytes_ has bits set behind the 12 bits of a row",
            bits.from_bytes, np.array([255, 0b10000], np.uint8), 12,
        ),
        refused("b has 3 words a row, a has 4", xnor.xnor_matmul, words(2, 4), words(2, 3), 250),
        refused(
            "a has 4 words a row, count 300 needs 5",
            xnor.xnor_matmul, words(2, 4), words(2, 4), 300,
        ),
        refused("count must be positive, got 0", xnor.xnor_matmul, words(2, 0), words(2, 0), 0),
        refused(
            "dtype must be int32 or float32, got float64",
            xnor.xnor_matmul, words(2, 4), words(2, 4), 250, dtype=np.float64,
        ),
        # int32 would overflow. Arrays without rows or pixels take no memory.
        refused(
            "count must be at most 2147483647, since sums are int32, got 2147483648",
            xnor.xnor_matmul, words(0, 2**25), words(0, 2**25), 2**31,
        ),
        refused(
            "count must be at most 2147483647, since sums are int32, got 2147483712",
            xnor.xnor_matmul, words(0, 2**25 + 1), words(0, 2**25 + 1), 2**31 + 64,
        ),
        refused(
            "count must be at most 2147483647, since sums are int32, got 2147483648",
            xnor.prepare_matmul, words(0, 2**25), 2**31,
        ),
        refused(
            "the number of weights of a filter must be at most 2147483647, since sums are int32, "
            "got 2147483648",
            xnor.xnor_conv2d, words(0, 4, 4, 2**21), words(0, 4, 4, 2**21), 2**27,
        ),
        refused(
            "the number of weights of a filter must be at most 2147483647, since sums are int32, "
            "got 2147483652",
            xnor.prepare_conv2d, words(0, 2, 2, 2**23 + 1), 2**29 + 1, (4, 4),
        ),
        refused(
            "a must be uint64 with 2 axes, got uint64 of shape (4,)",
            xnor.xnor_matmul, words(4), words(2, 4), 250,
        ),
        refused(
            "b must be uint64 with 2 axes, got int32 of shape (2, 3)",
            xnor.xnor_matmul, words(2, 4), SUMS, 250,
        ),
        refused(
            "x must be uint64 with 4 axes, got uint64 of shape (4, 4, 2)",
            xnor.xnor_conv2d, IMAGE[0], WEIGHT, 70,
        ),
        refused(
            "x has 2 words a row, channels 64 needs 1", xnor.xnor_conv2d, IMAGE, WEIGHT, 64
        ),
        refused(
            "weight has 2 words a row, channels // groups 35 needs 1",
            xnor.xnor_conv2d, IMAGE, WEIGHT, 70, groups=2,
        ),
        refused(
            "groups must divide 70 input channels and 1 output channels, got 2",
            xnor.xnor_conv2d, IMAGE, WEIGHT[:1], 70, groups=2,
        ),
        refused(
            'padding_mode must be "zeros" or "ones", got \'reflect\'',
            xnor.xnor_conv2d, IMAGE, WEIGHT, 70, padding_mode="reflect",
        ),
        refused(
            "stride must be two integers >= 1, got (0, 1)",
            xnor.xnor_conv2d, IMAGE, WEIGHT, 70, stride=(0, 1),
        ),
        refused(
            "padding must be two integers >= 0, got (-1, 1)",
            xnor.xnor_conv2d, IMAGE, WEIGHT, 70, padding=(-1, 1),
        ),
        refused(
            "dilation must be two integers >= 1, got (1, 1, 1)",
            xnor.xnor_conv2d, IMAGE, WEIGHT, 70, dilation=(1, 1, 1),
        ),
        refused(
            "the kernel covers 3 x 5 pixels, the padded image has 4 x 4",
            xnor.xnor_conv2d, IMAGE, WEIGHT, 70, dilation=(1, 2),
        ),
        refused(
            "thresholds and flip must be given together, got only one",
            xnor.prepare_matmul, words(3, 1), 64, flip=FLIP,
        ),
        refused(
            "thresholds must be int32 of shape (3,), got int32 of shape (2,)",
            xnor.prepare_matmul, words(3, 1), 64, thresholds=SUMS[0, :2], flip=FLIP,
        ),
        refused(
            "flip must be bool of shape (2,), got bool of shape (3,)",
            xnor.prepare_conv2d, WEIGHT, 70, (4, 4), thresholds=SUMS[0, :2], flip=FLIP,
        ),
        refused(
            "b has 1 words a row, count 65 needs 2", xnor.prepare_matmul, words(3, 1), 65
        ),
        refused(
            "mask must have the shape (3, 1) of the weights, got (3, 2)",
            xnor.prepare_matmul, words(3, 1), 64, mask=words(3, 2),
        ),
        refused(
            "mask must be uint64 with 4 axes, got int64 of shape (2, 3, 3, 2)",
            xnor.prepare_conv2d, WEIGHT, 70, (4, 4), mask=WEIGHT.astype(np.int64),
        ),
        refused(
            "the kernel covers 3 x 3 pixels, the padded image has 2 x 4",
            xnor.prepare_conv2d, WEIGHT, 70, (2, 4),
        ),
        refused(
            "x must be uint64 of shape (N, 2), got uint64 of shape (4, 3)",
            xnor.run, xnor.prepare_matmul(words(3, 2), 70), words(4, 3),
        ),
        refused(
            "out must be contiguous int32 of shape (4, 3), got uint64 of shape (4, 3)",
            xnor.run, xnor.prepare_matmul(words(3, 2), 70), words(4, 2), words(4, 3),
        ),
        refused(
            "out must be contiguous uint64 of shape (4, 1), got float32 of shape (4, 1)",
            xnor.run, xnor.prepare_matmul(words(3, 2), 70, thresholds=SUMS[0], flip=FLIP),
            words(4, 2), np.empty((4, 1), np.float32),
        ),
        refused("a must be float32 or float64, got int32", ordered_matmul, SUMS, SUMS.T),
        refused("b must be float32 as a is, got float64", ordered_matmul, F32, F64),
        refused(
            "a and b must have 2 axes, got shapes (2,) and (3, 2)",
            ordered_matmul, F64[0], F64,
        ),
        refused("b has 2 rows, a has 3 columns", ordered_matmul, F32, F32),
        refused(
            "the summed axis must hold elements, K is 0",
            ordered_matmul, F64[:, :0], F64[:0],
        ),
    ],
)  # fmt: skip
def test_refusals(function, arguments, keywords, message):
    with pytest.raises(ValueError) as refusal:
        function(*arguments, **keywords)
    assert str(refusal.value) == message


# ------------------------------------------------------------------------- this file, run otherwise


def run_tests(tests, **environment):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests]
    environment = {**os.environ, "HYPOTHESIS_PROFILE": "ci", **environment}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr


@compiled
def test_python_threads_take_turns_in_workqueue():
    """Other threading layers of Numba allow what this one punishes by ending the process."""
    test = f"{__file__}::{test_python_threads_take_turns.__name__}"
    run_tests(test, NUMBA_THREADING_LAYER="workqueue")


@compiled
def test_kernels_run_uncompiled():
    """A student can step through the kernels in a debugger: all of this as plain Python."""
    run_tests(__file__, NUMBA_DISABLE_JIT="1")
