"""The slope at the bits."""

NAMES = "taken at the drawn bits"


def straight_through(logits, uniform):
    p = sigmoid(logits.data)
    bits = sample_bits(p, uniform).astype(logits.dtype)
    s = sigmoid(bits)
    return Tensor(bits, (logits,), lambda grad: (grad * 2 * s * (1 - s),))
