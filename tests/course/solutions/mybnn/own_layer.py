"""Chapter 12: your own estimator, operation and layer, and its packed form.

Unlike the other files, this one extends tinybnn and imports it. Write the missing bodies, then
check them: tinybnn course check 12
Each one is checked separately, with correct versions of the others.
"""

import numpy as np

import tinybnn as tb
from tinybnn import deploy, nn, quantizers
from tinybnn import functional as F
from tinybnn.deploy.values import FLOAT, Value


class SineSign(quantizers.Quantizer):
    """12.1: sign(x), with the slope of a quarter of a sine wave on each side.

    forward          +1 where x >= 0, else -1
    pseudo-gradient  (pi / 2) cos(pi x / 2) where |x| <= 1, else 0
    surrogate        sin(pi x / 2) where |x| <= 1, else sign(x)

    Each method takes an array of floats, of any shape, and returns one of its shape and dtype. The
    surrogate takes a Tensor as well, and returns a Tensor then: use tb.clamp and tb.sin, which take
    both. (np.pi is a plain number and keeps float32.)
    """

    def forward(self, x):
        return np.where(x >= 0, 1, -1).astype(x.dtype)

    def pseudo_gradient(self, x):
        slope = np.pi / 2 * np.cos(np.pi / 2 * x)
        return np.where(np.abs(x) <= 1, slope, 0).astype(x.dtype)

    def surrogate(self, x):
        return tb.sin(np.pi / 2 * tb.clamp(x, -1.0, 1.0))


class MiddleOfThree(tb.Function):
    """12.2: the middle one of each three neighbours of x + offset.

    y[n, m] is the second, in sorted order, of the numbers 3 m, 3 m + 1 and 3 m + 2 of row n of
    x + offset. Write both methods.

    forward : x (N, 3 M) and offset (3 M,), arrays of floats -> y (N, M), of the dtype of x
        It keeps as an attribute what `backward` needs, such as which of the three it chose.
    backward : grad (N, M), output, x, offset -> the gradients of x (N, 3 M) and offset (3 M,)
        The chosen number gets the gradient, the other two get 0. Of equal numbers that one is
        chosen which a stable sort puts in the middle:
        np.argsort(rows, axis=2, kind="stable")[:, :, 1:2]
        Use operators, .reshape and .sum only: they work on arrays and on Tensors.
    """

    def forward(self, x, offset):
        rows = (x + offset).reshape(len(x), -1, 3)
        middle = np.argsort(rows, axis=2, kind="stable")[:, :, 1:2]
        self.chosen = (np.arange(3) == middle).astype(x.dtype)  # (N, M, 3), one 1 in each row
        return np.take_along_axis(rows, middle, axis=2)[:, :, 0]

    def backward(self, grad, output, x, offset):
        to_x = (grad.reshape(*grad.shape, 1) * self.chosen).reshape(x.shape)
        return to_x, to_x.sum(0)


class BinaryVote(nn.Module):
    """12.3: a layer of binary products, three for each output, of which the middle one counts.

    y = MiddleOfThree of sign(x) @ sign(weight).T and offset: (N, in) -> (N, out)

    Parameters
    ----------
    in_features, out_features : int
    rng : numpy.random.Generator
        Source of the weights.
    quantizer : Quantizer
        The sign, with its estimator, of x and of the weight.

    Attributes
    ----------
    weight : LatentParameter, (3 out_features, in_features) float32
        At first uniform between -1 and 1.
    offset : Parameter, (3 out_features,) float32
        At first 0.
    """

    def __init__(self, in_features, out_features, rng, quantizer=quantizers.ste_sign):
        weight = rng.uniform(-1, 1, (3 * out_features, in_features))
        self.weight = nn.LatentParameter(weight.astype(np.float32))
        self.offset = nn.Parameter(np.zeros(3 * out_features, np.float32))
        self.quantizer = quantizer

    def forward(self, x):
        sums = F.linear(self.quantizer(x), self.quantizer(self.weight))
        return MiddleOfThree.apply(sums, self.offset)


class MiddleOfThreeOperation(deploy.Operation):
    """12.4: `MiddleOfThree` in a packed model: floats (3 M,) and an array `offset` -> floats (M,).

    Its meaning, `run`, is inherited: it applies MiddleOfThree. Write both methods.

    shape : x, a Value, and offset, an array -> the Value of the result
        x.shape is the shape of one sample, without the batch. Expect x.shape to be (3 M,) and
        offset.shape to be the same; raise a ValueError otherwise. The result is of the kind FLOAT,
        has the shape (M,), and x.single is its `single` too.
    of_call : call, a TracedCall of MiddleOfThree -> its arrays and its settings, two dicts
        call.constant(1) is the offset as an array, or None if it depends on the model's input; in
        that case raise deploy.NoPackedFormError with a sentence that says so. There are no
        settings.
    """

    name, functions, arrays = "middle_of_three", (MiddleOfThree,), ("offset",)

    @staticmethod
    def shape(x, *, offset):
        if len(x.shape) != 1 or x.shape[0] % 3:
            raise ValueError(f"expects a multiple of three features, got {x.shape}")
        if offset.shape != x.shape:
            raise ValueError(f"offset must have the shape {x.shape}, got {offset.shape}")
        return Value(FLOAT, (x.shape[0] // 3,), x.single)

    @classmethod
    def of_call(cls, call):
        offset = call.constant(1)
        if offset is None:
            raise deploy.NoPackedFormError("its offset depends on the input; use a Parameter")
        return {"offset": offset}, {}
