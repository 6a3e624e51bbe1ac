"""Integers, of which a Tensor makes float32."""

import numpy as np

NAMES = "the bits become float32"


def straight_through(logits, uniform):
    p = sigmoid(logits.data)
    bits = np.where(uniform < p, 1, -1)
    return Tensor(bits, (logits,), lambda grad: (grad * 2 * p * (1 - p),))
