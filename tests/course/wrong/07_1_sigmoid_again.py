"""Takes p for a logit."""

import numpy as np

NAMES = "sigmoid once more"


def sample_bits(p, uniform):
    return np.where(uniform < sigmoid(p), 1, -1).astype(p.dtype)
