"""Divided by h."""

NAMES = "2 h apart"


def difference_product(gradient, w, v, h=1e-4):
    return (gradient(w + h * v) - gradient(w - h * v)) / h
