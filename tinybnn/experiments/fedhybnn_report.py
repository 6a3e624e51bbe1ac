"""What FedHyBNN's trainings say: means over the tasks, ``report.md`` and its pictures."""

from __future__ import annotations

import numpy as np

from tinybnn import plots, tables
from tinybnn.experiments.report_text import (
    PAIRED,
    mean_and_std,
    paired,
    percent,
    probability,
    top,
    when_and_where,
    wrapped,
)
from tinybnn.storage import write_atomic


def _accuracies(result):
    """(partition, arm) -> (seeds, tasks, rounds); of the centralized head ("", "centralized")."""
    accuracies = {("", "centralized"): [seed["centralized"] for seed in result["seeds"]]}
    for partition in result["partitions"]:
        for arm in result["arms"]:
            accuracies[partition, arm] = [s["federated"][partition][arm] for s in result["seeds"]]
    return {
        key: np.array([[task["accuracy"] for task in seed] for seed in found])
        for key, found in accuracies.items()
    }


def summary(result):
    """Accuracy in the mean of the tasks after some rounds: mean and deviation over the seeds.

    Returns
    -------
    dict
        ``rounds``, after which it is given; ``centralized``, a `mean_and_std` for each; for each
        partition and arm ``accuracy`` and ``gap``, what it lacks to the centralized head.
    """
    accuracies = _accuracies(result)
    rounds = milestones(result["config"]["rounds"])
    central = accuracies["", "centralized"].mean(1)  # (seeds, rounds)
    found = {"rounds": rounds, "centralized": [mean_and_std(central[:, r - 1]) for r in rounds]}
    for (partition, arm), table in accuracies.items():
        if partition:
            mean = table.mean(1)
            found.setdefault(partition, {})[arm] = {
                "accuracy": [mean_and_std(mean[:, r - 1]) for r in rounds],
                "gap": [mean_and_std(central[:, r - 1] - mean[:, r - 1]) for r in rounds],
            }
    return found


def milestones(rounds):
    """The rounds that stand in tables."""
    return sorted({r for r in (1, 5, 10, 20, 50, 100) if r < rounds} | {rounds})


def headline(result):
    """One line: what the one-bit uplink lacks to the centralized head."""
    found = result["summary"]
    last = found["rounds"][-1]
    words = [f"centralized {percent(**found['centralized'][-1])}"]
    for arm in ("fedavg", "sign"):
        words.append(f"{result['arms'][arm]} {percent(**found['iid'][arm]['accuracy'][-1])}")
    return f"after {last} rounds, " + "; ".join(words)


# ------------------------------------------------------------------------------------------- text


def write(out, result):
    """Write ``report.md`` into the folder of a run, and its pictures but that of the partitions."""
    write_atomic(out / "report.md", text(result).encode())
    for partition in result["partitions"]:
        _draw_rounds(out / f"rounds-{partition}.png", result, partition)
        _draw_bytes(out / f"bytes-{partition}.png", result, partition)


def text(result):
    """``report.md`` as text."""
    sections = [_top(result), _wire(result)]
    sections += [_curves(result, partition) for partition in result["partitions"]]
    return "\n".join([*sections, _reading(result), _who_has_which()])


def _top(result):
    config = result["config"]
    sizes = result["seeds"][0]["federated"]["iid"]["fedavg"][0]["samples"]
    about = wrapped(
        f"""{when_and_where(result)}. Seeds: {len(result["seeds"])}, each with an autoencoder of
        its own ({config["epochs_vae"]} epochs, {config["estimator"]}, rate ×
        {config["rate_weight"]:g}). {config["clients"]} clients, E = {config["epochs"]}, B =
        {config["batch_size"]}, Adam with lr {config["lr"]:g} anew in each round, server step
        {config["step"]:g}. IID, a client has {min(sizes)} to {max(sizes)} codes of the first task;
        skewed are labels by a Dirichlet distribution with α = {config["alpha"]:g}. The centralized
        head is trained on all codes for E epochs in the place of each round."""
    )
    batch = ""
    if config["dataset"] == "digits":
        batch = """On the digits B = 16 took the place of B = 10, to save time, when the test
            accuracies with 10 had been seen."""
    choice = wrapped(
        f"""Accuracies are those on test images after each round; no round was chosen by them. The
        settings were not chosen quite without the test set: the autoencoder's recipe is the second
        one of `reproduce hybnn`, which came when the test accuracies of the first had been seen.
        {batch}"""
    )
    recipe = wrapped(
        """What differs from the paper: what that of `reproduce hybnn` lists, but that no bits are
        flipped in the training of heads; the paper names neither rates nor batches nor how the
        clients' images were dealt out."""
    )
    start = top(f"FedHyBNN on {config['dataset']}", result)
    return f"{start}\n{about}\n\n{choice}\n\n{recipe}\n"


def _wire(result):
    rows = []
    for arm, title in result["arms"].items():
        found = result["seeds"][0]["federated"]["iid"][arm][0]
        rows.append(
            [title, f"{found['bytes_up'][-1]:,}", f"{found['saving_up']:.1f}",
             f"{found['saving_weights_up']:.1f}", f"{found['bytes_down'][-1]:,}",
             f"{found['saving_down']:.1f}"]
        )  # fmt: skip
    table = tables.markdown(
        ["", "bytes up, last round", "float32 / payload", "float32 / weights alone",
         "bytes down, last round", "float32 / payload"],
        rows,
    )  # fmt: skip
    note = wrapped(
        f"""Counted are whole messages of all {result["config"]["clients"]} clients for one task,
        their frames among them; float32 is the same message with weights and batch norms as
        floats. Ratios are over all rounds, of which the first brings all weights down."""
    )
    return f"## Bytes on the wire\n\n{table}\n{note}\n"


def _curves(result, partition):
    """Accuracy by the rounds, for clients whose codes were divided in one way."""
    found, accuracies = result["summary"], _accuracies(result)
    rows = [["centralized", *(percent(**value) for value in found["centralized"]), "", "", ""]]
    for arm, name in result["arms"].items():
        own = found[partition][arm]
        both = [accuracies[key].mean(1)[:, -1] for key in (("", "centralized"), (partition, arm))]
        p = paired(*both)["p"]
        flipped = np.mean(
            [t["flipped"] for s in result["seeds"] for t in s["federated"][partition][arm]]
        )
        rows.append(
            [name, *(percent(**value) for value in own["accuracy"]), percent(**own["gap"][-1]),
             "" if p is None else probability(p), f"{flipped * 100:.1f}"]
        )  # fmt: skip
    header = [f"after {r} round{'s' if r > 1 else ''}" for r in found["rounds"]]
    table = tables.markdown(
        ["accuracy, mean of the tasks, %", *header, "points below centralized", "by seed",
         "weights flipped, %"],
        rows,
    )  # fmt: skip
    table += f"\n{wrapped(PAIRED)}\n" if len(result["seeds"]) > 1 else ""
    pictures = (
        f"![Accuracy after each round](rounds-{partition}.png)\n"
        f"![Accuracy against bytes](bytes-{partition}.png)\n"
    )
    return f"## {result['partitions'][partition]} (Figure 7)\n\n{table}\n{pictures}"


def _reading(result):
    """What the tables say about two questions, in sentences."""
    found = result["summary"]

    def last(partition, arm):
        return percent(**found[partition][arm]["accuracy"][-1])

    flipped = [
        task["flipped"]
        for seed in result["seeds"]
        for partition in result["partitions"]
        for task in seed["federated"][partition]["vote"]
    ]
    share = f"At most {max(flipped) * 100:.2f}% of its weights have flipped"
    if max(flipped) == 0:
        share = "Not one of its weights has flipped, in any task"
    items = wrapped(
        f"""- *Majority vote of weight signs.* {share}: clients begin each round at ±1, and their
        steps are too short to cross 0. What accuracy it has comes from the batch norms, which are
        averaged as floats, around the weights that it began with.""",
        f"""- *Batch norms.* The sign of the update with averaged, local and frozen batch norms
        reaches {last("iid", "sign")}, {last("iid", "sign-local")} and {last("iid", "sign-frozen")}
        with IID clients, and {last("skewed", "sign")}, {last("skewed", "sign-local")} and
        {last("skewed", "sign-frozen")} with skewed labels. A client whose codes are nearly all of
        one class normalizes by the statistics of that class; their mean is not that of all codes,
        and local ones never see the other class. Frozen ones know no client's labels.""",
    )
    return f"## What the rows say\n\n{items}\n"


def _who_has_which():
    paper = wrapped(
        """The paper: three clients, and "in under 20 epochs they were able to reach the same
        accuracy as the centralized HyBNN"; its Figure 7 gives no figures."""
    )
    picture = "![Partitions of the first task](partitions.png)"
    return f"## Who has which codes\n\n{picture}\n\n{paper}\n"


# --------------------------------------------------------------------------------------- pictures


def _lines(result, partition):
    """Title -> percent of test images after each round, in the mean of tasks and seeds."""
    accuracies = _accuracies(result)
    return {
        title: 100 * accuracies[partition, arm].mean((0, 1))
        for arm, title in result["arms"].items()
    }


def _centralized(result):
    """The same of the centralized head, by task: (tasks, rounds)."""
    return 100 * _accuracies(result)["", "centralized"].mean(0)


def _draw_rounds(path, result, partition):
    """Accuracy after each round: of all arms, and of FedAvg by task."""
    title, centralized = result["partitions"][partition], _centralized(result)
    figure = plots.figure(figsize=(14, 4.4))
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
    plots.save(figure, path)


def _draw_bytes(path, result, partition):
    """Accuracy against the bytes that were sent so far, for the first task of the first seed."""
    lines, spent = _lines(result, partition), {}
    for arm, name in result["arms"].items():
        sent = result["seeds"][0]["federated"][partition][arm][0]
        both = np.cumsum(np.add(sent["bytes_up"], sent["bytes_down"])) / 1e3
        spent[name] = both, lines[name]
    figure = plots.figure(figsize=(9, 4.4))
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
    plots.save(figure, path)


def _finish(axes):
    axes.grid(True, color="0.92")
    axes.set_axisbelow(True)
    plots.legend_beside(axes)


def draw_partitions(path, result, images, parts):
    """Who has which codes of the first task.

    Parameters
    ----------
    path : path
    result : dict
    images : Dataset
        Those whose codes train the first task.
    parts : dict
        Partition -> for each client the positions of its codes among them (seed 0).
    """
    figure = plots.figure(figsize=(9, 2.4))
    for axes, (partition, title) in zip(
        figure.subplots(1, 2), result["partitions"].items(), strict=True
    ):
        plots.partition(images.labels, parts[partition], images.classes, ax=axes)
        axes.set_title(title)
    plots.save(figure, path)
