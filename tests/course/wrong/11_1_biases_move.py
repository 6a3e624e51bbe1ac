"""An array with one axis keeps its direction."""

NAMES = "biases and batch norms must not move"


_right = filter_normalized


def filter_normalized(direction, weight):
    return direction if weight.ndim == 1 else _right(direction, weight)
