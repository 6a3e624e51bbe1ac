"""One number for the whole layer."""

import numpy as np

NAMES = "one number for all filters"


def weight_scale(latent):
    return np.abs(latent).mean()
