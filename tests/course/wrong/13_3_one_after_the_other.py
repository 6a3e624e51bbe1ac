"""All calls of one, then all of the other."""

import statistics
import time

NAMES = "changed its speed"


def ratio(first, second, rounds=5, clock=time.perf_counter):
    medians = []
    for function in (first, second):
        function()
        times = []
        for _ in range(rounds):
            start = clock()
            function()
            times.append(clock() - start)
        medians.append(statistics.median(times))
    return medians[1] / medians[0]
