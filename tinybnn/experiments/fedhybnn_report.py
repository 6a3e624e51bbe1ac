"""FedHyBNN's figures: means over the tasks, ``report.md`` and its pictures."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from tinybnn import plots, tables
from tinybnn.datasets import Dataset
from tinybnn.experiments.report import PAIR, PAIRED, against, fixed, mean_and_std, page, table

Result = dict[str, Any]
PARTITIONS: dict[str, str] = {"iid": "IID", "skewed": "labels skewed"}


def _accuracies(result):
    """(partition, arm) -> (seeds, tasks, rounds); the centralized head is ("", "centralized")."""
    accuracies = {("", "centralized"): [seed["centralized"] for seed in result["seeds"]]}
    for partition in result["partitions"]:
        for arm in result["arms"]:
            accuracies[partition, arm] = [s["federated"][partition][arm] for s in result["seeds"]]
    return {
        key: np.array([[task["accuracy"] for task in tasks] for tasks in seeds])
        for key, seeds in accuracies.items()
    }


def summary(result: Result) -> dict[str, Any]:
    """Average accuracies over the tasks after some rounds: mean and deviation over the seeds.

    Returns
    -------
    dict
        ``rounds``, after which accuracies are given; ``centralized``, a `mean_and_std` for each;
        for each partition and arm ``accuracy`` and ``gap``, centralized minus federated.
    """
    accuracies = _accuracies(result)
    rounds = milestones(result["config"]["rounds"])
    at = np.array(rounds) - 1
    central = accuracies.pop(("", "centralized")).mean(1)  # (seeds, rounds)
    means = {"rounds": rounds, "centralized": [mean_and_std(values) for values in central.T[at]]}
    for (partition, arm), values in accuracies.items():
        mean = values.mean(1)
        means.setdefault(partition, {})[arm] = {
            "accuracy": [mean_and_std(column) for column in mean.T[at]],
            "gap": [mean_and_std(column) for column in (central - mean).T[at]],
        }
    return means


def milestones(rounds: int) -> list[int]:
    """Return the rounds that are listed in tables, the last one included."""
    return sorted({r for r in (1, 5, 10, 20, 50, 100) if r < rounds} | {rounds})


def headline(result: Result) -> str:
    """Return a line of text: accuracies after the last round, in percent."""
    ends = {name: values.mean(1)[:, -1] * 100 for name, values in _accuracies(result).items()}
    names = {("", "centralized"): "centralized"}
    names |= {("iid", arm): result["arms"][arm] for arm in ("fedavg", "sign")}
    words = [f"{title} {fixed(ends[name])}" for name, title in names.items()]
    return f"after {result['config']['rounds']} rounds, " + "; ".join(words)


# -------------------------------------------------------------------------------------------- text


def text(result: Result) -> str:
    """Return ``report.md`` as text."""
    config = result["config"]
    sizes = result["seeds"][0]["federated"]["iid"]["fedavg"][0]["samples"]
    setup = f"""Seeds: {len(result["seeds"])}, each with an autoencoder of its own
        ({config["epochs_vae"]} epochs, {config["estimator"]}, rate × {config["rate_weight"]:g}).
        {config["clients"]} clients, E = {config["epochs"]}, B = {config["batch_size"]}, Adam with
        lr {config["lr"]:g} anew in each round, server step {config["step"]:g}. IID, a client has
        {min(sizes)} to {max(sizes)} codes of the first task; labels are skewed by a Dirichlet
        distribution with α = {config["alpha"]:g}. The centralized head is trained on all codes for
        E epochs in the place of each round."""
    choice = """Accuracies are measured on test images after each round; no round was selected by
        them. The test set had some influence on the settings: the autoencoder's recipe is the
        second one of `reproduce hybnn`, chosen after the test accuracies of the first had been
        seen; on the digits B = 16 replaced B = 10, to save time, after the test accuracies with 10
        had been seen."""
    recipe = """Differences from the paper: those that `reproduce hybnn` lists, except that no bits
        are flipped in the training of heads. The paper names neither rates nor batches nor how the
        clients' images were dealt out."""
    parts = [choice, recipe, *_wire(result)]
    for partition in result["partitions"]:
        parts += _curves(result, partition)
    parts += [
        "## Who has which codes", "![Partitions of the first task](partitions.png)",
        """The paper: three clients, and "in under 20 epochs they were able to reach the same
        accuracy as the centralized HyBNN"; its Figure 7 gives no figures.""",
    ]  # fmt: skip
    return page(f"FedHyBNN on {config['dataset']}", result, setup, *parts)


def _wire(result):
    sent = {arm: tasks[0] for arm, tasks in result["seeds"][0]["federated"]["iid"].items()}
    columns = {
        "": result["arms"].get,
        "bytes up, last round": lambda arm: f"{sent[arm]['bytes_up'][-1]:,}",
        "up: float32 / payload": lambda arm: f"{sent[arm]['saving_up']:.1f}",
        "float32 / weights alone": lambda arm: f"{sent[arm]['saving_weights_up']:.1f}",
        "bytes down, last round": lambda arm: f"{sent[arm]['bytes_down'][-1]:,}",
        "down: float32 / payload": lambda arm: f"{sent[arm]['saving_down']:.1f}",
    }
    note = f"""Whole messages of all {result["config"]["clients"]} clients for one task are counted,
        their frames included; float32 is the same message with weights and batch norms as floats.
        Ratios are over all rounds; the first of them brings all weights down."""
    return ["## Bytes on the wire", table(result["arms"], columns), note]


def _curves(result, partition):
    """Accuracy by the rounds, for clients whose codes were dealt out in one way."""
    at = np.array(result["summary"]["rounds"]) - 1
    accuracies = {key: values.mean(1) for key, values in _accuracies(result).items()}
    central = accuracies["", "centralized"]  # (seeds, rounds)
    rows = [["centralized", *map(fixed, 100 * central.T[at]), *[""] * (len(PAIR) + 1)]]
    for arm, name in result["arms"].items():
        own = accuracies[partition, arm]
        flipped = [t["flipped"] for s in result["seeds"] for t in s["federated"][partition][arm]]
        rows.append(
            [name, *map(fixed, 100 * own.T[at]), *against(own[:, -1], central[:, -1]),
             f"{np.mean(flipped) * 100:.1f}"]
        )  # fmt: skip
    rounds = [f"after {r} round{'s' if r > 1 else ''}" for r in result["summary"]["rounds"]]
    means = tables.markdown(
        ["accuracy, mean of the tasks, %", *rounds, f"against centralized: {PAIR[0]}", *PAIR[1:],
         "weights flipped, %"],
        rows,
    )  # fmt: skip
    return [
        f"## {result['partitions'][partition]} (Figure 7)", means, PAIRED,
        f"![Accuracy after each round](rounds-{partition}.png)",
        f"![Accuracy against bytes](bytes-{partition}.png)",
    ]  # fmt: skip


# --------------------------------------------------------------------------------------- pictures


def _lines(result, partition):
    """Title -> percent of the test images after each round, averaged over tasks and seeds."""
    accuracies = _accuracies(result)
    return {
        title: 100 * accuracies[partition, arm].mean((0, 1))
        for arm, title in result["arms"].items()
    }


def _centralized(result):
    """The same for the centralized head, by task: (tasks, rounds)."""
    return 100 * _accuracies(result)["", "centralized"].mean(0)


def _rounds(figure, result, partition):
    """Draw the accuracy after each round: of all arms, and of FedAvg by task."""
    title, centralized = result["partitions"][partition], _centralized(result)
    left, right = figure.subplots(1, 2)
    plots.curves(_lines(result, partition), "test accuracy, %", "round", legend=False, ax=left)
    rounds = np.arange(1, centralized.shape[1] + 1)
    plots.zoom(left)
    left.plot(rounds, centralized.mean(0), ":", color="0.3", label="centralized")
    left.set_title(f"{title}: mean of the tasks")
    by_task = 100 * _accuracies(result)[partition, "fedavg"].mean(0)  # (tasks, rounds)
    lines = dict(zip(result["tasks"], by_task, strict=True))
    plots.curves(lines, "", "round", legend=False, ax=right)
    for line, y in zip(right.get_lines(), centralized, strict=True):
        right.plot(rounds, y, ":", color=line.get_color())
    right.set_title(f"{title}: FedAvg by task (dotted: centralized)")
    for axes in (left, right):
        _finish(axes)


def _bytes(figure, result, partition):
    """Draw the accuracy against the bytes sent so far, for the first task of the first seed."""
    lines, spent = _lines(result, partition), {}
    for arm, name in result["arms"].items():
        sent = result["seeds"][0]["federated"][partition][arm][0]
        both = np.cumsum(np.add(sent["bytes_up"], sent["bytes_down"])) / 1e3
        spent[name] = both, lines[name]
    axes = figure.subplots()
    plots.curves_through(spent, ax=axes)
    plots.zoom(axes)
    last = _centralized(result).mean(0)[-1]
    axes.axhline(last, color="0.3", ls=":", label="centralized")
    axes.set(
        xlabel="kB sent for a task, both ways, all clients", ylabel="test accuracy, %",
        title=result["partitions"][partition],
    )  # fmt: skip
    plots.logarithmic(axes, "x")
    _finish(axes)


def _finish(axes):
    axes.grid(True, color="0.92")
    axes.set_axisbelow(True)
    plots.legend_beside(axes)


def draw_partitions(figure: Any, result: Result, images: Dataset, parts: Any) -> None:
    """Draw which client has which codes of the first task.

    `images` is the Dataset whose codes train the first task, `parts` maps a partition to the (n,)
    positions of the codes of each client among them.
    """
    for axes, (partition, title) in zip(
        figure.subplots(1, 2), result["partitions"].items(), strict=True
    ):
        plots.partition(images.labels, parts[partition], images.classes, ax=axes)
        axes.set_title(title)


PICTURES: dict[str, Any] = {
    f"{name}-{partition}.png": (size, partial(draw, partition=partition))
    for partition in PARTITIONS
    for name, size, draw in (("rounds", (14, 4.4), _rounds), ("bytes", (9, 4.4), _bytes))
}
