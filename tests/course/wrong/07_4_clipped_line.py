"""The estimator of 02.1."""

import numpy as np

NAMES = "slope of the clipped line"


def straight_through(logits, uniform):
    p = sigmoid(logits.data)
    bits = sample_bits(p, uniform).astype(logits.dtype)
    return Tensor(bits, (logits,), lambda grad: (grad * (np.abs(logits.data) <= 1),))
