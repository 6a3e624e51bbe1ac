"""BD-Net: the ablation of Table 6, and accuracy against operations and measured time (Fig. 1).

``bdnet-ablation``
    MobileNet V1 with binary depth-wise convolutions: naive, with the shortcut before the batch
    norm, with the 1.58-bit convolution, with both.
``bdnet-table2``
    MobileNet V1 as float network, ReActNet, AdaBin and BD-Net; ShuffleNet V1 and MobileNet V3 with
    and without broadcast residual (Tables 2, 4 and 5).

The paper's settings stand in an appendix that we could not read; ours are those of `Config`. All
networks of a seed see the same images in the same order. Each network has a folder in RUN, and what
has its file there is not computed again; training goes on from its last epoch, bit for bit:

    step-1.npz, step-2.npz    the state after the last complete epoch of each step of training
    packed.npz                the compiled network
    result.json               its figures: accuracy on test images after the last epoch, cost, and
                              what `layer_statistics` says about its k×k layers

In RUN itself are result.json, report.md and the pictures.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tinybnn import analysis, datasets, deploy, models, nn, optim, plots, training
from tinybnn import functional as F
from tinybnn.experiments.run_folder import kept, markdown_table, open_folder, wrapped, write_json
from tinybnn.models.blocks import Layer
from tinybnn.quantizers import EdeSign
from tinybnn.storage import write_atomic
from tinybnn.tensor import Tensor, no_grad, trace

SIZE = 32  # pixels; smaller images are enlarged by a whole number


@dataclass(frozen=True)
class Arm:
    """A network that takes part.

    Attributes
    ----------
    title : str
    build : callable
        `models.mobilenet_v1` or one of its kind.
    method : str
    options : dict
        Further keyword arguments.
    paper : dict
        Published accuracy in percent, by base, or under ``""`` for any.
    """

    title: str
    build: Callable
    method: str
    options: dict = field(default_factory=dict)
    paper: dict = field(default_factory=dict)

    def network(self, config, shape, classes, rng):
        """The untrained network for images of a shape (C, H, W)."""
        return self.build(
            config.width, shape[1], classes, self.method, base=config.base, in_channels=shape[0],
            rng=rng, **self.options,
        )  # fmt: skip


_V1, _SHUFFLE, _V3 = models.mobilenet_v1, models.shufflenet_v1, models.mobilenet_v3_small
_ALONE = {"broadcast_residual": False}

# Table 6 gives CIFAR-100 at full width. Its last row is Table 2's BD-Net-A (AdaBin), so that is the
# base; its third row is the first with the 1.58-bit convolution, not the second.
ABLATION = {
    "naive": Arm(
        "naive", _V1, "bdnet-a", {"dual": False, "pre_bn": False}, {"": 54.94}
    ),
    "dual": Arm("+ 1.58-bit", _V1, "bdnet-a", {"pre_bn": False}, {"": 56.18}),
    "pre-bn": Arm("+ pre-BN", _V1, "bdnet-a", {"dual": False}, {"": 56.93}),
    "both": Arm("both: BD-Net-A", _V1, "bdnet-a", {}, {"": 58.28}),
}  # fmt: skip

# CIFAR-10 at full width.
TABLE_2 = {
    "float": Arm("MobileNet V1, float", _V1, "float", {}, {"": 92.26}),
    "reactnet": Arm("MobileNet V1, ReActNet", _V1, "reactnet", {}, {"": 71.04}),
    "adabin": Arm("MobileNet V1, AdaBin", _V1, "adabin", {}, {"": 81.60}),
    "bdnet-a": Arm(
        "MobileNet V1, BD-Net-A", _V1, "bdnet-a", {}, {"reactnet": 78.37, "adabin": 84.87}
    ),
    "bdnet-b": Arm(
        "MobileNet V1, BD-Net-B", _V1, "bdnet-b", {}, {"reactnet": 89.93, "adabin": 90.48}
    ),
    "shufflenet-reactnet": Arm(
        "ShuffleNet V1, ReActNet", _SHUFFLE, "reactnet", _ALONE, {"": 17.33}
    ),
    "shufflenet-reactnet-br": Arm(
        "ShuffleNet V1, ReActNet, broadcast", _SHUFFLE, "reactnet", {}, {"": 79.80}
    ),
    "shufflenet-bdnet-b-br": Arm(
        "ShuffleNet V1, BD-Net-B, broadcast", _SHUFFLE, "bdnet-b", {}, {"reactnet": 81.57}
    ),
    "mobilenet-v3-reactnet": Arm("MobileNet V3, ReActNet", _V3, "reactnet", _ALONE, {"": 19.08}),
    "mobilenet-v3-reactnet-br": Arm(
        "MobileNet V3, ReActNet, broadcast", _V3, "reactnet", {}, {"": 86.21}
    ),
    "mobilenet-v3-bdnet-b-br": Arm(
        "MobileNet V3, BD-Net-B, broadcast", _V3, "bdnet-b", {}, {"reactnet": 85.92}
    ),
}  # fmt: skip

EXPERIMENTS = {"bdnet-ablation": ABLATION, "bdnet-table2": TABLE_2}


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
        What BD-Net is built on.
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

    def __post_init__(self):
        for name, least in (("epochs", 1 + self.two_step), ("batch_size", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"Config: {name} must be >= {least}, got {getattr(self, name)!r}")
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

    def command(self, experiment, seeds):
        """The command that gives the figures of this configuration."""
        words = [f"tinybnn reproduce {experiment} --seeds {seeds}"]
        for entry in dataclasses.fields(self):
            value, option = getattr(self, entry.name), f"--{entry.name.replace('_', '-')}"
            if value != entry.default:
                words.append(option if value is True else f"{option} {value}")
        return " ".join(words)


# Runs everything, too briefly for good figures.
QUICK = {"dataset": "digits", "epochs": 2, "batch_size": 32, "limit": 256}


def run(
    experiment, out, config, seeds=3, arms=None, note="", threads=None, progress=True, say=print
):
    """Train the networks of an experiment, or go on where an earlier call was stopped.

    Parameters
    ----------
    experiment : str
        A key of `EXPERIMENTS`.
    out : path
        Folder of the run, made if it does not exist.
    config : Config
    seeds : int
        Seeds 0, 1, ... More may be added later.
    arms : sequence of str, optional
        Some of the networks; by default all. Another call may add the others, also from another
        process at the same time, as long as they share no network.
    note : str
        Stands in the report, for instance where the images come from.
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
        If there is no such experiment or network; if the folder holds a run with another
        configuration, or something else.
    """
    if experiment not in EXPERIMENTS:
        raise ValueError(f"bdnet: experiment must be one of {[*EXPERIMENTS]}, got {experiment!r}")
    known = EXPERIMENTS[experiment]
    unknown = [name for name in arms or () if name not in known]
    if unknown:
        raise ValueError(f"bdnet: unknown network {unknown[0]!r}, choose from {', '.join(known)}")
    chosen = {name: arm for name, arm in known.items() if arms is None or name in arms}
    data = load(config.dataset, config.limit)
    if config.batch_size > len(data[0]):
        raise ValueError(
            f"bdnet: a batch of {config.batch_size} is more than the {len(data[0])} training images"
        )
    out = Path(out)
    open_folder(out, config)
    result = {
        "name": experiment,
        "config": dataclasses.asdict(config),
        "command": config.command(experiment, seeds),
        "note": note,
        "machine": analysis.machine(),
        "date": time.strftime("%Y-%m-%d"),
        "images": {
            "shape": data[0].images.shape[1:], "train": len(data[0]), "test": len(data[1]),
        },
        "arms": {name: arm.title for name, arm in chosen.items()},
        "paper": {
            name: arm.paper.get(config.base, arm.paper.get("")) for name, arm in chosen.items()
        },
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
    _write_report(out, result)
    say(f"{out / 'report.md'}: {len(result['runs'])} networks")
    return result


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


# --------------------------------------------------------------------------------------- training


def train_arm(folder, arm, config, seed, data, threads=None, progress=True, about=None):
    """Train one network, compile it and measure it; or read its figures.

    Parameters
    ----------
    folder : path
        Of this network.
    arm : Arm
    config : Config
    seed : int
    data : (Dataset, Dataset)
        For training and for testing.
    threads, progress
        As in `run`.
    about : dict, optional
        Stands in the figures, too.

    Returns
    -------
    dict
        ``test_accuracy`` and ``test_loss`` after the last epoch; ``seconds`` of all epochs;
        ``history``, the rows of all steps; ``ops``, ``bops``, ``flops``, ``weight_bits`` of a
        network for one image; ``packed_bytes``; ``identical_logits`` on test images; ``layers``,
        what `layer_statistics` says at the ``start`` and at the ``end``; ``machine``, ``date``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return kept(
        folder / "result.json",
        lambda: _train_arm(folder, arm, config, seed, data, threads, progress) | (about or {}),
    )


def _train_arm(folder, arm, config, seed, data, threads, progress):
    from tinybnn.kernels.threads import num_threads

    train, test = data
    shape, classes = train.images.shape[1:], len(train.classes)

    def untrained():
        return arm.network(config, shape, classes, np.random.default_rng(seed))

    is_float = arm.method == "float"
    teacher = None
    if config.distill and not is_float:
        teacher = _teacher(folder.parent, config, seed, data, threads, progress)
    steps = [config.epochs // 2, config.epochs - config.epochs // 2]
    if is_float or not config.two_step:
        steps = [config.epochs]
    rows, model = [], None
    with num_threads(threads):
        start = layer_statistics(untrained(), _some_batches(train))
    for number, epochs in enumerate(steps, 1):
        before, model = model, untrained()
        if before is not None:
            hand_over(before, model)
        if number < len(steps):
            release_weights(model)
        history = fit(
            folder / f"step-{number}.npz", model, teacher, train, config, epochs, [seed, number],
            threads, progress,
        )  # fmt: skip
        rows += [{"step": number, **row} for row in history.rows]
    loader = datasets.DataLoader(test, batch_size=256)
    with num_threads(threads):
        logits, labels = training.predict(model, loader)
        packed = deploy.compile(model, shape)
        found = np.concatenate([packed.predict(x) for x, _ in loader])
        end = layer_statistics(model, _some_batches(train))
    packed.save(folder / "packed.npz")
    count = analysis.count_operations(model, shape)
    return {
        "epochs": config.epochs,
        "seconds": sum(row["seconds"] for row in rows),
        "test_accuracy": training.accuracy(logits, labels),
        "test_loss": float(F.cross_entropy(logits, labels)),
        "test_images": len(labels),
        "identical_logits": int((found == logits).all(1).sum()),
        "ops": count.ops,
        "bops": count.bops,
        "flops": count.flops,
        "weight_bits": count.weight_bits,
        "packed_bytes": packed.nbytes,
        "machine": analysis.machine(),
        "date": time.strftime("%Y-%m-%d"),
        "history": rows,
        "layers": {"start": start, "end": end},
    }


def fit(path, model, teacher, train, config, epochs, seed, threads=None, progress=True):
    """One step of training, with a checkpoint.

    Parameters
    ----------
    path : path
        Of the checkpoint.
    model : Module
    teacher : Module or None
        A float network, or None to learn from labels alone.
    train : Dataset
    config : Config
    epochs : int
    seed : int or list of int
        Of the order of the images and of their augmentation: moved by up to an eighth of their
        size, which is a random crop with a border of 4 around 32 pixels; colour images mirrored,
        half of them.
    threads, progress
        As in `run`.

    Returns
    -------
    History
    """
    moves = [datasets.RandomShift(train.images.shape[2] // 8)]
    if train.images.shape[1] == 3:
        moves.append(datasets.RandomHorizontalFlip())
    loader = datasets.DataLoader(
        train, config.batch_size, shuffle=True, drop_last=True, rng=np.random.default_rng(seed),
        transform=datasets.Compose([*moves, datasets.to_signed(train.maximum)]),
    )  # fmt: skip
    optimizer = optim.Adam(model.parameters(), lr=config.lr)
    batches = epochs * len(loader)
    if config.schedule == "cosine":
        schedule = optim.CosineAnnealingLR(optimizer, batches)
    else:
        schedule = optim.LinearLR(optimizer, 1.0, 0.0, batches)
    # A step with real weights has left the quantizers of the weights out.
    if any(isinstance(v, EdeSign) for m in model.modules() for v in vars(m).values()):
        schedule = optim.ChainedScheduler([schedule, optim.EdeSchedule(model, batches)])
    trained, loss = model, F.cross_entropy
    if teacher is not None:
        trained = Distilled(model, teacher, config.distill)
        loss = trained.loss
    return training.fit(
        trained, loader, epochs=epochs, optimizer=optimizer, schedule=schedule,
        schedule_unit="batch", loss=loss, checkpoint=path, progress=progress, threads=threads,
    )  # fmt: skip


def release_weights(model):
    """Let the binary layers of a model compute with their latent weights: the first of two steps.

    The signs of the activations stay.
    """
    for module in model.modules():
        if isinstance(module, nn.AdaBinConv2d):
            module.weight_quantizer = _as_it_is  # α_w v + β_w is then the weight itself
        elif isinstance(module, nn.BinaryConv2d):
            module.weight_quantizer = None


def _as_it_is(x):
    return x


def hand_over(first, second):
    """Give the network of the second step all weights and statistics of the first.

    Raises
    ------
    KeyError, ValueError
        If either has an array that the other has not, or of another shape; nothing is changed then.
        (ReActNet's public code drops such arrays silently.)
    """
    second.load_state_dict(first.state_dict())


class Distilled(nn.Module):
    """A network beside its teacher, which sees the same batch, augmentation included.

    The loss is the cross entropy with a mixture of two targets: the teacher's distribution and the
    label. Up to a constant its first part is the Kullback-Leibler divergence from the teacher to
    the network (ReActNet's distributional loss, Liu et al. 2020, eq. 7).

    Parameters
    ----------
    model, teacher : Module
        Logits for the same classes. The teacher is frozen.
    share : float
        Of the teacher in the target.
    """

    def __init__(self, model, teacher, share):
        self.model, self.teacher, self.share = model, teacher.freeze(), share
        self.said = None  # the teacher's distribution for the last batch, (N, classes)

    def forward(self, x):
        if self.training:
            with no_grad():
                self.said = F.softmax(self.teacher(x), 1).data
        return self.model(x)

    def loss(self, logits, labels):
        """Cross entropy of the logits of the last training batch."""
        one_hot = np.eye(logits.shape[1], dtype=np.float32)[labels]
        return F.cross_entropy(logits, self.share * self.said + (1 - self.share) * one_hot)


def _teacher(out, config, seed, data, threads, progress):
    """The trained float MobileNet V1 of a seed; `bdnet-table2` has it as a network of its own."""
    arm, folder = TABLE_2["float"], out / f"float-{seed}"
    about = {"name": "float", "seed": seed, "command": "the teacher of the other networks"}
    train_arm(folder, arm, config, seed, data, threads, progress, about)
    shape, classes = data[0].images.shape[1:], len(data[0].classes)
    model = arm.network(config, shape, classes, np.random.default_rng(seed))
    training.load_weights(folder / "step-1.npz", model)
    return model


# -------------------------------------------------------------------- what makes training unstable


def layer_statistics(model, batches):
    """Variances and gradients of the k×k layers behind the first one.

    The paper blames small variances of the depth-wise sums: the batch norm's factor
    α = γ / sqrt(variance + ε) multiplies what comes back as gradient (its Eq. 1), which then
    fluctuates from batch to batch.

    Parameters
    ----------
    model : Module
        Of `models.blocks.Layer`s. It is left as it was, its running statistics included.
    batches : sequence of (x, labels)
        At least two.

    Returns
    -------
    list of dict
        For each layer, in order: ``layer`` (its path), ``channels``, ``groups``, ``binary``;
        ``variance``, of what comes into the batch norm, and ``factor``, |α|: each minimum, median
        and maximum over the channels, in the mean of the batches; ``gradient``, the mean norm of
        the gradient of its (latent) weights; ``agreement`` of the gradients g, the mean product of
        two different batches over the mean |g|²: 1 where all are equal, 0 where they have nothing
        in common.
    """
    layers = _spatial_layers(model)
    seen = {path: {"variance": [], "factor": [], "gradient": []} for path in layers}
    state = {name: array.copy() for name, array in model.state_dict().items()}
    was_training = model.training
    model.train()
    norms = {id(layer.norm): path for path, layer in layers.items()}
    for x, labels in batches:
        model.zero_grad()
        with trace() as tape:
            loss = F.cross_entropy(model(Tensor(x)), labels)
        for module, inputs, _ in tape.modules:
            if id(module) in norms:
                variance = inputs[0].data.var((0, 2, 3), dtype=np.float64)  # (C,)
                found = seen[norms[id(module)]]
                found["variance"].append(variance)
                found["factor"].append(np.abs(module.weight.data) / np.sqrt(variance + module.eps))
        del tape
        loss.backward()
        for path, layer in layers.items():
            grads = [conv.weight.grad.data.ravel() for conv in _convolutions(layer)]
            seen[path]["gradient"].append(np.concatenate(grads).astype(np.float64))
    model.zero_grad()
    model.load_state_dict(state)
    model.train(was_training)
    rows = []
    for path, layer in layers.items():
        conv, gradients = _convolutions(layer)[0], np.array(seen[path]["gradient"])  # (batches, n)
        squares = (gradients**2).sum(1)
        row = {
            "layer": path, "channels": conv.out_channels, "groups": conv.groups,
            "binary": isinstance(conv, nn.BinaryConv2d | nn.AdaBinConv2d),
        }  # fmt: skip
        for name in ("variance", "factor"):
            mean = np.mean(seen[path][name], axis=0)
            row[name] = [float(f(mean)) for f in (np.min, np.median, np.max)]
        row["gradient"] = float(np.sqrt(squares).mean())
        pairs = len(squares) * (len(squares) - 1)
        products = float((gradients.sum(0) ** 2).sum() - squares.sum()) / pairs
        row["agreement"] = products / float(squares.mean()) if squares.any() else 0.0
        rows.append(row)
    return rows


def _spatial_layers(model):
    """Path -> layer, of the layers with more than one tap; the first, which is real, left out."""
    found = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, Layer) and _convolutions(module)[0].kernel_size != (1, 1)
    }
    return dict([*found.items()][1:])


def _convolutions(layer):
    """The convolutions of a layer: one, or the branches of a dual one."""
    conv = layer.conv
    if isinstance(conv, nn.DualBinaryConv2d | nn.DualAdaBinConv2d):
        return conv.convolutions()
    return [conv[1] if isinstance(conv, nn.Sequential) else conv]  # behind its sign


def _some_batches(images, count=8, size=64):
    """The first training images, as they are, in batches."""
    size = min(size, len(images) // 2)
    return list(datasets.DataLoader(images[: count * size], size))


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
    if path.exists() and not {*arms} <= {*json.loads(path.read_text(encoding="utf-8"))}:
        path.unlink()
    return kept(path, lambda: latencies(path.parent, arms))


def summary(result):
    """Accuracy over the seeds: mean, standard deviation, and the differences to the first network.

    Returns
    -------
    dict
        Name -> ``accuracies``, ``mean``, ``std`` (None for one seed), ``differences`` (seed by
        seed), ``difference`` (their mean), ``difference_std``.
    """
    accuracy = {name: [] for name in result["arms"]}
    for row in result["runs"]:
        accuracy[row["name"]].append(row["test_accuracy"])
    reference = np.array(next(iter(accuracy.values())))
    found = {}
    for name, values in accuracy.items():
        differences = np.array(values) - reference
        several = len(values) > 1
        found[name] = {
            "accuracies": values,
            "mean": float(np.mean(values)),
            "std": float(np.std(values, ddof=1)) if several else None,
            "differences": differences.tolist(),
            "difference": float(differences.mean()),
            "difference_std": float(np.std(differences, ddof=1)) if several else None,
        }
    return found


# ---------------------------------------------------------------------------------------- figure 4


def otsu(gray, levels=2):
    """Thresholds that part the pixels of an image into classes of the least variance.

    With two levels Otsu's method (1979), with more its extension: of all thresholds those that make
    the variance between the classes largest.

    Parameters
    ----------
    gray : (H, W) uint8
    levels : int
        At least 2, at most 256.

    Returns
    -------
    (levels - 1,) int64
        Rising. A pixel belongs to the upper class from the threshold on, as sign(0) = +1.
    """
    gray = np.asarray(gray)
    if gray.dtype != np.uint8 or not gray.size:
        raise ValueError(
            f"otsu: gray must hold uint8 pixels, got {gray.dtype} of shape {gray.shape}"
        )
    if not 2 <= levels <= 256:
        raise ValueError(f"otsu: levels must be from 2 to 256, got {levels!r}")
    count = np.bincount(gray.ravel(), minlength=256)
    below = np.concatenate([[0], np.cumsum(count)])  # pixels darker than t = 0 ... 256
    total = np.concatenate([[0], np.cumsum(count * np.arange(256))])
    # Of a class of the pixels t <= p < u: its size times its squared mean, in row t and column u.
    pixels = below[None, :] - below[:, None]
    sums = (total[None, :] - total[:, None]).astype(np.float64)
    value = np.where(pixels > 0, sums**2 / np.maximum(pixels, 1), 0.0)
    value[np.tril_indices(257)] = -np.inf  # a class has at least one grey value
    best, cuts = value[0], []
    for _ in range(levels - 1):  # best[u]: of the pixels below u, with one class more each time
        split = best[:, None] + value
        cuts.append(split.argmax(0))
        best = split.max(0)
    thresholds, end = [], 256
    for cut in reversed(cuts):
        end = int(cut[end])
        thresholds.append(end)
    return np.array(thresholds[::-1])


def to_levels(gray, levels):
    """The classes of `otsu` as brightness from 0 (the darkest) to 1.

    Parameters
    ----------
    gray : (H, W) uint8
    levels : int

    Returns
    -------
    (H, W) float32
    """
    classes = np.searchsorted(otsu(gray, levels), gray, side="right")
    return (classes / np.float32(levels - 1)).astype(np.float32)


def to_gray(images, maximum=255):
    """Brightness of images: 0.299 red + 0.587 green + 0.114 blue (ITU-R BT.601), rounded.

    Parameters
    ----------
    images : (N, C, H, W)
        One channel or three.
    maximum : float
        The value of a white pixel.

    Returns
    -------
    (N, H, W) uint8
    """
    weights = {1: [1.0], 3: [0.299, 0.587, 0.114]}.get(images.shape[1])
    if weights is None:
        raise ValueError(f"to_gray: images must have 1 or 3 channels, got shape {images.shape}")
    gray = np.tensordot(weights, images.astype(np.float64), (0, 1))
    return np.round(gray * (255 / maximum)).astype(np.uint8)


def draw_levels(path, images, count=8):
    """Figure 4 for the first images of a set: grey, two levels, three levels, a row each."""
    gray = to_gray(images.images[:count], images.maximum)
    rows = [gray / np.float32(255), *([to_levels(g, n) for g in gray] for n in (2, 3))]
    sheet = 1 - np.concatenate(rows)[:, None]  # `plots.images` draws 0 as white
    figure = plots.figure(figsize=(8, 3.4))
    plots.images(figure.subplots(), sheet, len(gray), "grey, one bit (Otsu), three levels")
    figure.savefig(path, dpi=110)


# ------------------------------------------------------------------------------------- the report


def _write_report(out, result):
    """``report.md`` and its pictures."""
    is_ablation = result["name"] == "bdnet-ablation"
    parts = [_top(result), _accuracies(result)]
    if is_ablation and {*ABLATION} <= {*result["arms"]}:
        parts.append(_order(result))
    parts += [_layers(result), "## Levels (Fig. 4)\n\n![Grey, one bit, three levels](levels.png)\n"]
    write_atomic(out / "report.md", "\n".join(parts).encode())
    _draw_accuracy(out / "accuracy.png", result)
    _draw_layers(out / "layers.png", result)


def _top(result):
    config, machine = result["config"], result["machine"]
    trial = ""
    if config["limit"]:
        trial = f"**Only the first {config['limit']:,} images were used.**\n"
    images, seeds = result["images"], 1 + max(row["seed"] for row in result["runs"])
    way = "two steps, activations first" if config["two_step"] else "one step"
    teacher = ""
    if config["distill"]:
        teacher = f", {config['distill']:g} of the target from a float teacher"
    about = wrapped(
        f"""{result["date"]}, {machine["processor"]}, NumPy {machine["numpy"]}, Numba
        {machine["numba"]}. {config["dataset"]}{result["note"] and f" ({result['note']})"}:
        {images["train"]:,} images of {"×".join(map(str, images["shape"]))} for training,
        {images["test"]:,} for testing. Width {config["width"]:g}, BD-Net on {config["base"]};
        {config["epochs"]} epochs in {way}{teacher}, batch {config["batch_size"]}, Adam
        {config["lr"]:g}, {config["schedule"]} to 0; EDE's slope sharpens over all batches of
        AdaBin's weights. Accuracies are those of the last epoch on test images in percent, mean and
        standard deviation over {seeds} seed{"s" * (seeds > 1)}; no epoch was chosen by them."""
    )
    title = "BD-Net's ablation (Table 6)"
    if result["name"] == "bdnet-table2":
        title = "Mobile networks: accuracy, operations, time (Fig. 1, Tables 2, 4 and 5)"
    return f"# {title}\n\n    {result['command']}\n\n{trial}\n{about}\n"


def _percent(mean, std, sign=""):
    spread = "" if std is None else f" ± {std * 100:.2f}"
    return f"{mean * 100:{sign}.2f}{spread}"


def _accuracies(result):
    rows, first = [], next(iter(result["arms"].values()))
    for name, title in result["arms"].items():
        found, latency = result["summary"][name], result["latency"][name]
        own = [row for row in result["runs"] if row["name"] == name]
        same = sum(row["identical_logits"] for row in own)
        rows.append(
            [
                title, _percent(found["mean"], found["std"]),
                _percent(found["difference"], found["difference_std"], "+"),
                result["paper"][name] or "", f"{own[0]['ops'] / 1e6:.3f}",
                f"{latency['1']:.3f}", f"{latency['64']:.2f}", f"{own[0]['packed_bytes']:,}",
                f"{same:,} of {sum(row['test_images'] for row in own):,}",
                f"{np.mean([row['seconds'] for row in own]):.0f}",
            ]
        )  # fmt: skip
    table = markdown_table(
        ["", "accuracy", f"against {first}, by seed", "paper", "OPs, million", "ms, 1 image",
         "ms, 64 images", "packed bytes", "identical logits", "s of training"],
        rows,
    )  # fmt: skip
    data = "CIFAR-10"
    if result["name"] == "bdnet-ablation":
        data = "CIFAR-100, built on AdaBin,"
    text = wrapped(
        f"""The paper's figures are for {data} at full width. OPs = BOPs / 64 + FLOPs, true counts.
        Milliseconds are those of the packed network on one thread, the shortest of
        several runs in turn with the others."""
    )
    return f"## Accuracy\n\n{table}\n{text}\n\n![Accuracy](accuracy.png)\n"


def _order(result):
    """Whether the order of Table 6 appears, in plain words."""
    found, titles = result["summary"], result["arms"]
    order = sorted(ABLATION, key=lambda name: found[name]["mean"])
    same = order == [*ABLATION]
    items = []
    for low, high in (
        ("naive", "dual"), ("naive", "pre-bn"), ("naive", "both"), ("dual", "both"),
        ("pre-bn", "both"),
    ):  # fmt: skip
        gain = np.array(found[high]["accuracies"]) - found[low]["accuracies"]
        paper = ABLATION[high].paper[""] - ABLATION[low].paper[""]
        sure = ""
        if len(gain) > 1 and abs(gain.mean()) < 2 * gain.std(ddof=1) / np.sqrt(len(gain)):
            sure = ", less than two standard errors"
        items.append(
            f"- *{titles[high]}* against *{titles[low]}*: {gain.mean() * 100:+.2f} points, better "
            f"in {int((gain > 0).sum())} of {len(gain)} seeds{sure}; the paper {paper:+.2f}."
        )
    verdict = wrapped(
        f"""The paper's order is {" < ".join(titles[name] for name in ABLATION)}. Ours is
        {" < ".join(titles[name] for name in order)}: {"the same" if same else "another"}."""
    )
    return f"## The order\n\n{verdict}\n\n{wrapped(*items)}\n"


def _layers(result):
    rows = []
    for name, title in result["arms"].items():
        own = [row["layers"] for row in result["runs"] if row["name"] == name]
        cells = [title]
        for key, form in (("variance", ".3g"), ("factor", ".3g"), ("gradient", ".2e"),
                          ("agreement", ".2f")):  # fmt: skip
            for when in ("start", "end"):
                values = [
                    layer[key][1] if key in ("variance", "factor") else layer[key]
                    for layers in own
                    for layer in layers[when]
                ]
                cells.append(f"{np.median(values):{form}}")
        rows.append(cells)
    header = [""]
    for what in ("variance", "factor α", "gradient", "agreement"):
        header += [f"{what}, start", "end"]
    text = wrapped(
        """Medians over the layers with more than one tap (without the first layer) and the seeds.
        *variance*: of what comes into the batch norm, median of the channels; *factor*: of the
        batch norm, |γ| / sqrt(variance + ε); *gradient*: norm of that of the latent weights;
        *agreement* of the gradients of 8 batches: 1 where all are equal, 0 where they have nothing
        in common. The paper blames small variances and with them large, fluctuating gradients."""
    )
    table = markdown_table(header, rows)
    return f"## Variances and gradients\n\n{text}\n\n{table}\n![Layers](layers.png)\n"


# --------------------------------------------------------------------------------------- pictures


def _draw_accuracy(path, result):
    arms, found = result["arms"], result["summary"]
    figure = plots.figure(figsize=(11, 4.2))
    left, right = figure.subplots(1, 2, sharey=True)
    ops = {row["name"]: row["ops"] / 1e6 for row in result["runs"]}
    for axes, places, label in (
        (left, ops, "million OPs = BOPs / 64 + FLOPs"),
        (right, {n: t["1"] for n, t in result["latency"].items()}, "ms an image, packed, 1 thread"),
    ):
        points = {
            title: (places[name], found[name]["mean"] * 100, (found[name]["std"] or 0) * 100)
            for name, title in arms.items()
        }
        plots.trade_off(axes, points, label, "test accuracy, %", legend=axes is right)
    right.set(ylabel="")
    figure.savefig(path, dpi=110)


def _draw_layers(path, result):
    """Factor of the batch norm and agreement of the gradients along MobileNet V1, seed 0."""
    figure = plots.figure(figsize=(10, 3.6))
    own = {
        result["arms"][row["name"]]: row["layers"]["end"]
        for row in result["runs"]
        if row["seed"] == 0 and EXPERIMENTS[result["name"]][row["name"]].build is _V1
    }
    for axes, key, label in zip(
        figure.subplots(1, 2), ("factor", "agreement"),
        ("factor of the batch norm", "agreement of the gradients"), strict=True,
    ):  # fmt: skip
        lines = {
            title: [layer[key][1] if key == "factor" else layer[key] for layer in layers]
            for title, layers in own.items()
        }
        plots.curves(axes, lines, label, "layer with more than one tap")
        if key == "factor":
            axes.set_yscale("log")
    figure.savefig(path, dpi=110)
