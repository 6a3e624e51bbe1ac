"""The baseline is not used."""

NAMES = "baseline is not used"


def score_function(logits, codes, costs, baseline=0.0):
    return costs[:, None] * (codes - (2 * sigmoid(logits) - 1)) / 2
