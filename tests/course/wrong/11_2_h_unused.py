"""h is always the default."""

NAMES = "h is not used"


def difference_product(gradient, w, v, h=1e-4):
    return (gradient(w + 1e-4 * v) - gradient(w - 1e-4 * v)) / 2e-4
