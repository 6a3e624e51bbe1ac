"""The sign of the logits."""

import numpy as np

NAMES = "likelier value"


def straight_through(logits, uniform):
    p = sigmoid(logits.data)
    bits = np.where(p >= 0.5, 1, -1).astype(logits.dtype)
    return Tensor(bits, (logits,), lambda grad: (grad * 2 * p * (1 - p),))
