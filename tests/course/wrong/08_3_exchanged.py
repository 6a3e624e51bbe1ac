"""Distances first."""

NAMES = "rows and distances are exchanged"


def nearest(queries, words):
    distances = popcount_words(queries[:, None, :] ^ words[None, :, :]).sum(axis=-1)
    return distances.min(axis=1), distances.argmin(axis=1)
