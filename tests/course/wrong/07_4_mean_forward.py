"""The mean forward."""

NAMES = "computes the mean of the bit"


def straight_through(logits, uniform):
    p = sigmoid(logits.data)
    return Tensor(
        (2 * p - 1).astype(logits.dtype), (logits,), lambda grad: (grad * 2 * p * (1 - p),)
    )
