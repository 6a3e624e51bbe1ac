"""Passes above."""

NAMES = "passes above 1"


def ste_gradient(x):
    return (x > -1).astype(x.dtype)
