"""Averaged too early."""

NAMES = "one estimate a row"


def score_function(logits, codes, costs, baseline=0.0):
    return ((costs - baseline)[:, None] * (codes - (2 * sigmoid(logits) - 1)) / 2).mean(axis=0)
