"""A one-sided difference."""

NAMES = "one-sided"


def difference_product(gradient, w, v, h=1e-4):
    return (gradient(w + h * v) - gradient(w)) / h
