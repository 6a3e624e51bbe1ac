"""``tinybnn bench``: measurements beside NumPy, PyTorch and others."""

from __future__ import annotations

import functools

from tinybnn.cli.arguments import add_threads, argument, command
from tinybnn.cli.output import add_json, check_outputs, say_for, tell, write_json
from tinybnn.storage import write_atomic


@command(
    "bench",
    "measure kernels, packed models and training against NumPy, PyTorch and others",
    "Measure in turn, in one run: medians, their ratio, and whether the ratio reaches the\n"
    "project's aim. PyTorch, ONNX Runtime (with onnx) and Larq Compute Engine (with larq\n"
    "and tensorflow; TINYBNN_LARQ_PYTHON names the Python that has them) take part where\n"
    "they are installed. Without PyTorch, training is compared with tinybnn's float path.",
    "tinybnn bench kernels --threads 1",
    "tinybnn bench train --profile",
    "tinybnn bench all --json bench.json --page bench.md --plot roofline.png",
    arguments=[
        argument(
            "group",
            choices=["kernels", "depthwise", "models", "startup", "train", "curvature", "all"],
        ),
        functools.partial(add_threads, text="(2, or one a core)"),
        argument("--plot", metavar="FILE", help="draw the roofline to FILE (PNG)"),
        argument("--page", metavar="FILE", help="write the tables to FILE (Markdown)"),
        argument("--profile", action="store_true", help="train only: where a step spends its time"),
        argument(
            "--check", action="store_true",
            help="train only: compare gradients and updates with PyTorch's instead of times",
        ),
        argument(
            "--quick", action="store_true", help="run everything, too briefly for good figures"
        ),
        add_json,
    ],
)  # fmt: skip
def bench(options):
    from tinybnn import bench

    for name, groups in (("check", ("train",)), ("profile", ("train", "all"))):
        if getattr(options, name) and options.group not in groups:
            options.parser.error(f"--{name} is an option of train, not of {options.group}")
    if options.check and (options.plot is not None or options.page is not None or options.profile):
        options.parser.error("--check measures no times: leave --plot, --page and --profile out")
    check_outputs(options, "json", "plot", "page")
    say = say_for(options)
    tell(f"bench {options.group}: compiling and measuring; without --quick it takes minutes ...")
    if options.check:
        report = bench.check(options.threads, options.quick, say=say)
        write_json(options, report)
        return 0 if all(row["agrees"] for row in report["rows"]) else 1
    report = bench.run(
        options.group, options.threads, options.quick, say=say, profile=options.profile
    )
    if options.plot is not None:
        bench.draw(options.plot, report)
        say(f"Picture: {options.plot}")
    if options.page is not None:
        write_atomic(options.page, bench.page(report).encode())
        say(f"Page: {options.page}")
    write_json(options, report)
