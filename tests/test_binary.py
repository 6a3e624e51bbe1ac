"""Binary layers in training: on bits, they are the layers of quantized floats."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinybnn import functional as F
from tinybnn import nn, optim, quantizers
from tinybnn.functional import binary
from tinybnn.tensor import Tensor, grad, no_grad
from tinybnn.testing import assert_identical

STE = quantizers.ste_sign


@pytest.fixture(autouse=True)
def small_layers_too(monkeypatch):
    """Layers of a test's size run on bits."""
    monkeypatch.setattr(binary, "_SMALL", 0)


@st.composite
def layers(draw):
    """(layer, input shape): binary layers of all kinds."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    settings = {
        "input_quantizer": draw(st.sampled_from(("ste_sign", "approx_sign", "swish_sign"))),
        "scale": draw(st.sampled_from((None, "mean", "learned"))),
        "rng": rng,
    }
    if draw(st.booleans()):
        features, outputs = draw(st.integers(1, 130)), draw(st.integers(1, 70))
        lead = draw(st.sampled_from(((5,), (2, 3))))
        return nn.BinaryLinear(features, outputs, bias=draw(st.booleans()), **settings), (
            *lead,
            features,
        )
    groups = draw(st.sampled_from((1, 1, 2, 6)))
    per_group = draw(st.sampled_from((1, 3, 20)))
    outputs = groups * draw(st.sampled_from((1, 5, 33)))
    layer = nn.BinaryConv2d(
        groups * per_group, outputs, draw(st.sampled_from((1, 3, (2, 3)))), groups=groups,
        stride=draw(st.sampled_from((1, 2))), padding=draw(st.sampled_from((0, 1, (1, 0)))),
        dilation=draw(st.sampled_from((1, 1, 2))),
        padding_mode=draw(st.sampled_from(("zeros", "ones"))), **settings,
    )  # fmt: skip
    return layer, (draw(st.integers(1, 3)), groups * per_group, 7, 6)


def numbers(rng, shape):
    """Numbers beyond the clip and at its edge, and zeros of both signs."""
    special = rng.choice(np.array([0.0, -0.0, 1.0, -1.0, 1.5], np.float32), shape)
    return np.where(rng.random(shape) < 0.3, special, rng.standard_normal(shape, np.float32))


def step(layer, x, grad_output):
    """Return the output and the gradients of the input and each parameter."""
    x = Tensor(x, requires_grad=True)
    y = layer(x)
    return y.data, [g.data for g in grad(y, [x, *layer.parameters()], Tensor(grad_output))]


@given(layers(), st.integers(0, 2**32 - 1))
def test_a_layer_on_bits_is_the_layer_of_quantized_floats(drawn, seed):
    layer, shape = drawn
    rng = np.random.default_rng(seed)
    layer.weight.data[...] = numbers(rng, layer.weight.shape)
    x = numbers(rng, shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(binary, "_SMALL", np.inf)
        expected = layer(Tensor(x))
        grad_output = rng.integers(-3, 4, expected.shape).astype(np.float32)
        expected, expected_gradients = step(layer, x, grad_output)
    output, gradients = step(layer, x, grad_output)
    assert_identical(output, expected)
    for a, b in zip(gradients, expected_gradients, strict=True):
        assert a.shape == b.shape
        assert np.allclose(a, b, rtol=1e-5, atol=1e-4 * max(1, np.abs(b).max()))


@given(layers(), st.integers(0, 2**32 - 1))
def test_the_switch_changes_no_bit(drawn, seed):
    layer, shape = drawn
    rng = np.random.default_rng(seed)
    x = numbers(rng, shape)
    grad_output = rng.standard_normal(layer(Tensor(x)).shape, np.float32)
    output, gradients = step(layer, x, grad_output)
    with F.packed_products(False):
        expected, expected_gradients = step(layer, x, grad_output)
    assert_identical(output, expected)
    for a, b in zip(gradients, expected_gradients, strict=True):
        assert_identical(a, b)


def training(enabled):
    """Train a network with all kinds of binary layers a few steps; return its parameters."""
    rng = np.random.default_rng(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, rng=rng), nn.BatchNorm2d(16),
        nn.BinaryConv2d(16, 70, 3, padding=1, rng=rng), nn.MaxPool2d(2), nn.BatchNorm2d(70),
        nn.RSign(70), nn.BinaryConv2d(70, 70, 3, groups=70, input_quantizer=None, rng=rng),
        nn.BatchNorm2d(70), nn.Flatten(), nn.BinaryLinear(70 * 4, 5, rng=rng),
    )  # fmt: skip
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    with F.packed_products(enabled):
        for _ in range(4):
            x = rng.standard_normal((8, 3, 10, 10), np.float32)
            optimizer.zero_grad()
            F.cross_entropy(model(Tensor(x)), rng.integers(0, 5, 8)).backward()
            optimizer.step()
    return [p.data for p in model.parameters()]


def test_training_is_the_same_with_and_without_packed_products():
    for a, b in zip(training(True), training(False), strict=True):
        assert_identical(a, b)


@pytest.fixture
def words(monkeypatch):
    """The products that ran on words, in order."""
    products, on_words = [], binary.SignConv2d.on_words
    monkeypatch.setattr(
        binary.SignConv2d, "on_words", lambda product: products.append(product) or on_words(product)
    )
    return products


SIGNS = {
    "of a layer": lambda x: nn.Quantize()(x),
    "of a learned threshold": lambda x: nn.RSign(4)(x),
    "of a pool": lambda x: F.max_pool2d(quantizers.ste_sign(x), 2),
    "in another order": lambda x: quantizers.ste_sign(x).flip(2).permute(0, 1, 3, 2),
    "without a graph": lambda x: quantizers.ste_sign(x).detach(),
    "in an array": lambda x: quantizers.sign(x.data),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", SIGNS)
def test_signs_are_packed_wherever_they_come_from(name, training, words):
    x = SIGNS[name](Tensor(numbers(np.random.default_rng(0), (2, 4, 6, 6)), requires_grad=True))
    layer = nn.BinaryConv2d(4, 4, 3, input_quantizer=None).train(training)
    assert_identical(Tensor(layer(x)).data, F.conv2d(Tensor(x).data, layer.binary_weight()))
    assert len(words) == 1


def assign(x):
    x.data = np.full(x.shape, 0.25, np.float32)


def in_place(x):
    x *= 0.5


def items(x):
    x[0, 1] = 3.0


def array(x):
    x.data[1, 2, 3] = 0.0


def array_in_place(x):
    x.data += 1


def numpy(x):
    x.numpy()[0, 0, 0, 0] = np.nan


def other_tensor(x):
    x.detach()[0] = 0.5


def view(x):
    x.reshape(-1).data[7] = -2.0


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "change", [assign, in_place, items, array, array_in_place, numpy, other_tensor, view]
)
def test_signs_that_are_changed_are_signs_no_more(change, training, words):
    x = quantizers.ste_sign(Tensor(numbers(np.random.default_rng(0), (2, 4, 6, 6))))
    layer = nn.BinaryConv2d(4, 4, 3, input_quantizer=None).train(training)
    layer(x)
    assert len(words) == 1
    with no_grad():
        change(x)
    expected = F.conv2d(x.data, layer.binary_weight(), fixed_order=not training)
    assert_identical(layer(x).data, expected)
    assert len(words) == 1


class FromHalf(quantizers.SteSign):
    """A sign with a forward of its own."""

    def forward(self, x):
        return np.where(x >= 0.5, np.float32(1), np.float32(-1))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("which", ["input_quantizer", "weight_quantizer"])
@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_a_quantizer_with_a_forward_of_its_own_is_not_the_sign(kind, which, training):
    rng = np.random.default_rng(0)
    make = partial(nn.BinaryConv2d, 4, 4, 3) if kind == "conv" else partial(nn.BinaryLinear, 4, 4)
    x = numbers(rng, (2, 4, 6, 6) if kind == "conv" else (5, 4))
    layer = make(**{which: FromHalf()}, rng=rng).train(training)
    operands = [layer.input_quantizer.forward(x), layer.binary_weight()]
    expected = F.conv2d(*operands) if kind == "conv" else F.linear(*operands)
    assert_identical(layer(Tensor(x)).data, expected)


@given(layers(), st.integers(0, 2**32 - 1))
def test_eval_and_training_give_the_same_sums(drawn, seed):
    layer, shape = drawn
    x = numbers(np.random.default_rng(seed), shape)
    assert_identical(layer.eval()(Tensor(x)).data, layer.train()(Tensor(x)).data)


@pytest.mark.parametrize("quantizer", ["ste_sign", "approx_sign", "swish_sign"])
@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_second_order_is_that_of_the_composition(kind, quantizer):
    rng = np.random.default_rng(0)
    quantizer = quantizers.get(quantizer)
    shape, weight_shape = ((2, 3, 5, 5), (4, 3, 3, 3)) if kind == "conv" else ((6, 7), (5, 7))
    x, w = (rng.normal(size=s).astype(np.float32) / 2 for s in (shape, weight_shape))

    def second(function):
        a, b = Tensor(x, requires_grad=True), Tensor(w, requires_grad=True)
        y = function(a, b)
        first = grad((y * y).sum(), [a, b], create_graph=True)
        total = sum(((g * g).sum() for g in first), Tensor(0.0))
        return [g.data for g in (*first, *grad(total, [a, b]))]

    if kind == "conv":
        gradients = second(lambda a, b: F.binary_conv2d(a, b, quantizer, quantizer, padding=(1, 1)))
        expected = second(lambda a, b: F.conv2d(quantizer(a), quantizer(b), padding=1))
    else:
        gradients = second(lambda a, b: F.binary_linear(a, b, quantizer, quantizer))
        expected = second(lambda a, b: F.linear(quantizer(a), quantizer(b)))
    for a, b in zip(gradients, expected, strict=True):
        assert np.allclose(a, b, rtol=1e-4, atol=1e-3 * np.abs(b).max())


def test_float64_keeps_its_precision():
    x = np.random.default_rng(0).normal(size=(2, 3))
    layer = nn.BinaryLinear(3, 4)
    layer.weight.data = layer.weight.data.astype(np.float64)
    assert layer(Tensor(x)).dtype == np.float64


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("quantizer", ["ste_sign", None])
@pytest.mark.parametrize("kind", ["linear", "conv", "depthwise"])
def test_arrays_are_taken_as_tensors_are(kind, quantizer, training):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 8) if kind == "linear" else (2, 8, 5, 5)).astype(np.float32)
    layer = {
        "linear": lambda: nn.BinaryLinear(8, 4, input_quantizer=quantizer, rng=rng),
        "conv": lambda: nn.BinaryConv2d(8, 4, 3, input_quantizer=quantizer, rng=rng),
        "depthwise": lambda: nn.BinaryDepthwiseConv2d(8, 3, input_quantizer=quantizer, rng=rng),
    }[kind]()
    layer.train(training)
    assert_identical(layer(x), layer(Tensor(x)).data)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x: F.binary_conv2d(x, np.ones((4, 3, 3, 3)), None, STE),
            "expects 3 input channels",
        ),
        (
            lambda x: F.binary_conv2d(x[0], np.ones((4, 4, 3, 3)), None, STE),
            r"shape \(N, C, H, W\)",
        ),
        (
            lambda x: F.binary_conv2d(x, np.ones((4, 4, 7, 7)), None, STE),
            "does not fit into images",
        ),
        (
            lambda x: F.binary_conv2d(x, np.ones((4, 4, 3, 3)), None, STE, stride=0),
            "stride must be",
        ),
        (
            lambda x: F.binary_conv2d(x, np.ones((4, 4, 3, 3)), None, STE, padding_mode="same"),
            "padding_mode must be 'zeros' or 'ones', got 'same'",
        ),
        (lambda x: F.binary_linear(x, np.ones((4, 3)), None, STE), "weight of shape .* expects 3"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(call, message):
    with pytest.raises(ValueError, match=f"binary_(conv2d|linear): .*{message}"):
        call(np.ones((2, 4, 6, 6), np.float32))


# ------------------------------------------------------------------------------- ternary weights


@given(
    st.sampled_from([(1, 16), (1, 70), (2, 20), (3, 1)]),
    st.sampled_from(["ste_sign", None]),
    st.sampled_from(["zeros", "ones"]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_ternary_weights_on_bits_are_those_on_floats(groups, input_quantizer, mode, training, seed):
    """Equal in all bits, gradients included."""
    groups, per_group = groups
    rng = np.random.default_rng(seed)
    layer = nn.BinaryConv2d(
        groups * per_group, 6, 3, int(rng.integers(1, 3)), 1, groups=groups, padding_mode=mode,
        input_quantizer=input_quantizer, weight_quantizer="ste_tern", rng=rng,
    ).train(training)  # fmt: skip
    x = numbers(rng, (2, groups * per_group, 7, 6))
    x = quantizers.sign(x) if input_quantizer is None else x
    given_ = rng.standard_normal(layer(Tensor(x)).shape, np.float32)
    output, gradients = step(layer, x, given_)
    with F.packed_products(False):
        expected, expected_gradients = step(layer, x, given_)
    for a, b in zip([output, *gradients], [expected, *expected_gradients], strict=True):
        assert_identical(a, b)


def test_ternary_weights_are_not_convolved_as_floats(monkeypatch):
    layer = nn.BinaryConv2d(32, 6, 3, weight_quantizer="ste_tern").eval()
    monkeypatch.setattr(F.Conv2d, "forward", None)
    layer(Tensor(numbers(np.random.default_rng(0), (2, 32, 7, 6))))


def test_a_quantizer_that_gives_other_values_than_it_says():
    class Halves(quantizers.SteTern):
        def forward(self, x):
            return super().forward(x) / 2

    layer = nn.BinaryConv2d(32, 6, 3, weight_quantizer=Halves())
    x = quantizers.sign(numbers(np.random.default_rng(0), (2, 32, 7, 6)))
    expected = F.conv2d(x, Halves().forward(layer.weight.data))
    np.testing.assert_allclose(layer(Tensor(x)).data, expected, 1e-5)
