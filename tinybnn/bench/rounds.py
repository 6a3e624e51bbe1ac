"""Timing two contenders so that neither disturbs the other; rows.

The obvious way is strict alternation, one run of ours, one of the peer, and so on, so that a
machine that slows down slows both. For short runs it is wrong. The threads of OpenMP and of BLAS do
not sleep when their work is done: for a few milliseconds, up to a tenth of a second, they spin, in
case more work comes. Whoever runs next has to share the cores with them: a prediction that takes
0.66 ms by itself took 1.19 ms straight after PyTorch's.

So contenders alternate in *turns*. Before a turn the process sleeps until all of its threads are at
rest. Then the contender runs once without being timed, which wakes its own threads and brings its
data into the cache, and then a few times with the clock. After one turn of each contender, a
*round*, it starts over. All are treated alike, a peer just as ours, and the median is taken over
all the timed runs of all rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from tinybnn.kernels.machine.simd import cpu_features
from tinybnn.kernels.signs import xnor

_PAUSE = 0.02  # seconds; threads that spin show within this time
_MOST_PAUSES = 10
_TURN = 0.03  # seconds of timed runs in a turn, roughly
_MOST_CALLS = 50


class Settings(NamedTuple):
    """How to measure.

    Attributes
    ----------
    num_threads : int
        For our kernels and for the peers.
    quick : bool
        One run each instead of many: figures mean nothing, but all of the code is run.
    seconds : float
        How long to measure each contender of a row, roughly.
    """

    num_threads: int
    quick: bool = False
    seconds: float = 1.5


class Contender(NamedTuple):
    """What takes part in a comparison.

    Attributes
    ----------
    name : str
    turn : callable
        Takes a number of runs, gives the seconds of each, as `turn` does.
    nbytes : int, optional
        What it reads and writes at least.
    counts : bool
        Whether a target for the ratio speaks of this peer. Of several, it speaks of the fastest.
    """

    name: str
    turn: Callable[[int], list]
    nbytes: int | None = None
    counts: bool = False


class Target(NamedTuple):
    """What a row should reach.

    Attributes
    ----------
    column : str
        'ratio', 'peak_share' or 'rate', where more is better, or 'ours_s', where less is.
    value : float
    """

    column: str
    value: float

    def is_met(self, row):
        found = row[self.column]
        return found <= self.value if self.column == "ours_s" else found >= self.value


def of_this_cpu(avx512, avx2):
    """What the project asks of itself on this kind of CPU; None where it asks nothing.

    Parameters
    ----------
    avx512, avx2 : Target
        For a CPU that counts the bits of a vector (AVX-512 with VPOPCNTDQ), and for one that has
        AVX2, or AVX-512 without that instruction. None are set for other CPUs.
    """
    if "avx512vpopcntdq" in cpu_features():
        return avx512
    return avx2 if "avx2" in cpu_features() else None


def ratio_of_this_cpu(avx512, avx2):
    """The same for two ratios."""
    return of_this_cpu(Target("ratio", avx512), Target("ratio", avx2))


def contender(name, function, nbytes=None, counts=False):
    """A contender that is a function of this process."""
    return Contender(name, partial(turn, function), nbytes, counts)


def rest():
    """Sleep until no thread of this process uses a core, a fifth of a second at the most."""
    for _ in range(_MOST_PAUSES):
        before = time.process_time()
        time.sleep(_PAUSE)
        if time.process_time() - before < _PAUSE / 10:
            return


def turn(function, calls):
    """The seconds of some runs of a function, after a rest and a run that is not timed."""
    rest()
    function()
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return seconds


def measure(contenders, settings, between=None):
    """Let contenders take turns.

    Parameters
    ----------
    contenders : sequence of Contender
    settings : Settings
    between : callable, optional
        Called once a round.

    Returns
    -------
    list of list of float
        For each contender the seconds of its timed runs.
    """
    if settings.quick:
        calls, least, until = [1] * len(contenders), 1, 0.0
    else:
        # The first turn, which may have to compile or to allocate, says how long a run takes.
        found = [min(c.turn(2)) for c in contenders]
        calls = [min(max(round(_TURN / seconds), 1), _MOST_CALLS) for seconds in found]
        least, until = 5, time.perf_counter() + settings.seconds * len(contenders)
    times = [[] for _ in contenders]
    done = 0
    while done < least or time.perf_counter() < until:
        for entry, count, seconds in zip(contenders, calls, times, strict=True):
            seconds += entry.turn(count)
        if between is not None:
            between()
        done += 1
    return times


def compare(
    name,
    shape,
    ours,
    peers,
    settings,
    *,
    products=None,
    nbytes=None,
    rate=None,
    of_peak=False,
    target=None,
):
    """Measure ours and its peers; a row for each peer.

    Parameters
    ----------
    name, shape : str
    ours : callable
    peers : sequence of Contender
    settings : Settings
    products : int, optional
        Products of signs in a run of ours.
    nbytes : int, optional
        Bytes that a run of ours reads and writes at least: what goes in, constants and what comes
        out, each once.
    rate : (float, str), optional
        Work in a run and its unit; by default the products, in 1e9.
    of_peak : bool
        Whether to measure the register-only peak in the same rounds, and give the share that ours
        has of it. It is that of the fastest run: the peak, too, is that of an undisturbed core.
    target : Target, optional

    Returns
    -------
    list of dict
        The columns are told in `report.run`.
    """
    peak = [0.0]

    def look_at_peak():
        peak.append(xnor.register_peak(20_000))

    times = measure([contender("ours", ours), *peers], settings, look_at_peak if of_peak else None)
    mine, *others = times
    if rate is None and products:
        rate = products / 1e9, "Gbit-MAC/s"
    rows = []
    for peer, seconds in zip(peers, others, strict=True):
        row = make_row(name, shape, mine, peer.name, seconds, settings)
        row |= {"products": products, "bytes": nbytes, "peer_bytes": peer.nbytes}
        if rate is not None:
            row["rate"], row["unit"] = rate[0] / row["ours_s"], rate[1]
        if of_peak:
            row["peak_share"] = products / min(mine) / (max(peak) * settings.num_threads)
        rows.append(row)
    if target is not None:
        _set_target(rows, peers, target)
    return rows


def make_row(name, shape, ours, peer, others, settings):
    """A row of measured seconds, ours and a peer's; columns that not every row has are None."""
    median, other = statistics.median(ours), statistics.median(others)
    row = {
        "name": name, "shape": shape, "threads": settings.num_threads,
        "ours_s": median, "ours_min_s": min(ours), "ours_max_s": max(ours),
        "peer": peer, "peer_s": other, "peer_min_s": min(others), "peer_max_s": max(others),
        "ratio": other / median, "ratio_of_fastest": min(others) / min(ours),
    }  # fmt: skip
    more = (
        "target", "target_of", "is_met", "peak_share", "rate", "unit", "bytes", "products",
        "peer_bytes", "profile", "memory", "peer_memory", "operations", "group",
    )  # fmt: skip
    return row | dict.fromkeys(more)


def _set_target(rows, peers, target):
    """A target stands in one row: for the ratio, in that of the fastest peer it speaks of."""
    if target.column == "ratio":
        rows = [row for row, peer in zip(rows, peers, strict=True) if peer.counts]
    if rows:
        row = min(rows, key=lambda row: row["peer_s"])
        set_target(row, target)


def set_target(row, target):
    """Write down what a row should reach, and whether it does."""
    row |= {"target": target.value, "target_of": target.column, "is_met": target.is_met(row)}
