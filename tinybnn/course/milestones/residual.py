"""A chain of binary residual networks for milestones 4 to 6, each one step from the one before.

All have the same shape: a first convolution with binary weights on real pixels, pooling to 4 x 4,
eight binary convolutions of 3 x 3, each with a batch norm behind it, and a last layer of real
weights. `Network` is that of XNOR-Net; each step is a subclass that overrides what its paper
changed. `compare` trains networks with the same initial weights and the same batches, so that
they differ by the step alone.

As in milestone 3, the convolutions of the trained network run on words (`xnor_conv2d`), and they
must *equal* those of the float network in every value.

The `seeds` of each network are its accuracies of ten seeds, figures of

    [run(seed=s).figures for s in range(10)]

for the `run` of its milestone. One image of the 360 is 0.28 points, so the difference of a single
seed says little; `compare` prints that of ten beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tinybnn.course.milestones.milestone import (
    Outcome,
    Stopped,
    check_gradients,
    digits,
    fit,
    judge,
    latent,
    norm_parameters,
    norms,
)
from tinybnn.course.milestones.xnornet import as_images, as_rows, pooled
from tinybnn.typing import Array

CHANNELS = 32
FIRST = "convolution 1"
BLOCKS = tuple(f"block {i}" for i in range(2, 10))
FEATURES = CHANNELS * 4 * 4
EPOCHS, RATE = 10, 1e-2


class Network:
    """XNOR-Net: sign, convolution with scaled sums, batch norm; all that passes is signs.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of the initial weights. Subclasses draw nothing more, so their weights are the same.

    Attributes
    ----------
    estimator : str
        Name of the pseudo-gradient for the signs of activations.
    seeds : tuple of float
        Accuracies of ten seeds with good answers.
    weights, others : dict of str to Tensor
        Latent weights, and all other parameters.
    trained : bool
        Whether batch norms use the statistics of the last batch, and words are compared.
    compared, differing : int
        Numbers of values compared, and of those that differ.
    failed : list of str
        A sentence for each block with values that differ.
    """

    estimator: str = "ste_gradient"
    seeds: tuple[float, ...] = (
        0.8472,
        0.8361,
        0.8778,
        0.8861,
        0.8694,
        0.8778,
        0.875,
        0.8778,
        0.8806,
        0.8667,
    )
    weights: dict[str, Any]
    others: dict[str, Any]
    gammas: dict[str, Any]
    betas: dict[str, Any]
    last: Any
    statistics: dict[str, Any]
    trained: bool
    compared: int
    differing: int
    failed: list[str]

    def __init__(self, rng: np.random.Generator) -> None:
        from mybnn.engine import Tensor

        self.weights = {FIRST: latent(rng, CHANNELS, 1, 3, 3)}
        self.weights |= {name: latent(rng, CHANNELS, CHANNELS, 3, 3) for name in BLOCKS}
        self.gammas, self.betas = norms(dict.fromkeys(self.weights, CHANNELS))
        self.last = Tensor((rng.normal(size=(FEATURES, 10)) / FEATURES**0.5).astype(np.float32))
        self.others = norm_parameters(self.gammas, self.betas) | {"the last layer": self.last}
        self.statistics, self.trained = {}, False
        self.compared, self.differing, self.failed = 0, 0, []

    def __call__(self, x: Array) -> Any:
        """Map images (N, 1, 8, 8) to the scores, a Tensor (N, 10)."""
        from mybnn.convolution import binary_conv2d
        from mybnn.engine import Tensor

        x = pooled(self.norm(binary_conv2d(Tensor(x), self.weights[FIRST], padding=1), FIRST))
        for name in BLOCKS:
            sums = self.convolution(x, name)
            if self.trained:
                self._compare(name, self.convolution_on_words(x, name), sums.data)
            x = self.output(self.norm(sums, name), x, name)
        return x.reshape(len(x.data), FEATURES) @ self.last

    def argument(self, x: Any, name: str) -> Any:
        """Compute what a block takes the sign of, from its input: both Tensors (N, C, H, W)."""
        return x

    def signs(self, x: Any, name: str) -> Any:
        """Compute the signs that a block convolves, a Tensor (N, C, H, W)."""
        from mybnn import estimators

        gradient = getattr(estimators, self.estimator)
        return estimators.sign_ste(self.argument(x, name), gradient)

    def convolution(self, x: Any, name: str) -> Any:
        """Convolve the signs of a block's input, a Tensor (N, C, H, W), in floats."""
        from mybnn.convolution import binary_conv2d

        return binary_conv2d(self.signs(x, name), self.weights[name], padding=1)

    def convolution_on_words(self, x: Any, name: str) -> Array:
        """Compute the values of `convolution` on words, an array."""
        from mybnn.bits import sign
        from mybnn.convolution import weight_scale

        filters = self.weights[name].data
        sums = sums_on_words(sign(self.argument(x, name).data), sign(filters))
        return sums.astype(np.float32) * weight_scale(filters)[:, None, None]

    def norm(self, y: Any, name: str) -> Any:
        """Apply batch norm to (N, C, H, W), with the last batch's statistics once `trained`."""
        from mybnn.layers import batch_norm

        rows, gamma, beta = as_rows(y), self.gammas[name], self.betas[name]
        if self.trained:
            mean, var = self.statistics[name]
            rows = (rows - mean) / np.sqrt(var + 1e-5) * gamma + beta
        else:
            rows, *self.statistics[name] = batch_norm(rows, gamma, beta)
        return as_images(rows, y.shape)

    def output(self, y: Any, x: Any, name: str) -> Any:
        """Compute a block's output from its norm y and its input x, Tensors (N, C, H, W)."""
        return y

    def _compare(self, name, on_words, floats):
        """Count values of a block that differ between words and floats, and describe them."""
        differ = on_words != floats
        self.compared += differ.size
        wrong = int(np.count_nonzero(differ))
        if not wrong:
            return
        self.differing += wrong
        n, c, i, j = np.argwhere(differ)[0]
        self.failed.append(
            f"{wrong:,} of {differ.size:,} values of {name} differ between words and floats. Image "
            f"{n}, channel {c}, row {i}, column {j}: {on_words[n, c, i, j]:.6g} on words, "
            f"{floats[n, c, i, j]:.6g} in floats (xnor_conv2d, weight_scale, sign)"
        )


def compare(
    steps: Mapping[str, type[Network]],
    least: float,
    claims: Mapping[str, str],
    progress: bool,
    seed: int,
) -> Outcome:
    """Train networks from one seed, run each on words, and judge the last.

    Parameters
    ----------
    steps : dict of str to subclass of Network
        The network before the milestone's, one between them, and the milestone's.
    least : float
        The accuracy required of the last.
    claims : dict of str to str
        What papers say that networks reach on ImageNet, with the source.
    progress : bool
        Print losses.
    seed : int
        Of initial weights and batches.
    """
    x, labels, x_test, labels_test = digits()
    accuracies: dict[str, float] = {}
    failed, compared, differing = [], 0, 0
    flips: dict[str, float] = {}
    try:
        _check_estimators()
        for step, make in steps.items():
            if progress:
                print(step, flush=True)
            rng = np.random.default_rng(seed)
            network = make(rng)
            flips = fit(
                network, network.weights, network.others, x, labels,
                epochs=EPOCHS, rate=RATE, rng=rng, progress=progress,
            )  # fmt: skip
            network(x)  # statistics of all training images
            network.trained = True
            right = network(x_test).data.argmax(axis=1) == labels_test
            accuracies[step] = round(float(np.mean(right)), 4)
            compared += network.compared
            differing += network.differing
            failed += [f"{step}: {text}" for text in network.failed]
    except Stopped as stopped:
        return Outcome({}, failed + stopped.sentences)

    *before, newest = steps
    seeds = steps[newest].seeds
    figures: dict[str, Any] = {"test accuracy on words": accuracies[newest]}
    for step in before:
        gain = 100 * (accuracies[newest] - accuracies[step])
        ten = gains(seeds, steps[step].seeds)
        figures[f"of {step}, same seed"] = accuracies[step]
        figures[f"gain over {step}"] = f"{gain:+.1f} points; ten seeds: {ten}"
    figures |= {f"{network}, ImageNet, its paper": claim for network, claim in claims.items()}
    figures |= {"values compared with ==": compared, "values that differ": differing}
    figures |= {f"flipped in {k}": round(v, 4) for k, v in flips.items()}
    return Outcome(figures, judge(accuracies[newest], least, seeds, flips) + failed)


def gains(after: Sequence[float], before: Sequence[float]) -> str:
    """Describe differences of accuracies, paired by seed: mean and standard error in points."""
    points = 100 * np.subtract(after, before)
    error = np.std(points, ddof=1) / len(points) ** 0.5
    better = int(np.count_nonzero(points > 0))
    return f"{np.mean(points):+.1f} ± {error:.1f}, better in {better} of {len(points)}"


def sums_on_words(signs: Array, filters: Array) -> Array:
    """Convolve signs (N, C, H, W) with signs (O, C, 3, 3) on words: -> (N, O, H, W).

    Raises
    ------
    Stopped
        If the result has another shape.
    """
    from mybnn.convolution import xnor_conv2d

    sums = xnor_conv2d(signs, filters, padding=1)
    expected = (len(signs), len(filters), *signs.shape[2:])
    if np.shape(sums) != expected:
        raise Stopped([
            f"xnor_conv2d: expected shape {expected} for signs {signs.shape}, filters "
            f"{filters.shape} and padding 1, got {np.shape(sums)}"
        ])  # fmt: skip
    return sums


def channels(value: float) -> Any:
    """Make a learned number for each channel, the student's Tensor (1, C, 1, 1)."""
    from mybnn.engine import Tensor

    return Tensor(np.full((1, CHANNELS, 1, 1), value, np.float32))


def _check_estimators():
    """Raise `Stopped` if a sign passes no gradient: beside it, a shortcut would hide this."""
    from mybnn.engine import Tensor
    from mybnn.estimators import approx_gradient, sign_ste, ste_gradient

    for gradient in (ste_gradient, approx_gradient):
        x = Tensor(np.linspace(-1.5, 1.5, 7, dtype=np.float32))
        total = sign_ste(x, gradient).sum()
        total.backward()
        check_gradients(total, {f"the argument of a sign with {gradient.__name__}": x})
