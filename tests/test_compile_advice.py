"""compile's refusals suggest code that compiles; check lists all refusals."""

import pickle
import random

import numpy as np
import pytest

import tinybnn as tb
from tinybnn import deploy, nn, optim, quantizers
from tinybnn import functional as F
from tinybnn.tensor import Function, Tensor, no_grad
from tinybnn.testing import assert_identical, gradcheck, gradgradcheck

FEATURES, IMAGE = (6,), (2, 4, 6)


class Custom(nn.Module):
    """A model whose forward method is given."""

    def __init__(self, function):
        rng = np.random.default_rng(0)
        self.real = nn.Linear(6, 6, rng=rng)
        self.weight = nn.Parameter(rng.standard_normal((6, 6)).astype(np.float32))
        self.function = function

    def forward(self, x):
        return self.function(self, x)


def batch(shape, samples=5, seed=0):
    x = np.random.default_rng(seed).standard_normal((samples, *shape)).astype(np.float32)
    x[0], x[1] = 0.0, -0.0
    return x


def channels_last(x):
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def float_output(model, x):
    with no_grad():
        return model.eval()(Tensor(x.copy())).data


def compiles(function, shape, path=None):
    """Compile; the packed model and its stored copy return the float model's bits."""
    model = function if isinstance(function, nn.Module) else Custom(function)
    packed, x = deploy.compile(model, shape), batch(shape)
    expected = float_output(model, x)
    for order in (np.ascontiguousarray, *[channels_last] * (len(shape) == 3)):
        assert_identical(float_output(model, order(x)), expected)
        assert_identical(packed.predict(order(x)), expected)
        assert_identical(packed.predict(order(x), batch_size=2, threads=1), expected)
    assert deploy.verify(model, packed, x) > 0
    assert deploy.check(model, shape)
    if path is not None:
        packed.save(path)
        assert_identical(deploy.PackedModel.load(path).predict(x), expected)
    return expected


def refused(function, shape):
    """The message of the CompileError."""
    with pytest.raises(deploy.CompileError) as error:
        deploy.compile(Custom(function), shape)
    return str(error.value)


# -------------------------------------------------------------------------------- sums of pixels

MEANS = {
    "(2, 3)": lambda model, x: x.mean((2, 3)),
    "(-1, -2)": lambda model, x: x.mean((-1, -2)),
    "keepdim": lambda model, x: x.mean(dim=(2, 3), keepdim=True),
    "negative, keepdim": lambda model, x: x.mean(dim=(-2, -1), keepdim=True),
    "a function": lambda model, x: F.mean(x, (3, 2)),
    "by hand": lambda model, x: x.sum((2, 3)) * (1.0 / (x.shape[2] * x.shape[3])),
}


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 4, 6), (70, 7, 7), (2, 40, 40)])
@pytest.mark.parametrize("name", MEANS)
def test_means_of_pixels_are_the_global_pool(name, shape, tmp_path):
    """The same bits as the pooling layer, for any order in memory."""
    output = compiles(MEANS[name], shape, tmp_path / "model.npz")
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1))
    assert_identical(output.reshape(len(output), -1, 1, 1), compiles(pool, shape))


@pytest.mark.parametrize(
    "function",
    [
        lambda model, x: x.sum((2, 3)) / 24,
        lambda model, x: x.mean(2).mean(2),
        lambda model, x: x.mean(3).mean(-1),
        lambda model, x: x.sum(-1, keepdim=True),
        lambda model, x: x.var((2, 3)),
        lambda model, x: x - x.mean((2, 3), keepdim=True),
        lambda model, x: x.reshape(len(x), 2, 3, 8).sum(2),
        lambda model, x: quantizers.ste_sign(x).mean((2, 3)),
    ],
)
def test_other_sums_of_pixels(function, tmp_path):
    compiles(function, IMAGE, tmp_path / "model.npz")


@pytest.mark.parametrize("shape", [(2, 3, 2, 2), (1, 2, 3, 4)])  # many and few pixels
@pytest.mark.parametrize("dim", [(2, 3), (2,), (3,)])
@pytest.mark.parametrize("keepdim", [True, False])
def test_gradients_of_sums_of_pixels(shape, dim, keepdim):
    x = np.random.default_rng(0).standard_normal(shape)
    assert np.allclose(F.sum(x, dim, keepdim), x.sum(dim, keepdims=keepdim), rtol=1e-12)
    function = lambda x: F.sum(x * x, dim, keepdim)  # noqa: E731
    gradcheck(function, [Tensor(x, requires_grad=True)])
    gradgradcheck(function, [Tensor(x, requires_grad=True)])


@pytest.mark.parametrize("shape", [(2, 30, 3, 3), (2, 2, 9, 9)])
def test_sums_of_pixels_have_one_order(shape):
    """Sum from 0.0 in order: pairwise sums of 1e8, 1, -1e8, ... differ."""
    x = np.tile(np.float32([1e8, 1, -1e8]), 1000)[: np.prod(shape)].reshape(shape)
    expected = np.zeros(shape[:2], np.float32)
    for i in range(shape[2]):
        for j in range(shape[3]):
            expected += x[:, :, i, j]
    assert_identical(F.sum(x, (2, 3)), expected)
    assert_identical(F.sum(channels_last(x), (3, 2)), expected)
    assert_identical(F.sum(np.full(shape, -0.0, np.float32), (2, 3)), np.zeros_like(expected))


# -------------------------------------------------------------------- rearrangements and minima


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda model, x: x[:, 1:], IMAGE),
        (lambda model, x: x[:, ::-1], IMAGE),
        (lambda model, x: x[:, [1, 0, 1]], IMAGE),
        (lambda model, x: x[:, 0], IMAGE),
        (lambda model, x: x[:, :, 1:-1, 2:], IMAGE),
        (lambda model, x: x[..., ::2], IMAGE),
        (lambda model, x: x.transpose(2, 3), IMAGE),
        (lambda model, x: x.permute(0, 3, 1, 2), IMAGE),
        (lambda model, x: x.flip(2), IMAGE),
        (lambda model, x: x.reshape(len(x), 2, 2, 2, 6).permute(0, 2, 1, 3, 4), IMAGE),
        (lambda model, x: quantizers.ste_sign(x)[:, :1] * 2.0, IMAGE),
        (lambda model, x: quantizers.ste_sign(x[:, :1]), IMAGE),
        (lambda model, x: model.real(x[:, ::-1]) + x[:, 2:3], FEATURES),
        (lambda model, x: x[:, None], FEATURES),
        (lambda model, x: x[:, np.array([True, False] * 3)], FEATURES),
        (lambda model, x: F.stack([x, x], 2).transpose(1, 2), FEATURES),
        (lambda model, x: x.reshape(-1, 6, 1, 1).broadcast_to(len(x), 6, 2, 3), FEATURES),
        (lambda model, x: F.minimum(x, 0.0), FEATURES),
        (lambda model, x: F.minimum(0.25, x), FEATURES),
        (lambda model, x: F.minimum(model.real(x), x), FEATURES),
    ],
)
def test_rearrangements_and_minima(function, shape, tmp_path):
    compiles(function, shape, tmp_path / "model.npz")


def test_a_minimum_becomes_part_of_the_thresholds():
    model = nn.Sequential(
        nn.BinaryLinear(6, 70), Custom(lambda model, x: F.minimum(x - 1.0, 2.0)),
        nn.BinaryLinear(70, 3),
    )  # fmt: skip
    compiles(model, FEATURES)
    assert "threshold" in [step.operation for step in deploy.compile(model, FEATURES).steps]


@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (lambda model, x: x[1:], "Index"),
        (lambda model, x: x[::-1], "Index"),
        (lambda model, x: x[[1, 0]] if len(x) == 2 else x, "Index"),
        (lambda model, x: x.T, "Permute"),
        (lambda model, x: x.flip(0), "Flip"),
        (lambda model, x: x.sum(), "Sum"),
        (lambda model, x: x - x.mean(0, keepdim=True), "Sum"),
        (lambda model, x: x.amax(0), "Amax"),
        (lambda model, x: F.cat([x, x], 0), "Cat"),
        (lambda model, x: F.pad(x, (0, 0, 1, 0)), "Pad"),
        (lambda model, x: x[:1].broadcast_to(*x.shape), "Index"),
    ],
)
def test_samples_that_meet(function, operation):
    message = refused(function, FEATURES)
    assert f"{operation} has no packed form: it mixes the samples of a batch; keep" in message


# ------------------------------------------------------------------------------- advice followed


class Signs(Function):
    """The sign, written as in PyTorch."""

    def forward(self, x):
        return np.sign(x)

    def backward(self, grad, output, x):
        return grad * (np.abs(x) <= 1)


class Signs_(quantizers.Quantizer):  # noqa: N801 - the one that the advice asks for
    def forward(self, x):
        return quantizers.sign(x)

    def pseudo_gradient(self, x):
        return (np.abs(x) <= 1).astype(x.dtype)


ONES = np.ones((1, 6), np.float32)

# Refused function, its shape, the operation, the advice, and a function that follows it.
ADVICE = [
    (lambda m, x: x**2, FEATURES, "Pow", "write x * x", lambda m, x: x * x),
    (lambda m, x: x**3.0, FEATURES, "Pow", "write x * x * x", lambda m, x: x * x * x),
    (lambda m, x: (x * x) ** 0.5, FEATURES, "Pow", "F.sqrt(x)", lambda m, x: F.sqrt(x * x)),
    (lambda m, x: (x + 9) ** -1, FEATURES, "Pow", "1.0 / x", lambda m, x: 1.0 / (x + 9)),
    (lambda m, x: 2**x, FEATURES, "Pow", "F.exp(0.69314718", lambda m, x: F.exp(0.69314718 * x)),
    (
        lambda m, x: (x * x + 1) ** 1.5, FEATURES, "Pow", "F.exp(p * F.log(x))",
        lambda m, x: F.exp(1.5 * F.log(x * x + 1)),
    ),
    (
        lambda m, x: x.sum(1, keepdim=True), FEATURES, "Sum",
        "F.linear(x, np.ones((1, 6), np.float32), fixed_order=True)",
        lambda m, x: F.linear(x, np.ones((1, 6), np.float32), fixed_order=True),
    ),
    (
        lambda m, x: x.mean(1, keepdim=True), FEATURES, "Sum", "for a mean multiply it by 1 / 6",
        lambda m, x: F.linear(x, np.ones((1, 6), np.float32), fixed_order=True) * (1 / 6),
    ),
    (
        lambda m, x: x.sum(1, keepdim=True), IMAGE, "Sum",
        "F.conv2d(x, np.ones((1, 2, 1, 1), np.float32), fixed_order=True)",
        lambda m, x: F.conv2d(x, np.ones((1, 2, 1, 1), np.float32), fixed_order=True),
    ),
    (
        lambda m, x: x.mean((1, 2, 3)).reshape(-1, 1), IMAGE, "Sum",
        "F.linear(x.sum((2, 3)), np.ones((1, 2), np.float32), fixed_order=True), which keeps that "
        "axis, and for a mean multiply it by 1 / 48",
        lambda m, x: (
            F.linear(x.sum((2, 3)), np.ones((1, 2), np.float32), fixed_order=True) * (1 / 48)
        ),
    ),
    (
        lambda m, x: x.amax((2, 3), keepdim=True), IMAGE, "Amax", "F.max_pool2d(x, (4, 6))",
        lambda m, x: F.max_pool2d(x, (4, 6)),
    ),
    (
        lambda m, x: x.amin((2, 3), keepdim=True), IMAGE, "Amin", "-F.max_pool2d(-x, (4, 6))",
        lambda m, x: -F.max_pool2d(-x, (4, 6)),
    ),
    (
        lambda m, x: x.amax(1, keepdim=True), IMAGE, "Amax", "F.maximum(x[:, 0:1], x[:, 1:2])",
        lambda m, x: F.maximum(x[:, 0:1], x[:, 1:2]),
    ),
    (
        lambda m, x: x @ m.weight, FEATURES, "MatMul",
        "F.linear(x, w.T, fixed_order=not self.training)",
        lambda m, x: F.linear(x, m.weight.T, fixed_order=not m.training),
    ),
    (
        lambda m, x: F.linear(x, m.weight), FEATURES, "Linear",
        "pass fixed_order=not self.training",
        lambda m, x: F.linear(x, m.weight, fixed_order=not m.training),
    ),
    (
        lambda m, x: F.cat([x, np.full((len(x), 1), 2, np.float32)], 1), FEATURES, "Cat",
        "append a constant by F.pad(x, ..., value)", lambda m, x: F.pad(x, (0, 1), 2.0),
    ),
    (
        lambda m, x: (x * np.ones(6)).to(np.float32), FEATURES, "Mul",
        "use Python numbers or float32 arrays for constants", lambda m, x: x * ONES,
    ),
    (
        lambda m, x: F.dropout(x, 0.0, True) * np.arange(len(x), dtype=np.float32)[:, None],
        FEATURES, "Mul", "give it the shape (1, ...)", None,
    ),
    (
        lambda m, x: F.where(x.data > 0, x, 0.0), FEATURES, "Where", "x > 0 instead of x.data > 0",
        lambda m, x: F.where(x > 0, x, 0.0),
    ),
    (
        lambda m, x: F.mse_loss(x, np.zeros(x.shape, np.float32)).reshape(1), FEATURES, "Sum",
        "it mixes the samples of a batch", None,
    ),
    (
        lambda m, x: F.binary_cross_entropy_with_logits(x, 0.0 * x), FEATURES,
        "BinaryCrossEntropyWithLogits", "leave the loss out of forward", None,
    ),
    (
        lambda m, x: F.reshape(x, (-1, 2, 3)) @ F.reshape(x, (-1, 3, 2)), FEATURES, "MatMul",
        "a gate (see nn.SqueezeExcite) is elementwise", None,
    ),
    (
        lambda m, x: F.softmax(m.real(x)), FEATURES, "LogSoftmax", "leave it out at the end of a",
        lambda m, x: m.real(x),
    ),
    (
        lambda m, x: m.real(x).logsumexp(1), FEATURES, "LogSumExp", "apply F.logsumexp to the",
        lambda m, x: m.real(x),
    ),
    (
        lambda m, x: Signs.apply(x + 9), FEATURES, "Signs",
        "make it a quantizer: class Signs(tinybnn.quantizers.Quantizer) with forward(self, x), "
        "which returns tinybnn.quantizers.sign(x), and pseudo_gradient(self, x)",
        lambda m, x: Signs_()(x + 9),
    ),
]  # fmt: skip

SCORES = {"LogSoftmax": lambda x: F.softmax(x, 1), "LogSumExp": lambda x: F.logsumexp(x, 1)}


@pytest.mark.parametrize("case", ADVICE, ids=lambda case: f"{case[2]}: {case[3][:30]}")
def test_advice_that_is_followed_compiles(case):
    function, shape, operation, advice, followed = case
    message = refused(function, shape)
    assert message.startswith("compile: layer model (Custom): ")
    assert f"{operation} has no packed form: " in message and advice in message
    assert "test_compile_advice.py" in message  # the line
    if followed is not None:
        output, expected = compiles(followed, shape), float_output(Custom(function), batch(shape))
        output = SCORES.get(operation, lambda x: x)(output)
        assert np.allclose(output, expected, rtol=1e-4, atol=1e-6)


def test_statistics_of_the_batch():
    model = Custom(lambda model, x: F.batch_norm(x, None, None))
    with pytest.raises(deploy.CompileError, match=r"BatchNorm has no .* use nn.BatchNorm2d or nn"):
        deploy.compile(model, IMAGE)
    mean, var = np.zeros(2, np.float32), np.ones(2, np.float32)
    compiles(lambda model, x: F.batch_norm(x, mean, var, training=model.training), IMAGE)
    compiles(nn.Sequential(nn.BatchNorm2d(2)), IMAGE)


def test_weights_that_are_computed_from_the_input():
    message = refused(lambda m, x: F.linear(x, x, fixed_order=True), FEATURES)
    assert "compute weights from parameters only" in message
    compiles(lambda m, x: F.linear(x, m.weight * 2.0, fixed_order=True), FEATURES)


def test_a_line_of_a_forward_method_is_quoted():
    def forward(model, x):
        y = model.real(x)
        return y**2  # the square

    assert "test_compile_advice.py: return y**2 # the square)" in refused(forward, FEATURES)
    assert refused(forward, FEATURES).count("\n") == 0


def test_in_a_layer_of_ours_no_line_is_named():
    model = nn.Sequential(nn.Linear(6, 6), nn.Quantize("ste_tern"))
    with pytest.raises(deploy.CompileError, match=r"layer 1 \(Quantize\)") as error:
        deploy.compile(model, FEATURES)
    assert " line " not in str(error.value)


# --------------------------------------------------------------------------- quantizers of users


class OwnSign(quantizers.Quantizer):
    """The class that the advice suggests."""

    def forward(self, x):
        return quantizers.sign(x)

    def pseudo_gradient(self, x):
        return (np.abs(x) <= 1).astype(x.dtype)


def test_a_sign_function_becomes_a_quantizer_as_the_advice_says(tmp_path):
    """The quantizer trains and compiles, alone and inside a layer."""
    rng = np.random.default_rng(0)
    model = nn.Sequential(
        nn.Linear(6, 8, rng=rng), Custom(lambda model, x: OwnSign()(x)),
        nn.BinaryLinear(8, 8, input_quantizer=OwnSign(), weight_quantizer=OwnSign(), rng=rng),
        nn.BatchNorm1d(8), nn.BinaryLinear(8, 3, input_quantizer=OwnSign(), rng=rng),
    )  # fmt: skip
    adam, before = optim.Adam(model.parameters(), lr=0.1), model[0].weight.data.copy()
    for _ in range(3):
        adam.zero_grad()
        F.cross_entropy(model(Tensor(batch(FEATURES))), np.array([0, 1, 2, 0, 1])).backward()
        adam.step()
    assert not np.array_equal(model[0].weight.data, before)
    compiles(model, FEATURES, tmp_path / "model.npz")
    steps = [step.operation for step in deploy.compile(model, FEATURES).steps]
    assert steps.count("xnor_linear") == 2 and "threshold" in steps


class ZeroAtZero(OwnSign):
    def forward(self, x):
        return np.sign(x)


class Double(OwnSign):
    def forward(self, x):
        return np.where(x >= 0, 1.0, -1.0)


class Shifted(OwnSign):
    def forward(self, x):
        return quantizers.sign(x - 0.5)


class PlusAtNaN(OwnSign):
    def forward(self, x):
        return np.where(x < 0, -1, 1).astype(x.dtype)


@pytest.mark.parametrize(
    ("quantizer", "said"),
    [
        (ZeroAtZero(), "ZeroAtZero.forward returns 0.0 for 0.0, but the sign is 1"),
        (Double(), "Double.forward returns float64, a packed model is float32"),
        (Shifted(), "Shifted.forward returns -1.0 for 0.0, but the sign is 1"),
        (PlusAtNaN(), "PlusAtNaN.forward returns 1.0 for nan, but the sign is -1"),
    ],
)
def test_quantizers_that_are_not_quite_the_sign(quantizer, said):
    message = refused(lambda model, x: quantizer(x), FEATURES)
    assert said in message and "return tinybnn.quantizers.sign(x)" in message


def test_a_threshold_before_the_quantizer():
    """The rewritten network compiles, as the advice promises."""
    assert "subtract a threshold before" in refused(lambda model, x: Shifted()(x), FEATURES)
    expected = float_output(Custom(lambda model, x: Shifted()(x)), batch(FEATURES))
    assert_identical(compiles(lambda model, x: OwnSign()(x - 0.5), FEATURES), expected)


def test_zero_at_zero_behind_sums_of_signs_is_refused():
    """With thresholds, trials might never reach the sum 0."""
    model = nn.Sequential(
        nn.BinaryLinear(6, 6), nn.BinaryLinear(6, 3, input_quantizer=ZeroAtZero())
    )
    with pytest.raises(deploy.CompileError, match=r"returns 0.0 for 0.0, but the sign is 1"):
        deploy.compile(model, FEATURES)


@pytest.mark.parametrize("name", ["ste_tern", "ste_heaviside", "dorefa_activation"])
def test_activations_of_more_values(name):
    function = lambda model, x: quantizers.get(name)(x)  # noqa: E731
    assert 'quantize activations by a sign such as "ste_sign"' in refused(function, FEATURES)
    compiles(lambda model, x: quantizers.get("ste_sign")(x), FEATURES)


# -------------------------------------------------------------------------------- a batch's shape


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 3)), (8, 1, 28, 28)),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), (8, 1, 8, 8)),
        (nn.Sequential(nn.Linear(6, 3)), (8, 6)),
        (nn.Sequential(nn.BinaryLinear(6, 3)), (2, 6)),
    ],
)
def test_a_batch_in_the_shape_of_a_sample(model, shape):
    said = f"includes a batch axis; leave it out: input_shape={shape[1:]}"
    with pytest.raises(deploy.CompileError) as error:
        deploy.compile(model, shape)
    assert said in str(error.value)
    deploy.compile(model, shape[1:])


def test_other_wrong_shapes_are_not_said_to_hold_a_batch():
    with pytest.raises(ValueError, match="channels") as error:
        deploy.compile(nn.Sequential(nn.Conv2d(1, 2, 3)), (3, 28, 28))
    assert "includes a batch axis" not in str(error.value)
    square = nn.Sequential(nn.Flatten(), Custom(lambda model, x: x**2))
    with pytest.raises(deploy.CompileError, match="Pow has no packed form"):
        deploy.compile(square, (1, 8, 8))


@pytest.mark.parametrize("shape", [6, None, ()])
def test_a_shape_that_is_no_sequence(shape):
    with pytest.raises(deploy.CompileError, match=r"shape of one sample.* such as \(1, 28, 28\)"):
        deploy.compile(Custom(lambda model, x: x * 2.0), shape)


# --------------------------------------------------------------------------------------- check


class Residual(nn.Module):
    def __init__(self):
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        y = x**2
        z = x.amax((2, 3), keepdim=True)
        return self.norm(y + z)


def with_problems():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), Residual(), nn.Quantize("ste_tern"), nn.BinaryConv2d(4, 4, 3),
        nn.BatchNorm2d(4), nn.Flatten(), nn.BinaryLinear(64, 3), Custom(lambda m, x: F.softmax(x)),
    )  # fmt: skip


def test_all_problems_are_found_at_once():
    report = deploy.check(with_problems(), (1, 8, 8))
    assert not report and not report.ok
    starts = [problem.split(" has no packed form")[0] for problem in report.problems]
    assert starts == [
        "layer 1 (Residual): Pow", "layer 1 (Residual): Amax", "layer 2 (Quantize): Quantize",
        "layer 7 (Custom): LogSoftmax",
    ]  # fmt: skip
    with pytest.raises(deploy.CompileError) as error:
        deploy.compile(with_problems(), (1, 8, 8))
    assert str(error.value) == f"compile: {report.problems[0]}"
    assert pickle.loads(pickle.dumps(error.value)).problem == error.value.problem


def test_the_table_says_what_becomes_of_each_layer():
    text = str(deploy.check(with_problems(), (1, 8, 8)))
    rows = text.splitlines()
    assert rows[0] == "samples of shape (1, 8, 8): 4 problems"
    assert rows[1].split() == ["0", "(Conv2d)", "conv2d,", "add"]
    assert "REFUSED (1), REFUSED (2)" in rows[2] and rows[3].split()[:3] == [
        "1.norm",
        "(BatchNorm2d)",
        "affine",
    ]
    assert "4. layer 7 (Custom): LogSoftmax has no packed form: leave it out" in text
    model = nn.Sequential(
        nn.BinaryConv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.BinaryLinear(144, 3)
    )
    report = deploy.check(model, (1, 8, 8))
    assert report and report.ok and report.problems == []
    assert [layer.split()[0] for layer, _ in report.layers] == ["0", "1", "2", "3"]
    assert str(report).splitlines()[0] == "samples of shape (1, 8, 8): it compiles"
    layers, merged = dict(report.layers), "in the thresholds of a later sign"
    assert layers["1 (BatchNorm2d)"] == layers["2 (Flatten)"] == merged
    assert layers["3 (BinaryLinear)"] == "threshold, flatten_bits, xnor_linear, to_float"
    unread = nn.Sequential(nn.Quantize("ste_sign"), nn.Quantize("ste_sign"), nn.BinaryLinear(6, 2))
    assert dict(deploy.check(unread, FEATURES).layers)["1 (Quantize)"] == "nothing of its own"


def test_problems_of_each_kind_are_listed():
    state = []

    def forward(model, x):
        state.append(1)
        y = x - x.mean(1, keepdim=True).data.mean()
        x = x * len(x)
        y[:, 0] = 0.0
        return (x + y) * float(y.sum())

    problems = " ".join(deploy.check(Custom(forward), FEATURES).problems)
    for said in ("x[...] = y is not recorded", "item() or float() takes values"):
        assert said in problems
    double = nn.Sequential(nn.Linear(4, 4))
    double[0].weight.data = double[0].weight.data.astype(np.float64)
    double.append(nn.ReLU())
    assert "0.weight is float64" in deploy.check(double, (4,)).problems[0]
    assert len(deploy.check(double, (4,)).problems) == 2  # and where float64 begins
    branch = Custom(lambda model, x: x * 2.0 if x.data.mean() > 1 else model.real(x))
    assert "for one input" in deploy.check(branch, FEATURES).problems[0]
    constant = Custom(lambda model, x: model.weight * 2.0)
    assert "does not depend on its input" in deploy.check(constant, FEATURES).problems[0]
    pair = Custom(lambda model, x: (x, x))
    assert "one Tensor, got a tuple of 2" in deploy.check(pair, FEATURES).problems[0]
    assert (
        "returns its input unchanged" in deploy.check(Custom(lambda m, x: x), FEATURES).problems[0]
    )


@pytest.mark.parametrize("case", ADVICE, ids=lambda case: f"{case[2]}: {case[3][:30]}")
def test_check_never_raises_for_a_model_that_runs(case):
    report = deploy.check(Custom(case[0]), case[1])
    assert not report
    assert f"{case[2]} has no packed form" in report.problems[0]
    assert "REFUSED (1)" in str(report)


def test_a_model_that_does_not_run_raises_its_own_error():
    with pytest.raises(ValueError, match="expects 6 features"):
        deploy.check(nn.Sequential(nn.Linear(6, 3)), (5,))


def test_check_changes_nothing():
    """Modes, statistics, forward counters and random generators stay the same."""

    class Noisy(nn.Module):
        def __init__(self):
            self.calls, self.rng = 0, np.random.default_rng(3)
            self.drop = nn.Dropout(0.5, rng=self.rng)
            self.norm = nn.BatchNorm1d(6)

        def forward(self, x):
            self.calls += 1
            self.rng.random(), np.random.random(), random.random()
            tb.tensor.default_generator().random()
            self.norm.running_mean[:] += 1.0
            return self.norm.train()(F.dropout(x, 0.5, True))

    model = nn.Sequential(Noisy(), nn.Linear(6, 2)).train()
    model[1].eval()
    states = [
        model[0].rng.bit_generator.state, tb.tensor.default_generator().bit_generator.state,
        np.random.get_state()[1].copy(), random.getstate(),
    ]  # fmt: skip
    before = {name: array.copy() for name, array in model.state_dict().items()}
    assert not deploy.check(model, FEATURES)
    assert model[0].calls == 0
    assert [module.training for module in model.modules()] == [True, True, True, True, False]
    for name, array in model.state_dict().items():
        assert_identical(array, before[name])
    assert model[0].rng.bit_generator.state == states[0]
    assert tb.tensor.default_generator().bit_generator.state == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])
    assert random.getstate() == states[3]


def test_a_model_that_cannot_be_copied_is_looked_at_itself():
    model = Custom(lambda model, x: model.real(x))
    model.handle = open(__file__)  # noqa: SIM115
    try:
        assert deploy.check(model, FEATURES)
    finally:
        model.handle.close()


# ------------------------------------------------------------------------------ pixels, unscaled


def binary_mlp():
    return deploy.compile(nn.Sequential(nn.Flatten(), nn.BinaryLinear(64, 3)), (1, 8, 8))


def real_mlp(info=()):
    packed = deploy.compile(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), (1, 8, 8))
    packed.info = dict(info)
    return packed


PIXELS = np.random.default_rng(0).integers(0, 256, (3, 1, 8, 8)).astype(np.uint8)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_whole_numbers_are_refused_by_the_name_of_the_conversion(dtype):
    for packed, said in (
        (binary_mlp(), r"datasets\.to_signed\(maximum\)\(x, None\)"),
        (real_mlp({"maximum": 16.0}), r"datasets\.to_signed\(16\)\(x, None\)"),
    ):
        with pytest.raises(ValueError, match=rf"got {np.dtype(dtype)} of.*{said}"):
            packed.predict(PIXELS.astype(dtype))


def test_what_the_refusal_of_other_arrays_says_works():
    packed = real_mlp()
    x = batch((1, 8, 8))
    with pytest.raises(ValueError, match=r"use x\.astype\(np\.float32\)"):
        packed.predict(x.astype(np.float64))
    with pytest.raises(ValueError, match=r"use x\[None\] for a single sample"):
        packed.predict(x[0])
    assert_identical(packed.predict(x[0][None]), packed.predict(x)[:1])


def test_float_pixels_from_0_to_255_are_warned_of():
    x = PIXELS.astype(np.float32)
    with pytest.warns(UserWarning, match=r"reads the signs of its input, but x\[0\] goes from"):
        binary_mlp().predict(x)
    packed = real_mlp({"maximum": 255})
    with pytest.warns(
        UserWarning, match=r"pixels from -1 to 1.* datasets\.to_signed\(255\)"
    ) as caught:
        packed.predict(x)
    assert caught[0].filename == __file__
    packed = real_mlp({"maximum": 255})
    packed.predict(np.zeros_like(x))
    with pytest.warns(UserWarning, match="from -1 to 1"):  # after a black image, too
        packed.predict(x)
    packed.predict(tb.datasets.to_signed(255)(PIXELS, None))


def test_no_false_alarms_of_pixels():
    """No warning is raised (warnings are errors here)."""
    x, scaled = PIXELS.astype(np.float32), tb.datasets.to_signed(255)(PIXELS, None)
    real_mlp().predict(x)  # the range of its training data is unknown
    for packed in (binary_mlp(), real_mlp({"maximum": 255})):
        packed.predict(scaled)
        packed.predict(scaled[:0])
    for packed in (binary_mlp(), real_mlp({"maximum": 255})):
        packed.predict(np.zeros_like(scaled))
        packed.predict(scaled / 2 + 0.5)
    few = deploy.compile(nn.Sequential(nn.BinaryLinear(3, 2)), (3,))
    few.predict(np.full((2, 3), 2.0, np.float32))


def test_compile_warns_of_layers_that_a_model_does_not_own():
    class Hidden(nn.Module):
        def __init__(self):
            self.layers = [nn.Linear(4, 3).eval()]

        def forward(self, x):
            return self.layers[0](x)

    with pytest.warns(UserWarning, match=r"compile: Hidden reaches layers\[0\] \(Linear\)"):
        deploy.compile(Hidden().eval(), (4,))
