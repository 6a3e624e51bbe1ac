"""The term of +1 alone."""

import numpy as np

NAMES = "the term of -1 is missing"


def kl_to_coin(logits):
    p = sigmoid(logits)
    return (p * np.log(2 * p)).sum(axis=-1)
