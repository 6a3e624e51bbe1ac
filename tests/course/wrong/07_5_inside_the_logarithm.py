"""A small number inside the logarithm."""

import numpy as np

NAMES = "added inside the logarithm"


def kl_to_coin(logits):
    p, q = sigmoid(logits), sigmoid(-logits)
    return (p * np.log(2 * p + 1e-8) + q * np.log(2 * q + 1e-8)).sum(axis=-1)
