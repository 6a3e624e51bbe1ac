"""The other axis."""

NAMES = "the other way round"


def nearest(queries, words):
    distances = popcount_words(queries[:, None, :] ^ words[None, :, :]).sum(axis=-1)
    return distances.argmin(axis=0), distances.min(axis=0)
