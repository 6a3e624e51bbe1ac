"""Chapter 01: rules of operations, the order of the backward pass, and checked gradients."""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np

from tinybnn.course.exercise import (
    Exercise,
    Wrong,
    call,
    compare,
    equal,
    for_all,
    named,
    provided,
)  # fmt: skip


class Formula:
    """A function that messages show as a text."""

    text: str
    function: Callable[..., Any]

    def __init__(self, text: str, function: Callable[..., Any]) -> None:
        self.text, self.function = text, function
        self.__name__: str = text

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __repr__(self) -> str:
        return self.text


# ----------------------------------------------------------------------------- topological_order


def _order(result):
    order, seen, stack = [], set(), [(result, False)]
    while stack:
        node, ready = stack.pop()
        if ready:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((parent, False) for parent in node.parents)
    return order


_TOO_DEEP = (
    "{} calls itself once for each operation, and Python stops that at 1,000: keep the tensors "
    "that are still to be done in a list of your own"
)


_AGAIN = (
    "a tensor is visited again on each path that leads to it, and their number doubles with each "
    "level of such a graph; keep a set of the tensors that were seen"
)


class _TooOften(Exception):  # noqa: N818 - not an error of the student's code
    """A counted event has happened more often than any right answer needs."""


def _counted(function, inputs, why):
    """Return the student's answer, or raise `Wrong` if a counter stopped it."""

    def watched(*arguments):
        try:
            with _usual_depth():
                return function(*arguments)
        except _TooOften:
            return _TooOften

    watched.__name__ = function.__name__
    answer = call(watched, inputs)
    if answer is _TooOften:
        raise Wrong(why, inputs)
    return answer


def _bounded(engine, limit):
    """Make a class of Tensors whose parents can be read at most `limit` times in total."""
    asked = itertools.count()

    class Bounded(engine.Tensor):
        @property
        def parents(self):
            if next(asked) > limit:
                raise _TooOften
            return self._parents

        @parents.setter
        def parents(self, value):
            self._parents = value

    Bounded.__name__ = Bounded.__qualname__ = "Tensor"  # as students call it
    return Bounded


def _graph(make, edges):
    """Make Tensors t0, t1, ...: edges[i] are the numbers of the parents of tensor i."""
    tensors = []
    for parents in edges:
        tensors.append(make(0.0, [tensors[i] for i in parents]))
    return tensors


def _text(edges):
    return ", ".join(
        f"t{i} from ({', '.join(f't{p}' for p in parents)})" if parents else f"t{i}"
        for i, parents in enumerate(edges)
    )


class _Text(str):
    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _edges():
    """Strategy: graphs of up to 7 tensors; the last one is the result."""
    from hypothesis import strategies as st

    sizes = st.integers(1, 7)
    return sizes.flatmap(
        lambda n: st.tuples(*[
            st.lists(st.integers(0, i - 1), max_size=2) if i else st.just([]) for i in range(n)
        ])
    )  # fmt: skip


def order_of_graphs(engine: ModuleType) -> None:
    """the order has each tensor once, after its parents, and nothing else, in any graph."""

    def check(edges):
        tensors = _graph(_bounded(engine, 100 * len(edges)), edges)
        names = {tensor: f"t{i}" for i, tensor in enumerate(tensors)}
        inputs = {"graph": _Text(_text(edges)), "result": _Text(f"t{len(edges) - 1}")}

        def topological_order(graph, result):
            return engine.topological_order(tensors[-1])

        order = _counted(topological_order, inputs, _AGAIN)
        if not isinstance(order, list):
            kind = "None: is a return missing?" if order is None else f"a {type(order).__name__}"
            raise Wrong(f"the order is {kind}; expected a list of Tensors", inputs)
        foreign = [one for one in order if not isinstance(one, engine.Tensor)]
        if foreign:
            kind = type(foreign[0]).__name__
            what = "an array" if kind == "ndarray" else f"a {kind}"
            raise Wrong(f"the order holds {what}; expected Tensors: append(node)", inputs)
        got = _Text(", ".join(names.get(tensor, repr(tensor)) for tensor in order))
        expected = _Text(", ".join(names[tensor] for tensor in _order(tensors[-1])))

        def wrong(why):
            return Wrong(why, inputs, got, expected)

        twice = [tensor for i, tensor in enumerate(order) if tensor in order[:i]]
        if twice:
            raise wrong(f"{names[twice[0]]} is in the order twice; several paths lead to it")
        missing = [names[tensor] for tensor in _order(tensors[-1]) if tensor not in order]
        if missing:
            raise wrong(f"{missing[0]} is missing; the result itself and its inputs belong to it")
        if len(order) > 1 and order[0] is tensors[-1]:
            raise wrong("the order is reversed: parents first, the result last")
        for i, tensor in enumerate(order):
            late = [parent for parent in tensor.parents if parent not in order[:i]]
            if late:
                raise wrong(
                    f"{names[tensor]} stands before its parent {names[late[0]]}: a tensor is put "
                    "into the order when all of its parents are in it, not when it is found; and "
                    "it is marked as seen when its turn comes, not when it is put on the stack"
                )

    check([[], [0], [1], [1, 2]])
    check([[], [0], [1], [2, 1]])
    for_all(check, edges=_edges())


def order_of_many_paths(engine: ModuleType) -> None:
    """a graph with a million paths takes no more visits than it has tensors."""
    edges = [[], *([i, i] for i in range(20))]
    inputs = {"graph": _Text("t1 = t0 + t0, t2 = t1 + t1, ..., t20 = t19 + t19")}
    tensors = _graph(_bounded(engine, 100 * len(edges)), edges)

    def topological_order(graph):
        return engine.topological_order(tensors[-1])

    if len(_counted(topological_order, inputs, _AGAIN)) != len(edges):
        raise Wrong("the order does not have each tensor once", inputs)


def order_of_a_deep_chain(engine: ModuleType) -> None:
    """a chain of 10,000 operations has an order."""
    _deep(engine, engine.topological_order, "topological_order")


def _deep(engine, function, name):
    result = first = engine.Tensor(1.0)
    for _ in range(10_000):
        result = engine.Tensor(result.data, (result,), lambda grad: (grad,))
    try:
        with _usual_depth():
            function(result)
    except RecursionError:
        inputs = {"graph": _Text("a chain of 10,000 operations")}
        raise Wrong(_TOO_DEEP.format(name), inputs) from None
    return first


@contextlib.contextmanager
def _usual_depth():
    """Context manager: fix the recursion limit at its default, whatever the student sets."""
    before, set_limit = sys.getrecursionlimit(), sys.setrecursionlimit
    set_limit(1000)
    try:
        with mock.patch.object(sys, "setrecursionlimit", lambda limit: None):
            yield
        if sys.getrecursionlimit() != 1000:
            raise RecursionError
    finally:
        set_limit(before)


# -------------------------------------------------------------------------------------- backward


def _backward(result):
    order = _order(result)
    for node in order:
        node.grad = None
    result.grad = np.ones_like(result.data)
    for node in reversed(order):
        if node.rule is not None:
            for parent, share in zip(node.parents, node.rule(node.grad), strict=True):
                parent.grad = share if parent.grad is None else parent.grad + share


_OVERWRITTEN = (
    "a gradient is overwritten where two paths meet; the first share is kept, the next ones are "
    "added to it"
)
_NAIVE = (
    "a tensor passes its gradient on before all of it has arrived; go through topological_order in "
    "reverse, so that each one comes after everything that was computed from it"
)
_IN_PLACE = (
    "{name}.grad is changed in place (+=): the rule of a + b hands the same array to a and to b, "
    "so the other one changes too; write grad = grad + share"
)
_NO_FIRST = "the gradient of the result was never set to 1: np.ones_like(result.data)"
_KEPT = "gradients of an earlier call are still there; begin with none"


def _gradient(engine, formula, mistakes, **values):
    """Compare the student's gradients of a formula with right ones.

    `mistakes` has what the mistaken gradients would be.
    """

    results = []

    def gradients(backward, values):
        tensors = [engine.Tensor(np.float64(value)) for value in values]
        results.append(result := formula(*tensors))
        backward(result)
        return tuple(
            _Missing() if tensor.grad is None else np.asarray(tensor.grad) for tensor in tensors
        )

    def backward(formula, *values):
        return gradients(engine.backward, values)

    inputs = {"formula": formula, **values}
    try:
        got = call(backward, inputs)
    except Wrong as wrong:
        wrong.why = _of_none(wrong.cause, results[0]) or wrong.why
        raise
    expected = gradients(_backward, values.values())
    for name, one, right in zip(values, got, expected, strict=True):
        if isinstance(one, _Missing):
            why = f"{name}.grad is still None after backward: go through the order from its end"
            raise Wrong(_NO_FIRST if results[0].grad is None else why, inputs, None, right)
        if one.shape != right.shape:
            raise Wrong(
                f"{name}.grad has shape {one.shape}, expected {right.shape}; the first gradient is "
                "an array too, np.ones_like(result.data)", inputs, one, right,
            )  # fmt: skip
        if not np.array_equal(one, right):
            why = next(
                (text for text, grads in mistakes.items() if np.array_equal(grads[name], one)),
                f"{name}.grad is wrong",
            )
            raise Wrong(why.format(name=name), inputs, one, right)


class _Missing:
    pass


def _of_none(error, result):
    """Explain an error caused by a rule or a gradient that is None."""
    text = str(error)
    if not isinstance(error, TypeError | AttributeError) or "NoneType" not in text:
        return None
    if "not callable" in text:
        return "a tensor that was not computed has the rule None: pass over it"
    if "for +" in text:
        return "a tensor's grad is None until its first share arrives: set it, then add to it"
    if result.grad is None:
        return _NO_FIRST
    if "object is not iterable" in text:
        return None
    return (
        "a rule is called before a gradient arrived at its tensor: go through the order from its "
        "end"
    )


def _own_functions(check):
    """Decorate a check of `backward` alone: the functions that it calls are provided."""

    @functools.wraps(check)
    def checked(engine):
        with provided(engine, unbroadcast=_unbroadcast, topological_order=_order):
            check(engine)

    return checked


@_own_functions
def backward_on_one_path(engine: ModuleType) -> None:
    """backward multiplies along a path, from ones at the result."""
    _gradient(
        engine, Formula("w * x", lambda w, x: w * x),
        {"the gradients of w and x are exchanged": {"w": 3.0, "x": 2.0},
         "the gradient of the result is 1, not its value": {"w": 12.0, "x": 18.0}},
        w=3.0, x=2.0,
    )  # fmt: skip
    _gradient(engine, Formula("-(-x * 3)", lambda x: -(-x * 3)), {}, x=np.array([1.0, 2.0]))


@_own_functions
def backward_where_paths_meet(engine: ModuleType) -> None:
    """backward adds the gradients where paths meet."""
    _gradient(
        engine, Formula("x * x", lambda x: x * x),
        {_OVERWRITTEN: {"x": 3.0}}, x=3.0,
    )  # fmt: skip
    _gradient(
        engine, Formula("u = x * x;  u + u * u", lambda x: (u := x * x) + u * u),
        {_NAIVE: {"x": 6.0}}, x=3.0,
    )  # fmt: skip
    _gradient(
        engine, Formula("u = x * x;  u * u + u", lambda x: (u := x * x) * u + u),
        {_NAIVE: {"x": 6.0}, _OVERWRITTEN: {"x": 54.0}}, x=3.0,
    )  # fmt: skip


@_own_functions
def backward_keeps_arrays_apart(engine: ModuleType) -> None:
    """backward changes no array that another tensor holds."""
    a, b = np.array([1.0, 2.0]), np.array([3.0, 4.0])
    for formula in (
        Formula("(a + b) + 3 * a", lambda a, b: (a + b) + 3 * a),
        Formula("3 * a + (a + b)", lambda a, b: 3 * a + (a + b)),
        Formula("(a + b) + a", lambda a, b: (a + b) + a),
        Formula("a + (a + b)", lambda a, b: a + (a + b)),
    ):
        mistakes = {_IN_PLACE: {"a": np.nan, "b": np.array([4.0, 4.0])}}
        if "3" not in formula.text:
            mistakes = {_IN_PLACE: {"a": np.array([4.0, 4.0]), "b": np.array([2.0, 2.0])}}
        _gradient(engine, formula, mistakes, a=a, b=b)


@_own_functions
def backward_twice(engine: ModuleType) -> None:
    """backward called again gives the same gradients."""
    x = engine.Tensor(np.array([1.0, 2.0]))
    result = (x * x) * 3.0

    def backward(x):
        engine.backward(result)

    expected = 6 * x.data
    for times in (1, 2):
        call(backward, {"x": x.data})
        if not np.array_equal(x.grad, expected):
            why = _KEPT if times == 2 else "x.grad is wrong"
            raise Wrong(why, {"x": x.data, "formula": _Text("x * x * 3")}, x.grad, expected)


@_own_functions
def backward_calls_each_rule_once(engine: ModuleType) -> None:
    """each rule runs once, however many paths lead to it, 10,000 operations deep."""
    runs = itertools.count(1)

    def rule(grad):
        if next(runs) > 20:
            raise _TooOften
        return grad, grad

    result = first = engine.Tensor(1.0)
    for _ in range(20):
        result = engine.Tensor(result.data * 2, (result, result), rule)
    inputs = {"graph": _Text("t1 = t0 + t0, t2 = t1 + t1, ..., t20 = t19 + t19")}

    def backward(graph):
        engine.backward(result)
        return first.grad

    gradient = _counted(
        backward, inputs,
        "rules run again on each path that leads to them, and with each level there are twice as "
        "many; each rule runs once, when all of its gradient has arrived",
    )  # fmt: skip
    if gradient != 2.0**20:
        why = _OVERWRITTEN if gradient == 1 else "the gradient of t0 is wrong"
        raise Wrong(why, inputs, gradient, 2.0**20)
    first = _deep(engine, engine.backward, "backward")
    if first.grad is None or first.grad != 1:
        raise Wrong("a chain of 10,000 operations gives another gradient than 1", {}, first.grad, 1)


@_own_functions
def backward_in_any_graph(engine: ModuleType) -> None:
    """backward agrees with the chain rule in any graph of sums and products."""
    from hypothesis import strategies as st

    def check(steps, x, y):
        def formula(x, y):
            values = [x, y]
            for is_product, i, j in steps:
                a, b = values[i % len(values)], values[j % len(values)]
                values.append(a * b if is_product else a + b)
            return values[-1] + x + y

        text = ["x, y"] + [
            f"v{n} = {_name(i, n)} {'*' if product else '+'} {_name(j, n)}"
            for n, (product, i, j) in enumerate(steps)
        ]
        last = f"v{len(steps) - 1} + x + y" if steps else "y + x + y"
        _gradient(engine, Formula("; ".join([*text, last]), formula), {}, x=float(x), y=float(y))

    step = st.tuples(st.booleans(), st.integers(0, 9), st.integers(0, 9))
    number = st.integers(-3, 3)
    for_all(check, steps=st.lists(step, max_size=4), x=number, y=number)


def _name(i, n):
    i %= n + 2
    return "xy"[i] if i < 2 else f"v{i - 2}"


@_own_functions
def backward_dtype(engine: ModuleType) -> None:
    """backward keeps float32, and the shape of each tensor."""
    x = engine.Tensor(np.ones((2, 3), np.float32))
    engine.backward(x * 2.0 + x)
    if getattr(x.grad, "dtype", None) != np.float32 or x.grad.shape != (2, 3):
        raise Wrong(
            "the gradient is not float32 of shape (2, 3); begin with np.ones_like(result.data)",
            {"formula": _Text("x * 2 + x"), "x": x.data}, x.grad, 3 * x.data,
        )  # fmt: skip


# ----------------------------------------------------------------------------------- unbroadcast


def _unbroadcast(grad, shape):
    if grad.shape == shape:
        return grad
    grad = grad.sum(axis=tuple(range(grad.ndim - len(shape))))
    repeated = tuple(i for i, n in enumerate(shape) if n == 1)
    return grad.sum(axis=repeated, keepdims=True)


def _leading(grad, shape):
    return grad.sum(axis=tuple(range(grad.ndim - len(shape))))


def _trailing(grad, shape):
    """Match axes from the left, unlike NumPy."""
    grad = grad.sum(axis=tuple(range(len(shape), grad.ndim)))
    return grad.sum(axis=tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True)


def _squeezed(grad, shape):
    new = grad.ndim - len(shape)
    return grad.sum(axis=(*range(new), *(new + i for i, n in enumerate(shape) if n == 1)))


_UNBROADCAST_MISTAKES = {
    "the gradient is returned as it came; sum it over the axes along which the operand was "
    "repeated": lambda grad, shape: grad,
    "axes of length 1 lose their place: sum over them with keepdims=True": _squeezed,
    "only the axes in front are summed; an axis of length 1 was repeated too": _leading,
    "the wrong axes are summed: NumPy aligns shapes at their last axis, so the axes that the "
    "operand lacks are the first ones": _trailing,
    "a mean is returned; each use of an element adds its gradient, so sum":
        lambda grad, shape: _unbroadcast(grad, shape)
        / (grad.size // max(int(np.prod(shape)), 1)),
    "one of the uses is returned; all of them count, so sum":
        lambda grad, shape: grad[
            tuple([0] * (grad.ndim - len(shape)))
            + tuple(slice(0, 1) if n == 1 else slice(None) for n in shape)
        ],
}  # fmt: skip


def unbroadcast_values(engine: ModuleType) -> None:
    """unbroadcast sums over every axis along which the operand was repeated, for any shapes."""
    from hypothesis import strategies as st

    def check(shape, lacking, ones):
        grad = np.arange(1.0, 1.0 + np.prod(shape)).reshape(shape)
        small = tuple(1 if one else n for n, one in zip(shape, ones, strict=False))[lacking:]
        inputs = {"grad": grad, "shape": small}
        compare(engine.unbroadcast, _unbroadcast, inputs, _UNBROADCAST_MISTAKES, probes=probes)

    shapes = ((2, 3), (3,)), ((2, 3, 3), (3, 1)), ((3, 3), (1, 3)), ((2, 2, 2), (2, 2))
    probes = [
        {"grad": np.arange(1.0, 1.0 + np.prod(large)).reshape(large), "shape": small}
        for large, small in shapes
    ]
    check((2, 3), 1, [False] * 2)
    check((2, 3, 3), 1, [False, False, True])
    axes = st.integers(0, 3)
    shape = st.lists(st.integers(1, 3), max_size=3).map(tuple)
    ones = st.lists(st.booleans(), min_size=3, max_size=3)
    for_all(check, shape=shape, lacking=axes, ones=ones)


def unbroadcast_dtype(engine: ModuleType) -> None:
    """unbroadcast keeps float32, and float64."""
    for wanted in (np.dtype("float32"), np.dtype("float64")):
        for shape in ((3,), (2, 1), (2, 3)):
            inputs = {"grad": np.ones((2, 3), wanted), "shape": shape}
            dtype = np.asarray(call(engine.unbroadcast, inputs)).dtype
            if dtype != wanted:
                raise Wrong(
                    f"the gradient of {wanted} is not {wanted}; make no array of your own, sum the "
                    "one that came", inputs, dtype, wanted.name,
                )  # fmt: skip


# ---------------------------------------------------------------------------------------- matmul


_MATMUL_MISTAKES = {
    "the two gradients are in the wrong order: the rule returns that of a, then that of b":
        lambda a, b, grad: (a.T @ grad, grad @ b.T),
    "the gradient of a is grad @ b here; a's element (n, k) meets row k of b, so b is transposed":
        lambda a, b, grad: (grad @ b, a.T @ grad),
    "the gradient of b is a @ grad here; b's element (k, m) meets column k of a, so a is "
    "transposed": lambda a, b, grad: (grad @ b.T, a @ grad),
    "the transposes are missing: a's gradient needs b.T, b's gradient needs a.T":
        lambda a, b, grad: (grad @ b, a @ grad),
    "the factors of b's gradient are exchanged: look at the shapes, (K, M) comes from (K, N) and "
    "(N, M)": lambda a, b, grad: (grad @ b.T, grad @ a.T),
    "the factors of a's gradient are exchanged: look at the shapes, (N, K) comes from (N, M) and "
    "(M, K)": lambda a, b, grad: (b.T @ grad, a.T @ grad),
    "the gradient of a comes out transposed, (K, N): the transpose of b @ grad.T is grad @ b.T":
        lambda a, b, grad: (b @ grad.T, a.T @ grad),
    "the gradient of b comes out transposed, (M, K): the transpose of grad.T @ a is a.T @ grad":
        lambda a, b, grad: (grad @ b.T, grad.T @ a),
    "this is the rule of a * b; in a @ b each element of a is used M times, and the uses add up":
        lambda a, b, grad: (grad * b, grad * a),
}  # fmt: skip


def _product(engine, a, b):
    """Compute the student's a @ b, which must be a Tensor with parents and a rule."""
    inputs = {"a": a, "b": b}
    left, right = engine.Tensor(a), engine.Tensor(b)

    def matmul(a, b):
        try:
            with _usual_depth():
                return engine.matmul(left, right)
        except RecursionError:
            return RecursionError

    result = call(matmul, inputs)
    if result is RecursionError:
        raise Wrong(
            "matmul calls itself: a @ b of two Tensors is matmul(a, b); multiply the arrays, "
            "a.data @ b.data", inputs,
        )  # fmt: skip
    if not isinstance(result, engine.Tensor):
        raise Wrong(
            f"matmul returns a {type(result).__name__}, expected a Tensor: "
            "Tensor(data, (a, b), rule)", inputs,
        )  # fmt: skip
    if result.parents == (right, left):
        raise Wrong(
            "the parents are (b, a); the rule's gradients are for (a, b): same order in both",
            inputs,
        )
    if result.parents != (left, right) or result.rule is None:
        raise Wrong(
            "the result does not remember how it was computed: Tensor(data, (a, b), rule)",
            inputs, f"parents {result.parents}, rule {result.rule}", "parents (a, b) and a rule",
        )  # fmt: skip
    return result


def matmul_values(engine: ModuleType) -> None:
    """matmul is the matrix product and remembers its parents and a rule."""
    a, b = np.arange(6.0).reshape(2, 3), np.arange(12.0).reshape(3, 4) - 5
    result = _product(engine, a, b)

    def matmul(a, b):
        return result.data

    compare(matmul, lambda a, b: a @ b, {"a": a, "b": b})


def matmul_rule(engine: ModuleType) -> None:
    """matmul's rule gives both gradients, for matrices of any shapes."""
    from hypothesis import strategies as st

    def right(a, b, grad):
        return grad @ b.T, a.T @ grad

    def rule(a, b, grad):
        shares = _product(engine, a, b).rule(grad)
        if not isinstance(shares, tuple | list):
            raise Wrong(
                "the rule returns None: is a return missing?" if shares is None else
                f"the rule returns a {type(shares).__name__}; expected a tuple of two arrays",
                {"a": a, "b": b, "grad": grad},
            )  # fmt: skip
        if any(isinstance(share, engine.Tensor) for share in shares):
            raise Wrong("the rule returns Tensors; rules take and return arrays: b.data.T")
        return tuple(shares)

    # With equal sides mistaken products have the right shape, so the mistake can be named.
    square = [
        {"a": np.array([[1.0, 2], [3, 4]]), "b": np.array([[5.0, -1], [2, 3]]),
         "grad": np.array([[1.0, 0], [2, -3]])},
        {"a": np.array([[0.0, -2], [1, 5]]), "b": np.array([[1.0, 4], [-3, 2]]),
         "grad": np.array([[2.0, 1], [-1, 3]])},
        {name: np.random.default_rng(seed).integers(-4, 5, (3, 3)).astype(float)
         for seed, name in enumerate(("a", "b", "grad"))},
    ]  # fmt: skip

    def check(a, b, grad):
        results = "the gradient of a", "the gradient of b"
        try:
            compare(rule, right, {"a": a, "b": b, "grad": grad}, results=results)
        except Wrong as wrong:
            if wrong.cause is not None or wrong.expected is not None:
                wrong.why = named(rule, _MATMUL_MISTAKES, square) or wrong.why
            raise

    def check_shapes(n, k, m):
        rng = np.random.default_rng(n + 10 * k + 100 * m)
        check(*(rng.integers(-4, 5, shape).astype(float) for shape in ((n, k), (k, m), (n, m))))

    check_shapes(2, 3, 4)
    for inputs in square:
        check(**inputs)
    side = st.integers(1, 4)
    for_all(check_shapes, examples=50, n=side, k=side, m=side)


def matmul_dtype(engine: ModuleType) -> None:
    """matmul keeps float32."""
    a, b = np.ones((2, 3), np.float32), np.ones((3, 4), np.float32)
    result = _product(engine, a, b)
    for what, array in (("product", result.data), *zip(
        ("gradient of a", "gradient of b"), result.rule(np.ones((2, 4), np.float32)), strict=True
    )):  # fmt: skip
        if array.dtype != np.float32:
            raise Wrong(f"the {what} is not float32", {"a": a, "b": b}, array.dtype, "float32")


# ------------------------------------------------------------------------------------- gradcheck


def _gradcheck(engine, function, *arrays, ahead=1.0, behind=-1.0, over=2.0, restore=True,
               join=lambda errors: np.max(np.abs(errors)), first=False, together=False,
               ):  # fmt: skip
    """Compute central differences; the options make typical mistakes."""
    h = 1e-5
    tensors = [engine.Tensor(np.array(array, dtype=np.float64)) for array in arrays]
    _backward(function(*tensors).sum())
    errors = []
    for tensor in tensors[:1] if first else tensors:
        x = tensor.data
        for i in [...] if together else np.ndindex(x.shape):
            before = np.array(x[i])
            x[i] = before + ahead * h
            above = function(*tensors).data.sum()
            x[i] = before + behind * h
            below = function(*tensors).data.sum()
            if restore:
                x[i] = before
            slope = (above - below) / (over * h)
            errors.append(np.ravel((0.0 if tensor.grad is None else tensor.grad[i]) - slope))
    return float(join(np.concatenate(errors)))


def _gradcheck_mistakes(engine):
    make = functools.partial(functools.partial, _gradcheck, engine)
    return {
        "this is a one-sided difference, (f(x + h) - f(x)) / h, wrong by about h / 2 times the "
        "curvature; take f(x + h) - f(x - h) over 2 h": make(behind=0.0, over=1.0),
        "from x - h to x + h the distance is 2 h: divide by 2 h": make(over=1.0),
        "an element keeps its step when the next one is moved; set it back": make(restore=False),
        "the largest difference with its sign is returned: a gradient that is too small would "
        "pass; take absolute values": make(join=np.max),
        "the mean of the errors is returned; one wrong element among many would pass: take the "
        "largest": make(join=lambda errors: np.mean(np.abs(errors))),
        "the sum of the errors is returned; expected the largest":
            make(join=lambda errors: np.sum(np.abs(errors))),
        "the largest squared error is returned; expected the largest absolute one":
            make(join=lambda errors: np.max(errors**2)),
        "all elements of an array are moved together; move one element at a time":
            make(together=True),
        "only the first array is checked; all of them count": make(first=True),
        "only the last element is looked at; return the largest error of all":
            make(join=lambda errors: np.abs(errors[-1])),
        "only the first element is looked at; return the largest error of all":
            make(join=lambda errors: np.abs(errors[0])),
    }  # fmt: skip


def _all_provided(check):
    """Decorate a check of `gradcheck` alone: the functions that it calls are provided."""

    @functools.wraps(check)
    def checked(engine):
        def matmul(a, b):
            return engine.Tensor(
                a.data @ b.data, (a, b), lambda grad: (grad @ b.data.T, a.data.T @ grad)
            )

        with provided(
            engine, unbroadcast=_unbroadcast, topological_order=_order, backward=_backward,
            matmul=matmul,
        ):  # fmt: skip
            check(engine)

    return checked


def _agrees(engine, formula, **arrays):
    inputs = {"function": formula, **arrays}
    reference = functools.partial(_gradcheck, engine)
    got = call(engine.gradcheck, inputs)
    expected = reference(*inputs.values())
    if not isinstance(got, (float, np.floating)) and np.shape(got) != ():
        raise Wrong("the answer is not one number, the largest error", inputs, got, expected)
    try:
        compare(engine.gradcheck, reference, inputs, _gradcheck_mistakes(engine), 1e-7,
                _gradcheck_probes(engine))  # fmt: skip
    except Wrong as wrong:
        if wrong.expected is not None and wrong.expected < 1e-7:
            wrong.expected = _Text("about 0, since the rule is right")
        raise


@_all_provided
def gradcheck_of_right_rules(engine: ModuleType) -> None:
    """gradcheck finds almost no error where the rules are right."""
    x, y = np.array([[1.0, -2.0], [0.5, 3.0]]), np.array([2.0, -1.0])
    _agrees(engine, Formula("x * x", lambda x: x * x), x=np.array([1.0, 2.0]))
    _agrees(engine, Formula("x * x * y", lambda x, y: x * x * y), x=x, y=y)
    product = Formula("tanh(x @ x) * exp(y)", lambda x, y: (x @ x).tanh() * y.exp())
    _agrees(engine, product, x=x, y=y)


@_all_provided
def gradcheck_of_wrong_rules(engine: ModuleType) -> None:
    """gradcheck returns the largest error of a wrong rule, in whichever array it is."""
    for inputs in _gradcheck_probes(engine):
        _agrees(engine, inputs["function"], **dict(list(inputs.items())[1:]))


def _gradcheck_probes(engine):
    """Make functions with wrong rules, which distinguish mistaken checks."""

    def wrong_square(x, factor):
        return engine.Tensor(x.data**2, (x,), lambda grad: (grad * factor * x.data,))

    x, y = np.array([1.0, 4.0, 2.0]), np.array([[0.5], [1.0]])
    too_large = Formula("x * x with the rule 5 x", lambda x: wrong_square(x, 5))
    too_small = Formula("x * x with the rule x", lambda x: wrong_square(x, 1))
    second = Formula("x + y * y with the rule 5 y", lambda x, y: x + wrong_square(y, 5))
    return [
        {"function": too_large, "x": x},
        {"function": too_small, "x": np.array([0.0, 4.0, 2.0])},
        {"function": second, "x": x, "y": y},
    ]


# ------------------------------------------------------------------------------------ what is given


@_all_provided
def given_operations(engine: ModuleType) -> None:
    """the operations that the file brings complete are still right, values and gradients."""
    a, b = np.array([[0.5, -2.0, 3.0], [1.5, 0.25, -1.0]]), np.array([2.0, -1.0, 0.5])
    for name, function, right in _GIVEN:
        few = (np.abs(a), np.abs(b)) if name in ("log", "sqrt") else (a, b)
        inputs = dict(zip("ab", few, strict=True))

        def operation(a, b, function=function):
            return function(engine.Tensor(a), engine.Tensor(b)).data

        try:
            got, expected = call(operation, inputs), right(*few)
            wrong = not equal(got, expected, 1e-12)
            wrong = wrong or not _gradcheck(engine, function, *few) < 1e-6
        except Wrong as error:
            wrong, got, expected = error.cause, None, None
        except Exception as error:  # from a rule
            wrong, got, expected = error, None, None
        if wrong is not False:
            cause = wrong if isinstance(wrong, Exception) else None
            raise Wrong(
                f"{name}, which the file brings complete, does not compute the right values and "
                "gradients any more; take it from a new engine.py", inputs, cause=cause,
            )  # fmt: skip


_GIVEN = (
    ("a + b", lambda a, b: a + b, lambda a, b: a + b),
    ("a - b", lambda a, b: a - b, lambda a, b: a - b),
    ("a * b", lambda a, b: a * b, lambda a, b: a * b),
    ("a / b", lambda a, b: a / b, lambda a, b: a / b),
    ("-a", lambda a, b: -a * b, lambda a, b: -a * b),
    ("a ** 3", lambda a, b: a**3 * b, lambda a, b: a**3 * b),
    ("sum", lambda a, b: a.sum(1, keepdims=True) * b + a.sum(0) * b,
     lambda a, b: a.sum(1, keepdims=True) * b + a.sum(0) * b),
    ("mean", lambda a, b: a.mean(0) * b, lambda a, b: a.mean(0) * b),
    ("reshape", lambda a, b: a.reshape(3, 2).T * a, lambda a, b: a.reshape(3, 2).T * a),
    ("transpose", lambda a, b: (a.T * a.reshape(3, 2)) @ a,
     lambda a, b: (a.T * a.reshape(3, 2)) @ a),
    ("relu", lambda a, b: a.relu() * b, lambda a, b: np.maximum(a, 0) * b),
    ("exp", lambda a, b: a.exp() * b, lambda a, b: np.exp(a) * b),
    ("log", lambda a, b: a.log() * b, lambda a, b: np.log(a) * b),
    ("sqrt", lambda a, b: a.sqrt() * b, lambda a, b: np.sqrt(a) * b),
    ("tanh", lambda a, b: a.tanh() * b, lambda a, b: np.tanh(a) * b),
)  # fmt: skip


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        "01.1",
        "topological_order",
        "A list of all tensors behind a result, each after its parents, without recursion.",
        "The right order",
        (order_of_graphs, order_of_many_paths, order_of_a_deep_chain),
        (
            "The recursive version of the notebook does three things with a tensor: look whether "
            "it was seen, visit its parents, append it. Which of them must wait for the others?",
            "Let a list be your stack, of pairs (tensor, parents_are_done). What do you do with a "
            "pair whose second element is True, what with False?",
            "Pop a pair. True: append the tensor to the order. False, and not seen before: mark it "
            "as seen, push it again with True, then push each of its parents with False.",
        ),
    ),
    Exercise(
        "01.2",
        "backward",
        "The gradient of a result with respect to every tensor it was computed from.",
        "The right order",
        (
            backward_on_one_path, backward_where_paths_meet, backward_keeps_arrays_apart,
            backward_twice, backward_calls_each_rule_once, backward_in_any_graph, backward_dtype,
        ),
        (
            "Begin at the result, with a gradient of ones, and go through topological_order in "
            "reverse. Which tensors have no rule?",
            "For each tensor call rule(grad) and give each parent its share. A parent whose grad "
            "is None takes the share; one that has a gradient takes the sum.",
            "First set grad to None everywhere in the order, then that of the result to "
            "np.ones_like(result.data). zip(node.parents, node.rule(node.grad)) pairs parents and "
            "shares. Add with a + b, never with +=: the array may belong to another tensor too.",
        ),
    ),
    Exercise(
        "01.3",
        "unbroadcast",
        "Sum a gradient over the axes along which an operand was repeated.",
        "From numbers to arrays",
        (unbroadcast_values, unbroadcast_dtype),
        (
            "Each element of the operand was used several times. Its gradient is the sum over the "
            "uses: along which axes of grad do they lie?",
            "Two kinds of axes: those in front that the operand lacks, grad.ndim - len(shape) of "
            "them, and those where shape has a 1. Deal with one kind, then with the other.",
            "grad.sum(axis=(0, 1)) sums two axes and drops them; with keepdims=True they stay, "
            "with length 1. Drop the axes in front, keep those of length 1. axis=() sums nothing.",
        ),
    ),
    Exercise(
        "01.4",
        "matmul",
        "The matrix product of two Tensors, with its rule.",
        "The rule of the matrix product",
        (matmul_values, matmul_rule, matmul_dtype),
        (
            "Look at multiply: a function that returns a Tensor with data, parents and a rule. "
            "Only the two formulas differ.",
            "Write down the shapes: grad is (N, M), a is (N, K), b is (K, M). The gradient of a "
            "has a's shape. Which product of grad and b (or b.T) has it?",
            "The gradient of a is grad times the transpose of b. That of b is made of grad and the "
            "transpose of a, in the order that the shapes allow. The arrays are a.data and b.data.",
        ),
    ),
    Exercise(
        "01.5",
        "gradcheck",
        "The largest difference between gradients and central differences.",
        "Checking gradients",
        (gradcheck_of_right_rules, gradcheck_of_wrong_rules, given_operations),
        (
            "Two numbers for each element: the gradient that backward finds, and the slope that "
            "you measure by moving this element a little up and a little down.",
            "Make Tensors of copies of the arrays, call function(...).sum(), then backward: that "
            "gives all gradients at once. Then loop over the arrays, and over np.ndindex(x.shape).",
            "For an element: remember it, set it to x + h and compute f, set it to x - h and "
            "compute f, set it back. Keep the largest abs(grad[i] - (above - below) / (2 * h)).",
        ),
    ),
)  # fmt: skip
