"""Always at 1."""

import numpy as np

NAMES = "is not used"


def clip_latents(latent, limit=1.0):
    np.clip(latent, -1, 1, out=latent)
