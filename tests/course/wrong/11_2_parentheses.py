"""/ 2 * h."""

NAMES = "write / (2 * h)"


def difference_product(gradient, w, v, h=1e-4):
    return (gradient(w + h * v) - gradient(w - h * v)) / 2 * h
