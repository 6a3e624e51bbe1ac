"""Checks for code that computes gradients or must be exact, and random networks for such checks.

- `gradcheck`, `gradgradcheck`: compare a gradient rule with central differences.
- `assert_identical`, `check_packed`: compare bits, without tolerance.
- `random_network`, `campaign`: compare packed models with random networks of any layers.
"""

from tinybnn.testing.campaign import Campaign, campaign
from tinybnn.testing.exactness import (
    assert_identical,
    check_packed,
    randomize,
    train_briefly,
)
from tinybnn.testing.gradients import gradcheck, gradgradcheck
from tinybnn.testing.networks import RandomNetwork, random_network

__all__ = [
    "Campaign", "RandomNetwork", "assert_identical", "campaign", "check_packed", "gradcheck",
    "gradgradcheck", "random_network", "randomize", "train_briefly",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__.copy()  # what is public, and nothing else
