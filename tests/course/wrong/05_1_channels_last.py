"""The values of a window in the order row, column, channel."""

import numpy as np

NAMES = "channel, row, column"


def windows(x, size, stride=1, padding=0, value=0):
    frame = (padding, padding)
    padded = np.pad(x, ((0, 0), (0, 0), frame, frame), constant_values=value)
    seen = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(2, 3))
    seen = seen[:, :, ::stride, ::stride].transpose(0, 2, 3, 4, 5, 1)
    return seen.reshape(*seen.shape[:3], -1)
