"""sign(0) = +1 decides a tie."""

import numpy as np

NAMES = "tie must leave the old sign"


def majority_vote(signs, counts, before):
    votes = sum(n * s for n, s in zip(counts, signs, strict=True))
    return np.where(votes >= 0, np.float32(1), np.float32(-1))
