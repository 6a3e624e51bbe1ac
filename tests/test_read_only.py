"""Arrays with unusual memory layouts: every reader gives the same bits as for a plain copy.

Read-only arrays, memory maps, what `np.broadcast_to` gives, slices with steps, unaligned bytes. And
Numba compiles no version for them: a kernel has one version for each dtype.
"""

import importlib
import inspect
import pkgutil

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba.core.dispatcher import Dispatcher

import tinybnn.kernels
from tinybnn import datasets, deploy, nn, optim
from tinybnn import functional as F
from tinybnn.kernels.floats import convolution, fused, ordered, ordered_matmul, pointwise
from tinybnn.kernels.machine import layout
from tinybnn.kernels.signs import bits, depthwise, pooling, thresholds, xnor
from tinybnn.kernels.training import (
    activations,
    channel_order,
    float_pooling,
    input_gradient,
    losses,
    normalization,
    optimizers,
    sign_gradients,
    straight_through,
    weight_gradient,
)
from tinybnn.tensor import Tensor, no_grad

# ----------------------------------------------------------------------------------- odd arrays


def read_only(x):
    x = x.copy(order="K")
    x.flags.writeable = False
    return x


def unaligned(x):
    memory = np.empty(x.nbytes + 1, np.uint8)
    x_there = np.ndarray(x.shape, x.dtype, memory, 1)
    x_there[...] = x
    return x_there


def with_steps(x):
    """Every second element of an array twice as large, backwards along the first axis."""
    larger = np.zeros([2 * n for n in x.shape], x.dtype)
    view = larger[tuple(slice(None, None, 2) for _ in x.shape)][::-1]
    view[...] = x
    return view


def turned(x):
    """The axes in the opposite order in memory."""
    return np.ascontiguousarray(x.T).T


def broadcast(x):
    """The first element along the first axis, repeated with stride 0; read-only."""
    return np.broadcast_to(x[:1], x.shape)


def mapped(x):
    """A read-only memory map, like that of a file; see `on_disk`."""
    return np.ndarray.view(read_only(x), np.memmap)


ODD = [read_only, unaligned, with_steps, turned, broadcast, mapped]


@pytest.fixture
def on_disk(tmp_path):
    def make(x, mode):
        np.save(tmp_path / "x.npy", x)
        return np.load(tmp_path / "x.npy", mmap_mode=mode)

    return make


def bits_of(result):
    """A function's result in a form that == can compare: dtype, shape and bytes."""
    if isinstance(result, Tensor):
        result = result.data
    if isinstance(result, tuple | list):
        return tuple(map(bits_of, result))
    if isinstance(result, np.ndarray):
        return result.dtype.str, result.shape, result.tobytes()
    return result


def versions():
    """The number of compiled kernel versions."""
    dispatchers = [value for module in KERNELS.values() for value in vars(module).values()]
    dispatchers = [value for value in dispatchers if isinstance(value, Dispatcher)]
    called = [value.kernel for value in dispatchers if hasattr(value, "kernel")]  # from Python
    return sum(len(value.signatures) for value in dispatchers + called)


# ------------------------------------------------------------------------------------- the kernels

KERNELS = {
    info.name.rpartition(".")[2]: importlib.import_module(info.name)
    for info in pkgutil.walk_packages(tinybnn.kernels.__path__, "tinybnn.kernels.")
    if info.name.count(".") == 3
}

rng = np.random.default_rng(0)


def floats(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def words(*shape, count=70):
    return bits.pack(rng.standard_normal((*shape, count)))


def integers(low, high, *shape, dtype=np.int32):
    return rng.integers(low, high, shape, dtype=dtype)


def flags(n):
    return rng.random(n) < 0.5


GEOMETRY = (2, 2), (2, 2), (1, 1)
CONVOLUTION = sign_gradients.geometry_of(70, 20, (5, 5), (3, 3))
FILTERS = xnor.prepare_conv2d(words(20, 3, 3), 70, (5, 5), padding=(1, 1))
ROWS = xnor.prepare_matmul(words(20), 70)
DEPTHWISE = words(3, 3)
SUMS = depthwise.prepare(DEPTHWISE, 70, (5, 5), padding=(1, 1))
BITS = depthwise.prepare(
    DEPTHWISE, 70, (5, 5), thresholds=integers(-3, 3, 70), flip=flags(70)
)  # fmt: skip
WEIGHT = floats(4, 3, 3, 3)
PROGRAM = pointwise.prepare((5, 5, 3), ["floats", "floats"], [("add", 0, 1)], [("floats", 2)])
ROW = pointwise.prepare((20,), ["sums"], [("mul", 0, floats(20))], [("floats", 1)])
ADAM = optimizers.AdamStep(0.1, 0.9, 0.999, root=0.5, eps=1e-8, clip=1.0)
SGD = optimizers.SgdStep(0.1, momentum=0.9, clip=1.0)


def through(prepare, run, *others):
    """Call a function on weights prepared by another."""
    return lambda *arrays, **options: run(prepare(*arrays, *others, **options))


def of_program(*inputs):
    out = np.empty((2, 5, 5, 3), np.float32)
    fused.run(fused.prepare([None, None], PROGRAM), inputs, [out])
    return out


def of_product(x):
    out = np.empty((3, 20), np.float32)
    fused.run(fused.prepare([ROWS], ROW), [x], [out])
    return out


def changing(function, *, written, step):
    """A function of the gradient, the one array that an optimizer step only reads."""

    def run(grad):
        state = [array.copy() for array in written]
        function(state[0], grad, *state[1:], step)
        return state

    return run


def on_channels(function):
    """For functions whose output is given by the caller."""
    return lambda x, index, shape: function(x, index, np.empty(shape, np.float32))


LINES = floats(4, 20)
LABELS = integers(0, 10, 6, dtype=np.int64)

# Name of a function -> a way to call it, the arrays that it reads, and other arguments.


def bound_pack(x):
    """The result of a bound call, whose input is contiguous."""
    x = layout.for_kernel(x)
    out = np.zeros((*x.shape[:-1], bits.words_for(x.shape[-1])), np.uint64)
    bits.bind_pack(x, out)()
    return out


CALLS = {
    "activations.leaky_relu": (activations.leaky_relu, [floats(300)], [0.1]),
    "activations.leaky_relu_gradient": (
        activations.leaky_relu_gradient, [floats(300), floats(300)], [0.1],
    ),
    "activations.two_lines": (activations.two_lines, [floats(30, 20), LINES], []),
    "activations.two_lines_gradient": (
        activations.two_lines_gradient, [floats(30, 20), floats(30, 20), LINES], [],
    ),
    "activations.two_values": (activations.two_values, [floats(30, 20), np.abs(LINES)], []),
    "activations.two_values_gradient": (
        activations.two_values_gradient, [floats(30, 20), floats(30, 20), np.abs(LINES)], [],
    ),
    "bits.pack": (bits.pack, [floats(3, 70), floats(70)], []),
    "bits.unpack": (bits.unpack, [words(3, 2)], [70]),
    "bits.split_groups": (bits.split_groups, [words(3, 2)], [70, 2]),
    "bits.to_bytes": (bits.to_bytes, [words(3, 2)], [70]),
    "bits.from_bytes": (bits.from_bytes, [bits.to_bytes(words(3, 2), 70)], [70]),
    "channel_order.take_channels": (
        on_channels(channel_order.take_channels),
        [floats(2, 5, 5, 3), integers(0, 3, 6, dtype=np.int64)], [(2, 5, 5, 6)],
    ),
    "channel_order.add_channels": (
        on_channels(channel_order.add_channels),
        [floats(2, 5, 5, 6), integers(0, 3, 6, dtype=np.int64)], [(2, 5, 5, 3)],
    ),
    "convolution.conv2d": (convolution.conv2d, [floats(2, 5, 5, 3), WEIGHT], []),
    "convolution.conv2d_input": (
        convolution.conv2d_input, [floats(2, 3, 3, 4), WEIGHT], [(5, 5)],
    ),
    "convolution.conv2d_weight": (
        convolution.conv2d_weight, [floats(2, 5, 5, 3), floats(2, 3, 3, 4)], [(3, 3)],
    ),
    "depthwise.prepare": (
        lambda *arrays: depthwise.conv2d_bits(
            depthwise.prepare(arrays[0], 70, (5, 5), thresholds=arrays[1], flip=arrays[2]),
            words(2, 5, 5) * np.uint64(0),
        ),
        [DEPTHWISE, integers(-3, 3, 70), flags(70)], [],
    ),
    "depthwise.conv2d_bits": (lambda x: depthwise.conv2d_bits(BITS, x), [words(2, 5, 5)], []),
    "depthwise.conv2d_sums": (lambda x: depthwise.conv2d_sums(SUMS, x), [words(2, 5, 5)], []),
    "float_pooling.max_pool2d": (float_pooling.max_pool2d, [floats(2, 5, 5, 3)], [GEOMETRY]),
    "float_pooling.max_unpool2d": (
        float_pooling.max_unpool2d,
        [floats(2, 3, 3, 3), integers(0, 4, 2, 3, 3, 3, dtype=np.uint8)], [(5, 5), GEOMETRY],
    ),
    "float_pooling.avg_pool2d": (float_pooling.avg_pool2d, [floats(2, 5, 5, 3)], [GEOMETRY]),
    "float_pooling.avg_unpool2d": (
        float_pooling.avg_unpool2d, [floats(2, 3, 3, 3)], [(5, 5), GEOMETRY],
    ),
    "fused.run": (of_program, [floats(2, 5, 5, 3), floats(2, 5, 5, 3)], []),
    "bits.bind_pack": (bound_pack, [floats(30, 70)], []),
    "fused.prepare": (of_product, [words(3)], []),
    "input_gradient.conv2d_input_gradient": (
        input_gradient.conv2d_input_gradient, [floats(2, 3, 3, 20), words(20, 3, 3)], [CONVOLUTION],
    ),
    "input_gradient.linear_input_gradient": (
        input_gradient.linear_input_gradient, [floats(3, 20), words(20)], [70],
    ),
    "losses.cross_entropy": (losses.cross_entropy, [floats(6, 10), LABELS], [0.1]),
    "normalization.statistics": (normalization.statistics, [floats(30, 20)], [1e-5]),
    "normalization.normalise": (
        normalization.normalise, [floats(30, 20), *(floats(20) for _ in range(4))], [],
    ),
    "normalization.affine": (
        normalization.affine, [floats(30, 20), floats(20), floats(20)], [],
    ),
    "normalization.gradient_sums": (
        normalization.gradient_sums, [floats(30, 20), floats(30, 20), floats(20), floats(20)], [],
    ),
    "normalization.gradient": (
        normalization.gradient,
        [floats(30, 20), floats(30, 20), *(floats(20) for _ in range(5))], [],
    ),
    "normalization.forward": (
        normalization.forward, [floats(30, 20), floats(20), floats(20)], [1e-5],
    ),
    "normalization.backward": (
        normalization.backward,
        [floats(30, 20), floats(30, 20), floats(20), floats(20), floats(20)], [],
    ),
    "optimizers.adam": (
        changing(optimizers.adam, written=[floats(300), floats(300), floats(300) ** 2], step=ADAM),
        [floats(300)], [],
    ),
    "optimizers.sgd": (
        changing(optimizers.sgd, written=[floats(300), floats(300)], step=SGD), [floats(300)], [],
    ),
    "pointwise.prepare": (
        lambda constant, x: pointwise.run(
            pointwise.prepare((5, 5, 3), ["floats"], [("mul", 0, constant)], [("bits", 1)]), [x]
        ),
        [floats(5, 5, 3), floats(2, 5, 5, 3)], [],
    ),
    "pointwise.run": (
        lambda *inputs: pointwise.run(PROGRAM, inputs),
        [floats(2, 5, 5, 3), floats(2, 5, 5, 3)], [],
    ),
    "pooling.max_pool2d": (
        lambda x, minimum: pooling.max_pool2d(x, 70, *GEOMETRY, minimum),
        [words(2, 5, 5), flags(70)], [],
    ),
    "ordered_matmul.ordered_matmul": (
        ordered_matmul.ordered_matmul, [floats(3, 20), floats(20, 30)], [],
    ),
    "ordered.prepare_conv2d": (
        lambda weight, x: ordered.conv2d(ordered.prepare_conv2d(weight, (5, 5)), x),
        [WEIGHT, floats(2, 5, 5, 3)], [],
    ),
    "ordered.conv2d": (
        lambda x: ordered.conv2d(ordered.prepare_conv2d(WEIGHT, (5, 5)), x),
        [floats(2, 5, 5, 3)], [],
    ),
    "ordered.prepare_signs_matmul": (
        lambda weight, order, x: ordered.signs_matmul(
            ordered.prepare_signs_matmul(weight, order), x
        ),
        [floats(20, 70), rng.permutation(70), words(3)], [],
    ),
    "ordered.signs_matmul": (
        lambda x: ordered.signs_matmul(ordered.prepare_signs_matmul(LINES, None), x),
        [words(3, count=20)], [],
    ),
    "straight_through.sign": (straight_through.sign, [floats(300)], []),
    "straight_through.gated_gradient": (
        straight_through.gated_gradient, [floats(300), floats(300)], [-1, 1],
    ),
    "straight_through.leaky_gradient": (
        straight_through.leaky_gradient, [floats(300), floats(300)], [0.1],
    ),
    "straight_through.tent_gradient": (
        straight_through.tent_gradient, [floats(300), floats(300)], [],
    ),
    "thresholds.threshold": (
        thresholds.threshold, [integers(-9, 9, 3, 70), integers(-9, 9, 70), flags(70)], [],
    ),
    "weight_gradient.conv2d_weight_gradient": (
        weight_gradient.conv2d_weight_gradient,
        [floats(2, 3, 3, 20), words(2, 5, 5)], [CONVOLUTION],
    ),
    "weight_gradient.linear_weight_gradient": (
        weight_gradient.linear_weight_gradient, [floats(3, 20), words(3)], [70],
    ),
    "xnor.xnor_matmul": (
        lambda a, b, mask: xnor.xnor_matmul(a, b & mask, 70, mask),
        [words(3), words(20), words(20)], [],
    ),
    "xnor.xnor_conv2d": (xnor.xnor_conv2d, [words(2, 5, 5), words(20, 3, 3)], [70]),
    "prepared.prepare_matmul": (
        lambda b, t, flip, x: xnor.run(xnor.prepare_matmul(b, 70, thresholds=t, flip=flip), x),
        [words(64), integers(-9, 9, 64), flags(64), words(3)], [],
    ),
    "prepared.prepare_conv2d": (
        lambda weight, x: xnor.run(xnor.prepare_conv2d(weight, 70, (5, 5)), x),
        [words(64, 1, 1), words(2, 5, 5)], [],
    ),
    "xnor.run": (lambda x: xnor.run(FILTERS, x), [words(2, 5, 5)], []),
}  # fmt: skip

# Public functions that read no user array: they compute sizes, or belong to kernels.
OTHERS = {
    "cache", "checks", "compilation", "convolution_plans", "convolution_spread",
    "convolution_tasks", "counting", "counting_bytes", "exact", "gathered", "images",
    "inlining",
    "layout", "look_ups", "lookup", "masked", "memory", "parallel", "pipeline", "results",
    "selection",
    "shuffles", "simd", "tables", "threads", "tiles", "windows",
    "bits.words_for", "channel_order.bind", "depthwise.majority", "float_pooling.bind_avg_pool2d",
    "fused.bind", "fused.bind_product",
    "normalization.fits", "pointwise.arrays", "pointwise.mask_words",
    "pointwise.sample", "pointwise.slot_floats", "pooling.bind", "sign_gradients.as_image",
    "sign_gradients.choose_method", "sign_gradients.geometry_of", "sign_gradients.operands",
    "sign_gradients.with_zeros",
    "ordered.signs_floats", "ordered_matmul.bind_ordered_matmul", "ordered_sums.laid_out",
    "ordered_sums.panels_of", "xnor.bind",
    "prepared.best_method", "prepared.check_count", "prepared.has_fast_look_ups",
    "prepared.lay_out_conv2d",
    "prepared.lay_out_matmul", "prepared.method_for", "prepared.method_named",
    "xnor.register_peak",
}  # fmt: skip


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="parts of kernels look like functions then")
def test_every_function_of_the_kernels_is_here():
    for name, module in KERNELS.items():
        for function, value in vars(module).items():
            if (
                name in OTHERS
                or function.startswith("_")
                or function.endswith("_reference")
                or not inspect.isfunction(inspect.unwrap(value))
                or hasattr(value, "py_func")
                or getattr(value, "__module__", "") != module.__name__
            ):
                continue
            assert {f"{name}.{function}"} & {*CALLS, *OTHERS}, (
                f"no call of {name}.{function}: add one to CALLS"
            )


@pytest.mark.parametrize("name", CALLS)
def test_a_kernel_reads_odd_arrays(name):
    """Each argument in turn; `broadcast` changes values, so compare with a plain copy of it."""
    function, arrays, others = CALLS[name]
    function(*arrays, *others)
    for i, array in enumerate(arrays):
        for make in ODD:
            odd, plain = make(array), np.array(make(array), order="C")
            expected = bits_of(function(*arrays[:i], plain, *arrays[i + 1 :], *others))
            before = versions()
            output = bits_of(function(*arrays[:i], odd, *arrays[i + 1 :], *others))
            assert output == expected, (name, i, make.__name__)
            assert versions() == before, f"{name} was compiled anew for argument {i}"


@pytest.mark.parametrize("dtype", [np.float32, np.uint64, np.int32])
def test_arrays_that_are_written_must_be_writable(dtype):
    """Otherwise a copy would be written to and discarded."""
    out = read_only(np.zeros((3, 2), dtype))
    if dtype == np.float32:
        calls = [
            lambda: ordered.signs_matmul(ordered.prepare_signs_matmul(floats(2, 70)), words(3), out)
        ]
        flat = out.reshape(-1)
        calls.append(lambda: optimizers.adam(flat, flat.copy(), flat.copy(), flat.copy(), ADAM))
        calls.append(lambda: optimizers.sgd(flat.copy(), flat.copy(), flat, SGD))
        product = xnor.prepare_matmul(words(2), 70)
        calls.append(lambda: xnor.run(product, words(3), out))
        as_floats = pointwise.prepare((2,), ["sums"], [], [("floats", 0)])
        calls.append(lambda: fused.run(fused.prepare([product], as_floats), [words(3)], [out]))
    elif dtype == np.int32:
        calls = [lambda: xnor.run(xnor.prepare_matmul(words(2), 70), words(3), out)]
    else:
        zeros = np.zeros(70, np.int32)
        calls = [lambda: thresholds.threshold(zeros + zeros[:3, None], zeros, zeros > 0, out)]
    for call in calls:
        with pytest.raises(ValueError, match=f"got read-only {np.dtype(dtype)} of shape"):
            call()


# ---------------------------------------------------------------------------------- packed models


def after(*layers):
    return nn.Sequential(*layers).eval()


def networks():
    """Name, model and sample shape; each kind of step is first in one of them."""
    rng = np.random.default_rng(0)
    binary = {"rng": rng}
    yield "batch norm, images", after(
        nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, rng=rng), nn.BatchNorm2d(4), nn.ReLU(),
    ), (3, 6, 6)  # fmt: skip
    yield "batch norm, rows", after(nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 4, rng=rng)), (20,)
    yield (
        "signs of images",
        after(nn.BinaryConv2d(3, 70, 3, **binary), nn.BatchNorm2d(70)),
        (3, 6, 6),
    )
    yield "signs of rows", after(nn.BinaryLinear(20, 4, **binary), nn.BatchNorm1d(4)), (20,)
    yield "dense", after(nn.Linear(20, 4, rng=rng), nn.ReLU()), (20,)
    yield "convolution", after(nn.Conv2d(3, 4, 3, padding=1, rng=rng), nn.ReLU()), (3, 6, 6)
    yield "transposed", after(nn.ConvTranspose2d(3, 4, 3, rng=rng), nn.ReLU()), (3, 6, 6)
    yield "mean", after(nn.AvgPool2d(2), nn.ReLU()), (3, 6, 6)
    yield "maximum", after(nn.MaxPool2d(2), nn.ReLU()), (3, 6, 6)
    yield "shuffle", after(nn.ChannelShuffle(2), nn.ReLU()), (4, 6, 6)
    yield "no kernel", after(nn.Softplus(), nn.Sigmoid()), (3, 6, 6)
    yield "activation", after(nn.RPReLU(3), nn.Hardswish()), (3, 6, 6)


NETWORKS = {name: (model, shape) for name, model, shape in networks()}


def channels_last(make):
    """An odd array, channels-last in memory like a DataLoader's."""

    def made(x):
        return make(np.ascontiguousarray(x.transpose(0, 2, 3, 1))).transpose(0, 3, 1, 2)

    made.__name__ = f"{make.__name__}, channels last"
    return made


@pytest.mark.parametrize("name", NETWORKS)
def test_a_packed_model_reads_odd_arrays(name):
    model, shape = NETWORKS[name]
    packed = deploy.compile(model, shape)
    x = floats(4, *shape)
    for make in ODD + ([channels_last(make) for make in ODD] if len(shape) == 3 else []):
        odd = make(x)
        plain = np.array(odd, order="C")
        expected = bits_of(packed.predict(plain))
        assert bits_of(packed.predict(plain[:, ...].copy(), 3)) == expected
        for _ in range(5):  # kernels are called by address after some calls
            assert bits_of(packed.predict(odd)) == expected, make.__name__
            assert bits_of(packed.predict(odd, 3)) == expected, make.__name__
        *_, (_, result) = packed.run(odd)
        assert bits_of(np.ascontiguousarray(result)) == expected
        with no_grad():
            assert bits_of(np.ascontiguousarray(model(Tensor(odd)).data)) == expected
        assert deploy.verify(model, packed, odd) > 0
    assert packed.profile(read_only(x), 1)


def test_a_packed_model_compiles_nothing_for_odd_arrays():
    for model, shape in NETWORKS.values():
        packed = deploy.compile(model, shape)
        x = floats(4, *shape)
        packed.predict(x)
        before = versions()
        for make in ODD:
            packed.predict(make(x))
        assert versions() == before


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
@pytest.mark.parametrize("name", ["batch norm, rows", "batch norm, images"])
def test_a_packed_model_reads_a_file(name, mode, on_disk):
    model, shape = NETWORKS[name]
    packed = deploy.compile(model, shape)
    x = floats(40, *shape)
    assert bits_of(packed.predict(on_disk(x, mode))) == bits_of(packed.predict(x))


def test_packed_inputs_may_be_odd():
    model, shape = NETWORKS["signs of images"]
    packed = deploy.compile(model, shape)
    x = bits.pack(floats(4, *shape).transpose(0, 2, 3, 1))
    for make in ODD:
        expected = packed.predict_packed(np.array(make(x), order="C"))
        for _ in range(5):
            assert bits_of(packed.predict_packed(make(x))) == bits_of(expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_constants_may_be_read_only(name):
    """As in processes that share a model's memory."""
    model, shape = NETWORKS[name]
    packed, frozen = deploy.compile(model, shape), deploy.compile(model, shape)
    x = floats(4, *shape)
    expected = packed.predict(x)
    before = versions()
    for step in frozen.steps:
        step.arrays = {key: read_only(array) for key, array in step.arrays.items()}
    assert bits_of(frozen.predict(x)) == bits_of(expected)
    assert versions() == before
    for p in model.parameters():
        p.data = read_only(p.data)
    with no_grad():
        assert bits_of(np.ascontiguousarray(model(Tensor(x)).data)) == bits_of(expected)


@given(st.data())
def test_any_strides_give_the_same_bits(data):
    """Slices with any steps, of axes in any order in memory, writable or not."""
    model, shape = NETWORKS[data.draw(st.sampled_from(list(NETWORKS)))]
    shape = (data.draw(st.integers(1, 5)), *shape)
    order = data.draw(st.permutations(range(len(shape))))
    steps = [data.draw(st.sampled_from([1, 2, -1])) for _ in shape]
    memory = floats(*(2 * shape[axis] for axis in order))
    x = memory.transpose(np.argsort(order))[tuple(slice(None, None, s) for s in steps)]
    x = x[tuple(slice(n) for n in shape)]
    for axis, repeated in enumerate(data.draw(st.tuples(*[st.booleans()] * len(shape)))):
        if repeated:
            x = np.broadcast_to(x.take([0], axis), x.shape)
    if data.draw(st.booleans()):
        x = x.view()
        x.flags.writeable = False
    packed = deploy.compile(model, shape[1:])
    expected = bits_of(packed.predict(np.array(x, order="C")))
    assert bits_of(packed.predict(x)) == expected
    with no_grad():
        assert bits_of(np.ascontiguousarray(model(Tensor(x)).data)) == expected


def test_another_byte_order_is_refused():
    model, shape = NETWORKS["dense"]
    packed = deploy.compile(model, shape)
    with pytest.raises(ValueError, match=r"x must be float32 of shape \(N, 20\), got >f4"):
        packed.predict(floats(4, 20).astype(">f4"))
    with pytest.raises(ValueError, match="b must be uint64 with 2 axes, got >u8"):
        xnor.xnor_matmul(words(3), words(4).astype(">u8"), 70)


def test_an_output_that_cannot_be_written_is_refused():
    model, shape = NETWORKS["dense"]
    packed = deploy.compile(model, shape)
    with pytest.raises(ValueError, match=r"got read-only float32 of shape \(4, 4\)"):
        packed.predict(floats(4, 20), out=read_only(np.zeros((4, 4), np.float32)))


# -------------------------------------------------------------------------------------- training


def trained(images, labels):
    """Parameters and loss after a training step that begins with a batch norm."""
    rng = np.random.default_rng(0)
    model = nn.Sequential(
        nn.BatchNorm2d(3), nn.BinaryConv2d(3, 20, 3, padding=1, rng=rng), nn.BatchNorm2d(20),
        nn.RPReLU(20), nn.MaxPool2d(2), nn.Conv2d(20, 8, 3, rng=rng), nn.LeakyReLU(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(32, 10, rng=rng),
    )  # fmt: skip
    loss = F.cross_entropy(model(Tensor(images)), labels)
    loss.backward()
    optim.Adam(model.parameters()).step()
    return bits_of([loss, *(p.data for p in model.parameters())])


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("make", [read_only, unaligned, mapped])
def test_a_training_step_on_odd_arrays(make, last):
    """Bits are equal where strides are: sums over a batch follow its order in memory."""
    x, labels = floats(16, 3, 12, 12), integers(0, 10, 16, dtype=np.int64)
    x = layout.channels_last(x) if last else x
    expected = trained(x, labels)
    before = versions()
    odd = channels_last(make)(x) if last else make(x)
    assert trained(odd, labels) == expected
    assert trained(x, make(labels)) == expected
    assert versions() == before


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_a_loader_reads_a_file(mode, on_disk):
    images = integers(0, 256, 20, 3, 6, 6, dtype=np.uint8)
    labels = integers(0, 10, 20, dtype=np.int64)
    classes = [str(i) for i in range(10)]

    def batches(images, labels):
        dataset = datasets.from_arrays(images, labels, classes)
        return bits_of([b for b in datasets.DataLoader(dataset, 8, shuffle=True, rng=0)])

    expected = batches(images, labels)
    for make in ODD[:-1]:
        plain = np.array(make(images)), np.array(make(labels))
        assert batches(make(images), make(labels)) == batches(*plain)
    assert batches(on_disk(images, mode), read_only(labels)) == expected


def test_batches_of_a_read_only_data_set_can_be_changed():
    dataset = datasets.from_arrays(read_only(integers(0, 9, 8, 5, 5, dtype=np.uint8)), [0] * 8)
    for x, y in datasets.DataLoader(dataset, 4):
        x[...], y[...] = 0, 0


@pytest.mark.parametrize("make", [optim.SGD, optim.Adam, optim.AdamW])
def test_read_only_parameters_are_not_trained(make):
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model[1].weight.data = read_only(model[1].weight.data)
    before = bits_of([p.data for p in model.parameters()])
    optimizer = make(model.parameters())
    model(Tensor(floats(5, 4))).sum().backward()
    with pytest.raises(ValueError, match=r"parameter 2 \(shape \(2, 3\)\) is read-only"):
        optimizer.step()
    assert bits_of([p.data for p in model.parameters()]) == before


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="needs compiled kernels")
def test_a_plain_array_is_not_copied():
    x = floats(3, 4)
    assert layout.for_kernel(x) is x
    for make in ODD[:3]:
        copy = layout.for_kernel(make(x))
        assert copy.flags.carray and np.array_equal(copy, x)


def test_an_output_apart_in_memory_is_refused():
    out = floats(2, 5, 5, 6)
    with pytest.raises(ValueError, match="out must be C-contiguous float32"):
        channel_order.take_channels(floats(2, 5, 5, 3), [2, 0, 1], out[..., ::2])
    with pytest.raises(ValueError, match="out must be C-contiguous float32"):
        channel_order.add_channels(floats(2, 5, 5, 3), [2, 0, 1], out[..., ::2])
