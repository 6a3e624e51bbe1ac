"""h is added to all weights."""

NAMES = "the step goes along v"


def difference_product(gradient, w, v, h=1e-4):
    return (gradient(w + h) - gradient(w - h)) / (2 * h) * v
