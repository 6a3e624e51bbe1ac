"""One long product of both planes, with k of one."""

import numpy as np

NAMES = "but k is taken for one"


def dual_matmul(a, first, second, k):
    planes = np.concatenate([first, second], axis=1)
    return xnor_matmul(np.concatenate([a, a], axis=1), planes, k) // 2
