"""The mean of the rounds."""

import time

NAMES = "take the median"


def ratio(first, second, rounds=5, clock=time.perf_counter):
    first(), second()
    total = 0.0
    for _ in range(rounds):
        a = clock()
        first()
        b = clock()
        second()
        total += (clock() - b) / (b - a)
    return total / rounds
