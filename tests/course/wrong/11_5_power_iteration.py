"""No vector is taken away."""

import numpy as np

NAMES = "this is power iteration"


def lanczos(product, start, steps):
    basis = [start / np.linalg.norm(start)]
    alphas, betas = [], []
    while True:
        rest = product(basis[-1])
        alphas.append(rest @ basis[-1])
        if len(basis) == steps:
            return np.array(alphas), np.array(betas), np.array(basis)

        betas.append(np.linalg.norm(rest))
        basis.append(rest / np.linalg.norm(rest))
