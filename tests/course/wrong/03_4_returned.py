"""A new array, returned."""

import numpy as np

NAMES = "the array is unchanged"


def clip_latents(latent, limit=1.0):
    return np.clip(latent, -limit, limit)
