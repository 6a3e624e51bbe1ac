"""Bools for signs."""

NAMES = "other values (bool)"


def pack_codes(logits):
    return pack(logits >= 0)
