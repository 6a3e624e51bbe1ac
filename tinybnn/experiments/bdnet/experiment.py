"""BD-Net's experiments: what decides them, and the way through all networks and seeds."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import tinybnn.experiments.bdnet.report as report
from tinybnn import datasets, deploy
from tinybnn.experiments.bdnet.arms import chosen_arms
from tinybnn.experiments.bdnet.levels import draw_levels
from tinybnn.experiments.bdnet.training import train_arm
from tinybnn.experiments.report_text import mean_and_std
from tinybnn.experiments.run_folder import (
    as_options,
    check_least,
    kept,
    open_folder,
    provenance,
)
from tinybnn.storage import read_json, write_json

SIZE = 32  # pixels; smaller images are enlarged by a whole number


@dataclass(frozen=True)
class Config:
    """How the networks are trained: Adam, cross entropy, the rate stepped after each batch.

    Attributes
    ----------
    dataset : str
        A name for `datasets.load`.
    width : float
        Factor of all channel counts.
    base : 'reactnet' or 'adabin'
        What BD-Net is built on, in the networks that the paper has on both.
    epochs : int
        In all; of two steps each gets half, the second one more if they are odd.
    batch_size : int
    lr : float
        At the start of each step.
    schedule : 'cosine' or 'linear'
        How it goes to 0.
    two_step : bool
        First binary activations with real weights, then both binary, from the weights of the first
        step (Martinez et al. 2020, as ReActNet).
    distill : float
        From 0 to 1: how much of the target is what a float MobileNet V1 of the same width says
        about the same image, the rest is the label. 1 is ReActNet's distributional loss.
    limit : int, optional
        Only the first so many images, for training and for testing each.
    quick : bool
        Whether it is a run that only shows that the code runs.
    """

    dataset: str = "cifar10"
    width: float = 0.25
    base: str = "reactnet"
    epochs: int = 25
    batch_size: int = 128
    lr: float = 3e-3
    schedule: str = "cosine"
    two_step: bool = False
    distill: float = 0.0
    limit: int | None = None
    quick: bool = False

    def __post_init__(self):
        check_least(self, epochs=1 + self.two_step, batch_size=2)
        for name in ("width", "lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"Config: {name} must be positive, got {getattr(self, name)!r}")
        for name, known in (("base", ("reactnet", "adabin")), ("schedule", ("cosine", "linear"))):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"Config: {name} must be {known[0]!r} or {known[1]!r}, "
                    f"got {getattr(self, name)!r}"
                )
        if not 0 <= self.distill <= 1:
            raise ValueError(f"Config: distill must lie in [0, 1], got {self.distill!r}")

    def command(self, experiment, seeds, arms=None):
        """The command that gives the figures of this configuration, for some networks or all."""
        some = [f"--arms {','.join(arms)}"] if arms else []
        first = f"tinybnn reproduce {experiment} --seeds {seeds}"
        return " ".join([first, *some, *as_options(self)])


# Runs everything, too briefly for good figures.
QUICK = {"quick": True, "dataset": "digits", "epochs": 2, "batch_size": 32, "limit": 256}


def run(
    experiment, out, config, seeds=3, arms=None, note="", threads=None, progress=True, say=print
):
    """Train the networks of an experiment, or go on where an earlier call was stopped.

    Parameters
    ----------
    experiment : str
        A key of `EXPERIMENTS`.
    out, threads, progress, say
        As in `hybnn.run`.
    config : Config
    seeds : int
        Seeds 0, 1, ... More may be added later.
    arms : sequence of str, optional
        Some of the networks; by default all. Another call may add the others, also from another
        process at the same time, as long as they share no network.
    note : str
        Stands in the report, for instance where the images come from.

    Returns
    -------
    dict
        The figures, as in ``result.json``.

    Raises
    ------
    ValueError
        If there is no such experiment or network; if the folder holds a run with another
        configuration, or something else.
    """
    chosen = chosen_arms(experiment, arms)
    data = load_for(config)
    out = Path(out)
    open_folder(out, config, say)
    result = {
        **provenance(experiment, config, config.command(experiment, seeds, arms), note=note),
        "images": {
            "shape": data[0].images.shape[1:], "train": len(data[0]), "test": len(data[1]),
        },
        "arms": {name: arm.title for name, arm in chosen.items()},
        "paper": {name: arm.published(config) for name, arm in chosen.items()},
        "against": _first_of_its_kind(chosen),
        "runs": [],
    }  # fmt: skip
    for seed in range(seeds):  # a seed that is done is a whole comparison
        for name, arm in chosen.items():
            row = train_arm(
                out / f"{name}-{seed}", arm, config, seed, data, threads, progress,
                {"name": name, "seed": seed, "command": result["command"]},
            )  # fmt: skip
            result["runs"].append(row)
            say(
                f"{arm.title}, seed {seed}: {row['test_accuracy']:.2%} after {row['epochs']} "
                f"epochs, {row['seconds']:.0f} s"
            )
            write_json(out / "result.json", result)
    result["summary"] = summary(result)
    result["latency"] = _kept_latencies(out / "latency.json", chosen)
    write_json(out / "result.json", result)
    draw_levels(out / "levels.png", data[1])
    report.write(out, result)
    say(f"{out / 'report.md'}: {len(result['runs'])} networks")
    return result


def load_for(config):
    """Training and test images of a configuration, as `load` gives them.

    Raises
    ------
    ValueError
        If there are fewer than a batch has.
    """
    data = load(config.dataset, config.limit)
    if config.batch_size > len(data[0]):
        raise ValueError(
            f"bdnet: a batch of {config.batch_size} is more than the {len(data[0])} training images"
        )
    return data


def _first_of_its_kind(arms):
    """For each network the first of the same architecture: what it is compared with."""
    first = {}
    return {name: first.setdefault(arm.build, name) for name, arm in arms.items()}


def load(name, limit=None):
    """Training and test images; those of less than 32 pixels are enlarged, pixel by pixel.

    Parameters
    ----------
    name : str
        For `datasets.load`.
    limit : int, optional
        Only the first so many of each.

    Returns
    -------
    train, test : Dataset
    """
    parts = []
    for part in datasets.load(name):
        part = part[:limit]
        times = max(1, SIZE // part.images.shape[2])
        larger = part.images.repeat(times, 2).repeat(times, 3)
        parts.append(dataclasses.replace(part, images=larger))
    return tuple(parts)


# -------------------------------------------------------------------------------- measured figures


def latencies(out, arms, repetitions=30):
    """Milliseconds of a prediction of the packed networks of seed 0, on one thread.

    Networks take turns, and the shortest run of each counts.

    Parameters
    ----------
    out : path
    arms : iterable of str
    repetitions : int

    Returns
    -------
    dict
        Name -> {"1": ..., "64": ...}, by the number of images.
    """
    packed = {name: deploy.PackedModel.load(out / f"{name}-0" / "packed.npz") for name in arms}
    rng = np.random.default_rng(0)
    found = {name: {} for name in packed}
    for batch, runs in ((1, repetitions), (64, max(1, repetitions // 6))):
        shape = next(iter(packed.values())).input_shape
        x = rng.standard_normal((batch, *shape)).astype(np.float32)
        for turn in range(runs + 1):
            for name, network in packed.items():
                start = time.perf_counter()
                network.predict(x, threads=1)
                spent = (time.perf_counter() - start) * 1e3
                if turn:  # the first run compiles and lays memory out
                    found[name][str(batch)] = min(spent, found[name].get(str(batch), spent))
    return found


def _kept_latencies(path, arms):
    """Those of an earlier call, if it measured all of these networks together."""
    if path.exists() and not {*arms} <= {*read_json(path)}:
        path.unlink()
    return kept(path, lambda: latencies(path.parent, arms))


def summary(result):
    """Accuracy over the seeds: mean, standard deviation, and the differences to another network.

    Which one ``result["against"]`` says.

    Returns
    -------
    dict
        Name -> ``accuracies``, ``mean``, ``std`` (None for one seed), ``differences`` (seed by
        seed), ``difference`` (their mean), ``difference_std``.
    """
    accuracy = {name: [] for name in result["arms"]}
    for row in result["runs"]:
        accuracy[row["name"]].append(row["test_accuracy"])
    found = {}
    for name, values in accuracy.items():
        differences = np.array(values) - accuracy[result["against"][name]]
        difference = mean_and_std(differences)
        found[name] = {
            "accuracies": values,
            **mean_and_std(values),
            "differences": differences.tolist(),
            "difference": difference["mean"],
            "difference_std": difference["std"],
        }
    return found
