"""The slope along v."""

NAMES = "this is the gradient along v"


def difference_product(gradient, w, v, h=1e-4):
    return gradient(w) * v
