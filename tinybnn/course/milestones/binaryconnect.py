"""Milestone 1, BinaryConnect (2015): binary weights, real activations.

M. Courbariaux, Y. Bengio, J.-P. David: *BinaryConnect: Training Deep Neural Networks with binary
weights during propagations*, NIPS 2015, arXiv:1511.00363.

The observation of the paper: gradient descent makes many small steps, and a weight of one bit
cannot take a small step. So each weight is there twice. Forward and backward compute with its sign
(`binary_linear`). The gradient is added to a real, *latent* weight, which remembers small steps
until its sign flips. After each step it is clipped to [-1, 1] (`clip_latents`): further out it
would change nothing, and take long to come back. Products with weights become additions and
subtractions.

The network: the 64 pixels as real numbers, two hidden layers of 256, each with binary weights,
batch norm and relu, and ten scores by binary weights. As in the paper, only weights are signs.
Other than there, the loss is cross entropy (the paper: a squared hinge), and the batch norm of the
trained network has the statistics of all training images (the paper: running averages).

With good answers it takes about 2 seconds on one core. `SEEDS` are the accuracies of ten seeds:

    [round(run(seed=s).figures["test accuracy"], 4) for s in range(10)]
"""

from __future__ import annotations

import numpy as np

from tinybnn.course.milestones.milestone import (
    Milestone,
    Outcome,
    Stopped,
    digits,
    fit,
    judge,
    latent,
    norm_parameters,
    norms,
)

WIDTHS = (64, 256, 256, 10)
EPOCHS, RATE = 20, 1e-2
SEEDS = (0.95, 0.9472, 0.9528, 0.9361, 0.9444, 0.95, 0.9444, 0.9472, 0.9333, 0.9417)
LEAST = 0.92


def run(progress: bool = False, seed: int = 0) -> Outcome:
    """Train and judge."""
    from mybnn.bits import sign
    from mybnn.engine import Tensor
    from mybnn.layers import batch_norm, binary_linear

    rng = np.random.default_rng(seed)
    x, labels, x_test, labels_test = digits()
    x, x_test = x.reshape(len(x), -1), x_test.reshape(len(x_test), -1)

    shapes = zip(WIDTHS[1:], WIDTHS[:-1], strict=True)
    weights = {f"layer {i}": latent(rng, m, k) for i, (m, k) in enumerate(shapes, 1)}
    *hidden, last = weights
    gammas, betas = norms(dict(zip(hidden, WIDTHS[1:-1], strict=True)))
    statistics = {}

    def network(x):
        x = Tensor(x)
        for name in hidden:
            x = binary_linear(x, weights[name])  # the sign of the latent weight, nothing else
            x, *statistics[name] = batch_norm(x, gammas[name], betas[name])
            x = x.relu()
        return binary_linear(x, weights[last]) * WIDTHS[-2] ** -0.5

    def predict(x):
        """The trained network: only signs are left of the weights."""
        for name in hidden:
            mean, var = statistics[name]
            x = x @ sign(weights[name].data).T
            x = (x - mean) / np.sqrt(var + 1e-5) * gammas[name].data + betas[name].data
            x = np.maximum(x, 0)
        return x @ sign(weights[last].data).T

    others = norm_parameters(gammas, betas)
    try:
        flips = fit(
            network, weights, others, x, labels,
            epochs=EPOCHS, rate=RATE, rng=rng, progress=progress,
        )  # fmt: skip
    except Stopped as stopped:
        return Outcome({}, stopped.sentences)
    network(x)  # statistics of all training images
    accuracy = round(float(np.mean(predict(x_test).argmax(axis=1) == labels_test)), 4)

    figures = {"test accuracy": accuracy} | {
        f"flipped in {k}": round(v, 4) for k, v in flips.items()
    }
    return Outcome(figures, judge(accuracy, LEAST, SEEDS, flips))


MILESTONE = Milestone(
    1, "BinaryConnect", 2015, "Training Deep Neural Networks with binary weights",
    ("00.1", "01.1", "01.2", "01.3", "01.4", "02.1", "02.4", "03.1", "03.2", "03.3", "03.4",
     "03.5"), run, 15.0,
)  # fmt: skip
