"""Layers, losses, schedules and optimizers against what PyTorch 2.13 computes.

tests/data/make_torch_layers.py has the tables of cases, and recorded the results.
"""

import ast
import importlib.util
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest

import tinybnn
from tinybnn import Tensor, datasets, deploy, grad, nn, optim
from tinybnn import functional as F
from tinybnn.testing import gradcheck, gradgradcheck

DATA = Path(__file__).parent / "data"
_spec = importlib.util.spec_from_file_location("make_torch_layers", DATA / "make_torch_layers.py")
tables = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tables)


@pytest.fixture(scope="module")
def recorded():
    with np.load(DATA / "torch_layers.npz", allow_pickle=False) as file:
        return dict(file)


def tensor(array):
    return array if array.dtype.kind == "i" else Tensor(array)


@pytest.mark.parametrize("name", tables.CASES)
def test_values_and_gradients(name, recorded):
    function, shape = tables.CASES[name]
    x = Tensor(tables.wave(shape, 0), requires_grad=True)
    y = function(nn, F, x, tensor)
    assert y.dtype == np.float64
    (g,) = grad((y * tables.wave(y.shape, 1)).sum(), [x], create_graph=True)
    (h,) = grad((g * tables.wave(shape, 2)).sum() + (x * x).sum(), [x])
    values = np.concatenate([v.data.ravel() for v in (y, g, h)])
    np.testing.assert_allclose(values, recorded[f"{name}/values"], rtol=1e-6, atol=1e-7)


SMOOTH = [name for name in tables.CASES if "max" not in name]


@pytest.mark.parametrize("name", SMOOTH)
def test_gradients_against_differences(name):
    function, shape = tables.CASES[name]
    inputs = [tables.wave(shape, 0)]
    gradcheck(lambda x: function(nn, F, x, tensor), inputs)
    gradgradcheck(lambda x: function(nn, F, x, tensor), inputs)


@pytest.mark.parametrize(
    "function, shapes",
    [
        (lambda x, w, b: F.group_norm(x, 2, w, b), [(3, 4, 3, 2), (4,), (4,)]),
        (lambda x, w, b: F.layer_norm(x, (2, 3), w, b), [(4, 2, 3), (2, 3), (2, 3)]),
        (lambda p, q: F.kl_div(F.log_softmax(p), F.softmax(q)), [(3, 4), (3, 4)]),
        (lambda x, y: F.smooth_l1_loss(x, y, beta=0.5), [(3, 4), (3, 4)]),
        (lambda x, y: F.l1_loss(x, y), [(3, 4), (3, 4)]),
        (
            lambda x, w: F.conv2d(x, w, padding="same"),
            [(2, 3, 5, 4), (2, 3, 3, 5)],
        ),
    ],
)
def test_gradients_in_all_inputs(function, shapes):
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(shape) for shape in shapes]
    gradcheck(function, inputs)
    gradgradcheck(function, inputs)


def test_labels_that_are_ignored():
    x = Tensor(tables.wave((3, 4), 0))
    expected = F.cross_entropy(x[:2], [1, 3])
    for ignored, labels in ((-100, [1, 3, -100]), (255, np.array([1, 3, 255], np.uint8))):
        loss = F.cross_entropy(x, labels, ignore_index=ignored)
        np.testing.assert_allclose(loss.data, expected.data)
    with pytest.raises(ValueError, match="labels must lie in"):
        F.cross_entropy(x, [1, 7, -100])
    with pytest.raises(ValueError, match="the mean of no samples is undefined"):
        F.nll_loss(x, [-100] * 3)
    with pytest.raises(ValueError, match=r"weight must have the shape \(4,\)"):
        F.cross_entropy(x, [1, 2, 3], weight=np.ones(3))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: F.kl_div(x, x[:1]), "kl_div: input has the shape"),
        (lambda x: F.smooth_l1_loss(x, x, beta=-1.0), "beta must be >= 0"),
        (lambda x: F.l1_loss(x, x, reduction="batchmean"), "l1_loss: reduction must be"),
        (lambda x: F.one_hot([0, 3], 3), "num_classes must be -1 or above the largest label 3"),
        (lambda x: F.one_hot([0.5]), "must hold integers >= 0"),
        (lambda x: F.one_hot([-1]), "must hold integers >= 0"),
        (lambda x: F.gelu(x, "erf"), "approximate must be"),
        (lambda x: F.normalize(x, p=0), "p must be positive"),
        (lambda x: F.group_norm(x, 3), "num_groups must divide the 4 channels"),
        (lambda x: F.group_norm(x, 2, np.ones(3)), r"weight has shape \(3,\)"),
        (lambda x: F.layer_norm(x, (3,)), r"must be normalized_shape \(3,\)"),
        (lambda x: F.layer_norm(x, 4, None, np.ones(3)), r"bias has shape \(3,\), expected"),
        (lambda x: F.dropout2d(x), r"dropout2d: input must have the shape \(N, C, H, W\)"),
        (lambda x: F.interpolate(x, 2), "input must have the shape"),
        (lambda x: F.interpolate(image(x)), "give either size or scale_factor"),
        (lambda x: F.interpolate(image(x), 2, 2), "give either size or scale_factor"),
        (lambda x: F.interpolate(image(x), 2, mode="bicubic"), "'nearest' or 'bilinear'"),
        (lambda x: F.interpolate(image(x), 2, align_corners=True), "belongs to mode='bilinear'"),
        (lambda x: F.interpolate(image(x), scale_factor=0.1), "leaves no pixel"),
        (lambda x: F.interpolate(image(x), 0), "size must be an int or a pair of ints >= 1"),
    ],
)
def test_arguments_that_do_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call(Tensor(tables.wave((3, 4), 0)))


def image(x):
    return x.reshape(1, 1, 3, 4)


def test_one_hot_rows():
    rows = F.one_hot([[2, 0]])
    assert rows.dtype == np.int64 and rows.tolist() == [[[0, 0, 1], [1, 0, 0]]]
    assert F.one_hot(np.array([1]), num_classes=4).tolist() == [[0, 1, 0, 0]]


def test_a_zero_row_has_a_gradient():
    x = Tensor(np.zeros((2, 3)), requires_grad=True)
    F.normalize(x).sum().backward()
    assert np.isfinite(x.grad.data).all()


@pytest.mark.parametrize("name", tables.CASES)
def test_float32_stays_float32(name, recorded):
    function, shape = tables.CASES[name]
    x = Tensor(tables.wave(shape, 0).astype(np.float32))

    def single(array):
        return array if array.dtype.kind == "i" else Tensor(array.astype(np.float32))

    y = function(nn, F, x, single)
    assert y.dtype == np.float32
    expected = recorded[f"{name}/values"][: y.numel()].reshape(y.shape)
    np.testing.assert_allclose(y.data, expected, rtol=2e-5, atol=2e-6)


# ------------------------------------------------------------------------------------- signatures

# Deprecated in PyTorch, about its implementations, or explained in coming_from_pytorch.md.
LEFT_OUT = """
    amsgrad antialias capturable decoupled_weight_decay differentiable foreach fused last_epoch
    maximize multi_avg_fn out recompute_scale_factor reduce size_average dtype
""".split()  # noqa: SIM905
ADDED = {"rng", "decay_latents"}
DIFFERENT = {"nn.Softmax": {"dim": -1}, "nn.LogSoftmax": {"dim": -1}}
ALSO_LEFT_OUT = {"nn.functional.l1_loss": {"weight"}}


def by_name(texts):
    """Arguments as name -> default; the default's source if it is no plain value."""
    defaults = {}
    for text in texts:
        name, _, default = text.partition("=")
        try:
            defaults[name] = ast.literal_eval(default)
        except (SyntaxError, ValueError):
            defaults[name] = default
    return defaults


@pytest.mark.parametrize("name", tables.SIGNATURES)
def test_arguments_and_defaults(name, recorded):
    theirs = by_name(recorded[f"{name}()"].tolist())
    ours = by_name(tables.arguments(attrgetter(name)(tinybnn)))
    for argument in {*LEFT_OUT, *ALSO_LEFT_OUT.get(name, ())}:
        theirs.pop(argument, None)
    if "device" not in ours:
        theirs.pop("device", None)
    assert [argument for argument in ours if argument not in ADDED] == list(theirs)
    theirs |= DIFFERENT.get(name, {})
    assert {argument: ours[argument] for argument in theirs} == theirs


# ----------------------------------------------------------------------- optimizers and schedules


def sgd():
    return optim.SGD([nn.Parameter(np.zeros(1))], lr=0.1, momentum=0.9)


@pytest.mark.parametrize("name", tables.SCHEDULES)
def test_rates_of_schedules(name, recorded):
    optimizer = sgd()
    schedule, rows = tables.SCHEDULES[name](optim, optimizer), []
    for step in range(20):
        rows.append([schedule.get_last_lr()[0], optimizer.param_groups[0]["momentum"]])
        if step < 19:
            schedule.step()
    np.testing.assert_allclose(rows, recorded[f"{name}/rates"], rtol=1e-12)


@pytest.mark.parametrize("name", tables.SCHEDULES)
def test_a_schedule_goes_on_from_its_state(name, recorded):
    optimizer = sgd()
    schedule = tables.SCHEDULES[name](optim, optimizer)
    for _ in range(7):
        schedule.step()
    state = schedule.state_dict()
    other = sgd()
    again = tables.SCHEDULES[name](optim, other)
    again.load_state_dict(state)
    assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    assert other.param_groups[0]["momentum"] == optimizer.param_groups[0]["momentum"]
    again.step()
    np.testing.assert_allclose(again.get_last_lr()[0], recorded[f"{name}/rates"][8][0])


@pytest.mark.parametrize("name", tables.PLATEAUS)
def test_rates_after_a_plateau(name, recorded):
    optimizer = sgd()
    schedule, rates = optim.lr_scheduler.ReduceLROnPlateau(optimizer, **tables.PLATEAUS[name]), []
    for i, metric in enumerate(tables.METRICS):
        if i == 9:  # continue from the state
            state = schedule.state_dict()
            schedule = optim.ReduceLROnPlateau(optimizer, **tables.PLATEAUS[name])
            schedule.load_state_dict(state)
        schedule.step(Tensor(metric) if i % 2 else metric)
        rates.append(schedule.get_last_lr()[0])
    np.testing.assert_allclose(rates, recorded[f"{name}/plateau"], rtol=1e-12)


@pytest.mark.parametrize("name", tables.OPTIMIZERS)
def test_steps_of_optimizers(name, recorded):
    p = nn.Parameter(np.linspace(-1.0, 1.3, 7))
    optimizer, rows = tables.OPTIMIZERS[name](optim, [p]), []
    for step in range(6):
        if step == 3:  # continue from the state
            state = optimizer.state_dict()
            optimizer = tables.OPTIMIZERS[name](optim, [p])
            optimizer.load_state_dict(state)
        p.grad = Tensor(np.sin(5 * p.data))
        optimizer.step()
        rows.append(p.data.copy())
    np.testing.assert_allclose(rows, recorded[f"{name}/steps"], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", [1.0, 2.0, float("inf")])
def test_clipped_norm(kind, recorded):
    parameters = [nn.Parameter(np.zeros(3, np.float32)), nn.Parameter(np.zeros(2, np.float32))]
    parameters[0].grad = Tensor([3.0, -4.0, 1.0])
    parameters[1].grad = Tensor([0.5, 12.0])
    norm = nn.utils.clip_grad_norm_(parameters, 2.0, norm_type=kind)
    clipped = np.concatenate([p.grad.data for p in parameters])
    np.testing.assert_allclose([norm.item(), *clipped], recorded[f"clip {kind}"], rtol=1e-6)


@pytest.mark.parametrize("name", tables.AVERAGES)
def test_averages(name, recorded):
    swa, decay = optim.swa_utils, tables.AVERAGES[name]
    model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1)).to(np.float64)
    average = swa.AveragedModel(model, avg_fn=decay and swa.get_ema_avg_fn(decay))
    for step in range(5):
        model[0].weight.data[...] = np.sin(step + 1.0)
        model[0].bias.data[...] = step
        average.update_parameters(model)
    loader = [(np.arange(4.0)[:, None] ** k, 0) for k in (1, 2, 3)]
    swa.update_bn(loader, average)
    assert average.training and average.module[1].momentum == 0.1
    state = average.state_dict()
    ours = {key: float(value.flat[0]) for key, value in state.items()}
    order = ["n_averaged", "0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean"]
    order += ["1.running_var", "1.num_batches_tracked"]
    values = [ours[key if key == "n_averaged" else f"module.{key}"] for key in order]
    np.testing.assert_allclose(values, recorded[f"{name}/average"], rtol=1e-10)


# ------------------------------------------------------------------------------------------ images


@pytest.mark.parametrize("size", tables.SIZES)
def test_resized_images(size, recorded):
    x, expected = tables.PIXELS, recorded[f"resize/{size}"]
    rng = np.random.default_rng(0)
    floats = datasets.Resize(size)(x.astype(np.float32), rng)
    np.testing.assert_allclose(floats, expected, rtol=1e-4, atol=1e-3)
    assert floats.dtype == np.float32
    whole = datasets.Resize(size)(x, rng)
    assert whole.dtype == np.uint8
    np.testing.assert_allclose(whole, expected, atol=0.501)


# -------------------------------------------------------------------------------- packed networks


class Layer(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        self.function = function

    def forward(self, x):
        return self.function(x)


def network(layer, shape):
    rng = np.random.default_rng(0)
    first = nn.Linear(5, 6, rng=rng)
    if len(shape) == 3:
        first = nn.Conv2d(3, 6, 3, padding="same", rng=rng)
    return nn.Sequential(first, layer).eval()


IMAGES = (3, 4, 6)
PACKED = {
    "gelu": (nn.GELU("tanh"), IMAGES),
    "silu": (nn.SiLU(), IMAGES),
    "relu6": (nn.ReLU6(), IMAGES),
    "group norm": (nn.GroupNorm(3, 6), IMAGES),
    "group norm of rows": (nn.GroupNorm(2, 6), (5,)),
    "layer norm": (nn.LayerNorm((6, 4, 6)), IMAGES),
    "layer norm of rows": (nn.LayerNorm(6), (5,)),
    "nearest": (nn.Upsample(scale_factor=2), IMAGES),
    "bilinear": (nn.Upsample((5, 3), mode="bilinear"), IMAGES),
    "dropout": (nn.Dropout2d(), IMAGES),
    "normalize": (Layer(lambda x: F.normalize(x, dim=(2, 3))), IMAGES),
    "signs between": (
        nn.Sequential(
            nn.Upsample(scale_factor=2), nn.GroupNorm(1, 6),
            nn.BinaryConv2d(6, 4, 3, padding="same"), nn.GroupNorm(2, 4), nn.SiLU(),
        ),
        IMAGES,
    ),
    "a row for the batch": (
        Layer(lambda x: x + Tensor(np.ones((1, 6, 1, 1), np.float32)).expand(x.shape)), IMAGES,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PACKED)
def test_packed_layers_give_the_same_bits(name):
    layer, shape = PACKED[name]
    model = network(layer, shape)
    packed = deploy.compile(model, shape)
    x = np.random.default_rng(1).standard_normal((7, *shape)).astype(np.float32)
    assert deploy.verify(model, packed, x) > 0
    assert deploy.check(model, shape).ok


@pytest.mark.parametrize(
    "layer, shape, message",
    [
        (nn.GELU(), IMAGES, "Erf has no packed form: write gelu with approximate='tanh'"),
        (nn.Softmax(1), (5,), "leave it out at the end of a model"),
        (Layer(F.normalize), (5,), "write F.linear"),
        (Layer(lambda x: F.mse_loss(x, 0.5 * x)), IMAGES, "it mixes the samples"),
        (Layer(lambda x: F.nll_loss(x, np.zeros(len(x), int))), (5,), "selects a single number"),
        (Layer(lambda x: x[:, 0]), (5,), "keep its axis: x"),
    ],
)
def test_layers_without_a_packed_form(layer, shape, message):
    model = network(layer, shape)
    with pytest.raises(deploy.CompileError, match=message):
        deploy.compile(model, shape)
    assert message.split(":")[0] in str(deploy.check(model, shape)).replace("\n", " ")
