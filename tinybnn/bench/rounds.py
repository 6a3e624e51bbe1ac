"""Timing contenders so that none disturbs another; rows of results.

Strict alternation, one run of ours, one of the peer, and so on, would make a machine that slows
down slow both. For short runs it is wrong: the threads of OpenMP and BLAS do not sleep when their
work is done, but spin for a few milliseconds, up to a tenth of a second, waiting for more. The next
contender shares the cores with them: a prediction that takes 0.66 ms alone took 1.19 ms right after
PyTorch's.

So contenders alternate in *turns*. Before a turn the process sleeps until all of its threads are
idle. Then the contender runs once untimed, which wakes its own threads and brings its data into the
cache, and then a few times with the clock. One turn of each contender is a *round*; rounds repeat.
Ours and peers are treated alike, and medians are taken over the timed runs of all rounds.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from tinybnn.kernels.machine.simd import cpu_features
from tinybnn.kernels.signs import xnor

Row: TypeAlias = dict[str, Any]  # the columns are documented in `report.run`

_PAUSE = 0.02  # seconds; spinning threads use measurable CPU time within it
_MOST_PAUSES = 10
_TURN = 0.03  # approximate seconds of timed runs in a turn
_MOST_CALLS = 50


class Settings(NamedTuple):
    """Options of a measurement.

    Attributes
    ----------
    num_threads : int
        For our kernels and for the peers.
    quick : bool
        One run of each contender: all of the code runs, but the figures mean nothing.
    seconds : float
        Approximate time to measure each contender of a row.
    """

    num_threads: int
    quick: bool = False
    seconds: float = 1.5


class Contender(NamedTuple):
    """A participant of a comparison.

    Attributes
    ----------
    name : str
    turn : callable
        Takes a number of runs and returns the seconds of each, as `turn` does.
    nbytes : int, optional
        Lower bound of the bytes that a run reads and writes.
    counts : bool
        Whether a target for the ratio refers to this peer; among several, to the fastest.
    """

    name: str
    turn: Callable[[int], list[float]]
    nbytes: int | None = None
    counts: bool = False


class Target(NamedTuple):
    """A value that a row should reach.

    Attributes
    ----------
    column : str
        'ratio', 'peak_share' or 'rate', lower bounds, or 'ours_s', an upper bound.
    value : float
    """

    column: str
    value: float

    def is_met(self, row: Row) -> bool:
        """Whether a row reaches it."""
        measured = row[self.column]
        return measured <= self.value if self.column == "ours_s" else measured >= self.value


def of_this_cpu(avx512: Target, avx2: Target) -> Target | None:
    """Select the target for this kind of CPU; None for CPUs without one.

    Parameters
    ----------
    avx512, avx2 : Target
        For a CPU that counts the bits of a vector (AVX-512 with VPOPCNTDQ), and for one that has
        AVX2, or AVX-512 without that instruction. Other CPUs have no targets.
    """
    if "avx512vpopcntdq" in cpu_features():
        return avx512
    return avx2 if "avx2" in cpu_features() else None


def ratio_of_this_cpu(avx512: float, avx2: float) -> Target | None:
    """Select the target ratio for this kind of CPU; see `of_this_cpu`."""
    return of_this_cpu(Target("ratio", avx512), Target("ratio", avx2))


def contender(
    name: str, function: Callable[[], Any], nbytes: int | None = None, counts: bool = False
) -> Contender:
    """Make a contender of a function that runs in this process."""
    return Contender(name, partial(turn, function), nbytes, counts)


def rest() -> None:
    """Sleep until no thread of this process uses a core, at most a fifth of a second."""
    for _ in range(_MOST_PAUSES):
        before = time.process_time()
        time.sleep(_PAUSE)
        if time.process_time() - before < _PAUSE / 10:
            return


def turn(function: Callable[[], Any], calls: int) -> list[float]:
    """Time `calls` runs of a function in seconds, after a rest and one untimed run."""
    rest()
    function()
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return seconds


def measure(
    contenders: Sequence[Contender], settings: Settings, between: Callable[[], Any] | None = None
) -> list[list[float]]:
    """Let contenders take turns.

    Parameters
    ----------
    contenders : sequence of Contender
    settings : Settings
    between : callable, optional
        Called after each round.

    Returns
    -------
    list of list of float
        For each contender the seconds of its timed runs.
    """
    if settings.quick:
        calls, least, until = [1] * len(contenders), 1, 0.0
    else:
        # The first turn may compile or allocate; it also estimates how long a run takes.
        estimates = [min(c.turn(2)) for c in contenders]
        calls = [min(max(round(_TURN / seconds), 1), _MOST_CALLS) for seconds in estimates]
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
    name: str,
    shape: str | Sequence[int],
    ours: Callable[[], Any],
    peers: Sequence[Contender],
    settings: Settings,
    *,
    products: int | None = None,
    nbytes: int | None = None,
    rate: tuple[float, str] | None = None,
    of_peak: bool = False,
    target: Target | None = None,
) -> list[Row]:
    """Measure ours and its peers and make a row for each peer.

    Parameters
    ----------
    name : str
    shape : str or tuple of int
    ours : callable
    peers : sequence of Contender
    settings : Settings
    products : int, optional
        Sign products in a run of ours.
    nbytes : int, optional
        Lower bound of the bytes that a run of ours reads and writes: inputs, constants and outputs,
        each once.
    rate : (float, str), optional
        Work in a run and its unit; default: the products, in 1e9.
    of_peak : bool
        Whether to measure the register-only peak in the same rounds and report the share of it that
        our fastest run reaches (the peak, too, is that of an undisturbed core).
    target : Target, optional

    Returns
    -------
    list of dict
        Columns as documented in `report.run`.
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


def make_row(
    name: str,
    shape: str | Sequence[int],
    ours: Sequence[float],
    peer: str,
    others: Sequence[float],
    settings: Settings,
) -> Row:
    """Make a row of the measured seconds of ours and a peer; optional columns are None."""
    median, other = statistics.median(ours), statistics.median(others)
    row = {
        "name": name, "shape": shape if isinstance(shape, str) else "×".join(map(str, shape)),
        "threads": settings.num_threads,
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
    """Enter a target in one row: for the ratio, in that of the fastest peer that counts."""
    if target.column == "ratio":
        rows = [row for row, peer in zip(rows, peers, strict=True) if peer.counts]
    if rows:
        row = min(rows, key=lambda row: row["peer_s"])
        set_target(row, target)


def set_target(row: Row, target: Target) -> None:
    """Enter a target in a row, and whether the row meets it."""
    row |= {"target": target.value, "target_of": target.column, "is_met": target.is_met(row)}


def output_of(program: str, **environment: str) -> str:
    """Run a Python program in a new process and return what it prints."""
    return subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | environment, check=True, stdout=subprocess.PIPE, text=True,
    ).stdout  # fmt: skip
