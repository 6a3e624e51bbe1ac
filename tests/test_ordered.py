"""Sums in fixed order: convolution and packed signs against plain NumPy, bit for bit."""

import os
import platform
import subprocess
import sys
import textwrap
from unittest import mock

import numba
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tinybnn import functional as F
from tinybnn.kernels.floats import ordered, ordered_matmul, ordered_sums
from tinybnn.kernels.machine import threads
from tinybnn.kernels.signs import bits

from cpus import compiles_for

SPECIAL = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, -1e-45, 3e38], np.float32)

seeds = st.integers(0, 2**32 - 1)
panels = st.sampled_from([ordered_sums.WIDE, ordered_sums.NARROW])  # with AVX-512, and without
compiled = pytest.mark.skipif(numba.config.DISABLE_JIT, reason="the run without compilation")
x86 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="LLVM aborts at the names of x86 CPUs"
)


def values(rng, *shape):
    """Normal values, some replaced by special ones."""
    x = rng.standard_normal(shape).astype(np.float32)
    special = rng.random(shape) < 0.05
    x[special] = rng.choice(SPECIAL, special.sum())
    return x


def random_words(rng, *shape):
    return rng.integers(0, 2**64, shape, np.uint64)


def same(a, b):
    """Equal in shape, dtype and every bit; the bits of a NaN are left open."""
    assert a.dtype == b.dtype == np.float32
    if a.shape != b.shape:
        return False
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    numbers = ~np.isnan(a)
    return np.array_equal(numbers, ~np.isnan(b)) and np.array_equal(
        a.view(np.uint32)[numbers], b.view(np.uint32)[numbers]
    )


def in_many_parts():
    """Divide even the smallest work among all threads."""
    return mock.patch.object(ordered, "_SPEED", 1e-12)


def with_panels(widest):
    return mock.patch.object(ordered, "_WIDEST", widest)


# ------------------------------------------------------------------------------------- convolution


@st.composite
def geometries(draw):
    """Shapes and options of a convolution; channels per group, filters per group."""
    side = st.integers(1, 3)
    if draw(st.booleans()):
        groups, per_group = draw(side), (draw(side), draw(st.sampled_from([1, 5, 16, 17, 49, 70])))
    else:
        groups, per_group = draw(st.integers(1, 20)), (1, 1)  # depth-wise
    kernel, stride, dilation = (draw(st.tuples(side, side)) for _ in range(3))
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    reach = [d * (k - 1) + 1 - 2 * p for k, d, p in zip(kernel, dilation, padding, strict=True)]
    size = tuple(draw(st.integers(max(1, r), max(1, r) + 4)) for r in reach)
    shape = (draw(st.integers(0, 3)), *size, groups * per_group[0])
    filters = (groups * per_group[1], per_group[0], *kernel)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return shape, filters, options


@given(seeds, geometries(), panels)
@example(0, ((1, 9, 9, 3), (64, 3, 3, 3), {"padding": (1, 1)}), ordered_sums.WIDE)
@example(0, ((1, 3, 3, 1), (128, 1, 3, 3), {}), ordered_sums.WIDE)  # one pixel, whole wide panels
@example(0, ((2, 17, 16, 2), (20, 2, 1, 1), {}), ordered_sums.WIDE)  # more than a part of pixels
@example(0, ((2, 4, 4, 33), (33, 1, 2, 2), {"groups": 33}), ordered_sums.WIDE)
def test_conv2d(seed, geometry, widest):
    shape, filters, options = geometry
    rng = np.random.default_rng(seed)
    x, weight = values(rng, *shape), values(rng, *filters)
    with with_panels(widest):
        prepared = ordered.prepare_conv2d(weight, shape[1:3], **options)
    expected = ordered.conv2d_reference(x, weight, **options)
    assert same(ordered.conv2d(prepared, x), expected)
    reordered = np.asfortranarray(x)
    assert same(ordered.conv2d(prepared, reordered), expected)
    with in_many_parts():
        assert same(ordered.conv2d(prepared, x), expected)


@given(seeds, geometries())
def test_conv2d_equals_the_ordered_product_of_patches(seed, geometry):
    shape, filters, options = geometry
    rng = np.random.default_rng(seed)
    x, weight = values(rng, *shape), values(rng, *filters)
    stride, padding = options["stride"], options["padding"]
    nchw = (shape[0], shape[3], *shape[1:3])
    plan = F.Geometry(nchw, filters, stride, padding, options["dilation"], options["groups"])
    pairs = zip(plan.patches(x.transpose(0, 3, 1, 2)), plan.rows_of_weight(weight), strict=True)
    rows = np.stack([ordered_matmul.ordered_matmul_reference(patch, w.T) for patch, w in pairs])
    expected = plan.image_of_rows(rows).transpose(0, 2, 3, 1)
    assert same(ordered.conv2d_reference(x, weight, **options), expected)
    prepared = ordered.prepare_conv2d(weight, shape[1:3], **options)
    assert same(ordered.conv2d(prepared, x), expected)


def test_conv2d_order():
    """Row by row, in a row pixel by pixel, in a pixel channel by channel: 1e8 swallows the 3."""
    x = np.ones((1, 2, 2, 2), np.float32)
    for place, expected in enumerate([0, 3]):
        # In this order of summation the two big terms are neighbours, and the 3 is before or after.
        steps = np.zeros(8, np.float32)
        steps[[2, 3]] = 1e8, -1e8
        steps[1 + 3 * place] = 3
        weight = steps.reshape(1, 2, 2, 2).transpose(0, 3, 1, 2)
        assert ordered.conv2d_reference(x, weight).tolist() == [[[[expected]]]]
        prepared = ordered.prepare_conv2d(weight, (2, 2))
        assert ordered.conv2d(prepared, x).tolist() == [[[[expected]]]]


def test_conv2d_rounds_each_product():
    """A fused multiply-add would keep the tail of v * v and give 2**-24, not 0."""
    v = np.float32(1 + 2**-12)
    x = np.array([1, v], np.float32).reshape(1, 1, 1, 2)
    for filters in (1, 16, 64):
        weight = np.array([[-np.float32(v * v), v]] * filters, np.float32)
        prepared = ordered.prepare_conv2d(weight.reshape(filters, 2, 1, 1), (1, 1))
        assert not ordered.conv2d(prepared, np.tile(x, (7, 1, 1, 1))).any()
    assert float(v) * float(v) - float(v * v) == 2**-24


def test_conv2d_zeros_of_the_padding_take_part():
    """0 * inf is NaN on the border, as it is in a matrix of patches."""
    weight = np.full((1, 1, 1, 3), np.inf, np.float32)
    prepared = ordered.prepare_conv2d(weight, (1, 4), padding=(0, 1))
    out = ordered.conv2d(prepared, np.ones((1, 1, 4, 1), np.float32))
    assert np.isnan(out[0, 0, :, 0]).tolist() == [True, False, False, True]


def test_conv2d_sums_are_never_minus_zero():
    weight = np.full((1, 1, 1, 1), -1, np.float32)
    out = ordered.conv2d(ordered.prepare_conv2d(weight, (1, 1)), np.zeros((1, 1, 1, 1), np.float32))
    assert out.view(np.uint32).tolist() == [[[[0]]]]


@given(seeds, st.integers(1, 3), st.sampled_from([3, 16, 20, 70]), st.booleans())
def test_conv2d_writes_to_out_and_not_beyond(seed, images, channels, depthwise):
    rng = np.random.default_rng(seed)
    shape = (channels, 1, 3, 3) if depthwise else (channels, 2, 3, 3)
    weight = values(rng, *shape)
    options = {"padding": (1, 1), "groups": channels if depthwise else 1}
    x = values(rng, images, 4, 3, channels if depthwise else 2)
    prepared = ordered.prepare_conv2d(weight, (4, 3), **options)
    size = images * 12 * channels
    memory = np.full(size + 64, 7, np.float32)
    workspace = np.full(prepared.workspace_floats(images) + 64, 7, np.float32)
    out = memory[32:-32].reshape(images, 4, 3, channels)
    given_ = {"out": out, "workspace": workspace[32:-32]}
    assert ordered.conv2d(prepared, x, **given_) is out
    assert same(out, ordered.conv2d_reference(x, weight, **options))
    for array in (memory, workspace):
        assert np.all(array[:32] == 7) and np.all(array[-32:] == 7)


@given(seeds, st.data())
def test_a_task_writes_its_own_pixels_only(seed, data):
    rng = np.random.default_rng(seed)
    x, weight = values(rng, 4, 3, 3, 1), values(rng, 5, 1, 3, 3)
    first = data.draw(st.integers(0, 35))
    end = data.draw(st.integers(first + 1, 36))
    prepared = ordered.prepare_conv2d(weight, (3, 3), padding=(1, 1))
    out = np.full(36 * 5, 7, np.float32)
    workspace = np.empty(prepared.workspace_floats(4), np.float32)
    copying, tables = prepared.copying, prepared.tables
    with np.errstate(over="ignore", invalid="ignore"):
        ordered._conv2d(first, end, 0, 0, x.reshape(-1), workspace, copying, tables, out)
    expected = ordered.conv2d_reference(x, weight, padding=(1, 1)).reshape(-1)
    assert same(out[first * 5 : end * 5], expected[first * 5 : end * 5])
    assert np.all(out[: first * 5] == 7) and np.all(out[end * 5 :] == 7)


@given(seeds, st.integers(1, 5), st.data())
def test_conv2d_in_chunks(seed, images, data):
    """What a kernel with an epilogue of its own does: some pixels at a time, into a scratch."""
    rng = np.random.default_rng(seed)
    x, weight = values(rng, images, 5, 4, 2), values(rng, 70, 2, 3, 2)
    options = {"padding": (1, 2), "stride": (2, 1)}
    prepared = ordered.prepare_conv2d(weight, (5, 4), **options)
    expected = ordered.conv2d_reference(x, weight, **options).reshape(-1, 70)
    copying, tables = prepared.copying, prepared.tables
    stride, pixels = tables.image_stride, len(tables.pixels)
    first = data.draw(st.integers(0, images * pixels - 1))
    end = data.draw(st.integers(first + 1, images * pixels))
    image, after = first // pixels, (end - 1) // pixels + 1
    slot = 5
    workspace = np.full(slot + (after - image) * stride, np.nan, np.float32)
    scratch = np.full((2 + end - first) * 70, 7, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        ordered.pad_images(x.reshape(-1), image, after, workspace, slot, copying)
        base = slot - image * stride
        ordered_sums.sums(first, end, workspace, base, scratch, 70, tables)
    assert same(scratch[70:-70].reshape(-1, 70), expected[first:end])
    assert np.all(scratch[:70] == 7) and np.all(scratch[-70:] == 7)


def test_prepared_weights_are_a_copy():
    weight = np.ones((2, 1, 1, 1), np.float32)
    x = np.ones((1, 1, 1, 1), np.float32)
    before = ordered.prepare_conv2d(weight, (1, 1))
    weight[:] = 2
    after = ordered.prepare_conv2d(weight, (1, 1))
    assert ordered.conv2d(before, x).tolist() == [[[[1, 1]]]]
    assert ordered.conv2d(after, x).tolist() == [[[[2, 2]]]]


# --------------------------------------------------------------------------- functional convolution


@given(seeds, geometries())
def test_functional_conv2d_uses_it(seed, geometry):
    shape, filters, options = geometry
    rng = np.random.default_rng(seed)
    x, weight = values(rng, *shape), values(rng, *filters)
    expected = ordered.conv2d_reference(x, weight, **options).transpose(0, 3, 1, 2)
    channels_last = x.transpose(0, 3, 1, 2)
    for image in (channels_last, np.ascontiguousarray(channels_last)):
        out = F.conv2d(image, weight, **options, fixed_order=True)
        assert same(out, expected)
        assert out.transpose(0, 2, 3, 1).flags.c_contiguous


def test_functional_conv2d_does_not_copy_channels_last_images():
    x = np.ones((2, 5, 5, 3), np.float32)
    weight = np.ones((4, 3, 3, 3), np.float32)
    with mock.patch.object(ordered, "conv2d", wraps=ordered.conv2d) as conv2d:
        F.conv2d(x.transpose(0, 3, 1, 2), weight, fixed_order=True)
    _, image = conv2d.call_args.args
    assert image.flags.c_contiguous and np.shares_memory(image, x)


def test_functional_conv2d_sees_changed_weights():
    x, weight = np.ones((1, 1, 2, 2), np.float32), np.ones((1, 1, 2, 2), np.float32)
    for value in (1, 2):
        weight[:] = value
        assert F.conv2d(x, weight, fixed_order=True).tolist() == [[[[4 * value]]]]


def test_functional_conv2d_of_bytes():
    pixels = np.arange(16, dtype=np.uint8).reshape(1, 1, 4, 4)
    out = F.conv2d(pixels, np.ones((1, 1, 4, 4), np.float32), fixed_order=True)
    assert out.dtype == np.float32 and out.tolist() == [[[[120]]]]


# ------------------------------------------------------------------------------------ signs, float


@given(
    seeds, st.integers(0, 14), st.integers(1, 150), st.sampled_from([1, 10, 16, 17, 64, 70]), panels
)
def test_signs_matmul(seed, rows, count, outputs, widest):
    rng = np.random.default_rng(seed)
    row_words = bits.words_for(count) + rng.integers(2)
    words, weight = random_words(rng, rows, row_words), values(rng, outputs, count)
    shuffled = rng.permutation(64 * row_words)[:count]
    for order in (None, shuffled):
        expected = ordered.signs_matmul_reference(words, weight, order)
        with with_panels(widest):
            prepared = ordered.prepare_signs_matmul(weight, order)
        assert same(ordered.signs_matmul(prepared, words), expected)
        with in_many_parts():
            assert same(ordered.signs_matmul(prepared, words), expected)


@given(seeds, st.integers(1, 8), st.integers(1, 130), st.integers(1, 20))
def test_signs_matmul_equals_the_product_of_unpacked_signs(seed, rows, count, outputs):
    rng = np.random.default_rng(seed)
    x, weight = values(rng, rows, count), values(rng, outputs, count)
    words = bits.pack(x)
    expected = ordered_matmul.ordered_matmul(bits.unpack(words, count), weight.T)
    assert same(ordered.signs_matmul(ordered.prepare_signs_matmul(weight), words), expected)


@given(seeds, st.sampled_from([1, 3, 64, 70]), st.integers(1, 3), st.integers(1, 3))
def test_signs_matmul_of_flattened_images(seed, channels, height, width):
    """Bits pixel by pixel, weights and sum channel by channel."""
    rng = np.random.default_rng(seed)
    image, weight = (
        values(rng, 2, channels, height, width),
        values(rng, 5, channels * height * width),
    )
    words = bits.pack(image.transpose(0, 2, 3, 1))  # (N, H, W, words)
    pixel_bits = 64 * words.shape[-1]
    order = np.arange(height * width) * pixel_bits + np.arange(channels)[:, None]  # (C, H * W)
    signs = np.where(image >= 0, 1, -1).astype(np.float32).reshape(2, -1)
    expected = ordered_matmul.ordered_matmul_reference(signs, weight.T)
    prepared = ordered.prepare_signs_matmul(weight, order.reshape(-1))
    assert same(ordered.signs_matmul(prepared, words.reshape(2, -1)), expected)


def test_signs_matmul_zeros_and_infinities():
    """The sum starts at +0, so that it is never -0; inf - inf is NaN."""
    weight = np.array([[0.0, 0.0], [-0.0, 0.0], [np.inf, -np.inf], [np.inf, np.inf]], np.float32)
    prepared = ordered.prepare_signs_matmul(weight)
    out = ordered.signs_matmul(prepared, np.array([[0b00], [0b11], [0b01]], np.uint64))
    assert not np.signbit(out[:, :2]).any() and not out[:, :2].any()
    assert np.isnan(out[:, 2]).tolist() == [True, True, False]
    assert out[:2, 3].tolist() == [-np.inf, np.inf] and np.isnan(out[2, 3])


@given(seeds, st.integers(1, 8), st.sampled_from([1, 10, 16, 20, 70]))
def test_signs_matmul_writes_to_out_and_not_beyond(seed, rows, outputs):
    rng = np.random.default_rng(seed)
    words, weight = random_words(rng, rows, 2), values(rng, outputs, 100)
    memory = np.full(rows * outputs + 64, 7, np.float32)
    out = memory[32:-32].reshape(rows, outputs)
    assert ordered.signs_matmul(ordered.prepare_signs_matmul(weight), words, out) is out
    assert same(out, ordered.signs_matmul_reference(words, weight))
    assert np.all(memory[:32] == 7) and np.all(memory[-32:] == 7)


def test_prepared_signs_are_a_copy():
    weight, order = np.ones((1, 2), np.float32), np.array([0, 1])
    prepared = ordered.prepare_signs_matmul(weight, order)
    weight[:], order[:] = 5, 0
    assert ordered.signs_matmul(prepared, np.array([[0b01]], np.uint64)).tolist() == [[0]]


# ----------------------------------------------------------------------------------------- threads


def test_thread_count_does_not_matter():
    rng = np.random.default_rng(0)
    x, weight = values(rng, 3, 9, 8, 3), values(rng, 70, 3, 3, 3)
    words, dense = random_words(rng, 13, 2), values(rng, 10, 128)
    prepared = ordered.prepare_conv2d(weight, (9, 8), padding=(1, 1))
    prepared_signs = ordered.prepare_signs_matmul(dense)
    results = []
    for n in range(1, numba.config.NUMBA_NUM_THREADS + 1):
        with threads.num_threads(n), in_many_parts():
            results.append(
                [ordered.conv2d(prepared, x[:1]), ordered.conv2d(prepared, x)]
                + [ordered.signs_matmul(prepared_signs, words[:rows]) for rows in (1, 2, 13)]
            )
    for other in results[1:]:
        assert all(same(a, b) for a, b in zip(results[0], other, strict=True))


@compiled
def test_work_is_shared_out():
    """Both kernels use several threads if there is enough work."""
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("one thread only")
    x, weight = np.ones((2, 4, 4, 1), np.float32), np.ones((3, 1, 3, 3), np.float32)
    prepared_signs = ordered.prepare_signs_matmul(np.ones((3, 64), np.float32))
    share_out = mock.patch.object(ordered.parallel, "share_out")
    with in_many_parts(), threads.num_threads(2), share_out as share_out:
        ordered.conv2d(ordered.prepare_conv2d(weight, (4, 4)), x)
        ordered.signs_matmul(prepared_signs, np.zeros((5, 1), np.uint64))
    shares = [call.args[1].tolist() for call in share_out.call_args_list]
    assert shares == [[[0, 4], [4, 8]], [[0, 2], [2, 5]]]


# --------------------------------------------------------------------------------------- refusals

WEIGHT, IMAGE = np.ones((4, 2, 3, 3), np.float32), np.ones((1, 5, 5, 2), np.float32)
DENSE, WORDS = np.ones((3, 65), np.float32), np.zeros((2, 2), np.uint64)


def refused(message, function, *arguments, **keywords):
    return pytest.param(function, arguments, keywords, f"{function.__name__}: {message}")


@pytest.mark.parametrize(
    ("function", "arguments", "keywords", "message"),
    [
        refused(
            "weight must be float32 with 4 axes (O, C / groups, kh, kw), "
            "got float64 of shape (4, 2, 3, 3)",
            ordered.prepare_conv2d, WEIGHT.astype(float), (5, 5),
        ),
        refused(
            "a filter must hold elements, weight has shape (4, 0, 3, 3)",
            ordered.prepare_conv2d, WEIGHT[:, :0], (5, 5),
        ),
        refused(
            "groups must divide the 4 output channels, got 3",
            ordered.prepare_conv2d, WEIGHT, (5, 5), groups=3,
        ),
        refused(
            "stride must be two integers >= 1, got (1, 0)",
            ordered.prepare_conv2d, WEIGHT, (5, 5), stride=(1, 0),
        ),
        refused(
            "padding must be two integers >= 0, got (-1, 0)",
            ordered.prepare_conv2d, WEIGHT, (5, 5), padding=(-1, 0),
        ),
        refused(
            "dilation must be two integers >= 1, got (1,)",
            ordered.prepare_conv2d, WEIGHT, (5, 5), dilation=(1,),
        ),
        refused(
            "the kernel covers 5 x 3 pixels, the padded image has 4 x 5",
            ordered.prepare_conv2d, WEIGHT, (4, 5), dilation=(2, 1),
        ),
        refused(
            "x must be float32 of shape (N, 5, 5, 2), got float32 of shape (1, 5, 4, 2)",
            ordered.conv2d, ordered.prepare_conv2d(WEIGHT, (5, 5)), IMAGE[:, :, :4],
        ),
        refused(
            "x must be float32 of shape (N, 5, 5, 2), got float64 of shape (1, 5, 5, 2)",
            ordered.conv2d, ordered.prepare_conv2d(WEIGHT, (5, 5)), IMAGE.astype(float),
        ),
        refused(
            "out must be contiguous float32 of shape (1, 3, 3, 4), "
            "got float32 of shape (1, 5, 5, 2)",
            ordered.conv2d, ordered.prepare_conv2d(WEIGHT, (5, 5)), IMAGE, IMAGE,
        ),
        refused(
            "workspace must be a row of at least 114 float32, got float32 of shape (5,)",
            ordered.conv2d, ordered.prepare_conv2d(WEIGHT, (5, 5), padding=(1, 1)), IMAGE,
            workspace=np.ones(5, np.float32),
        ),
        refused(
            "weight must be float32 of shape (O, K), K > 0, got float32 of shape (3, 0)",
            ordered.prepare_signs_matmul, DENSE[:, :0],
        ),
        refused(
            "order must be int64 of shape (65,) and not negative, got int64 of shape (64,)",
            ordered.prepare_signs_matmul, DENSE, np.arange(64),
        ),
        refused(
            "order must be int64 of shape (65,) and not negative, got int64 of shape (65,)",
            ordered.prepare_signs_matmul, DENSE, np.arange(65) - 1,
        ),
        refused(
            "words must be uint64 of shape (N, 2 or more), got uint64 of shape (2, 1)",
            ordered.signs_matmul, ordered.prepare_signs_matmul(DENSE), WORDS[:, :1],
        ),
        refused(
            "out must be contiguous float32 of shape (2, 3), got uint64 of shape (2, 2)",
            ordered.signs_matmul, ordered.prepare_signs_matmul(DENSE), WORDS, WORDS,
        ),
    ],
)  # fmt: skip
def test_refusals(function, arguments, keywords, message):
    with pytest.raises(ValueError) as refusal:
        function(*arguments, **keywords)
    assert str(refusal.value) == message


# ------------------------------------------------------------- without compilation, on smaller CPUs

REGISTERS = {"AVX2": ("zmm", "k1"), "SSE4.2": ("zmm", "ymm", "k1")}  # that are not there
PROGRAM = """
    import numpy as np
    from tinybnn.kernels.floats import ordered, ordered_matmul, ordered_sums
    from tinybnn.kernels.machine import threads

    assert ordered._WIDEST == ordered_sums.NARROW
    rng = np.random.default_rng(0)
    floats = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    with threads.num_threads(1):
        for filters, groups in ((70, 1), (20, 20)):
            x, weight = floats(2, 6, 5, 20), floats(filters, 20 // groups, 3, 3)
            for widest in (ordered_sums.WIDE, ordered_sums.NARROW):
                ordered._WIDEST = widest
                prepared = ordered.prepare_conv2d(weight, (6, 5), padding=(1, 1), groups=groups)
                expected = ordered.conv2d_reference(x, weight, padding=(1, 1), groups=groups)
                assert np.array_equal(ordered.conv2d(prepared, x), expected)
        words, weight = rng.integers(0, 2**64, (9, 2), np.uint64), floats(10, 100)
        out = ordered.signs_matmul(ordered.prepare_signs_matmul(weight), words)
        assert np.array_equal(out, ordered.signs_matmul_reference(words, weight))
    for function in (ordered._conv2d, ordered._signs_matmul, ordered.pad_images):
        (assembly,) = function.inspect_asm().values()
        for register in {registers}:
            assert "%" + register not in assembly, register
        assert "vfmadd" not in assembly
"""


def run(command, **environment):
    run = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=100
    )
    assert run.returncode == 0, run.stdout + run.stderr


@compiled
@x86
@pytest.mark.parametrize("cpu", REGISTERS)
def test_smaller_cpus(cpu, tmp_path):
    """The same kernels are correct with shorter vectors, and use no missing instructions."""
    program = textwrap.dedent(PROGRAM).replace("{registers}", repr(REGISTERS[cpu]))
    environment = compiles_for(cpu)
    environment |= {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    run([sys.executable, "-c", program], **environment)


@compiled
def test_kernels_run_uncompiled():
    """A student can step through the kernels in a debugger: all of this as plain Python."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    run(command, NUMBA_DISABLE_JIT="1", HYPOTHESIS_PROFILE="ci")
