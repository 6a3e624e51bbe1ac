"""The comparison is the wrong way round."""

import numpy as np

NAMES = "the minority wins"


def majority_vote(signs, counts, before):
    votes = sum(n * s for n, s in zip(counts, signs, strict=True))
    return np.where(votes == 0, before, np.where(votes < 0, np.float32(1), np.float32(-1)))
