"""Signs as an array: nothing reaches the latent weights."""

import numpy as np

NAMES = "no gradient reaches the latent weights"


def binary_linear(x, latent):
    return x @ np.where(latent.data >= 0, 1, -1).astype(x.dtype).T
