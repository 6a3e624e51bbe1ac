"""Settings that every test shares: hypothesis profiles, a fixed seed, and warnings to overlook."""

import os
import platform
import sys

from hypothesis import HealthCheck, settings

_SLOW_FIRST_EXAMPLE = [HealthCheck.too_slow]  # the first example of a kernel compiles it

settings.register_profile(
    "ci",
    max_examples=60,
    derandomize=True,
    deadline=None,
    suppress_health_check=_SLOW_FIRST_EXAMPLE,
)
settings.register_profile(
    "dev", max_examples=25, deadline=None, suppress_health_check=_SLOW_FIRST_EXAMPLE
)
settings.register_profile(
    "thorough", max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck)
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_configure(config):
    """Ignore NumPy warnings caused by the machine rather than by the package.

    On newer Macs the BLAS kernels for SME leave floating-point flags set, also after the product of
    two identity matrices, and NumPy warns (https://github.com/numpy/numpy/issues/28687).
    """
    if (sys.platform, platform.machine()) == ("darwin", "arm64"):
        for what in ("divide by zero", "overflow", "invalid value"):
            warning = f"ignore:{what} encountered in matmul:RuntimeWarning"
            config.addinivalue_line("filterwarnings", warning)
