"""x / sqrt(K) + bias in the place of a batch norm: floats, gradients, thresholds, files."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinybnn import deploy, models, nn
from tinybnn import functional as F
from tinybnn.models.blocks import NORMS
from tinybnn.tensor import Tensor
from tinybnn.testing import assert_identical, gradcheck, gradgradcheck

seeds = st.integers(0, 2**32 - 1)
fan_ins = st.integers(1, 400)


def reference(x, fan_in, bias):
    """The formula in plain NumPy, one operation after the other, in float32."""
    bias = bias.reshape(1, -1, *(1,) * (x.ndim - 2))
    return x / np.float32(np.sqrt(np.float64(fan_in))) + bias


def shifts(fan_in, count, rng):
    """Biases at which x / sqrt(K) + bias is 0 or next to 0 for a sum x, and any others."""
    sums = rng.integers(-fan_in, fan_in + 1, count).astype(np.float32)
    tied = -sums / np.float32(np.sqrt(fan_in))
    beside = np.nextafter(tied, rng.choice(np.float32([-9, 9]), count))
    drawn = rng.normal(0, 2, count).astype(np.float32)
    special = rng.choice(np.float32([0.0, -0.0, 1e30, -1e30, np.inf, -np.inf, np.nan]), count)
    return np.choose(rng.integers(0, 4, count), [tied, beside, drawn, special])


def with_shifts(model, rng):
    for layer in model.modules():
        if isinstance(layer, nn.FanInScale) and layer.bias is not None:
            layer.bias.data[:] = shifts(layer.fan_in, layer.num_features, rng)
    return model.eval()


# ------------------------------------------------------------------------------- floats, gradients


@given(fan_ins, seeds, st.sampled_from([(), (3, 2)]))
def test_values_that_differ_from_the_formula(fan_in, seed, pixels):
    rng = np.random.default_rng(seed)
    x = rng.integers(-fan_in, fan_in + 1, (4, 5, *pixels)).astype(np.float32)
    layer = nn.FanInScale(5, fan_in)
    layer.bias.data[:] = bias = shifts(fan_in, 5, rng)
    with np.errstate(invalid="ignore"):
        assert_identical(layer(Tensor(x)).data, reference(x, fan_in, bias))
        assert_identical(layer.eval()(Tensor(x)).data, reference(x, fan_in, bias))
    plain = nn.FanInScale(5, fan_in, bias=False)
    assert_identical(plain(Tensor(x)).data, x / np.float32(np.sqrt(fan_in)))


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 2, 2)])
def test_gradients(shape):
    rng = np.random.default_rng(0)
    x, bias = rng.standard_normal(shape), rng.standard_normal(3)
    for check in (gradcheck, gradgradcheck):
        check(lambda x, b: F.fan_in_scale(x, 7, b) ** 2, [x, bias])
    x = Tensor(np.ones(shape, np.float32), requires_grad=True)
    layer = nn.FanInScale(3, 16)
    layer(x).sum().backward()
    assert_identical(x.grad.data, np.full(shape, 0.25, np.float32))
    assert_identical(layer.bias.grad.data, np.full(3, x.numel() / 3, np.float32))


def test_a_sum_of_signs_gets_variance_one():
    rng = np.random.default_rng(0)
    for fan_in in (20, 784):
        layer = nn.BinaryLinear(fan_in, 200, rng=rng)
        x = Tensor(rng.choice(np.float32([-1, 1]), (200, fan_in)))
        assert abs(nn.FanInScale(200, fan_in)(layer(x)).data.var() - 1) < 0.1


def test_wrong_arguments():
    x = np.ones((2, 3), np.float32)
    for call, message in (
        (lambda: nn.FanInScale(0, 4), "num_features must be an int >= 1, got 0"),
        (lambda: nn.FanInScale(3, 0.5), "fan_in must be an int >= 1, got 0.5"),
        (lambda: nn.FanInScale(4, 9)(Tensor(x)), r"FanInScale: x must have the shape \(N, 4, "),
        (lambda: F.fan_in_scale(x, 0), "fan_in must be an int >= 1, got 0"),
        (lambda: F.fan_in_scale(x, 4, x[0, :2]), r"bias has shape \(2,\), x has 3 channels"),
        (lambda: F.fan_in_scale(x[0], 4), r"x must have the shape \(N, C, ...\), got \(3,\)"),
        (lambda: models.mlp(8, norm="group"), "norm must be one of batch, layer, none, got 'group"),
        (lambda: models.BinaryMLP(norm=None), "norm must be one of batch, layer, none, got None"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


# ------------------------------------------------------------------------------------ packed models


@given(fan_ins, seeds)
def test_a_threshold_that_rounds_otherwise_than_the_floats(fan_in, seed):
    """Every sum that K signs can have, at biases where the quotient is next to 0."""
    rng = np.random.default_rng(seed)
    model = nn.Sequential(
        nn.BinaryLinear(fan_in, 6, rng=rng), nn.FanInScale(6, fan_in), nn.Quantize("ste_sign")
    )
    with_shifts(model, rng)
    model[0].weight.data[:] = 1
    packed = deploy.compile(model, (fan_in,))
    assert [step.operation for step in packed.steps[:3]] == ["pack", "xnor_linear", "threshold"]
    x = np.where(np.arange(fan_in) < np.arange(fan_in + 1)[:, None], 1, -1).astype(np.float32)
    sums = x.sum(1, keepdims=True) * np.ones((1, 6), np.float32)
    with np.errstate(invalid="ignore"):
        expected = np.where(reference(sums, fan_in, model[1].bias.data) >= 0, 1, -1)
    assert_identical(packed.predict(x), expected.astype(np.float32))
    assert_identical(packed.predict(x), model(Tensor(x)).data)


@given(seeds, st.sampled_from(["mlp", "BinaryMLP", "cnn", "grouped"]))
def test_a_packed_network_that_differs_in_a_bit(seed, kind):
    rng = np.random.default_rng(seed)
    shape, pad = ((3, 6, 6), int(rng.integers(0, 2)))
    if kind == "mlp":
        shape = (70,)
        model = models.mlp(70, (65, 8), 3, norm="none", rng=rng)
    elif kind == "BinaryMLP":
        shape = (70,)
        model = models.BinaryMLP(70, (9, 64), 3, norm="none", rng=rng)
    else:
        groups = 4 if kind == "grouped" else 1
        size = 3 + pad  # pooled 3×3 convolutions of 6×6 pixels
        model = nn.Sequential(
            nn.BinaryConv2d(3, 8, 3, padding=1, rng=rng), nn.FanInScale(8, 27), nn.MaxPool2d(2),
            nn.BinaryConv2d(8, 8, 2, padding=pad, groups=groups, rng=rng),
            nn.FanInScale(8, 4 * 8 // groups), nn.Flatten(),
            nn.BinaryLinear(8 * (size - 1 + pad) ** 2, 4, rng=rng), nn.FanInScale(4, 50),
        )  # fmt: skip
    with_shifts(model, rng)
    with np.errstate(invalid="ignore"):
        packed = deploy.compile(model, shape)
        x = rng.standard_normal((20, *shape), np.float32)
        assert deploy.verify(model, packed, x) > 0
        assert_identical(packed.predict(x), model(Tensor(x)).data)
    operations = [step.operation for step in packed.steps]
    assert operations[-3:] == ["to_float", "div", "add"]  # all before are bits and integers
    assert not {"div", "add", "to_float"} & set(operations[:-3])


def test_a_file_that_gives_other_scores(tmp_path):
    rng = np.random.default_rng(0)
    model = models.mlp(70, (65,), 3, norm="none", rng=rng)
    for layer in (model[2], model[4]):
        layer.bias.data[:] = rng.standard_normal(layer.num_features)
    packed = deploy.compile(model.eval(), (70,))
    packed.save(tmp_path / "m.npz")
    x = rng.standard_normal((20, 70), np.float32)
    loaded = deploy.PackedModel.load(tmp_path / "m.npz")
    assert_identical(loaded.predict(x), model(Tensor(x)).data)
    trained = deploy.compile(models.mlp(70, (65,), 3, rng=rng).eval(), (70,))
    assert packed.nbytes < trained.nbytes  # two floats a class less


@pytest.mark.parametrize("build", [models.mlp, models.BinaryMLP])
def test_layer_norm_on_hidden_sums_is_packed_too(build):
    """Its statistics are those of a sample, so that no threshold absorbs it: it stays floats."""
    rng = np.random.default_rng(0)
    model = build(70, (65, 9), 3, norm="layer", rng=rng)
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    assert [m.normalized_shape for m in norms] == [(65,), (9,)]
    for norm in norms:
        norm.bias.data[:] = rng.standard_normal(norm.normalized_shape)
    packed = deploy.compile(model.eval(), (70,))
    x = rng.standard_normal((30, 70), np.float32)
    assert deploy.verify(model, packed, x) > 0
    assert_identical(packed.predict(x), model(Tensor(x)).data)
    assert "threshold" not in [step.operation for step in packed.steps]


@pytest.mark.parametrize("build", [models.mlp, models.BinaryMLP])
def test_a_norm_changes_the_first_weights(build):
    """The same generator gives the same weights, whatever follows them."""
    made = [build(20, (9,), 3, norm=n, rng=np.random.default_rng(0)) for n in NORMS]
    for one in made[1:]:
        for a, b in zip(made[0].modules(), one.modules(), strict=True):
            if isinstance(a, nn.BinaryLinear):
                assert_identical(a.weight.data, b.weight.data)
    state = made[NORMS.index("none")].state_dict()
    floats = [name for name in state if not name.endswith("weight")]
    assert [state[name].shape for name in floats] == [(9,), (3,)]  # one a unit
