"""Binary classifiers: accuracy over seeds, size, and exactness of the packed model.

The recipes for MNIST were chosen on held-out training images (``validate=True``), VGG-small's was
not searched for; the figures that are reported come from training on all images and one look at the
test set after the last epoch.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from tinybnn import plots, runs
from tinybnn.analysis import processor
from tinybnn.experiments.report_text import mean_and_std
from tinybnn.storage import write_json

RECIPES = {
    # larq's introductory example reaches 97.5% after 6 epochs with a network of this shape.
    "mnist-cnn": runs.Config("cnn", "mnist", epochs=6, batch_size=64, lr=5e-3),
    # FINN's SFC: weights, activations and input all of 1 bit.
    "mnist-mlp": runs.Config(
        "mlp", "mnist", epochs=60, batch_size=128, lr=1e-2, shift=1,
        options={"hidden": [256, 256, 256], "dropout": 0.0},
    ),
    # FINN's LFC.
    "mnist-mlp-1024": runs.Config(
        "mlp", "mnist", epochs=80, batch_size=128, lr=5e-3, shift=1,
        options={"hidden": [1024, 1024, 1024], "dropout": 0.0},
    ),
    "cifar10-vgg-small": runs.Config(
        "vgg-small", "cifar10", epochs=20, batch_size=64, lr=3e-3, shift=4, flip=True
    ),
}  # fmt: skip


def run(
    name, out, dataset=None, seeds=3, epochs=None, validate=False, threads=None, progress=True,
    say=print, note="",
):  # fmt: skip
    """Train one network for each seed and compare each with its packed form on all test images.

    Each seed is a run of its own in ``<out>/<name>-<seed>`` and goes on after an interruption.

    Parameters
    ----------
    name : str
        A key of `RECIPES`.
    out : path
        Folder of the runs and of the figures, written after each seed: ``<name>.json``, and the
        curves of the trainings, ``<name>.png``.
    dataset : str, optional
        Instead of the recipe's.
    seeds : int
        Seeds 0, 1, ...
    epochs : int, optional
        Instead of the recipe's.
    validate : bool
        Hold a twelfth of the training images out and test on them: for choosing a recipe.
    threads : int, optional
        As for `training.fit`.
    progress : bool
    say : callable
        Gets a line of text at a time.
    note : str
        Stands in the figures, for instance where the images come from.

    Returns
    -------
    dict
        The figures, as in the file.
    """
    changes = {"dataset": dataset, "epochs": epochs, "validation": 1 / 12 if validate else None}
    recipe = dataclasses.replace(
        RECIPES[name], **{k: v for k, v in changes.items() if v is not None}
    )
    result = {
        "name": name,
        "recipe": dataclasses.asdict(recipe),
        "note": note,
        "tested_on": "held-out training images" if validate else "test set",
        "processor": processor(),
        "date": time.strftime("%Y-%m-%d"),
        "runs": [],
    }
    for seed in range(seeds):
        folder = Path(out) / f"{name}-{seed}"
        trained = runs.train(
            folder, dataclasses.replace(recipe, seed=seed), progress=progress, say=say,
            threads=threads,
        )  # fmt: skip
        packed = runs.compile(folder, say=say)
        exact = runs.verify(folder, say=say)
        result["runs"].append(
            {
                "seed": seed,
                "accuracy": trained["validation_accuracy" if validate else "test_accuracy"],
                "train_loss": trained["train_loss"],
                "seconds": trained["train_seconds"],
                "parameters": trained["parameters"],
                "packed_bytes": packed["packed_bytes"],
                "identical_logits": exact["identical_logits"],
                "images": exact["images"],
                "history": trained["history"],
            }
        )
        found = mean_and_std([row["accuracy"] for row in result["runs"]])
        result["accuracy_mean"], result["accuracy_std"] = found["mean"], found["std"]
        write_json(Path(out) / f"{name}.json", result)
        draw(Path(out) / f"{name}.png", result)
    spread = f" ± {result['accuracy_std']:.2%}" if seeds > 1 else ""
    say(f"{name}: {result['accuracy_mean']:.2%}{spread} over {seeds} seeds ({result['tested_on']})")
    return result


def draw(path, result):
    """Training loss and accuracy over the epochs, and the accuracies at the end."""
    figure = plots.figure(figsize=(9, 3))
    left, right = figure.subplots(1, 2)
    for axes, key, unit, factor in ((left, "loss", "nats", 1), (right, "accuracy", "%", 100)):
        lines = {
            f"seed {row['seed']}, training": [factor * epoch[key] for epoch in row["history"]]
            for row in result["runs"]
        }
        plots.curves(lines, f"{key}, {unit}", legend=False, ax=axes)
    ends = [(len(row["history"]), 100 * row["accuracy"]) for row in result["runs"]]
    right.plot(*zip(*ends, strict=True), "k_", markersize=12, label=result["tested_on"])
    plots.legend_beside(right)
    plots.save(figure, path)
