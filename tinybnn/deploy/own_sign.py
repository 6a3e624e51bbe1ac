"""Signs written as a `Function` with static methods (as in PyTorch), treated as quantizers."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from tinybnn.autograd import Tensor, as_array
from tinybnn.autograd.extension import OwnFunction, in_places
from tinybnn.quantizers import Quantize, Quantizer

if TYPE_CHECKING:
    from tinybnn.autograd import Call, Function
    from tinybnn.typing import Array


class OwnSign(Quantizer):
    """A Function with static methods as a quantizer; the compiler uses its `forward`.

    NaN becomes -1, as in every packed model.

    Parameters
    ----------
    call : tinybnn.autograd.Call
        A call of an `OwnFunction`.
    """

    own: type[Function]
    arguments: Any
    needs: Any

    def __init__(self, call: Call) -> None:
        self.own = call.function.own
        self.arguments, self.needs = call.options["arguments"], call.options["needs"]

    def forward(self, x: Array) -> Array:
        result = self.own.apply(*in_places([Tensor(x)], self.arguments, self.needs))
        return np.where(np.isnan(x), x.dtype.type(-1), as_array(result))

    def __repr__(self) -> str:
        return self.own.__name__


def with_own_sign(call: Call) -> Call:
    """Replace a call of an own function that returned only -1 and 1 by a `Quantize` call.

    The result at 0 is ignored here: the compiler checks it, as for every quantizer. Other calls are
    returned unchanged.
    """
    if not isinstance(call.function, OwnFunction) or len(call.inputs) != 1:
        return call
    x, result = call.inputs[0].data, call.output.data
    is_sign = x.shape == result.shape and np.all((np.abs(result) == 1) | (x == 0) | np.isnan(x))
    if not is_sign:
        return call
    return dataclasses.replace(call, function=Quantize(), options={"quantizer": OwnSign(call)})
