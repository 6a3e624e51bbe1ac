"""Tables and pictures of BD-Net's experiments, with the paper's figures beside ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tinybnn import plots, tables
from tinybnn.experiments.bdnet.arms import COMPARISONS
from tinybnn.experiments.report import PAIR, PAIRED, against, page, percent, table
from tinybnn.typing import Array


def text(result: dict[str, Any]) -> str:
    """Return ``report.md`` as text."""
    config, images = result["config"], result["images"]
    shape = "×".join(map(str, images["shape"]))
    about = f"""{setup(result)}: {images["train"]:,} images of {shape} for training,
        {images["test"]:,} for testing; BD-Net on ReActNet where the paper has it on that base only.
        {config["epochs"]} epochs {_taught(result)}, batch {config["batch_size"]}, Adam
        {config["lr"]:g}, {config["schedule"]} to 0; EDE's slope sharpens over all batches of
        AdaBin's weights. Accuracies are those of the last epoch on test images in percent, mean and
        standard deviation over the seeds; no epoch was selected by them."""
    title = {
        "bdnet-ablation": "BD-Net's ablation (Table 6)",
        "bdnet-training": "BD-Net-A: one step or two, labels or a teacher",
        "bdnet-table2": "Mobile networks: accuracy, operations, time (Fig. 1, Tables 2, 4 and 5)",
    }[result["name"]]
    parts = [*deviations(result), *accuracies(result), *comparisons(result), *_layers(result)]
    return page(
        title, result, about, *parts, "## Levels (Fig. 4)",
        "![Grey, one bit, three levels](levels.png)",
    )  # fmt: skip


def _taught(result):
    """In how many steps the networks were trained, and by what."""
    if any(result.get("settings", {}).values()):
        return "in all, in steps and with targets as the names of the networks say"
    config = result["config"]
    steps = "two steps, activations first" if config["two_step"] else "one step"
    return f"in {steps}, {config['distill']:g} of the target from a float teacher"


def setup(result: dict[str, Any]) -> str:
    """Describe in words what images and networks an experiment of BD-Net used."""
    config, note = result["config"], result["note"]
    return (
        f"{config['dataset']}{note and f' ({note})'}, width {config['width']:g}, BD-Net on "
        f"{config['base']}, {1 + max(row['seed'] for row in result.get('runs') or result['rows'])} "
        f"seeds"
    )


def pairs(
    result: dict[str, Any],
    header: str,
    form: Callable[[Array], str],
    neutral: float,
    measures: Mapping[str, str] | None = None,
) -> str:
    """Format the ``pairs`` of `arms.over_seeds` as a table.

    Parameters
    ----------
    result : dict
    header : str
        Title of the column of `form`.
    form : callable
        Formats the (seeds,) values of a pair.
    neutral : float
        A pair counts as smaller in the seeds with values below.
    measures : dict, optional
        Measure -> its title.

    Returns
    -------
    str
    """
    titles = result["arms"]
    return table(
        result["summary"]["pairs"],
        {
            "": lambda pair: f"{titles[pair['high']]} against {titles[pair['low']]}",
            "measure": lambda pair: (
                f"{(measures or {}).get(pair['measure'], pair['measure'])}, {pair['where']}"
            ),
            header: lambda pair: form(np.array(pair["by_seed"])),
            "smaller in": lambda pair: (
                f"{np.less(pair['by_seed'], neutral).sum()} of {len(pair['by_seed'])}"
            ),
        },
    )


def deviations(result: dict[str, Any]) -> list[Any]:
    """What differs from the paper, apart from the recipe, as parts of a page."""
    config = result["config"]
    items = [
        f"""- images: {config["dataset"]}{result["note"] and f" ({result['note']})"}; the paper's
        Table 6 is on CIFAR-100, its Tables 2, 4 and 5 on CIFAR-10;""",
        f"""- width {config["width"]:g} and {config["epochs"]} epochs; the paper has full width, and
        its recipe is in an appendix that was not available to us;""",
        """- images are moved at random by up to an eighth of their size and, in colour, mirrored;
        the paper's augmentation is not known;""",
        """- the blocks of BD-Net are built from its equations and figures, not from its code: which
        layers have the shortcut before the batch norm, and that the two branches of a 1.58-bit
        convolution have signs of their own, is our reading; the four real layers of BD-Net-B have
        no such shortcut, unless a network's name says so.""",
    ]
    return ["## What differs from the paper", items]


def accuracies(result: dict[str, Any]) -> list[Any]:
    """Accuracy, cost and time of each network, as parts of a page."""
    means, paper, latency = result["summary"], result["paper"], result["latency"]
    runs = {name: [row for row in result["runs"] if row["name"] == name] for name in result["arms"]}
    published = {"paper": lambda name: "" if paper[name] is None else f"{paper[name]:.2f}"}
    networks = table(
        result["arms"],
        {
            "": lambda name: result["arms"][name],
            "accuracy": lambda name: percent(means[name]["mean"], means[name]["std"]),
            **(published if any(paper.values()) else {}),
            "OPs, million": lambda name: f"{runs[name][0]['ops'] / 1e6:.3f}",
            "ms, 1 image": lambda name: f"{latency[name]['1']:.3f}",
            "ms, 64 images": lambda name: f"{latency[name]['64']:.2f}",
            "packed bytes": lambda name: f"{runs[name][0]['packed_bytes']:,}",
            "identical logits": lambda name: (
                f"{sum(r['identical_logits'] for r in runs[name]):,} "
                f"of {sum(r['test_images'] for r in runs[name]):,}"
            ),
            "s of training": lambda name: f"{np.mean([r['seconds'] for r in runs[name]]):.0f}",
        },
    )
    note = """OPs = BOPs / 64 + FLOPs, true counts. Milliseconds are those of the packed network on
        one thread, the shortest of several runs in turn with the others."""
    if any(paper.values()):
        note = f"The paper's figures are for full width, Table 6 built on AdaBin. {note}"
    return ["## Accuracy", networks, note, "![Accuracy](accuracy.png)"]


def comparisons(
    result: dict[str, Any], pairs: Sequence[tuple[str, str]] | None = None
) -> list[Any]:
    """Our gains seed by seed, with the paper's, as parts of a page.

    Parameters
    ----------
    result : dict
    pairs : sequence of (low, high), optional
        Names of networks; default: those of `COMPARISONS`.
    """
    titles, paper = result["arms"], result["paper"]
    # A base (a network of the same name) that BD-Net is not built on here is not compared with it.
    compared = {*titles} - ({"adabin", "reactnet"} - {result["config"]["base"]})
    pairs = COMPARISONS[result["name"]] if pairs is None else pairs
    is_published = any(paper.values())
    rows = [
        [f"{titles[high]} against {titles[low]}",
         *against(result["summary"][high]["accuracies"], result["summary"][low]["accuracies"]),
         *([f"{paper[high] - paper[low]:+.2f}"] if is_published else [])]
        for low, high in pairs
        if {low, high} <= compared
    ]  # fmt: skip
    if not rows:
        return []
    title = "What the paper compares" if is_published else "Seed by seed"
    columns = ["", *PAIR, *(["the paper, points"] if is_published else [])]
    return [f"## {title}", tables.markdown(columns, rows), PAIRED]


# What `layer_statistics` gives, by name, and how it is printed.
_STATISTICS = {
    "variance": ".3g", "factor": ".3g", "gradient": ".2e", "agreement": ".2f",
}  # fmt: skip


def _median(layer, key):
    return layer[key][1] if key in ("variance", "factor") else layer[key]


def _layers(result):
    rows = []
    for name, title in result["arms"].items():
        layers = [row["layers"] for row in result["runs"] if row["name"] == name]
        medians = (
            f"{np.median([_median(layer, key) for seed in layers for layer in seed[when]]):{form}}"
            for key, form in _STATISTICS.items()
            for when in ("start", "end")
        )
        rows.append([title, *medians])
    header = [f"{key}, {when}" for key in _STATISTICS for when in ("start", "end")]
    about = """Medians over the layers with more than one tap (without the first layer) and the
        seeds. *variance*: of the input of the batch norm, median of the channels; *factor*: of the
        batch norm, |γ| / sqrt(variance + ε); *gradient*: norm of the gradient of the latent
        weights; *agreement* of the gradients of 8 batches: 1 if all are equal, 0 if they have
        nothing in common. The paper blames small variances and the large, fluctuating gradients
        that they cause."""
    return [
        "## Variances and gradients", about, tables.markdown(["", *header], rows),
        "![Layers](layers.png)",
    ]  # fmt: skip


# --------------------------------------------------------------------------------------- pictures


def _accuracy(figure, result):
    """Draw accuracy against operations and against the time of a prediction."""
    means = result["summary"]
    left, right = figure.subplots(1, 2, sharey=True)
    ops = {row["name"]: row["ops"] / 1e6 for row in result["runs"]}
    for axes, places, label in (
        (left, ops, "million OPs = BOPs / 64 + FLOPs"),
        (right, {n: t["1"] for n, t in result["latency"].items()}, "ms an image, packed, 1 thread"),
    ):
        points = {
            title: (places[name], means[name]["mean"] * 100, (means[name]["std"] or 0) * 100)
            for name, title in result["arms"].items()
        }
        plots.trade_off(points, label, "test accuracy, %", legend=axes is right, ax=axes)
    right.set(ylabel="")


def _factors(figure, result):
    """Draw the factor of the batch norm and the agreement of gradients along an architecture."""
    first = next(iter(result["arms"]))
    layers = {
        result["arms"][row["name"]]: row["layers"]["end"]
        for row in result["runs"]
        if row["seed"] == 0 and result["against"][row["name"]] == first
    }
    left, right = figure.subplots(1, 2)
    for axes, key, label in (
        (left, "factor", "factor α of the batch norm, median"),
        (right, "agreement", "agreement of the gradients (1: equal)"),
    ):
        lines = {title: [_median(layer, key) for layer in own] for title, own in layers.items()}
        plots.curves(lines, label, "layer with more than one tap", legend=False, ax=axes)
    plots.logarithmic(left, "y")
    plots.legend_beside(right)


PICTURES: dict[str, Any] = {
    "accuracy.png": ((11, 4.2), _accuracy),
    "layers.png": ((11, 3.6), _factors),
}
