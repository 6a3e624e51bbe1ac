"""The first calls are timed."""

import statistics
import time

NAMES = "first calls are timed"


def ratio(first, second, rounds=5, clock=time.perf_counter):
    ratios = []
    for _ in range(rounds):
        a = clock()
        first()
        b = clock()
        second()
        ratios.append((clock() - b) / (b - a))
    return statistics.median(ratios)
