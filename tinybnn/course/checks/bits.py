"""Chapter 00: signs, bits, and the product of two rows of signs by XOR and popcount."""

from __future__ import annotations

import numpy as np

from tinybnn.course.exercise import Exercise, Wrong, call, compare, for_all


def _sign(x):
    return np.where(x >= 0, np.float32(1), np.float32(-1))


SIGN_MISTAKES = {
    "sign(0) is 0 here, as in np.sign; a bit has two values, and 0 must become one of them: +1":
        np.sign,
    "sign(0) is -1 here; the course takes sign(0) = +1, so compare with >=":
        lambda x: np.where(x > 0, np.float32(1), np.float32(-1)),
    "the sign of NaN is +1 here; NaN >= 0 is false, so it is -1":
        lambda x: np.where(x < 0, np.float32(-1), np.float32(1)),
}  # fmt: skip


def sign_values(bits):
    """sign is +1 from 0 upwards and -1 elsewhere, for any floats."""
    from hypothesis.extra.numpy import array_shapes, arrays

    x = arrays(np.float32, array_shapes(max_dims=2, max_side=4))
    for_all(lambda x: compare(bits.sign, _sign, {"x": x}, SIGN_MISTAKES), x=x)


def sign_dtype(bits):
    """sign returns float32."""
    x = np.float32([-1.5, 0.0, 2.0])
    answer = call(bits.sign, {"x": x})
    if np.asarray(answer).dtype != np.float32:
        raise Wrong("the answer is not float32", {"x": x}, np.asarray(answer).dtype, "float32")


EXERCISES = (
    Exercise(
        "00.1",
        "sign",
        "The sign of each number: +1.0 from 0 upwards, -1.0 elsewhere, as float32.",
        "The sign of zero",
        (sign_values, sign_dtype),
        (
            "Which values may come out? What does your function do at exactly 0?",
            "np.where(condition, a, b) chooses between two values, element by element.",
            "The condition is x >= 0. Mind the dtype: np.float32(1) is a float32, 1.0 is not.",
        ),
    ),
)
