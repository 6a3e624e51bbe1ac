"""Without the sigmoid."""

NAMES = "the probability is sigmoid"


def straight_through(logits, uniform):
    p = sigmoid(logits.data)
    bits = sample_bits(logits.data, uniform)
    return Tensor(bits, (logits,), lambda grad: (grad * 2 * p * (1 - p),))
