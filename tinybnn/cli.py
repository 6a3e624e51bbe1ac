"""The command line: arguments in, printing out; the work is done by the library."""

from __future__ import annotations

import argparse
import json
import sys

import tinybnn


def main(arguments=None):
    """Run a command; returns the exit code (0 done, 1 failed, 2 wrong arguments)."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        options.command(options)
    except (OSError, ValueError) as error:
        print(f"tinybnn: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("tinybnn: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser():
    parser = argparse.ArgumentParser(
        prog="tinybnn", description="Binary neural networks from scratch, run on packed bits."
    )
    parser.add_argument("--version", action="version", version=f"tinybnn {tinybnn.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="train a binary CNN on the bundled digits, pack it and prove both equal",
        description="Train a binary CNN on the bundled digits, compile it to packed bits, prove "
        "that both give identical outputs, and draw one picture.",
        epilog="example: tinybnn demo --out demo.png --json demo.json",
    )
    demo.add_argument("--epochs", type=_positive, default=20, metavar="N")
    demo.add_argument("--seed", type=int, default=0, metavar="S")
    demo.add_argument("--out", default="demo.png", metavar="FILE", help="the picture (demo.png)")
    demo.add_argument("--json", metavar="FILE", help="write the figures to FILE")
    demo.set_defaults(command=_demo)

    reproduce = commands.add_parser(
        "reproduce",
        help="run an experiment and write its figures",
        description="Run an experiment; its figures go to RUN/<name>.json.",
        epilog="example: TINYBNN_DATA=DIR tinybnn reproduce mnist-cnn --seeds 3",
    )
    reproduce.add_argument("name", choices=["mnist-cnn"])
    reproduce.add_argument("--dataset", default="mnist", metavar="D", help="data set (mnist)")
    reproduce.add_argument("--seeds", type=_positive, default=3, metavar="N", help="how many (3)")
    reproduce.add_argument("--epochs", type=_positive, metavar="N", help="not the recipe's")
    reproduce.add_argument(
        "--validate", action="store_true", help="test on held-out training images instead"
    )
    reproduce.add_argument("--out", default="runs", metavar="RUN", help="folder (runs)")
    reproduce.set_defaults(command=_reproduce)
    return parser


def _positive(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expects a whole number >= 1, got {text}")
    return number


def _demo(options):
    from tinybnn.experiments import demo

    result, model, history = demo.run(epochs=options.epochs, seed=options.seed)
    demo.draw(options.out, result, model, history)
    print(f"Picture: {options.out}")
    if options.json:
        from tinybnn.storage import write_atomic

        write_atomic(options.json, (json.dumps(result, indent=2) + "\n").encode())


def _reproduce(options):
    from tinybnn.experiments import mnist

    mnist.run(
        options.name, options.out, options.dataset, options.seeds, options.epochs, options.validate
    )
