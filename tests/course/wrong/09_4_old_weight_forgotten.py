"""The mean of the votes is the weight."""

import numpy as np

NAMES = "the old weight is forgotten"


def server_step(weight, messages, counts, step=0.02, limit=1.0):
    signs = [unpack(words, weight.shape[1]) for words in messages]
    votes = sum(n * s for n, s in zip(counts, signs, strict=True))
    return votes / np.float32(sum(counts))
