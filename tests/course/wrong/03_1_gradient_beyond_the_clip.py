"""The identity as estimator."""

import numpy as np

NAMES = "beyond 1 receive a gradient"


def binary_linear(x, latent):
    return x @ sign_ste(latent, np.ones_like).T
