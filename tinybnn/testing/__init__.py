"""Checks for code that computes gradients or has to be exact, and random networks to check it with.

- `gradcheck`, `gradgradcheck`: a gradient rule against central differences.
- `assert_identical`, `check_packed`: equal bits, no tolerance.
- `random_network`, `campaign`: networks of any layers, and packed models held against them.
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
__dir__ = __all__.copy  # dir() shows what is public, and nothing else
