"""The mean of the signs."""

import numpy as np

NAMES = "mean of the signs"


def weight_scale(latent):
    return np.sign(latent).mean(axis=(1, 2, 3))
