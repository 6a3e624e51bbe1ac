"""The costs are forgotten."""

NAMES = "the costs are forgotten"


def score_function(logits, codes, costs, baseline=0.0):
    return (codes - (2 * sigmoid(logits) - 1)) / 2
