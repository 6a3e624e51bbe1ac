"""Clipped probabilities."""

import numpy as np

NAMES = "a probability is clipped"


def kl_to_coin(logits):
    p = np.clip(sigmoid(logits), 1e-7, 1 - 1e-7)
    return (p * np.log(2 * p) + (1 - p) * np.log(2 * (1 - p))).sum(axis=-1)
