"""log of the softmax, which may be 0."""

import numpy as np

NAMES = "exp(-1000) is 0"


def cross_entropy(scores, labels):
    right = np.eye(scores.shape[1], dtype=scores.dtype)[labels]
    largest = scores.data.max()  # of the whole batch: a row far below it is all zeros
    exps = (scores - largest).exp()
    p = exps / (scores.exp() * 0 + exps).sum(1, keepdims=True)
    return -((p * right).sum(1).log()).mean()
