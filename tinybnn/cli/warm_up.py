"""``tinybnn warm-up``: compile all kernels once, so that later commands need not."""

from __future__ import annotations

import os

from tinybnn.cli.arguments import argument, command, whole
from tinybnn.cli.output import add_json, say_for, write_json


@command(
    "warm-up",
    "compile all kernels of training and packed models once",
    "Compile the kernels that training, packing and prediction use, on all cores, and store\n"
    "them in the folder NUMBA_CACHE_DIR or, if it is not set, beside the kernels. Worth running\n"
    "once after an installation; if interrupted, it goes on where it stopped.",
    "tinybnn warm-up",
    "tinybnn warm-up --processes 2",
    arguments=[
        argument(
            "--processes", type=whole(1), metavar="N", help="that compile at a time (one a core)"
        ),
        argument("--quiet", action="store_true", help="no progress bar"),
        add_json,
    ],
)
def warm_up(options):
    from tinybnn.bench.warm_up import warm_up

    done = warm_up(options.processes, progress=not options.quiet)
    folders = sorted({os.path.dirname(path) for path in done.kernels})
    say = say_for(options)
    if done.compiled:
        say(f"Compiled {done.compiled} kernels in {done.seconds:.0f} s.")
    else:
        say(f"Nothing to do: all {len(done.kernels)} kernels are compiled.")
    say(f"They are stored in {os.path.commonpath(folders)}")
    figures = {
        "compiled": done.compiled, "kernels": len(done.kernels),
        "seconds": round(done.seconds, 2), "folders": folders,
    }  # fmt: skip
    write_json(options, figures)
