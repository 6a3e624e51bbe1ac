"""The compiler is sound: a packed model computes the same as the model, or compile refuses.

Each forward method below does something that one trace cannot see, or that a packed program could
get wrong.
"""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinybnn import deploy, nn, quantizers, storage
from tinybnn import functional as F
from tinybnn.deploy.scan import Scan
from tinybnn.deploy.values import MOST_BYTES
from tinybnn.functional import binary
from tinybnn.tensor import Tensor, no_grad, trace
from tinybnn.testing import assert_identical

FEATURES = 6


class Custom(nn.Module):
    """A model whose forward method is given."""

    def __init__(self, function):
        rng = np.random.default_rng(0)
        self.real = nn.Linear(FEATURES, FEATURES, rng=rng)
        self.binary = nn.BinaryLinear(FEATURES, FEATURES, rng=rng)
        self.shift = nn.Parameter(np.linspace(-1, 1, FEATURES, dtype=np.float32))
        self.sign = quantizers.SteSign()
        self.function = function

    def forward(self, x):
        return self.function(self, x)


def batch(shape=(FEATURES,), samples=7, seed=0):
    x = np.random.default_rng(seed).standard_normal((samples, *shape)).astype(np.float32)
    x[0] = 0.0
    return x


def float_output(model, x):
    """The output for a copy of x, outside any trace."""
    model.eval()
    with no_grad():
        return model(Tensor(x.copy())).data


def check(model, shape=(FEATURES,), path=None):
    """Compile; the packed model and its stored copy return the float model's values."""
    x = batch(shape)
    packed = deploy.compile(model, shape)
    expected = float_output(model, x)
    assert_identical(packed.predict(x), expected)
    assert deploy.verify(model, packed, x) > 0
    assert_identical(x, batch(shape))  # nobody has changed it
    if path is not None:
        packed.save(path)
        assert_identical(deploy.PackedModel.load(path).predict(x), expected)
    return [step.operation for step in packed.steps]


def refused(function, match):
    with pytest.raises(deploy.CompileError, match=match) as error:
        deploy.compile(Custom(function), (FEATURES,))
    return str(error.value)


# -------------------------------------------------------------------------- in-place operators


def shifted_input(model, x):
    x -= 0.4
    return model.binary(x)


def residual(model, x):
    y = model.real(x)
    y += x
    y *= 2.0
    y /= 3.0
    y -= model.shift
    return model.binary(y)


def in_view(model, x):
    y = model.real(x).reshape(-1, 2, 3)
    y += 1.0
    return model.real(y.reshape(-1, FEATURES))


@pytest.mark.parametrize("function", [shifted_input, residual, in_view])
def test_in_place_operators_compile(function):
    check(Custom(function))


def test_what_an_in_place_operator_changed_under_two_names_is_refused():
    def two_names(model, x):
        y = x
        y += 1.0
        return model.real(x + y)

    def view_of_it(model, x):
        y = model.real(x)
        view = y.reshape(-1, 2, 3)
        y += 1.0
        return model.real(view.reshape(-1, FEATURES))

    def given_back(model, x):
        y = model.real(x)
        z = y
        z += 1.0
        return y

    for function in (two_names, view_of_it, given_back):
        refused(function, r"layer model.*: it is read after an in-place operator")


def test_index_assignment_is_refused_by_the_name_of_its_layer():
    def first_is_zero(model, x):
        x[:, 0] = 0.0
        return x * 1.0

    model = nn.Sequential(nn.Linear(FEATURES, FEATURES), Custom(first_is_zero))
    with pytest.raises(deploy.CompileError, match=r"layer 1 \(Custom\): x\[\.\.\.\] = y"):
        deploy.compile(model, (FEATURES,))


def test_a_model_that_changes_its_parameters_is_refused():
    def counts(model, x):
        model.shift += 1.0
        return x + model.shift

    refused(counts, r"\+= changes a Parameter of the model")


def test_verify_sees_what_an_in_place_operator_does_to_the_input():
    """`verify` finds a packed model without the shift: it passes an unshifted input."""
    packed = deploy.compile(Custom(lambda model, x: model.binary(x)), (FEATURES,))
    with pytest.raises(AssertionError, match="verify"):
        deploy.verify(Custom(lambda model, x: model.binary(x - 0.4)), packed, batch())
    with pytest.raises(AssertionError, match="verify"):
        deploy.verify(Custom(shifted_input), packed, batch())


# ------------------------------------------------------------------------ what a trace cannot see


@pytest.mark.parametrize(
    "function",
    [
        lambda model, x: x - x.data.mean(),
        lambda model, x: x * x.data.mean(1, keepdims=True),
        lambda model, x: x * (1 / len(x)),
        lambda model, x: x + np.float32(len(x)) * model.shift,
        lambda model, x: x - Tensor(x.data.max(0)),
        lambda model, x: F.clamp(x, 0.0, float(x.data.max())),
        lambda model, x: F.where(x.data > 0, x, model.shift),
    ],
)
def test_constants_that_come_from_the_input_are_refused(function):
    refused(function, r"layer model \(Custom\).*(values|batch)")


@pytest.mark.parametrize(
    "function",
    [
        lambda model, x: model.real(x) if x.data.mean() > 0 else model.binary(x),
        lambda model, x: model.real(x) if x.data.max() > 50 else model.binary(x),
        lambda model, x: model.real(x) if x.data.min() < -50 else model.binary(x),
        lambda model, x: model.real(x) if (x.data == 0).any() else model.binary(x),
        lambda model, x: model.real(x) if len(x) == 2 else model.binary(x),
        lambda model, x: model.real(x) if len(x) == 1 else model.binary(x),
        lambda model, x: x + 1.0 if x.data.mean() > 0 else x + 2.0,
    ],
)
def test_branches_on_data_are_refused(function):
    refused(function, "values or on the batch size")


@pytest.mark.parametrize(
    "function",
    [
        lambda model, x: x - x.mean().item(),
        lambda model, x: x - float(x.sum()),
        lambda model, x: x * np.asarray(x).mean(),
        lambda model, x: x * x.numpy().mean(),
        lambda model, x: x + 1.0 if x.mean() > 0.3 else x,
        lambda model, x: x + 1.0 if (x > 0).any() else x,
        lambda model, x: x + 1.0 if x.mean() else x,
        lambda model, x: x * (x > 0).astype(np.float32),
        lambda model, x: x * ~(x > 0),
        lambda model, x: x * (1.0 - (x > 0)),
        lambda model, x: F.where(np.logical_not(x > 0), x, 0.0),
    ],
)
def test_values_taken_out_of_the_model_are_refused(function):
    refused(function, r"layer model \(Custom\): (item|a NumPy|numpy|the result of a comp|an if)")


def test_values_of_parameters_may_be_taken_out():
    check(Custom(lambda model, x: x * model.shift.sum().item()))
    check(Custom(lambda model, x: x * ~(model.shift > 0)))
    check(Custom(lambda model, x: x + 1.0 if model.shift.mean() >= 0 else x))


def test_a_batch_size_that_is_written_down_is_refused():
    refused(lambda model, x: x.reshape(2, -1), r"layer model \(Custom\): Reshape: its output has")
    refused(lambda model, x: x.reshape(2, FEATURES), r"raises SizeError .* shape \(3, 6\)")
    refused(lambda model, x: x + np.float32([[1], [2]]), "a row for each sample")
    refused(lambda model, x: x + np.ones((2, 1), np.float32), r"raises ValueError .* shape \(3, 6")
    check(Custom(lambda model, x: x + np.ones((len(x), 1), np.float32)))
    check(Custom(lambda model, x: x.reshape(len(x), 2, -1).reshape(x.shape)))
    check(Custom(lambda model, x: model.real(x.reshape(-1, FEATURES))))


def test_random_numbers_in_eval_mode_are_refused():
    rng = np.random.default_rng(0)
    noise = lambda model, x: x + rng.standard_normal(FEATURES).astype(np.float32)  # noqa: E731
    refused(noise, "one of its constants")


def test_detach_is_the_identity(tmp_path):
    def straight_through(model, x):
        return model.real(x + (model.sign(x) - x).detach())

    assert "sub" in check(Custom(straight_through), path=tmp_path / "model.npz")
    check(Custom(lambda model, x: model.binary(Tensor(x.detach()))))


@pytest.mark.parametrize(
    "function",
    [
        lambda model, x: x * (x > 0),
        lambda model, x: (x <= model.shift) * x,
        lambda model, x: F.where(x >= model.shift, x, -1.0),
        lambda model, x: F.where(x != 0, 1.0, model.shift),
        lambda model, x: model.binary(F.where(x > 0, 1.0, -1.0)),
        lambda model, x: F.where(model.real(x) < x, x, model.real(x)) - (x == 0),
        lambda model, x: F.where(x > 0, x, -0.0),
    ],
)
def test_comparisons_compile_where_they_end_in_where_or_a_product(function, tmp_path):
    check(Custom(function), path=tmp_path / "model.npz")


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (lambda x: (x, x * 2.0), "a tuple of 2"),
        (lambda x: {"logits": x * 2.0}, "a dict of 1"),
        (lambda x: None, "None; does forward end with return"),
        (lambda x: x.data, "a ndarray"),
        (lambda x: F.where(x > 0, 1.0, -1.0), "a ndarray"),  # as outside of any trace
    ],
)
def test_an_output_that_is_not_one_tensor_is_refused(output, said):
    refused(lambda model, x: output(x), f"must be one Tensor, got {said}")


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 4), (-1,)])
def test_a_shape_without_elements_is_refused(shape):
    with pytest.raises(deploy.CompileError, match="sizes >= 1"):
        deploy.compile(Custom(lambda model, x: x * 2.0), shape)


def test_double_precision_is_refused_by_the_name_of_its_layer():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    model[1].weight.data = model[1].weight.data.astype(np.float64)
    with pytest.raises(deploy.CompileError, match=r"1\.weight is float64"):
        deploy.compile(model, (4,))
    refused(lambda model, x: x * np.ones(FEATURES), "computes in float64")


# ----------------------------------------------------------------------------- only what runs


def test_statistics_in_double_precision_that_are_rounded_twice():
    """The constants of a batch norm are rounded to float32 once, whatever its statistics are."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    model[1].running_mean = np.float64([0.1, -0.3, 7.7, 1e-9])
    model[1].running_var = np.float64([0.1, 1 / 3, 7.7, 1e9])
    packed = deploy.compile(model, (4,))
    assert deploy.verify(model, packed, np.random.default_rng(0).normal(size=(9, 4)).astype("f4"))


@given(st.data())
def test_any_padding_compiles_and_runs(tmp_path_factory, data):
    """Also padding larger than the image and the window."""
    draw = lambda *options: data.draw(st.sampled_from(options))  # noqa: E731
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    channels, height, width = draw(1, 3, 70), draw(1, 2, 4), draw(1, 3)
    geometry = {
        "kernel_size": (draw(1, 2, 3), draw(1, 3)), "padding": (draw(0, 2, 5), draw(1, 4, 9)),
        "stride": (draw(1, 2, 9), draw(1, 3)), "dilation": draw(1, 2), "rng": rng,
    }  # fmt: skip
    kind = draw("zeros", "ones", "ternary", "depthwise", "real", "adabin")
    if kind == "real":
        layer = nn.Conv2d(channels, 5, **geometry)
    elif kind == "adabin":
        layer = nn.AdaBinConv2d(channels, 5, **geometry)
    elif kind == "depthwise":
        layer = nn.BinaryDepthwiseConv2d(channels, **geometry)
    elif kind == "ternary":
        layer = nn.BinaryConv2d(channels, 5, weight_quantizer="ste_tern", **geometry)
    else:
        layer = nn.BinaryConv2d(channels, 5, padding_mode=kind, **geometry)
    model, shape = nn.Sequential(layer), (channels, height, width)
    try:
        float_output(model, batch(shape))
    except ValueError:  # the window does not fit into the padded image
        return
    check(model, shape, tmp_path_factory.mktemp("padding") / "model.npz")


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda x: F.pad(x, (100,) * 4, 1.0), (1, 4, 4)),
        (lambda x: F.pad(x, (1, 2, 0, 1), -np.inf), (2, 4, 4)),
        (lambda x: F.pad(x, (1, 1), np.nan), (3,)),
        (lambda x: F.clamp(x, -np.inf, np.inf), (3,)),
        (lambda x: F.clamp(x, None, np.inf), (3,)),
        (lambda x: x + np.ones((1, 2, 5, 5), np.float32), (2, 1, 1)),
        (lambda x: x * np.ones((1, 1, 60, 60), np.float32), (2, 1, 1)),
        (lambda x: np.ones((2, 3, 1), np.float32) - x, (2, 1, 5)),
        (lambda x: 1.0 / quantizers.SteSign()(x), (3,)),
        (lambda x: F.cat([x.reshape(len(x), 1, 3), x.reshape(-1, 1, 3)], 1), (3,)),
    ],
)
def test_what_is_legal_in_float_runs_packed(function, shape, tmp_path):
    check(Custom(lambda model, x: function(x)), shape, tmp_path / "model.npz")


@pytest.mark.parametrize("stride", [3, 70, 130])
def test_transposed_convolutions_of_large_strides(stride, tmp_path):
    layer = nn.ConvTranspose2d(2, 3, 3, stride=stride, rng=np.random.default_rng(0))
    check(nn.Sequential(layer), (2, 3, 2), tmp_path / "model.npz")


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("output_padding", [(0, 0), (1, 0), (1, 1)])
def test_transposed_convolutions_with_output_padding(stride, output_padding, tmp_path):
    layer = nn.ConvTranspose2d(
        2, 3, 3, stride=stride, output_padding=output_padding, dilation=2,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    check(nn.Sequential(layer), (2, 3, 4), tmp_path / "model.npz")


def test_reasons_of_refusals_are_the_true_ones():
    broken = nn.BinaryLinear(3, 2, weight_quantizer="bitnet_ternary")
    broken.weight.data[:] = np.nan
    with pytest.raises(deploy.CompileError, match="some of its weights are NaN"):
        deploy.compile(nn.Sequential(broken), (3,))
    with pytest.raises(deploy.CompileError, match=r"layer model \(Custom\).*features \(N, F\)"):
        deploy.compile(Custom(lambda model, x: model.sign(F.flatten(x, 2))), (64, 1, 3))


def test_what_needs_too_much_memory_is_refused_before_it_is_needed():
    wide = int((MOST_BYTES / 4) ** 0.5)
    message = refused(lambda model, x: F.pad(x.reshape(-1, 1, 2, 3), (wide,) * 4), "MiB")
    assert "layer model (Custom)" in message
    with pytest.raises(ValueError, match=r"(?s)up to 256 MiB"):
        deploy.compile(Custom(lambda model, x: F.pad(x, (wide,) * 4)), (1, 1, 1))


def test_samples_never_meet_pixels():
    refused(lambda model, x: x + np.ones((1, 2, FEATURES), np.float32), "do not broadcast|mixes")


def test_settings_that_json_cannot_hold_come_back_from_a_file(tmp_path):
    model = Custom(lambda model, x: F.clamp(F.pad(x, (1, 1), -np.inf), -np.inf, 2.0))
    packed = deploy.compile(model, (FEATURES,))
    packed.save(tmp_path / "model.npz")
    loaded = deploy.PackedModel.load(tmp_path / "model.npz")
    assert [step.settings for step in loaded.steps] == [step.settings for step in packed.steps] == [
        {"widths": ((0, 0), (1, 1)), "value": -np.inf}, {"low": -np.inf, "high": 2.0},
    ]  # fmt: skip
    loaded.save(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "model.npz").read_bytes()
    assert storage.load(tmp_path / "model.npz", kind="packed-model", version=3)


# --------------------------------------------------------------------------------- thresholds


def test_thresholds_of_a_large_layer_are_found_in_little_memory():
    inputs, outputs = 20_000, 200
    model = nn.Sequential(
        nn.BinaryLinear(inputs, outputs), nn.BatchNorm1d(outputs), nn.BinaryLinear(outputs, 3)
    )
    rng = np.random.default_rng(0)
    model[1].running_mean[:] = rng.normal(0, 200, outputs)
    model[1].weight.data[:] = rng.normal(0, 1, outputs)
    deploy.compile(model, (inputs,))  # kernels are loaded
    tracemalloc.start()
    try:
        packed = deploy.compile(model, (inputs,))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 2 * 4 * inputs * outputs
    assert "threshold" in [step.operation for step in packed.steps]
    deploy.verify(model, packed, batch((inputs,), 5))


@pytest.mark.parametrize("pool", [False, True])
def test_the_size_of_a_block_does_not_matter(pool, monkeypatch):
    """Thresholds of blocks of one integer and of all at once."""
    rng = np.random.default_rng(0)
    norm = nn.BatchNorm2d(12)
    norm.weight.data[:] = [1, -1, 0, 2, -2, 0.5, -0.5, 1e-30, -1e-30, np.nan, 3, -3]
    norm.bias.data[:] = rng.normal(size=12)
    norm.running_mean[:] = rng.integers(-9, 10, 12)
    layers = [nn.BinaryConv2d(3, 12, 3, padding=1, rng=rng), norm, nn.Hardtanh()]
    layers.insert(1, nn.MaxPool2d(2)) if pool else None
    model = nn.Sequential(*layers, nn.BinaryConv2d(12, 2, 1, rng=rng))
    constants = []
    for block in (1, 100, 1 << 20):
        monkeypatch.setattr(Scan, "BLOCK", block)
        packed = deploy.compile(model, (3, 6, 6))
        deploy.verify(model, packed, batch((3, 6, 6)))
        step = next(s for s in packed.steps if s.operation == "threshold")
        constants.append((step.arrays["thresholds"], step.arrays["flip"]))
    for thresholds, flip in constants[1:]:
        assert_identical(thresholds, constants[0][0])
        assert_identical(flip, constants[0][1])


# ------------------------------------------------------------------------- channels in eval mode


@pytest.mark.parametrize("layer", [nn.RSign, nn.RPReLU, nn.Maxout, nn.PReLU, nn.BatchNorm2d])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("channels", [1, 32, 34])
def test_layers_of_other_channels_than_the_image_raise(layer, training, channels):
    x = Tensor(np.ones((2, channels, 3, 3), np.float32))
    with pytest.raises(ValueError, match=r"33"):
        layer(33).train(training)(x)


BINARY = {
    "linear": (lambda **o: nn.BinaryLinear(40, 9, **o), (40,)),
    "conv": (lambda **o: nn.BinaryConv2d(40, 9, 3, **o), (40, 7, 6)),
    "zeros": (lambda **o: nn.BinaryConv2d(40, 9, 3, 2, padding=(1, 2), **o), (40, 7, 6)),
    "ones": (
        lambda **o: nn.BinaryConv2d(40, 9, 3, padding=1, padding_mode="ones", **o),
        (40, 7, 6),
    ),
    "groups": (lambda **o: nn.BinaryConv2d(40, 8, 3, groups=4, padding=1, **o), (40, 7, 6)),
    "depthwise": (lambda **o: nn.BinaryDepthwiseConv2d(40, 3, padding=1, **o), (40, 7, 6)),
}


@pytest.mark.parametrize("name", BINARY)
def test_a_binary_layer_of_real_numbers_stays_one_of_floats(name, tmp_path):
    make, shape = BINARY[name]
    layer = make(input_quantizer=None, rng=np.random.default_rng(0))
    operations = check(layer, shape, tmp_path / "m")
    assert operations == ["pad"] * (name == "ones") + ["linear" if name == "linear" else "conv2d"]


@pytest.mark.parametrize("name", BINARY)
def test_real_numbers_that_happen_to_be_signs_do_not_make_another_program(name, monkeypatch):
    """The compiler also tries inputs that are all -1 or 1; results on words are the same."""
    monkeypatch.setattr(binary, "_SMALL", 0)
    make, shape = BINARY[name]
    layer = make(input_quantizer=None, rng=np.random.default_rng(0))
    model = nn.Sequential(nn.Hardtanh(), layer)
    check(model, shape)
    packed = deploy.compile(model, shape)
    x = np.copysign(np.float32(5), batch(shape))
    assert_identical(packed.predict(x), float_output(model, x))


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("training", [True, False])
def test_the_compiler_lowers_the_function_that_training_runs(name, training):
    make, shape = BINARY[name]
    layer = make(rng=np.random.default_rng(0)).train(training)
    y = layer(Tensor(batch(shape), requires_grad=True))
    assert type(y.function) in (F.SignLinear, F.SignConv2d)
    with trace() as tape:
        layer(Tensor(batch(shape)))
    assert [type(call.function) for call in tape] == [quantizers.Quantize, type(y.function)]
