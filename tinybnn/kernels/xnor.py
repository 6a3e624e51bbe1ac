"""`kernels.signs.xnor`, by the name that users and tutorials know."""

import sys

from tinybnn.kernels.signs import xnor

sys.modules[__name__] = xnor
