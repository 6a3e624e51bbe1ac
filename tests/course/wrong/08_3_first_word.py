"""The first word alone."""

NAMES = "only the first word"


def nearest(queries, words):
    distances = popcount_words(queries[:, None, 0] ^ words[None, :, 0])
    return distances.argmin(axis=1), distances.min(axis=1)
