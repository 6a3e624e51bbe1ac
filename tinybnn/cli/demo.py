"""``tinybnn demo``: the whole way from training to packed bits in one command."""

from __future__ import annotations

from tinybnn.cli.arguments import argument, command, whole
from tinybnn.cli.output import add_json, check_outputs, check_picture, say_for, write_json


@command(
    "demo",
    "train a binary CNN on the bundled digits, pack it and prove both equal",
    "Train a binary CNN on the bundled digits, compile it to packed bits, prove\n"
    "that both give identical outputs, and draw one picture.",
    "tinybnn demo --out demo.png --json demo.json",
    arguments=[
        argument("--epochs", type=whole(1), default=20, metavar="N", help="(20)"),
        argument("--seed", type=whole(0), default=0, metavar="S", help="(0)"),
        argument("--out", default="demo.png", metavar="FILE", help="the picture (demo.png)"),
        add_json,
    ],
)
def demo(options):
    from tinybnn.experiments import demo

    check_outputs(options, "out", "json")
    check_picture(options, "out")
    say = say_for(options)
    result, model, history = demo.run(epochs=options.epochs, seed=options.seed, say=say)
    demo.draw(options.out, result, model, history)
    say(f"Picture: {options.out}")
    write_json(options, result)
