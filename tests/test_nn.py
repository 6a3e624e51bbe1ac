"""Modules, layers, and the binary twins of layers."""

import copy
import inspect
import pickle
from pathlib import Path

import numpy as np
import pytest

from tinybnn import functional as F
from tinybnn import nn
from tinybnn.kernels import dispatch
from tinybnn.nn.module import unregistered, warn_of_unregistered
from tinybnn.quantizers import (
    ApproxSign,
    BitNetTernary,
    DoReFaWeight,
    MagnitudeAwareSign,
    Quantizer,
    SteSign,
    SteTern,
    sign,
)
from tinybnn.tensor import Tensor, grad, manual_seed, no_grad, trace
from tinybnn.testing import assert_identical, gradcheck, gradgradcheck


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def small_network():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.BinaryConv2d(4, 6, 3, padding=1),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(6),
        nn.Flatten(),
        nn.BinaryLinear(24, 5),
        nn.BatchNorm1d(5),
        nn.Linear(5, 3),
    )


# -------------------------------------------------------------------------------------- state

STATES = {  # the names, order and shapes of PyTorch
    "Linear": (
        lambda: nn.Linear(3, 2),
        {"weight": (2, 3), "bias": (2,)},
    ),
    "Linear without bias": (lambda: nn.Linear(3, 2, bias=False), {"weight": (2, 3)}),
    "Conv2d": (
        lambda: nn.Conv2d(4, 6, (3, 2), groups=2),
        {"weight": (6, 2, 3, 2), "bias": (6,)},
    ),
    "BatchNorm1d": (
        lambda: nn.BatchNorm1d(3),
        {
            "weight": (3,),
            "bias": (3,),
            "running_mean": (3,),
            "running_var": (3,),
            "num_batches_tracked": (),
        },
    ),
    "BatchNorm2d without affine": (
        lambda: nn.BatchNorm2d(3, affine=False),
        {"running_mean": (3,), "running_var": (3,), "num_batches_tracked": ()},
    ),
    "Sequential": (
        lambda: nn.Sequential(nn.Flatten(), nn.Sequential(nn.ReLU(), nn.Linear(2, 1))),
        {"1.1.weight": (1, 2), "1.1.bias": (1,)},
    ),
    "ReLU": (nn.ReLU, {}),
    "ConvTranspose2d": (
        lambda: nn.ConvTranspose2d(4, 6, (3, 2), groups=2),
        {"weight": (4, 3, 3, 2), "bias": (6,)},
    ),
    "ConvTranspose2d without bias": (
        lambda: nn.ConvTranspose2d(3, 2, 4, bias=False),
        {"weight": (3, 2, 4, 4)},
    ),
    "PReLU": (nn.PReLU, {"weight": (1,)}),
    "PReLU of channels": (lambda: nn.PReLU(5), {"weight": (5,)}),
    "ModuleList": (
        lambda: nn.ModuleList([nn.PReLU(), nn.Linear(2, 1)]),
        {"0.weight": (1,), "1.weight": (1, 2), "1.bias": (1,)},
    ),
    # Names that PyTorch does not have.
    "RSign": (lambda: nn.RSign(3), {"threshold": (3,)}),
    "RPReLU": (lambda: nn.RPReLU(3), {"shift_in": (3,), "weight": (3,), "shift_out": (3,)}),
    "Maxout": (lambda: nn.Maxout(3), {"positive": (3,), "negative": (3,)}),
    "AdaBinConv2d": (
        lambda: nn.AdaBinConv2d(4, 6, 3, groups=2, bias=True),
        {"weight": (6, 2, 3, 3), "bias": (6,), "input_scale": (1,), "input_offset": (1,)},
    ),
}


@pytest.mark.parametrize("name", STATES)
def test_state_dict_has_the_names_and_order_of_pytorch(name):
    make, expected = STATES[name]
    state = make().state_dict()
    assert [(key, array.shape) for key, array in state.items()] == list(expected.items())
    for key, array in state.items():
        assert isinstance(array, np.ndarray)
        assert array.dtype == (np.int64 if key.endswith("num_batches_tracked") else np.float32)


def test_state_dict_shares_memory():
    layer = nn.Linear(3, 2)
    layer.state_dict()["bias"][...] = 7
    assert_identical(layer.bias, [7.0, 7.0])


def test_load_state_dict():
    model, other = small_network(), small_network()
    x = Tensor(normal(2, 1, 4, 4))
    model(x)
    weight = other[0].weight
    other.load_state_dict(model.state_dict())
    assert other[0].weight is weight  # optimizers hold on to the Parameter
    for key, array in model.state_dict().items():
        assert_identical(other.state_dict()[key], array, key)
    assert_identical(other.eval()(x), model.eval()(x))
    other[0].weight.data[...] = 0
    assert np.abs(model[0].weight.data).sum() > 0  # copied, not shared


def test_load_state_dict_takes_tensors_and_lists():
    layer = nn.Linear(2, 1)
    layer.load_state_dict({"weight": Tensor([[1.0, 2.0]]), "bias": [3.0]})
    assert_identical(layer.weight, [[1.0, 2.0]])
    assert_identical(layer.bias, [3.0])
    assert layer.bias.dtype == np.float32


BAD_STATES = {
    "missing": (lambda s: s.pop("8.bias"), KeyError, r"misses 8\.bias; the state is of another"),
    "unexpected": (lambda s: s.update(more=np.ones(1)), KeyError, "has no place for more"),
    "shape": (
        lambda s: s.update({"8.weight": np.ones((3, 4))}), ValueError,
        r"8.weight has shape \(3, 4\), expected \(3, 5\)",
    ),
    "transposed": (
        lambda s: s.update({"8.weight": np.ones((5, 3))}), ValueError, "8.weight has shape"
    ),
    "broadcastable": (lambda s: s.update({"8.bias": np.ones(1)}), ValueError, "8.bias has shape"),
    "no numbers": (lambda s: s.update({"8.bias": ["a", "b", "c"]}), ValueError, "float"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_STATES)
def test_load_state_dict_refuses_and_changes_nothing(name):
    spoil, error, message = BAD_STATES[name]
    model = small_network()
    before = {key: array.copy() for key, array in model.state_dict().items()}
    state = {key: array + 1 for key, array in before.items()}
    spoil(state)
    with pytest.raises(error, match=message):
        model.load_state_dict(state)
    for key, array in model.state_dict().items():
        assert_identical(array, before[key], key)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_models_can_be_copied(duplicate):
    model = small_network()
    other = duplicate(model)
    x = Tensor(normal(2, 1, 4, 4))
    other[0].weight.data += 1
    assert np.abs(other[0].weight.data - model[0].weight.data).min() > 0.9
    other.load_state_dict(model.state_dict())
    assert_identical(other.eval()(x), model.eval()(x))
    assert isinstance(other[2].weight, nn.LatentParameter)
    assert other[2].weight.clip_value == 1.0


def test_a_state_dict_of_pytorch():
    """A float CNN trained in PyTorch 2.13, recorded by tests/data/make_torch_cnn.py."""
    with np.load(Path(__file__).parent / "data" / "torch_cnn.npz", allow_pickle=False) as file:
        recorded = dict(file)
    state = {n.removeprefix("state."): a for n, a in recorded.items() if n.startswith("state.")}
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 12, (3, 2), stride=2, padding=(1, 0), groups=3, bias=False),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(12 * 3 * 2, 10),
    )
    assert list(model.state_dict()) == list(state)
    model.load_state_dict(state)
    output = model.eval()(Tensor(recorded["input"])).data
    assert output.dtype == np.float32
    np.testing.assert_allclose(output, recorded["output"], rtol=0, atol=1e-5)
    assert np.abs(recorded["output"]).max() > 0.5  # so that 1e-5 means something
    assert state["1.num_batches_tracked"] == 20
    model[1].running_var[...] = 1
    assert np.abs(model(Tensor(recorded["input"])).data - recorded["output"]).max() > 0.01


# ----------------------------------------------------------------------------------- the tree


class Tied(nn.Module):
    def __init__(self):
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight
        self.again = self.first

    def forward(self, x):
        return self.again(self.second(self.first(x)))


def test_shared_parameters_count_once():
    model = Tied()
    assert [name for name, _ in model.named_parameters()] == ["first.weight"]
    assert len(model.parameters()) == 1
    assert [name for name, _ in model.named_modules()] == ["", "first", "second"]
    x = normal(2, 3)
    model(Tensor(x)).sum().backward()
    model.zero_grad()
    assert model.first.weight.grad is None
    w = Tensor(model.first.weight.data, dtype=np.float64)
    gradcheck(lambda w: F.linear(F.linear(F.linear(Tensor(x), w), w), w), [w])


def test_unknown_attribute():
    layer = nn.Linear(3, 2)
    with pytest.raises(AttributeError, match="wieght"):
        _ = layer.wieght
    with pytest.raises(NotImplementedError, match="Module has no forward method"):
        nn.Module()(1)


def test_walk():
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), nn.BatchNorm1d(3))
    assert [name for name, _ in model.named_modules()] == ["", "0", "0.0", "0.1", "1"]
    assert model.modules()[2] is model[0][0]
    assert [name for name, _ in model.named_children()] == ["0", "1"]
    assert model.children() == [model[0], model[1]]
    assert [name for name, _ in model.named_parameters()] == [
        "0.0.weight", "0.0.bias", "1.weight", "1.bias",
    ]  # fmt: skip
    assert [name for name, _ in model.named_buffers()] == [
        "1.running_mean", "1.running_var", "1.num_batches_tracked",
    ]  # fmt: skip


def test_train_and_eval():
    model = small_network()
    assert all(m.training for m in model.modules())
    assert model.eval() is model
    assert not any(m.training for m in model.modules())
    assert model.train() is model
    assert all(m.training for m in model.modules())
    assert model[1].training


def test_eval_changes_no_state_and_does_not_depend_on_the_batch():
    model = small_network()
    x = normal(6, 1, 4, 4)
    model(Tensor(x))
    model.eval()
    before = {key: array.copy() for key, array in model.state_dict().items()}
    whole = model(Tensor(x)).data
    for i in range(6):
        assert_identical(model(Tensor(x[i : i + 1])), whole[i : i + 1])
    for key, array in model.state_dict().items():
        assert_identical(array, before[key], key)


def test_requires_grad_and_zero_grad():
    model = small_network()
    x = Tensor(normal(2, 1, 4, 4))
    model(x).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())
    model.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    model.requires_grad_(False)
    assert not model(x).requires_grad
    model.requires_grad_()
    assert model(x).requires_grad


def test_a_frozen_module_stays_as_it_is():
    model = small_network()
    x = Tensor(normal(4, 1, 4, 4))
    model.train()(x).sum().backward()  # statistics that are not the initial ones, and gradients
    frozen, head = nn.Sequential(*model[:6]), nn.Sequential(*model[6:])
    assert frozen.freeze() is frozen
    before = {key: array.copy() for key, array in frozen.state_dict().items()}
    whole = nn.Sequential(frozen, head).train().requires_grad_()
    assert head.training and not any(m.training for m in frozen.modules())
    whole(x).sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in frozen.parameters())
    assert all(p.grad is not None for p in head.parameters())
    for key, array in frozen.state_dict().items():
        assert_identical(array, before[key], key)
    frozen.load_state_dict({key: 2 * array for key, array in before.items()})
    assert_identical(frozen[0].weight.data, 2 * before["0.weight"])


def test_a_frozen_module_can_learn_again():
    model = small_network().freeze()
    model.freeze(False)
    assert not model.training and all(p.requires_grad for p in model.parameters())
    assert all(m.training for m in model.train().modules())
    model[0].freeze()
    model.requires_grad_()  # a submodule is still frozen
    assert [p.requires_grad for p in model.parameters()] == [False] * 2 + [True] * 10
    assert [m.training for m in model.train().children()][:2] == [False, True]


def test_to_float64_and_back():
    model = small_network().to(np.float64)
    for key, array in model.state_dict().items():
        assert array.dtype == (np.int64 if key.endswith("num_batches_tracked") else np.float64)
    y = model(Tensor(normal(2, 1, 4, 4), dtype=np.float64))
    assert y.dtype == np.float64
    y.sum().backward()
    assert all(p.grad.dtype == np.float64 for p in model.parameters())
    assert model.to(np.float32)(Tensor(normal(2, 1, 4, 4))).dtype == np.float32
    assert model[0].weight.grad is None


def test_gradients_of_a_model_in_float64():
    """Every float parameter of a network of layers against central differences."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(8, 3), nn.Sigmoid(),
    ).to(np.float64)  # fmt: skip
    x = Tensor(normal(3, 1, 4, 4), dtype=np.float64)

    def run(*values):
        for name, value in zip(names, values, strict=True):
            owner = model[int(name[0])]
            vars(owner)[name[2:]] = value
        return model(x)

    names, parameters = zip(*model.named_parameters(), strict=True)
    gradcheck(run, [p.data for p in parameters])


def test_sequential():
    model = small_network()
    assert len(model) == 9
    assert model[0] is model.children()[0]
    assert model[-1] is model.children()[-1]
    assert list(model) == model.children()
    head = model[:2]
    assert isinstance(head, nn.Sequential)
    assert list(head) == [model[0], model[1]]
    x = Tensor(normal(2, 1, 4, 4))
    assert_identical(head(x), model[1](model[0](x)))
    with pytest.raises(IndexError):
        model[9]
    with pytest.raises(TypeError, match="Sequential: expects Modules, item 1 is a function"):
        nn.Sequential(nn.ReLU(), lambda x: x)


class Branches(nn.Module):
    def __init__(self, count):
        self.branches = nn.ModuleList(nn.Linear(3, 2) for _ in range(count))
        self.last = nn.Linear(2, 1)

    def forward(self, x):
        return self.last(sum((branch(x) for branch in self.branches), Tensor(np.zeros(2))))


def test_module_list():
    model = Branches(3)
    branches = model.branches
    assert list(model.state_dict()) == [
        "branches.0.weight", "branches.0.bias", "branches.1.weight", "branches.1.bias",
        "branches.2.weight", "branches.2.bias", "last.weight", "last.bias",
    ]  # fmt: skip
    assert len(branches) == 3
    assert list(branches) == branches.children() == [branches[0], branches[1], branches[-1]]
    part = branches[1:]
    assert type(part) is nn.ModuleList
    assert list(part) == [branches[1], branches[2]]
    model(Tensor(normal(4, 3))).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not any(m.training for m in model.eval().modules())
    extra = nn.ReLU()
    assert branches.append(extra) is branches
    assert branches[3] is extra
    assert len(model.modules()) == 7  # the model, its list, four in the list, the last layer
    assert repr(nn.ModuleList([nn.ReLU()])) == "ModuleList(\n  (0): ReLU()\n)"
    assert len(nn.ModuleList()) == 0
    twelve = nn.ModuleList(nn.Linear(1, i + 1) for i in range(12))
    assert [m.out_features for m in twelve] == list(range(1, 13))  # "10" comes after "9"
    other = copy.deepcopy(model)
    other.load_state_dict(model.state_dict())
    for wrong in (lambda x: x, Tensor([1.0]), None):
        kind = type(wrong).__name__
        with pytest.raises(TypeError, match=f"ModuleList: expects Modules, .*{kind}"):
            nn.ModuleList([nn.ReLU(), wrong])
    with pytest.raises(IndexError):
        branches[4]
    with pytest.raises(NotImplementedError, match="ModuleList has no forward method"):
        branches(Tensor(normal(4, 3)))


@pytest.mark.parametrize(
    "value", [np.ones((3, 2), np.float32), Tensor(np.ones((3, 2))), 1.0, [1.0], "no"],
    ids=["array", "Tensor", "number", "list", "text"],
)  # fmt: skip
def test_a_parameter_does_not_vanish(value):
    layer = nn.Linear(2, 3)
    before = layer.weight
    with pytest.raises(TypeError, match=r"Linear.weight is a Parameter.*weight\.data = array"):
        layer.weight = value
    assert layer.weight is before and layer.parameters() == [before, layer.bias]
    layer.weight = other = nn.Parameter(np.ones((3, 2), np.float32))
    layer.bias = None
    assert layer.parameters() == [other]


@pytest.mark.parametrize("value", [1.0, [1.0, 2.0], None, nn.Parameter([1.0, 2.0]), "no"], ids=type)
def test_a_buffer_does_not_vanish(value):
    norm = nn.BatchNorm1d(2)
    with pytest.raises(TypeError, match=r"BatchNorm1d.running_mean is a buffer.*assign an array"):
        norm.running_mean = value
    assert len(norm.named_buffers()) == 3 and "running_mean" in norm.state_dict()


def test_a_buffer_takes_arrays_scalars_of_numpy_and_tensors():
    norm = nn.BatchNorm1d(2)
    norm.num_batches_tracked = norm.num_batches_tracked + 1  # NumPy makes a scalar of it
    norm.running_mean = Tensor([1.0, 2.0]) * 2.0
    assert isinstance(norm.num_batches_tracked, np.ndarray)
    assert isinstance(norm.running_mean, np.ndarray) and norm.running_mean.tolist() == [2.0, 4.0]
    norm.register_buffer("running_mean", np.zeros(2))
    assert [name for name, _ in norm.named_buffers()].count("running_mean") == 1
    del norm.running_mean
    assert "running_mean" not in norm.state_dict()


@pytest.mark.parametrize("value", [lambda x: x, Tensor([1.0]), [nn.ReLU()], 3], ids=type)
def test_a_child_does_not_vanish(value):
    model = nn.Module()
    model.layer = layer = nn.Linear(2, 3)
    with pytest.raises(TypeError, match=r"Module.layer is a Module.*assign a Module or None"):
        model.layer = value
    assert model.children() == [layer]
    model.layer = nn.ReLU()
    model.layer = None
    assert model.children() == []


class Holder(nn.Module):
    """A model that stores something in its own attribute."""

    def __init__(self, kept):
        self.last = nn.Linear(2, 2)
        self.kept = kept


class Plain:
    def __init__(self, layer):
        self.layer = layer


@pytest.mark.parametrize(
    ("kept", "path"),
    [
        ([nn.ReLU(), nn.Linear(2, 2)], "kept[0]"),
        ({"a": nn.BatchNorm1d(2)}, "kept['a']"),
        ((1, [nn.Dropout()]), "kept[1][0]"),
        (Plain(nn.Linear(2, 2)), "kept.layer"),
        ([nn.Parameter([1.0])], "kept[0]"),
        (Tensor([1.0], requires_grad=True), "kept"),
    ],
    ids=["list", "dict", "nested", "object", "Parameter", "Tensor"],
)
def test_layers_that_are_reached_but_not_owned(kept, path):
    assert next(iter(unregistered(Holder(kept)))) == path
    assert unregistered(nn.Sequential(Holder(kept)))
    with pytest.warns(UserWarning, match=r"here: Holder reaches .* without owning it"):
        warn_of_unregistered(Holder(kept), "here")


def test_what_is_owned_elsewhere_or_frozen_is_no_mistake():
    model = Holder(None)
    model.kept = [model.last, Tensor([1.0]), nn.Linear(2, 2).freeze(), np.ones(2), len, nn]
    assert unregistered(model) == {}


def test_modes_are_put_back_module_by_module():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)))
    model.train()
    model[0].eval()
    modes = [module.training for module in model.modules()]
    for training in (True, False):
        with model.in_mode(training=training):
            assert [module.training for module in model.modules()] == [training] * 5
        assert [module.training for module in model.modules()] == modes
    with pytest.raises(KeyError), model.in_mode(training=False):
        raise KeyError
    assert [module.training for module in model.modules()] == modes


def test_repr():
    assert repr(nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU()))) == (
        "Sequential(\n  (0): Linear(2, 3, bias=True)\n  (1): Sequential(\n    (0): ReLU()\n  )\n)"
    )
    assert repr(nn.Conv2d(2, 4, 3, stride=2, groups=2)) == (
        "Conv2d(2, 4, kernel_size=(3, 3), stride=(2, 2), groups=2, bias=True)"
    )
    assert "padding_mode='ones'" in repr(nn.BinaryConv2d(2, 4, 3, padding_mode="ones"))
    assert "scale='mean'" in repr(nn.BinaryLinear(2, 4, scale="mean"))
    assert repr(nn.MaxPool2d(3, 2, 1)) == "MaxPool2d(kernel_size=3, stride=2, padding=1)"
    assert repr(nn.Quantize()) == "Quantize(SteSign(clip_value=1.0))"
    assert repr(nn.ConvTranspose2d(2, 3, 3, 2, 1, 1)) == (
        "ConvTranspose2d(2, 3, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), "
        "output_padding=(1, 1), bias=True)"
    )
    assert repr(nn.LeakyReLU(0.2)) == "LeakyReLU(negative_slope=0.2)"
    assert repr(nn.PReLU(3)) == "PReLU(num_parameters=3)"
    assert repr(nn.AdaptiveAvgPool2d(1)) == "AdaptiveAvgPool2d(output_size=1)"
    assert repr(nn.RSign(3)) == "RSign(3, quantizer=ApproxSign())"
    assert repr(nn.RPReLU(3)) == "RPReLU(3)"
    assert repr(nn.Maxout(3)) == "Maxout(3)"
    assert repr(nn.AdaBinConv2d(2, 4, 3)) == (
        "AdaBinConv2d(2, 4, kernel_size=(3, 3), bias=False, input_quantizer=ApproxSign(), "
        "weight_quantizer=EdeSign(t=1.0))"
    )
    assert repr(nn.BatchNorm1d(3, 0.1, 0.2, False)) == (
        "BatchNorm1d(3, eps=0.1, momentum=0.2, affine=False)"
    )
    assert repr(nn.BinaryLinear(2, 4, weight_quantizer="swish_sign", clip_value=0.5)) == (
        "BinaryLinear(2, 4, bias=False, input_quantizer=SteSign(clip_value=1.0), "
        "weight_quantizer=SwishSign(beta=5.0), clip_value=0.5)"
    )
    assert repr(nn.Softplus(2.0)) == "Softplus(beta=2.0)"
    assert repr(nn.Hardtanh(-2.0)) == "Hardtanh(min_val=-2.0, max_val=1.0)"
    assert repr(nn.Flatten()) == "Flatten(start_dim=1, end_dim=-1)"


# --------------------------------------------------------------------------------- float layers

LAYERS = {  # layer, the function that it stands for
    "ReLU": (nn.ReLU(), F.relu),
    "Hardtanh": (nn.Hardtanh(-0.5, 0.7), lambda x: F.hardtanh(x, -0.5, 0.7)),
    "Sigmoid": (nn.Sigmoid(), F.sigmoid),
    "Tanh": (nn.Tanh(), F.tanh),
    "LeakyReLU": (nn.LeakyReLU(), lambda x: F.leaky_relu(x, 0.01)),
    "LeakyReLU slope": (nn.LeakyReLU(0.3), lambda x: F.leaky_relu(x, 0.3)),
    "Softplus": (nn.Softplus(), F.softplus),
    "Softplus beta": (nn.Softplus(3.0), lambda x: F.softplus(x, 3.0)),
    "AdaptiveAvgPool2d": (nn.AdaptiveAvgPool2d((2, 3)), lambda x: F.adaptive_avg_pool2d(x, (2, 3))),
    "Identity": (nn.Identity(), lambda x: x),
    "MaxPool2d": (nn.MaxPool2d(3, 2, 1), lambda x: F.max_pool2d(x, 3, 2, 1)),
    "AvgPool2d": (nn.AvgPool2d(2), lambda x: F.avg_pool2d(x, 2)),
    "Flatten": (nn.Flatten(), lambda x: F.flatten(x, 1)),
    "Flatten two": (nn.Flatten(2, 3), lambda x: F.flatten(x, 2, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer_is_its_function(name):
    layer, function = LAYERS[name]
    x = Tensor(normal(2, 3, 6, 6))
    assert_identical(layer(x), function(x))
    assert layer.parameters() == []


def test_linear_and_conv2d():
    x = Tensor(normal(2, 4, 6, 6))
    conv = nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=1, dilation=(2, 1), groups=2)
    assert_identical(conv(x), F.conv2d(x, conv.weight, conv.bias, (1, 2), 1, (2, 1), 2))
    linear = nn.Linear(6, 3)
    assert_identical(linear(x), F.linear(x, linear.weight, linear.bias))
    for layer in (conv, linear):
        before = layer(x).data
        np.testing.assert_allclose(layer.eval()(x).data, before, 1e-5, 1e-6)


PYTORCH_ARGUMENTS = {  # in PyTorch's order, as far as they go
    nn.Linear: "in_features out_features bias",
    nn.Conv2d: "in_channels out_channels kernel_size stride padding dilation groups bias",
    nn.ConvTranspose2d: "in_channels out_channels kernel_size stride padding output_padding groups "
                        "bias dilation",
    nn.BatchNorm2d: "num_features eps momentum affine",
    nn.PReLU: "num_parameters init",
    nn.ReLU: "inplace",
    nn.LeakyReLU: "negative_slope inplace",
    nn.Softplus: "beta",
    nn.Hardtanh: "min_val max_val inplace",
    nn.Hardsigmoid: "inplace",
    nn.Hardswish: "inplace",
    nn.ReLU6: "inplace",
    nn.SiLU: "inplace",
    nn.GELU: "approximate",
    nn.Softmax: "dim",
    nn.LogSoftmax: "dim",
    nn.GroupNorm: "num_groups num_channels eps affine bias",
    nn.LayerNorm: "normalized_shape eps elementwise_affine bias",
    nn.Upsample: "size scale_factor mode align_corners",
    nn.MaxPool2d: "kernel_size stride padding",
    nn.AvgPool2d: "kernel_size stride padding",
    nn.AdaptiveAvgPool2d: "output_size",
    nn.Flatten: "start_dim end_dim",
    nn.Dropout: "p inplace",
    nn.Dropout2d: "p inplace",
    nn.ModuleList: "modules",
    nn.ModuleDict: "modules",
    nn.ParameterList: "values",
    nn.CrossEntropyLoss: "weight",
    nn.NLLLoss: "weight",
    nn.BCELoss: "weight",
    nn.BCEWithLogitsLoss: "weight",
}  # fmt: skip


@pytest.mark.parametrize("layer", PYTORCH_ARGUMENTS, ids=lambda layer: layer.__name__)
def test_arguments_have_the_order_of_pytorch(layer):
    parameters = inspect.signature(layer).parameters.values()
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == PYTORCH_ARGUMENTS[layer].split()


TRANSPOSED = [
    {},
    {"stride": 2, "padding": 1, "output_padding": 1},
    {"groups": 2, "dilation": (1, 2), "bias": False},
]


@pytest.mark.parametrize("options", TRANSPOSED, ids=str)
def test_conv_transpose2d(options):
    layer = nn.ConvTranspose2d(4, 6, (3, 2), **options)
    x = normal(3, 4, 5, 4)
    rest = {key: value for key, value in options.items() if key != "bias"}
    y = layer(Tensor(x))
    assert y.data.transpose(0, 2, 3, 1).flags.c_contiguous
    assert_identical(y, F.conv_transpose2d(x, layer.weight, layer.bias, **rest))
    bound = 1 / np.sqrt(np.prod(layer.weight.shape[1:]))
    assert 0.9 * bound < np.abs(layer.weight.data).max() <= bound
    layer.eval()
    whole = layer(Tensor(x)).data
    np.testing.assert_allclose(whole, y.data, 1e-5, 1e-6)
    for i in range(3):
        assert_identical(layer(Tensor(x[i : i + 1])), whole[i : i + 1])


def test_decoder_undoes_the_sizes_of_an_encoder():
    down = nn.Conv2d(1, 4, 3, stride=2, padding=1)
    up = nn.ConvTranspose2d(4, 1, 3, stride=2, padding=1, output_padding=1)
    x = Tensor(normal(2, 1, 8, 6))
    assert up(down(x)).shape == x.shape


def test_initial_weights():
    """Uniform in ±1 / sqrt(fan_in), as in PyTorch; Glorot for latent weights."""
    for layer, shape, fan_in in (
        (nn.Linear(400, 300), (300, 400), 400),
        (nn.Conv2d(32, 64, 3, groups=2), (64, 16, 3, 3), 16 * 9),
    ):
        assert layer.weight.shape == shape
        for values in (layer.weight.data, layer.bias.data):
            assert np.abs(values).max() <= 1 / np.sqrt(fan_in)
        assert layer.weight.data.std() == pytest.approx(1 / np.sqrt(3 * fan_in), rel=0.05)
    latent = nn.BinaryConv2d(32, 64, 3).weight.data
    assert latent.std() == pytest.approx(np.sqrt(2 / ((32 + 64) * 9)), rel=0.05)


@pytest.mark.parametrize(
    "make",
    [
        lambda rng: nn.Linear(5, 3, rng=rng),
        lambda rng: nn.Conv2d(2, 3, 3, rng=rng),
        lambda rng: nn.BinaryLinear(5, 3, bias=True, rng=rng),
        lambda rng: nn.BinaryConv2d(2, 3, 3, bias=True, rng=rng),
    ],
)
def test_same_seed_same_weights(make):
    def states():
        yield make(np.random.default_rng(3)).state_dict()
        manual_seed(3)
        yield make(None).state_dict()

    first, default = states()
    again, _ = states()
    other = make(np.random.default_rng(4)).state_dict()
    for key in first:
        assert_identical(again[key], first[key])
        assert_identical(default[key], first[key])
        assert (other[key] != first[key]).any()


def test_conv_weights_and_outputs_are_channels_last_in_memory():
    for conv in (nn.Conv2d(4, 6, 3), nn.BinaryConv2d(4, 6, 3, bias=True, scale="learned")):
        for array in (conv.weight.data, conv(Tensor(normal(2, 4, 5, 5))).data,
                      conv.to(np.float64).weight.data):  # fmt: skip
            assert array.transpose(0, 2, 3, 1).flags.c_contiguous


@pytest.mark.parametrize(
    ("layer", "shape"), [(nn.BatchNorm1d, (7, 3)), (nn.BatchNorm2d, (4, 3, 2, 5))]
)
def test_batch_norm_layer(layer, shape):
    norm = layer(3, eps=1e-3, momentum=0.3)
    axes = (0, *range(2, len(shape)))
    mean, var = np.zeros(3), np.ones(3)
    for step in range(3):
        x = 3 * normal(*shape, seed=step) + 2
        y = norm(Tensor(x)).data
        np.testing.assert_allclose(y.mean(axes), 0, atol=1e-5)
        np.testing.assert_allclose(y.var(axes), x.var(axes) / (x.var(axes) + 1e-3), 1e-5)
        mean = 0.7 * mean + 0.3 * x.mean(axes)
        var = 0.7 * var + 0.3 * x.var(axes, ddof=1)  # unbiased
    np.testing.assert_allclose(norm.running_mean, mean, 1e-5)
    np.testing.assert_allclose(norm.running_var, var, 1e-5)
    assert norm.running_mean.dtype == np.float32
    assert norm.num_batches_tracked == 3
    y = norm.eval()(Tensor(x))
    per_channel = (1, 3) + (1,) * (len(shape) - 2)
    expected = (x - mean.reshape(per_channel)) / np.sqrt(var.reshape(per_channel) + 1e-3)
    np.testing.assert_allclose(y.data, expected, 1e-4, 1e-5)
    assert norm.num_batches_tracked == 3
    with pytest.raises(ValueError, match=f"x must have {len(shape)} dimensions"):
        norm(Tensor(normal(2, 3, 4)))


def test_batch_norm_that_fails_tracks_nothing():
    norm = nn.BatchNorm1d(3)
    for wrong in (normal(4, 2), normal(1, 3)):
        with pytest.raises(ValueError, match="batch_norm"):
            norm(Tensor(wrong))
    assert norm.num_batches_tracked == 0
    assert_identical(norm.running_mean, [0.0, 0.0, 0.0])


def test_dropout_layer():
    x = Tensor(np.ones((50, 50), np.float32))
    layer = nn.Dropout(0.25, rng=np.random.default_rng(0))
    y = layer(x).data
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    assert (layer(x).data != y).any()
    assert layer.eval()(x) is x
    assert_identical(nn.Dropout(0.25, rng=np.random.default_rng(0))(x), y)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear(0, 3), "Linear: in_features must be an int >= 1, got 0"),
        (lambda: nn.Linear(3, 2.0), "Linear: out_features must be an int >= 1, got 2.0"),
        (lambda: nn.BinaryLinear(3, -1), "BinaryLinear: out_features must be"),
        (lambda: nn.Conv2d(3, 4, 3, groups=2), "Conv2d: groups=2 must divide in_channels=3"),
        (lambda: nn.BinaryConv2d(4, 3, 3, groups=2), "BinaryConv2d: groups=2 must divide"),
        (lambda: nn.Conv2d(3, 4, 0), "Conv2d: kernel_size must be an int or a pair"),
        (lambda: nn.Conv2d(3, 4, (3, 3, 3)), "Conv2d: kernel_size must be"),
        (lambda: nn.Conv2d(3, 4, 3, padding=-1), "Conv2d: padding must be"),
        (lambda: nn.BatchNorm2d(0), "BatchNorm2d: num_features must be"),
        (lambda: nn.Dropout(1.0), r"Dropout: p must be in \[0, 1\), got 1.0"),
        (lambda: nn.BinaryLinear(3, 2, scale="max"), "BinaryLinear: scale must be None, 'mean' or"),
        (lambda: nn.BinaryConv2d(3, 2, 3, padding_mode="reflect"), "padding_mode must be 'zeros'"),
        (lambda: nn.BinaryLinear(3, 2, input_quantizer="sgn"), "quantizer: expects one of"),
        (lambda: nn.Quantize(None), "Quantize: expects a quantizer, got None"),
        (lambda: nn.RSign(3, None), "RSign: expects a quantizer, got None"),
        (lambda: nn.RSign(0), "RSign: num_channels must be an int >= 1, got 0"),
        (lambda: nn.RPReLU(2.5), "RPReLU: num_channels must be"),
        (lambda: nn.Maxout(-1), "Maxout: num_channels must be"),
        (lambda: nn.PReLU(0), "PReLU: num_parameters must be"),
        (
            lambda: nn.AdaBinConv2d(2, 3, 3, weight_quantizer=None),
            "AdaBinConv2d: expects a quantizer, got None",
        ),
        (lambda: nn.AdaBinConv2d(3, 4, 3, groups=2), "AdaBinConv2d: groups=2 must divide"),
        (lambda: nn.ConvTranspose2d(3, 4, 3, groups=2), "ConvTranspose2d: groups=2 must divide"),
        (lambda: nn.ConvTranspose2d(3, 4, 3, output_padding=-1), "output_padding must be"),
    ],
)
def test_layer_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -------------------------------------------------------------------------------- binary twins

TWINS = {"Linear": (nn.Linear, nn.BinaryLinear), "Conv2d": (nn.Conv2d, nn.BinaryConv2d)}
MISSING = inspect.Parameter.empty
DIFFERENCES = {  # argument: (default of the float layer, default of the binary twin)
    "bias": (True, False),  # a batch norm follows
    "padding_mode": (MISSING, "zeros"),
    "input_quantizer": (MISSING, "ste_sign"),
    "weight_quantizer": (MISSING, "ste_sign"),
    "scale": (MISSING, None),
    "clip_value": (MISSING, 1.0),
}


@pytest.mark.parametrize("name", TWINS)
def test_twins_have_the_same_arguments(name):
    plain, binary = (inspect.signature(layer).parameters for layer in TWINS[name])
    assert [n for n in binary if n in plain] == list(plain)  # names and order
    for argument, parameter in binary.items():
        ours = parameter.default
        theirs = plain[argument].default if argument in plain else MISSING
        if argument in plain:
            assert parameter.kind == plain[argument].kind, argument
        if argument in DIFFERENCES:
            assert (theirs, ours) == DIFFERENCES[argument], argument
        else:
            assert argument in plain, argument
            assert theirs == ours, argument
    common = [n for n, p in plain.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert list(binary)[: len(common)] == common  # a call by position means the same


ARGUMENTS = {
    "Linear": [(5, 3), {}],
    "Conv2d": [(4, 6, (3, 2)), {"stride": 2, "padding": (1, 0), "dilation": (1, 2), "groups": 2}],
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", TWINS)
def test_twins_have_the_same_parameters(name, bias):
    positional, options = ARGUMENTS[name]
    plain, binary = (layer(*positional, **options, bias=bias) for layer in TWINS[name])
    shapes = [[(n, p.shape) for n, p in layer.named_parameters()] for layer in (plain, binary)]
    assert shapes[0] == shapes[1]
    assert list(plain.state_dict()) == list(binary.state_dict())
    assert isinstance(binary, type(plain))
    for key, value in vars(plain).items():
        if not isinstance(value, Tensor):
            assert getattr(binary, key) == value, key
    learned = TWINS[name][1](*positional, **options, bias=bias, scale="learned")
    assert [n for n, _ in learned.named_parameters()] == [n for n, _ in shapes[0]] + ["scale"]
    binary.load_state_dict(plain.state_dict())
    assert_identical(binary.weight, plain.weight)


@pytest.mark.parametrize("name", TWINS)
def test_binary_layer_is_its_twin_on_signs(name):
    positional, options = ARGUMENTS[name]
    plain, binary = (layer(*positional, **options, bias=True) for layer in TWINS[name])
    x = normal(2, 4, 7, 6) if name == "Conv2d" else normal(7, 5)
    x.ravel()[:3] = (0.0, -0.0, np.nan)
    plain.weight.data[...] = binary.binary_weight()
    plain.bias.data[...] = binary.bias.data
    for training in (True, False):
        expected = plain.train(training)(Tensor(sign(x)))
        assert_identical(binary.train(training)(Tensor(x)), expected)


@pytest.mark.parametrize("name", TWINS)
def test_binary_weight(name):
    positional, options = ARGUMENTS[name]
    layer = TWINS[name][1](*positional, **options)
    layer.weight.data.ravel()[:3] = (0.0, -0.0, np.nan)
    weight = layer.binary_weight()
    assert isinstance(weight, np.ndarray)
    assert weight.shape == layer.weight.shape
    assert weight.dtype == np.float32
    assert_identical(weight, np.where(layer.weight.data >= 0, 1.0, -1.0))
    assert isinstance(layer.weight, nn.LatentParameter)
    real = TWINS[name][1](*positional, **options, weight_quantizer=None)
    with pytest.raises(ValueError, match="without weight_quantizer has real weights"):
        real.binary_weight()


def test_binary_sums_are_integers():
    layer = nn.BinaryConv2d(16, 8, 3, padding=1)
    y = layer(Tensor(normal(2, 16, 5, 5))).data
    assert_identical(y, np.round(y))
    assert (np.abs(y) <= 16 * 9).all()
    inside = y[:, :, 1:-1, 1:-1]
    assert_identical(inside % 2, np.zeros(inside.shape))  # an even number of ±1


def test_padding_modes():
    x = normal(2, 3, 5, 4)
    signs = sign(x)
    for mode, value in (("zeros", 0.0), ("ones", 1.0)):
        for padding, groups in (((1, 2), 1), (1, 3), (0, 1)):
            layer = nn.BinaryConv2d(3, 6, 3, padding=padding, groups=groups, padding_mode=mode)
            ph, pw = layer.padding
            padded = np.pad(signs, ((0, 0), (0, 0), (ph, ph), (pw, pw)), constant_values=value)
            expected = F.conv2d(padded, layer.binary_weight(), groups=groups)
            assert_identical(layer(Tensor(x)), expected, mode)


SCALED = {
    "rows": (lambda **o: nn.BinaryLinear(5, 3, **o), (4, 5)),
    "one row": (lambda **o: nn.BinaryLinear(5, 3, **o), (5,)),
    "more axes": (lambda **o: nn.BinaryLinear(5, 3, **o), (2, 4, 5)),
    "images": (lambda **o: nn.BinaryConv2d(2, 3, 3, **o), (2, 2, 5, 5)),
}


@pytest.mark.parametrize("name", SCALED)
def test_scale_and_bias_act_on_the_sums(name):
    make, shape = SCALED[name]
    x = Tensor(normal(*shape))
    per_channel = (3, 1, 1) if len(shape) == 4 else (3,)
    for scale in (None, "mean", "learned"):
        layer = make(scale=scale, bias=True, rng=np.random.default_rng(1))
        sums = make(rng=np.random.default_rng(1))(x)
        factor = np.ones(3, np.float32)
        if scale == "mean":
            factor = np.abs(layer.weight.data).reshape(3, -1).mean(1)
        elif scale == "learned":
            assert_identical(layer.scale, [1.0, 1.0, 1.0])
            layer.scale.data[...] = factor = normal(3, seed=5)
        expected = sums.data * factor.reshape(per_channel) + layer.bias.data.reshape(per_channel)
        y = layer(x)
        assert_identical(y, expected, f"scale={scale!r}")
        y.sum().backward()
        assert_identical(layer.bias.grad, np.full(3, sums.data.size / 3, np.float32))
        if scale == "learned":
            axes = tuple(i for i, n in enumerate(sums.shape) if i != len(shape) - len(per_channel))
            np.testing.assert_allclose(layer.scale.grad.data, sums.data.sum(axes), 1e-6)


def test_mean_scale_is_constant_in_the_gradient():
    layer = nn.BinaryLinear(4, 3, scale="mean").to(np.float64)
    x = Tensor(normal(2, 4), dtype=np.float64)
    incoming = normal(2, 3, seed=1).astype(np.float64)
    layer(x).backward(incoming)
    factor = np.abs(layer.weight.data).mean(1)
    np.testing.assert_allclose(layer.weight.grad.data, (incoming * factor).T @ sign(x.data), 1e-12)


def test_straight_through_gradients_of_a_layer():
    layer = nn.BinaryLinear(4, 3)
    layer.weight.data[0] = (0.5, 1.0, 1.5, -2.0)
    x = Tensor(np.array([[0.3, -1.0, 1.2, -3.0]], np.float32), requires_grad=True)
    layer(x).backward(np.ones((1, 3), np.float32))
    assert_identical(x.grad, np.sum(layer.binary_weight(), 0, keepdims=True) * [[1, 1, 0, 0]])
    assert_identical(layer.weight.grad.data[0], sign(x.data[0]) * [1, 1, 0, 0])


def test_quantizers_of_a_layer():
    x = Tensor(normal(2, 5))
    layer = nn.BinaryLinear(5, 3, input_quantizer=None)
    np.testing.assert_allclose(layer(x).data, x.data @ layer.binary_weight().T, 1e-5, 1e-6)
    layer = nn.BinaryLinear(5, 3, weight_quantizer=None)
    np.testing.assert_allclose(layer(x).data, sign(x.data) @ layer.weight.data.T, 1e-5, 1e-6)
    layer = nn.BinaryLinear(5, 3, input_quantizer=ApproxSign(), weight_quantizer="approx_sign")
    assert isinstance(layer.input_quantizer, ApproxSign)
    assert isinstance(layer.weight_quantizer, ApproxSign)
    custom = nn.BinaryLinear(5, 3, input_quantizer=SteSign(0.5), clip_value=None)
    assert custom.input_quantizer.clip_value == 0.5
    assert custom.weight.clip_value is None


def test_quantize_layer():
    x = normal(2, 5)
    assert_identical(nn.Quantize()(Tensor(x)), sign(x))
    assert isinstance(nn.Quantize("approx_sign").quantizer, ApproxSign)


WEIGHT_QUANTIZERS = {  # quantizer, values that the layer computes with
    "ste_sign": ("ste_sign", {-1, 1}),
    "magnitude_aware_sign": ("magnitude_aware_sign", {-1, 1}),
    "magnitude_aware_sign_unscaled": (MagnitudeAwareSign(0.3, scale_gradient=False), {-1, 1}),
    "bitnet_ternary": ("bitnet_ternary", {-1, 0, 1}),
    "ste_tern": ("ste_tern", {-1, 0, 1}),
    "ste_heaviside": ("ste_heaviside", {0, 1}),
    "dorefa_weight": (DoReFaWeight(2), None),
}
INPUT_QUANTIZERS = ["ste_sign", "approx_sign", "dorefa_activation", "ste_heaviside", None]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("input_quantizer", INPUT_QUANTIZERS)
@pytest.mark.parametrize("name", WEIGHT_QUANTIZERS)
def test_layer_of_any_quantizers_is_the_plain_definition(name, input_quantizer, training):
    """conv(q_in(x), q_w(W)) and its gradients, although the scale multiplies the sums."""
    weight_quantizer, values = WEIGHT_QUANTIZERS[name]
    quantizers = {"input_quantizer": input_quantizer, "weight_quantizer": weight_quantizer}
    cases = [
        (nn.BinaryLinear(6, 4, bias=True, **quantizers), (3, 6), F.linear),
        (
            nn.BinaryConv2d(4, 6, (3, 2), 2, 1, groups=2, bias=True, **quantizers),
            (2, 4, 6, 5),
            lambda x, w, b: F.conv2d(x, w, b, 2, 1, groups=2),
        ),
    ]
    for layer, shape, plain in cases:
        layer.to(np.float64).train(training)
        x = Tensor(normal(*shape), requires_grad=True, dtype=np.float64)
        q_in = layer.input_quantizer or (lambda x: x)
        y = layer(x)
        expected = plain(q_in(x), layer.weight_quantizer(layer.weight), layer.bias)
        np.testing.assert_allclose(y.data, expected.data, 1e-12, 1e-12)
        incoming = normal(*y.shape, seed=3)
        wanted = [x, layer.weight, layer.bias]
        for ours, theirs in zip(
            grad(y, wanted, incoming), grad(expected, wanted, incoming), strict=True
        ):
            np.testing.assert_allclose(ours.data, theirs.data, 1e-12, 1e-12)
        if values is not None:
            assert set(np.unique(layer.binary_weight())) == values
        whole = layer(x).data
        if not training:
            for i in range(len(whole)):
                assert_identical(layer(Tensor(x.data[i : i + 1])), whole[i : i + 1])


@pytest.mark.parametrize(
    "quantizers",
    [
        {"input_quantizer": None},
        {"input_quantizer": "magnitude_aware_sign"},  # ±m, another m for each sample
        {"weight_quantizer": "dorefa_weight"},
        {"weight_quantizer": None},
    ],
    ids=str,
)
def test_real_sums_in_eval_run_in_one_order(quantizers):
    x = normal(9, 64, 5, 5)
    conv = nn.BinaryConv2d(64, 8, 3, **quantizers)
    linear = nn.BinaryLinear(1600, 8, **quantizers)
    for layer, values in ((conv, x), (linear, x.reshape(9, -1))):
        whole = layer.eval()(Tensor(values)).data
        for i in range(9):
            assert_identical(layer(Tensor(values[i : i + 1])), whole[i : i + 1])


def test_scaled_weights_leave_the_sums_integers():
    for quantizer in ("magnitude_aware_sign", "bitnet_ternary"):
        layer = nn.BinaryLinear(65, 3, weight_quantizer=quantizer)
        x = normal(4, 65)
        sums = sign(x) @ layer.binary_weight().T
        assert_identical(layer(Tensor(x)), sums * layer.weight_quantizer.scale(layer.weight.data))


def test_a_filter_of_zeros():
    """Its scale is 0: its output is 0 and its gradients are finite."""
    for quantizer in ("magnitude_aware_sign", "bitnet_ternary", SteTern(), BitNetTernary()):
        layer = nn.BinaryConv2d(2, 3, 3, weight_quantizer=quantizer)
        layer.weight.data[1] = 0
        y = layer(Tensor(normal(2, 2, 5, 5)))
        assert_identical(np.abs(y.data[:, 1]), np.zeros((2, 3, 3), np.float32))
        y.sum().backward()
        assert np.isfinite(layer.weight.grad.data).all()


# -------------------------------------------------------------- layers of ReActNet and AdaBin


class Smooth(Quantizer):
    """Tanh in place of a sign, so that a layer becomes differentiable."""

    values = None

    def forward(self, x):
        return np.tanh(x)

    def pseudo_gradient(self, x):
        return 1.0 - F.tanh(x) * F.tanh(x)

    surrogate = staticmethod(F.tanh)


def check_layer(layer, *shape, offset=0.3):
    """Check first and second order for the input and every parameter, away from kinks."""
    layer.to(np.float64)
    names, parameters = zip(*layer.named_parameters(), strict=True)
    arrays = [p.data + 0.1 * normal(*p.shape, seed=9 + i) for i, p in enumerate(parameters)]

    def run(x, *values):
        for name, value in zip(names, values, strict=True):
            vars(layer)[name] = value
        return layer(x)

    x = normal(*shape).astype(np.float64)
    x = np.where(np.abs(x) < offset, x + 2 * offset, x)
    try:
        gradcheck(run, [x, *arrays])
        gradgradcheck(run, [x, *arrays])
    finally:
        for name, parameter in zip(names, parameters, strict=True):
            vars(layer)[name] = parameter


CHANNELS = [(4, 3), (2, 3, 4), (2, 3, 4, 2)]


def of_channel(values, x):
    return values.reshape(1, -1, *(1,) * (x.ndim - 2))


@pytest.mark.parametrize("shape", CHANNELS, ids=str)
def test_rsign(shape):
    layer, x = nn.RSign(3), normal(*shape)
    assert_identical(layer(Tensor(x)), sign(x))
    layer.threshold.data[...] = alpha = np.array([-0.5, 0.0, x[0, 2].flat[0]], np.float32)
    shifted = x - of_channel(alpha, x)
    assert_identical(layer(Tensor(x)), sign(shifted))
    assert layer(Tensor(x)).data[0, 2].flat[0] == 1  # equal to the threshold
    t = Tensor(x, requires_grad=True)
    incoming = normal(*shape, seed=1)
    slope_x, slope_alpha = grad(layer(t), [t, layer.threshold], incoming)
    expected = incoming * np.maximum(2 - 2 * np.abs(shifted), 0)  # approx_sign
    np.testing.assert_allclose(slope_x.data, expected, 1e-5, 1e-6)
    axes = (0, *range(2, x.ndim))
    np.testing.assert_allclose(slope_alpha.data, -expected.sum(axes), 1e-5, 1e-5)
    check_layer(nn.RSign(3, Smooth()), *shape)
    assert isinstance(nn.RSign(3, "ste_sign").quantizer, SteSign)


@pytest.mark.parametrize("shape", CHANNELS, ids=str)
def test_rprelu(shape):
    layer, x = nn.RPReLU(3), normal(*shape)
    assert_identical(layer(Tensor(x)), np.where(x > 0, x, np.float32(0.25) * x))
    gamma, beta, zeta = (normal(3, seed=i) for i in (1, 2, 3))
    layer.load_state_dict({"shift_in": gamma, "weight": beta, "shift_out": zeta})
    z = x - of_channel(gamma, x)
    expected = np.where(z > 0, z, of_channel(beta, x) * z) + of_channel(zeta, x)
    np.testing.assert_allclose(layer(Tensor(x)).data, expected, 1e-6, 1e-6)
    check_layer(nn.RPReLU(3, init=0.1), *shape)
    assert_identical(nn.RPReLU(2, init=0.1).weight, np.full(2, 0.1, np.float32))


@pytest.mark.parametrize("shape", CHANNELS, ids=str)
def test_maxout(shape):
    layer, x = nn.Maxout(3), normal(*shape)
    assert_identical(layer(Tensor(x)), np.where(x > 0, x, np.float32(0.25) * x))
    up, down = normal(3, seed=1), normal(3, seed=2)
    layer.load_state_dict({"positive": up, "negative": down})
    expected = np.where(x > 0, of_channel(up, x) * x, of_channel(down, x) * x)
    np.testing.assert_allclose(layer(Tensor(x)).data, expected, 1e-6, 1e-6)
    check_layer(nn.Maxout(3, 0.9, 0.1), *shape)
    assert_identical(nn.Maxout(2, 0.9, 0.1).positive, np.full(2, 0.9, np.float32))


@pytest.mark.parametrize("shape", CHANNELS, ids=str)
@pytest.mark.parametrize("count", [1, 3])
def test_prelu(shape, count):
    layer, x = nn.PReLU(count, init=0.4), normal(*shape)
    assert_identical(layer(Tensor(x)), np.where(x > 0, x, np.float32(0.4) * x))
    check_layer(layer, *shape)


ADABIN = {
    "plain": {},
    "padding": {"padding": 1},
    "stride": {"stride": 2, "padding": (1, 0)},
    "dilation": {"dilation": (1, 2), "padding": 2},
    "groups": {"groups": 2, "padding": 1},
    "depthwise": {"groups": 4, "padding": 1, "stride": (1, 2)},
    "bias": {"bias": True, "padding": 1},
}
adabin = pytest.mark.parametrize("options", ADABIN.values(), ids=ADABIN)


def adabin_by_definition(layer, x):
    """α_a (sign((x - β_a) / α_a) + β_a) with α_w sign((W - β_w) / α_w) + β_w, in NumPy."""
    alpha, beta = max(layer.input_scale.data[0], 1e-3), layer.input_offset.data[0]
    activation = alpha * (sign((x - beta) / alpha) + beta)
    weight = np.empty_like(layer.weight.data)
    for i, filter in enumerate(layer.weight.data):
        centred = filter - filter.mean()
        weight[i] = np.sqrt(np.mean(centred**2)) * sign(centred) + filter.mean()
    return F.conv2d(
        activation, weight, None if layer.bias is None else layer.bias.data, layer.stride,
        layer.padding, layer.dilation, layer.groups,
    )  # fmt: skip


@adabin
@pytest.mark.parametrize("scale", [1.0, 0.4, -0.2])
def test_adabin_is_its_definition(options, scale):
    layer = nn.AdaBinConv2d(4, 8, (3, 2), **options).to(np.float64)
    layer.input_scale.data[...], layer.input_offset.data[...] = scale, 0.3
    x = normal(2, 4, 7, 6).astype(np.float64)
    expected = adabin_by_definition(layer, x)
    for training in (True, False):
        y = layer.train(training)(Tensor(x))
        np.testing.assert_allclose(y.data, expected, 1e-9, 1e-9)
    layer.to(np.float32)
    for training in (True, False):
        y = layer.train(training)(Tensor(x.astype(np.float32)))
        assert y.dtype == np.float32
        np.testing.assert_allclose(y.data, expected, 1e-4, 1e-4)


@adabin
@pytest.mark.parametrize("shape", [(2, 4, 7, 6), (9, 4, 40, 33)], ids=str)
def test_adabin_gives_the_same_bits_in_both_modes_and_in_a_trace(options, shape, monkeypatch):
    monkeypatch.setattr(dispatch, "MUCH", 1 << 20)
    layer, x = nn.AdaBinConv2d(4, 8, (3, 2), **options), Tensor(normal(*shape))
    layer.input_scale.data[...], layer.input_offset.data[...] = 0.7, 0.3
    in_training = layer(x).data
    assert_identical(layer.eval()(x), in_training)
    assert in_training.transpose(0, 2, 3, 1).flags.c_contiguous
    with trace():
        assert_identical(layer(x), in_training)


@adabin
def test_adabin_has_the_same_gradients_in_both_modes(options):
    layer = nn.AdaBinConv2d(4, 8, (3, 2), **options).to(np.float64)
    layer.input_scale.data[...], layer.input_offset.data[...] = 0.7, 0.3
    x = Tensor(normal(2, 4, 7, 6), requires_grad=True, dtype=np.float64)
    wanted = [x, *layer.parameters()]
    incoming = normal(*layer(x).shape, seed=1)
    results = [grad(layer.train(mode)(x), wanted, incoming) for mode in (True, False)]
    for plain, expanded in zip(*results, strict=True):
        np.testing.assert_allclose(expanded.data, plain.data, 1e-9, 1e-9)


@adabin
@pytest.mark.parametrize("training", [True, False])
def test_adabin_gradients(options, training):
    smooth = {"input_quantizer": Smooth(), "weight_quantizer": Smooth()}
    layer = nn.AdaBinConv2d(4, 8, (3, 2), **options, **smooth)
    check_layer(layer.train(training), 2, 4, 5, 6)


@adabin
def test_adabin_in_eval_does_not_depend_on_the_batch(options):
    layer = nn.AdaBinConv2d(4, 8, (3, 2), **options).eval()
    layer.input_offset.data[...] = 0.3
    x = normal(5, 4, 7, 6)
    whole = layer(Tensor(x)).data
    for i in range(5):
        assert_identical(layer(Tensor(x[i : i + 1])), whole[i : i + 1])


def test_adabin_binary_weight_is_what_eval_computes_with():
    """Also where a weight equals its filter's mean and the last bit decides its sign."""
    layer = nn.AdaBinConv2d(3, 64, 3).eval()
    layer.weight.data[:32] = np.random.default_rng(0).random((32, 1, 1, 1))  # equal weights
    with trace() as calls:
        layer(Tensor(normal(1, 3, 5, 5)))
    used = [call.inputs[1].data for call in calls if type(call.function) is F.SignConv2d]
    assert_identical(used[0], layer.binary_weight())
    assert set(np.unique(layer.binary_weight())) == {-1, 1}
    assert layer.binary_weight().dtype == np.float32


def test_adabin_corners():
    layer = nn.AdaBinConv2d(2, 3, 3)
    layer.weight.data[1] = 0.25  # equal weights: no spread to divide by
    layer.input_scale.data[...] = -5.0  # acts as 0.001
    for training in (True, False):
        layer.zero_grad()
        x = Tensor(normal(2, 2, 5, 5), requires_grad=True)
        y = layer.train(training)(x)
        y.sum().backward()
        for values in (y, x.grad, *(p.grad for p in layer.parameters())):
            assert np.isfinite(values.data).all()
        assert layer.input_scale.grad.data[0] == 0  # beyond its limit
    assert isinstance(layer.weight, nn.LatentParameter)
    assert layer.weight.clip_value is None


def test_a_network_of_all_layers_learns_and_repeats_itself():
    """Gradients reach every parameter; eval's output for an image is independent of the batch."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.RSign(4),
        nn.BinaryConv2d(4, 4, 3, padding=1, input_quantizer=None,
                        weight_quantizer="magnitude_aware_sign"),
        nn.BatchNorm2d(4), nn.RPReLU(4), nn.AdaBinConv2d(4, 6, 3, stride=2, padding=1),
        nn.Maxout(6), nn.BatchNorm2d(6),
        nn.BinaryConv2d(6, 4, 1, weight_quantizer="bitnet_ternary"), nn.BatchNorm2d(4),
        nn.PReLU(4), nn.ConvTranspose2d(4, 4, 2, stride=2), nn.LeakyReLU(),
        nn.BinaryConv2d(4, 4, 3, input_quantizer="dorefa_activation",
                        weight_quantizer="dorefa_weight"),
        nn.Softplus(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip
    x, target = normal(6, 1, 8, 8), np.array([0, 1, 2, 0, 1, 2])
    F.cross_entropy(model(Tensor(x)), target, label_smoothing=0.1).backward()
    for name, parameter in model.named_parameters():
        assert np.isfinite(parameter.grad.data).all(), name
        assert parameter.grad.dtype == np.float32, name
        assert np.abs(parameter.grad.data).max() > 0, name
    whole = model.eval()(Tensor(x)).data
    for start, size in ((0, 1), (1, 2), (3, 3), (5, 1)):
        part = slice(start, start + size)
        assert_identical(model(Tensor(x[part])), whole[part])


def test_a_binary_network_learns():
    """Latent weights move until the signs fit a rule that one binary layer can express."""
    rng = np.random.default_rng(0)
    x = rng.choice([-1.0, 1.0], (256, 15)).astype(np.float32)
    teacher = rng.choice([-1.0, 1.0], 15).astype(np.float32)
    target = (x @ teacher > 0).astype(int)
    layer = nn.BinaryLinear(15, 2, rng=rng)
    for _ in range(60):
        layer.zero_grad()
        F.cross_entropy(layer(Tensor(x)) * 0.2, target).backward()
        layer.weight.data = np.clip(layer.weight.data - layer.weight.grad.data, -1, 1)
    with no_grad():
        assert np.mean(layer(Tensor(x)).data.argmax(1) == target) == 1.0
