"""Settings that every test shares: hypothesis profiles and a fixed seed."""

import os

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
