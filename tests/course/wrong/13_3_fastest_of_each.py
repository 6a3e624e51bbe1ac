"""The fastest call of each, from whatever round."""

import time

NAMES = "fastest calls"


def ratio(first, second, rounds=5, clock=time.perf_counter):
    first(), second()
    times = [], []
    for _ in range(rounds):
        for function, seconds in zip((first, second), times, strict=True):
            start = clock()
            function()
            seconds.append(clock() - start)
    return min(times[1]) / min(times[0])
