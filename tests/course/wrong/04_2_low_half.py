"""The masks and shifts of a 32-bit popcount."""

import numpy as np

NAMES = "low 32 bits"


def popcount_words(words):
    words = words.astype(np.uint32)
    words = words - ((words >> np.uint32(1)) & np.uint32(0x55555555))
    words = (words & np.uint32(0x33333333)) + ((words >> np.uint32(2)) & np.uint32(0x33333333))
    words = (words + (words >> np.uint32(4))) & np.uint32(0x0F0F0F0F)
    return ((words * np.uint32(0x01010101)) >> np.uint32(24)).astype(np.int64)
