"""The recurrence of the textbooks."""

import numpy as np

NAMES = "the last two only"


def lanczos(product, start, steps):
    basis = [start / np.linalg.norm(start)]
    alphas, betas = [], []
    while True:
        rest = product(basis[-1])
        alphas.append(rest @ basis[-1])
        if len(basis) == steps:
            return np.array(alphas), np.array(betas), np.array(basis)
        rest = rest - alphas[-1] * basis[-1]
        if betas:
            rest = rest - betas[-1] * basis[-2]
        betas.append(np.linalg.norm(rest))
        basis.append(rest / np.linalg.norm(rest))
