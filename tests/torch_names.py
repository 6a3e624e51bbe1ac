"""Calls that are literally the same in PyTorch and tinybnn; their results are compared.

Each is a function of the library and of Tensors; `tests/data/make_torch_names.py` runs it with
PyTorch, `tests/test_torch_names.py` with tinybnn.
"""

import numpy as np

INPUTS = {  # the arrays that the letters of a case denote
    "x": np.random.default_rng(0).standard_normal((3, 4)),
    "y": np.random.default_rng(1).standard_normal((3, 4)),
    "c": np.random.default_rng(2).standard_normal((2, 3, 4)),
    "r": np.random.default_rng(3).standard_normal((1, 3)),
    "p": np.random.default_rng(4).uniform(0.5, 2.0, (3, 4)),
    "t": np.array([[1.0, 2.0, 2.0], [0.0, 0.0, -1.0]]),  # with ties
    "n": np.array([-2.0, -0.0, 0.0, 0.5, np.nan, np.inf]),
}


def in_place(change):
    """A call that changes a copy that no graph needs."""

    def call(lib, x, *others):
        result = x.detach().clone()
        change(result, *others)
        return result

    return call


INDEX = np.array([[0, 2, 1, 1], [2, 2, 0, 1]])


def index(lib):
    return INDEX if lib.__name__ == "tinybnn" else lib.from_numpy(INDEX)


SMOOTH = {  # name: (letters, call); with first and second derivatives
    "view": ("x", lambda lib, x: x.view(2, 6)),
    "view of a tuple": ("x", lambda lib, x: x.view((-1, 3))),
    "size": ("c", lambda lib, c: c.view(c.size(0), -1) * c.size()[1]),
    "dim": ("x", lambda lib, x: x * x.dim()),
    "squeeze": ("r", lambda lib, r: r.squeeze()),
    "squeeze of a dim": ("r", lambda lib, r: r.squeeze(0)),
    "squeeze of a larger dim": ("r", lambda lib, r: r.squeeze(dim=1)),
    "unsqueeze": ("x", lambda lib, x: x.unsqueeze(1)),
    "unsqueeze behind": ("x", lambda lib, x: x.unsqueeze(dim=-1)),
    "expand": ("r", lambda lib, r: r.expand(4, 3)),
    "expand with -1": ("r", lambda lib, r: r.expand(2, 4, -1)),
    "repeat": ("x", lambda lib, x: x.repeat(2, 3)),
    "repeat along new axes": ("r", lambda lib, r: r.repeat(2, 1, 3)),
    "chunk": ("x", lambda lib, x: x.chunk(2, dim=1)),
    "chunk with a rest": ("c", lambda lib, c: lib.chunk(c, 3, 2)),
    "split": ("c", lambda lib, c: c.split(2, dim=1)),
    "split into sizes": ("x", lambda lib, x: lib.split(x, [1, 3], dim=1)),
    "max": ("x", lambda lib, x: x.max()),
    "min": ("x", lambda lib, x: lib.min(x)),
    "max along a dim": ("c", lambda lib, c: c.max(dim=1)),
    "max keepdim": ("x", lambda lib, x: x.max(1, keepdim=True).values),
    "min along a dim": ("x", lambda lib, x: x.min(-1)),
    "max of two": ("xy", lambda lib, x, y: lib.max(x, y)),
    "min of two": ("xy", lambda lib, x, y: x.min(y)),
    "maximum": ("xy", lambda lib, x, y: lib.maximum(x, y)),
    "sort": ("x", lambda lib, x: x.sort()),
    "sort along 0": ("c", lambda lib, c: lib.sort(c, dim=1, descending=True)),
    "topk": ("x", lambda lib, x: x.topk(2)),
    "topk smallest": ("x", lambda lib, x: lib.topk(x, k=2, dim=0, largest=False)),
    "gather": ("x", lambda lib, x: x.gather(0, index(lib))),
    "clone": ("x", lambda lib, x: x.clone()),
    "std": ("x", lambda lib, x: x.std()),
    "std along dims": ("c", lambda lib, c: c.std(dim=(0, 2), keepdim=True)),
    "std without correction": ("x", lambda lib, x: lib.std(x, 1, correction=0)),
    "var": ("x", lambda lib, x: x.var(0)),
    "norm": ("x", lambda lib, x: x.norm()),
    "norm of magnitudes": ("c", lambda lib, c: lib.norm(c, 1, 2, keepdim=True)),
    "norm of the largest": ("c", lambda lib, c: c.norm(p=float("inf"), dim=(0, 1))),
    "t": ("xy", lambda lib, x, y: x.mm(y.t())),
    "view_as": ("xy", lambda lib, x, y: x.view_as(y.t()) * y.t()),
    "expand_as": ("xc", lambda lib, x, c: x.unsqueeze(0).expand_as(c) * c),
    "pow": ("x", lambda lib, x: x.pow(3)),
    "pow of a number": ("p", lambda lib, p: lib.pow(p, -0.5)),
    "pow of a Tensor": ("px", lambda lib, p, x: p.pow(x)),
    "sin": ("x", lambda lib, x: x.sin()),
    "cos": ("x", lambda lib, x: lib.cos(x)),
    "sign": ("x", lambda lib, x: x.sign() * x),
    "masked_fill": ("x", lambda lib, x: x.masked_fill(x > 0, 2.0)),
    "where": ("xy", lambda lib, x, y: lib.where(x >= y, x * x, y)),
    "comparisons": ("xy", lambda lib, x, y: x.masked_fill(x.ge(y), 0.0) * y),
    "named arithmetic": ("xy", lambda lib, x, y: x.add(y).mul(x).sub(y).div(2.0).neg()),
    "contiguous": ("c", lambda lib, c: c.transpose(1, 2).contiguous().view(2, 12)),
    "double": ("x", lambda lib, x: x.double().cpu().to("cpu")),
    "requires_grad_": ("x", lambda lib, x: x.requires_grad_() * x),
}

VALUES = {  # of values alone
    "argmax": ("x", lambda lib, x: x.argmax()),
    "argmax along a dim": ("c", lambda lib, c: c.argmax(dim=1)),
    "argmax keepdim": ("x", lambda lib, x: lib.argmax(x, 1, keepdim=True)),
    "argmin": ("x", lambda lib, x: x.argmin(1)),
    "argsort": ("x", lambda lib, x: x.argsort(descending=True)),
    "sign of zeros and NaN": ("n", lambda lib, n: n.sign()),
    "max of ties": ("t", lambda lib, t: t.max(1)),
    "sort with NaN": ("n", lambda lib, n: n.sort().values),
    "sort with NaN descending": ("n", lambda lib, n: n.sort(descending=True).values),
    "zero_": ("x", in_place(lambda x: x.zero_())),
    "fill_": ("x", in_place(lambda x: x.fill_(3.0))),
    "clamp_": ("x", in_place(lambda x: x.clamp_(-0.5, 0.5))),
    "clamp_ min": ("x", in_place(lambda x: x.clamp_(min=0.0))),
    "add_": ("xy", in_place(lambda x, y: x.add_(y.detach(), alpha=0.5).sub_(y.detach(), alpha=2))),
    "mul_": ("xy", in_place(lambda x, y: x.mul_(y.detach()).div_(2.0))),
    "copy_": ("xy", in_place(lambda x, y: x.copy_(y.detach()))),
    "masked_fill_": ("x", in_place(lambda x: x.masked_fill_(x > 0, 1.0))),
    "tolist": ("x", lambda lib, x: lib.from_numpy(np.array(x.tolist()))),
    "zeros": ("", lambda lib: lib.zeros(2, 3)),
    "zeros of a tuple": ("", lambda lib: lib.zeros((2, 3), dtype=lib.float64)),
    "ones": ("", lambda lib: lib.ones(2)),
    "ones of integers": ("", lambda lib: lib.ones(2, dtype=lib.int64)),
    "full": ("", lambda lib: lib.full((2, 2), 0.5)),
    "full of an int": ("", lambda lib: lib.full((2,), 7)),
    "full of a bool": ("", lambda lib: lib.full((2,), True)),
    "arange": ("", lambda lib: lib.arange(4)),
    "arange from to": ("", lambda lib: lib.arange(1, 6, 2)),
    "arange of floats": ("", lambda lib: lib.arange(0.0, 1.0, 0.25)),
    "arange with a dtype": ("", lambda lib: lib.arange(3, dtype=lib.float64)),
    "zeros_like": ("x", lambda lib, x: lib.zeros_like(x)),
    "ones_like": ("x", lambda lib, x: lib.ones_like(x, dtype=lib.float32)),
    "full_like": ("x", lambda lib, x: lib.full_like(x, 2.5)),
    "from_numpy": ("", lambda lib: lib.from_numpy(np.arange(3.0))),
    "tensor": ("", lambda lib: lib.tensor([[1.5, 2.0], [0.0, 1.0]])),
    "tensor of an array": ("", lambda lib: lib.tensor(np.array([1.5, 2.0]))),
    "tensor with a dtype": ("", lambda lib: lib.tensor([1, 2], dtype=lib.float64)),
    "tensor of integers": ("", lambda lib: lib.tensor([1, 2])),
    "tensor of bools": ("", lambda lib: lib.tensor([True, False])),
    "tensor of a number": ("", lambda lib: lib.tensor(0.25)),
    "as_tensor": ("", lambda lib: lib.as_tensor([[1.5, 2.0]])),
    "as_tensor of integers": ("", lambda lib: lib.as_tensor([1, 2])),
}


def own(lib):
    """User-defined functions by name."""

    class BinarySign(lib.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return lib.where(x >= 0, lib.ones_like(x), -lib.ones_like(x))

        @staticmethod
        def backward(ctx, grad_output):
            (x,) = ctx.saved_tensors
            grad_input = grad_output.clone()
            return grad_input.masked_fill(x.abs() > 1, 0.0)

    class ScaledTanh(lib.autograd.Function):  # the output is saved
        @staticmethod
        def forward(ctx, x, scale):
            e = lib.exp(2.0 * x)
            y = (e - 1.0) / (e + 1.0)
            ctx.save_for_backward(y)
            ctx.scale = scale
            return y

        @staticmethod
        def backward(ctx, grad_output):
            (y,) = ctx.saved_tensors
            return ctx.scale * grad_output * (1.0 - y * y), None

    class Product(lib.autograd.Function):
        @staticmethod
        def forward(ctx, a, b):
            ctx.save_for_backward(a, b)
            return a * b

        @staticmethod
        def backward(ctx, grad_output):
            a, b = ctx.saved_tensors
            of_a = grad_output * b if ctx.needs_input_grad[0] else None
            of_b = grad_output * a if ctx.needs_input_grad[1] else None
            return of_a, of_b

    class SumAndProduct(lib.autograd.Function):  # two outputs
        @staticmethod
        def forward(ctx, a, b):
            ctx.save_for_backward(a, b)
            return a + b, (a * b).sum()

        @staticmethod
        def backward(ctx, of_sum, of_product):
            a, b = ctx.saved_tensors
            return of_sum + of_product * b, of_sum + of_product * a

    class Marked(lib.autograd.Function):  # an output without a gradient
        @staticmethod
        def forward(ctx, x):
            sign = x.sign()
            ctx.mark_non_differentiable(sign)
            ctx.save_for_backward(x, None)
            return x * x, sign

        @staticmethod
        def backward(ctx, grad_output, of_sign):
            x, nothing = ctx.saved_tensors
            assert nothing is None
            return 2.0 * x * grad_output + of_sign

    class Apart(lib.autograd.Function):  # the context is set up apart from forward
        @staticmethod
        def forward(x, factor):
            return x * factor

        @staticmethod
        def setup_context(ctx, inputs, output):
            _, ctx.factor = inputs

        @staticmethod
        def backward(ctx, grad_output):
            return grad_output * ctx.factor, None

    class Weighted(lib.autograd.Function):  # with arguments of other kinds
        @staticmethod
        def forward(ctx, factors, x, name=None):
            ctx.factor = sum(factors) * len(name)
            return x * ctx.factor

        @staticmethod
        def backward(ctx, grad_output):
            return None, grad_output * ctx.factor, None

    class InPlace(lib.autograd.Function):  # changes its gradient
        @staticmethod
        def forward(ctx, x):
            ctx.mask = x.abs() > 1
            return x.clamp(-1, 1)

        @staticmethod
        def backward(ctx, grad_output):
            grad_input = grad_output.clone()
            grad_input[ctx.mask] = 0
            return grad_input

    classes = (BinarySign, ScaledTanh, Product, SumAndProduct, Marked, Apart, Weighted, InPlace)
    return {cls.__name__: cls for cls in classes}


def used_and_unused(lib, a, b):
    total, _ = own(lib)["SumAndProduct"].apply(a, b)
    return total * b


OWN = {
    "own sign": ("x", lambda lib, x: own(lib)["BinarySign"].apply(2.0 * x) * x),
    "own with a saved output": ("x", lambda lib, x: own(lib)["ScaledTanh"].apply(x, 1.5)),
    "own with a list and a text": ("x", lambda lib, x: own(lib)["Weighted"].apply([1, 2], x, "a")),
    "own of two": ("xy", lambda lib, x, y: own(lib)["Product"].apply(x, y)),
    "own of one twice": ("x", lambda lib, x: own(lib)["Product"].apply(x, x)),
    "own of a constant": ("xy", lambda lib, x, y: own(lib)["Product"].apply(x, y.detach()) * y),
    "own with two outputs": ("xy", lambda lib, x, y: own(lib)["SumAndProduct"].apply(x, y)),
    "own with an unused output": ("xy", used_and_unused),
    "own with a marked output": ("x", lambda lib, x: own(lib)["Marked"].apply(x)[0]),
    "own with setup_context": ("x", lambda lib, x: own(lib)["Apart"].apply(x, 3.0) * x),
    "own inside of another": (
        "xy",
        lambda lib, x, y: own(lib)["Product"].apply(own(lib)["BinarySign"].apply(x), y),
    ),
}
OWN_ONCE = {"own in place": ("x", lambda lib, x: own(lib)["InPlace"].apply(2.0 * x))}


def weights(shape):
    """The factors of an output or a gradient before summation."""
    return np.asarray(1.0 + 0.1 * np.arange(float(np.prod(shape))).reshape(shape))
