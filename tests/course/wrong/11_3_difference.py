"""A difference of gradients."""

NAMES = "differentiate its lines instead"


def hessian_vector(x, target, w1, w2, v1, v2):
    h = 1e-5
    a1, a2 = gradient(x, target, w1 + h * v1, w2 + h * v2)
    b1, b2 = gradient(x, target, w1 - h * v1, w2 - h * v2)
    return (a1 - b1) / (2 * h), (a2 - b2) / (2 * h)
