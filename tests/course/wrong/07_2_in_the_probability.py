"""The derivative in p."""

NAMES = "derivative in the probability"


def exact_gradient(logits, cost):
    codes = all_codes(len(logits))
    q = code_probabilities(logits, codes)
    p = sigmoid(logits)
    return (q * cost(codes)) @ (codes - (2 * p - 1)) / 2 / (p * (1 - p))
