"""`tinybnn.functional` where PyTorch has it: ``import tinybnn.nn.functional as F``."""

from tinybnn.functional import *  # noqa: F403
from tinybnn.functional import __all__

__dir__ = __all__.copy  # dir() shows what is public, and nothing else
