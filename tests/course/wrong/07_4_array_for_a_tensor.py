"""An array."""

NAMES = "expected a Tensor"


def straight_through(logits, uniform):
    p = sigmoid(logits.data)
    bits = sample_bits(p, uniform).astype(logits.dtype)
    return bits
