"""The observed sum itself does not count."""

import itertools

import numpy as np

NAMES = "p is never 0"


def sign_flip_p(differences):
    total = abs(np.sum(differences))
    slack = 1e-9 * np.abs(differences).sum()
    signs = itertools.product((1, -1), repeat=len(differences))
    return float(np.mean([abs(np.dot(s, differences)) > total + slack for s in signs]))
