"""Only the part along the last vector."""

import numpy as np

NAMES = "must be orthogonal to all"


def lanczos(product, start, steps):
    basis = [start / np.linalg.norm(start)]
    alphas, betas = [], []
    while True:
        rest = product(basis[-1])
        alphas.append(rest @ basis[-1])
        if len(basis) == steps:
            return np.array(alphas), np.array(betas), np.array(basis)
        rest = rest - alphas[-1] * basis[-1]
        betas.append(np.linalg.norm(rest))
        basis.append(rest / np.linalg.norm(rest))
