"""User-defined functions with a context; `test_torch_names` has PyTorch's results for some."""

import numpy as np
import pytest

import tinybnn as tb
from tinybnn import deploy, nn, quantizers
from tinybnn import functional as F
from tinybnn.tensor import Function, Tensor, grad, no_grad, trace
from tinybnn.testing import assert_identical


def own(forward, backward=lambda ctx, grad: grad):
    """A class with these static methods."""
    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type("Own", (Function,), methods)


def x(*values, dtype=np.float32):
    return Tensor(np.array(values or (-2.0, 0.5, 3.0), dtype), requires_grad=True)


def twice(ctx, x):
    return 2.0 * x


# ------------------------------------------------------------------------------- forward, backward


def test_it_is_one_node_under_its_own_name():
    y = own(twice).apply(x())
    assert repr(y.grad_fn) == "Own" and y.grad_fn.edges[0] is not None
    with trace() as tape:
        own(twice).apply(x())
    assert [type(call.function).__name__ for call in tape] == ["Own"]


def test_the_project_s_own_form_runs_beside_it():
    class Cube(Function):
        def forward(self, x):
            return x * x * x

        def backward(self, grad, output, x):
            return 3.0 * grad * x * x

    w = x()
    own(twice).apply(Cube.apply(w)).sum().backward()
    assert_identical(w.grad.data, 3.0 * w.data * w.data)


@pytest.mark.parametrize("factor", [3.0, x(3.0)])
def test_a_tensor_among_the_options(factor):
    class Scale(Function):
        def forward(self, x, factor):
            return x * factor

        def backward(self, grad, output, x):
            return grad * 3.0

    if isinstance(factor, float):
        assert_identical(Scale.apply(x(2.0), factor=factor).data, np.float32([6]))
    else:
        with pytest.raises(TypeError, match=r"Scale.apply: factor is a Tensor.* by position"):
            Scale.apply(x(2.0), factor=factor)


def test_a_subclass_overrides_one_method():
    class Other(own(twice)):
        @staticmethod
        def backward(ctx, grad):
            return 5.0 * grad

    w = x()
    y = Other.apply(w)
    y.sum().backward()
    assert repr(y.grad_fn) == "Other"
    assert_identical(w.grad.data, np.full(3, 5, np.float32))


@pytest.mark.parametrize("result", [lambda x: 2.0 * (x >= 0) - 1.0, lambda x: np.sign(x.data)])
def test_an_array_becomes_a_tensor_of_the_input_s_dtype(result):
    for dtype in (np.float32, np.float64):
        y = own(lambda ctx, x: result(x)).apply(x(dtype=dtype))
        assert isinstance(y, Tensor) and y.dtype == dtype and y.requires_grad


def test_outputs_of_integers_stay_arrays():
    y, places = own(lambda ctx, x: (2.0 * x, x.argsort()), lambda ctx, g, _: g).apply(x())
    assert y.requires_grad and places.dtype == np.int64


def test_no_output_with_a_gradient():
    places, name = own(lambda ctx, x: (x.argsort(), "a")).apply(x())
    assert places.tolist() == [0, 1, 2] and name == "a"


def test_no_tensor_at_all():
    assert_identical(own(lambda ctx, n: tb.ones(n)).apply(2).data, np.ones(2, np.float32))


def test_a_gradient_that_is_none_is_0():
    w = x()
    (own(twice, lambda ctx, grad: None).apply(w) + w).sum().backward()
    assert_identical(w.grad.data, np.ones(3, np.float32))


@pytest.mark.parametrize("result", [lambda grad: np.array(2.0), lambda grad: 2.0, lambda grad: 2])
def test_a_gradient_that_is_an_array_or_a_number(result):
    w = Tensor(1.0, requires_grad=True)
    f = own(twice, lambda ctx, grad: result(grad)).apply
    (f(w) + f(w)).backward()
    assert w.grad.item() == 4.0 and w.grad.dtype == np.float32
    assert grad(f(w) + w * w, w, create_graph=True).item() == 4.0


def test_needs_input_grad():
    needs = []

    def forward(ctx, *inputs):
        needs.append(ctx.needs_input_grad)
        return inputs[0] * 1.0

    own(forward).apply(x(), Tensor([1.0]), 3)
    assert needs == [(True, False, False)]


def test_the_graph_of_what_is_not_needed_is_not_kept():
    with no_grad():
        assert own(twice).apply(x()).is_leaf
    assert own(twice).apply(Tensor([1.0])).is_leaf


def test_backward_may_change_its_gradient():
    def backward(ctx, grad):
        grad[...] = 7.0
        return grad

    w = x()
    y = w * 1.0
    (own(twice, backward).apply(y) + y).sum().backward()
    assert_identical(w.grad.data, np.full(3, 8, np.float32))


def test_backward_twice():
    w = x()
    y = own(twice).apply(w).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert_identical(w.grad.data, np.full(3, 2, np.float32))
    with pytest.raises(RuntimeError, match="was freed by an earlier backward"):
        y.backward()


def test_a_saved_tensor_that_was_changed():
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return 2.0 * x

    w = x()
    v = w * 1.0
    y = own(forward, lambda ctx, grad: grad * ctx.saved_tensors[0]).apply(v)
    with no_grad():
        v.zero_()
    with pytest.raises(RuntimeError, match="changed by an in-place operator"):
        y.sum().backward()


@pytest.mark.parametrize(
    ("forward", "backward", "error", "message"),
    [
        (lambda ctx, x: x.zero_(), None, RuntimeError, "Own.forward changed an input in place"),
        (
            lambda ctx, x: ctx.save_for_backward(3.0), None, TypeError,
            "save_for_backward: expects Tensors, arrays or None, got a float; set an attribute",
        ),
        (
            lambda ctx, x: x * 1.0, lambda ctx, grad: (grad, grad), RuntimeError,
            "Own.backward: expects 1 gradients, one for each argument .* got 2",
        ),
        (
            lambda ctx, x: x * 1.0, lambda ctx, grad: (), RuntimeError,
            "Own.backward: expects 1 gradients, one for each argument .* got 0",
        ),
        (
            lambda ctx, x: x * 1.0, lambda ctx, grad: grad[:1], RuntimeError,
            "Own.backward: the gradient of input 0 has shape .1,., the input has shape .3,.",
        ),
    ],
)  # fmt: skip
def test_mistakes(forward, backward, error, message):
    with pytest.raises(error, match=message):
        own(forward, backward).apply(x()).sum().backward()


def test_methods_that_are_not_static():
    with pytest.raises(TypeError, match=r"Own: forward.* are static methods; write @staticmethod"):

        class Own(Function):
            def forward(ctx, x):  # noqa: N805
                return x


# ----------------------------------------------------------------------------------------- compile


SIGNS = {
    "where": lambda x: F.where(x >= 0, 1.0, -1.0),
    "where of Tensors": lambda x: F.where(x >= 0, tb.ones_like(x), -tb.ones_like(x)),
    "a comparison": lambda x: 2.0 * (x >= 0) - 1.0,
    "the package's": lambda x: quantizers.sign(x.data),
    "PyTorch's, mended": lambda x: x.sign().masked_fill(x == 0, 1.0),
    "in place": lambda x: x.sign().masked_fill_(x.data == 0, 1.0),
}


class Net(nn.Module):
    """A custom sign for activations, after floats and after sums, and for weights."""

    def __init__(self, forward):
        rng = np.random.default_rng(0)

        def with_clip(ctx, x, clip=1.0):
            ctx.save_for_backward(x)
            ctx.clip = clip
            return forward(x)

        def backward(ctx, grad):
            return grad * (ctx.saved_tensors[0].abs() <= ctx.clip), None

        self.sign = own(with_clip, backward).apply
        self.first, self.second = nn.BatchNorm2d(4), nn.BatchNorm2d(70)
        self.conv = nn.Conv2d(4, 70, 3, bias=False, rng=rng)
        self.linear = nn.Linear(70 * 9, 5, rng=rng)

    def forward(self, x):
        x = self.sign(self.first(x))
        x = F.conv2d(x, self.sign(self.conv.weight))
        x = self.sign(self.second(x), 2.0)
        return F.linear(x.flatten(1), self.sign(self.linear.weight)) + self.linear.bias


def images(n=7):
    x = np.random.default_rng(1).standard_normal((n, 4, 5, 5)).astype(np.float32)
    x[0], x[1] = 0.0, -0.0
    return x


@pytest.mark.parametrize("name", SIGNS)
def test_a_sign_is_a_sign_to_the_compiler(name):
    model = Net(SIGNS[name])
    model(Tensor(images())).sum().backward()
    assert np.any(model.conv.weight.grad.data)
    packed = deploy.compile(model, (4, 5, 5))
    steps = [step.operation for step in packed.steps]
    assert steps == ["affine", "pack", "xnor_conv2d", "threshold", "flatten_bits",
                     "xnor_linear", "to_float", "add"]  # fmt: skip
    with no_grad():
        assert_identical(packed.predict(images()), model.eval()(Tensor(images())).data)
    assert deploy.verify(model, packed, images()) > 0
    assert deploy.check(model, (4, 5, 5))


NO_SIGNS = {
    "0 at 0": (lambda x: x.sign(), "Own.forward returns 0.0 for 0.0, but the sign is 1"),
    "-1 at 0": (lambda x: F.where(x > 0, 1.0, -1.0), "Own.forward returns -1.0 for 0.0"),
    "-1 at -0": (
        lambda x: np.copysign(1.0, x.data), "Own.forward returns -1.0 for -0.0, but the sign is 1"
    ),
    "a threshold": (lambda x: F.where(x >= 0.1, 1.0, -1.0), "Own.forward returns -1.0 for 0.0"),
    "a mean": (lambda x: F.where(x >= x.mean(), 1.0, -1.0), "Own.forward returns .* for -?1e-30"),
    "other values": (lambda x: 2.0 * x, "Own has no packed form: the compiler does not know"),
    "three values": (
        lambda x: F.where(x.abs() < 0.3, 0.0, x.sign()), "Own has no packed form: the compiler"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_SIGNS)
def test_what_is_no_sign_says_how_to_make_it_one(name):
    forward, message = NO_SIGNS[name]
    with pytest.raises(deploy.CompileError, match=message) as error:
        deploy.compile(Net(forward), (4, 5, 5))
    assert "make it a quantizer: class Own(tinybnn.quantizers.Quantizer)" in str(error.value)


def test_a_sign_of_two_tensors_is_none():
    sign = own(lambda ctx, x, y: F.where(x >= y, 1.0, -1.0)).apply

    class Two(nn.Module):
        def forward(self, x):
            return sign(x, 0.5 * x)

    with pytest.raises(deploy.CompileError, match="Own has no packed form"):
        deploy.compile(Two(), (3,))


def test_the_second_derivative_of_a_saved_input():
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x * x

    w = x()
    y = own(forward, lambda ctx, grad: 3.0 * grad * ctx.saved_tensors[0] ** 2).apply(w)
    first = grad(y.sum(), w, create_graph=True)
    assert_identical(grad(first.sum(), w).data, 6.0 * w.data)


def test_an_input_given_back_has_memory_of_its_own():
    first, second = x(), x()
    y = own(lambda ctx, a, b: b, lambda ctx, grad: (None, grad)).apply(first, second)
    with no_grad():
        y.zero_()
    assert np.all(second.data) and not np.any(y.data)


def test_what_backward_does_not_read_may_change():
    v = x() * 1.0
    y = own(twice).apply(v)
    with no_grad():
        v.zero_()
        y.zero_()
    y.sum().backward()


def test_zeros_in_the_trace():
    sign = own(lambda ctx, x: x.sign()).apply

    class Rectified(nn.Module):
        def forward(self, x):
            return sign(F.relu(x))

    with pytest.raises(deploy.CompileError, match=r"Own.forward returns 0.0 for 0.0"):
        deploy.compile(Rectified(), (3,))
