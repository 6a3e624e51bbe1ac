"""`tinybnn.autograd`, by the name that users know."""

from tinybnn.autograd import *  # noqa: F403
from tinybnn.autograd import __all__ as __all__
