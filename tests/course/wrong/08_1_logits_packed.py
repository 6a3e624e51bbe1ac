"""The logits themselves."""

NAMES = "pack takes signs"


def pack_codes(logits):
    return pack(logits)
