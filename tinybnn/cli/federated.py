"""``tinybnn federated``: Flower apps."""

from __future__ import annotations

import argparse
import json
import os

from tinybnn import datasets
from tinybnn.cli.arguments import Adder, argument, command, group, whole
from tinybnn.cli.output import add_json, check_folder, check_outputs, say_for, write_json
from tinybnn.cli.parser import nearest


def _setting(text):
    """Parse KEY=VALUE; the value is a number, true, false or any other text."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"expects KEY=VALUE, got {text!r}")
    try:
        parsed = json.loads(value)
    except ValueError:
        parsed = value
    return name, parsed if isinstance(parsed, bool | int | float) else value


@command(
    "simulate",
    "run a Flower app with simulated nodes",
    "Run a Flower app with simulated nodes (Flower's simulation engine, on Ray), by default\n"
    "one that trains a binary network on the bundled digits. Its processes listen on 127.0.0.1\n"
    "only, report nothing to anyone, and end with the run. The model and the history go to\n"
    "FILE.",
    "tinybnn federated simulate --clients 3 --rounds 5",
    "tinybnn federated simulate --config strategy=sign-both --config norm=local",
    arguments=[
        argument("--app", metavar="DIR", help="of `tinybnn federated new` (the digits)"),
        argument("--clients", type=whole(1), default=3, metavar="N", help="(3)"),
        argument("--rounds", type=whole(1), default=3, metavar="N", help="(3)"),
        argument(
            "--workers", type=whole(1), default=1, metavar="N", help="that train at a time (1)"
        ),
        argument(
            "--config", type=_setting, action="append", default=[], metavar="KEY=VALUE",
            help="change a setting of the app's pyproject.toml; may be repeated",
        ),
        argument(
            "--out", default="federated.npz", metavar="FILE", help="the result (federated.npz)"
        ),
        argument("--quiet", action="store_true", help="without the log of the run"),
        add_json,
    ],
)  # fmt: skip
def simulate(options):
    from tinybnn.federated import flower, launch

    check_outputs(options, "out", "json")
    _check_app(options, launch)
    say = say_for(options)
    config = {"rounds": options.rounds, **dict(options.config), "out": os.path.abspath(options.out)}
    launch.simulate(
        options.app or launch.APP, clients=options.clients, workers=options.workers,
        config=config, say=None if options.quiet else say,
    )  # fmt: skip
    _, history, metadata = flower.load_result(options.out)
    ledger = history.ledger
    figures = {
        "rounds": metadata["version"], "bytes_up": ledger.total("up"),
        "bytes_down": ledger.total("down"), "saving_up": ledger.saving("up"),
        "saving_down": ledger.saving("down"), "history": history.rows,
    }  # fmt: skip
    last = history.rows[-1] if len(history) else {}
    accuracy = f", accuracy {last['val_accuracy']:.2%}" if "val_accuracy" in last else ""
    say(
        f"{options.out}: {figures['rounds']} rounds{accuracy}, {figures['bytes_up']:,} bytes up "
        f"(float32: {figures['saving_up']:.1f} times as many), {figures['bytes_down']:,} down "
        f"({figures['saving_down']:.1f})"
    )
    write_json(options, figures)


def _check_app(options, launch):
    """Report errors that Flower would report only after its start."""
    if options.app is not None:
        if not os.path.isfile(os.path.join(options.app, "pyproject.toml")):
            raise ValueError(
                f"{options.app} is no Flower app, expected a folder with a pyproject.toml; "
                "`tinybnn federated new DIR` makes one"
            )
        return
    settings = _settings_of(launch.APP)
    for name, value in options.config:
        _check_setting(options, name, value, settings)
    images = datasets.SOURCES["digits"].size[0]
    if options.clients > images:
        options.parser.error(
            f"argument --clients: {options.clients:,} are more than the {images:,} training "
            "images, and each client needs one; choose fewer"
        )


def _settings_of(app):
    """Read the default settings of the bundled app: lines of ``name = value  # comment``."""
    with open(app / "pyproject.toml", encoding="utf-8") as file:
        _, _, text = file.read().partition("[tool.flwr.app.config]\n")
    lines = [line.partition(" = ") for line in text.splitlines() if line]
    return {name: json.loads(value.partition("#")[0]) for name, _, value in lines}


_CHOICES = {
    "strategy": ("fedavg", "float16", "stochastic", "sign", "sign-both", "vote"),
    "norm": ("average", "local", "frozen", "none", "layer"),
    "partition": ("iid", "label"),
}


def _check_setting(options, name, value, settings):
    error = None
    if name not in settings:
        error = f"unknown {name!r}{nearest(name, settings)}, choose from {', '.join(settings)}"
    elif isinstance(settings[name], str) != isinstance(value, str):
        expected = "a text" if isinstance(settings[name], str) else "a number"
        error = f"{name} expects {expected}, got {value!r}"
    elif value not in (known := _CHOICES.get(name, (value,))):
        error = f"unknown {name} {value!r}{nearest(value, known)}, choose from {', '.join(known)}"
    if error is not None:
        options.parser.error(f"argument --config: {error}")


@command(
    "new",
    "copy the Flower app, as a start for your own",
    "Copy the Flower app that trains on digits into the folder DIR, with a page that says\n"
    "how to run it on several machines.",
    "tinybnn federated new my-federation",
    arguments=[argument("folder", metavar="DIR")],
)
def new(options):
    from tinybnn.federated import launch

    check_folder(options, "folder")
    launch.new_app(options.folder)
    print(f"{options.folder}: a Flower app; see {os.path.join(options.folder, 'README.md')}")


federated: Adder = group(
    "federated",
    "ACTION",
    "federated learning through Flower",
    "Federated learning through Flower, on one machine or many (needs the extra flower).",
    "tinybnn federated simulate",
    members=[simulate, new],
)
