"""Weighted with probabilities."""

NAMES = "would count twice"


def score_function(logits, codes, costs, baseline=0.0):
    q = code_probabilities(logits, codes)
    return (q * (costs - baseline))[:, None] * (codes - (2 * sigmoid(logits) - 1)) / 2
