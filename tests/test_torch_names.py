"""PyTorch's names: values, gradients and gradients of gradients as in PyTorch."""

from pathlib import Path

import numpy as np
import pytest
import torch_names as names

import tinybnn as tb
from tinybnn import deploy, nn, storage
from tinybnn.autograd.instead import INSTEAD
from tinybnn.tensor import Tensor, grad, no_grad
from tinybnn.testing import assert_identical, gradcheck, gradgradcheck

with np.load(Path(__file__).parent / "data" / "torch_names.npz") as file:
    RECORDED = dict(file)
DTYPES = dict(zip(RECORDED["names"].tolist(), RECORDED["dtypes"].tolist(), strict=True))
DIFFERENTIABLE = {**names.SMOOTH, **names.OWN}


def by_name(cases):
    return pytest.mark.parametrize("name", cases)


def inputs_of(letters, dtype):
    return [RECORDED[f"input {x}"].astype(dtype) for x in letters]


def flat(outputs):
    """All numbers of Tensors and arrays in a row."""
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return np.concatenate([np.ravel(tb.autograd.as_array(y)) for y in outputs])


def tensors(outputs):
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [y for y in outputs if isinstance(y, Tensor) and y.requires_grad]


def weighted(outputs):
    return sum((y * names.weights(y.shape)).sum() for y in outputs)


def derivatives(outputs, inputs, times):
    """The numbers of the first derivatives, and of the second ones."""
    if not times or not outputs:
        return []
    gradients = grad(weighted(outputs), inputs, create_graph=times > 1, allow_unused=True)
    gradients = [
        Tensor(np.zeros(x.shape)) if g is None else g
        for g, x in zip(gradients, inputs, strict=True)
    ]
    again = derivatives([g for g in gradients if g.requires_grad], inputs, times - 1)
    return [flat(tuple(gradients)), *again]


def assert_close(actual, recorded, **tolerances):
    """Compare derivatives; those that one side lacks count as 0."""
    size = max(len(actual), len(recorded))
    actual, recorded = (np.pad(x, (0, size - len(x))) for x in (actual, recorded))
    np.testing.assert_allclose(actual, recorded, **tolerances)


@by_name(DIFFERENTIABLE | names.VALUES | names.OWN_ONCE)
def test_what_pytorch_gives(name):
    times = 2 if name in DIFFERENTIABLE else 1 if name in names.OWN_ONCE else 0
    letters, call = (DIFFERENTIABLE | names.VALUES | names.OWN_ONCE)[name]
    xs = [Tensor(x, requires_grad=times > 0) for x in inputs_of(letters, np.float64)]
    outputs = call(tb, *xs)
    first = outputs[0] if isinstance(outputs, tuple) else outputs
    assert first.dtype == DTYPES[name]
    assert isinstance(first, Tensor) == (first.dtype.kind == "f")
    values = np.concatenate([flat(outputs), *derivatives(tensors(outputs), xs, times)])
    assert_close(values, RECORDED[name], rtol=1e-12, atol=1e-13)


@by_name(DIFFERENTIABLE)
def test_float32_stays_float32(name):
    letters, call = DIFFERENTIABLE[name]
    xs = [Tensor(x, requires_grad=True) for x in inputs_of(letters, np.float32)]
    outputs = tensors(call(tb, *xs))
    wanted = np.float64 if name == "double" else np.float32
    assert {y.dtype for y in outputs} == {np.dtype(wanted)}
    values = np.concatenate([flat(tuple(outputs)), *derivatives(outputs, xs, 2)])
    if "indices" not in getattr(call(tb, *xs), "_fields", ()):
        assert_close(values, RECORDED[name], rtol=1e-4, atol=1e-4)


# Straight-through, and operations that take values out of the graph.
NO_SLOPES = {"own sign", "own inside of another", "own of a constant", "own with a saved output"}


@by_name([name for name in DIFFERENTIABLE if name not in NO_SLOPES])
def test_gradients_are_slopes(name):
    letters, call = DIFFERENTIABLE[name]

    def first(*xs):
        outputs = call(tb, *xs)
        return outputs[0] if isinstance(outputs, tuple) else outputs

    gradcheck(first, inputs_of(letters, np.float64))
    gradgradcheck(first, inputs_of(letters, np.float64))


# --------------------------------------------------------------------------------------- the names


def test_maxima_have_names():
    _values, indices = x().max(dim=1)
    assert_identical(indices, np.array([1, 1]))
    top = x().topk(1)
    assert (top.values.shape, top.indices.dtype, top.indices.shape) == ((2, 1), int, (2, 1))


def x(requires_grad=False):
    return Tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=requires_grad)


def test_equal_elements_keep_their_order():
    values = np.arange(1000.0) % 3
    for descending in (False, True):
        expected = sorted(range(1000), key=lambda i: values[i], reverse=descending)
        assert Tensor(values).argsort(descending=descending).tolist() == expected
    assert Tensor(values).topk(3).indices.tolist() == [2, 5, 8]


def test_the_slope_of_a_deviation_of_equals_is_0():
    same = Tensor([2.0, 2.0], requires_grad=True)
    same.std().backward()
    assert_identical(same.grad.data, np.zeros(2, np.float32))
    zero = Tensor([0.0, 0.0], requires_grad=True)
    zero.norm().backward()
    assert_identical(zero.grad.data, np.zeros(2, np.float32))


def test_a_clone_has_memory_of_its_own():
    first = x()
    second, third = first.clone(), first.view(4)
    first.zero_()
    assert second.sum().item() == 10 and third.sum().item() == 0


def test_in_place_methods_return_the_tensor_and_are_noticed():
    first = x()
    assert first.clamp_(0, 1) is first and first.add_(1) is first
    w = x(requires_grad=True)
    y = w * first
    first.mul_(2.0)
    with pytest.raises(RuntimeError, match="was changed by an in-place operator"):
        y.sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.zero_(), "zero_.. on a Tensor that a graph needs .a leaf.*use zeros_like"),
        (lambda x: (x * 2.0).clamp_(0), "clamp_.. on .*the result of Mul .*x = x.clamp"),
        (lambda x: x.detach().add_(x), "add_..*write x = x . y, or wrap the change in no_grad"),
        (lambda x: (x * 2.0).requires_grad_(False), "the result of Mul .* use x.detach"),
    ],
)
def test_changes_that_a_graph_would_miss(change, message):
    with pytest.raises(RuntimeError, match=message):
        change(x(requires_grad=True))


def test_parameters_change_in_place_without_a_graph():
    w = nn.Parameter(np.array([-3.0, 0.5], np.float32))
    with no_grad():
        w.clamp_(-1, 1).sub_(w, alpha=0.5)
    assert_identical(w.data, np.array([-0.5, 0.25], np.float32))
    assert w.requires_grad_(False) is w and not w.requires_grad


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: x.view(3), "reshape: .2, 2. does not fit into .3,."),
        (lambda x: x.expand(3, 2), "expand: .2, 2. does not fit into .3, 2."),
        (lambda x: x.expand(2), "expand: .2, 2. does not fit into .2,."),
        (lambda x: x.expand(-1, 2, 2), "expand: .* does not fit into .-1, 2, 2."),
        (lambda x: x.repeat(2), "repeat: expects at least 2 sizes >= 0.*got .2,."),
        (lambda x: x.split([1, 2]), "split: expects sizes >= 0 that add up to 2, .*got .1, 2."),
        (lambda x: x.split(0), "split: the size of a part must be >= 1, got 0"),
        (lambda x: x.chunk(0), "chunk: chunks must be >= 1, got 0"),
        (lambda x: x.topk(3), "topk: k must be in 0..2, the size of dim -1, got 3"),
        (lambda x: x.gather(0, np.zeros(2, int)), "gather: index must be an int array of 2 axes"),
        (lambda x: x.norm(3), "norm: p must be 1, 2 or math.inf, got 3"),
        (lambda x: x.squeeze(2), "dim 2 is out of range for a tensor of 2 dimensions"),
        (lambda x: x.max(5), "dim 5 is out of range"),
        (lambda x: x.size(3), "dim 3 is out of range"),
        (lambda x: x.to("cuda"), "to: tinybnn runs on the CPU, got 'cuda'"),
        (lambda x: tb.zeros(2, device="cuda:0"), "tinybnn runs on the CPU, got 'cuda:0'"),
        (lambda x: nn.Linear(2, 3).to(device="mps"), "tinybnn runs on the CPU, got 'mps'"),
    ],
)
def test_values_that_do_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call(x())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: x.to(np.int64), "to: dtype must be float32 or float64, got int64"),
        (lambda x: f"{x:.2f}", "unsupported format string passed to Tensor"),
        (lambda x: tb.randn(2, dtype=np.int64), "randn: dtype must be float32 or float64"),
        (lambda x: tb.arange(3, requires_grad=True), "only floats have a gradient, got int64"),
        (lambda x: np.sum(x, dtype=np.float64), "sum: a Tensor takes no dtype"),
    ],
)
def test_types_that_do_not_fit(call, message):
    with pytest.raises(TypeError, match=message):
        call(x())


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (IndexError, lambda x: x.squeeze(2)), (IndexError, lambda x: x.sum(-3)),
        (RuntimeError, lambda x: x.view(3)), (RuntimeError, lambda x: x.expand(3, 2)),
        (RuntimeError, lambda x: x.split([1, 2])), (RuntimeError, lambda x: x.topk(3)),
        (RuntimeError, lambda x: x @ x[:1]), (RuntimeError, lambda x: tb.cat([x, x[0]])),
    ],
)  # fmt: skip
def test_the_kinds_of_errors_that_pytorch_raises(error, call):
    with pytest.raises(error):
        call(x())


@pytest.mark.parametrize("name", INSTEAD)
def test_a_name_that_is_not_here_says_what_is(name):
    with pytest.raises(AttributeError, match=r"Tensor has no attribute .*; use ") as error:
        getattr(x(), name)
    assert INSTEAD[name] in str(error.value) and not hasattr(x(), name)


def test_a_name_that_nobody_knows():
    with pytest.raises(AttributeError, match=r"^Parameter has no attribute 'no_name'$"):
        nn.Parameter(np.ones(2)).no_name  # noqa: B018


def test_text():
    w = x(requires_grad=True)
    assert f"{w.sum():.1f} {x().max():5.2f}" == "10.0  4.00"
    assert f"{w}" == str(w) and repr(w.max()).endswith("grad_fn=<Amax>)")
    assert w.grad_fn is None and repr((w * 2.0).grad_fn) == "Mul"


def test_device_and_dtype_of_a_tensor():
    w = x()
    assert w.to(w.device) is w and w.cpu() is w and w.float() is w
    assert w.double().dtype == tb.float64 == w.to(w.double()).dtype
    assert w.to("cpu", dtype=tb.float64).dtype == w.to("cpu", np.float64).dtype == np.float64


NUMPY = [np.sum, np.mean, np.std, np.var, np.max, np.min]


@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("function", NUMPY)
def test_numpy_s_reductions_know_tensors(function, axis):
    reduced = function(x(requires_grad=True), axis=axis)
    assert reduced.requires_grad
    np.testing.assert_allclose(reduced.data, function(x().data, axis=axis), rtol=1e-6)
    assert function(x(), axis=axis, keepdims=True).shape == ((1, 1), (2, 1))[axis == 1]


def test_numpy_s_squeeze_knows_tensors():
    assert np.squeeze(x().unsqueeze(0), axis=0).shape == (2, 2) == np.squeeze(x()[None]).shape


def test_arrays_meet_tensors():
    w, array = x(requires_grad=True), np.array([1.0, 2.0])
    for y in (array * w, w * array, array - w, np.exp(w), np.sin(w), array @ w):
        assert y.requires_grad
    with pytest.raises(RuntimeError, match=r"np.tan has no gradient rule"):
        np.tan(w)
    with pytest.raises(RuntimeError, match=r"np.sign has no gradient rule"):
        np.sign(w)
    assert isinstance(np.sign(x()), Tensor)


# ---------------------------------------------------------------------------------------- creation


def test_random_tensors_follow_the_seed():
    tb.manual_seed(3)
    first = tb.randn(2, 3), tb.rand((4,)), tb.randn_like(x())
    tb.manual_seed(3)
    for a, b in zip(first, (tb.randn(2, 3), tb.rand(4), tb.randn(2, 2)), strict=True):
        assert_identical(a.data, b.data)
        assert a.dtype == np.float32
    u = tb.rand(1000, generator=np.random.default_rng(0)).data
    assert u.min() >= 0 and u.max() < 1 and abs(u.mean() - 0.5) < 0.05
    assert tb.rand_like(x().double()).dtype == np.float64


def test_memory_is_shared_or_not():
    array = np.ones(3)
    for shared in (tb.from_numpy(array), tb.as_tensor(array)):
        assert np.shares_memory(shared.data, array)
    assert not np.shares_memory(tb.tensor(array).data, array)
    assert tb.tensor(array, requires_grad=True).requires_grad
    labels = np.arange(3)
    assert tb.from_numpy(labels) is labels and tb.zeros_like(labels).dtype == np.int64
    w = tb.ones(2, requires_grad=True)
    assert w.requires_grad and w.is_leaf and tb.as_tensor(w) is w


def test_a_dtype_of_integers_gives_an_array():
    for array in (tb.zeros(2, dtype=tb.int64), tb.full((2,), 3), tb.arange(2)):
        assert type(array) is np.ndarray and array.dtype == np.int64


# ------------------------------------------------------------------------------------ save and load


STATE = {
    "epoch": 3, "rate": 0.1, "best": float("-inf"), "name": "net", "nothing": None, "yes": True,
    "arrays": {0: np.arange(3), 1: np.ones((2, 0), np.float32)}, "list": [1, (2.5, "a"), []],
    "tensor": Tensor([1.0], requires_grad=True), "scalar": np.float32(0.5),
}  # fmt: skip


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        a, b = list(a.values()), list(b.values())
    if isinstance(a, list | tuple):
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    elif isinstance(a, Tensor):
        assert a.requires_grad == b.requires_grad
        assert_identical(a.data, b.data)
    elif isinstance(a, np.ndarray):
        assert_identical(a, b)
    else:
        assert a == b


def test_what_was_saved_is_loaded(tmp_path):
    tb.save(STATE, tmp_path / "state")
    assert_same(tb.load(tmp_path / "state", map_location="cpu", weights_only=True), STATE)


def test_a_checkpoint_goes_on(tmp_path):
    def run(steps, path=None):
        model = nn.Sequential(nn.Linear(2, 3, rng=np.random.default_rng(0)), nn.BatchNorm1d(3))
        optimizer = tb.optim.Adam(model.parameters(), lr=0.1)
        if path:
            state = tb.load(path)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
        for _ in range(steps):
            optimizer.zero_grad()
            (model(x()) ** 2).sum().backward()
            optimizer.step()
        return model, optimizer

    model, optimizer = run(2)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    tb.save(state, tmp_path / "state")
    expected, resumed = run(4)[0].state_dict(), run(2, tmp_path / "state")[0].state_dict()
    for name, array in expected.items():
        assert_identical(resumed[name], array)


@pytest.mark.parametrize(
    ("obj", "message"),
    [
        (nn.Linear(2, 3), "save: obj is a Linear; save its state_dict.. instead"),
        ({"a": [object()]}, r"save: obj\['a'\]\[0\] is a object; save its data instead"),
        ({(1, 2): 3}, "save: obj has the key .1, 2.; expects texts and ints"),
    ],
)
def test_what_no_file_holds(tmp_path, obj, message):
    with pytest.raises(TypeError, match=message):
        tb.save(obj, tmp_path / "state")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content",
    [
        None, {}, {"array": "1"}, {"array": 1}, {"set": []}, {"dict": [1]}, {"list": 3},
       {"a": 1, "b": 2},        {"dict": [[[1], 2]]}, {"tensor": 1.5},
        {"float": "x"}, {"float": None},
    ],
)  # fmt: skip
def test_files_that_hold_no_object(tmp_path, content):
    path, metadata = tmp_path / "state", {} if content is None else {"object": content}
    storage.save(path, {"0": np.arange(2)}, kind="objects", version=1, metadata=metadata)
    with pytest.raises(storage.StorageError, match="damaged"):
        tb.load(path)


# ----------------------------------------------------------------------------------------- compile


class Net(nn.Module):
    """Signs between the operations that have a packed form."""

    def __init__(self, function, bits=12):
        rng = np.random.default_rng(0)
        self.conv = nn.BinaryConv2d(4, 6, 3, padding=1, rng=rng)
        self.norm = nn.BatchNorm2d(6)
        self.linear = nn.Linear(bits, 3, rng=rng)
        self.function = function

    def forward(self, x):
        x = self.function(self.norm(self.conv(x.clone())))
        return self.linear(x.mean((2, 3)).view(x.size(0), -1))


PACKED = {
    "clone": (6, lambda x: x.clone() + x),
    "squeeze": (6, lambda x: x.unsqueeze(2).squeeze(2)),
    "repeat": (12, lambda x: x.repeat(1, 2, 1, 1)),
    "expand": (6, lambda x: x + x[:, :, :1].expand(-1, -1, 5, -1)),
    "expand_as": (6, lambda x: x + tb.ones(1, 6, 1, 1).expand_as(x)),
    "ones_like": (6, lambda x: tb.where(x < 0, -tb.ones_like(x), x)),
    "full_like": (6, lambda x: x * tb.full_like(x, 0.5)),
    "chunk": (3, lambda x: x.chunk(2, dim=1)[0] * x.chunk(2, dim=1)[1]),
    "split": (2, lambda x: x.split([2, 4], 1)[0]),
    "max of two": (6, lambda x: x.max(0.5 * x)),
    "masked_fill": (6, lambda x: x.masked_fill(x < 0, 0.25)),
    "arithmetic": (6, lambda x: x.mul(2.0).add(1.0).sub(x).div(3.0).neg().contiguous()),
    "ge": (6, lambda x: x * x.ge(0.5)),
    "to": (6, lambda x: x.to("cpu").cpu().float()),
    "std": (6, lambda x: x + x.var((2, 3), keepdim=True)),
}


@by_name(PACKED)
def test_names_that_compile(name):
    bits, function = PACKED[name]
    model = Net(function, bits)
    model(Tensor(np.random.default_rng(1).standard_normal((8, 4, 5, 5)).astype(np.float32)))
    packed = deploy.compile(model, (4, 5, 5))
    images = np.random.default_rng(2).standard_normal((3, 4, 5, 5)).astype(np.float32)
    with no_grad():
        assert_identical(packed.predict(images), model.eval()(Tensor(images)).data)
    assert "pack" in [step.operation for step in packed.steps]


def per_sample(x):
    return tb.arange(float(len(x))).view(-1, 1, 1, 1)


REFUSED = {
    "argmax": (lambda x: x * x.argmax(), "the indices of argmax depend on values"),
    "max": (lambda x: x * x.max(dim=1, keepdim=True)[0], "the indices of argmax depend on values"),
    "max of all": (lambda x: x * x.max(), "Amax has no packed form"),
    "sort": (lambda x: x.sort(dim=1).values, "the indices of argsort depend on values"),
    "topk": (lambda x: x.topk(6, 1).values, "the indices of argsort depend on values"),
    "sign": (lambda x: x.sign(), "Sign has no packed form.*write quantizers.ste_sign"),
    "rand_like": (lambda x: x + tb.rand_like(x), "a row for each sample"),
    "arange": (lambda x: x + per_sample(x), "a row for each sample"),
    "arange before a sign": (
        lambda x: tb.quantizers.ste_sign(x + per_sample(x)),
        "a row for each sample",
    ),
    "a count": (lambda x: x + tb.full_like(x, len(x)), "depends on .* the batch size"),
    "sin": (lambda x: x.sin(), "Sin has no packed form"),
    "zero_": (lambda x: x.zero_(), "x.zero_.. is not recorded; use zeros_like"),
    "tolist": (lambda x: x * len(x.tolist()), "tolist.. takes values"),
    "double": (lambda x: x.double().float(), "a packed model is float32"),
}


@by_name(REFUSED)
def test_names_that_do_not_compile_say_so(name):
    function, message = REFUSED[name]
    with pytest.raises(deploy.CompileError, match=message):
        deploy.compile(Net(function, 6), (4, 5, 5))


class Signs(nn.Module):
    """A constant of full size between sums and their sign."""

    def __init__(self, kernel_size, constant):
        rng = np.random.default_rng(0)
        self.conv = nn.BinaryConv2d(4, 6, kernel_size, rng=rng)
        self.constant, self.last = constant, nn.BinaryConv2d(6, 3, 1, rng=rng)

    def forward(self, x):
        x = self.conv(x)
        return self.last(x + self.constant(x))


SHIFTS = tb.from_numpy(np.float32([-5.5, -2, 0, 1, 3, 40]).reshape(1, 6, 1, 1))
CENTRE = np.pad(np.float32([[1.5]]), 1)
CONSTANTS = {  # size of the filter, constant, whether thresholds take it in
    "expand_as": (3, SHIFTS.expand_as, True),
    "of each pixel": (3, lambda x: SHIFTS + tb.arange(9.0).view(1, 1, 3, 3), False),
    "of the pixel in the middle": (3, lambda x: tb.ones(1, 6, 3, 3) * CENTRE, False),
    "ones_like": (3, tb.ones_like, True),
    "larger than the sums": (5, lambda x: SHIFTS.expand(1, 6, 3, 3), False),
}


@by_name(CONSTANTS)
def test_constants_before_a_sign(name):
    kernel_size, constant, has_thresholds = CONSTANTS[name]
    model = Signs(kernel_size, constant).eval()
    packed = deploy.compile(model, (4, 5, 5))
    images = np.random.default_rng(2).standard_normal((7, 4, 5, 5)).astype(np.float32)
    with no_grad():
        assert_identical(packed.predict(images), model(Tensor(images)).data)
    assert ("threshold" in [step.operation for step in packed.steps]) == has_thresholds
