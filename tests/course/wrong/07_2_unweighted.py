"""A mean over all codes."""

NAMES = "all codes count alike"


def exact_gradient(logits, cost):
    codes = all_codes(len(logits))
    return (cost(codes)[:, None] * (codes - (2 * sigmoid(logits) - 1)) / 2).mean(axis=0)
