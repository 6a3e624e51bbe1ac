"""Signs that a user wrote as a `Function` with static methods, as the quantizers they are."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from tinybnn.autograd import Tensor, as_array
from tinybnn.autograd.extension import OwnFunction, in_places
from tinybnn.quantizers import Quantize, Quantizer

if TYPE_CHECKING:
    from tinybnn.autograd import Call
    from tinybnn.typing import Array


class OwnSign(Quantizer):
    """A class with static methods as a quantizer: what the compiler asks it for is its forward.

    NaN counts as -1, as in every packed model.

    Parameters
    ----------
    call : tinybnn.autograd.Call
        Of an `OwnFunction`.
    """

    def __init__(self, call: Call) -> None:
        self.own = call.function.own
        self.arguments, self.needs = call.options["arguments"], call.options["needs"]

    def forward(self, x: Array) -> Array:
        result = self.own.apply(*in_places([Tensor(x)], self.arguments, self.needs))
        return np.where(np.isnan(x), x.dtype.type(-1), as_array(result))

    def __repr__(self) -> str:
        return self.own.__name__


def with_own_sign(call: Call) -> Call:
    """The call of a `Quantize`, if it is of an own function that gives -1 and 1 but for 0.

    What it gives for 0 is the compiler's to check, as for every quantizer.
    """
    if not isinstance(call.function, OwnFunction) or len(call.inputs) != 1:
        return call
    x, result = call.inputs[0].data, call.output.data
    is_sign = x.shape == result.shape and np.all((np.abs(result) == 1) | (x == 0) | np.isnan(x))
    if not is_sign:
        return call
    return dataclasses.replace(call, function=Quantize(), options={"quantizer": OwnSign(call)})
