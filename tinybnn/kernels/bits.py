"""`kernels.signs.bits`, by the name that users and tutorials know."""

import sys

from tinybnn.kernels.signs import bits

sys.modules[__name__] = bits
