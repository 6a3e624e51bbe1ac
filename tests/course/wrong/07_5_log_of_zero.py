"""A safe sigmoid, but a logarithm of 0."""

import numpy as np

NAMES = "never above 1"


def kl_to_coin(logits):
    p = sigmoid(logits)
    return (p * np.log(2 * p) + (1 - p) * np.log(2 * (1 - p))).sum(axis=-1)
