"""alphas and betas in the wrong order."""

import numpy as np

NAMES = "alphas and betas are exchanged"


def lanczos(product, start, steps):
    basis = [start / np.linalg.norm(start)]
    alphas, betas = [], []
    while True:
        rest = product(basis[-1])
        alphas.append(rest @ basis[-1])
        if len(basis) == steps:
            return np.array(betas), np.array(alphas), np.array(basis)
        for q in basis + basis:
            rest = rest - (rest @ q) * q
        betas.append(np.linalg.norm(rest))
        basis.append(rest / np.linalg.norm(rest))
