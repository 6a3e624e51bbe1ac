"""Packed models equal the float models that they were compiled from, bit for bit."""

import copy
import dataclasses
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinybnn import deploy, nn, storage
from tinybnn import functional as F
from tinybnn.deploy.shapes import infer
from tinybnn.kernels.machine import threads
from tinybnn.kernels.signs import bits, depthwise
from tinybnn.tensor import Tensor, no_grad
from tinybnn.testing import assert_identical

# ------------------------------------------------------------------------------- random networks


def randomize(model, rng, special=()):
    """Set statistics and parameters as after training, with γ of any sign."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            n = module.num_features
            module.weight.data[:] = rng.normal(size=n) * rng.integers(0, 2, n)  # half of them 0
            module.bias.data[:] = rng.normal(size=n) * rng.integers(0, 2, n)
            # Half-integers and integers: accumulators that hit the threshold exactly.
            module.running_mean[:] = rng.integers(-8, 9, n) / 2
            module.running_var[:] = rng.choice([0.25, 1.0, 7.3, 40.0], n)
            for array in (module.weight.data, module.bias.data, module.running_mean):
                if special:
                    array[rng.integers(n)] = rng.choice(special)
        elif isinstance(module, nn.RSign | nn.RPReLU | nn.Maxout | nn.PReLU):
            for parameter in module.parameters():  # slopes of both signs, shifts at ties
                parameter.data[:] = rng.integers(-6, 7, parameter.shape) / 4
        elif isinstance(module, nn.AdaBinConv2d):
            module.input_scale.data[:] = rng.choice([-1.0, 0.3, 1.0, 2.5])
            module.input_offset.data[:] = rng.choice([-0.7, 0.0, 0.1])
        elif isinstance(getattr(module, "scale", None), nn.Parameter):
            module.scale.data[:] = rng.normal(size=module.scale.shape)
    return model


WEIGHT_QUANTIZERS = (
    "ste_sign", "ste_sign", "swish_sign", "magnitude_aware_sign", "ste_tern", "bitnet_ternary",
    "dorefa_weight", None,
)  # fmt: skip


@st.composite
def networks(draw):
    """(model, input_shape): any mix of layers, with sizes that need not be multiples of 64."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    pick = lambda *options: draw(st.sampled_from(options))  # noqa: E731
    layers = []
    all_binary = draw(st.booleans())  # otherwise real layers and all kinds of estimators as well

    def binary_settings():
        if all_binary:
            return {"bias": draw(st.booleans()), "scale": pick(None, "mean", "learned"), "rng": rng}
        return {
            "bias": draw(st.booleans()),
            "scale": pick(None, "mean", "learned"),
            "input_quantizer": pick("ste_sign", "ste_sign", "approx_sign", None),
            "weight_quantizer": pick(*WEIGHT_QUANTIZERS),
            "rng": rng,
        }

    def between(norm, pool=None):
        """Batch norm, optionally with activation and pooling, in either order."""
        middle = [norm]
        if pool is not None:
            middle.insert(draw(st.integers(0, 1)), pool)
        channels = norm.num_features
        activation = pick(None, nn.Hardtanh()) if all_binary else pick(
            None, None, nn.Hardtanh(), nn.ReLU(), nn.Tanh(), nn.Quantize(), nn.LeakyReLU(0.1),
            nn.Softplus(), nn.PReLU(), nn.RSign(channels), nn.RPReLU(channels), nn.Maxout(channels),
        )  # fmt: skip
        if activation is not None:
            middle.insert(draw(st.integers(0, len(middle))), activation)
        if draw(st.booleans()):
            middle.append(nn.Dropout(0.5))
        return middle

    if draw(st.booleans()):  # a convolutional part
        channels, height, width = pick(1, 3, 8), draw(st.integers(4, 9)), draw(st.integers(4, 9))
        input_shape = (channels, height, width)
        for _ in range(draw(st.integers(1, 3))):
            groups = pick(1, 1, 1, channels)
            outputs = groups * pick(1, 2, 5) if groups > 1 else pick(3, 16, 70)
            geometry = {
                "kernel_size": (pick(1, 2, 3), pick(1, 3)),
                "stride": pick(1, 1, 2),
                "padding": pick(0, 1, (0, 1)),
                "dilation": pick(1, 1, 2),
                "groups": groups,
            }
            kind = nn.BinaryConv2d
            if not all_binary:
                kind = pick(nn.BinaryConv2d, nn.Conv2d, nn.AdaBinConv2d)
            settings = {"rng": rng}
            if kind is nn.BinaryConv2d:
                settings = binary_settings() | {"padding_mode": pick("zeros", "ones")}
            layer = kind(channels, outputs, **geometry, **settings)
            probe = Tensor(np.zeros((1, channels, height, width), np.float32))
            try:
                shape = layer.eval()(probe).shape
            except ValueError:  # the kernel does not fit
                continue
            (_, channels, height, width) = shape
            pool = None
            if min(height, width) >= 3:
                kind = pick(None, nn.MaxPool2d, nn.MaxPool2d if all_binary else nn.AvgPool2d)
                options = pick((2, 2, 0), (2, 1, 0), (3, 2, 1), ((2, 3), 2, (1, 0)))
                pool = None if kind is None else kind(*options)
            layers += [layer, *between(nn.BatchNorm2d(channels), pool)]
            if pool is not None:
                _, _, height, width = pool(Tensor(np.zeros(shape, np.float32))).shape
        if min(height, width) > 1 and not all_binary and draw(st.booleans()):
            layers.append(nn.ConvTranspose2d(channels, 4, 2, stride=2, padding=1, rng=rng))
            channels, height, width = 4, 2 * height - 2, 2 * width - 2
        if not all_binary and draw(st.booleans()):
            layers.append(nn.AdaptiveAvgPool2d(1))
            height = width = 1
        layers.append(nn.Flatten())
        features = channels * height * width
    else:
        features = draw(st.integers(1, 130))
        input_shape = (features,)
    for _ in range(draw(st.integers(1, 2))):
        outputs = draw(st.integers(1, 70))
        if all_binary or draw(st.booleans()):
            layer = nn.BinaryLinear(features, outputs, **binary_settings())
        else:
            layer = nn.Linear(features, outputs, rng=rng)
        layers += [layer, *between(nn.BatchNorm1d(outputs))]
        features = outputs
    return randomize(nn.Sequential(*layers), rng).eval(), input_shape


def inputs(rng, n, shape):
    """Floats, including zeros of both signs."""
    x = rng.standard_normal((n, *shape)).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = 0.0
    x[rng.random(x.shape) < 0.1] = -0.0
    return x


def float_output(model, x):
    with no_grad():
        return model(Tensor(x)).data


@given(networks(), st.integers(0, 2**32 - 1))
def test_random_networks_compile_to_identical_outputs(network, seed):
    model, shape = network
    rng = np.random.default_rng(seed)
    packed = deploy.compile(model, shape)
    x = inputs(rng, 5, shape)
    assert deploy.verify(model, packed, x) > 0
    logits = packed.predict(x)
    assert_identical(logits, float_output(model, x))
    # One sample at a time, in blocks, and on one thread: the same bits.
    assert_identical(packed.predict(x, batch_size=1), logits)
    assert_identical(float_output(model, x[2:3]), logits[2:3])
    with threads.num_threads(1):
        assert_identical(packed.predict(x, batch_size=3), logits)


@given(networks())
def test_save_and_load_keep_the_outputs(tmp_path_factory, network):
    model, shape = network
    path = tmp_path_factory.mktemp("packed") / "model.npz"
    packed = deploy.compile(model, shape)
    x = inputs(np.random.default_rng(0), 3, shape)
    expected = packed.predict(x)
    packed.save(path)
    loaded = deploy.PackedModel.load(path)
    assert_identical(loaded.predict(x), expected)
    assert loaded.nbytes == packed.nbytes
    assert deploy.verify(model, loaded, x) > 0


def test_equal_arrays_are_stored_once(tmp_path):
    """AdaBin multiplies the same weights with signs and with ones: Σ s v and Σ v."""
    rng = np.random.default_rng(0)
    layer = nn.AdaBinConv2d(70, 8, 3, padding=1, rng=rng)
    packed = deploy.compile(nn.Sequential(layer).eval(), (70, 5, 5))
    weights = 8 * 9 * 9 + 1 * 9 * 9  # 70 bits of a tap take 9 bytes; and one filter of ones
    floats = 4 * (8 + 8 + 1 + 1)  # α_w and β_w of the filters, α_a, β_a
    assert packed.nbytes == weights + floats
    x = inputs(rng, 3, (70, 5, 5))
    expected = packed.predict(x)
    packed.save(tmp_path / "model.npz")
    # A file of version 1: each array under the name of its step.
    arrays, metadata = packed._stored()
    own = {
        f"{i}.{name}": arrays[key]
        for i, entry in enumerate(metadata["steps"]) for name, key in entry["arrays"].items()
    }  # fmt: skip
    assert len(own) > len(arrays)
    steps = [{**entry, "arrays": [*entry["arrays"]]} for entry in metadata["steps"]]
    storage.save(
        tmp_path / "old.npz", own, kind=deploy.PackedModel.KIND, version=1,
        metadata={**metadata, "steps": steps},
    )  # fmt: skip
    for name in ("model.npz", "old.npz"):
        loaded = deploy.PackedModel.load(tmp_path / name)
        assert_identical(loaded.predict(x), expected)
        assert loaded.nbytes == packed.nbytes


@given(networks(), st.integers(0, 2**32 - 1))
def test_nan_and_infinite_parameters(network, seed):
    """Both paths give the same result even for invalid statistics."""
    model, shape = network
    rng = np.random.default_rng(seed)
    randomize(model, rng, special=(np.nan, np.inf, -np.inf, -0.0, 3e38, 1e-45))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        packed = deploy.compile(model, shape)
        deploy.verify(model, packed, inputs(rng, 4, shape))


@given(networks(), st.integers(0, 2**32 - 1))
def test_random_networks_take_packed_inputs_or_say_why_not(network, seed):
    model, shape = network
    packed = deploy.compile(model, shape)
    x = inputs(np.random.default_rng(seed), 5, shape)
    words = bits.pack(x.transpose(0, 2, 3, 1) if x.ndim == 4 else x)
    readers = {step.operation for step in packed.steps if -1 in step.inputs}
    if readers == {"pack"}:
        logits = packed.predict(x)
        assert_identical(packed.predict_packed(words), logits)
        out = np.empty_like(logits)
        assert packed.predict_packed(words, batch_size=2, out=out, threads=1) is out
        assert_identical(out, logits)
        assert_identical(packed.predict(x), logits)  # the calls in between use the same memory
    else:
        with pytest.raises(ValueError, match=r"predict_packed: .* reads the input as floats"):
            packed.predict_packed(words)


# ------------------------------------------------------------------------- thresholds, one by one


def binary_layer_with(norm, bits=7):
    """Signs -> sums of `bits` ±1 -> norm -> sign -> sum: small enough to try every input."""
    model = nn.Sequential(
        nn.BinaryLinear(bits, norm.num_features),
        norm,
        nn.BinaryLinear(norm.num_features, 3),
    ).eval()
    every = np.arange(2**bits)[:, None] >> np.arange(bits) & 1
    return model, (2.0 * every - 1).astype(np.float32)


@pytest.mark.parametrize("gamma", [-1.5, -1e-30, -0.0, 0.0, 1e-30, 2.0])
@pytest.mark.parametrize("beta", [-1.0, -0.0, 0.0, 0.5])
@pytest.mark.parametrize("mean", [-9.0, -3.0, 0.0, 1.0, 2.0, 9.0])
def test_thresholds_at_ties(gamma, beta, mean):
    norm = nn.BatchNorm1d(20)
    norm.weight.data[:] = gamma
    norm.bias.data[:] = beta
    norm.running_mean[:] = mean
    model, x = binary_layer_with(norm)
    packed = deploy.compile(model, (7,))
    deploy.verify(model, packed, x)
    assert [s.operation for s in packed.steps][:3] == ["pack", "xnor_linear", "threshold"]


def test_a_batch_norm_with_a_nan_gives_minus_one():
    norm = nn.BatchNorm1d(4)
    norm.weight.data[:2] = np.nan
    model, x = binary_layer_with(norm)
    packed = deploy.compile(model, (7,))
    step = next(s for s in packed.steps if s.operation == "threshold")
    *_, (_, words) = [(s, v) for s, v in packed.run(x) if s is step]
    assert np.all(words & np.uint64(0b0011) == 0)
    deploy.verify(model, packed, x)


def test_thresholds_are_found_by_the_float_function_itself():
    """For this γ/σ, exact and float32 threshold differ: algebra would be off by one."""
    rng = np.random.default_rng(0)
    norm = nn.BatchNorm1d(512)
    norm.weight.data[:] = rng.normal(size=512)
    norm.bias.data[:] = norm.weight.data * rng.integers(-5, 6, 512) / np.float32(3)
    norm.running_var[:] = np.float32(1 / 9)
    model, x = binary_layer_with(norm, bits=9)
    deploy.verify(model, deploy.compile(model, (9,)), x)


# ------------------------------------------------------------------------------------ the program


def cnn(**settings):
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8),
        nn.BinaryConv2d(8, 70, 3, padding=1, **settings),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(70),
        nn.Flatten(),
        nn.BinaryLinear(70 * 9, 10),
        nn.BatchNorm1d(10),
    ).eval()


@pytest.mark.parametrize("padding_mode", ["zeros", "ones"])
def test_binary_layers_run_on_bits_without_a_float_between(padding_mode):
    packed = deploy.compile(cnn(padding_mode=padding_mode), (1, 8, 8))
    assert [s.operation for s in packed.steps] == [
        "conv2d", "add", "affine",
        "pack", "xnor_conv2d", "threshold", "max_pool_bits", "flatten_bits", "xnor_linear",
        "to_float", "affine",
    ]  # fmt: skip


def test_the_plan_writes_no_sums_of_layers_that_end_in_signs():
    packed = deploy.compile(cnn(), (1, 8, 8))
    x = inputs(np.random.default_rng(0), 2, (1, 8, 8))
    assert [step.operation for step, _ in packed.run_plan(x)] == [
        "pack", "threshold", "max_pool_bits", "flatten_bits", "affine",
    ]  # fmt: skip


@pytest.mark.parametrize("padding_mode", ["zeros", "ones"])
def test_depthwise_layers_run_on_bit_planes(padding_mode, monkeypatch):
    rng = np.random.default_rng(0)
    geometry = {"padding": 1, "padding_mode": padding_mode, "rng": rng}
    model = nn.Sequential(
        nn.BinaryConv2d(70, 70, 3, groups=70, **geometry), nn.BatchNorm2d(70),
        nn.BinaryConv2d(70, 70, (5, 3), groups=70, stride=2, **geometry),
    )  # fmt: skip
    randomize(model, rng).eval()
    packed = deploy.compile(model, (70, 9, 7))
    deploy.verify(model, packed, inputs(rng, 3, (70, 9, 7)))
    monkeypatch.setattr(depthwise, "conv2d_bits", None)
    with pytest.raises(TypeError):
        packed.predict(inputs(rng, 1, (70, 9, 7)))


def test_verify_holds_the_plan_against_the_model_too():
    model = cnn()
    packed = deploy.compile(model, (1, 8, 8))
    broken = next(task for task in packed.tasks if task.covers == (7,))
    index = packed.tasks.index(broken)
    packed.tasks[index] = dataclasses.replace(broken, function=lambda x: ~broken.function(x))
    with pytest.raises(AssertionError, match=r"verify: .* \(flatten_bits\) differs"):
        deploy.verify(model, packed, inputs(np.random.default_rng(0), 2, (1, 8, 8)))


def test_packed_bytes_are_the_bits_that_the_weights_have():
    packed = deploy.compile(randomize(cnn(), np.random.default_rng(0)), (1, 8, 8))
    stored = {f"{i}.{n}": a for i, s in enumerate(packed.steps) for n, a in s.arrays.items()}
    weight_bytes = 70 * 9 * 1 + 10 * 9 * 9  # 8 bits a tap; 70 bits a pixel take 9 bytes
    floats = 4 * (8 * 9 + 8 + 2 * 8 + 2 * 10)
    thresholds = 70 * (1 + 1 + 1)  # int8, flip, minimum
    assert packed.nbytes == weight_bytes + floats + thresholds
    assert len(stored) == sum(len(s.arrays) for s in packed.steps)


def test_ternary_weights_take_two_planes_of_bits():
    rng = np.random.default_rng(0)
    layer = nn.BinaryConv2d(70, 8, 3, padding=1, weight_quantizer="ste_tern", rng=rng)
    model = nn.Sequential(layer).eval()
    assert set(np.unique(layer.binary_weight())) == {-1.0, 0.0, 1.0}
    packed = deploy.compile(model, (70, 5, 5))
    assert [s.operation for s in packed.steps] == ["pack", "ternary_conv2d", "to_float"]
    assert packed.nbytes == 2 * 8 * 9 * 9
    deploy.verify(model, packed, inputs(rng, 3, (70, 5, 5)))


def test_batch_norm_and_rsign_become_thresholds():
    rng = np.random.default_rng(0)
    model = nn.Sequential(
        nn.BinaryLinear(9, 70), nn.BatchNorm1d(70), nn.RPReLU(70), nn.RSign(70),
        nn.BinaryLinear(70, 3, input_quantizer=None),
    )  # fmt: skip
    model[2].weight.data[:] = 0.25
    model[3].threshold.data[:] = rng.normal(size=70)
    packed = deploy.compile(model.eval(), (9,))
    assert [s.operation for s in packed.steps] == [
        "pack", "xnor_linear", "threshold", "xnor_linear", "to_float"
    ]  # fmt: skip
    deploy.verify(model, packed, inputs(rng, 50, (9,)))


def test_adabin_runs_on_bits():
    """Four integer sums; those independent of the image are computed once for one sample."""
    rng = np.random.default_rng(0)
    model = nn.Sequential(nn.AdaBinConv2d(64, 32, 3, padding=1, rng=rng)).eval()
    packed = deploy.compile(model, (64, 6, 6))
    operations = [s.operation for s in packed.steps]
    assert operations.count("xnor_conv2d") == 4
    assert "conv2d" not in operations
    deploy.verify(model, packed, inputs(rng, 3, (64, 6, 6)))
    floats = 4 * (2 * 32 * 2 + 4)  # scale and offset of each filter, twice; three of the input
    assert packed.nbytes <= 2 * (32 * 9 * 8 + 9 * 8) + floats


@pytest.mark.parametrize("quantizer", ["ste_tern", "ste_heaviside", "dorefa_activation"])
def test_inputs_that_are_no_signs_are_refused(quantizer):
    model = nn.Sequential(nn.BinaryLinear(9, 4, input_quantizer=quantizer))
    with pytest.raises(deploy.CompileError, match=r"0 \(BinaryLinear\).*does not return signs"):
        deploy.compile(model, (9,))


def test_signs_of_a_layer_with_real_inputs_are_stored_as_bits(tmp_path):
    model = nn.Sequential(nn.BinaryLinear(100, 50, input_quantizer=None)).eval()
    packed = deploy.compile(model, (100,))
    assert packed.nbytes == 50 * 13
    packed.save(tmp_path / "m")
    x = inputs(np.random.default_rng(0), 4, (100,))
    assert_identical(deploy.PackedModel.load(tmp_path / "m").predict(x), float_output(model, x))


class Residual(nn.Module):
    """A custom forward method: two paths, added and concatenated."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.first = nn.BinaryConv2d(4, 4, 3, padding=1, rng=rng)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.BinaryConv2d(8, 5, 3, rng=rng)

    def forward(self, x):
        y = F.relu(self.norm(self.first(x))) + x
        y = F.cat([y, 2.0 - x / 3.0], dim=1)
        return F.avg_pool2d(self.second(y), 2).reshape(x.shape[0], -1)


def test_models_are_traced_whatever_their_forward_method():
    model = randomize(Residual(), np.random.default_rng(1)).eval()
    packed = deploy.compile(model, (4, 6, 7))
    x = inputs(np.random.default_rng(2), 9, (4, 6, 7))
    deploy.verify(model, packed, x)
    assert_identical(packed.predict(x, batch_size=2), float_output(model, x))


def test_a_value_with_two_readers_is_given_in_both_forms():
    class Both(nn.Module):
        def __init__(self):
            self.a, self.b = nn.BinaryLinear(9, 6), nn.BinaryLinear(6, 6)
            self.norm = nn.BatchNorm1d(6)

        def forward(self, x):
            y = self.norm(self.a(x))
            return self.b(y) + y  # as a sign and as a float

    model = randomize(Both(), np.random.default_rng(1)).eval()
    packed = deploy.compile(model, (9,))
    x = inputs(np.random.default_rng(2), 9, (9,))
    deploy.verify(model, packed, x)
    assert_identical(packed.predict(x), float_output(model, x))


def test_compile_leaves_the_model_as_it_was():
    model = cnn().train()
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    deploy.compile(model, (1, 8, 8))
    assert [m.training for m in model] == [True, False, *[True] * 6]
    for name, array in model.state_dict().items():
        assert_identical(array, before[name])


# ---------------------------------------------------------------------------------------- refusals


def test_what_has_no_packed_form_is_named():
    class Softmax(nn.Module):
        def forward(self, x):
            return F.softmax(x, dim=1)

    model = nn.Sequential(nn.BinaryLinear(9, 4), Softmax())
    with pytest.raises(deploy.CompileError, match=r"layer 1 \(Softmax\): LogSoftmax"):
        deploy.compile(model, (9,))


def test_float_sums_without_a_fixed_order_are_refused():
    class Functional(nn.Module):
        def __init__(self):
            self.weight = nn.Parameter(np.ones((3, 9), np.float32) / 3)

        def forward(self, x):
            return F.linear(x, self.weight)

    with pytest.raises(deploy.CompileError, match="fixed_order"):
        deploy.compile(Functional(), (9,))


def test_mixing_samples_is_refused():
    class Centre(nn.Module):
        def forward(self, x):
            return x - x.mean(0)

    with pytest.raises(deploy.CompileError, match="mixes the samples"):
        deploy.compile(nn.Sequential(Centre()), (9,))


def test_float64_models_are_refused():
    with pytest.raises(deploy.CompileError, match=r"0\.weight is float64"):
        deploy.compile(nn.Sequential(nn.Linear(3, 2)).to(np.float64), (3,))


@pytest.mark.parametrize(
    "x", [np.zeros((2, 1, 8, 7), np.float32), np.zeros((2, 1, 8, 8)), np.float32(3)]
)
def test_wrong_input_is_refused(x):
    packed = deploy.compile(cnn(), (1, 8, 8))
    with pytest.raises(ValueError, match=r"float32 of shape \(N, 1, 8, 8\), got"):
        packed.predict(x)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (np.zeros((2, 3), np.int64), r"must be uint64 of shape \(N, 3\), got int64"),
        (np.zeros((2, 2), np.uint64), r"of shape \(N, 3\), got uint64 of shape \(2, 2\)"),
        (np.zeros(3, np.uint64), r"got uint64 of shape \(3,\)"),
        (np.full((2, 3), 2**63, np.uint64), "bits set after the 130 of a row"),
    ],
)
def test_wrong_packed_input_is_refused(words, message):
    packed = deploy.compile(nn.Sequential(nn.BinaryLinear(130, 4)).eval(), (130,))
    with pytest.raises(ValueError, match=message):
        packed.predict_packed(words)


def test_the_sign_of_signs_is_no_step():
    """A model that ends in signs, and another that starts with the sign of its input."""
    rng = np.random.default_rng(0)
    first = [nn.BinaryLinear(20, 30, rng=rng), nn.BatchNorm1d(30), nn.Quantize()]
    second = [nn.BinaryLinear(30, 7, rng=rng), nn.BatchNorm1d(7)]
    model = nn.Sequential(*first, *second)
    packed = deploy.compile(randomize(model, rng).eval(), (20,))
    assert [s.operation for s in packed.steps] == [
        "pack", "xnor_linear", "threshold", "xnor_linear", "to_float", "affine",
    ]  # fmt: skip
    deploy.verify(model, packed, inputs(rng, 5, (20,)))
    ending = nn.Sequential(*first, nn.Quantize("approx_sign"))
    packed = deploy.compile(ending, (20,))
    deploy.verify(ending, packed, inputs(rng, 5, (20,)))
    assert [s.operation for s in packed.steps] == ["pack", "xnor_linear", "threshold", "unpack"]


def test_an_empty_batch_gives_an_empty_result():
    packed = deploy.compile(cnn(), (1, 8, 8))
    assert packed.predict(np.zeros((0, 1, 8, 8), np.float32)).shape == (0, 10)


def test_verify_names_the_first_layer_that_differs():
    model = cnn()
    packed = deploy.compile(model, (1, 8, 8))
    step = next(s for s in packed.steps if s.operation == "xnor_conv2d")
    step.arrays["weight"][3, 1, 1, 0] ^= np.uint64(1)  # one bit of one weight
    x = inputs(np.random.default_rng(0), 4, (1, 8, 8))
    with pytest.raises(AssertionError, match=r"verify: 2 \(BinaryConv2d\) \(xnor_conv2d\) differs"):
        deploy.verify(model, packed, x)


def test_a_file_of_another_kind_or_with_nonsense_is_refused(tmp_path):
    path = tmp_path / "model"
    kind, version = deploy.PackedModel.KIND, deploy.PackedModel.VERSION
    storage.save(path, {"a": np.zeros(3)}, kind="checkpoint", version=1)
    with pytest.raises(storage.StorageError):
        deploy.PackedModel.load(path)
    packed = deploy.compile(cnn(), (1, 8, 8))
    arrays, metadata = packed._stored()
    step = metadata["steps"][4]
    for damage in (
        {"operation": "eval"},
        {"operation": "__class__"},
        {"inputs": [9]},
        {"inputs": ["x"]},
        {"settings": {"channels": 8}},
        {"arrays": ["nothing"]},
        {"more": 1},
    ):
        steps = [*metadata["steps"][:4], {**step, **damage}, *metadata["steps"][5:]]
        storage.save(
            path, arrays, kind=kind, version=version, metadata={**metadata, "steps": steps}
        )
        with pytest.raises(storage.StorageError, match="not a valid packed model"):
            deploy.PackedModel.load(path)


@given(networks())
def test_shapes_of_a_program_are_known_without_running_it(network):
    model, shape = network
    packed = deploy.compile(model, shape)
    inferred = infer(shape, packed.steps)
    x = inputs(np.random.default_rng(0), 2, shape)
    for value, (step, result) in zip(inferred, packed.run(x), strict=True):
        channels, *pixels = value.shape
        expected = (channels, *pixels) if value.kind == "floats" else (*pixels, channels)
        if value.kind == "bits":
            expected = (*pixels, -(-channels // 64))
        elif value.kind == "bits of a flattened image":
            expected = (pixels[0] * pixels[1] * -(-channels // 64),)
        assert result.shape == (1 if value.single else 2, *expected), step
