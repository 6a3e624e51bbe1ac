"""``tinybnn reproduce``: the experiments of `tinybnn.experiments`.

The options of an experiment are the fields of its ``Config`` and what all experiments share; they
are added when its command is used, so that no other command waits for its imports. An option that
is not given is None: ``--quick`` or the field's default decides (`_config`).
"""

from __future__ import annotations

import argparse
import dataclasses
import os

from tinybnn.cli.arguments import (
    above_zero,
    add_command,
    add_group,
    add_threads,
    dataset,
    number,
    share,
    whole,
)
from tinybnn.cli.output import add_json, check_folder, check_outputs, say_for, tell, write_json
from tinybnn.cli.parser import Parser, nearest
from tinybnn.experiments import catalogue


def add_reproduce(commands):
    group = add_group(
        commands,
        "reproduce",
        "EXPERIMENT",
        "run an experiment and write its figures",
        "Run an experiment and write its figures. Each has options of its own: see "
        "`tinybnn reproduce EXPERIMENT --help`.",
        "tinybnn reproduce ops",
        parser_class=_Parser,
    )
    for name, (_, summary) in catalogue.EXPERIMENTS.items():
        command = add_command(group, name, _reproduce, summary.replace("%", "%%"), "")
        command.set_defaults(experiment=name)
    for add in _add_condition, _add_ops, _add_claims, _add_report:
        add(group)


# -------------------------------------------------------------------------------------- experiments


class _Parser(Parser):
    """A parser that adds the options of its experiment before it first parses."""

    def parse_known_args(self, args=None, namespace=None):
        name = self.get_default("experiment")
        if name is not None and "--seeds" not in self._option_string_actions:
            _add_options(self, catalogue.load(name))
        return super().parse_known_args(args, namespace)


def _add_options(command, experiment):
    command.description = experiment.description
    command.epilog = "\n  ".join(["examples:", *experiment.examples])
    for field in dataclasses.fields(experiment.config):
        if field.name != "quick":
            _add_setting(command, field.name, field.default, field.metadata)
    for name, field in experiment.options.items():
        _add_setting(command, name, field.default, field.metadata)
    if experiment.arms:
        command.add_argument(
            f"--{experiment.arms_option}", type=_names(experiment.arms), metavar="A,A,...",
            dest="arms", help=f"some of {', '.join(experiment.arms)} (all); add others later",
        )  # fmt: skip
    command.add_argument(
        "--seeds", type=whole(1), metavar="N", help=f"how many ({experiment.seeds}; with --quick 1)"
    )
    command.add_argument(
        "--note", default="", metavar="TEXT", help="for the report: where the images come from"
    )
    command.add_argument(
        "--quick", action="store_true", help="run everything, too briefly for good figures"
    )
    add_threads(command)
    command.add_argument("--quiet", action="store_true", help="no progress bars")
    add_json(command)
    command.add_argument(
        "--out", metavar="RUN", help="folder (runs/ and the names of experiment and data set)"
    )


def _add_setting(command, name, default, limits):
    """Add the option of a field that `experiments.settings.setting` declared."""
    option, help = f"--{name.replace('_', '-')}", limits["help"].replace("%", "%%")
    if choices := limits.get("choices"):
        help += f": {', '.join(choices)}"
    if default is False:
        command.add_argument(option, action="store_true", default=None, help=help)
        return
    shown = "" if default is None else f" ({default})"
    is_count = limits.get("type", type(default)) is int
    metavar = "N" if is_count else "X" if isinstance(default, float) else name[0].upper()
    command.add_argument(
        option, type=_type(limits, is_count), choices=choices, metavar=metavar,
        help=help + shown,
    )  # fmt: skip


def _type(limits, is_count):
    """The type of an option, which checks the limits of its field."""
    least = limits.get("option_least", limits.get("least"))
    if "images" in limits:
        return _dataset_or_folder
    if "dataset" in limits:
        return dataset
    if "choices" in limits:
        return str
    if is_count:
        return whole(least)
    if "above" in limits:
        return above_zero
    return share if "most" in limits else number(least)


def _dataset_or_folder(text):
    if os.path.isfile(text):
        raise argparse.ArgumentTypeError(
            f"{text} is a file, expected a data set's name or a folder with four IDX files"
        )
    return text if os.path.isdir(text) else dataset(text)


def _names(known):
    """The type of some of the known names, with commas between."""

    def parse(text):
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(
                    f"unknown {name!r}{nearest(name, known)}, choose from {', '.join(known)}"
                )
        return names

    return parse


_SECONDS = 1.0  # runs that are refused end earlier, and need no announcement


def _reproduce(options):
    from tinybnn import runs

    experiment = catalogue.load(options.experiment)
    check_outputs(options, "json")
    config = _config(options, experiment)
    out = _folder(options, config)
    check_folder(options, "out")
    takes = "" if options.quick else f"; takes {experiment.takes}"
    text = f"{experiment.name}: writes into {out}{takes}; repeat the command if it is stopped"
    with runs.told(text, seconds=_SECONDS):
        result = experiment.run(
            out, config, options.seeds or (1 if options.quick else None),
            getattr(options, "arms", None), options.note, options.threads, not options.quiet,
            say_for(options),
            **{n: v for n in experiment.options if (v := getattr(options, n)) is not None},
        )  # fmt: skip
    write_json(options, result)


def _config(options, experiment):
    """The configuration of an experiment: what was chosen, else what --quick or defaults say."""
    values = dict(experiment.quick) if options.quick else {}
    for field in dataclasses.fields(experiment.config):
        if getattr(options, field.name) is not None:
            values[field.name] = getattr(options, field.name)
    try:
        return experiment.config(**values)
    except ValueError as error:
        options.parser.error(str(error))


def _folder(options, config):
    """The folder of a run, whose name tells what was run."""
    if options.out is None:
        images = config.dataset and os.path.basename(os.path.normpath(config.dataset))
        parts = options.experiment, images, "quick" if options.quick else ""
        options.out = os.path.join("runs", "-".join(filter(None, parts)))
    return options.out


# ------------------------------------------------------------------------------------- computations


def _add_condition(group):
    condition = add_command(
        group,
        "condition",
        _condition,
        "BD-Net's Eq. 3 to 10: condition numbers with and without its residual",
        "Compute the condition number of a binary depth-wise layer, with and without the\n"
        "residual before its batch norm, for all filters of 3x3 signs while the factor of the\n"
        "batch norm grows, beside what the paper's formulas say. Takes some seconds.",
        "tinybnn reproduce condition --plot condition.png",
    )
    condition.add_argument("--plot", metavar="FILE", help="draw the numbers to FILE (PNG)")
    add_json(condition)


def _condition(options):
    from tinybnn.experiments.bdnet import conditioning

    check_outputs(options, "json", "plot")
    say = say_for(options)
    result = conditioning.run(say=say)
    if options.plot is not None:
        conditioning.save_picture(options.plot, result)
        say(f"Picture: {options.plot}")
    write_json(options, result)


def _add_ops(group):
    ops = add_command(
        group,
        "ops",
        _ops,
        "the operation counts of BD-Net's Tables 1 to 5",
        "Count the operations of our networks and print each figure of BD-Net's Tables 1 to 5\n"
        "beside the published one: the true count, the count by the paper's convention, and\n"
        "whether that matches exactly, by a fitted assumption, or not.",
        "tinybnn reproduce ops --json ops.json",
    )
    add_json(ops)


def _ops(options):
    from tinybnn.experiments import ops

    check_outputs(options, "json")
    tell("Counting operations, some seconds ...")
    write_json(options, ops.run(say=say_for(options)))


def _add_claims(group):
    claims = add_command(
        group,
        "claims",
        _claims,
        "the two papers, claim by claim: what holds, what does not, what is open",
        "List every claim, equation, table and figure of the papers on BD-Net and HyBNN: whether\n"
        "it was reproduced, in part, refuted, is open or cannot be tested here, with our figures,\n"
        "the command that makes them and the reason. Nothing is computed.",
        "tinybnn reproduce claims --json claims.json",
    )
    add_json(claims)


def _claims(options):
    from tinybnn.experiments import claims

    check_outputs(options, "json")
    write_json(options, claims.run(say=say_for(options)))


def _add_report(group):
    report = add_command(
        group,
        "report",
        _report,
        "rewrite the report of a run from its figures",
        "Rewrite report.md in the folder of a run, and the pictures that need no more than the\n"
        "figures in its result.json: nothing is trained.",
        "tinybnn reproduce report runs/hybnn-digits",
    )
    report.add_argument("run", metavar="RUN", help="folder of `tinybnn reproduce`")


def _report(options):
    catalogue.write_again(options.run)
