"""sign(0) is 0, as np.sign has it."""

import numpy as np

NAMES = "as in np.sign"  # what the message must say


def sign(x):
    return np.sign(x)
