"""McMahan et al. 2017, Table 2: rounds of federated averaging to 97% on MNIST with the 2NN.

A hundred clients with 600 images each, dealt out at random (IID) or as two shards of 300 images of
one label; ten of them (C = 0.1) train in each round for one epoch (E = 1) with batches of 10. The
paper's 2NN has two hidden layers of 200 units with ReLU; it needed 87 rounds, or 664 with shards.

It is compared with a binary network of the same widths, whose weights are sent up as floats, or as
one bit: the sign of the update. What follows its layers is one of

    batch     batch norms, averaged
    local     batch norms that each client keeps (FedBN)
    frozen    batch norms with the statistics that the untrained network has on a few training
              images without labels, which then count as public; scale and shift are frozen too
    layer     layer norms on hidden sums
    none      no norm: sums divided by the root of their number, and a learned shift

With local batch norms there are as many models as clients. Two accuracies are measured: that of
each client with its own norms on test images of all classes, as for the other arms, and the
*personalised* one on test images of the classes that the client has itself; both are means over the
clients, weighted by samples, after the last round the personalised one of all arms. The clients of
a local arm are tested on every tenth image only, and those that have not trained yet are left out.

The paper takes for each entry the best of several learning rates, and interpolates between rounds
on a curve that is made monotonic. Here each network has one rate for both partitions, and the first
round at the target counts. The rate of the 2NN was not searched for; those of the binary networks
can be chosen with `Config.validate`, on held-out training images. As in the paper, the target is a
test accuracy.

RUN holds a checkpoint for each training, written after each round: a repeated call resumes to the
same weights, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import tinybnn.experiments.hybnn.features as features
from tinybnn import datasets, federated, models, nn, optim, plots
from tinybnn.experiments.report import page, table
from tinybnn.experiments.runner import Experiment, Run, bar, kept, seeded
from tinybnn.experiments.settings import ImageConfig, setting
from tinybnn.training import evaluate
from tinybnn.typing import Array

WIDTHS: tuple[int, int] = (200, 200)
PAPER: dict[str, int] = {"iid": 87, "shards": 664}
PARTITIONS: dict[str, str] = {"iid": "IID", "shards": "two shards of one label each"}
PUBLIC = 200  # training images, without labels, that all sides know
BLOCK = 10  # rounds between two checks of the target


@dataclass(frozen=True)
class Config(ImageConfig):
    """What decides the figures; C, E and B are the paper's."""

    dataset: str = setting("mnist", f"{features.IMAGES}; with --quick digits", images=True)
    clients: int = setting(100, "clients", least=1)
    fraction: float = setting(0.1, "C, the share of the clients in a round", least=0, most=1)
    epochs: int = setting(1, "E, epochs of a client in a round", least=1)
    batch_size: int = setting(10, "B", least=2)
    rounds: int = setting(1000, "rounds after which a training ends", least=1)
    target: float = setting(0.97, "test accuracy at which a training ends", least=0, most=1)
    lr: float = setting(0.1, "learning rate of SGD, for the 2NN", above=0)
    lr_binary: float = setting(0.001, "learning rate of Adam, for the binary networks", above=0)
    step: float = setting(0.01, "step of the server, for signs of updates", above=0)
    lr_decay: float = setting(
        1.0, "factor of a client's rate from round to round", least=0.001, most=1
    )
    momentum: float = setting(0.0, "momentum of the server (FedAvgM)", least=0, most=0.999)
    proximal: float = setting(0.0, "the weight of the proximal term (FedProx)", least=0)
    validate: bool = setting(False, "test on held-out training images instead")


class Arm(NamedTuple):
    """A network and how its weights are sent.

    Attributes
    ----------
    title : str
    aggregation : callable
        Config -> Aggregation.
    build : callable
        (pixels, classes, rng) -> Module.
    optimizer : callable
        (parameters, config) -> Optimizer.
    norm : 'average', 'local' or 'frozen'
        How batch norms are treated; frozen ones keep the statistics of `PUBLIC` images.
    """

    title: str
    aggregation: Callable[[Config], federated.Aggregation]
    build: Callable[..., nn.Module]
    optimizer: Callable[..., optim.Optimizer]
    norm: str = "average"


def two_nn(pixels: int, classes: int, rng: np.random.Generator) -> nn.Sequential:
    """Build the paper's 2NN, (N, C, H, W) -> (N, classes): 199,210 parameters for MNIST."""
    layers, width = [nn.Flatten()], pixels
    for units in WIDTHS:
        layers += [nn.Linear(width, units, rng=rng), nn.ReLU()]
        width = units
    return nn.Sequential(*layers, nn.Linear(width, classes, rng=rng))


def _binary(norm, pixels, classes, rng):
    return models.mlp(pixels, WIDTHS, classes, rng=rng, norm=norm)


def _floats(config):
    return federated.FedAvg()


def _signs(config):
    return federated.SignOfUpdate(config.step)


# What follows a binary layer: title, norm of the network, treatment by the federation.
HEADS: dict[str, tuple[str, str, str]] = {
    "": ("", "batch", "average"),
    "-local": (", local batch norms", "batch", "local"),
    "-frozen": (", frozen batch norms", "batch", "frozen"),
    "-layer": (", layer norms", "layer", "average"),
    "-none": (", norm-free", "none", "average"),
}


ARMS: dict[str, Arm] = {
    "2nn": Arm(
        "2NN, FedAvg", lambda config: federated.FedAvg(), two_nn,
        lambda parameters, config: optim.SGD(parameters, lr=config.lr),
    )
} | {
    name + suffix: Arm(
        title + head, aggregation, partial(_binary, norm),
        lambda parameters, config: optim.Adam(parameters, lr=config.lr_binary), treatment,
    )
    for name, title, aggregation in (
        ("binary", "binary, FedAvg", _floats), ("binary-sign", "binary, 1 bit up", _signs),
    )
    for suffix, (head, norm, treatment) in HEADS.items()
}  # fmt: skip


def _load(config):
    """Training and test images; with `Config.validate` every sixth training image for testing."""
    data = features.load(config.dataset, config.limit)
    if config.validate:
        held_out = np.arange(len(data[0])) % 6 == 5
        data = data[0][~held_out], data[0][held_out]
    if 2 * config.clients > len(data[0]):  # a client has two shards
        raise ValueError(
            f"fedavg: {config.clients:,} clients are too many for {len(data[0]):,} training "
            "images, as each needs two; choose fewer"
        )
    return data


def _phases(run: Run, result: dict[str, Any]) -> Iterator[str]:
    data = run.options["data"]
    result |= {"images": {"train": len(data[0]), "test": len(data[1])}, "trainings": []}
    # Arms of earlier calls stay in the report.
    names = [name for name in ARMS if name in run.arms or [*run.out.glob(f"{name}-iid.json")]]
    result["command"] = EXPERIMENT.command(run.config, run.seeds, names)
    for seed in range(run.seeds):
        for name in names:
            for partition, title in PARTITIONS.items():
                path = run.out / f"{seeded(f'{name}-{partition}', seed)}.json"
                train = partial(
                    _train, run.out, name, partition, run.config, data, run.progress, seed
                )
                row = {"seed": seed} | kept(path, train)
                result["trainings"].append(row)
                reached = row["rounds_to_target"] or "not reached"
                best = f"best {max(row['accuracy']):.2%} in {len(row['accuracy'])} rounds"
                yield f"{ARMS[name].title}, {title}, seed {seed}: {best}, target: {reached}"


def split(labels: Array, partition: str, config: Config, seed: int = 0) -> list[Array]:
    """Deal out images: (N,) labels -> for each client the (n,) positions of its images."""
    if partition == "iid":
        return federated.iid(len(labels), config.clients, rng=seed)
    return federated.shards(labels, config.clients, rng=seed)


def _train(out, arm, partition, config, data, progress, seed=0):
    """The rounds of one training, to the target or to the last."""
    train, test = data
    aggregation, norm = ARMS[arm].aggregation(config), ARMS[arm].norm
    public, _ = next(iter(datasets.DataLoader(train, PUBLIC)))

    def build():
        pixels = int(np.prod(train.images.shape[1:]))
        model = ARMS[arm].build(pixels, len(train.classes), np.random.default_rng(seed))
        if norm == "frozen":
            federated.calibrate_norms(model, public)
        return model

    server = federated.Server(build(), aggregation, norm=norm, momentum=config.momentum, seed=seed)
    parts = split(train.labels, partition, config, seed)
    clients = [
        federated.Client(
            k, train[part], build(), aggregation, norm=norm, seed=seed,
            lr_decay=config.lr_decay, proximal=config.proximal,
            optimizer=lambda parameters: ARMS[arm].optimizer(parameters, config),
        )
        for k, part in enumerate(parts)
    ]  # fmt: skip
    if norm == "local":  # by each client that has trained
        test = test[::10]
    validation, history = datasets.DataLoader(test, 1000), federated.RoundHistory()
    with bar(None, "round", progress, config.rounds) as shown:
        shown.set_description(f"{arm}, {partition}")
        goal, reached = 0, None
        while reached is None and goal < config.rounds:
            # The first call of a run that was stopped restores all of its rounds.
            goal = min(max(goal, len(history)) + BLOCK, config.rounds)
            federated.run_rounds(
                server, clients, goal, fraction=config.fraction, epochs=config.epochs,
                batch_size=config.batch_size, validation=validation, history=history,
                checkpoint=out / f"{seeded(f'{arm}-{partition}', seed)}.npz", progress=False,
            )  # fmt: skip
            reached = rounds_to(config.target, history["val_accuracy"])
            shown.update(len(history) - shown.n)
            shown.set_postfix(accuracy=f"{history['val_accuracy'][-1]:.4f}")
    last = len(history) if reached is None else reached
    return {
        "arm": arm,
        "partition": partition,
        "accuracy": history["val_accuracy"][:last],
        "rounds_to_target": reached,
        "bytes_up": sum(history["bytes_up"][:last]),
        "bytes_down": sum(history["bytes_down"][:last]),
        "saving_up": history.ledger.saving("up"),
        "saving_down": history.ledger.saving("down"),
        "personalised": _personalised(server, clients, history, train.labels, parts, test),
        "seconds": sum(history["seconds"][:last]),
    }


def _personalised(server, clients, history, labels, parts, test):
    """Accuracy of the last round on test images of each client's own classes, weighted by samples.

    With local batch norms each client has its own, and those that never trained are left out.
    """
    is_local, loaders, figures = server.norm == "local", {}, []
    message = server.broadcast()
    trained = {number for row in history.rows for number in row["accepted"]}
    for client, part in zip(clients, parts, strict=True):
        own = tuple(np.unique(labels[part]).tolist())
        if own not in loaders:
            images = test[np.isin(test.labels, own)]
            loaders[own] = datasets.DataLoader(images, 1000), len(images)
        loader, count = loaders[own]
        if not count or (is_local and client.number not in trained):
            continue
        if is_local:
            accuracy = client.evaluate(message, loader)["accuracy"]
        else:  # one model for all: once for each set of classes
            if not isinstance(loaders[own][0], float):
                loaders[own] = evaluate(server.model, loader)["accuracy"], count
            accuracy = loaders[own][0]
        figures.append((accuracy, client.samples))
    if not figures:
        return None
    values, weights = zip(*figures, strict=True)
    return float(np.average(values, weights=weights))


def rounds_to(target: float, accuracies: list[float]) -> int | None:
    """Return the first round, counted from 1, whose accuracy reaches the target, or None."""
    return next((i for i, value in enumerate(accuracies, 1) if value >= target), None)


# -------------------------------------------------------------------------------------- the report


def text(result: dict[str, Any]) -> str:
    """Return ``report.md`` as text."""
    config = result["config"]
    is_paper = config["dataset"] == "mnist" and not config["limit"] and not config["validate"]
    tested_on = "held-out training images" if config["validate"] else "test images"
    targets = sorted({0.9, 0.95, 0.96, config["target"]})
    columns = {
        "": lambda row: ARMS[row["arm"]].title,
        "partition": lambda row: PARTITIONS[row["partition"]],
        "seed": lambda row: row.get("seed", 0),
        **{
            f"rounds to {t * 100:g}%": lambda row, t=t: rounds_to(t, row["accuracy"]) or "–"
            for t in targets
        },
        "paper, to 97%": lambda row: (
            PAPER[row["partition"]] if is_paper and row["arm"] == "2nn" else ""
        ),
        "best, %": lambda row: f"{max(row['accuracy']) * 100:.2f}",
        "last 10 rounds, %": lambda row: f"{np.mean(row['accuracy'][-10:]) * 100:.2f}",
        "own classes, %": lambda row: (
            "–" if row.get("personalised") is None else f"{row['personalised'] * 100:.2f}"
        ),
        "rounds in all": lambda row: len(row["accuracy"]),
        "MB up": lambda row: f"{row['bytes_up'] / 1e6:,.1f}",
        "MB down": lambda row: f"{row['bytes_down'] / 1e6:,.1f}",
        "float32 / sent up": lambda row: f"{row['saving_up']:.1f}",
        "seconds": lambda row: f"{row['seconds']:.0f}",
    }
    about = f"""{config["clients"]} clients, C = {config["fraction"]:g}, E = {config["epochs"]},
        B = {config["batch_size"]}; {result["images"]["train"]:,} images for training,
        {result["images"]["test"]:,} {tested_on}. 2NN: SGD with lr {config["lr"]:g}. Binary networks
        of the same widths: Adam with lr {config["lr_binary"]:g}, anew in each round; server step
        {config["step"]:g}; batch norms averaged, local (FedBN), or frozen with the statistics of
        the untrained network on {PUBLIC} training images; layer norms; or no norms.
        {_drift(config)}A training ends at {config["target"] * 100:g}% or after
        {config["rounds"]} rounds."""
    return page(
        f"Federated averaging on {config['dataset']}", result, about,
        table(result["trainings"], columns),
        """The paper's figures are the best of several learning rates, interpolated between rounds
        on a curve of the best accuracy so far; here one rate is used and whole rounds count.

        *own classes* is the personalised accuracy after the last round: each client is tested on
        images of the classes that it has itself, with its own batch norms where they are local; the
        mean over clients is weighted by samples. With local batch norms the other accuracies are
        means over clients, too, each with its own norms on every tenth image of all classes.""",
        "![Accuracy after each round](rounds.png)",
    )  # fmt: skip


def _drift(config):
    """The settings against drift that are in use, as a sentence."""
    used = [
        f"{text} {config[name]:g}"
        for name, text, usual in (
            ("lr_decay", "rates of clients times", 1), ("momentum", "server momentum", 0),
            ("proximal", "proximal term", 0),
        )
        if config.get(name, usual) != usual
    ]  # fmt: skip
    return f"{', '.join(used).capitalize()}. " if used else ""


def _draw(figure, result):
    """Draw the accuracy of the first seed after each round, for both partitions."""
    config, both = result["config"], figure.subplots(1, 2)
    name = "accuracy on held-out images, %" if config["validate"] else "test accuracy, %"
    for axes, (partition, title) in zip(both, PARTITIONS.items(), strict=True):
        lines = {
            ARMS[row["arm"]].title: np.multiply(row["accuracy"], 100)
            for row in result["trainings"]
            if row["partition"] == partition and not row.get("seed")
        }
        plots.curves(lines, name if axes is both[0] else "", "round", legend=False, ax=axes)
        plots.zoom(axes)
        axes.axhline(100 * config["target"], color="0.6", ls=":", label="target")
        axes.set_title(title)
        axes.grid(True, color="0.92")
        axes.set_axisbelow(True)
    plots.legend_beside(both[1])


EXPERIMENT = Experiment(
    "fedavg", Config, _phases, text, {"rounds.png": ((12, 4), _draw)}, _load,
    quick={"quick": True, "dataset": "digits", "clients": 10, "fraction": 0.3, "rounds": 3},
    arms=ARMS,
    takes="a quarter of an hour a training, two for each of --arms",
    description="Train McMahan's 2NN with 100 clients, IID and with two shards of one label each, "
    "and a\nbinary network of the same widths, with floats and with one bit up, its batch norms\n"
    "averaged, local, frozen, or replaced. The table (report.md), figures (result.json) and\n"
    "a picture go to RUN. Repeat the command after an interruption.",
    examples=("TINYBNN_DATA=DIR tinybnn reproduce fedavg", "tinybnn reproduce fedavg --quick"),
)  # fmt: skip
run: Callable[..., dict[str, Any]] = EXPERIMENT.run
