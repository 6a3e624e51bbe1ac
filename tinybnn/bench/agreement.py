"""Whether our training step computes what PyTorch's does: gradients and the optimizer's update.

Two implementations that differ by the rounding of a sum part after a few steps: some activation
comes to lie on the other side of zero, its sign differs, and from then on everything does. So
weights are copied before every step, and what is compared is one step at a time.

PyTorch computes in float64 here. In float32 its own gradients of some layers are further from
those than 1e-5 (of depth-wise weights 2e-5; channels-last, of batch norms 2e-3).

Even one step may part, where an activation lies so near to a jump, of the sign or of a
pseudo-gradient, that rounding decides on which side. Then both are right; such a batch is
replaced by another one, and counted.
"""

from __future__ import annotations

import numpy as np

from tinybnn import nn, tables
from tinybnn.autograd import trace
from tinybnn.bench.torch_training import TorchTraining, Variant
from tinybnn.bench.training import NETWORKS, Training
from tinybnn.kernels.machine import threads

GRADIENT, UPDATE = 1e-5, 1e-6  # the largest errors that count as agreement

_HEADER = ("", "batch", "steps", "redrawn", "gradients, worst", "update, worst", "")
_WIDTHS, _ALIGN = (21, 5, 5, 7, 22, 22, 6), "<>>><<<"

_FLOAT64 = Variant("PyTorch float64", dtype="float64")
_NEAR = 1e-5  # of two values that lie on different sides of a jump
_MOST_DRAWS = 20  # of a batch for one step
_ON_AND_BEYOND_THE_CLIP = (1.5, -1.2, 1.0, -1.0)  # some latents before each step


def compare_all(steps=20, batch=None, num_threads=None, say=print):
    """Compare every network of `training.NETWORKS` and print a line for each.

    Parameters
    ----------
    steps : int
    batch : int, optional
        Samples in a step, where the network's own batch is larger.
    num_threads : int, optional
    say : callable

    Returns
    -------
    list of dict
        What `compare_steps` gives.
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


def compare_steps(network, steps, batch, num_threads=None):
    """Train a network with our step and with PyTorch's, from the same weights before each step.

    Every third γ of the batch norms is negative, and some latent weights lie on the clip and
    beyond. PyTorch's optimizer is given our gradients, so that the update is compared and not
    the gradients again.

    Parameters
    ----------
    network : training.Network
    steps, batch : int
    num_threads : int, optional
        Of PyTorch.

    Returns
    -------
    dict
        ``name``, ``batch``, ``steps``; ``redrawn``, batches that rounding made differ;
        ``gradient``, the largest ‖ours - theirs‖ / ‖theirs‖ of any parameter and step, and
        ``gradient_of``, whose that is; ``update`` and ``update_of``, the same of the change of
        the weights, less what a float32 weight cannot hold (see `update_error`); ``agrees``,
        whether they are at most `GRADIENT` and `UPDATE`.
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
        found = theirs.gradients()
        for name, p in parameters.items():
            error = _norm(p.grad.data - found[name]) / (_norm(found[name]) or 1.0)
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
    """The same new batch and the same weights for both."""
    ours.draw()
    theirs.copy_batch(ours)
    for p in ours.model.parameters():
        if isinstance(p, nn.LatentParameter):
            p.data.reshape(-1)[: len(_ON_AND_BEYOND_THE_CLIP)] = _ON_AND_BEYOND_THE_CLIP
    theirs.copy_weights(ours.model)


def _parted(tape, inputs):
    """Whether some activation lies on one side of a jump with us, and on the other with them.

    Only values that are equal but for rounding are excused; others count as agreeing, and their
    gradients will not.
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


def update_error(before, ours, theirs):
    """‖ours - theirs‖ / ‖theirs - before‖, where only what exceeds one unit in a weight's last
    place counts.

    An update of 0.001 is a small part of a weight near 1, of which float32 holds 7 digits: the
    result is right to 1e-7, and its difference from the weight before to 1e-4.

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
