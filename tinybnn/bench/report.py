"""Measure groups of rows; print them, and write them as JSON, a page or a picture."""

from __future__ import annotations

import datetime
import itertools
import os
import textwrap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import llvmlite.binding
import numpy as np

from tinybnn import analysis, plots, tables
from tinybnn.analysis import operations
from tinybnn.bench.agreement import compare_all
from tinybnn.bench.curvature import curvature
from tinybnn.bench.kernels import depthwise_convolutions, kernels
from tinybnn.bench.models import networks
from tinybnn.bench.peers import blas_threads, is_installed, versions
from tinybnn.bench.rounds import Settings, rest
from tinybnn.bench.startup import startup
from tinybnn.bench.training import training
from tinybnn.kernels.machine import threads
from tinybnn.kernels.machine.simd import cpu_kind, cpu_name
from tinybnn.kernels.signs import xnor
from tinybnn.kernels.signs.prepared import best_method

Report: TypeAlias = dict[str, Any]  # the keys are documented in `run`

GROUPS = ("kernels", "depthwise", "models", "startup", "train", "curvature")


def run(
    group: str = "all",
    num_threads: int | None = None,
    quick: bool = False,
    say: Callable[[str], Any] = print,
    profile: bool = False,
) -> Report:
    """Measure a group of rows.

    Parameters
    ----------
    group : str
        One of `GROUPS`, or 'all'.
    num_threads : int, optional
        For our kernels, for PyTorch, ONNX Runtime and Larq Compute Engine, and for NumPy's BLAS.
        Default: 2, or the number of cores if that is smaller.
    quick : bool
        Run everything, but too briefly for meaningful figures.
    say : callable
        Called with a text of one or more lines at a time.
    profile : bool
        Add the times of single operations to each network of 'train'.

    Returns
    -------
    dict
        Ready for JSON. ``machine`` (processor, cores, versions; ``vectors``, ``model`` and
        ``compiled_for`` as in `_processor`), ``threads``, ``command``, ``date``, ``roof`` (see
        `measure_roof`) and ``rows``, a list of dicts, all with the same keys; None where a key
        does not apply:

        ``name``, ``shape``, ``threads``
            The measured computation.
        ``ours_s``, ``ours_min_s``, ``ours_max_s``
            Seconds of a run of ours: median, fastest, slowest.
        ``peer``, ``peer_s``, ``peer_min_s``, ``peer_max_s``
            The peer and its seconds.
        ``ratio``, ``ratio_of_fastest``
            peer_s / ours_s, and peer_min_s / ours_min_s. On a busy machine medians depend on how
            often each was interrupted; the fastest runs were not.
        ``target``, ``target_of``, ``is_met``
            The target, its column, and whether this run meets it. Targets for shares of the peak
            are meant for one thread, those for ratios for two.
        ``peak_share``
            Share of the register-only peak of all threads, for the fastest run.
        ``rate``, ``unit``
            Work per second, for the median.
        ``bytes``, ``peer_bytes``
            Lower bound of the bytes that a run reads and writes: all inputs and outputs, once.
        ``products``
            Sign products in a run of ours.
        ``profile``
            The result of `PackedModel.profile`; in the last row of each shape of a model.
        ``memory``, ``peer_memory``
            The results of `training.memory_of` for ours and for the peer, in rows of training.
        ``operations``
            The rows of an `analysis.OperationTimes`; with `profile`, in the last row of each
            trained network.
        ``group``
            One of `GROUPS`.

    Raises
    ------
    ValueError
        If there is no such group, or `num_threads` exceeds the threads that Numba was started with.
    """
    if group not in (*GROUPS, "all"):
        raise ValueError(f"bench: group must be one of {(*GROUPS, 'all')}, got {group!r}")
    num_threads = _default_threads(num_threads)
    settings = Settings(num_threads, quick)
    measured = {
        "kernels": kernels,
        "depthwise": depthwise_convolutions,
        "models": lambda settings: networks(settings, say),
        "startup": startup,
        "train": lambda settings: training(settings, profile),
        "curvature": curvature,
    }
    rows = []
    with threads.num_threads(num_threads), blas_threads(num_threads):
        if quick:
            say("A quick run: its figures mean nothing beyond showing that the code runs.")
        roof = measure_roof(num_threads, quick)
        say(
            f"The CPU has {cpu_kind()}: sign products by "
            f"{_METHODS[best_method()]}.\n"
            f"Register-only peak: {roof['register_peak'] / 1e9:,.0f} Gbit-MAC/s per core. "
            f"Memory: {roof['bandwidth'] / 1e9:.0f} GB/s\n({roof['bandwidth_by']}). "
            f"Threads: {num_threads}.\nMedians, with the fastest and the slowest run in brackets; "
            "ratios of medians and of fastest runs."
        )
        for name in GROUPS if group == "all" else (group,):
            say("\n" + tables.line(_HEADER, _WIDTHS, _ALIGN))
            before = None
            for row in measured[name](settings):
                say(_lines(row, before))
                if row["profile"]:
                    say(_indented(row["profile"].table(_INNER)))
                if row["memory"] and row["peer_memory"]:
                    say(_memory(row))
                if row["operations"]:
                    say(_indented(operations.table(row["operations"], _INNER)))
                rows.append(row | {"group": name})
                before = row
    options = " --profile" * profile + " --quick" * quick
    return _circumstances(group, num_threads, options) | {"roof": roof, "rows": rows}


def check(
    num_threads: int | None = None, quick: bool = False, say: Callable[[str], Any] = print
) -> Report:
    """Compare steps of training with PyTorch's, from the same weights before each step.

    Parameters
    ----------
    num_threads, say
        As in `run`.
    quick : bool
        Three steps of 8 samples instead of twenty of 16.

    Returns
    -------
    dict
        Ready for JSON: ``machine``, ``threads``, ``command``, ``date`` and ``rows``, the results of
        `agreement.compare_steps` for each network of 'train'.

    Raises
    ------
    ValueError
        If PyTorch is not installed.
    """
    if not is_installed("torch"):
        raise ValueError("bench: --check compares with PyTorch, which is not installed")
    num_threads = _default_threads(num_threads)
    steps, batch = (3, 8) if quick else (20, 16)
    rows = compare_all(steps, batch, num_threads, say)
    return _circumstances("train", num_threads, " --check" + " --quick" * quick) | {"rows": rows}


def _default_threads(num_threads):
    return min(2, os.cpu_count() or 1) if num_threads is None else num_threads


def _circumstances(group, num_threads, options):
    """Describe the machine, the command and the date."""
    return {
        "machine": analysis.machine() | _processor() | {"peers": versions()},
        "threads": num_threads,
        "command": f"tinybnn bench {group} --threads {num_threads}{options}",
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _processor():
    """Describe the CPU to the kernels: its ``vectors`` in words, LLVM's name of its ``model`` and
    of the one that kernels are ``compiled_for``, which NUMBA_CPU_NAME may set."""
    return {
        "vectors": cpu_kind(),
        "model": llvmlite.binding.get_host_cpu_name(),
        "compiled_for": cpu_name(),
    }


def draw(path: str | os.PathLike[str], report: Report) -> None:
    """Draw the result of `run` with `plots.roofline` to a PNG file."""
    figure = plots.figure(figsize=(11, 7))
    plots.roofline(
        figure.subplots(), report["rows"], report["threads"] * report["roof"]["register_peak"],
        report["roof"]["bandwidth"],
    )  # fmt: skip
    plots.save(figure, path, "png")


def measure_roof(num_threads: int, quick: bool = False) -> dict[str, Any]:
    """Measure the bounds of a kernel: the register-only peak and the memory bandwidth.

    Parameters
    ----------
    num_threads : int
        Threads that copy; each copies a part of an array larger than the caches.
    quick : bool

    Returns
    -------
    dict
        ``register_peak`` (sign products per second on one core), ``bandwidth`` (bytes per second,
        read and written, of `numpy.copyto`), ``bandwidth_by`` (how it was measured, str).
    """
    source = np.ones((4 if quick else 128) << 18, np.float32)  # MiB
    target = np.zeros_like(source)
    parts = list(
        zip(np.array_split(target, num_threads), np.array_split(source, num_threads), strict=True)
    )
    seconds = []
    with ThreadPoolExecutor(num_threads) as pool:
        for _ in range(2 if quick else 7):
            start = time.perf_counter()
            list(pool.map(lambda part: np.copyto(*part), parts))
            seconds.append(time.perf_counter() - start)
    return {
        "register_peak": max(_register_peaks(1 if quick else 10)),
        "bandwidth": 2 * source.nbytes / min(seconds),
        "bandwidth_by": f"numpy.copyto, {source.nbytes >> 20} MiB, read and written",
    }


def _register_peaks(count):
    """Several measurements, since on a busy machine a single one may be too low."""
    for _ in range(count):
        rest()
        yield xnor.register_peak()


# --------------------------------------------------------------------------------------- the page

_TITLES = {
    "kernels": "Sign products, packing", "depthwise": "Depth-wise convolutions",
    "models": "Packed models", "startup": "Startup", "train": "Training steps",
    "curvature": "Products with the Hessian",
}  # fmt: skip
_COLUMNS = ("what", "ours, ms", "peer", "peer, ms", "ratio", "of the fastest", "rate", "target")


def page(report: Report) -> str:
    """Format the result of `run` as Markdown: the machine, and a table for each group."""
    machine, roof = report["machine"], report["roof"]
    peers = ", ".join(f"{name} {version}" for name, version in machine["peers"].items())
    where = (
        f"{report['date']}. {machine['processor']} ({machine['model']}), {machine['cores']} cores; "
        f"{report['threads']} threads. Python {machine['python']}, NumPy {machine['numpy']}, Numba "
        f"{machine['numba']}{', ' * bool(peers)}{peers}. Register-only peak: "
        f"{roof['register_peak'] / 1e9:,.0f} Gbit-MAC/s per core. Memory: "
        f"{roof['bandwidth'] / 1e9:.0f} GB/s ({roof['bandwidth_by']}). Times are medians; "
        "ratios are those of the medians and of the fastest runs."
    )
    title, command = f"# Measured with {machine['vectors']}", f"    {report['command']}"
    parts = [title, command, textwrap.fill(where, 100)]
    if machine["compiled_for"] != machine["model"]:
        parts.append(
            textwrap.fill(
                f"Kernels were compiled for {machine['compiled_for']}, not for this processor: a "
                "newer processor with some instructions disabled has other speeds than an older "
                "one that lacks them.",
                100,
            )
        )
    for group, rows in itertools.groupby(report["rows"], key=lambda row: row["group"]):
        table = [_cells(row) for row in rows]
        parts += [f"## {_TITLES[group]}", tables.markdown(_COLUMNS, table).rstrip()]
    return "\n\n".join(parts) + "\n"


def _cells(row):
    ours, peer = (_milliseconds(row[f"{key}_s"]) for key in ("ours", "peer"))
    ratios = (_ratio(row[key]) for key in ("ratio", "ratio_of_fastest"))
    what = f"{row['name']} {row['shape']}".rstrip()
    return what, ours, row["peer"], peer, *ratios, _rate(row), _target(row)


# ------------------------------------------------------------------------------------- the screen

# Name, milliseconds, fastest and slowest run, the two ratios, and a remark: 100 columns.
_WIDTHS, _ALIGN = (27, 8, 15, 8, 8, 24), "<>>>><"
_OURS = (27, 8, 15, 44)  # the remark on ours begins in the column of the peers' ratios
_METHODS = {
    "counting": "counting bits of words", "counting_bytes": "counting bits of bytes",
    "look_ups": "look-ups",
}  # fmt: skip
_HEADER = ("", "ms", "", "ratio", "fastest", "")
_UNITS = {"ratio": "ratio {:g}", "peak_share": "{:.0%} of the peak", "rate": "{:.0f} GB/s"}


def _lines(row, before):
    """Format a row: a line for ours, unless the row `before` has the same one, and the peer's."""
    lines = []
    if before is None or any(row[key] != before[key] for key in ("name", "shape", "ours_s")):
        title = f"{row['name']}  {row['shape']}".rstrip()
        lines.append(textwrap.fill(title, tables.WIDTH, subsequent_indent="  "))
        lines.append(tables.line((*_times("ours", row, "ours"), _rate(row)), _OURS, "<>><"))
    ratios = (_ratio(row[key]) for key in ("ratio", "ratio_of_fastest"))
    cells = (*_times(row["peer"], row, "peer"), *ratios, _target(row))
    lines.append(tables.line(cells, _WIDTHS, _ALIGN))
    return "\n".join(lines)


def _rate(row):
    rate = "" if row["rate"] is None else f"{row['rate']:,.0f} {row['unit']}"
    peak = "" if row["peak_share"] is None else f"{row['peak_share']:.0%} of the peak"
    return ", ".join(filter(None, (rate, peak)))


def _target(row):
    if row["target"] is None:
        return ""
    asked = _UNITS.get(row["target_of"], "{:g} s").format(row["target"])
    return f"{asked}: {'met' if row['is_met'] else 'missed'}"


def _times(who, row, key):
    """Format a contender's cells: name, median, and its fastest and slowest run in brackets."""
    median, low, high = (_milliseconds(row[f"{key}{which}_s"]) for which in ("", "_min", "_max"))
    return f"  {who}", median, f"({low}-{high})"


def _ratio(value):
    return f"×{value:.1f}" if value < 1000 else f"×{value:.0f}"


def _milliseconds(seconds):
    """Format seconds as milliseconds with three or more digits."""
    digits = 3 if seconds < 0.01 else 1 if seconds < 1 else 0
    return f"{seconds * 1e3:.{digits}f}"


def _memory(row):
    """Format the memory of training steps."""
    ours, peer = row["memory"], row["peer_memory"]
    compared = "less" if ours["step"] < peer["step"] else "not less"
    sizes = [f"{1e-6 * memory[key]:.1f}" for key in ("step", "growth") for memory in (ours, peer)]
    return _indented(
        textwrap.fill(
            f"memory of a step: {sizes[0]} MB, {row['peer']} {sizes[1]} MB ({compared}); "
            f"growth with further steps: {sizes[2]} MB, {sizes[3]} MB",
            _INNER,
        )
    )


_INNER = tables.WIDTH - 4  # columns of indented text


def _indented(text):
    return textwrap.indent(text, "    ")
