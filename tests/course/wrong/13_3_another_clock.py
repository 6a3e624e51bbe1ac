"""The clock that came is not read."""

import statistics
import time

NAMES = "read clock()"


def ratio(first, second, rounds=5, clock=time.perf_counter):
    first(), second()
    ratios = []
    for _ in range(rounds):
        a = time.perf_counter()
        first()
        b = time.perf_counter()
        second()
        ratios.append((time.perf_counter() - b) / (b - a))
    return statistics.median(ratios)
