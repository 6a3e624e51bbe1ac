"""Clients count the same."""

import numpy as np

NAMES = "weight each by its samples"


def server_step(weight, messages, counts, step=0.02, limit=1.0):
    signs = [unpack(words, weight.shape[1]) for words in messages]
    return np.clip(weight + step * np.mean(signs, axis=0), -limit, limit)
