"""Random numbers: the default generator of layers and loaders."""

from __future__ import annotations

import numpy as np

_generator = np.random.default_rng()


def manual_seed(seed: int | None) -> None:
    """Restart the default generator; None seeds it from the operating system."""
    global _generator
    _generator = np.random.default_rng(seed)


def default_generator() -> np.random.Generator:
    """Return the numpy.random.Generator that `manual_seed` restarts."""
    return _generator
