"""Compile the kernels of the library ahead of use.

A job trains a small network for a step at two batch sizes, compiles it and predicts, which compiles
the kernels that training and packed models use. Jobs run in several processes, which share the
cache on disk. The first jobs, one per kind of layer, have few kernels in common, so two processes
seldom compile the same one; networks, which combine them, follow.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import warnings
from functools import partial
from typing import NamedTuple

import numpy as np

from tinybnn import deploy, models, nn, optim
from tinybnn import functional as F
from tinybnn.autograd import Tensor
from tinybnn.bench.training import NETWORKS, Training
from tinybnn.models.blocks import METHODS
from tinybnn.nn.layers import channels_last
from tinybnn.testing.networks import random_network

_BATCHES = 2, 32  # for one thread, and for several


class WarmUp(NamedTuple):
    """The result of `warm_up`.

    Attributes
    ----------
    compiled : int
        Number of kernels compiled by this call.
    kernels : tuple of str
        Paths of all compiled kernels.
    seconds : float
    """

    compiled: int
    kernels: tuple[str, ...]
    seconds: float


def warm_up(processes: int | None = None, progress: bool = True) -> WarmUp:
    """Compile all kernels that are not in the cache yet.

    Parameters
    ----------
    processes : int, optional
        Default: one per core.
    progress : bool
        Show a progress bar.

    Returns
    -------
    WarmUp

    Raises
    ------
    ValueError
        If kernels are not compiled (``NUMBA_DISABLE_JIT``) or cannot be stored.
    """
    from tqdm import tqdm

    from tinybnn.kernels.machine import cache

    start = time.perf_counter()
    if not cache.compiles():
        raise ValueError("warm_up: NUMBA_DISABLE_JIT is set, so nothing is compiled; unset it")
    if (paths := cache.noted()) is not None:
        return WarmUp(0, tuple(paths), time.perf_counter() - start)
    if not cache.note([]):
        raise ValueError(
            "warm_up: no folder can store compiled kernels; set NUMBA_CACHE_DIR to one that only "
            "you can write to"
        )
    names, compiled, kernels = list(_jobs()), 0, set()
    # Spawned processes may start threads, whatever this process has done before.
    pool = multiprocessing.get_context("spawn").Pool(processes or os.cpu_count(), _begin)
    with pool, tqdm(total=len(names), desc="compiling", unit="job", disable=not progress) as bar:
        for done, paths in pool.imap_unordered(_run, names):
            compiled, kernels = compiled + done, kernels | paths
            bar.set_postfix_str(f"{compiled} kernels", refresh=False)
            bar.update()
    cache.note(kernels)
    return WarmUp(compiled, tuple(sorted(kernels)), time.perf_counter() - start)


def _begin():
    """Ignore Ctrl-C: the parent ends this process; kernels on disk are complete or absent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run(name):
    """Do a job and return the number of kernels it compiled and the paths of those it used."""
    from tinybnn.kernels.machine import cache

    before = cache.compilations.done
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a network that was trained on noise
        _jobs()[name]()
    return cache.compilations.done - before, set(cache.kept)


# -------------------------------------------------------------------------------------------- jobs


# Shape of a sample, and layers that a Generator initializes; few kernels in common.
_LAYERS = {
    "binary convolution": ((64, 16, 16), lambda rng: [
        nn.BinaryConv2d(64, 128, 3, padding=1, bias=False, rng=rng), nn.BatchNorm2d(128),
        nn.BinaryConv2d(128, 64, 3, stride=2, padding=1, rng=rng),
        nn.BinaryConv2d(64, 64, 1, rng=rng),
    ]),
    "convolution": ((3, 16, 16), lambda rng: [
        nn.Conv2d(3, 64, 3, padding=1, rng=rng), nn.Conv2d(64, 64, 3, groups=64, rng=rng),
        nn.Conv2d(64, 64, 3, stride=2, rng=rng),
        nn.ConvTranspose2d(64, 32, 3, stride=2, rng=rng), nn.Conv2d(32, 8, 1, rng=rng),
    ]),
    "pooling": ((64, 16, 16), lambda rng: [
        nn.BatchNorm2d(64), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.ChannelShuffle(4),
        nn.ReplicateChannels(64, 128),
    ]),
    "depth-wise convolution": ((64, 8, 8), lambda rng: [
        nn.BinaryDepthwiseConv2d(64, 3, padding=1, rng=rng),
        nn.DualBinaryConv2d(64, 64, 3, padding=1, groups=64, rng=rng),
    ]),
    "dense layers": ((200,), lambda rng: [
        nn.BinaryLinear(200, 128, rng=rng), nn.BatchNorm1d(128), nn.Linear(128, 10, rng=rng),
    ]),
    "activations": ((64, 16, 16), lambda rng: [
        nn.RSign(64), nn.RPReLU(64), nn.PReLU(64), nn.LeakyReLU(), nn.ReLU(), nn.Hardtanh(),
        nn.Maxout(64), nn.Hardswish(), nn.Quantize("swish_sign"), nn.Quantize("approx_sign"),
        nn.Quantize("ste_sign"),
    ]),
    "adaptive sets": ((64, 8, 8), lambda rng: [
        nn.AdaBinConv2d(64, 64, 3, padding=1, rng=rng), nn.Maxout(64),
        nn.DualAdaBinConv2d(64, 64, 3, padding=1, groups=64, rng=rng),
    ]),
}  # fmt: skip


def _jobs():
    """Return the jobs, name -> function."""
    jobs = {name: partial(_layers, *entry) for name, entry in _LAYERS.items()}
    jobs["optimizers"] = _optimizers
    for network in NETWORKS:
        jobs[network.name] = partial(_network, network)
    for build in (models.mobilenet_v1, models.mobilenet_v3_small, models.shufflenet_v1):
        for method in METHODS:
            jobs[f"{build.__name__}, {method}"] = partial(_images, build, 0.25, method)
    for method in ("float", "birealnet", "reactnet", "adabin"):
        jobs[f"resnet20, {method}"] = partial(_images, models.resnet20, 1.0, method)
    for first in range(0, 96, 32):
        jobs[f"random networks from {first}"] = partial(_random, range(first, first + 32))
    return jobs


def _layers(shape, build):
    _use(nn.Sequential(*build(np.random.default_rng(0))), shape)


def _images(build, width, method):
    _use(build(width, 32, 10, method, rng=np.random.default_rng(0)), (3, 32, 32))


def _network(network):
    for batch in (8, network.batch):
        step = Training(network, batch)
        step()
    _pack(step.model, network.input_shape)


def _random(seeds):
    for seed in seeds:
        network = random_network(seed)
        _pack(network.build(), network.input_shape)


def _use(model, shape):
    """Train for two steps, then predict with the packed model."""
    rng, optimizer = np.random.default_rng(0), optim.Adam(model.parameters())
    for batch in _BATCHES:
        x = channels_last(rng.standard_normal((batch, *shape), np.float32))
        y = model.train()(Tensor(x))
        loss = F.cross_entropy(y, np.zeros(batch, np.int64)) if y.ndim == 2 else (y * y).mean()
        loss.backward()
        optimizer.step()
    _pack(model, shape)


def _pack(model, shape):
    try:
        packed = deploy.compile(model.eval(), shape)
    except deploy.CompileError:  # a layer without a packed form
        return
    for batch in _BATCHES:
        packed.predict(np.zeros((batch, *shape), np.float32))


def _optimizers():
    momentum = partial(optim.SGD, momentum=0.9)
    for make in (optim.SGD, momentum, optim.Adam, optim.AdamW, optim.Bop):
        for size in (16, 512):
            layer = nn.BinaryLinear(size, size, rng=np.random.default_rng(0))
            (layer(Tensor(np.ones((4, size), np.float32))) ** 2).mean().backward()
            make(layer.parameters()).step()
