"""``tinybnn federated``: Flower apps."""

from __future__ import annotations

import argparse
import json
import os

from tinybnn import datasets
from tinybnn.cli.arguments import add_command, add_group, whole
from tinybnn.cli.output import add_json, check_folder, check_outputs, say_for, write_json
from tinybnn.cli.parser import nearest


def add_federated(commands):
    actions = add_group(
        commands,
        "federated",
        "ACTION",
        "federated learning through Flower",
        "Federated learning through Flower, for one machine or for many (needs the extra flower).",
        "tinybnn federated simulate",
    )
    _add_simulate(actions)
    _add_new(actions)


def _add_simulate(actions):
    simulate = add_command(
        actions,
        "simulate",
        _simulate,
        "run a Flower app with simulated nodes",
        "Run a Flower app with simulated nodes (Flower's simulation engine, on Ray), by default\n"
        "one that trains a binary network on the bundled digits. Whatever is started listens on\n"
        "127.0.0.1 only, reports nothing to anyone, and ends with the run. The model and the\n"
        "history go to FILE.",
        "tinybnn federated simulate --clients 3 --rounds 5",
        "tinybnn federated simulate --config strategy=sign-both --config norm=local",
    )
    simulate.add_argument("--app", metavar="DIR", help="of `tinybnn federated new` (the digits)")
    simulate.add_argument("--clients", type=whole(1), default=3, metavar="N", help="(3)")
    simulate.add_argument("--rounds", type=whole(1), default=3, metavar="N", help="(3)")
    simulate.add_argument(
        "--workers", type=whole(1), default=1, metavar="N", help="that train at a time (1)"
    )
    simulate.add_argument(
        "--config", type=_setting, action="append", default=[], metavar="KEY=VALUE",
        help="change what the app's pyproject.toml says; may be repeated",
    )  # fmt: skip
    simulate.add_argument(
        "--out", default="federated.npz", metavar="FILE", help="the result (federated.npz)"
    )
    simulate.add_argument("--quiet", action="store_true", help="without the log of the run")
    add_json(simulate)


def _setting(text):
    """KEY=VALUE; the value is a number, true or false, or else a text."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"expects KEY=VALUE, got {text!r}")
    try:
        parsed = json.loads(value)
    except ValueError:
        parsed = value
    return name, parsed if isinstance(parsed, bool | int | float) else value


def _simulate(options):
    from tinybnn.federated import flower, launch

    check_outputs(options, "out", "json")
    _check_app(options, launch)
    say = say_for(options)
    config = {"rounds": options.rounds, **dict(options.config)}
    launch.simulate(
        options.app or launch.APP, clients=options.clients, workers=options.workers,
        config={**config, "out": os.path.abspath(options.out)},
        say=None if options.quiet else say,
    )  # fmt: skip
    _, history, found = flower.load_result(options.out)
    ledger = history.ledger
    figures = {
        "rounds": found["version"], "bytes_up": ledger.total("up"),
        "bytes_down": ledger.total("down"), "saving_up": ledger.saving("up"),
        "saving_down": ledger.saving("down"), "history": history.rows,
    }  # fmt: skip
    last = history.rows[-1] if len(history) else {}
    accuracy = f", accuracy {last['val_accuracy']:.2%}" if "val_accuracy" in last else ""
    say(
        f"{options.out}: {found['version']} rounds{accuracy}, {figures['bytes_up']:,} bytes up "
        f"(float32: {figures['saving_up']:.1f} times as many), {figures['bytes_down']:,} down "
        f"({figures['saving_down']:.1f})"
    )
    write_json(options, figures)


def _check_app(options, launch):
    """Refuse what Flower would refuse only after it has started."""
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
            "images, of which each needs one; choose fewer"
        )


def _settings_of(app):
    """The settings of our app with their defaults: lines of ``name = value  # about it``."""
    with open(app / "pyproject.toml", encoding="utf-8") as file:
        _, _, lines = file.read().partition("[tool.flwr.app.config]\n")
    found = {}
    for line in filter(None, lines.splitlines()):
        name, _, value = line.partition(" = ")
        found[name] = json.loads(value.partition("#")[0])
    return found


_CHOICES = {
    "strategy": ("fedavg", "float16", "stochastic", "sign", "sign-both", "vote"),
    "norm": ("average", "local", "frozen"),
    "partition": ("iid", "label"),
}


def _check_setting(options, name, value, settings):
    wrong = None
    if name not in settings:
        wrong = f"unknown {name!r}{nearest(name, settings)}, choose from {', '.join(settings)}"
    elif isinstance(settings[name], str) != isinstance(value, str):
        kind = "a text" if isinstance(settings[name], str) else "a number"
        wrong = f"{name} expects {kind}, got {value!r}"
    elif name in _CHOICES and value not in _CHOICES[name]:
        known = _CHOICES[name]
        wrong = f"unknown {name} {value!r}{nearest(value, known)}, choose from {', '.join(known)}"
    if wrong is not None:
        options.parser.error(f"argument --config: {wrong}")


def _add_new(actions):
    new = add_command(
        actions,
        "new",
        _new,
        "copy the Flower app, to be changed",
        "Copy the Flower app that trains on digits into the folder DIR, with a page that says\n"
        "how to run it on several machines.",
        "tinybnn federated new my-federation",
    )
    new.add_argument("folder", metavar="DIR")


def _new(options):
    from tinybnn.federated import launch

    check_folder(options, "folder")
    launch.new_app(options.folder)
    print(f"{options.folder}: a Flower app; see {os.path.join(options.folder, 'README.md')}")
