"""exp of the scores as they are."""

import numpy as np

NAMES = "since exp(1000) is inf"


def cross_entropy(scores, labels):
    right = np.eye(scores.shape[1], dtype=scores.dtype)[labels]
    return (scores.exp().sum(1).log() - (scores * right).sum(1)).mean()
