"""Messages about operations without a packed form, and what to write instead."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from tinybnn import autograd as T
from tinybnn import functional as F
from tinybnn.quantizers import Quantize

if TYPE_CHECKING:
    from tinybnn.autograd import Call
    from tinybnn.quantizers import Quantizer

FIXED_ORDER = "its float sums have no fixed order; pass fixed_order=not self.training"
OWN_WEIGHT = "its weight depends on the input; compute weights from parameters only"
ROW_FOR_EACH_SAMPLE = (
    "one of its constants has a row for each sample of the batch; give it the shape (1, ...); "
    "add noise in training only (if self.training), and write x > 0 instead of x.data > 0"
)
OWN_SAMPLES = "it mixes the samples of a batch; keep the first axis unchanged"


def instead_of(call: Call, results: int) -> str:
    """Explain why a call has no packed form, and what to write instead.

    Parameters
    ----------
    call : tinybnn.autograd.Call
    results : int
        Number of its inputs that depend on the model's input.

    Returns
    -------
    str
    """
    function = type(call.function)
    if function is T.MatMul:
        return _product(results)
    if function in _ADVICE:
        return _ADVICE[function](call)
    if function.__module__ == F.mse_loss.__module__:
        return "leave the loss out of forward; a packed model returns scores"
    if not function.__module__.startswith("tinybnn."):
        return _own_function(function.__name__)
    return "no step of a packed model computes it"


def not_signs(quantizer: Quantizer, x: float | None = None, result: float | None = None) -> str:
    """Explain that a quantizer of activations does not return signs, for the value x if given."""
    own = getattr(quantizer, "own", None)
    name = type(quantizer).__name__ if own is None else own.__name__
    if x is None:
        return (
            f"{quantizer!r} does not return signs; quantize activations by a sign such as "
            '"ste_sign" (ternary and k-bit quantizers are for weights)'
        )
    return (
        f"{name}.forward returns {result!r} for {x!r}, but the sign is {1 if x >= 0 else -1}; "
        "return tinybnn.quantizers.sign(x), and subtract a threshold before the quantizer"
        + ("" if own is None else f"; or {_as_quantizer(name)}")
    )


def double_precision(call: Call) -> str:
    """Explain that a call does not compute in float32."""
    if type(call.function) is Quantize:
        return (
            f"{type(call.options['quantizer']).__name__}.forward returns {call.output.dtype}, a "
            "packed model is float32; return tinybnn.quantizers.sign(x)"
        )
    return (
        f"it computes in {call.output.dtype}; a packed model is float32: use Python numbers or "
        "float32 arrays for constants, and remove x.to(...)"
    )


def _own_function(name):
    return (
        f"the compiler does not know this function; if it returns signs, {_as_quantizer(name)}. "
        "If it returns something else, write it with the functions of tinybnn.functional"
    )


def _as_quantizer(name):
    return (
        f"make it a quantizer: class {name}(tinybnn.quantizers.Quantizer) with forward(self, x), "
        "which returns tinybnn.quantizers.sign(x), and pseudo_gradient(self, x), the factor for "
        f"the gradient; then write {name}()(x) instead of {name}.apply(x)"
    )


def _power(call):
    base, exponent = call.inputs
    if np.isscalar(base):
        return f"write F.exp({float(np.log(base)):.9g} * x)" if base > 0 else "its base is negative"
    known = {2: "x * x", 3: "x * x * x", 0.5: "F.sqrt(x)", -1: "1.0 / x", 1: "x"}
    if np.isscalar(exponent) and exponent in known:
        return f"write {known[exponent]}"
    return "write F.exp(p * F.log(x)), for x > 0"


def _sum(call):
    shape, dim = call.inputs[0].shape[1:], call.options["dim"]
    if 0 in dim:
        return OWN_SAMPLES
    count = math.prod(call.inputs[0].shape[d] for d in dim)
    ones = f"np.ones((1, {shape[0]}{', 1, 1' * (len(shape) == 3 and dim == (1,))}), np.float32)"
    if len(shape) == 1:
        written = f"F.linear(x, {ones}, fixed_order=True)"
    elif len(shape) == 3 and dim == (1,):
        written = f"F.conv2d(x, {ones}, fixed_order=True)"
    elif len(shape) == 3 and sorted(dim) == [1, 2, 3]:
        written = f"F.linear(x.sum((2, 3)), {ones}, fixed_order=True)"
    else:
        return "only sums over axes 2 and more have a packed form"
    return (
        "sums over axis 1 have no fixed order; write "
        f"{written}, which keeps that axis, and for a mean multiply it by 1 / {count}"
    )


def _extreme(call):
    name, sign = ("maximum", "") if type(call.function) is T.Amax else ("minimum", "-")
    shape, dim = call.inputs[0].shape, call.options["dim"]
    if 0 in dim:
        return OWN_SAMPLES
    if len(shape) == 4 and sorted(dim) == [2, 3]:
        return f"write {sign}F.max_pool2d({sign}x, {shape[2:]}), which keeps the axes"
    return f"write F.{name} of slices, such as F.{name}(x[:, 0:1], x[:, 1:2])"


def _scores(call):
    name = "logsumexp" if type(call.function) is T.LogSumExp else "softmax or F.log_softmax"
    return (
        "leave it out at the end of a model (the class with the largest score is the same), and "
        f"apply F.{name} to the result of packed.predict"
    )


def _product(results):
    if results == 1:
        return "write F.linear(x, w.T, fixed_order=not self.training) for x @ w, or use nn.Linear"
    return "it is a matrix product of two results; a gate (see nn.SqueezeExcite) is elementwise"


def _join(call):
    if call.options["dim"] == 0:
        return OWN_SAMPLES
    return "some of its parts do not depend on the input; append a constant by F.pad(x, ..., value)"


def _norm(call):
    return (
        "it uses the statistics of the batch; use nn.BatchNorm2d or nn.BatchNorm1d, or pass "
        "running statistics and training=self.training to F.batch_norm"
    )


_ADVICE = {
    T.Pow: _power, T.Sum: _sum, T.Amax: _extreme, T.Amin: _extreme, T.LogSumExp: _scores,
    F.LogSoftmax: _scores, T.Cat: _join, T.Pad: lambda call: OWN_SAMPLES,
    F.BatchNorm: _norm, F.Erf: lambda call: "write gelu with approximate='tanh'",
    T.Sign: lambda call: "it returns 0 at 0 and has no gradient; write quantizers.ste_sign(x)",
}  # fmt: skip
