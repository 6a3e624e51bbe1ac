"""Milestones and their outcomes; training that watches gradients and signs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinybnn import datasets
from tinybnn.typing import Array

BATCH = 64


@dataclass(frozen=True)
class Outcome:
    """The outcome of a milestone.

    Parameters
    ----------
    figures : dict of str to number or str
        The measurements, in printing order.
    failed : list of str
        A sentence for each criterion that is not met; empty if the milestone is reached.
    """

    figures: dict[str, Any]
    failed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Milestone:
    """A historical network, trained with the student's code.

    Parameters
    ----------
    number : int
    name, title : str
        Name of the network, and title of its paper.
    year : int
    needs : tuple of str
        Numbers of the exercises whose answers it uses.
    run : callable
        ``run(progress)`` imports `mybnn`, trains, judges, and returns an `Outcome`.
    seconds : float
        Longest time with good answers; an idle core takes a third of that or less.
    """

    number: int
    name: str
    year: int
    title: str
    needs: tuple[str, ...]
    run: Callable[[bool], Outcome]
    seconds: float


class Stopped(Exception):  # noqa: N818 - not an error of the program: training cannot go on
    """Training cannot go on; the sentences say why."""

    sentences: list[str]

    def __init__(self, sentences: Sequence[str]) -> None:
        super().__init__(*sentences)
        self.sentences = list(sentences)


def digits() -> tuple[Array, Array, Array, Array]:
    """Load the digits: pixels and labels of the training images, then of the test images.

    Most test images are by other writers than the training images.

    Returns
    -------
    x, x_test : (N, 1, 8, 8) float32
        Pixels from -1 to 1; returned as x, labels, x_test, labels_test.
    labels, labels_test : (N,) integers
    """
    train, test = datasets.load("digits")
    pixels = [part.images.astype(np.float32) / 8 - 1 for part in (train, test)]
    return pixels[0], train.labels, pixels[1], test.labels


def fit(
    network: Callable[[Array], Any],
    weights: dict[str, Any],
    others: dict[str, Any],
    x: Array,
    labels: Array,
    *,
    epochs: int,
    rate: float,
    rng: np.random.Generator,
    progress: bool = False,
) -> dict[str, float]:
    """Train by Adam on batches; return the share of flipped signs of each binary layer.

    Parameters
    ----------
    network : callable
        Maps x, an array, to the scores, a Tensor (N, 10).
    weights, others : dict of str to Tensor
        Latent weights, which are clipped after each step, and all other parameters.
    x : (N, ...) float32
    labels : (N,) integers
    epochs : int
    rate : float
        Learning rate of the first step; it decreases linearly to 0.
    rng : numpy.random.Generator
        Source of the order of the images.
    progress : bool
        Print the loss of each fifth epoch.

    Raises
    ------
    Stopped
        If a gradient does not arrive, or the loss is not a number.
    """
    from mybnn.layers import Adam, clip_latents, cross_entropy, flip_ratio

    parameters = weights | others
    before = {name: latent.data.copy() for name, latent in weights.items()}
    adam = Adam(list(parameters.values()), rate)
    for epoch in range(epochs):
        batches = rng.permutation(len(x))[: len(x) // BATCH * BATCH].reshape(-1, BATCH)
        for batch in batches:
            loss = cross_entropy(network(x[batch]), labels[batch])
            loss.backward()
            check_gradients(loss, parameters)
            adam.step()
            for latent in weights.values():
                clip_latents(latent.data)
        adam.lr = rate * (1 - (epoch + 1) / epochs)
        if progress and epoch % 5 == 4:
            print(f"epoch {epoch + 1:3}: loss {float(loss.data):.3f}", flush=True)
    return {name: flip_ratio(before[name], latent.data) for name, latent in weights.items()}


def check_gradients(loss: Any, parameters: Mapping[str, Any]) -> None:
    """Raise `Stopped` unless the loss is finite and a gradient arrives at each parameter."""
    if not np.isfinite(loss.data).all():
        raise Stopped([
            f"the loss is {float(np.mean(loss.data))}: exp has overflowed or log got 0. Subtract "
            "the largest score of each row before exp (cross_entropy)"
        ])  # fmt: skip
    failed = []
    for name, parameter in parameters.items():
        grad = parameter.grad
        if grad is None:
            failed.append(
                f"no gradient arrives at {name}: backward has not reached it. Is it among the "
                "parents of what is computed from it?"
            )
        elif np.shape(grad) != parameter.data.shape:
            failed.append(
                f"the gradient of {name} has shape {np.shape(grad)}, the parameter "
                f"{parameter.data.shape}: a rule returns one gradient for each parent, in the "
                "parent's shape (unbroadcast)"
            )
        elif not np.any(grad):
            failed.append(
                f"the gradient of {name} is 0 everywhere: something between it and the loss passes "
                "nothing on. The slope of sign is 0; its rule must use a pseudo-gradient (sign_ste)"
            )
        elif not np.isfinite(grad).all():
            failed.append(f"the gradient of {name} holds NaN or infinity")
    if failed:
        raise Stopped(failed)


def judge(
    accuracy: float, least: float, seeds: Sequence[float], flips: Mapping[str, float]
) -> list[str]:
    """Describe failures of training: a low accuracy, and layers whose signs never flip.

    Parameters
    ----------
    accuracy, least : float
        The accuracy reached and the one required.
    seeds : tuple of float
        Accuracy of ten seeds with good answers.
    flips : dict of str to float
        Share of flipped signs of each binary layer.

    Returns
    -------
    list of str
        A sentence for each failure.
    """
    failed = [
        f"no sign of {name} has flipped: its latent weights get gradients, but do not move across "
        "0. Are they updated and clipped in place (clip_latents), and are signs compared "
        "(flip_ratio)?"
        for name, share in flips.items()
        if not share > 0
    ]
    if not accuracy >= least:
        failed.append(
            f"{accuracy:.1%} of the test images are right, {least:.0%} are asked for; with good "
            f"answers ten seeds reach {min(seeds):.1%} to {max(seeds):.1%}. Gradients arrive, but "
            "they lead elsewhere: check the exercises that this milestone needs"
        )
    return failed


def latent(rng: np.random.Generator, *shape: int) -> Any:
    """Draw initial latent weights, a float32 Tensor, so close to 0 that signs flip early."""
    from mybnn.engine import Tensor

    return Tensor(rng.uniform(-0.3, 0.3, shape).astype(np.float32))


def norms(widths: Mapping[str, int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Make gammas of 1 and betas of 0, the student's Tensors: two dicts of layer to Tensor."""
    from mybnn.engine import Tensor

    gammas = {name: Tensor(np.ones(n, np.float32)) for name, n in widths.items()}
    betas = {name: Tensor(np.zeros(n, np.float32)) for name, n in widths.items()}
    return gammas, betas


def norm_parameters(gammas: Mapping[str, Any], betas: Mapping[str, Any]) -> dict[str, Any]:
    """Join gammas and betas in one dict with descriptive names."""
    named = {f"gamma of {name}": gamma for name, gamma in gammas.items()}
    return named | {f"beta of {name}": beta for name, beta in betas.items()}
