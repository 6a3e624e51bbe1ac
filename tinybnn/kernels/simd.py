"""`kernels.machine.simd`, by the name that users and tutorials know."""

import sys

from tinybnn.kernels.machine import simd

sys.modules[__name__] = simd
