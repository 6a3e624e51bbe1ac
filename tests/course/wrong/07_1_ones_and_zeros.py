"""Bits 1 and 0."""

NAMES = "1 and 0 here"


def sample_bits(p, uniform):
    return (uniform < p).astype(p.dtype)
