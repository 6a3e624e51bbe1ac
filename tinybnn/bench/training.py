"""Rows of training: a whole step, beside PyTorch's eager mode with the same layers.

A step clears the gradients, runs forward, loss, backward and Adam, and clips latent weights.
Weights and images are random, since the time of a step does not depend on them. As in
`training.fit`, NumPy's BLAS has one thread, which does not affect PyTorch's own.

A separate row compares the forward pass in eval mode with that in training mode, to show that
validation costs no more than necessary.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinybnn import analysis, models, nn, optim
from tinybnn import functional as F
from tinybnn.autograd import Tensor, no_grad
from tinybnn.bench.rounds import (
    Row,
    Settings,
    Target,
    compare,
    contender,
    output_of,
    ratio_of_this_cpu,
)
from tinybnn.bench.torch_training import TorchTraining, variants
from tinybnn.kernels.machine import memory, threads
from tinybnn.models.mobilenet_v1 import SEPARABLE
from tinybnn.nn.layers import channels_last
from tinybnn.typing import Array, Shape

# ------------------------------------------------------------------------------------ the networks


class Network(NamedTuple):
    """A network to train.

    Attributes
    ----------
    name : str
    build : callable
        Takes a Generator and returns a Sequential.
    input_shape : tuple of int
        Shape of one sample.
    batch : int
    ratios : (float, float) or None
        Targets with AVX-512 and with AVX2 for the ratio to PyTorch in its faster memory layout, on
        two threads.
    classes : int or None
        None for an autoencoder.
    """

    name: str
    build: Callable[[np.random.Generator], nn.Sequential]
    input_shape: Shape
    batch: int
    ratios: tuple[float, float] | None
    classes: int | None = 10


def separable(
    width: float = 0.5, num_classes: int = 10, rng: np.random.Generator | None = None
) -> nn.Sequential:
    """Build binary blocks of MobileNet V1: depth-wise 3×3, batch norm, 1×1, batch norm.

    First and last layer are real. Images of 32×32 pixels enter at full size: the first convolution
    has stride 1.

    Parameters
    ----------
    width : float
        Factor of all channel counts.
    num_classes : int
    rng : numpy.random.Generator, optional

    Returns
    -------
    Sequential
        (N, 3, 32, 32) images -> (N, num_classes) logits.
    """
    now = round(32 * width)
    layers = [nn.Conv2d(3, now, 3, padding=1, bias=False, rng=rng), nn.BatchNorm2d(now)]
    for outputs, stride in SEPARABLE:
        before, now = now, round(outputs * width)
        layers += [
            nn.BinaryConv2d(before, before, 3, stride, padding=1, groups=before, rng=rng),
            nn.BatchNorm2d(before),
            nn.BinaryConv2d(before, now, 1, rng=rng),
            nn.BatchNorm2d(now),
        ]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(now, num_classes, rng=rng)]
    return nn.Sequential(*layers)


def autoencoder(
    channels: tuple[int, int, int] = (32, 64, 128), rng: np.random.Generator | None = None
) -> nn.Sequential:
    """Build three convolutions of stride 2 and their transposed mirrors, with batch norm, all real.

    Parameters
    ----------
    channels : (int, int, int)
    rng : numpy.random.Generator, optional

    Returns
    -------
    Sequential
        (N, 1, 28, 28) images -> logits of the same shape.
    """
    first, second, third = channels
    options = {"stride": 2, "padding": 1, "bias": False, "rng": rng}
    return nn.Sequential(
        nn.Conv2d(1, first, 3, **options),  # 14×14
        nn.BatchNorm2d(first),
        nn.LeakyReLU(),
        nn.Conv2d(first, second, 3, **options),  # 7×7
        nn.BatchNorm2d(second),
        nn.LeakyReLU(),
        nn.Conv2d(second, third, 3, **options),  # 4×4
        nn.BatchNorm2d(third),
        nn.LeakyReLU(),
        nn.ConvTranspose2d(third, second, 3, **options),  # 7×7
        nn.BatchNorm2d(second),
        nn.LeakyReLU(),
        nn.ConvTranspose2d(second, first, 3, output_padding=1, **options),  # 14×14
        nn.BatchNorm2d(first),
        nn.LeakyReLU(),
        nn.ConvTranspose2d(first, 1, 3, output_padding=1, **options | {"bias": True}),  # 28×28
    )


def _mlp(*widths):
    return lambda rng: models.mlp(widths[0], widths[1:-1], widths[-1], rng=rng)


_COLOUR, _GREY = (3, 32, 32), (1, 28, 28)
NETWORKS = (
    Network("VGG-small", lambda rng: models.vgg_small(rng=rng), _COLOUR, 64, (3.5, 2.2)),
    Network("depth-wise separable", lambda rng: separable(rng=rng), _COLOUR, 64, (1.5, 1.4)),
    Network("CNN for MNIST", lambda rng: models.cnn(_GREY, rng=rng), _GREY, 64, (1.5, 1.2)),
    Network("MLP 784-1024-1024-10", _mlp(784, 1024, 1024, 10), (784,), 128, (2.5, 1.8)),
    Network("MLP 200-128-2", _mlp(200, 128, 2), (200,), 128, (2.0, 1.5), 2),
    Network("autoencoder, real", lambda rng: autoencoder(rng=rng), _GREY, 64, (1.1, 1.1), None),
)


# ----------------------------------------------------------------------------------------- a step


class Training:
    """A network, a batch and Adam; a call is a step of training.

    Parameters
    ----------
    network : Network
    batch : int, optional
        Default: the network's.

    Attributes
    ----------
    model : Sequential
    optimizer : Adam
    x : (N, ...) float32
    target : (N,) int64 labels, or x itself
    """

    x: Array
    target: Array

    def __init__(self, network: Network, batch: int | None = None):
        self.network: Network = network
        self.batch: int = network.batch if batch is None else batch
        self.rng: np.random.Generator = np.random.default_rng(0)
        self.model: nn.Sequential = network.build(self.rng)
        self.optimizer: optim.Adam = optim.Adam(self.model.parameters(), lr=1e-3)
        self.loss: Callable[..., Tensor] = (
            F.cross_entropy if network.classes else F.binary_cross_entropy_with_logits
        )
        self.draw()

    def draw(self) -> None:
        """Draw a new batch."""
        shape = (self.batch, *self.network.input_shape)
        if self.network.classes:
            self.x = channels_last(self.rng.standard_normal(shape, np.float32))
            self.target = self.rng.integers(0, self.network.classes, self.batch)
        else:
            # Mostly dark, like images of digits.
            self.x = self.target = channels_last(self.rng.random(shape, np.float32) ** 3)

    def compute_gradients(self) -> None:
        """Run the part of a step before the optimizer."""
        self.optimizer.zero_grad()
        self.loss(self.model(Tensor(self.x)), self.target).backward()

    def __call__(self) -> Any:
        self.compute_gradients()
        self.optimizer.step()


class FloatTraining(Training):
    """Training with the products of binary layers in floats, by BLAS."""

    def compute_gradients(self) -> None:
        """Run the part of a step before the optimizer."""
        with F.packed_products(False):
            super().compute_gradients()


# ------------------------------------------------------------------------------------------- rows


def contenders(network: Network) -> dict[str, tuple[Callable[[int, int], Any], bool]]:
    """Return the steps to measure: ours, and PyTorch's or, without it, ours on floats.

    Returns
    -------
    dict
        name -> (function that makes a step from a batch size and a number of threads, whether the
        target refers to it).
    """
    steps = {"ours": (lambda batch, num_threads: Training(network, batch), False)}
    for variant in variants(has_images=len(network.input_shape) == 3):
        steps[variant.name] = partial(_torch_training, network, variant), not variant.fused
    if len(steps) == 1:
        floats = (lambda batch, num_threads: FloatTraining(network, batch), False)
        steps["ours, forward on floats"] = floats
    return steps


def _torch_training(network, variant, batch, num_threads):
    return TorchTraining(Training(network, batch), variant, num_threads)


class Forward(Training):
    """A call is a forward pass, in training or in eval mode."""

    def __init__(self, network: Network, batch: int, training: bool):
        super().__init__(network, batch)
        self.model.train(training)

    def __call__(self) -> None:
        with contextlib.nullcontext() if self.model.training else no_grad():
            self.model(Tensor(self.x))


_EVAL_FORWARD = Target("ratio", round(1 / 1.1, 3))  # at most 1.1 times the training forward


def eval_forward(network: Network, batch: int, settings: Settings) -> list[Row]:
    """Measure the row of the forward pass in eval mode."""
    in_training = contender("forward in training", Forward(network, batch, True), counts=True)
    return compare(
        f"{network.name}, eval forward", (batch, *network.input_shape),
        Forward(network, batch, False), [in_training], settings, rate=(batch, "images/s"),
        target=_EVAL_FORWARD,
    )  # fmt: skip


def training(settings: Settings, profile: bool = False) -> Iterator[Row]:
    """Yield the rows.

    Parameters
    ----------
    settings : Settings
    profile : bool
        Add the operations of a step with their times to the last row of each network.
    """
    for network in NETWORKS:
        batch = min(network.batch, 8) if settings.quick else network.batch
        entries = contenders(network)
        steps = {name: make(batch, settings.num_threads) for name, (make, _) in entries.items()}
        ours = steps.pop("ours")
        with threads.one_blas_thread():
            rows = compare(
                network.name, (batch, *network.input_shape), ours,
                [contender(name, step, counts=entries[name][1]) for name, step in steps.items()],
                settings, rate=(batch, "images/s"),
                target=network.ratios and ratio_of_this_cpu(*network.ratios),
            )  # fmt: skip
            if profile:
                rows[-1]["operations"] = profile_of(ours, 1 if settings.quick else 10).rows
            del ours, steps
            eval_rows = eval_forward(network, min(batch, 16), settings) if network.classes else []
        sizes = {name: memory_of(network.name, name, batch, settings) for name in entries}
        for row in rows:
            row["memory"], row["peer_memory"] = sizes["ours"], sizes[row["peer"]]
        yield from (*rows, *eval_rows)


def profile_of(step: Callable[[], Any], repetitions: int) -> analysis.OperationTimes:
    """Time the operations of several steps, after an untimed one, and return the fastest step's."""
    step()
    profiles = []
    for _ in range(repetitions):
        with analysis.time_operations() as times:
            step()
        profiles.append(times)
    return min(profiles, key=lambda times: times.seconds)


# ----------------------------------------------------------------------------------------- memory

_IN_A_PROCESS = "from tinybnn.bench.training import print_memory; print_memory({!r})"
_STEPS = 8
_STATUS = Path("/proc/self/status")  # Linux


def memory_of(name: str, who: str, batch: int, settings: Settings) -> dict[str, int] | None:
    """Measure the memory of training steps in a new process.

    Parameters
    ----------
    name : str
        Name of the network.
    who : str
        One of its `contenders`.
    batch : int
    settings : Settings

    Returns
    -------
    dict or None
        In bytes: ``process``, the peak memory of the process; ``step``, the peak minus the level
        before the first step: gradients, the state of Adam, everything kept for backward and
        scratch memory, without compiled code and libraries; ``growth``, the rise of the peak after
        the second step. None where the system has no /proc.
    """
    if not _STATUS.exists():
        return None
    task = json.dumps([name, who, batch, settings.num_threads, 3 if settings.quick else _STEPS])
    return json.loads(output_of(_IN_A_PROCESS.format(task)))


def print_memory(task: str) -> None:
    """Measure for `memory_of` in this process and print JSON."""
    name, who, batch, num_threads, steps = json.loads(task)
    network = next(network for network in NETWORKS if network.name == name)
    make, _ = contenders(network)[who]
    with threads.num_threads(num_threads), threads.one_blas_thread():
        # A smaller batch first: it loads or compiles everything, and its peak is lower.
        make(-(-batch // 2), num_threads)()
        step = make(batch, num_threads)
        _give_back()
        level, peaks = _status("VmRSS"), []
        for _ in range(steps):
            step()
            peaks.append(_status("VmHWM"))
    # Threads add their share to the count of the process only from time to time: it may decrease.
    most = max(peaks)
    print(json.dumps({"step": most - level, "growth": most - max(peaks[:2]), "process": most}))


def _give_back():
    """Return unused memory of this process to the system."""
    gc.collect()
    memory.keep(memory.keep(0))
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # in the GNU C library
    if trim is not None:
        trim(0)


def _status(key):
    """Read the memory of the process in bytes: now (VmRSS), or at its peak (VmHWM).

    resource.getrusage has a peak, too, but a new process inherits that of its parent.
    """
    [line] = [line for line in _STATUS.read_text().splitlines() if line.startswith(key + ":")]
    return 1024 * int(line.split()[1])
