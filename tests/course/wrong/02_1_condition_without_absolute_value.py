"""x <= 1 instead of |x| <= 1."""

NAMES = "the condition is on |x|"


def ste_gradient(x):
    return (x <= 1).astype(x.dtype)
