"""The last of equal ones."""

NAMES = "the last one is returned"


def nearest(queries, words):
    distances = popcount_words(queries[:, None, :] ^ words[None, :, :]).sum(axis=-1)
    rows = distances.shape[1] - 1 - distances[:, ::-1].argmin(axis=1)
    return rows, distances.min(axis=1)
