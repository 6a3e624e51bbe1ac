"""Accuracy, cost and time of BD-Net's networks: `bdnet-ablation` and what is like it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import tinybnn.experiments.bdnet.report as report
from tinybnn import deploy
from tinybnn.experiments.bdnet.arms import ABLATION, TABLE_2, TRAINING
from tinybnn.experiments.bdnet.levels import draw_levels
from tinybnn.experiments.bdnet.training import Config, load_for, trained_arms
from tinybnn.experiments.report import mean_and_std, save_picture
from tinybnn.experiments.runner import Experiment, Run, kept
from tinybnn.storage import read_json

QUICK: dict[str, Any] = {
    "quick": True,
    "dataset": "digits",
    "epochs": 2,
    "batch_size": 32,
    "limit": 256,
}


def phases(run: Run, result: dict[str, Any]) -> Iterator[str]:
    """Train the networks of a run and measure the packed ones; see `Experiment.phases`."""
    data = run.options["data"]
    result |= {
        "images": {
            "shape": data[0].images.shape[1:], "train": len(data[0]), "test": len(data[1]),
        },
        "arms": {name: arm.title for name, arm in run.arms.items()},
        "settings": {name: dict(arm.settings) for name, arm in run.arms.items()},
        "paper": {name: arm.published(run.config) for name, arm in run.arms.items()},
        "against": first_of_its_kind(run.arms),
        "runs": [],
    }  # fmt: skip
    for _, row, arm in trained_arms(run):
        result["runs"].append(row)
        yield (
            f"{arm.title}, seed {row['seed']}: {row['test_accuracy']:.2%} after {row['epochs']} "
            f"epochs, {row['seconds']:.0f} s"
        )
    result["summary"] = summary(result)
    result["latency"] = _kept_latencies(run.out / "latency.json", run.arms)
    save_picture(run.out / "levels.png", (8, 3.4), draw_levels, data[1])


def first_of_its_kind(arms: dict[str, Any]) -> dict[str, str]:
    """Return, for each network, the first one of the same architecture: name -> name."""
    first: dict[Any, str] = {}
    return {name: first.setdefault(arm.build, name) for name, arm in arms.items()}


def latencies(out: Path, arms: Iterable[str], repetitions: int = 30) -> dict[str, dict[str, float]]:
    """Measure predictions of the packed networks of seed 0 on one thread, in milliseconds.

    Parameters
    ----------
    out : path
        The folder of the run.
    arms : iterable of str
    repetitions : int

    Returns
    -------
    dict
        Name -> {"1": ..., "64": ...}, by the number of images.
    """
    packed = {name: deploy.PackedModel.load(out / f"{name}-0" / "packed.npz") for name in arms}
    times = {
        str(batch): shortest_times(packed, batch, runs)
        for batch, runs in ((1, repetitions), (64, max(1, repetitions // 6)))
    }
    return {name: {batch: of[name] for batch, of in times.items()} for name in packed}


def shortest_times(
    networks: Mapping[str, deploy.PackedModel], batch: int, runs: int
) -> dict[str, float]:
    """Measure predictions of packed networks on one thread, in milliseconds.

    Networks take turns, and the shortest run of each counts.

    Parameters
    ----------
    networks : dict
        Name -> PackedModel; all take images of the same shape.
    batch : int
        Number of random images.
    runs : int
        Runs of each network, after one that compiles and allocates memory.

    Returns
    -------
    dict
        Name -> milliseconds.
    """
    shape = next(iter(networks.values())).input_shape
    x = np.random.default_rng(0).standard_normal((batch, *shape)).astype(np.float32)
    shortest = dict.fromkeys(networks, math.inf)
    for turn in range(runs + 1):
        for name, network in networks.items():
            start = time.perf_counter()
            network.predict(x, threads=1)
            if turn:
                shortest[name] = min(shortest[name], (time.perf_counter() - start) * 1e3)
    return shortest


def _kept_latencies(path, arms):
    """Those of an earlier call, if it measured all of these networks together."""
    if path.exists() and not {*arms} <= {*read_json(path)}:
        path.unlink()
    return kept(path, lambda: latencies(path.parent, arms))


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """Summarize accuracies over the seeds: mean, deviation, differences to another network.

    Returns
    -------
    dict
        Name -> ``accuracies``, ``mean``, ``std`` (None for one seed), ``differences`` to the
        network that ``result["against"]`` names (seed by seed), ``difference`` (their mean),
        ``difference_std``.
    """
    accuracy: dict[str, list[float]] = {name: [] for name in result["arms"]}
    for row in result["runs"]:
        accuracy[row["name"]].append(row["test_accuracy"])
    networks = {}
    for name, values in accuracy.items():
        differences = np.array(values) - accuracy[result["against"][name]]
        difference = mean_and_std(differences)
        networks[name] = {
            "accuracies": values,
            **mean_and_std(values),
            "differences": differences.tolist(),
            "difference": difference["mean"],
            "difference_std": difference["std"],
        }
    return networks


EXPERIMENTS: dict[str, Experiment] = {
    name: Experiment(
        name, Config, phases, report.text, report.PICTURES, load_for,
        quick=QUICK, seeds=seeds, arms=arms,
        takes="10 to 45 minutes a network on CIFAR-10",
        description=f"Train {networks}\nTables (report.md), figures (result.json) and pictures go "
        "to RUN. Repeat the command\nafter an interruption.",
        examples=(
            f"tinybnn reproduce {name} --quick",
            f"TINYBNN_DATA=DIR tinybnn reproduce {name} --seeds {seeds} --epochs 25",
        ),
    )
    for name, seeds, arms, networks in (
        (
            "bdnet-ablation", 3, ABLATION,
            "MobileNet V1 with binary depth-wise convolutions: naive, with the shortcut before\n"
            "the batch norm, with the 1.58-bit convolution, with both.",
        ),
        (
            "bdnet-training", 3, TRAINING,
            "BD-Net-A binarized at once or in two steps (activations first, weights second),\n"
            "taught by the labels or by a float network of the same width.",
        ),
        (
            "bdnet-table2", 1, TABLE_2,
            "MobileNet V1 as float network, ReActNet, AdaBin and BD-Net, ShuffleNet V1 and\n"
            "MobileNet V3 with and without broadcast residual.",
        ),
    )
}  # fmt: skip
