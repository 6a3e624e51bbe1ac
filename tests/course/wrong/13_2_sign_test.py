"""How many differences are positive, whatever their size."""

import itertools

import numpy as np

NAMES = "only the signs"


def sign_flip_p(differences):
    own = abs(np.sign(differences).sum())
    choices = itertools.product((1, -1), repeat=len(differences))
    return float(np.mean([abs(sum(signs)) >= own for signs in choices]))
