"""`bdnet-fronts`: the accuracy of mobile networks that cost the same.

BD-Net claims more accuracy at comparable cost (Fig. 1), but its tables compare networks of equal
width. Here each network gets the width at which it costs as much as AdaBin's at `Config.width`
times each of `LEVELS`, counted in operations, bytes of the packed file, or milliseconds for an
image (`Config.match`). Channels are multiples of 8, or of less where no width would do: the first
layer, which is real, takes most of the operations of a narrow network and grows in large steps.
The width of each network is in a file of RUN; the rest is as in the other experiments of BD-Net.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import tinybnn.experiments.bdnet.training as bdnet
from tinybnn import analysis, deploy, models, plots
from tinybnn.experiments.bdnet import experiment, report
from tinybnn.experiments.bdnet.arms import Arm
from tinybnn.experiments.report import page, table
from tinybnn.experiments.runner import Experiment, Run, kept
from tinybnn.experiments.settings import setting
from tinybnn.typing import Shape

# Of the cost of AdaBin's network. Not even the narrowest BD-Net takes as few milliseconds as it.
LEVELS = {"ops": (0.5, 1.0), "bytes": (0.5, 1.0), "ms": (1.4, 2.0)}
STEP = 1 / 256  # of widths: the next one changes some layers by 8 channels
MULTIPLES = (8, 4, 2, 1)  # of channels, tried in this order
TOLERANCE = {"ops": 0.03, "bytes": 0.03, "ms": 0.05}
UNITS = {"ops": "operations", "bytes": "bytes of the packed file", "ms": "milliseconds an image"}


def _arm(title, method, **options):
    return Arm(title, models.mobilenet_v1, method, options)


ARMS: dict[str, Arm] = {
    "float": _arm("float", "float"),
    "reactnet": _arm("ReActNet", "reactnet"),
    "adabin": _arm("AdaBin", "adabin"),
    "bdnet-a": _arm("BD-Net-A", "bdnet-a"),
    "bdnet-b": _arm("BD-Net-B", "bdnet-b"),
    "bdnet-b-pre": _arm("BD-Net-B, pre-BN everywhere", "bdnet-b", real_pre_bn=True),
}

# Pairs (low, high) that are compared at each level; a gain is that of high.
PAIRS = (
    ("adabin", "bdnet-a"), ("adabin", "bdnet-b"), ("reactnet", "bdnet-a"), ("reactnet", "bdnet-b"),
    ("bdnet-a", "bdnet-b"), ("bdnet-b", "bdnet-b-pre"), ("float", "adabin"),
)  # fmt: skip


@dataclass(frozen=True)
class Config(bdnet.Config):
    """How the networks are trained, as in the other experiments of BD-Net, and what is equal."""

    width: float = setting(0.25, "width of AdaBin's network, whose cost is the measure", above=0)
    base: str = setting("adabin", "base of BD-Net", choices=("reactnet", "adabin"))
    epochs: int = setting(5, "epochs, of all steps", least=1)
    match: str = setting("ops", "what is made equal", choices=(*TOLERANCE,))


def cost_of(arm: Arm, config: Config, shape: Shape, classes: int) -> float:
    """Measure the untrained network of an arm: ``config.match`` of one image (C, H, W)."""
    model = arm.network(arm.adapted(config), shape, classes, np.random.default_rng(0))
    if config.match == "ops":
        return analysis.count_operations(model, shape).ops
    packed = deploy.compile(model, shape)
    if config.match == "bytes":
        return packed.nbytes
    return experiment.shortest_times({"": packed}, 1, 30)[""]


def nearest_width(cost: Callable[[float], float], target: float) -> tuple[float, float]:
    """Find the width, a multiple of `STEP`, whose cost is nearest to a target, by bisection.

    Parameters
    ----------
    cost : callable
        width -> cost, which does not fall (measured times may, by their noise).
    target : float

    Returns
    -------
    width, cost : float
    """
    costs: dict[int, float] = {}

    def at(steps):
        if steps not in costs:
            costs[steps] = cost(steps * STEP)
        return costs[steps]

    low, high = 1, 64
    while at(high) < target:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if at(middle) < target else (low, middle)
    best = min((low, high), key=lambda steps: abs(at(steps) - target))
    return best * STEP, at(best)


def matched(run: Run, result: dict[str, Any]) -> dict[str, Arm]:
    """Return the arms of a run at each level, with their widths: name-level -> arm."""
    config, train = run.config, run.options["data"][0]
    task = (config, train.images.shape[1:], len(train.classes))
    full = kept(run.out / "width-target.json", lambda: cost_of(ARMS["adabin"], *task))
    arms, result["widths"] = {}, {}
    for level in LEVELS[config.match]:
        for name, arm in run.arms.items():
            key, search = f"{name}-{level:g}", (arm, level * full, *task)
            row = kept(run.out / f"width-{key}.json", lambda search=search: _matched(*search))
            result["widths"][key] = row | {"level": level, "arm": name, "title": arm.title}
            named = dataclasses.replace(arm, title=f"{arm.title}, {level:g}")
            arms[key] = _resized(named, row["width"], row["multiple"])
    return arms


def _matched(arm, target, config, shape, classes):
    """The width of an arm whose cost is near a target, with channels of the largest multiple."""
    rows = []
    for multiple in MULTIPLES:
        width, cost = nearest_width(
            lambda width, of=multiple: cost_of(_resized(arm, width, of), config, shape, classes),
            target,
        )
        rows.append({"width": width, "multiple": multiple, "cost": cost, "target": target})
        if abs(_deviation(rows[-1])) <= TOLERANCE[config.match]:
            return rows[-1]
    return min(rows, key=lambda row: abs(_deviation(row)))


def _resized(arm, width, multiple):
    options = arm.options | {"round_nearest": multiple}
    return dataclasses.replace(arm, options=options, settings={"width": width})


def _phases(run: Run, result: dict[str, Any]) -> Iterator[str]:
    arms = matched(run, result)
    for key, row in result["widths"].items():
        yield (
            f"{arms[key].title}: width {row['width']:.4g}, {row['cost']:,.4g} {run.config.match}, "
            f"{_deviation(row):+.1%}"
        )
    yield from experiment.phases(dataclasses.replace(run, arms=arms), result)


def _deviation(row):
    return row["cost"] / row["target"] - 1


# ---------------------------------------------------------------------------------------- report


def text(result: dict[str, Any]) -> str:
    """Return the report as text."""
    config, images = result["config"], result["images"]
    match = config["match"]
    unit, tolerance, levels = UNITS[match], TOLERANCE[match], LEVELS[match]
    target = next(iter(result["widths"].values()))
    about = f"""{report.setup(result)}: {images["train"]:,} images for training, {images["test"]:,}
        for testing. Networks are compared at {" and ".join(f"{x:g}" for x in levels)} of the
        {unit} of AdaBin's network at width {config["width"]:g}, which are
        {target["target"] / target["level"]:,.4g}. {config["epochs"]} epochs, batch
        {config["batch_size"]}, Adam {config["lr"]:g}, {config["schedule"]} to 0. Accuracies are
        those of the last epoch on test images in percent, mean and standard deviation over the
        seeds; no epoch was selected by them."""
    widths = table(
        result["widths"],
        {
            "": lambda key: result["arms"][key],
            "width": lambda key: f"{result['widths'][key]['width']:.4g}",
            "channels, multiples of": lambda key: result["widths"][key]["multiple"],
            unit: lambda key: f"{result['widths'][key]['cost']:,.4g}",
            "off the level": lambda key: _marked(_deviation(result["widths"][key]), tolerance),
        },
    )
    note = f"""Widths are the nearest ones in steps of {STEP:g}. *: more than {tolerance:.0%} off,
        and no width is nearer."""
    return page(
        f"Mobile networks of equal {unit}", result, about, *report.deviations(result), "## Widths",
        widths, note, *report.accuracies(result), *report.comparisons(result, _pairs(result)),
    )  # fmt: skip


def _marked(deviation, tolerance):
    return f"{deviation:+.1%}{'*' if abs(deviation) > tolerance else ''}"


def _pairs(result):
    """`PAIRS` at each level, by the names of the networks, as far as they were run."""
    named = {(row["arm"], row["level"]): key for key, row in result["widths"].items()}
    return [
        (named[low, level], named[high, level])
        for level in LEVELS[result["config"]["match"]]
        for low, high in PAIRS
        if (low, level) in named and (high, level) in named
    ]


def _draw(figure, result):
    """Draw accuracy against operations, bytes and milliseconds: a line for each network."""
    rows = {row["name"]: row for row in result["runs"]}
    places = {
        "million operations": lambda key: rows[key]["ops"] / 1e6,
        "packed, kB": lambda key: rows[key]["packed_bytes"] / 1e3,
        "ms an image, packed, 1 thread": lambda key: result["latency"][key]["1"],
    }
    axes = figure.subplots(1, len(places), sharey=True)
    for ax, (label, place) in zip(axes, places.items(), strict=True):
        lines: dict[str, Any] = {}
        for key, row in result["widths"].items():
            accuracy = result["summary"][key]
            point = place(key), accuracy["mean"] * 100, (accuracy["std"] or 0) * 100
            lines.setdefault(row["title"], []).append(point)
        plots.trade_off(lines, label, "test accuracy, %", legend=ax is axes[-1], ax=ax)
        if ax is not axes[0]:
            ax.set(ylabel="")


EXPERIMENT: Experiment = Experiment(
    "bdnet-fronts", Config, _phases, text, {"accuracy.png": ((13, 4.2), _draw)}, bdnet.load_for,
    quick=experiment.QUICK, seeds=3, arms=ARMS, takes="5 to 20 minutes a network on CIFAR-10",
    description="Train mobile networks at widths at which they cost the same: operations, bytes of "
    "the packed\nfile, or milliseconds an image. Tables (report.md), figures (result.json) and "
    "pictures go to RUN.\nRepeat the command after an interruption.",
    examples=(
        "tinybnn reproduce bdnet-fronts --quick",
        "TINYBNN_DATA=DIR tinybnn reproduce bdnet-fronts --match ops --seeds 3",
    ),
)  # fmt: skip
