"""The mean over rows and columns."""

import numpy as np

NAMES = "rows and columns only"


def weight_scale(latent):
    return np.abs(latent).mean(axis=(2, 3))
