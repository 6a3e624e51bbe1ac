"""The mean over all N times C numbers."""

import numpy as np

NAMES = "N times C"


def cross_entropy(scores, labels):
    right = np.eye(scores.shape[1], dtype=scores.dtype)[labels]
    scores = scores - scores.data.max(1, keepdims=True)
    return ((scores.exp().sum(1, keepdims=True).log() - scores) * right).mean()
