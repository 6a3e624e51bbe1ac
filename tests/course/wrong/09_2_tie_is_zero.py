"""np.sign makes 0 of a tie."""

import numpy as np

NAMES = "the answer is 0, as np.sign gives"


def majority_vote(signs, counts, before):
    return np.sign(sum(n * s for n, s in zip(counts, signs, strict=True)))
