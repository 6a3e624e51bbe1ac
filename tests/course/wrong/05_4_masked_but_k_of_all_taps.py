"""Differences on the frame are masked; k counts all taps."""

import numpy as np

NAMES = "k counts its taps"


def xnor_conv2d(x, weight, padding=0):
    size, flat = weight.shape[-1], weight.reshape(len(weight), -1)
    seen = pack(windows(x, size, padding=padding, value=-1))
    mask = pack(windows(np.ones_like(x), size, padding=padding, value=-1))
    differ = (seen[:, :, :, None] ^ pack(flat)) & mask[:, :, :, None]
    sums = flat.shape[1] - 2 * popcount_words(differ).sum(axis=-1)
    return sums.astype(np.int32).transpose(0, 3, 1, 2)


from mybnn.packing import popcount_words  # noqa: E402
