"""The correction has the wrong sign."""

import numpy as np

NAMES = "with the wrong sign"


def xnor_conv2d(x, weight, padding=0):
    size, flat = weight.shape[-1], weight.reshape(len(weight), -1)
    seen = windows(x, size, padding=padding, value=-1)
    k = flat.shape[1]
    sums = xnor_matmul(pack(seen.reshape(-1, k)), pack(flat), k)
    sums = sums.reshape(*seen.shape[:3], -1)
    outside = 1 - windows(np.ones((1, *x.shape[1:]), np.int32), size, padding=padding)
    return (sums - outside @ flat.astype(np.int32).T).transpose(0, 3, 1, 2)
