"""Real-valued convolutions for training, against plain NumPy."""

import contextlib
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
from tinybnn.kernels.floats import (
    convolution,
    convolution_plans,
    convolution_spread,
    convolution_tasks,
)
from tinybnn.kernels.machine import simd, threads
from tinybnn.tensor import Tensor

from cpus import compiles_for

seeds = st.integers(0, 2**32 - 1)
sides = st.integers(1, 3)
compiled = pytest.mark.skipif(numba.config.DISABLE_JIT, reason="the run without compilation")
x86 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="LLVM aborts at the names of x86 CPUs"
)

# Filters of a group that fill panels of each width, and some that do not.
FILTERS = [1, 2, 5, 16, 17, 40, 64, 70]


@st.composite
def geometries(draw):
    """Shape of images (N, H, W, C), shape of filters, options."""
    if draw(st.booleans()):
        groups, per_group = draw(sides), (draw(st.integers(1, 4)), draw(st.sampled_from(FILTERS)))
        if draw(st.booleans()):  # the image has the many channels
            per_group = per_group[::-1]
    else:
        groups, per_group = draw(st.integers(2, 36)), (1, 1)  # depth-wise
    kernel, stride, dilation = (draw(st.tuples(sides, sides)) for _ in range(3))
    padding = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
    reach = [d * (k - 1) + 1 - 2 * p for k, d, p in zip(kernel, dilation, padding, strict=True)]
    size = tuple(draw(st.integers(max(1, r), max(1, r) + 4)) for r in reach)
    shape = draw(st.integers(1, 3)), *size, groups * per_group[0]
    filters = groups * per_group[1], per_group[0], *kernel
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return shape, filters, options


def maps(shape, filters, options, values):
    """For each of the three: its name, the function, its reference and their arguments."""
    x, weight = values(shape), values(filters)
    grad = values(convolution.conv2d_reference(x, weight, **options).shape)
    for name, arguments in (
        ("conv2d", (x, weight)),
        ("conv2d_input", (grad, weight, shape[1:3])),
        ("conv2d_weight", (x, grad, filters[2:])),
    ):
        reference = getattr(convolution, f"{name}_reference")
        yield name, getattr(convolution, name), reference, arguments


def small_integers(rng):
    """Small integers, whose sums of products are exact in float32 in any order."""
    return lambda shape: rng.integers(-4, 5, shape).astype(np.float32)


def in_small_parts():
    """Use units of a row, many blocks of sums, and all threads for the smallest work."""
    sizes = {"_UNIT_FLOATS": 1, "UNIT_PIXELS": 1, "_DEPTH": 2, "_CHUNK": 3}
    patches = contextlib.ExitStack()
    for module, changed in (
        (convolution_plans, sizes | {"_CHUNK_CHANNELWISE": 2}),
        (convolution_tasks, {"_PART_PIXELS": 1, "_PART_PRODUCTS": 1, "_SPEED": 1e-12}),
        (convolution_spread, {"UNIT_PIXELS": 1, "_SPEED": 1e-12}),
    ):
        patches.enter_context(mock.patch.multiple(module, **changed))
    return patches


@pytest.fixture(autouse=True)
def fresh_plans():
    """Plans depend on the sizes that `in_small_parts` changes."""
    yield
    forget_plans()


def forget_plans():
    convolution_plans.forward_plan.cache_clear()
    convolution_plans.input_plan.cache_clear()
    convolution_tasks._tasks_of_taps.cache_clear()


WIDE = ((2, 9, 9, 3), (64, 3, 3, 3), {"padding": (1, 1), "groups": 1})
DEPTHWISE = ((2, 9, 7, 32), (32, 1, 3, 3), {"stride": (2, 1), "padding": (1, 1), "groups": 32})
UNSEEN = ((2, 7, 6, 2), (20, 2, 1, 1), {"stride": (2, 3), "groups": 1})  # pixels without a tap
FAR = ((1, 3, 4, 2), (17, 2, 2, 2), {"padding": (4, 4), "stride": (3, 3), "groups": 1})
BEYOND = ((2, 7, 6, 20), (20, 20, 2, 2), {"stride": (2, 2), "groups": 1})  # an unseen last row
POINTWISE = ((3, 5, 7, 48), (70, 48, 1, 1), {"groups": 1})


@given(seeds, geometries())
@example(0, WIDE)
@example(0, DEPTHWISE)
@example(0, UNSEEN)
@example(0, FAR)
@example(0, BEYOND)
@example(0, POINTWISE)
@example(0, ((2, 4, 4, 70), (2, 70, 3, 3), {"padding": (1, 1), "groups": 1}))  # spread
def test_exact_on_small_integers(seed, geometry):
    values = small_integers(np.random.default_rng(seed))
    for name, function, reference, arguments in maps(*geometry, values):
        expected = reference(*arguments, **geometry[2])
        result = function(*arguments, **geometry[2])
        assert result.dtype == np.float32 and result.flags.c_contiguous
        assert np.array_equal(result, expected), name
        out = np.full(expected.shape, np.nan, np.float32)
        assert function(*arguments, **geometry[2], out=out) is out
        assert np.array_equal(out, expected), name
        turned = [np.asfortranarray(a) if np.ndim(a) == 4 else a for a in arguments]
        assert np.array_equal(function(*turned, **geometry[2]), expected), name


@given(seeds, geometries())
@example(0, WIDE)
@example(0, DEPTHWISE)
@example(0, UNSEEN)
@example(0, FAR)
@example(0, BEYOND)
@example(0, POINTWISE)
@example(0, ((2, 4, 4, 70), (2, 70, 3, 3), {"padding": (1, 1), "groups": 1}))
def test_exact_in_small_parts(seed, geometry):
    values = small_integers(np.random.default_rng(seed))
    forget_plans()
    with in_small_parts():
        for name, function, reference, arguments in maps(*geometry, values):
            expected = reference(*arguments, **geometry[2])
            assert np.array_equal(function(*arguments, **geometry[2]), expected), name
    forget_plans()


@given(seeds, geometries())
@example(0, ((2, 16, 16, 64), (64, 64, 3, 3), {"padding": (1, 1), "groups": 1}))
@example(0, ((8, 32, 32, 1), (32, 1, 3, 3), {"stride": (2, 2), "padding": (1, 1), "groups": 1}))
def test_close_to_sums_in_float64(seed, geometry):
    """|error| <= 2 terms * eps * sum of |products|: Higham 2002, section 3.1, with a margin."""
    rng = np.random.default_rng(seed)

    def values(shape):
        return rng.standard_normal(shape).astype(np.float32)

    for name, function, reference, arguments in maps(*geometry, values):
        result = function(*arguments, **geometry[2])
        images, numbers = (a.astype(np.float64) for a in arguments[:2])
        exact = reference(images, numbers, *arguments[2:], **geometry[2])
        size = reference(abs(images), abs(numbers), *arguments[2:], **geometry[2])
        (n, h, w, _), (filters, channels, kh, kw), _ = geometry
        terms = {"conv2d": channels, "conv2d_input": filters}.get(name, n * h * w) * kh * kw
        bound = 2 * terms * np.finfo(np.float32).eps * size
        assert (abs(result - exact) <= bound).all(), name


@given(seeds, geometries())
@example(0, WIDE)
@example(0, DEPTHWISE)
def test_references_are_adjoint(seed, geometry):
    """<conv2d(x, w), g> = <x, conv2d_input(g, w)> = <w, conv2d_weight(x, g)>, exactly."""
    shape, filters, options = geometry
    rng = np.random.default_rng(seed)
    x, weight = (rng.integers(-4, 5, s).astype(np.float64) for s in (shape, filters))
    y = convolution.conv2d_reference(x, weight, **options)
    grad = rng.integers(-4, 5, y.shape)
    dx = convolution.conv2d_input_reference(grad, weight, shape[1:3], **options)
    dw = convolution.conv2d_weight_reference(x, grad, filters[2:], **options)
    assert dx.shape == x.shape and dw.shape == weight.shape
    assert np.sum(y * grad) == np.sum(x * dx) == np.sum(weight * dw)


def test_reference_by_hand():
    """A filter of a single 1 moves the image."""
    x = np.arange(12, dtype=np.float32).reshape(1, 3, 4, 1)
    weight = np.zeros((1, 1, 3, 3), np.float32)
    weight[0, 0, 0, 2] = 1  # up and right
    expected = [[0, 0, 0, 0], [1, 2, 3, 0], [5, 6, 7, 0]]
    for function in (convolution.conv2d, convolution.conv2d_reference):
        assert function(x, weight, padding=(1, 1))[0, :, :, 0].tolist() == expected


@pytest.mark.parametrize(
    "geometry",
    [
        ((32, 12, 11, 24), (70, 24, 3, 3), {"padding": (1, 1), "groups": 1}),
        ((64, 8, 8, 96), (96, 96, 3, 3), {"padding": (1, 1), "groups": 1}),  # one part
        ((32, 12, 11, 48), (48, 1, 3, 3), {"padding": (1, 1), "groups": 48}),
        ((16, 12, 12, 64), (2, 64, 3, 3), {"stride": (1, 1), "padding": (1, 1), "groups": 1}),
    ],
)
def test_same_result_on_any_number_of_threads(geometry):
    if numba.config.DISABLE_JIT:
        (_, _, _, c), filters, options = geometry
        geometry = (2, 4, 4, c), filters, options
    rng = np.random.default_rng(0)

    def values(shape):
        return rng.standard_normal(shape).astype(np.float32)

    cases = list(maps(*geometry, values))
    results = []
    for count in (1, 2, 3, 7):
        with mock.patch.object(threads, "count", lambda count=count: count):
            results.append([f(*arguments, **geometry[2]) for _, f, _, arguments in cases])
    for other in results[1:]:
        for first, result in zip(results[0], other, strict=True):
            assert np.array_equal(first, result)


def test_output_size():
    """Compute only the top left output pixels."""
    rng = np.random.default_rng(0)
    values = small_integers(rng)
    for filters in (1, 20):
        x, weight = values((2, 9, 8, 3)), values((filters, 3, 3, 3))
        expected = convolution.conv2d_reference(x, weight, padding=(1, 1))[:, :7, :5]
        result = convolution.conv2d(x, weight, padding=(1, 1), output_size=(7, 5))
        assert np.array_equal(result, expected)


def test_empty():
    options = {"padding": (1, 1)}
    for n, c, o in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
        x, weight = np.ones((n, 5, 5, c), np.float32), np.ones((o, c, 3, 3), np.float32)
        grad = np.ones((n, 5, 5, o), np.float32)
        for result, shape in (
            (convolution.conv2d(x, weight, **options), grad.shape),
            (convolution.conv2d_input(grad, weight, (5, 5), **options), x.shape),
            (convolution.conv2d_weight(x, grad, (3, 3), **options), weight.shape),
        ):
            assert result.shape == shape and not result.any()


def test_padding_is_not_touched_by_special_values():
    """A NaN reaches exactly the pixels whose filter sees it."""
    x = np.ones((2, 6, 6, 20), np.float32)
    x[0, 2, 3, 1] = np.nan
    for weight, groups in ((np.ones((18, 20, 3, 3), np.float32), 1), (np.ones((20, 1, 3, 3)), 20)):
        weight = weight.astype(np.float32)
        result = convolution.conv2d(x, weight, padding=(1, 1), groups=groups)
        expected = convolution.conv2d_reference(x, weight, padding=(1, 1), groups=groups)
        assert np.array_equal(np.isnan(result), np.isnan(expected))


# --------------------------------------------------------------------------------- in the functions


@given(seeds, geometries())
def test_functions_of_float32_and_float64_agree(seed, geometry):
    """The plain rule, which float64 takes, gives the same as the kernels, with both gradients."""
    (n, h, w, c), filters, options = geometry
    rng = np.random.default_rng(seed)
    x, weight = (rng.integers(-4, 5, s).astype(np.float64) for s in ((n, c, h, w), filters))
    grad = rng.integers(
        -4, 5, convolution.conv2d_reference(x.transpose(0, 2, 3, 1), weight, **options).shape
    )
    grad = grad.transpose(0, 3, 1, 2)
    results = []
    for dtype in (np.float64, np.float32):
        a, b = (Tensor(v.astype(dtype), requires_grad=True) for v in (x, weight))
        y = F.conv2d(a, b, **options)
        y.backward(grad.astype(dtype))
        results.append((y.numpy(), a.grad.numpy(), b.grad.numpy()))
    for double, single in zip(*results, strict=True):
        assert single.dtype == np.float32 and np.array_equal(double, single)


@given(seeds)
@example(0)
def test_transposed_convolution_of_float32(seed):
    """With an output_padding of a whole stride, from whose output more pixels could be made."""
    rng = np.random.default_rng(seed)
    x, weight = (rng.integers(-4, 5, s).astype(np.float64) for s in ((2, 3, 4, 5), (3, 17, 3, 2)))
    results = []
    for dtype in (np.float64, np.float32):
        a, b = (Tensor(v.astype(dtype), requires_grad=True) for v in (x, weight))
        y = F.conv_transpose2d(a, b, padding=1, dilation=2, output_padding=1)
        (y * y).sum().backward()
        results.append((y.numpy(), a.grad.numpy(), b.grad.numpy()))
    for double, single in zip(*results, strict=True):
        assert single.dtype == np.float32 and np.array_equal(double, single)


# ----------------------------------------------------------------------------------------- refusals


def refused(message, function, *arguments, **keywords):
    return pytest.param(function, arguments, keywords, message, id=message)


IMAGES, WEIGHT = np.zeros((2, 5, 4, 6), np.float32), np.zeros((8, 3, 3, 3), np.float32)
GRAD = np.zeros((2, 3, 2, 8), np.float32)


@pytest.mark.parametrize(
    ("function", "arguments", "keywords", "message"),
    [
        refused(
            "conv2d: x must be float32 with 4 axes (N, H, W, C), got float64 of shape (2, 5, 4, 6)",
            convolution.conv2d, IMAGES.astype(np.float64), WEIGHT,
        ),
        refused(
            "conv2d: weight must be float32 of shape (O, C / groups, kh, kw), "
            "got float32 of shape (3, 3, 3)",
            convolution.conv2d, IMAGES, WEIGHT[0],
        ),
        refused(
            "conv2d: weight has 3 input channels, x has 6 (shape (2, 5, 4, 6))",
            convolution.conv2d, IMAGES, WEIGHT,
        ),
        refused(
            "conv2d: groups must divide the 8 output channels, got 3",
            convolution.conv2d, IMAGES, WEIGHT, groups=3,
        ),
        refused(
            "conv2d: the kernel covers 5 x 5 pixels, the padded image has 5 x 4",
            convolution.conv2d, IMAGES, WEIGHT, dilation=(2, 2), groups=2,
        ),
        refused(
            "conv2d: stride must be two integers >= 1, got (0, 1)",
            convolution.conv2d, IMAGES, WEIGHT, stride=(0, 1), groups=2,
        ),
        refused(
            "conv2d: padding must be two integers >= 0, got (-1, 1)",
            convolution.conv2d, IMAGES, WEIGHT, padding=(-1, 1), groups=2,
        ),
        refused(
            "conv2d: the output must have at most 3 x 2 pixels, got 4 x 2",
            convolution.conv2d, IMAGES, WEIGHT, groups=2, output_size=(4, 2),
        ),
        refused(
            "conv2d: out must be contiguous float32 of shape (2, 3, 2, 8), "
            "got float64 of shape (2, 3, 2, 8)",
            convolution.conv2d, IMAGES, WEIGHT, groups=2, out=GRAD.astype(np.float64),
        ),
        refused(
            "conv2d_input: weight has 8 output channels, grad has 6 (shape (2, 5, 4, 6))",
            convolution.conv2d_input, IMAGES, WEIGHT, (5, 4), groups=2,
        ),
        refused(
            "conv2d_input: the output must have at most 2 x 2 pixels, got 3 x 2",
            convolution.conv2d_input, GRAD, WEIGHT, (4, 4), groups=2,
        ),
        refused(
            "conv2d_weight: grad must have the 2 images of x, got 1",
            convolution.conv2d_weight, IMAGES, GRAD[:1], (3, 3), groups=2,
        ),
        refused(
            "conv2d_weight: groups must divide the 6 channels of x, got 4",
            convolution.conv2d_weight, IMAGES, GRAD, (3, 3), groups=4,
        ),
        refused(
            "conv2d_weight: the output must have at most 4 x 3 pixels, got 5 x 4",
            convolution.conv2d_weight, IMAGES, IMAGES, (2, 2), groups=2,
        ),
    ],
)  # fmt: skip
def test_refusals(function, arguments, keywords, message):
    with pytest.raises(ValueError) as refusal:
        function(*arguments, **keywords)
    assert str(refusal.value) == message


# ------------------------------------------------------------- without compilation, on smaller CPUs

PROGRAM = """
    import numpy as np
    from tinybnn.kernels.floats import convolution, gathered

    assert gathered.panel_widths(64) == [16] * 4
    rng = np.random.default_rng(0)
    values = lambda *shape: rng.integers(-4, 5, shape).astype(np.float32)
    for filters, groups in ((70, 1), (20, 20), (2, 1)):
        x, weight = values(2, 6, 5, 20), values(filters, 20 // groups, 3, 3)
        options = {"padding": (1, 1), "stride": (2, 1), "groups": groups}
        y = convolution.conv2d(x, weight, **options)
        assert np.array_equal(y, convolution.conv2d_reference(x, weight, **options))
        for name, arguments in (("input", (y, weight, (6, 5))), ("weight", (x, y, (3, 3)))):
            expected = getattr(convolution, f"conv2d_{name}_reference")(*arguments, **options)
            result = getattr(convolution, f"conv2d_{name}")(*arguments, **options)
            assert np.array_equal(result, expected)
    (assembly,) = gathered.product.inspect_asm().values()
    assert "%zmm" not in assembly and "%k1" not in assembly
    assert ("vfmadd" in assembly) == HAS_FMA and "fmaf" not in assembly
"""


def run(command, **environment):
    run = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=200
    )
    assert run.returncode == 0, run.stdout + run.stderr


@compiled
@x86
@pytest.mark.parametrize("cpu", ["AVX2", "SSE4.2"])
def test_smaller_cpus(cpu, tmp_path):
    """The same kernels are correct with shorter vectors, and use no missing instructions."""
    program = textwrap.dedent(PROGRAM).replace("HAS_FMA", repr(cpu == "AVX2"))
    environment = compiles_for(cpu)
    environment |= {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    run([sys.executable, "-c", program], **environment)


@compiled
def test_fused_where_the_cpu_can():
    """A product that is rounded before it is added would leave 0, not 2**-24."""
    has_fma = "fma" in simd.cpu_features()
    v = np.float32(1 + 2**-12)
    x = np.array([1, v], np.float32).reshape(1, 1, 1, 2)
    for filters in (16, 32, 64):
        weight = np.array([[-np.float32(v * v), v]] * filters, np.float32)
        result = convolution.conv2d(x, weight.reshape(filters, 2, 1, 1))
        assert (result == (2**-24 if has_fma else 0)).all()


@compiled
def test_kernels_run_uncompiled():
    """A student can step through the kernels in a debugger: all of this as plain Python."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    run(command, NUMBA_DISABLE_JIT="1", HYPOTHESIS_PROFILE="dev")
