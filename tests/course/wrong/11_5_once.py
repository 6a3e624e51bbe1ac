"""Orthogonalised once."""

import numpy as np

NAMES = "do it twice"


def lanczos(product, start, steps):
    basis = [start / np.linalg.norm(start)]
    alphas, betas = [], []
    while True:
        rest = product(basis[-1])
        alphas.append(rest @ basis[-1])
        if len(basis) == steps:
            return np.array(alphas), np.array(betas), np.array(basis)
        rest = rest - np.array(basis).T @ (np.array(basis) @ rest)
        betas.append(np.linalg.norm(rest))
        basis.append(rest / np.linalg.norm(rest))
