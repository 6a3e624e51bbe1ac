"""Binary classifiers: accuracy over seeds, size, and exactness of the packed model.

The recipes for MNIST were chosen on held-out training images (``validate=True``); that of VGG-small
was not searched for. The figures that are reported come from training on all images and a single
evaluation on the test set after the last epoch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from tinybnn import datasets, plots, runs
from tinybnn.experiments.report import mean_and_std, page, percent, table
from tinybnn.experiments.runner import Experiment, Run
from tinybnn.experiments.settings import Config as BaseConfig
from tinybnn.experiments.settings import setting

RECIPES: dict[str, runs.Config] = {
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


@dataclass(frozen=True)
class Config(BaseConfig):
    """What replaces settings of the recipe."""

    dataset: str | None = setting(None, "not the recipe's; with --quick digits", dataset=True)
    epochs: int | None = setting(None, "not the recipe's", least=1, type=int)
    validate: bool = setting(False, "test on a twelfth of the training images instead")


def _recipe(name, config):
    """The recipe with what replaces its settings; an error if its data set is not there."""
    changes = {"dataset": config.dataset, "epochs": config.epochs}
    changes["validation"] = 1 / 12 if config.validate else None
    changes = {name: value for name, value in changes.items() if value is not None}
    recipe = dataclasses.replace(RECIPES[name], **changes)
    datasets.load(recipe.dataset)
    return recipe


def _phases(name: str, run: Run, result: dict[str, Any]) -> Iterator[str]:
    """Train one network for each seed and compare each with its packed form on all test images.

    Each seed is a run of its own (`runs.train`) in RUN/NAME-SEED.
    """
    config, recipe = run.config, run.options["data"]
    tested_on = "held-out training images" if config.validate else "test set"
    result |= {"recipe": dataclasses.asdict(recipe), "tested_on": tested_on, "runs": []}
    for seed in range(run.seeds):
        folder, options = run.out / f"{name}-{seed}", {"progress": run.progress, "say": run.say}
        trained = runs.train(folder, dataclasses.replace(recipe, seed=seed), **options)
        packed = runs.compile(folder, **options)
        exact = runs.verify(folder, **options)
        result["runs"].append(
            {
                "seed": seed,
                "accuracy": trained[f"{'validation' if config.validate else 'test'}_accuracy"],
                "train_loss": trained["train_loss"],
                "seconds": trained["train_seconds"],
                "parameters": trained["parameters"],
                "packed_bytes": packed["packed_bytes"],
                "identical_logits": exact["identical_logits"],
                "images": exact["images"],
                "history": trained["history"],
            }
        )
        over_seeds = mean_and_std([row["accuracy"] for row in result["runs"]])
        result |= {f"accuracy_{key}": value for key, value in over_seeds.items()}
        yield f"{name}: {percent(**over_seeds)}% over {seed + 1} seeds ({tested_on})"


def text(result: dict[str, Any]) -> str:
    """Return the report as text."""
    recipe = result["recipe"]
    about = f"""{recipe["dataset"]}{result["note"] and f" ({result['note']})"}: {recipe["epochs"]}
        epochs, batch {recipe["batch_size"]}, lr {recipe["lr"]:g}; tested on the
        {result["tested_on"]} after the last epoch."""
    mean = percent(result["accuracy_mean"], result["accuracy_std"])
    rows = table(
        result["runs"],
        {
            "seed": lambda row: row["seed"],
            "accuracy, %": lambda row: percent(row["accuracy"]),
            "identical logits": lambda row: f"{row['identical_logits']:,} of {row['images']:,}",
            "parameters": lambda row: f"{row['parameters']:,}",
            "packed bytes": lambda row: f"{row['packed_bytes']:,}",
            "seconds": lambda row: f"{row['seconds']:.0f}",
        },
    )
    title = f"{result['name']}: {mean}%, seeds: {len(result['runs'])}"
    return page(title, result, about, rows, f"![Curves]({result['name']}.png)")


def _draw(figure, result):
    """Draw training loss and accuracy over the epochs, and the accuracies at the end."""
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


EXPERIMENTS: dict[str, Experiment] = {
    name: Experiment(
        name, Config, partial(_phases, name), text, {f"{name}.png": ((9, 3), _draw)},
        partial(_recipe, name), quick={"quick": True, "dataset": "digits", "epochs": 1},
        seeds=3, figures=name, report=name, takes=f"{takes} a seed",
        description="Train a network with several seeds and compare each network with its packed "
        "form on all\ntest images. The figures go to RUN/NAME.json, the curves of the trainings to "
        "RUN/NAME.png,\na report to RUN/NAME.md. Repeat the command after an interruption.",
        examples=(f"TINYBNN_DATA=DIR tinybnn reproduce {name} --seeds 3",),
    )
    for name, takes in (
        ("mnist-cnn", "4 minutes"), ("mnist-mlp", "6 minutes"),
        ("mnist-mlp-1024", "half an hour"), ("cifar10-vgg-small", "2 hours"),
    )
}  # fmt: skip
