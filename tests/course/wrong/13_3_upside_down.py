"""first over second."""

import statistics
import time

NAMES = "upside down"


def ratio(first, second, rounds=5, clock=time.perf_counter):
    first(), second()
    ratios = []
    for _ in range(rounds):
        a = clock()
        first()
        b = clock()
        second()
        ratios.append((b - a) / (clock() - b))
    return statistics.median(ratios)
