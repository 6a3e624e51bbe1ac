"""The signs as arrays."""

import numpy as np

NAMES = "sign must be sign_ste"


def three_levels(first, second):
    signs = [np.where(plane.data >= 0, 1, -1).astype(plane.dtype) for plane in (first, second)]
    return Tensor((signs[0] + signs[1]) / 2)
