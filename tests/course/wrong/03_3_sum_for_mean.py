"""The sum over the batch."""

import numpy as np

NAMES = "take the mean"


def cross_entropy(scores, labels):
    right = np.eye(scores.shape[1], dtype=scores.dtype)[labels]
    scores = scores - scores.data.max(1, keepdims=True)
    return (scores.exp().sum(1).log() - (scores * right).sum(1)).sum()
