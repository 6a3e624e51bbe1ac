"""Always large."""

NAMES = "about 0, since"


def gradcheck(function, *arrays):
    return 1.0
