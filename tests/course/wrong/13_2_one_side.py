"""Sums on the side of the observed one alone."""

import itertools

import numpy as np

NAMES = "magnitudes"


def sign_flip_p(differences):
    count = 0
    for signs in itertools.product((1, -1), repeat=len(differences)):
        count += np.dot(signs, differences) >= np.sum(differences)
    return count / 2 ** len(differences)
