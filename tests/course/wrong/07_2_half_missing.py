"""Without the half."""

NAMES = "factor 1/2 is missing"


def exact_gradient(logits, cost):
    codes = all_codes(len(logits))
    q = code_probabilities(logits, codes)
    return (q * cost(codes)) @ (codes - (2 * sigmoid(logits) - 1))
