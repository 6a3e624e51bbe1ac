"""The old sign is one more vote."""

import numpy as np

NAMES = "`before` votes too"


def majority_vote(signs, counts, before):
    return np.sign(before + sum(n * s for n, s in zip(counts, signs, strict=True)))
