"""The sum goes over channels, too."""

NAMES = "into one"


def depthwise(x, weight, padding=0, value=0):
    seen = windows(x, weight.shape[-1], padding=padding, value=value)
    return (seen * weight.reshape(-1)).sum(axis=-1)[:, None]
