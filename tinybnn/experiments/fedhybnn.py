"""FedHyBNN: the heads of HyBNN, trained by clients that send one bit for a weight, or more.

Section 4 of the paper and its Figure 7: three clients, five tasks of two classes each. All have the
same frozen encoder; each turns its own images into codes, and only the binary head travels, one for
each task. Beside the paper's federated averaging stand the other aggregations of
`tinybnn.federated`, and the head that one machine with all the codes trains in as many epochs.

Each seed has an autoencoder of its own in RUN/seed-N, and each training a file with its figures; a
call that was stopped goes on behind the last of them. In RUN itself are result.json, report.md and
the pictures.

The accuracy after each round is that on test images. The test set was not quite untouched by the
choice of settings: the autoencoder's recipe is that of `hybnn`, which says how it came about; and
on the digits B = 16 took the place of B = 10, to save time, when the test accuracies with 10 had
been seen (seed 0, another autoencoder, after 20 rounds, IID: centralized 98.05%, FedAvg 97.19%,
sign of the update 96.62%; FedAvg with skewed labels 75.05%).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from tinybnn import analysis, datasets, federated, models, nn, optim, plots, training
from tinybnn.experiments import hybnn
from tinybnn.experiments import hybnn_features as features
from tinybnn.experiments.hybnn_networks import HIDDEN
from tinybnn.experiments.run_folder import kept, markdown_table, open_folder, wrapped, write_json
from tinybnn.models import BinaryVAE
from tinybnn.storage import write_atomic


@dataclass(frozen=True)
class Config:
    """What decides the figures of a seed.

    Attributes
    ----------
    dataset : str
        See `hybnn_features.load`.
    estimator, rate_weight
        Of the autoencoder, by default as in `hybnn.Config`.
    bits : int
        Of a code.
    epochs_vae : int
        Of the autoencoder.
    rounds, clients : int
    epochs, batch_size : int
        E and B of a client in a round.
    lr : float
        Of Adam, which starts anew in each round; constant.
    step : float
        Of the server, where signs of updates are sent.
    alpha : float
        Of the Dirichlet distribution that skews the labels.
    limit : int, optional
        Only the first so many images, for training and for testing each.
    """

    dataset: str = "digits"
    estimator: str = hybnn.Config.estimator
    rate_weight: float = hybnn.Config.rate_weight
    bits: int = 200
    epochs_vae: int = 20
    rounds: int = 20
    clients: int = 3
    epochs: int = 1
    batch_size: int = 16
    lr: float = 0.01
    step: float = 0.02
    alpha: float = 0.3
    limit: int | None = None

    def __post_init__(self):
        for name in ("bits", "epochs_vae", "rounds", "clients", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"Config: {name} must be >= 1, got {getattr(self, name)!r}")
        if self.batch_size < 2:
            raise ValueError(f"Config: batch_size must be >= 2, got {self.batch_size!r}")

    def command(self, seeds):
        """The command that gives the figures of this configuration."""
        words = ["tinybnn reproduce fedhybnn"]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                words.append(f"--{field.name.replace('_', '-')} {value}")
        return " ".join([*words, f"--seeds {seeds}"])


# Runs everything, too briefly for good figures.
QUICK = {"epochs_vae": 2, "rounds": 3, "limit": 600}


class Arm(NamedTuple):
    """One way to put the clients' work together.

    Attributes
    ----------
    title : str
    aggregation : callable
        Config -> Aggregation.
    norm : str
        What happens to batch norms, see `federated.Head`.
    """

    title: str
    aggregation: Callable
    norm: str = "average"


def _signs(**options):
    return lambda config: federated.SignOfUpdate(config.step, **options)


ARMS = {
    "fedavg": Arm("FedAvg, float32", lambda config: federated.FedAvg()),
    "float16": Arm("FedAvg, float16", lambda config: federated.FedAvg("float16")),
    "stochastic": Arm("stochastic 1 bit up", lambda config: federated.StochasticSign()),
    "sign": Arm("sign of the update, 1 bit up", _signs()),
    "sign-local": Arm("the same, local batch norms", _signs(), "local"),
    "sign-frozen": Arm("the same, frozen batch norms", _signs(), "frozen"),
    "sign-both": Arm("sign of the update, 1 bit both ways", _signs(both=True)),
    "vote": Arm("majority vote of weight signs", lambda config: federated.MajorityVote()),
}

PARTITIONS = {"iid": "IID", "skewed": "labels skewed"}


def run(out, config, seeds=1, threads=None, progress=True, say=print):
    """Carry out the experiment, or go on where an earlier call was stopped.

    Parameters
    ----------
    out : path
        Folder of the run, made if it does not exist.
    config : Config
    seeds : int
        Seeds 0, 1, ...; more may be added later.
    threads : int, optional
        As for `training.fit`.
    progress : bool
        Show progress bars on stderr.
    say : callable
        Gets a line of text at a time.

    Returns
    -------
    dict
        The figures, as in ``result.json``.

    Raises
    ------
    ValueError
        If the folder holds a run with another configuration, or something else.
    """
    from tinybnn.kernels.threads import num_threads

    out = Path(out)
    data = features.load(config.dataset, config.limit)
    tasks = [[2 * i, 2 * i + 1] for i in range(len(data[0].classes) // 2)]
    open_folder(out, config)
    result = {
        "name": "fedhybnn",
        "config": dataclasses.asdict(config),
        "command": config.command(seeds),
        "machine": analysis.machine(),
        "date": time.strftime("%Y-%m-%d"),
        "images": {"train": len(data[0]), "test": len(data[1])},
        "tasks": [" / ".join(data[0].classes[c] for c in task) for task in tasks],
        "arms": {name: arm.title for name, arm in ARMS.items()},
        "partitions": PARTITIONS,
        "seeds": [],
    }
    with num_threads(threads):
        for seed in range(seeds):
            result["seeds"].append(_seed(out, seed, config, data, tasks, threads, progress, say))
            write_json(out / "result.json", result)
    result["summary"] = summary(result)
    write_json(out / "result.json", result)
    write_atomic(out / "report.md", report(result).encode())
    draw(out, result)
    say(f"{out / 'report.md'}: {headline(result)}")
    return result


def _seed(out, seed, config, data, tasks, threads, progress, say):
    """All trainings of one seed; its figures."""
    folder = out / f"seed-{seed}"
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    vae = BinaryVAE(data[0].images.shape[1:], config.bits, config.estimator, rng=rng)
    features.train_vae(
        folder / "vae.npz", vae, data[0], epochs=config.epochs_vae, rate_weight=config.rate_weight,
        rng=rng, threads=threads, progress=progress,
    )  # fmt: skip
    words = [
        features.codes(folder / f"codes-{name}.npz", vae, images)
        for name, images in zip(("train", "test"), data, strict=True)
    ]
    figures = {"seed": seed, "centralized": [], "federated": {p: {} for p in PARTITIONS}}
    jobs = [(None, None), *((p, arm) for p in PARTITIONS for arm in ARMS)]
    bar = tqdm(total=len(jobs) * len(tasks), unit="training", disable=not progress)
    start = time.perf_counter()
    with bar:
        for i, task in enumerate(tasks):
            own = [_codes_of(task, *pair, config.bits) for pair in zip(words, data, strict=True)]
            for partition, name in jobs:
                bar.set_description(f"seed {seed}, task {i + 1}, {name or 'centralized'}")
                file = f"task-{i}-{f'{partition}-{name}' if name else 'centralized'}.json"
                train = partial(_centralized, own, seed, config)
                if name:
                    train = partial(_federated, own, seed, config, partition, ARMS[name])
                found = kept(folder / file, train)
                if name:
                    figures["federated"][partition].setdefault(name, []).append(found)
                else:
                    figures["centralized"].append(found)
                bar.update()
    means = {
        name: np.mean([task["accuracy"][-1] for task in found])
        for name, found in figures["federated"]["iid"].items()
    }
    say(
        f"seed {seed}: centralized "
        f"{np.mean([task['accuracy'][-1] for task in figures['centralized']]):.2%}, "
        + ", ".join(f"{name} {mean:.2%}" for name, mean in means.items())
        + f" ({time.perf_counter() - start:.0f} s)"
    )
    return figures


def _codes_of(classes, words, images, bits):
    """The codes of some classes as a Dataset of bits, whose labels are 0, 1, ..."""
    from tinybnn.kernels.bits import unpack

    rows = np.flatnonzero(np.isin(images.labels, classes))
    ones = (unpack(words[rows], bits, np.int8) > 0).astype(np.uint8)
    labels = np.searchsorted(classes, images.labels[rows])
    return datasets.from_arrays(ones[:, None, None, :], labels, maximum=1)


def _head(config, seed):
    """The paper's head; the first weights of all sides."""
    head = models.BinaryMLP(config.bits, HIDDEN, 2, rng=np.random.default_rng(seed))
    return nn.Sequential(nn.Flatten(), head)


def _centralized(own, seed, config):
    """One machine with all codes: E epochs in the place of each round."""
    train, test = own
    model, rng = _head(config, seed), np.random.default_rng(seed)
    loader = datasets.DataLoader(
        train, config.batch_size, shuffle=True, rng=rng,
        drop_last=len(train) % config.batch_size == 1,  # batch norm needs two
    )  # fmt: skip
    history = training.fit(
        model, loader, epochs=config.rounds * config.epochs, progress=False,
        optimizer=optim.Adam(model.parameters(), lr=config.lr),
        validation=datasets.DataLoader(test, 1000),
    )  # fmt: skip
    return {"accuracy": history["val_accuracy"][config.epochs - 1 :: config.epochs]}


def split(labels, partition, seed, config):
    """Which client has which codes of a task."""
    if partition == "iid":
        return federated.iid(len(labels), config.clients, rng=seed)
    return federated.dirichlet(labels, config.clients, config.alpha, rng=seed, least=2)


def _federated(own, seed, config, partition, arm):
    """The rounds of one aggregation; figures, a number for each round."""
    train, test = own
    aggregation = arm.aggregation(config)

    def build():
        model = _head(config, seed)
        if arm.norm == "frozen":  # statistics of random codes, which all sides can draw
            codes = np.random.default_rng(seed).choice(np.float32([-1, 1]), (1000, config.bits))
            federated.calibrate_norms(model, codes)
        return model

    server = federated.Server(build(), aggregation, norm=arm.norm, seed=seed)
    entries = federated.Head(server.model, arm.norm).entries
    weights = [entry for entry in entries if entry.kind == "latent"]
    first = _signs_of(server.model, weights)
    clients = [
        federated.Client(
            k, train[part], build(), aggregation, norm=arm.norm, seed=seed,
            optimizer=lambda parameters: optim.Adam(parameters, lr=config.lr),
        )
        for k, part in enumerate(split(train.labels, partition, seed, config))
    ]  # fmt: skip
    history = federated.run_rounds(
        server, clients, config.rounds, epochs=config.epochs, batch_size=config.batch_size,
        validation=datasets.DataLoader(test, 1000), progress=False,
    )  # fmt: skip
    bits = 1 if aggregation.up == "bits" else 8 * np.dtype(aggregation.up).itemsize
    return {
        "accuracy": history["val_accuracy"],
        "bytes_up": history["bytes_up"],
        "bytes_down": history["bytes_down"],
        "float32_bytes": config.clients * server.float32_size,  # of a round, each way
        "saving_up": history.ledger.saving("up"),
        "saving_down": history.ledger.saving("down"),
        "saving_weights_up": 32 / _bits_on_the_wire(weights, bits),
        "samples": [client.samples for client in clients],
        "flipped": float(np.mean(_signs_of(server.model, weights) != first)),
    }


def _signs_of(model, entries):
    state = model.state_dict()
    return np.concatenate([state[entry.name].ravel() >= 0 for entry in entries])


def _bits_on_the_wire(entries, bits):
    """Bits of a weight, with the bytes that rows are filled up to."""
    total = sum(int(np.prod(entry.shape)) for entry in entries)
    if bits > 1:
        return bits
    rows = (entry.shape[0] * -(-int(np.prod(entry.shape[1:])) // 8) for entry in entries)
    return 8 * sum(rows) / total


# ------------------------------------------------------------------------------------- the report


def _tables(result):
    """name -> (seeds, tasks, rounds) accuracies, of the centralized head as of each arm."""
    tables = {("", "centralized"): [seed["centralized"] for seed in result["seeds"]]}
    for partition in result["partitions"]:
        for arm in result["arms"]:
            tables[partition, arm] = [s["federated"][partition][arm] for s in result["seeds"]]
    return {
        key: np.array([[task["accuracy"] for task in seed] for seed in found])
        for key, found in tables.items()
    }


def summary(result):
    """Mean over the tasks after some rounds, mean and deviation over the seeds."""
    tables = _tables(result)
    rounds = milestones(result["config"]["rounds"])
    central = tables["", "centralized"].mean(1)  # (seeds, rounds)
    found = {"rounds": rounds, "centralized": [_spread(central[:, r - 1]) for r in rounds]}
    for (partition, arm), table in tables.items():
        if partition:
            mean = table.mean(1)
            found.setdefault(partition, {})[arm] = {
                "accuracy": [_spread(mean[:, r - 1]) for r in rounds],
                "gap": [_spread(central[:, r - 1] - mean[:, r - 1]) for r in rounds],
            }
    return found


def milestones(rounds):
    """The rounds that stand in tables."""
    return sorted({r for r in (1, 5, 10, 20, 50, 100) if r < rounds} | {rounds})


def _spread(values):
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": std}


def _percent(value):
    spread = "" if value["std"] is None else f" ± {value['std'] * 100:.2f}"
    return f"{value['mean'] * 100:.2f}{spread}"


def headline(result):
    """One line: what the one-bit uplink lacks to the centralized head."""
    found = result["summary"]
    last = found["rounds"][-1]
    words = [f"centralized {_percent(found['centralized'][-1])}"]
    for arm in ("fedavg", "sign"):
        words.append(f"{ARMS[arm].title} {_percent(found['iid'][arm]['accuracy'][-1])}")
    return f"after {last} rounds, " + "; ".join(words)


def report(result):
    """``report.md`` as text."""
    config, machine, found = result["config"], result["machine"], result["summary"]
    first = result["seeds"][0]
    sizes = first["federated"]["iid"]["fedavg"][0]["samples"]
    trial = "\n**A trial of the program: the figures mean nothing.**\n" if config["limit"] else ""
    about = wrapped(
        f"""{result["date"]}, {machine["processor"]}, NumPy {machine["numpy"]}, Numba
        {machine["numba"]}. Seeds: {len(result["seeds"])}, each with an autoencoder of its own
        ({config["epochs_vae"]} epochs, {config["estimator"]}, rate × {config["rate_weight"]:g}).
        {config["clients"]} clients, E = {config["epochs"]},
        B = {config["batch_size"]}, Adam with lr {config["lr"]:g} anew in each round, server step
        {config["step"]:g}. IID, a client has {min(sizes)} to {max(sizes)} codes of the first task;
        skewed are labels by a Dirichlet distribution with α = {config["alpha"]:g}. The centralized
        head is trained on all codes for E epochs in the place of each round."""
    )
    choice = wrapped(
        """Accuracies are those on test images after each round; no round was chosen by them. The
        settings were not chosen quite without the test set: the autoencoder's recipe is the second
        one of `reproduce hybnn`, and B = 16 took the place of B = 10, to save time, after test
        accuracies on the digits had been seen."""
    )
    top = f"    {result['command']}\n{trial}\n{about}\n\n{choice}\n"
    sections = [
        f"# FedHyBNN on {config['dataset']}\n\n{top}",
        _wire(result),
    ]
    header = [f"after {r} round{'s' if r > 1 else ''}" for r in found["rounds"]]
    for partition, title in result["partitions"].items():
        rows = [["centralized", *map(_percent, found["centralized"]), "", ""]]
        for arm, name in result["arms"].items():
            own = found[partition][arm]
            flipped = np.mean(
                [t["flipped"] for s in result["seeds"] for t in s["federated"][partition][arm]]
            )
            rows.append(
                [name, *map(_percent, own["accuracy"]), _percent(own["gap"][-1]),
                 f"{flipped * 100:.1f}"]
            )  # fmt: skip
        table = markdown_table(
            ["accuracy, mean of the tasks, %", *header, "points below centralized",
             "weights flipped, %"],
            rows,
        )  # fmt: skip
        pictures = (
            f"![Accuracy after each round](rounds-{partition}.png)\n"
            f"![Accuracy against bytes](bytes-{partition}.png)\n"
        )
        sections.append(f"## {title} (Figure 7)\n\n{table}\n{pictures}")
    sections.append(_reading(result))
    sections.append(
        "## Who has which codes\n\n![Partitions of the first task](partitions.png)\n\n"
        + wrapped(
            """The paper: three clients, and "in under 20 epochs they were able to reach the same
            accuracy as the centralized HyBNN"; its Figure 7 gives no figures."""
        )
        + "\n"
    )
    return "\n".join(sections)


def _reading(result):
    """What the tables say about two questions, in sentences."""
    found = result["summary"]

    def last(partition, arm):
        return _percent(found[partition][arm]["accuracy"][-1])

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


def _wire(result):
    rows = []
    for arm, title in result["arms"].items():
        found = result["seeds"][0]["federated"]["iid"][arm][0]
        rows.append(
            [title, f"{found['bytes_up'][-1]:,}", f"{found['saving_up']:.1f}",
             f"{found['saving_weights_up']:.1f}", f"{found['bytes_down'][-1]:,}",
             f"{found['saving_down']:.1f}"]
        )  # fmt: skip
    table = markdown_table(
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


# --------------------------------------------------------------------------------------- pictures


def draw(out, result):
    """Accuracy after each round and against bytes for each partition; who has which codes."""
    tables = _tables(result)
    central = tables["", "centralized"].mean((0, 1))
    for partition, title in result["partitions"].items():
        lines = {"centralized": central}
        for arm, name in result["arms"].items():
            lines[name] = tables[partition, arm].mean((0, 1))
        figure = plots.figure(figsize=(12, 4.4))
        left, right = figure.subplots(1, 2)
        _draw_lines(left, {name: (range(1, len(y) + 1), y) for name, y in lines.items()})
        left.set(xlabel="round", title=f"{title}: mean of the tasks")
        left.legend(frameon=False, fontsize="small")
        for i, task in enumerate(result["tasks"]):
            y = tables[partition, "fedavg"][:, i].mean(0)
            (line,) = right.plot(range(1, len(y) + 1), y, label=task)
            y = tables["", "centralized"][:, i].mean(0)
            right.plot(range(1, len(y) + 1), y, ":", color=line.get_color())
        right.set(xlabel="round", title=f"{title}: FedAvg by task (dotted: centralized)")
        right.legend(frameon=False, fontsize="small")
        figure.savefig(out / f"rounds-{partition}.png", dpi=110)

        figure, spent = plots.figure(figsize=(7, 4.4)), {}
        for arm, name in result["arms"].items():
            sent = result["seeds"][0]["federated"][partition][arm][0]
            both = np.cumsum(np.add(sent["bytes_up"], sent["bytes_down"])) / 1e3
            spent[name] = both, lines[name]
        axes = figure.subplots()
        _draw_lines(axes, spent)
        axes.axhline(central[-1], color="0.6", ls=":", label="centralized")
        axes.set(xscale="log", xlabel="kB sent for a task, both ways, all clients", title=title)
        axes.legend(frameon=False, fontsize="small")
        figure.savefig(out / f"bytes-{partition}.png", dpi=110)
    _draw_partitions(out / "partitions.png", result)


def _draw_lines(axes, lines):
    for name, (x, y) in lines.items():
        style = {"color": "0.3", "ls": ":"} if name == "centralized" else {}
        axes.plot(x, y, label=name, **style)
    axes.set(ylabel="test accuracy")
    axes.grid(True, color="0.92")
    axes.set_axisbelow(True)


def _draw_partitions(path, result):
    config = Config(**result["config"])
    images, _ = features.load(config.dataset, config.limit)
    labels = images.labels[np.isin(images.labels, [0, 1])]
    figure = plots.figure(figsize=(9, 2.4))
    for axes, (partition, title) in zip(
        figure.subplots(1, 2), result["partitions"].items(), strict=True
    ):
        plots.partition(axes, labels, split(labels, partition, 0, config), images.classes)
        axes.set_title(title)
    figure.savefig(path, dpi=110)
