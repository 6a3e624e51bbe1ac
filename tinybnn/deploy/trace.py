"""Recording of a model's operations, and comparison of traces for different inputs.

A tape holds the operations of one forward pass. Values that a model extracts from its Tensors by
other means (``.data``, an ``if``) are not recorded: they look like constants. Therefore a tape is
compared with a second one, for other values and another batch size.
"""

from __future__ import annotations

import functools
import hashlib
import linecache
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinybnn.autograd import Tensor, no_grad, trace
from tinybnn.deploy.own_sign import with_own_sign

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tinybnn.autograd import Tape
    from tinybnn.nn import Module
    from tinybnn.typing import Array


@dataclass(frozen=True)
class Problem:
    """The reason why a model has no packed form.

    Attributes
    ----------
    reason : str
        The problem, and what to write instead.
    layer : str
        The layer, as named by `layer_names`; "" for the whole model.
    line : str
        The line of the model's forward method, if known.
    call : int
        Index of the traced operation; -1 for none.
    """

    reason: str
    layer: str = ""
    line: str = ""
    call: int = -1

    def __str__(self) -> str:
        where = f"layer {self.layer}: " if self.layer else ""
        return where + self.reason + (f" ({self.line})" if self.line else "")


class CompileError(ValueError):
    """Raised for a model that has no packed form.

    Attributes
    ----------
    problem : Problem or None
    """

    problem: Problem | None = None

    @classmethod
    def of(cls, problem: Problem | str) -> CompileError:
        """Create the error for a Problem, or for a reason (str)."""
        problem = problem if isinstance(problem, Problem) else Problem(problem)
        error = cls(f"compile: {problem}")
        error.problem = problem
        return error


def trace_model(model: Module, x: Array) -> tuple[Tape, Tensor, Tensor]:
    """Run a model once in eval mode and record it; its modes are restored.

    Parameters
    ----------
    model : Module
    x : (N, *input_shape) float32
        Copied, since the model may change its input in place.

    Returns
    -------
    tape : tinybnn.autograd.Tape
    x, output : Tensor

    Raises
    ------
    CompileError
        If the model's output is not one Tensor.
    """
    x = Tensor(x.copy())
    with trace() as tape:
        output = _run(model, x)
        tape.reads(output)
    tape[:] = map(with_own_sign, tape)
    return tape, x, output


def evaluate(model: Module, x: Array) -> Array:
    """Run a model in eval mode on a copy of x; its modes are restored.

    Parameters
    ----------
    model : Module
    x : (N, *input_shape) float32

    Returns
    -------
    (N, ...) array
    """
    return _run(model, Tensor(x.copy())).data


def _run(model, x):
    with model.in_mode(training=False), no_grad(), np.errstate(all="ignore"):
        output = model(x)
    if not isinstance(output, Tensor):
        raise CompileError.of(f"the model's output must be one Tensor, got {_described(output)}")
    return output


def _described(value):
    name = type(value).__name__
    if isinstance(value, tuple | list | dict):
        return f"a {name} of {len(value)}; return one of its members, or join them with cat"
    return "None; does forward end with return?" if value is None else f"a {name}"


def layer_names(model: Module) -> dict[int, str]:
    """Return id(module) -> its name in messages, such as ``features.3 (BinaryConv2d)``."""
    return {
        id(module): f"{path or 'model'} ({type(module).__name__})"
        for path, module in model.named_modules()
    }


def layer_name(names: dict[int, str], scope: Sequence[Module]) -> str:
    """Return the name, from `layer_names`, of the innermost module of a scope."""
    return names.get(id(scope[-1]), type(scope[-1]).__name__) if scope else "model"


def line_text(line: tuple[str, int] | None) -> str:
    """Format a `Call.line` as ``line 12 of net.py: y = x ** 2``; "" if it is unknown."""
    if not line:
        return ""
    file, number = line
    text = textwrap.shorten(linecache.getline(file, number), 80, placeholder=" ...")
    return f"line {number} of {Path(file).name}" + (f": {text}" if text else "")


# ------------------------------------------------------------------------------ comparing two tapes


@dataclass(frozen=True)
class _Entry:
    """A call without its values."""

    operation: type
    scope: tuple
    options: dict
    inputs: tuple  # the representation of each, see `outline`
    shape: tuple
    line: tuple


def outline(tape: Tape, x: Tensor, output: Tensor) -> tuple[list[_Entry], Any, int]:
    """Summarize a tape without the values that depend on the model's input, for `difference`.

    Each input of a call is represented by the index of the call that computed it, "input" for the
    model's input, the identity of a Parameter, or the SHA-256 of a constant. If all rows of a
    constant are equal, as for ``ones_like(x)``, only the first is hashed: `difference` compares
    their number.

    Parameters
    ----------
    tape : Tape
    x, output : Tensor
        Input (N, *input_shape) and output of the model.

    Returns
    -------
    entries : list
        One for each call.
    output : int, str or tuple
        The representation of the output.
    samples : int
        N.
    """
    made = {id(x): "input"}

    def represent(value):
        if isinstance(value, Tensor):
            value = tape.source(value)
            if id(value) in made:
                return made[id(value)]
            if type(value) is not Tensor:  # a Parameter
                return type(value).__name__, id(value)
        array = np.ascontiguousarray(value.data if isinstance(value, Tensor) else value)
        rows = np.ascontiguousarray(without_repetition(array))
        return array.dtype.str, array.shape, hashlib.sha256(rows).hexdigest()

    entries = []
    for i, call in enumerate(tape):
        inputs = tuple(represent(value) for value in call.inputs)
        shape = call.output.shape
        entry = _Entry(type(call.function), call.scope, call.options, inputs, shape, call.line)
        entries.append(entry)
        made[id(call.output)] = i
    return entries, represent(output), len(x)


def without_repetition(array: Array, axes: Sequence[int] = (0,)) -> Array:
    """Reduce axes along which an array is constant, bit for bit, to length 1: (N, 3) -> (1, 3)."""
    for axis in axes:
        if axis < array.ndim and array.shape[axis] > 1:
            bits = array.view(f"i{array.itemsize}") if array.dtype.kind == "f" else array
            first, last = (bits.take([i], axis) for i in (0, -1))
            if np.array_equal(first, last) and np.all(bits == first):
                array = array.take([0], axis)
    return array


def difference(
    first: tuple[list[_Entry], Any, int], second: tuple[list[_Entry], Any, int]
) -> tuple[Sequence[Module], str, str] | None:
    """Return the first difference of two outlines, (scope, reason, line), or None.

    Sizes that equal the batch size in both are considered equal.
    """
    (entries, output, n), (others, other_output, m) = first, second
    same = functools.partial(_same, sizes=(n, m))
    for one, other in zip(entries, others, strict=False):
        reason = None
        if one.operation is not other.operation or [*map(id, one.scope)] != [*map(id, other.scope)]:
            reason = (
                f"runs {one.operation.__name__} for one input and {other.operation.__name__} for "
                "another; an if or a loop that depends on values or on the batch size has no "
                "packed form"
            )
        elif not same(one.options, other.options):
            key = next(k for k in one.options if not same(one.options[k], other.options.get(k)))
            reason = f"its {key} depends on the values or on the batch size of the model's input"
        elif not same(one.inputs, other.inputs):
            reason = (
                "one of its constants depends on the values or on the batch size of the model's "
                "input (taken by .data or len()?)"
            )
        elif not same(one.shape, other.shape):
            reason = f"its output has the shape {one.shape} for {n} samples, {other.shape} for {m}"
        if reason:
            return one.scope, f"{one.operation.__name__}: {reason}", line_text(one.line)
    if len(entries) != len(others) or output != other_output:
        counts = len(entries), len(others)
        return (), "it runs {} operations for one input and {} for another".format(*counts), ""
    return None


def _same(a, b, sizes):
    """Whether two options are equal for batches of these two sizes."""
    if a is b:
        return True
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(map(functools.partial(_same, sizes=sizes), a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k], sizes) for k in a)
    if type(a) is type(b) and hasattr(a, "__dict__") and not isinstance(a, type):
        return _same(vars(a), vars(b), sizes)
    if type(a) is type(b) and isinstance(a, float) and a != a:
        return b != b
    return bool(a == b) or (type(a) is int and type(b) is int and (a, b) == sizes)
