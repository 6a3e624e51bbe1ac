"""Signs instead of clipped weights."""

import numpy as np

NAMES = "have become signs"


def clip_latents(latent, limit=1.0):
    latent[...] = np.where(latent >= 0, limit, -limit)
