"""Random numbers: the generator that layers and loaders draw from when they are given none."""

import numpy as np

_generator = np.random.default_rng()


def manual_seed(seed):
    """Restart the generator that layers draw from when they are given none of their own."""
    global _generator
    _generator = np.random.default_rng(seed)


def default_generator():
    """The numpy.random.Generator that `manual_seed` restarts."""
    return _generator
