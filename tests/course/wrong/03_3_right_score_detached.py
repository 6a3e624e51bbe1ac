"""The right score as an array: no gradient."""

import numpy as np

NAMES = "constant to the gradient"


def cross_entropy(scores, labels):
    scores = scores - scores.data.max(1, keepdims=True)
    picked = scores.data[np.arange(len(labels)), labels]
    return (scores.exp().sum(1).log() - picked).mean()
