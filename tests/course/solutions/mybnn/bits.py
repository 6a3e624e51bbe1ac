"""Chapter 00: signs, bits, and their product by XOR and popcount.

Write the missing bodies, then check them: tinybnn course check 00
"""

import numpy as np


def sign(x):
    """00.1: the sign of each number.

    Parameters
    ----------
    x : array of floats

    Returns
    -------
    float32 array of the same shape: +1 where x >= 0, -1 elsewhere (so -1 for NaN)
    """
    return np.where(x >= 0, np.float32(1), np.float32(-1))
