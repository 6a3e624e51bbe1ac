"""The votes are not divided."""

import numpy as np

NAMES = "the step is far too long"


def server_step(weight, messages, counts, step=0.02, limit=1.0):
    signs = [unpack(words, weight.shape[1]) for words in messages]
    votes = sum(n * s for n, s in zip(counts, signs, strict=True))
    return np.clip(weight + np.float32(step) * votes, -limit, limit)
