"""An array for a tuple of arrays."""

NAMES = "tuple with one array"


def straight_through(logits, uniform):
    p = sigmoid(logits.data)
    bits = sample_bits(p, uniform).astype(logits.dtype)
    return Tensor(bits, (logits,), lambda grad: grad * 2 * p * (1 - p))
