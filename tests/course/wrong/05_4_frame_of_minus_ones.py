"""Bits of 0 on the frame, and no correction."""

NAMES = "counted as -1"


def xnor_conv2d(x, weight, padding=0):
    seen = windows(x, weight.shape[-1], padding=padding, value=-1)
    flat = weight.reshape(len(weight), -1)
    k = flat.shape[1]
    sums = xnor_matmul(pack(seen.reshape(-1, k)), pack(flat), k)
    return sums.reshape(*seen.shape[:3], -1).transpose(0, 3, 1, 2)
