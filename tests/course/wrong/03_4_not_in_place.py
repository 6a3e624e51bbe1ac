"""A new array."""

import numpy as np

NAMES = "the array is unchanged"


def clip_latents(latent, limit=1.0):
    latent = np.clip(latent, -limit, limit)
