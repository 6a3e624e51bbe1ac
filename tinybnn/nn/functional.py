"""`tinybnn.functional` where PyTorch has it: ``import tinybnn.nn.functional as F``."""

from tinybnn.functional import *  # noqa: F403
from tinybnn.functional import __all__


def __dir__() -> list[str]:
    return __all__.copy()  # what is public, and nothing else
