"""Hooks of Modules, and the other methods of Module that have PyTorch's names."""

import copy
import pickle

import numpy as np
import pytest

import tinybnn as tb
from tinybnn import deploy, nn
from tinybnn.tensor import Tensor, grad, no_grad
from tinybnn.testing import assert_identical


def net():
    rng = np.random.default_rng(0)
    return nn.Sequential(
        nn.Linear(4, 6, rng=rng), nn.Sequential(nn.ReLU(), nn.BinaryLinear(6, 5, rng=rng)),
        nn.BatchNorm1d(5), nn.BinaryLinear(5, 3, weight_quantizer="ste_tern", rng=rng),
    )  # fmt: skip


def batch(requires_grad=False):
    x = np.random.default_rng(1).standard_normal((7, 4)).astype(np.float32)
    return Tensor(x, requires_grad=requires_grad)


class Scale(nn.Module):
    def forward(self, x, factor=1.0, *, shift=0.0):
        return x * factor + shift


# ------------------------------------------------------------------------------------------- hooks


def test_a_forward_hook_sees_inputs_and_output():
    model, x, seen = net(), batch(), []
    handle = model[1].register_forward_hook(lambda *arguments: seen.append(arguments))
    y = model(x)
    ((module, inputs, output),) = seen
    assert module is model[1] and len(inputs) == 1
    assert_identical(output.data, model[1](inputs[0]).data)
    handle.remove()
    seen.clear()
    assert_identical(model(x).data, y.data)
    assert not seen


def test_what_a_hook_returns_replaces():
    layer = Scale()
    layer.register_forward_pre_hook(lambda module, inputs: inputs[0] + 1.0)
    layer.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 10.0, 2.0))
    layer.register_forward_hook(lambda module, inputs, output: output - 0.5)
    assert layer(Tensor([1.0]), shift=3.0).tolist() == [10.0 * 2.0 * 2.0 + 3.0 - 0.5]


def test_hooks_run_in_order_until_they_are_removed():
    layer, order = Scale(), []
    handles = [layer.register_forward_hook(lambda *_, i=i: order.append(i)) for i in range(3)]
    handles[1].remove()
    handles[1].remove()
    with layer.register_forward_hook(lambda *_: order.append("with")):
        layer(batch())
    layer(batch())
    assert order == [0, 2, "with", 0, 2]


def test_a_backward_hook_sees_the_gradients():
    model, x, seen = net(), batch(requires_grad=True), []
    for module in (model[0], model[1][1], model):
        module.register_full_backward_hook(lambda *arguments: seen.append(arguments))
    y = model(x)
    (y * y).sum().backward()
    assert [module for module, _, _ in seen] == [model[1][1], model[0], model]
    (of_input,), (of_output,) = seen[1][1:]
    assert_identical(of_input.data, of_output.data @ model[0].weight.data)
    (of_input,), (of_output,) = seen[2][1:]
    assert_identical(of_input.data, x.grad.data)
    assert_identical(of_output.data, 2.0 * y.data)


def test_a_backward_hook_changes_the_gradient_of_the_input():
    w, layer = batch(requires_grad=True), Scale()
    layer.register_full_backward_hook(lambda module, grad_input, _: (3.0 * grad_input[0],))
    layer.register_full_backward_hook(lambda module, grad_input, _: 2.0 * grad_input[0])
    layer(w, factor=5.0).sum().backward()
    assert_identical(w.grad.data, np.full(w.shape, 30, np.float32))


def test_inputs_without_a_gradient_are_none():
    class Product(nn.Module):
        def forward(self, a, b, name, c):
            return a * b * c, a + c

    a, b, c, seen, layer = Tensor([2.0], requires_grad=True), Tensor([3.0]), None, [], Product()
    c = Tensor([5.0], requires_grad=True)
    layer.register_full_backward_hook(lambda *arguments: seen.append(arguments))
    product, total = layer(a, b, "name", c)
    (product + 10.0 * total).sum().backward()
    ((_, grad_input, grad_output),) = seen
    assert [g if g is None else g.item() for g in grad_input] == [25.0, None, None, 16.0]
    assert [g.item() for g in grad_output] == [1.0, 10.0]
    assert (a.grad.item(), c.grad.item()) == (25.0, 16.0)


def test_the_first_layer_has_no_gradient_of_its_input():
    model, seen = net(), []
    model[0].register_full_backward_hook(lambda *arguments: seen.append(arguments))
    model(batch()).sum().backward()
    ((_, grad_input, (of_output,)),) = seen
    assert grad_input == (None,) and of_output.shape == (7, 6)
    with no_grad():
        model(batch())
    assert len(seen) == 1


def test_gradients_stay_differentiable_behind_a_hook():
    w, layer = Tensor([1.0, 2.0], requires_grad=True), Scale()
    layer.register_full_backward_hook(lambda module, grad_input, _: (grad_input[0] * 1.0,))
    first = grad((layer(w * w, factor=2.0) * w).sum(), w, create_graph=True)
    assert_identical(grad(first.sum(), w).data, 12.0 * w.data)


def test_a_wrong_number_of_gradients():
    layer = Scale()
    layer.register_full_backward_hook(lambda module, grad_input, _: (None, None))
    with pytest.raises(RuntimeError, match="Scale has 1 inputs, the hook returned 2 gradients"):
        layer(batch(requires_grad=True)).sum().backward()


def test_hooks_are_compiled():
    model, seen = net()[:3], []
    model[1].register_forward_hook(lambda module, inputs, output: 2.0 * output)
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    model[0].register_full_backward_hook(lambda *arguments: None)
    model(batch()).sum().backward()
    packed = deploy.compile(model, (4,))
    with no_grad():
        assert_identical(packed.predict(batch().data), model.eval()(batch()).data)
    assert "mul" in [step.operation for step in packed.steps]


def seen_by_pickle(module, inputs, output):
    return output * 2.0


def test_copies_keep_hooks_of_their_own():
    layer = Scale()
    handle = layer.register_forward_hook(seen_by_pickle)
    others = copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))
    handle.remove()
    for other in others:
        assert other(Tensor([1.0])).item() == 2.0
    assert layer(Tensor([1.0])).item() == 1.0


# ------------------------------------------------------------------------------- the other methods


def test_arguments_of_forward_by_name():
    y = Scale()(Tensor([1.0]), factor=3.0, shift=1.0)
    assert y.item() == 4.0

    class Outer(nn.Module):
        def __init__(self):
            self.scale, self.linear = Scale(), nn.Linear(4, 4, rng=np.random.default_rng(0))

        def forward(self, x):
            return self.scale(self.linear(x), shift=1.0, factor=0.5)

    packed = deploy.compile(Outer(), (4,))
    with no_grad():
        assert_identical(packed.predict(batch().data), Outer().eval()(batch()).data)


def test_next_of_a_list():
    model = net()
    parameters = model.parameters()
    assert next(parameters) is model[0].weight and next(parameters) is model[0].bias
    assert (
        len(parameters) == len(list(parameters)) == 6 and next(iter(parameters)) is model[0].weight
    )
    assert next(model.children()) is model[0] and next(model.modules()) is model
    assert (
        next(model.named_parameters())[0] == "0.weight" == next(iter(model.named_parameters()))[0]
    )
    assert next(model.buffers()) is model[2].running_mean
    assert next(model.parameters()).device == "cpu"
    with pytest.raises(StopIteration):
        next(nn.ReLU().parameters())


def test_apply_goes_from_the_leaves_to_the_root():
    model, seen = net(), []
    assert model.apply(lambda m: seen.append(type(m).__name__)) is model
    assert seen == [
        "Linear", "ReLU", "BinaryLinear", "Sequential", "BatchNorm1d", "BinaryLinear", "Sequential",
    ]  # fmt: skip


def test_get_submodule():
    model = net()
    assert model.get_submodule("1.1") is model[1][1] and model.get_submodule("") is model
    with pytest.raises(AttributeError, match=r"Sequential has no module '2' of '1.2'; it has 0, 1"):
        model.get_submodule("1.2")


def test_add_module_and_register_parameter():
    model = nn.Module()
    model.add_module("scale", Scale())
    model.register_parameter("weight", nn.Parameter(np.ones(2, np.float32)))
    model.register_parameter("bias", None)
    assert list(model.state_dict()) == ["weight"] and model.bias is None
    assert next(model.children()) is model.scale
    with pytest.raises(TypeError, match="add_module: other must be a Module, got a float"):
        model.add_module("other", 1.0)


def test_a_state_that_fits_in_part():
    model, other = net(), net()
    state = {"0.weight": np.ones((6, 4), np.float32), "9.weight": np.ones(3)}
    report = model.load_state_dict(state, strict=False)
    assert report.unexpected_keys == ["9.weight"]
    assert "0.bias" in report.missing_keys and "0.weight" not in report.missing_keys
    assert_identical(model[0].weight.data, state["0.weight"])
    assert_identical(model[0].bias.data, other[0].bias.data)
    with pytest.raises(KeyError, match=r"has no place for 9.weight.*pass strict=False"):
        model.load_state_dict(state)
    with pytest.raises(ValueError, match=r"0.weight has shape"):
        model.load_state_dict({"0.weight": np.ones(3)}, strict=False)
    for wrong in (state, {**other.state_dict(), "0.weight": np.ones(3)}):  # PyTorch's error
        with pytest.raises(RuntimeError):
            model.load_state_dict(wrong)
    assert model.load_state_dict(other.state_dict()) == ([], [])


def test_binary_weights_are_signs_by_name():
    model = nn.Sequential(
        net(), nn.BinaryConv2d(2, 3, 3, weight_quantizer=None),
        nn.DualBinaryConv2d(2, 3, 3), nn.AdaBinConv2d(2, 3, 3),
        nn.BinaryConv2d(2, 3, 3, weight_quantizer="magnitude_aware_sign", scale="mean"),
    )  # fmt: skip
    weights = model.binary_weights()
    assert list(weights) == [
        "0.1.1.weight", "0.3.weight", "2.branches.0.1.weight", "2.branches.1.1.weight", "3.weight",
        "4.weight",
    ]  # fmt: skip
    parameters = dict(model.named_parameters())
    for name, signs in weights.items():
        assert signs.shape == parameters[name].shape
        assert set(np.unique(signs)) <= ({-1, 0, 1} if name == "0.3.weight" else {-1, 1})
    signs = weights["0.1.1.weight"]
    assert_identical(signs, np.where(model[0][1][1].weight.data >= 0, 1, -1).astype(np.float32))
    assert list(nn.BinaryLinear(3, 4).binary_weights()) == ["weight"]


def test_double_and_back():
    model = net().double()
    assert {p.dtype for p in model.parameters()} == {np.dtype(np.float64)}
    y = model(batch().double())
    assert y.dtype == np.float64
    y.sum().backward()
    with pytest.raises(deploy.CompileError, match="a packed model is float32"):
        deploy.compile(model, (4,))
    assert model.float().to("cpu").cpu() is model and model[0].weight.dtype == np.float32
    assert model.to(tb.float64)[2].running_mean.dtype == np.float64
    assert model.to("cpu", dtype=tb.float32)[2].running_mean.dtype == np.float32
