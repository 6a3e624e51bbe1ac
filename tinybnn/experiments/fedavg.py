"""McMahan et al. 2017, Table 2: rounds of federated averaging to 97% on MNIST with the 2NN.

A hundred clients with 600 images each, dealt out at random (IID) or as two shards of 300 images of
one label; ten of them (C = 0.1) train in each round for one epoch (E = 1) with batches of 10. The
paper's 2NN has two hidden layers of 200 units with ReLU; it needed 87 rounds, or 664 with shards.

Beside it stands a binary network of the same widths, whose weights go up as floats, or as one bit:
the sign of the update. Its batch norms are averaged; or they are frozen, with the statistics that
the untrained network has on a few training images without labels, which count as public then.

The paper takes for each entry the best of several learning rates, and interpolates between rounds
on a curve that is made monotonic. Here there is one rate for each network, for both partitions, and
the first round at the target counts. That of the 2NN was not searched for; those of the binary
networks can be chosen with `Config.validate`. As in the paper, the target is one of test accuracy.

RUN holds a checkpoint for each training, written after each round: repeat the call after an
interruption, and it goes on to the same weights, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

import tinybnn.experiments.hybnn.features as features
from tinybnn import datasets, federated, models, nn, optim, plots, tables
from tinybnn.experiments.report_text import top, when_and_where, wrapped
from tinybnn.experiments.run_folder import (
    as_options,
    check_least,
    kept,
    open_folder,
    provenance,
)
from tinybnn.storage import write_atomic, write_json

WIDTHS = (200, 200)
PAPER = {"iid": 87, "shards": 664}
PARTITIONS = {"iid": "IID", "shards": "two shards of one label each"}
PUBLIC = 200  # training images, without labels, that all sides know
BLOCK = 10  # rounds between two looks at whether the target is reached


@dataclass(frozen=True)
class Config:
    """What decides the figures.

    Attributes
    ----------
    dataset : str
        See `hybnn.features.load`.
    clients : int
    fraction : float
        C.
    epochs, batch_size : int
        E and B.
    rounds : int
        After which a training ends if it has not reached the target.
    target : float
        Accuracy on test images at which it ends.
    lr : float
        Of SGD for the 2NN.
    lr_binary : float
        Of Adam for the binary networks, anew in each round.
    step : float
        Of the server, for signs of updates.
    limit : int, optional
        Only the first so many images, for training and for testing each.
    validate : bool
        Hold every sixth training image out and test on those, to choose settings without the test
        set.
    quick : bool
        Whether it is a run that only shows that the code runs.
    """

    dataset: str = "mnist"
    clients: int = 100
    fraction: float = 0.1
    epochs: int = 1
    batch_size: int = 10
    rounds: int = 1000
    target: float = 0.97
    lr: float = 0.1
    lr_binary: float = 0.001
    step: float = 0.01
    limit: int | None = None
    validate: bool = False
    quick: bool = False

    def __post_init__(self):
        check_least(self, clients=1, epochs=1, rounds=1, batch_size=2)

    def command(self, arms):
        """The command that gives the figures of this configuration, for some keys of `ARMS`."""
        some = [f"--arms {','.join(arms)}"] if set(arms) != set(ARMS) else []
        return " ".join(["tinybnn reproduce fedavg", *some, *as_options(self)])


# Runs everything, too briefly for good figures.
QUICK = {"quick": True, "dataset": "digits", "clients": 10, "fraction": 0.3, "rounds": 3}


class Arm(NamedTuple):
    """One network and the way in which its weights travel.

    Attributes
    ----------
    title : str
    aggregation : callable
        Config -> Aggregation.
    build : callable
        (pixels, classes, rng) -> Module.
    optimizer : callable
        (parameters, config) -> Optimizer.
    norm : 'average' or 'frozen'
        What becomes of batch norms; frozen ones keep the statistics of `PUBLIC` images.
    """

    title: str
    aggregation: Callable
    build: Callable
    optimizer: Callable
    norm: str = "average"


def two_nn(pixels, classes, rng):
    """The paper's 2NN: 199,210 parameters for MNIST."""
    layers, width = [nn.Flatten()], pixels
    for units in WIDTHS:
        layers += [nn.Linear(width, units, rng=rng), nn.ReLU()]
        width = units
    return nn.Sequential(*layers, nn.Linear(width, classes, rng=rng))


def _binary(pixels, classes, rng):
    return models.mlp(pixels, WIDTHS, classes, rng=rng)


def _sgd(parameters, config):
    return optim.SGD(parameters, lr=config.lr)


def _adam(parameters, config):
    return optim.Adam(parameters, lr=config.lr_binary)


def _sign(config):
    return federated.SignOfUpdate(config.step)


ARMS = {
    "2nn": Arm("2NN, FedAvg", lambda config: federated.FedAvg(), two_nn, _sgd),
    "binary": Arm("binary, FedAvg", lambda config: federated.FedAvg(), _binary, _adam),
    "binary-sign": Arm("binary, 1 bit up", _sign, _binary, _adam),
    "binary-sign-frozen": Arm("the same, frozen batch norms", _sign, _binary, _adam, norm="frozen"),
}


def run(out, config, arms=None, threads=None, progress=True, say=print):
    """Carry out the experiment, or go on where an earlier call was stopped.

    Parameters
    ----------
    out, threads, progress, say
        As in `hybnn.run`.
    config : Config
    arms : sequence of str, optional
        Keys of `ARMS`; all by default. Others may be added later.

    Returns
    -------
    dict
        The figures, as in ``result.json``.

    Raises
    ------
    ValueError
        If the folder holds a run with another configuration, or something else; if an arm is
        unknown.
    """
    from tinybnn.kernels.machine.threads import num_threads

    arms = list(ARMS) if arms is None else list(arms)
    if unknown := [arm for arm in arms if arm not in ARMS]:
        raise ValueError(f"fedavg: unknown arm {unknown[0]!r}, choose from {', '.join(ARMS)}")
    out = Path(out)
    files = {arm: [out / f"{arm}-{partition}.json" for partition in PARTITIONS] for arm in ARMS}
    chosen = [arm for arm in ARMS if arm in arms or any(path.exists() for path in files[arm])]
    data = features.load(config.dataset, config.limit)
    if config.validate:
        held_out = np.arange(len(data[0])) % 6 == 5
        data = data[0][~held_out], data[0][held_out]
    if 2 * config.clients > len(data[0]):  # a client has two shards
        raise ValueError(
            f"fedavg: {config.clients:,} clients are too many for {len(data[0]):,} training "
            "images, of which each needs two; choose fewer"
        )
    open_folder(out, config, say)
    result = {
        **provenance("fedavg", config, config.command(chosen)),
        "images": {"train": len(data[0]), "test": len(data[1])},
        "trainings": [],
    }
    with num_threads(threads):
        for arm in chosen:
            for partition, path in zip(PARTITIONS, files[arm], strict=True):
                found = kept(path, partial(_train, out, arm, partition, config, data, progress))
                result["trainings"].append(found)
                say(f"{ARMS[arm].title}, {PARTITIONS[partition]}: {_outcome(found)}")
                write_json(out / "result.json", result)
    write(out, result)
    say(f"{out / 'report.md'}")
    return result


def write(out, result):
    """Write ``report.md`` into the folder of a run, and its picture."""
    write_atomic(out / "report.md", text(result).encode())
    draw(out / "rounds.png", result)


def split(labels, partition, config):
    """Which client has which images."""
    if partition == "iid":
        return federated.iid(len(labels), config.clients)
    return federated.shards(labels, config.clients)


def _train(out, arm, partition, config, data, progress):
    """The rounds of one training, to the target or to the last."""
    train, test = data
    aggregation = ARMS[arm].aggregation(config)

    norm = ARMS[arm].norm
    public, _ = next(iter(datasets.DataLoader(train, PUBLIC)))

    def build():
        pixels = int(np.prod(train.images.shape[1:]))
        model = ARMS[arm].build(pixels, len(train.classes), np.random.default_rng(0))
        if norm == "frozen":
            federated.calibrate_norms(model, public)
        return model

    server = federated.Server(build(), aggregation, norm=norm)
    clients = [
        federated.Client(
            k, train[part], build(), aggregation, norm=norm,
            optimizer=lambda parameters: ARMS[arm].optimizer(parameters, config),
        )
        for k, part in enumerate(split(train.labels, partition, config))
    ]  # fmt: skip
    validation, history = datasets.DataLoader(test, 1000), federated.RoundHistory()
    bar = tqdm(total=config.rounds, unit="round", disable=not progress)
    bar.set_description(f"{arm}, {partition}")
    with bar:
        goal, reached = 0, None
        while reached is None and goal < config.rounds:
            # The first call of a run that was stopped brings all of its rounds back.
            goal = min(max(goal, len(history)) + BLOCK, config.rounds)
            federated.run_rounds(
                server, clients, goal, fraction=config.fraction, epochs=config.epochs,
                batch_size=config.batch_size, validation=validation, history=history,
                checkpoint=out / f"{arm}-{partition}.npz", progress=False,
            )  # fmt: skip
            reached = rounds_to(config.target, history["val_accuracy"])
            bar.update(len(history) - bar.n)
            bar.set_postfix(accuracy=f"{history['val_accuracy'][-1]:.4f}")
    last = len(history) if reached is None else reached
    return {
        "arm": arm,
        "partition": partition,
        "accuracy": history["val_accuracy"][:last],
        "rounds_to_target": reached,
        "bytes_up": sum(history["bytes_up"][:last]),
        "bytes_down": sum(history["bytes_down"][:last]),
        "saving_up": history.ledger.saving("up"),
        "seconds": sum(history["seconds"][:last]),
    }


def rounds_to(target, accuracies):
    """The first round, from 1, whose accuracy is at the target; None if there is none."""
    return next((i for i, value in enumerate(accuracies, 1) if value >= target), None)


# ------------------------------------------------------------------------------------- the report


def _outcome(found):
    """A training in a few words."""
    best = f"best {max(found['accuracy']):.2%}"
    if found["rounds_to_target"] is None:
        return f"target not reached in {len(found['accuracy'])} rounds, {best}"
    return f"{found['rounds_to_target']} rounds"


def text(result):
    """``report.md`` as text."""
    config = result["config"]
    is_paper = config["dataset"] == "mnist" and not config["limit"] and not config["validate"]
    tested_on = "held-out training images" if config["validate"] else "test images"
    targets = sorted({0.9, 0.95, 0.96, config["target"]})
    rows = []
    for found in result["trainings"]:
        cells = [rounds_to(target, found["accuracy"]) or "–" for target in targets]
        paper = PAPER[found["partition"]] if is_paper and found["arm"] == "2nn" else ""
        rows.append(
            [ARMS[found["arm"]].title, PARTITIONS[found["partition"]], *cells, paper,
             f"{max(found['accuracy']) * 100:.2f}", len(found["accuracy"]),
             f"{found['bytes_up'] / 1e6:,.1f}", f"{found['saving_up']:.1f}",
             f"{found['seconds']:.0f}"]
        )  # fmt: skip
    table = tables.markdown(
        ["", "", *(f"rounds to {t * 100:g}%" for t in targets), "paper, to 97%", "best, %",
         "rounds in all", "MB up", "float32 / sent up", "seconds"],
        rows,
    )  # fmt: skip
    about = wrapped(
        f"""{when_and_where(result)}. {config["clients"]} clients, C = {config["fraction"]:g}, E =
        {config["epochs"]}, B = {config["batch_size"]}; {result["images"]["train"]:,} images for
        training, {result["images"]["test"]:,} {tested_on}. 2NN: SGD with lr {config["lr"]:g}.
        Binary networks of the same widths: Adam with lr {config["lr_binary"]:g}, anew in each
        round; server step {config["step"]:g}; batch norms that are averaged, or frozen with the
        statistics of {PUBLIC} training images, of the untrained network. A training ends
        at {config["target"] * 100:g}% or after {config["rounds"]} rounds."""
    )
    note = wrapped(
        """The paper's figures are the best of several learning rates, interpolated between rounds
        on a curve of the best accuracy so far; here one rate is used and whole rounds count. One
        partition, one seed."""
    )
    start = top(f"Federated averaging on {config['dataset']}", result)
    return f"{start}\n{about}\n\n{table}\n{note}\n\n![](rounds.png)\n"


def draw(path, result):
    """Accuracy after each round, for both partitions."""
    figure = plots.figure(figsize=(12, 4))
    config, both = result["config"], figure.subplots(1, 2)
    name = "accuracy on held-out images, %" if config["validate"] else "test accuracy, %"
    for axes, (partition, title) in zip(both, PARTITIONS.items(), strict=True):
        lines = {
            ARMS[found["arm"]].title: np.multiply(found["accuracy"], 100)
            for found in result["trainings"]
            if found["partition"] == partition
        }
        plots.curves(lines, name if axes is both[0] else "", "round", legend=False, ax=axes)
        plots.zoom(axes)
        axes.axhline(100 * config["target"], color="0.6", ls=":", label="target")
        axes.set_title(title)
        axes.grid(True, color="0.92")
        axes.set_axisbelow(True)
    plots.legend_beside(both[1])
    plots.save(figure, path)
