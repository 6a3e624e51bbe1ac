"""Without the half."""

NAMES = "factor 1/2 is missing"


def score_function(logits, codes, costs, baseline=0.0):
    return (costs - baseline)[:, None] * (codes - (2 * sigmoid(logits) - 1))
