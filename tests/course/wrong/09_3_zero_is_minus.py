"""No change is packed as 0."""

NAMES = "pushed downwards"


def update_bits(before, after, coin):
    return pack(after - before)
