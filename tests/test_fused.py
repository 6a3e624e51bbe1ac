"""Products with a program behind them equal the products, then the program, bit for bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinybnn.kernels.floats import fused, ordered, pointwise
from tinybnn.kernels.machine import threads
from tinybnn.kernels.machine.shuffles import has_shuffles
from tinybnn.kernels.signs import bits, depthwise, prepared, xnor


def words(rng, *shape):
    return bits.pack(rng.standard_normal(shape, np.float32))


def constants(rng, channels):
    return rng.integers(-8, 9, channels).astype(np.float32) / 4


METHODS = ["counting", "counting_bytes", *["look_ups"] * has_shuffles()]


def by_method(method, prepare, *arguments, **keywords):
    """Weights prepared for one way of counting, whichever the CPU is best at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepared, "best_method", lambda: method)
        return prepare(*arguments, **keywords)


@st.composite
def layers(draw):
    """(producers, inputs, the producers' sums, arguments of the program): all kinds of layers."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kinds = ("xnor", "xnor", "ternary", "depthwise", "float", "none", "linear")
    kind = draw(st.sampled_from(kinds))
    samples = draw(st.integers(1, 3))
    height, width = draw(st.integers(3, 7)), draw(st.integers(3, 7))
    channels = draw(st.sampled_from((3, 8, 16, 20, 64, 70)))
    outputs = channels if kind == "depthwise" else draw(st.sampled_from((1, 10, 64, 70, 130)))
    geometry = {
        "stride": draw(st.sampled_from(((1, 1), (2, 1)))),
        "padding": draw(st.sampled_from(((0, 0), (1, 1), (1, 0)))),
    }
    kernel = draw(st.sampled_from(((1, 1), (3, 3), (2, 3))))
    mode = draw(st.sampled_from(("zeros", "ones")))
    method = draw(st.sampled_from(METHODS))
    many = 1 if kind in ("float", "none") else draw(st.integers(1, 3))
    producers, inputs, sums, kinds = [], [], [], []
    for _ in range(many):
        # One filter whose sums hold for all channels of a pixel.
        one = kind in ("xnor", "ternary") and outputs > 1 and draw(st.booleans())
        filters = 1 if one else outputs
        if kind == "linear":
            x, w = words(rng, samples, 130), words(rng, outputs, 130)
            producers.append(by_method(method, xnor.prepare_matmul, w, 130))
            sums.append(xnor.xnor_matmul(x, w, 130))
        elif kind in ("xnor", "ternary"):
            x = words(rng, samples, height, width, channels)
            w = words(rng, filters, *kernel, channels)
            mask = words(rng, filters, *kernel, channels) if kind == "ternary" else None
            options = geometry | {"padding_mode": mode, "mask": mask}
            product = by_method(
                method, xnor.prepare_conv2d, w, channels, (height, width), **options
            )
            producers.append(product)
            sums.append(xnor.xnor_conv2d_reference(x, w, channels, **options))
        elif kind == "depthwise":
            x, w = words(rng, samples, height, width, channels), words(rng, *kernel, channels)
            plan = depthwise.prepare(w, channels, (height, width), padding_mode=mode, **geometry)
            producers.append(plan)
            sums.append(depthwise.conv2d_sums(plan, x))
        elif kind == "float":
            x = rng.standard_normal((samples, height, width, channels), np.float32)
            w = rng.standard_normal((outputs, channels, *kernel), np.float32)
            producers.append(ordered.prepare_conv2d(w, (height, width), **geometry))
            sums.append(ordered.conv2d(producers[-1], x))
        else:
            x = rng.standard_normal((samples, height, width, outputs), np.float32)
            producers.append(None)
            sums.append(x)
        inputs.append(x)
        kinds.append("pixels" if one else "floats" if kind in ("float", "none") else "sums")
        if one:
            sums[-1] = sums[-1][..., 0]
    if all(k == "pixels" for k in kinds):  # something gives the shape of the result
        kinds[0], producers[0] = "sums", None
        inputs[0] = rng.integers(-5, 6, (*sums[0].shape, outputs), dtype=np.int32)
        sums[0] = inputs[0]
    shape = (*sums[kinds.index("pixels") if "pixels" in kinds else 0].shape[1:],)
    shape = (*shape, outputs) if "pixels" in kinds else shape
    if draw(st.booleans()):  # a residual
        producers.append(None)
        kinds.append("floats")
        inputs.append(rng.standard_normal((samples, *shape), np.float32))
        sums.append(inputs[-1])
    operations = [("mul", 0, constants(rng, outputs))]
    for k in range(1, len(kinds)):
        operations.append(("add", len(kinds) + len(operations) - 1, k))
    last = len(kinds) + len(operations) - 1
    operations += [
        ("sub", last, constants(rng, outputs)), ("prelu", last + 1, constants(rng, outputs)),
        ("add", last + 2, constants(rng, outputs)),
    ]  # fmt: skip
    outs = [("floats", last), ("bits", last + 3), ("floats", last + 2)][: draw(st.integers(1, 3))]
    return producers, inputs, sums, (shape, kinds, operations, outs)


def run(producers, inputs, arguments, memory=None):
    program = pointwise.prepare(*arguments)
    layer = fused.prepare(producers, program)
    samples, (*pixels, channels) = len(inputs[0]), program.shape
    outputs = [
        np.empty((samples, *pixels, channels), np.float32)
        if kind == "floats"
        else np.empty((samples, *pixels, bits.words_for(channels)), np.uint64)
        for kind in program.outputs
    ]
    if memory is None:
        fused.run(layer, inputs, outputs)
        return outputs
    words = np.full(layer.memory_words + 128, memory, np.uint64)
    fused.run(layer, inputs, outputs, words[64:-64])
    assert np.all(words[:64] == memory) and np.all(words[-64:] == memory)
    return outputs


@given(layers(), st.sampled_from((None, 2**64 - 1)))
def test_a_layer_equals_its_products_and_then_its_program(layer, memory):
    producers, inputs, sums, arguments = layer
    result = run(producers, inputs, arguments, memory)
    for a, b in zip(result, pointwise.run_reference(arguments, sums), strict=True):
        assert a.dtype == b.dtype
        assert np.array_equal(a, b)


@pytest.mark.skipif(threads.most() < 2, reason="needs two threads")
@pytest.mark.parametrize("kind", ["xnor", "ternary", "depthwise", "float", "none"])
def test_threads_share_the_work_and_change_nothing(kind, monkeypatch):
    rng = np.random.default_rng(0)
    samples, size, channels = 7, 9, 70
    x = words(rng, samples, size, size, channels)
    producer = {
        "xnor": lambda: xnor.prepare_conv2d(
            words(rng, channels, 3, 3, channels), channels, (size, size), padding=(1, 1)
        ),
        "ternary": lambda: xnor.prepare_conv2d(
            words(rng, channels, 3, 3, channels),
            channels,
            (size, size),
            padding=(1, 1),
            mask=words(rng, channels, 3, 3, channels),
        ),
        "depthwise": lambda: depthwise.prepare(
            words(rng, 3, 3, channels), channels, (size, size), padding=(1, 1)
        ),
        "float": lambda: ordered.prepare_conv2d(
            rng.standard_normal((channels, channels, 3, 3), np.float32),
            (size, size),
            padding=(1, 1),
        ),
        "none": lambda: None,
    }[kind]()
    what = "floats" if kind in ("float", "none") else "sums"
    if what == "floats":
        x = rng.standard_normal((samples, size, size, channels), np.float32)
    operations = [("mul", 0, constants(rng, channels)), ("add", 1, constants(rng, channels))]
    arguments = (size, size, channels), [what], operations, [("bits", 2), ("floats", 1)]
    with threads.num_threads(1):
        expected = run([producer], [x], arguments)
    monkeypatch.setattr(fused, "tasks_for", lambda seconds: 2)
    with threads.num_threads(2):
        result = run([producer], [x], arguments)
    for a, b in zip(result, expected, strict=True):
        assert np.array_equal(a, b)


def test_prepare_and_run_name_what_does_not_fit():
    rng = np.random.default_rng(0)
    product = xnor.prepare_matmul(words(rng, 5, 70), 70)
    plan = depthwise.prepare(words(rng, 3, 3, 5), 5, (4, 4))
    program = pointwise.prepare((5,), ("sums", "sums"), [("add", 0, 1)], (("floats", 2),))
    with pytest.raises(ValueError, match="takes 2 inputs, got 1 producers"):
        fused.prepare([product], program)
    with pytest.raises(ValueError, match="producers of one kind"):
        fused.prepare([product, plan], program)
    with pytest.raises(ValueError, match=r"its producer gives sums of shape \(6,\)"):
        fused.prepare([xnor.prepare_matmul(words(rng, 6, 70), 70), None], program)
    limits = {"thresholds": np.zeros(5, np.int32), "flip": np.zeros(5, bool)}
    with pytest.raises(ValueError, match="has thresholds, it gives bits"):
        fused.prepare([xnor.prepare_matmul(words(rng, 5, 70), 70, **limits), None], program)
    layer = fused.prepare([product, None], program)
    x, sums, out = words(rng, 2, 70), np.zeros((2, 5), np.int32), np.zeros((2, 5), np.float32)
    with pytest.raises(ValueError, match="input 1 must be contiguous int32"):
        fused.run(layer, [x, sums.astype(np.int64)], [out])
    with pytest.raises(ValueError, match="output 0 must be contiguous float32"):
        fused.run(layer, [x, sums], [out[:1]])
    with pytest.raises(ValueError, match="memory must be a row of at least"):
        fused.run(layer, [x, sums], [out], np.zeros(1, np.uint64))
    with pytest.raises(ValueError, match="takes 2 inputs and 1 outputs"):
        fused.run(layer, [x], [out])
