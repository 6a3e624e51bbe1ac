"""Tables and pictures of BD-Net's experiments, with the paper's figures beside ours."""

from __future__ import annotations

import itertools

import numpy as np

from tinybnn import plots, tables
from tinybnn.experiments.bdnet.arms import ABLATION, COMPARISONS, EXPERIMENTS
from tinybnn.experiments.report_text import (
    PAIRED,
    paired,
    percent,
    top,
    versus,
    when_and_where,
    wrapped,
)
from tinybnn.storage import write_atomic


def write(out, result):
    """Write ``report.md`` into the folder of a run, and its pictures but that of the levels."""
    write_atomic(out / "report.md", text(result).encode())
    _draw_accuracy(out / "accuracy.png", result)
    _draw_layers(out / "layers.png", result)


def text(result):
    """``report.md`` as text."""
    parts = [_top(result), _deviations(result), _accuracies(result), _comparisons(result)]
    parts += [_layers(result), "## Levels (Fig. 4)\n\n![Grey, one bit, three levels](levels.png)\n"]
    return "\n".join(filter(None, parts))


def _top(result):
    config = result["config"]
    images, seeds = result["images"], 1 + max(row["seed"] for row in result["runs"])
    over = f"mean and standard deviation over {seeds} seeds" if seeds > 1 else "of one seed"
    shape = "×".join(map(str, images["shape"]))
    note = f" ({result['note']})" if result["note"] else ""
    way = "two steps, activations first" if config["two_step"] else "one step"
    base = config["base"]
    others = {EXPERIMENTS[result["name"]][name].base for name in result["arms"]} - {None, base}
    if others:
        base += f" (on {others.pop()} where the paper has it on that only)"
    teacher = ""
    if config["distill"]:
        teacher = f", {config['distill']:g} of the target from a float teacher"
    about = wrapped(
        f"""{when_and_where(result)}. {config["dataset"]}{note}: {images["train"]:,} images of
        {shape} for training, {images["test"]:,} for testing. Width {config["width"]:g}, BD-Net on
        {base}; {config["epochs"]} epochs in {way}{teacher}, batch {config["batch_size"]}, Adam
        {config["lr"]:g}, {config["schedule"]} to 0; EDE's slope sharpens over all batches of
        AdaBin's weights. Accuracies are those of the last epoch on test images in percent,
        {over}; no epoch was chosen by them."""
    )
    title = "BD-Net's ablation (Table 6)"
    if result["name"] == "bdnet-table2":
        title = "Mobile networks: accuracy, operations, time (Fig. 1, Tables 2, 4 and 5)"
    return f"{top(title, result)}\n{about}\n"


def _deviations(result):
    """What is not as in the paper, beside the recipe."""
    config = result["config"]
    items = [
        f"""- width {config["width"]:g} and {config["epochs"]} epochs; the paper has full width, and
        its recipe stands in an appendix that we could not read;""",
        """- images are moved at random by up to an eighth of their size and, in colour, mirrored;
        what the paper does is not known;""",
        """- the blocks of BD-Net are built from its equations and figures, not from its code: which
        layers have the shortcut before the batch norm, and that the two branches of a 1.58-bit
        convolution have signs of their own, is our reading; the four real layers of BD-Net-B have
        no such shortcut.""",
    ]
    if result["name"] == "bdnet-ablation":
        items.insert(0, f"- {config['dataset']}; the paper's Table 6 is on CIFAR-100;")
    if result["note"]:
        items.insert(0, f"- images: {result['note']};")
    return f"### What differs from the paper\n\n{wrapped(*items)}\n"


def _accuracies(result):
    rows, against = [], {result["arms"][name] for name in result["against"].values()}
    for name, title in result["arms"].items():
        found, latency = result["summary"][name], result["latency"][name]
        paper = result["paper"][name]
        own = [row for row in result["runs"] if row["name"] == name]
        same = sum(row["identical_logits"] for row in own)
        rows.append(
            [
                title, percent(found["mean"], found["std"]),
                percent(found["difference"], found["difference_std"], "+"),
                "" if paper is None else f"{paper:.2f}", f"{own[0]['ops'] / 1e6:.3f}",
                f"{latency['1']:.3f}", f"{latency['64']:.2f}", f"{own[0]['packed_bytes']:,}",
                f"{same:,} of {sum(row['test_images'] for row in own):,}",
                f"{np.mean([row['seconds'] for row in own]):.0f}",
            ]
        )  # fmt: skip
    first = against.pop() if len(against) == 1 else "the first of its kind"
    table = tables.markdown(
        ["", "accuracy", f"against {first}, by seed", "paper", "OPs, million", "ms, 1 image",
         "ms, 64 images", "packed bytes", "identical logits", "s of training"],
        rows,
    )  # fmt: skip
    data = "CIFAR-10"
    if result["name"] == "bdnet-ablation":
        data = "CIFAR-100, built on AdaBin,"
    text = wrapped(
        f"""The paper's figures are for {data} at full width. OPs = BOPs / 64 + FLOPs, true counts.
        Milliseconds are those of the packed network on one thread, the shortest of
        several runs in turn with the others."""
    )
    return f"## Accuracy\n\n{table}\n{text}\n\n![Accuracy](accuracy.png)\n"


def _comparisons(result):
    """Our gains beside the paper's, and whether its order of the ablation appears, in words."""
    found, titles, paper = result["summary"], result["arms"], result["paper"]
    items = []
    # What BD-Net is not built on here (networks are called as bases are) is not held against it.
    held = {*titles} - ({"adabin", "reactnet"} - {result["config"]["base"]})
    for low, high in COMPARISONS[result["name"]]:
        if not {low, high} <= held:
            continue
        gain = paired(found[high]["accuracies"], found[low]["accuracies"])
        items.append(
            f"- *{titles[high]}* against *{titles[low]}*: {versus(gain)}; the paper "
            f"{paper[high] - paper[low]:+.2f}."
        )
    parts = ["## What the paper compares"]
    if {*ABLATION} <= {*titles}:
        parts.append(wrapped(_order(found, titles)))
    if items:
        parts.append(wrapped(*items))
        if len(found[next(iter(titles))]["accuracies"]) > 1:
            parts.append(wrapped(PAIRED))
    return "\n\n".join(parts) + "\n" if len(parts) > 1 else ""


def _order(found, titles):
    """Whether the ablation has the paper's order, and how sure that of neighbours is."""
    order = sorted(ABLATION, key=lambda name: found[name]["mean"])
    verdict = "the same" if order == [*ABLATION] else "another"
    open_pairs = [
        f"{titles[low]} < {titles[high]}"
        for low, high in itertools.pairwise(order)
        if not paired(found[high]["accuracies"], found[low]["accuracies"])["apart"]
    ]
    unsure = f" Not told apart by the seeds: {', '.join(open_pairs)}." if open_pairs else ""
    return f"""The paper's order is {" < ".join(titles[name] for name in ABLATION)}. Ours, of the
        means, is {" < ".join(titles[name] for name in order)}: {verdict}.{unsure}"""


def _layers(result):
    rows = []
    for name, title in result["arms"].items():
        own = [row["layers"] for row in result["runs"] if row["name"] == name]
        cells = [title]
        for key, form in (("variance", ".3g"), ("factor", ".3g"), ("gradient", ".2e"),
                          ("agreement", ".2f")):  # fmt: skip
            for when in ("start", "end"):
                values = [
                    layer[key][1] if key in ("variance", "factor") else layer[key]
                    for layers in own
                    for layer in layers[when]
                ]
                cells.append(f"{np.median(values):{form}}")
        rows.append(cells)
    header = [""]
    for what in ("variance", "factor α", "gradient", "agreement"):
        header += [f"{what}, start", "end"]
    text = wrapped(
        """Medians over the layers with more than one tap (without the first layer) and the seeds.
        *variance*: of what comes into the batch norm, median of the channels; *factor*: of the
        batch norm, |γ| / sqrt(variance + ε); *gradient*: norm of that of the latent weights;
        *agreement* of the gradients of 8 batches: 1 where all are equal, 0 where they have nothing
        in common. The paper blames small variances and with them large, fluctuating gradients."""
    )
    table = tables.markdown(header, rows)
    return f"## Variances and gradients\n\n{text}\n\n{table}\n![Layers](layers.png)\n"


# --------------------------------------------------------------------------------------- pictures


def _draw_accuracy(path, result):
    arms, found = result["arms"], result["summary"]
    figure = plots.figure(figsize=(11, 4.2))
    left, right = figure.subplots(1, 2, sharey=True)
    ops = {row["name"]: row["ops"] / 1e6 for row in result["runs"]}
    for axes, places, label in (
        (left, ops, "million OPs = BOPs / 64 + FLOPs"),
        (right, {n: t["1"] for n, t in result["latency"].items()}, "ms an image, packed, 1 thread"),
    ):
        points = {
            title: (places[name], found[name]["mean"] * 100, (found[name]["std"] or 0) * 100)
            for name, title in arms.items()
        }
        plots.trade_off(points, label, "test accuracy, %", legend=axes is right, ax=axes)
    right.set(ylabel="")
    plots.save(figure, path)


def _draw_layers(path, result):
    """Factor of the batch norm and agreement of the gradients along the first architecture."""
    figure = plots.figure(figsize=(11, 3.6))
    first = next(iter(result["arms"]))
    own = {
        result["arms"][row["name"]]: row["layers"]["end"]
        for row in result["runs"]
        if row["seed"] == 0 and result["against"][row["name"]] == first
    }
    for axes, key, label in zip(
        figure.subplots(1, 2), ("factor", "agreement"),
        ("factor α of the batch norm, median", "agreement of the gradients (1: equal)"),
        strict=True,
    ):  # fmt: skip
        lines = {
            title: [layer[key][1] if key == "factor" else layer[key] for layer in layers]
            for title, layers in own.items()
        }
        plots.curves(lines, label, "layer with more than one tap", legend=False, ax=axes)
        if key == "factor":
            plots.logarithmic(axes, "y")
    plots.legend_beside(axes)
    plots.save(figure, path)
