"""The baseline beside the product."""

NAMES = "subtracted from the product"


def score_function(logits, codes, costs, baseline=0.0):
    return costs[:, None] * (codes - (2 * sigmoid(logits) - 1)) / 2 - baseline
