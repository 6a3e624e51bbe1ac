"""Containers of modules and parameters, initial values, and gradients taken together."""

from collections import OrderedDict

import numpy as np
import pytest

from tinybnn import Tensor, nn, no_grad
from tinybnn.testing import assert_identical


def linear(seed=0):
    return nn.Linear(3, 3, rng=np.random.default_rng(seed))


# --------------------------------------------------------------------------------------- containers


def test_modules_by_name():
    model = nn.ModuleDict({"conv": nn.Conv2d(1, 2, 3), "pool": nn.MaxPool2d(2)})
    model["linear"] = linear()
    model.update([("relu", nn.ReLU())])
    assert list(model) == model.keys() == ["conv", "pool", "linear", "relu"]
    assert len(model) == 4 and "pool" in model and "conv.weight" not in model
    assert [type(m) for m in model.values()] == [nn.Conv2d, nn.MaxPool2d, nn.Linear, nn.ReLU]
    assert {name.split(".")[0] for name in model.state_dict()} == {"conv", "linear"}
    taken = model.pop("conv")
    assert isinstance(taken, nn.Conv2d) and "conv" not in model
    del model["relu"]
    model["pool"] = nn.AvgPool2d(2)
    assert isinstance(model["pool"], nn.AvgPool2d)
    model.clear()
    assert len(model) == 0 and model.parameters() == []


@pytest.mark.parametrize(
    "error, change",
    [
        (TypeError, lambda m: m.update({"a": 3})),
        (KeyError, lambda m: m.update({"a.b": nn.ReLU()})),
        (KeyError, lambda m: m.update({"": nn.ReLU()})),
        (KeyError, lambda m: m.update({"forward": nn.ReLU()})),
        (KeyError, lambda m: m.update({"training": nn.ReLU()})),
        (KeyError, lambda m: m["missing"]),
        (KeyError, lambda m: m["training"]),
        (KeyError, lambda m: m.pop("eval")),
        (KeyError, lambda m: m.__delitem__("_hooks")),
    ],
)
def test_a_name_that_a_module_dict_cannot_have(error, change):
    model = nn.ModuleDict({"relu": nn.ReLU()})
    with pytest.raises(error):
        change(model)
    assert model.keys() == ["relu"] and model.training is True


def test_parameters_in_a_list():
    values = nn.ParameterList([nn.Parameter(np.ones(2)), np.zeros((3, 1), np.float32)])
    values.append(Tensor([4.0])).extend([nn.Parameter(5.0)])
    assert [p.shape for p in values] == [(2,), (3, 1), (1,), ()]
    assert [name for name, _ in values.named_parameters()] == ["0", "1", "2", "3"]
    assert all(isinstance(p, nn.Parameter) for p in values)
    assert [p.shape for p in values[1:3]] == [(3, 1), (1,)]
    values[-1] = np.full(2, 7.0, np.float32)
    assert_identical(values[3].data, np.full(2, 7.0, np.float32))
    with pytest.raises(IndexError):
        values[4] = np.zeros(1)


def test_a_sequence_with_names():
    first, second = linear(), nn.ReLU()
    model = nn.Sequential(OrderedDict([("fc", first), ("act", second)]))
    assert model.fc is first and model[1] is second
    assert list(model.state_dict()) == ["fc.weight", "fc.bias"]
    x = Tensor(np.eye(3, dtype=np.float32))
    assert_identical(model(x), second(first(x)))
    model[1] = nn.Tanh()
    assert isinstance(model.act, nn.Tanh)
    with pytest.raises(TypeError, match="item fc is a int"):
        nn.Sequential({"fc": 3})
    with pytest.raises(TypeError, match=r"have names \(fc, act\)"):
        model.insert(0, nn.ReLU())
    assert model.fc is first and len(model) == 2


@pytest.mark.parametrize("kind", [nn.ModuleList, lambda modules: nn.Sequential(*modules)])
def test_modules_in_between(kind):
    a, b, c, d = linear(), nn.ReLU(), nn.Tanh(), nn.Sigmoid()
    model = kind([a, b])
    assert list(model.insert(1, c)) == [a, c, b]
    assert list(model.extend([d])) == [a, c, b, d]
    assert [name for name, _ in model.named_children()] == ["0", "1", "2", "3"]
    del model[0]
    assert list(model) == [c, b, d]
    model[-1] = a
    assert list(model) == [c, b, a] and list(model.state_dict()) == ["2.weight", "2.bias"]
    with pytest.raises(TypeError, match="expects Modules, item 1 is a str"):
        model.insert(1, "relu")
    assert list(model) == [c, b, a]


# ----------------------------------------------------------------------------------- initial values

SHAPE = (60, 40, 3, 3)
FAN_IN, FAN_OUT = 40 * 9, 60 * 9
DEVIATIONS = {  # what PyTorch's documentation gives
    "uniform_": ({"a": -3.0, "b": 3.0}, 3 / 3**0.5),
    "normal_": ({"std": 0.3}, 0.3),
    "xavier_uniform_": ({"gain": 2.0}, 2 * (2 / (FAN_IN + FAN_OUT)) ** 0.5),
    "xavier_normal_": ({}, (2 / (FAN_IN + FAN_OUT)) ** 0.5),
    "kaiming_uniform_": ({"a": 5**0.5}, (1 / 3 / FAN_IN) ** 0.5),
    "kaiming_normal_": ({"mode": "fan_out", "nonlinearity": "relu"}, (2 / FAN_OUT) ** 0.5),
}


@pytest.mark.parametrize("name", DEVIATIONS)
def test_distributions(name):
    settings, deviation = DEVIATIONS[name]
    p = nn.Parameter(np.zeros(SHAPE, np.float32))
    fill = getattr(nn.init, name)
    assert fill(p, **settings, generator=np.random.default_rng(0)) is p
    assert p.requires_grad and p.function is None and p.dtype == np.float32
    values = p.data.ravel()
    assert abs(values.mean()) < 5 * deviation / len(values) ** 0.5
    np.testing.assert_allclose(values.std(), deviation, rtol=0.02)
    largest = np.abs(values).max()
    if "uniform" in name:
        assert 0.99 * 3**0.5 * deviation < largest <= 3**0.5 * deviation * (1 + 1e-6)
    else:
        assert largest > 3 * deviation
    again = fill(nn.Parameter(np.zeros(SHAPE)), **settings, generator=np.random.default_rng(0))
    np.testing.assert_allclose(again.data, p.data, rtol=1e-6)


def test_constants():
    p = nn.Parameter(np.zeros(3))
    assert_identical(nn.init.ones_(p).data, np.ones(3))
    assert_identical(nn.init.constant_(p, 0.5).data, np.full(3, 0.5))
    assert_identical(nn.init.zeros_(p).data, np.zeros(3))


@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (3, 2, 2, 2)])
def test_orthogonal_rows_or_columns(shape):
    p = nn.init.orthogonal_(nn.Parameter(np.zeros(shape)), gain=2.0)
    matrix = p.data.reshape(shape[0], -1)
    product = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    np.testing.assert_allclose(product, 4.0 * np.eye(len(product)), atol=1e-12)


def test_initial_values_are_other_ones_each_time():
    layer = linear()
    first = nn.init.normal_(layer.weight).data.copy()
    assert np.any(nn.init.normal_(layer.weight).data != first)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: nn.init.zeros_(np.zeros(3)), "zeros_: fills a Tensor or Parameter, got ndarray"),
        (lambda: nn.init.xavier_normal_(Tensor([1.0])), "xavier_normal_: .*fewer than 2 axes"),
        (lambda: nn.init.kaiming_normal_(Tensor([[1.0]]), mode="in"), "'fan_in' or 'fan_out'"),
        (lambda: nn.init.calculate_gain("gelu"), "must be one of leaky_relu, linear"),
        (lambda: nn.GELU("erf"), "GELU: approximate"),
        (lambda: nn.GroupNorm(4, 6), "num_groups=4 must divide num_channels=6"),
        (lambda: nn.LayerNorm((3, 0)), r"normalized_shape\[1\] must be an int >= 1"),
        (lambda: nn.CrossEntropyLoss(reduction="batchmean"), "one of mean, sum, none"),
        (lambda: nn.Dropout2d(1.0), r"Dropout2d: p must be in \[0, 1\)"),
    ],
)
def test_arguments_that_do_not_fit(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_whole_channels_are_dropped():
    layer = nn.Dropout2d(0.5, rng=np.random.default_rng(0))
    y = layer(Tensor(np.ones((8, 16, 3, 2), np.float32))).data
    per_channel = y.reshape(8, 16, -1)
    assert np.all(per_channel == per_channel[:, :, :1])
    assert set(np.unique(y)) == {0.0, 2.0}
    assert_identical(layer.eval()(Tensor(y)), y)


def test_a_loss_with_weights_has_them_in_its_state():
    loss = nn.CrossEntropyLoss(weight=[1.0, 2.0])
    assert list(loss.state_dict()) == ["weight"] and loss.parameters() == []
    assert nn.CrossEntropyLoss().state_dict() == {}


# ------------------------------------------------------------------------------ gradients together


def with_gradients():
    layer = linear()
    for p in layer.parameters():
        p.grad = Tensor(np.full_like(p.data, 3.0))
    return layer


def test_gradients_are_cut_off():
    layer = with_gradients()
    layer.weight.grad.data[0, 0] = -5.0
    nn.utils.clip_grad_value_(layer.parameters(), 1.5)
    assert layer.weight.grad.data[0, 0] == -1.5 and np.all(layer.bias.grad.data == 1.5)


def test_a_short_gradient_keeps_its_length():
    layer = with_gradients()
    layer.bias.grad = None
    norm = nn.utils.clip_grad_norm_(layer.weight, 100.0)
    assert norm.item() == 9.0 and np.all(layer.weight.grad.data == 3.0)
    assert nn.utils.clip_grad_norm_([], 1.0).item() == 0.0


def test_a_norm_that_is_not_finite():
    layer = with_gradients()
    layer.bias.grad.data[0] = np.inf
    with pytest.raises(RuntimeError, match="the norm of the gradients is inf"):
        nn.utils.clip_grad_norm_(layer.parameters(), 1.0, error_if_nonfinite=True)
    assert np.all(layer.weight.grad.data == 3.0)


def test_parameters_as_a_vector():
    layer = linear()
    vector = nn.utils.parameters_to_vector(layer.parameters())
    assert vector.shape == (12,) and not vector.requires_grad
    other = linear(seed=1)
    nn.utils.vector_to_parameters(vector, other.parameters())
    assert_identical(other.weight.data, layer.weight.data)
    with no_grad():
        vector[0] = 99.0
    assert layer.weight.data[0, 0] != 99.0
    with pytest.raises(ValueError, match=r"hold 12 numbers, vec has the shape \(11,\)"):
        nn.utils.vector_to_parameters(vector[1:], other.parameters())
