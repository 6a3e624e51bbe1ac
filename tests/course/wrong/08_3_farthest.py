"""The farthest."""

NAMES = "the most bits differ"


def nearest(queries, words):
    distances = popcount_words(queries[:, None, :] ^ words[None, :, :]).sum(axis=-1)
    return distances.argmax(axis=1), distances.max(axis=1)
