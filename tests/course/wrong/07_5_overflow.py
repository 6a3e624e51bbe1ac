"""The formula as it stands."""

import numpy as np

NAMES = "never above 1"


def kl_to_coin(logits):
    p = 1 / (1 + np.exp(-logits))
    return (p * np.log(2 * p) + (1 - p) * np.log(2 * (1 - p))).sum(axis=-1)
