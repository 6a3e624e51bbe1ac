"""``tinybnn warm-up``: compile all kernels once, so that nothing waits for the compiler later."""

from __future__ import annotations

import os

from tinybnn.cli.arguments import add_command, whole
from tinybnn.cli.output import add_json, say_for, write_json


def add_warm_up(commands):
    warm_up = add_command(
        commands,
        "warm-up",
        _warm_up,
        "compile all kernels of training and packed models once",
        "Compile the kernels that training, packing and prediction use, on all cores, and keep\n"
        "them in the folder that NUMBA_CACHE_DIR names or, without it, beside the kernels. It is\n"
        "worth it once after an installation; interrupted, it goes on where it was.",
        "tinybnn warm-up",
        "tinybnn warm-up --processes 2",
    )
    warm_up.add_argument(
        "--processes", type=whole(1), metavar="N", help="that compile at a time (one a core)"
    )
    warm_up.add_argument("--quiet", action="store_true", help="no bar")
    add_json(warm_up)


def _warm_up(options):
    from tinybnn.bench.warm_up import warm_up

    done = warm_up(options.processes, progress=not options.quiet)
    folders = sorted({os.path.dirname(path) for path in done.kernels})
    say = say_for(options)
    if done.compiled:
        say(f"Compiled {done.compiled} kernels in {done.seconds:.0f} s.")
    else:
        say(f"Nothing to do: all {len(done.kernels)} kernels are compiled.")
    say(f"They are kept in {os.path.commonpath(folders)}")
    write_json(
        options,
        {
            "compiled": done.compiled,
            "kernels": len(done.kernels),
            "seconds": round(done.seconds, 2),
            "folders": folders,
        },
    )
