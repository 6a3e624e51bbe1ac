"""Divided by the number of codes."""

NAMES = "divided by the number of codes"


def exact_gradient(logits, cost):
    codes = all_codes(len(logits))
    q = code_probabilities(logits, codes)
    return ((q * cost(codes))[:, None] * (codes - (2 * sigmoid(logits) - 1)) / 2).mean(axis=0)
