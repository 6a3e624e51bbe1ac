"""Vectors as columns."""

import numpy as np

NAMES = "vectors are columns"


def lanczos(product, start, steps):
    basis = [start / np.linalg.norm(start)]
    alphas, betas = [], []
    while True:
        rest = product(basis[-1])
        alphas.append(rest @ basis[-1])
        if len(basis) == steps:
            return np.array(alphas), np.array(betas), np.array(basis).T
        for q in basis + basis:
            rest = rest - (rest @ q) * q
        betas.append(np.linalg.norm(rest))
        basis.append(rest / np.linalg.norm(rest))
