"""Only from above."""

import numpy as np

NAMES = "below -limit stay"


def clip_latents(latent, limit=1.0):
    np.minimum(latent, limit, out=latent)
