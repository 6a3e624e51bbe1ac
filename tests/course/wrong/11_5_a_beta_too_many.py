"""The residual's length as well."""

import numpy as np

NAMES = "a beta too many"


def lanczos(product, start, steps):
    basis = [start / np.linalg.norm(start)]
    alphas, betas = [], []
    for _ in range(steps):
        rest = product(basis[-1])
        alphas.append(rest @ basis[-1])
        for q in basis + basis:
            rest = rest - (rest @ q) * q
        betas.append(np.linalg.norm(rest))
        basis.append(rest / (betas[-1] or 1))
    return np.array(alphas), np.array(betas), np.array(basis[:steps])
