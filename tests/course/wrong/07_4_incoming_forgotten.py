"""The slope alone."""

NAMES = "incoming gradient is forgotten"


def straight_through(logits, uniform):
    p = sigmoid(logits.data)
    bits = sample_bits(p, uniform).astype(logits.dtype)
    return Tensor(bits, (logits,), lambda grad: (2 * p * (1 - p),))
