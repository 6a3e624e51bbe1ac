"""The Hessian of BD-Net's networks, at the start and at the end of training (Fig. 5).

The paper draws the ten largest eigenvalues of MobileNet V1: float, naively binarized, as ReActNet
and as BD-Net, and explains the accuracy by a lower first one and a flatter curve. It does not say
what it computed; here it is `analysis.HessianOperator` of the training loss, by the estimators'
derivatives, each batch normalized by its own statistics as in training.

Networks are trained as those of `bdnet-ablation`; a folder of that experiment with the same
settings can be continued. Files of each network: hessian-start.json and hessian-end.json; in RUN:
hessian.json, hessian.md, hessian.png.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import tinybnn.experiments.bdnet.training as bdnet
from tinybnn import analysis, nn, plots
from tinybnn.datasets import Dataset
from tinybnn.experiments.bdnet.arms import ABLATION, TABLE_2, Arm, over_seeds
from tinybnn.experiments.bdnet.experiment import QUICK
from tinybnn.experiments.bdnet.report import pairs, setup
from tinybnn.experiments.report import page, spread, table
from tinybnn.experiments.runner import Experiment, Run, kept
from tinybnn.experiments.settings import setting

STAGES: tuple[str, str] = ("start", "end")
COUNT = 10  # eigenvalues that the paper draws

# Figures 2, 5 and 6 are about MobileNet V1.
ARMS: dict[str, Arm] = {name: TABLE_2[name] for name in ("float", "reactnet")} | ABLATION


@dataclass(frozen=True)
class Config(bdnet.Config):
    """How the networks are trained, as in the other experiments of BD-Net, and measured.

    The first training images are used as they are, in batches of at most `batch_size`.
    """

    epochs: int = setting(5, "epochs, of all steps", least=1)
    images: int = setting(512, "images on which the Hessian is computed", least=2)
    steps: int = setting(40, "steps of Lanczos: products with the Hessian", least=COUNT)


def _phases(run: Run, result: dict[str, Any]) -> Iterator[str]:
    data, graphs = run.options["data"], run.options["graphs"]
    result |= {"arms": {name: arm.title for name, arm in run.arms.items()}, "rows": []}
    for folder, row, arm in bdnet.trained_arms(run):
        models = (
            bdnet.untrained(arm, run.config, row["seed"], data[0]),
            bdnet.trained(folder, arm, run.config, row["seed"], data[0]),
        )
        about = {key: row[key] for key in ("name", "seed", "command")}
        about["accuracy"] = row["test_accuracy"]
        for stage, model in zip(STAGES, models, strict=True):
            compute = functools.partial(
                spectrum_of, model, data[0], run.config, folder, stage, graphs, run.progress
            )
            spectrum = kept(folder / f"hessian-{stage}.json", compute)
            result["rows"].append({**about, "stage": stage, **spectrum})
        largest = ", ".join(f"{row['stage']} {row['top'][0]:.3g}" for row in result["rows"][-2:])
        yield f"{arm.title}, seed {about['seed']}: largest eigenvalue at the {largest}"
    result["summary"] = summary(result)


def operator_of(
    model: nn.Module, images: Dataset, config: Config, graphs: int = 1
) -> analysis.HessianOperator:
    """Make the Hessian of a network's loss on the first images of a Dataset."""
    batches = bdnet.first_images(images, config)
    return analysis.HessianOperator(model, batches, training=True, graphs=graphs)


def spectrum_of(
    model: nn.Module,
    images: Dataset,
    config: Config,
    folder: Path,
    stage: str,
    graphs: int = 1,
    progress: bool = True,
) -> dict[str, Any]:
    """Compute eigenvalues of a network's Hessian on the first images of a Dataset.

    One Lanczos iteration from a random vector gives both the largest eigenvalues and, as one sample
    of stochastic Lanczos quadrature, the distribution of all.

    Parameters
    ----------
    model : Module
        Not changed.
    images : Dataset
        Images (N, C, H, W).
    config : Config
    folder : path
        For a checkpoint, which is removed at the end.
    stage : str
        Part of its name.
    graphs : int
        Number of batches whose gradients stay in memory (`analysis.HessianOperator`).
    progress : bool

    Returns
    -------
    dict
        ``top``, the largest eigenvalues, with ``residuals``; ``lowest``, the smallest one;
        ``mean_size``, the mean |λ| over all, and ``trace``, both estimated; ``nodes`` and
        ``weights`` of the density; ``parameters``, ``seconds``, ``machine``.
    """
    checkpoint, start = folder / f"lanczos-{stage}.npz", time.perf_counter()
    operator = operator_of(model, images, config, graphs)
    spectrum = analysis.top_eigenvalues(
        operator, COUNT, tol=0, max_steps=config.steps, checkpoint=checkpoint, progress=progress
    )
    checkpoint.unlink(missing_ok=True)
    nodes, weights = spectrum.nodes, spectrum.weights
    return {
        "top": spectrum.values.tolist(),
        "residuals": spectrum.residuals.tolist(),
        "lowest": float(nodes.min()),
        "mean_size": float(weights @ np.abs(nodes)),
        "trace": float(weights @ nodes) * operator.size,
        "nodes": nodes.tolist(),
        "weights": weights.tolist(),
        "parameters": operator.size,
        "seconds": time.perf_counter() - start,
        "machine": analysis.machine(),
    }


# -------------------------------------------------------------------------------------- the report


def measures(row: dict[str, Any]) -> dict[str, float]:
    """Return the measures of a spectrum; smaller is better for both.

    Returns
    -------
    dict
        ``first``, the largest eigenvalue λ1; ``condition``, λ1 over the mean |λ| of all
        eigenvalues. (The paper's Eq. 2 divides by the smallest one, which has no meaning where it
        is negative; ``lowest`` shows that it is.)
    """
    return {"first": row["top"][0], "condition": row["top"][0] / row["mean_size"]}


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """Summarize the measures by stage, as `over_seeds` does; pairs are compared by ratios."""
    measured: dict[tuple[str, str, str], list[float]] = {}
    for row in result["rows"]:
        for measure, value in measures(row).items():
            measured.setdefault((row["name"], row["stage"], measure), []).append(value)
    return over_seeds(measured, np.divide)


_TITLES = {"first": "λ1", "condition": "λ1 / mean abs λ"}


def text(result: dict[str, Any]) -> str:
    """Return ``hessian.md`` as text."""
    config, rows, titles = result["config"], result["rows"], result["arms"]
    residual = max(max(row["residuals"]) / np.abs(row["nodes"]).max() for row in rows)
    about = f"""{setup(result)}, {config["epochs"]} epochs. Hessian of the mean cross entropy on the
        first {config["images"]} training images, batches of {config["batch_size"]} with their own
        statistics, by the derivatives of the estimators (`analysis.HessianOperator`):
        {rows[0]["parameters"]:,} parameters in *{titles[rows[0]["name"]]}*. Largest eigenvalues by
        at most {config["steps"]} steps of Lanczos, largest residual {residual:.1e} of the largest
        |λ|; the mean |λ| is estimated by the same iteration. Mean and standard deviation over the
        seeds."""

    def mean(name, key, stage):
        return np.mean([row[key] for row in rows if (row["name"], row["stage"]) == (name, stage)])

    means = result["summary"]["networks"]
    networks = table(
        titles,
        {
            "": titles.get,
            "accuracy": lambda name: f"{100 * mean(name, 'accuracy', 'end'):.1f}",
            **{
                f"{title}, {stage}": lambda name, stage=stage, measure=measure: spread(
                    means[name][stage][measure]
                )
                for measure, title in _TITLES.items()
                for stage in STAGES
            },
            **{
                f"lowest, {stage}": lambda name, stage=stage: f"{mean(name, 'lowest', stage):.3g}"
                for stage in STAGES
            },
        },
    )
    return page(
        "The Hessian of BD-Net's networks (Fig. 5)", result, about, networks,
        "![Eigenvalues](hessian.png)", "## What the paper compares",
        pairs(
            result, "mean ratio", lambda x: f"×{np.exp(np.log(x).mean()):.2f}", 1, _TITLES
        ),
    )  # fmt: skip


def _draw(figure, result):
    """Draw the largest eigenvalues of all networks at the start and at the end."""
    for axes, stage in zip(figure.subplots(1, 2, sharey=True), STAGES, strict=True):
        rows = [row for row in result["rows"] if row["stage"] == stage]
        groups = {
            title: [row["top"] for row in rows if row["name"] == name]
            for name, title in result["arms"].items()
        }
        plots.eigenvalues(groups, ax=axes)
        axes.set(title=f"at the {stage} of training")


EXPERIMENT = Experiment(
    "hessian", Config, _phases, text, {"hessian.png": ((11, 4.5), _draw)}, bdnet.load_for,
    quick=QUICK | {"epochs": 1, "images": 32, "steps": COUNT},
    seeds=3, arms=ARMS, figures="hessian", report="hessian",
    options={
        "graphs": setting(
            1, "batches whose gradients stay in memory; all of them halve the time", least=0
        )
    },
    takes="a quarter of an hour a network on CIFAR-10",
    description="Train MobileNet V1 as float network, as ReActNet and with binary depth-wise\n"
    "convolutions: naive, with the shortcut before the batch norm, with the 1.58-bit\n"
    "convolution, with both. Before and after the training: the largest eigenvalues of the\n"
    "Hessian and the distribution of all. The table (hessian.md), figures (hessian.json) and a\n"
    "picture go to RUN. Repeat the command after an interruption.",
    examples=(
        "tinybnn reproduce hessian --quick", "TINYBNN_DATA=DIR tinybnn reproduce hessian --seeds 3",
    ),
)  # fmt: skip
run: Callable[..., dict[str, Any]] = EXPERIMENT.run
