"""Configuration and training of BD-Net's networks, in one step or two, with or without a teacher.

A network is binarized at once, or in two steps, first its activations and then its weights
(`release_weights`, `hand_over`). With a teacher it learns from the predictions of a float network
on the same images (`Distilled`). The trained network is compiled, compared with its packed form,
and measured.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinybnn import analysis, datasets, deploy, nn, optim, training
from tinybnn import functional as F
from tinybnn.autograd import Tensor, no_grad
from tinybnn.datasets import Dataset
from tinybnn.experiments.bdnet.arms import TABLE_2, Arm
from tinybnn.experiments.bdnet.instability import first_batches, layer_statistics
from tinybnn.experiments.runner import Run, kept
from tinybnn.experiments.settings import ImageConfig, setting
from tinybnn.kernels.machine.exact import identical
from tinybnn.quantizers import EdeSign
from tinybnn.typing import Array

SIZE = 32  # pixels; smaller images are enlarged by a whole number


@dataclass(frozen=True)
class Config(ImageConfig):
    """How the networks are trained: Adam, cross entropy, the rate stepped after each batch.

    Each step of training has half of the epochs, the second one more if their number is odd. Two
    steps are those of Martinez et al. 2020, and of ReActNet. The teacher is a float MobileNet V1 of
    the same width; a share of 1 is ReActNet's distributional loss.
    """

    dataset: str = setting("cifar10", "a data set; with --quick digits", dataset=True)
    width: float = setting(0.25, "factor of all channels", above=0)
    base: str = setting("reactnet", "base of BD-Net", choices=("reactnet", "adabin"))
    epochs: int = setting(25, "epochs, of all steps", least=1)
    batch_size: int = setting(128, "batch size", least=2)
    lr: float = setting(3e-3, "learning rate of Adam at the start of each step", above=0)
    schedule: str = setting("cosine", "schedule of the rate, to 0", choices=("cosine", "linear"))
    two_step: bool = setting(False, "first binary activations with real weights, then both binary")
    distill: float = setting(
        0.0, "share of a float network's predictions in the target", least=0, most=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs < 1 + self.two_step:
            raise ValueError(f"Config: epochs must be >= 2, got {self.epochs}")


def load(name: str, limit: int | None = None) -> tuple[Dataset, Dataset]:
    """Load training and test images; those below 32 pixels are enlarged, pixel by pixel.

    Parameters
    ----------
    name : str
        A name for `datasets.load`.
    limit : int, optional
        Load only the first `limit` images of each part.

    Returns
    -------
    train, test : Dataset
        Images (N, C, H, W) uint8.
    """
    parts = []
    for part in datasets.load(name):
        part = part[:limit]
        times = max(1, SIZE // part.images.shape[2])
        larger = part.images.repeat(times, 2).repeat(times, 3)
        parts.append(dataclasses.replace(part, images=larger))
    return tuple(parts)


def load_for(config: Config) -> tuple[Dataset, Dataset]:
    """Load the images of a configuration, at least a batch of them, as `load` does."""
    data = load(config.dataset, config.limit)
    if config.batch_size > len(data[0]):
        raise ValueError(
            f"bdnet: a batch of {config.batch_size} is more than the {len(data[0])} training images"
        )
    return data


def train_arm(
    folder: Path,
    arm: Arm,
    config: Config,
    seed: int,
    data: tuple[Dataset, Dataset],
    progress: bool = True,
    about: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train one network, compile it and measure it, or read its figures.

    Parameters
    ----------
    folder : path
        The folder of this network.
    arm : Arm
    config : Config
    seed : int
    data : (Dataset, Dataset)
        For training and for testing.
    progress : bool
        Show progress bars on stderr.
    about : dict, optional
        Appended to the figures.

    Returns
    -------
    dict
        ``test_accuracy`` and ``test_loss`` after the last epoch; ``seconds`` of all epochs;
        ``history``, the rows of all steps; ``ops``, ``bops``, ``flops``, ``weight_bits`` of a
        network for one image; ``packed_bytes``; ``identical_logits`` on test images; ``layers``,
        the `layer_statistics` at the ``start`` and at the ``end``; ``machine``, ``date``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = arm.adapted(config)
    return kept(
        folder / "result.json",
        lambda: _train_arm(folder, arm, config, seed, data, progress) | (about or {}),
    )


def _train_arm(folder, arm, config, seed, data, progress):
    train, test = data
    batches, shape = first_batches(train), train.images.shape[1:]
    start = layer_statistics(untrained(arm, config, seed, train), batches)
    model, rows = _trained(folder, arm, config, seed, data, progress)
    loader = datasets.DataLoader(test, batch_size=256)
    logits, labels = training.predict(model, loader)
    packed = deploy.compile(model, shape)
    packed_logits = np.concatenate([packed.predict(x) for x, _ in loader])
    end = layer_statistics(model, batches)
    packed.save(folder / "packed.npz")
    count = analysis.count_operations(model, shape)
    return {
        "epochs": config.epochs,
        "seconds": sum(row["seconds"] for row in rows),
        "test_accuracy": training.accuracy(logits, labels),
        "test_loss": float(F.cross_entropy(logits, labels)),
        "test_images": len(labels),
        "identical_logits": int(identical(packed_logits, logits).all(1).sum()),
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


def trained_arms(run: Run) -> Iterator[tuple[Path, dict[str, Any], Arm]]:
    """Train the networks of a run one after the other, as `train_arm` does.

    Yields
    ------
    folder : path
    row : dict
        Its figures, with ``name``, ``seed`` and ``command``.
    arm : Arm
    """
    for seed in range(run.seeds):  # a seed that is done is a whole comparison
        for name, arm in run.arms.items():
            folder = run.out / f"{name}-{seed}"
            about = {"name": name, "seed": seed, "command": run.command}
            data = run.options["data"]
            yield folder, train_arm(folder, arm, run.config, seed, data, run.progress, about), arm


def first_images(images: Dataset, config: Any) -> list[tuple[Array, Array]]:
    """Return the first ``config.images`` of a Dataset in batches, as the networks take them.

    Returns
    -------
    list of (x, labels)
        (B, C, H, W) float32 in [-1, 1] and (B,) int64.
    """
    count = min(config.images, len(images))
    return [
        *datasets.DataLoader(
            images[:count], min(config.batch_size, count),
            transform=datasets.to_signed(images.maximum),
        )
    ]  # fmt: skip


def untrained(arm: Arm, config: Config, seed: int, train: Dataset) -> nn.Module:
    """Build the network of an arm for some images; the same seed gives the same weights."""
    shape, classes = train.images.shape[1:], len(train.classes)
    return arm.network(arm.adapted(config), shape, classes, np.random.default_rng(seed))


def trained(folder: Path, arm: Arm, config: Config, seed: int, train: Dataset) -> nn.Module:
    """Build the network of an arm with the weights that `train_arm` left in its folder."""
    config, model = arm.adapted(config), untrained(arm, config, seed, train)
    last = 1 + (config.two_step and arm.method != "float")
    training.load_weights(folder / f"step-{last}.npz", model)
    return model


def _trained(folder, arm, config, seed, data, progress):
    """Train a network in its one or two steps; returns it and the rows of their histories."""
    is_float = arm.method == "float"
    teacher = None
    if config.distill and not is_float:
        teacher = _teacher(folder.parent, config, seed, data, progress)
    steps = [config.epochs // 2, config.epochs - config.epochs // 2]
    if is_float or not config.two_step:
        steps = [config.epochs]
    model, rows = None, []
    for number, epochs in enumerate(steps, 1):
        before, model = model, untrained(arm, config, seed, data[0])
        if before is not None:
            hand_over(before, model)
        if number < len(steps):
            release_weights(model)
        history = fit(
            folder / f"step-{number}.npz", model, teacher, data[0], config, epochs, [seed, number],
            progress,
        )  # fmt: skip
        rows += [{"step": number, **row} for row in history.rows]
    return model, rows


def fit(
    path: Path,
    model: nn.Module,
    teacher: nn.Module | None,
    train: Dataset,
    config: Config,
    epochs: int,
    seed: int | list[int],
    progress: bool = True,
) -> training.History:
    """Train one step, with a checkpoint.

    Parameters
    ----------
    path : path
        The checkpoint.
    model : Module
    teacher : Module or None
        A float network, or None to learn from labels alone.
    train : Dataset
    config : Config
    epochs : int
    seed : int or list of int
        Decides the order of the images and their augmentation: moved by up to an eighth of their
        size, which is a random crop with a border of 4 around 32 pixels; half of the colour images
        mirrored.
    progress : bool

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
    # A step with real weights has no quantizers of weights.
    if any(isinstance(v, EdeSign) for m in model.modules() for v in vars(m).values()):
        schedule = optim.ChainedScheduler([schedule, optim.EdeSchedule(model, batches)])
    trained, loss = model, F.cross_entropy
    if teacher is not None:
        trained = Distilled(model, teacher, config.distill)
        loss = trained.loss
    return training.fit(
        trained, loader, epochs=epochs, optimizer=optimizer, schedule=schedule,
        schedule_unit="batch", loss=loss, checkpoint=path, progress=progress,
    )  # fmt: skip


def release_weights(model: nn.Module) -> None:
    """Make the binary layers of a model use their latent weights: the first of two steps.

    Activations stay binary.
    """
    for module in model.modules():
        if isinstance(module, nn.AdaBinConv2d):
            module.weight_quantizer = _identity  # α_w v + β_w is then the weight itself
        elif isinstance(module, nn.BinaryConv2d):
            module.weight_quantizer = None


def _identity(x):
    return x


def hand_over(first: nn.Module, second: nn.Module) -> None:
    """Copy all weights and statistics of the first step's network to that of the second step.

    Raises
    ------
    KeyError, ValueError
        If either lacks an array of the other, or shapes differ; nothing is changed then.
        (ReActNet's public code drops such arrays silently.)
    """
    second.load_state_dict(first.state_dict())


class Distilled(nn.Module):
    """A network with its teacher, which sees the same batch, augmentation included.

    The loss is the cross entropy with a mixture of two targets: the teacher's distribution and the
    label. Up to a constant its first part is the Kullback-Leibler divergence from the teacher to
    the network (ReActNet's distributional loss, Liu et al. 2020, eq. 7).

    Parameters
    ----------
    model, teacher : Module
        Both (N, C, H, W) -> logits (N, classes). The teacher is frozen.
    share : float
        Share of the teacher in the target.
    """

    def __init__(self, model: nn.Module, teacher: nn.Module, share: float) -> None:
        self.model: nn.Module = model
        self.teacher: nn.Module = teacher.freeze()
        self.share: float = share
        self.predicted: Array | None = None  # by the teacher, for the last batch: (N, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, classes) of the network for images (N, C, H, W)."""
        if self.training:
            with no_grad():
                self.predicted = F.softmax(self.teacher(x), 1).data
        return self.model(x)

    def loss(self, logits: Tensor, labels: Array) -> Tensor:
        """Return the cross entropy of logits (N, classes) of the last batch and labels (N,)."""
        one_hot = np.eye(logits.shape[1], dtype=np.float32)[labels]
        return F.cross_entropy(logits, self.share * self.predicted + (1 - self.share) * one_hot)


def _teacher(out, config, seed, data, progress):
    """The trained float MobileNet V1 of a seed, which is also a network of `bdnet-table2`."""
    arm, folder = TABLE_2["float"], out / f"float-{seed}"
    about = {"name": "float", "seed": seed, "command": "the teacher of the other networks"}
    train_arm(folder, arm, config, seed, data, progress, about)
    return trained(folder, arm, config, seed, data[0])
