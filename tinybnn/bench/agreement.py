"""Compare our training step with PyTorch's: gradients and the optimizer's update.

Two implementations that round sums differently diverge after a few steps: one activation changes
its sign, and everything after it differs. So weights are copied before every step, and single
steps are compared.

PyTorch computes in float64 here. In float32 its own gradients of some layers differ from those by
more than 1e-5 (2e-5 for depth-wise weights; channels-last, 2e-3 for batch norms).

Even a single step may diverge, where an activation is so close to a jump of the sign or of a
pseudo-gradient that rounding decides the side. Both are then right; such a batch is redrawn and
counted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tinybnn import nn, tables
from tinybnn.autograd import trace
from tinybnn.bench.torch_training import TorchTraining, Variant
from tinybnn.bench.training import NETWORKS, Network, Training
from tinybnn.kernels.machine import threads

if TYPE_CHECKING:
    from tinybnn.bench.rounds import Row
    from tinybnn.typing import FloatArray

GRADIENT, UPDATE = 1e-5, 1e-6  # the largest errors that count as agreement

_HEADER = ("", "batch", "steps", "redrawn", "gradients, worst", "update, worst", "")
_WIDTHS, _ALIGN = (21, 5, 5, 7, 22, 22, 6), "<>>><<<"

_FLOAT64 = Variant("PyTorch float64", dtype="float64")
_NEAR = 1e-5  # largest difference of two values on different sides of a jump
_MOST_DRAWS = 20  # batches drawn for one step
_ON_AND_BEYOND_THE_CLIP = (1.5, -1.2, 1.0, -1.0)  # the first latents before each step


def compare_all(
    steps: int = 20,
    batch: int | None = None,
    num_threads: int | None = None,
    say: Callable[[str], Any] = print,
) -> list[Row]:
    """Compare every network of `training.NETWORKS` and print a line for each.

    Parameters
    ----------
    steps : int
    batch : int, optional
        Upper limit of the samples in a step; default: each network's own batch.
    num_threads : int, optional
    say : callable

    Returns
    -------
    list of dict
        The results of `compare_steps`.
    """
    say(tables.line(_HEADER, _WIDTHS, _ALIGN))
    rows = []
    with threads.num_threads(num_threads), threads.one_blas_thread():
        for network in NETWORKS:
            size = min(network.batch, batch or network.batch)
            row = compare_steps(network, steps, size, num_threads)
            rows.append(row)
            say(_line(row))
    return rows


def _line(row):
    numbers = (str(row[key]) for key in ("batch", "steps", "redrawn"))
    worst = (f"{row[key]:.1e} {row[key + '_of']}" for key in ("gradient", "update"))
    verdict = "agree" if row["agrees"] else "DIFFER"
    return tables.line((row["name"], *numbers, *worst, verdict), _WIDTHS, _ALIGN)


def compare_steps(network: Network, steps: int, batch: int, num_threads: int | None = None) -> Row:
    """Run our steps and PyTorch's, from the same weights before each step.

    Every third γ of the batch norms is negative, and some latent weights lie on and beyond the
    clip. PyTorch's optimizer gets our gradients, so that updates are compared independently.

    Parameters
    ----------
    network : training.Network
    steps, batch : int
    num_threads : int, optional
        PyTorch's threads.

    Returns
    -------
    dict
        ``name``, ``batch``, ``steps``; ``redrawn``, the number of batches redrawn because of
        rounding; ``gradient``, the largest ‖ours - theirs‖ / ‖theirs‖ of any parameter and step,
        and ``gradient_of``, the name of that parameter; ``update`` and ``update_of``, the same for
        the change of the weights beyond the resolution of float32 (see `update_error`);
        ``agrees``, whether they are at most `GRADIENT` and `UPDATE`.
    """
    ours = Training(network, batch)
    for module in ours.model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.weight.data[::3] *= -1
    theirs = TorchTraining(ours, _FLOAT64, num_threads)
    inputs = theirs.watch_inputs()
    parameters = dict(ours.model.named_parameters())
    worst = {"gradient": (0.0, ""), "update": (0.0, "")}
    redrawn = 0
    for _ in range(steps):
        for _ in range(_MOST_DRAWS):
            _start(ours, theirs)
            with trace() as tape:
                ours.compute_gradients()
            theirs.compute_gradients()
            if not _parted(tape, inputs):
                break
            redrawn += 1
        for name, gradient in theirs.gradients().items():
            error = _norm(parameters[name].grad.data - gradient) / (_norm(gradient) or 1.0)
            worst["gradient"] = max(worst["gradient"], (error, name))
        before = {name: p.data.copy() for name, p in parameters.items()}
        theirs.copy_gradients(ours.model)
        ours.optimizer.step()
        theirs.update()
        for name, after in theirs.weights().items():
            error = update_error(before[name], parameters[name].data, after)
            worst["update"] = max(worst["update"], (error, name))
    row = {"name": network.name, "batch": batch, "steps": steps, "redrawn": redrawn}
    for key, (error, name) in worst.items():
        row |= {key: float(error), key + "_of": name}
    row["agrees"] = row["gradient"] <= GRADIENT and row["update"] <= UPDATE
    return row


def _start(ours, theirs):
    """Give both the same new batch and the same weights."""
    ours.draw()
    theirs.copy_batch(ours)
    for p in ours.model.parameters():
        if isinstance(p, nn.LatentParameter):
            p.data.reshape(-1)[: len(_ON_AND_BEYOND_THE_CLIP)] = _ON_AND_BEYOND_THE_CLIP
    theirs.copy_weights(ours.model)


def _parted(tape, inputs):
    """Whether rounding has put some activation on different sides of a jump.

    Only values that are equal up to rounding are excused; others make the gradients differ.
    """
    for (module, (x,), _), theirs in zip(_leaves(tape), inputs, strict=True):
        if isinstance(module, nn.BinaryConv2d | nn.BinaryLinear | nn.Quantize | nn.LeakyReLU):
            x = x.data
            sides = ((x >= 0) != (theirs >= 0)) | ((np.abs(x) <= 1) != (np.abs(theirs) <= 1))
            if sides.any() and np.abs(x - theirs)[sides].max() <= _NEAR:
                return True
    return False


def _leaves(tape):
    return [call for call in tape.modules if not call[0].children()]


def _norm(x):
    return np.linalg.norm(x.astype(np.float64).ravel())


def update_error(before: FloatArray, ours: FloatArray, theirs: FloatArray) -> float:
    """‖ours - theirs‖ / ‖theirs - before‖, ignoring one unit in the last place of each weight.

    An update of 0.001 is small beside a weight near 1, and float32 has 7 digits: the result is
    right to 1e-7, and its difference from the weight before to 1e-4.

    Parameters
    ----------
    before, ours : float32 arrays of equal shape
    theirs : float64 array of that shape

    Returns
    -------
    float
    """
    unit = np.spacing(np.maximum(np.abs(before), np.abs(ours)))
    excess = np.maximum(np.abs(ours - theirs) - unit, 0.0)
    return float(_norm(excess) / (_norm(theirs - before) or 1.0))
