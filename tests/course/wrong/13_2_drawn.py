"""Random signs instead of all."""

import itertools

import numpy as np

NAMES = "drawn at random"


def sign_flip_p(differences):
    if len(differences) < 10:
        signs = np.array(list(itertools.product((1, -1), repeat=len(differences))))
    else:
        signs = np.random.default_rng().choice([-1, 1], (1000, len(differences)))
    total = abs(np.sum(differences)) - 1e-9 * np.abs(differences).sum()
    return float(np.mean(np.abs(signs @ differences) >= total))
