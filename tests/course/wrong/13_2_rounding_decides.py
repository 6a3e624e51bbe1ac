"""Compared by == of floats."""

import itertools

import numpy as np

NAMES = "equal but for rounding"


def sign_flip_p(differences):
    total = abs(np.sum(differences))
    count = 0
    for signs in itertools.product((1, -1), repeat=len(differences)):
        count += abs(np.sum(np.array(signs) * differences)) >= total
    return count / 2 ** len(differences)
