"""The step of a gradient."""

import numpy as np

NAMES = "against the votes"


def server_step(weight, messages, counts, step=0.02, limit=1.0):
    signs = [unpack(words, weight.shape[1]) for words in messages]
    votes = sum(n * s for n, s in zip(counts, signs, strict=True))
    return np.clip(weight - step * votes / sum(counts), -limit, limit)
