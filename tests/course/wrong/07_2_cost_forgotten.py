"""The cost is forgotten."""

NAMES = "the cost is forgotten"


def exact_gradient(logits, cost):
    codes = all_codes(len(logits))
    q = code_probabilities(logits, codes)
    return q @ (codes - (2 * sigmoid(logits) - 1)) / 2
