"""Rows of training: a whole step, beside PyTorch's eager mode with the same layers.

A step is: forget the gradients, forward, loss, backward, Adam, clipping of latent weights. Weights
and images are random, since the time of a step does not depend on them. As in `training.fit`, the
BLAS of NumPy has one thread, which does not touch PyTorch's own.

A row of its own holds the forward pass of eval mode against that of training: a validation is to
cost no more than it must.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tinybnn import analysis, models, nn, optim
from tinybnn import functional as F
from tinybnn.autograd import Tensor, no_grad
from tinybnn.bench.rounds import Target, compare, contender, ratio_of_this_cpu
from tinybnn.bench.torch_training import TorchTraining, variants
from tinybnn.kernels.machine import memory, threads
from tinybnn.nn.layers import channels_last

# ------------------------------------------------------------------------------------ the networks


class Network(NamedTuple):
    """A row of the table.

    Attributes
    ----------
    name : str
    build : callable
        Takes a Generator, gives a Sequential.
    input_shape : tuple of int
        Of one sample.
    batch : int
    ratios : (float, float)
        To PyTorch in its better memory layout, on two threads, that it should reach with AVX-512
        and with AVX2.
    classes : int or None
        None for a network that learns to give back what it was given.
    """

    name: str
    build: Callable
    input_shape: tuple
    batch: int
    ratios: tuple[float, float]
    classes: int | None = 10


# Output channels and stride of the blocks of MobileNet V1 (Howard et al. 2017, table 1). Images of
# 32×32 pixels enter at full size: the first convolution has stride 1.
_SEPARABLE = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
    (512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1),
)  # fmt: skip


def separable(width=0.5, num_classes=10, rng=None):
    """Blocks of MobileNet V1, binary: depth-wise 3×3, batch norm, 1×1, batch norm.

    First and last layer are real.

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
    for outputs, stride in _SEPARABLE:
        before, now = now, round(outputs * width)
        layers += [
            nn.BinaryConv2d(before, before, 3, stride, padding=1, groups=before, rng=rng),
            nn.BatchNorm2d(before),
            nn.BinaryConv2d(before, now, 1, rng=rng),
            nn.BatchNorm2d(now),
        ]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(now, num_classes, rng=rng)]
    return nn.Sequential(*layers)


def autoencoder(channels=(32, 64, 128), rng=None):
    """Three convolutions of stride 2, mirrored by transposed ones; batch norm between; all real.

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
    """A network of the table, a batch and Adam; a call is a step of training.

    Parameters
    ----------
    network : Network
    batch : int, optional
        Not the network's.

    Attributes
    ----------
    model : Sequential
    optimizer : Adam
    x : (N, ...) float32
    target : (N,) int64 labels, or x itself
    """

    def __init__(self, network, batch=None):
        self.network, self.batch = network, network.batch if batch is None else batch
        self.rng = np.random.default_rng(0)
        self.model = network.build(self.rng)
        self.optimizer = optim.Adam(self.model.parameters(), lr=1e-3)
        self.loss = F.cross_entropy if network.classes else F.binary_cross_entropy_with_logits
        self.draw()

    def draw(self):
        """Take a new batch."""
        shape = (self.batch, *self.network.input_shape)
        if self.network.classes:
            self.x = channels_last(self.rng.standard_normal(shape, np.float32))
            self.target = self.rng.integers(0, self.network.classes, self.batch)
        else:
            # Mostly dark, as images of digits are.
            self.x = self.target = channels_last(self.rng.random(shape, np.float32) ** 3)

    def compute_gradients(self):
        """The part of a step before the optimizer."""
        self.optimizer.zero_grad()
        self.loss(self.model(Tensor(self.x)), self.target).backward()

    def __call__(self):
        self.compute_gradients()
        self.optimizer.step()


class FloatTraining(Training):
    """The same, with the forward pass of binary layers on floats, by BLAS."""

    def compute_gradients(self):
        with F.packed_products(False):
            super().compute_gradients()


# ------------------------------------------------------------------------------------------- rows


def contenders(network):
    """Whose steps are measured, by name: ours, and PyTorch's or, without it, our floats.

    Returns
    -------
    dict
        name -> (function of a batch size and a number of threads that gives a step, whether the
        target speaks of it).
    """
    found = {"ours": (lambda batch, num_threads: Training(network, batch), False)}
    for variant in variants(has_images=len(network.input_shape) == 3):
        make = partial(_torch_training, network, variant)
        found[variant.name] = make, not variant.fused
    if len(found) == 1:
        floats = (lambda batch, num_threads: FloatTraining(network, batch), False)
        found["ours, forward on floats"] = floats
    return found


def _torch_training(network, variant, batch, num_threads):
    return TorchTraining(Training(network, batch), variant, num_threads)


class Forward(Training):
    """The forward pass alone, in training or in eval mode."""

    def __init__(self, network, batch, training):
        super().__init__(network, batch)
        self.model.train(training)

    def __call__(self):
        with contextlib.nullcontext() if self.model.training else no_grad():
            self.model(Tensor(self.x))


_EVAL_FORWARD = Target("ratio", round(1 / 1.1, 3))  # at most 1.1 times the training forward


def eval_forward(network, batch, settings):
    """The row of the forward pass in eval mode."""
    shape = "×".join(map(str, (batch, *network.input_shape)))
    of_training = contender("forward in training", Forward(network, batch, True), counts=True)
    return compare(
        f"{network.name}, eval forward", shape, Forward(network, batch, False), [of_training],
        settings, rate=(batch, "images/s"), target=_EVAL_FORWARD,
    )  # fmt: skip


def training(settings, profile=False):
    """Yield the rows.

    Parameters
    ----------
    settings : Settings
    profile : bool
        Add to the last row of each network where the time of a step goes.
    """
    for network in NETWORKS:
        batch = min(network.batch, 8) if settings.quick else network.batch
        entries = contenders(network)
        steps = {name: make(batch, settings.num_threads) for name, (make, _) in entries.items()}
        ours = steps.pop("ours")
        with threads.one_blas_thread():
            rows = compare(
                network.name, "×".join(map(str, (batch, *network.input_shape))), ours,
                [contender(name, step, counts=entries[name][1]) for name, step in steps.items()],
                settings, rate=(batch, "images/s"), target=ratio_of_this_cpu(*network.ratios),
            )  # fmt: skip
            if profile:
                rows[-1]["operations"] = profile_of(ours, 1 if settings.quick else 10).rows
            del ours, steps
            eval_rows = eval_forward(network, min(batch, 16), settings) if network.classes else []
        found = {name: memory_of(network.name, name, batch, settings) for name in entries}
        for row in rows:
            row["memory"], row["peer_memory"] = found["ours"], found[row["peer"]]
        yield from (*rows, *eval_rows)


def profile_of(step, repetitions):
    """The `OperationTimes` of the fastest of several steps, after one that is not timed."""
    step()
    found = []
    for _ in range(repetitions):
        with analysis.time_operations() as times:
            step()
        found.append(times)
    return min(found, key=lambda times: times.seconds)


# ----------------------------------------------------------------------------------------- memory

_IN_A_PROCESS = "from tinybnn.bench.training import print_memory; print_memory({!r})"
_STEPS = 8
_STATUS = Path("/proc/self/status")  # of Linux


def memory_of(name, who, batch, settings):
    """The memory of steps, measured in a process of its own.

    Parameters
    ----------
    name : str
        Of the network.
    who : str
        One of its `contenders`.
    batch : int
    settings : Settings

    Returns
    -------
    dict or None
        In bytes: ``step``, how far above its level before the first step the process was at the
        most: gradients, the state of Adam, everything kept for backward, scratch memory; compiled
        code and libraries not; ``growth``, how far the highest level still rose after the second
        step; ``process``, the highest level itself. None where the system does not tell (it is
        read from /proc).
    """
    if not _STATUS.exists():
        return None
    task = json.dumps([name, who, batch, settings.num_threads, 3 if settings.quick else _STEPS])
    output = subprocess.run(
        [sys.executable, "-c", _IN_A_PROCESS.format(task)],
        check=True, stdout=subprocess.PIPE, text=True,
    ).stdout  # fmt: skip
    return json.loads(output)


def print_memory(task):
    """Measure for `memory_of`, in this process, and print JSON."""
    name, who, batch, num_threads, steps = json.loads(task)
    network = next(network for network in NETWORKS if network.name == name)
    make, _ = contenders(network)[who]
    with threads.num_threads(num_threads), threads.one_blas_thread():
        # A smaller batch first: it loads or compiles everything, and its peak stays below.
        make(-(-batch // 2), num_threads)()
        step = make(batch, num_threads)
        _give_back()
        level, peaks = _status("VmRSS"), []
        for _ in range(steps):
            step()
            peaks.append(_status("VmHWM"))
    # Threads add what they took to the count of the process from time to time: it may fall a bit.
    most = max(peaks)
    print(json.dumps({"step": most - level, "growth": most - max(peaks[:2]), "process": most}))


def _give_back():
    """Return to the system what this process holds and does not use."""
    gc.collect()
    memory.keep(memory.keep(0))
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of the GNU C library
    if trim is not None:
        trim(0)


def _status(key):
    """Bytes of memory that the process has (VmRSS), or has had at the most (VmHWM).

    resource.getrusage tells a maximum, too, but a new process starts with that of the process
    that started it.
    """
    [line] = [line for line in _STATUS.read_text().splitlines() if line.startswith(key + ":")]
    return 1024 * int(line.split()[1])
