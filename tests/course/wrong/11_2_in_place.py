"""The weights are moved and not moved back."""

NAMES = "writes into its argument"


def difference_product(gradient, w, v, h=1e-4):
    w += h * v
    ahead = gradient(w)
    w -= 2 * h * v
    return (ahead - gradient(w)) / (2 * h)
