"""Words to signs, and a product of floats."""

import numpy as np

NAMES = "unpacks the words"


def xnor_matmul_fast(a, b, k):
    def signs(words):
        bits = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
        return bits[:, :k] * np.float32(2) - np.float32(1)

    return (signs(a) @ signs(b).T).astype(np.int32)
