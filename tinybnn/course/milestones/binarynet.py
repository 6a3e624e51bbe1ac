"""Milestone 2, BinaryNet (2016): weights and activations are signs; it runs on words.

M. Courbariaux, I. Hubara, D. Soudry, R. El-Yaniv, Y. Bengio: *Binarized Neural Networks*, NIPS
2016, arXiv:1602.02830.

BinaryConnect still adds real numbers. If the activations are signs as well, a sum of products is a
count of equal bits: XNOR and popcount, 64 products in a word. That takes two additions to
BinaryConnect. The gradient passes the sign of an activation by the straight-through estimator,
where its argument is within [-1, 1] (`sign_ste`), and a batch norm before each sign keeps the
argument there (`batch_norm`).

In the trained network, batch norm and sign of an integer sum are one comparison with a threshold
(`fold`). So the whole network is products of words, comparisons, and a last product whose integers
are the scores (`packed_predict`). They must *equal* those of the float network, for every test
image; and so must every sign between the layers.

The network: each pixel as three signs (does it reach a quarter, a half, three quarters of full
ink?), two hidden layers of 256, and ten scores. Other than in the paper, the first layer's input is
signs too (there: pixels, bit by bit), and no batch norm follows the scores.

With good answers it takes about 3 seconds on one core. `SEEDS` are the accuracies of ten seeds:

    [round(run(seed=s).figures["test accuracy on words"], 4) for s in range(10)]
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
from tinybnn.typing import Array

LEVELS = (-0.5, 0.0, 0.5)
WIDTHS = (64 * len(LEVELS), 256, 256, 10)
EPOCHS, RATE = 30, 1e-2
SEEDS = (0.9028, 0.9111, 0.9, 0.9111, 0.9028, 0.9167, 0.9167, 0.9111, 0.9167, 0.9194)
LEAST = 0.89


def thermometer(pixels: Array) -> Array:
    """Encode pixels (N, 1, 8, 8) as signs (N, 192) float32: +1 where a level is reached."""
    signs = [np.where(pixels >= level, np.float32(1), np.float32(-1)) for level in LEVELS]
    return np.concatenate([s.reshape(len(s), -1) for s in signs], axis=1)


def run(progress: bool = False, seed: int = 0) -> Outcome:
    """Train, fold, run on words, and judge."""
    from mybnn.bits import sign
    from mybnn.engine import Tensor
    from mybnn.estimators import sign_ste
    from mybnn.layers import batch_norm, binary_linear

    rng = np.random.default_rng(seed)
    x, labels, x_test, labels_test = digits()
    x, x_test = thermometer(x), thermometer(x_test)

    shapes = zip(WIDTHS[1:], WIDTHS[:-1], strict=True)
    weights = {f"layer {i}": latent(rng, m, k) for i, (m, k) in enumerate(shapes, 1)}
    *hidden, last = weights
    gammas, betas = norms(dict(zip(hidden, WIDTHS[1:-1], strict=True)))
    statistics = {}

    def network(x):
        x = Tensor(x)
        for name in hidden:
            x = binary_linear(x, weights[name])
            x, *statistics[name] = batch_norm(x, gammas[name], betas[name])
            x = sign_ste(x)
        return binary_linear(x, weights[last]) * WIDTHS[-2] ** -0.5

    others = norm_parameters(gammas, betas)
    try:
        flips = fit(
            network, weights, others, x, labels,
            epochs=EPOCHS, rate=RATE, rng=rng, progress=progress,
        )  # fmt: skip
    except Stopped as stopped:
        return Outcome({}, stopped.sentences)
    network(x)  # statistics of all training images

    layers = [
        (name, sign(weights[name].data), (*statistics[name], gammas[name].data, betas[name].data))
        for name in hidden
    ]
    on_words, wrong, compared, failed = _compare(layers, sign(weights[last].data), x_test)
    accuracy = round(float(np.mean(on_words.argmax(axis=1) == labels_test)), 4)
    figures = {"test accuracy on words": accuracy, "values compared with ==": compared}
    figures["scores that differ"] = wrong
    figures |= {f"flipped in {k}": round(v, 4) for k, v in flips.items()}
    return Outcome(figures, judge(accuracy, LEAST, SEEDS, flips) + failed)


def _compare(layers, last, x):
    """Run the trained network in floats and in words, layer by layer.

    Parameters
    ----------
    layers : list of (name, signs (M, K), batch norm)
    last : (10, K) signs
    x : (N, K) signs

    Returns
    -------
    on_words : (N, 10) scores by words
    wrong : number of scores that differ
    compared : number of values compared
    failed : list of str
    """
    from mybnn.bits import sign
    from mybnn.folding import fold, normalized, packed_predict
    from mybnn.packing import pack

    a, failed, packed, compared = x, [], [], 0
    for name, signs, norm in layers:
        k = signs.shape[1]
        thresholds, flipped = fold(k, *norm)
        packed.append({"words": pack(signs), "k": k, "thresholds": thresholds, "flipped": flipped})
        sums = a @ signs.T
        values = normalized(sums, *norm)
        differ = ((sums >= thresholds) != flipped) != (values >= 0)
        compared += differ.size
        if differ.any():
            failed.append(_differs(name, differ, sums, values, thresholds, flipped, norm[2]))
        a = sign(values)
    scores = a @ last.T
    packed.append({"words": pack(last), "k": last.shape[1]})
    on_words = packed_predict(packed, x)
    wrong = int(np.count_nonzero(on_words != scores))
    if wrong and not failed:
        failed.append(
            f"{wrong:,} of {scores.size:,} scores differ between the words and the float network, "
            "though every threshold is right: look at packed_predict, pack and xnor_matmul"
        )
    return on_words, wrong, compared + scores.size, failed


def _differs(name, differ, sums, values, thresholds, flipped, gamma):
    """Describe comparisons of integers that differ from the signs of the float network."""
    i, c = np.argwhere(differ)[0]
    return (
        f"{np.count_nonzero(differ):,} of {differ.size:,} signs behind {name} differ between words "
        f"and floats, in {np.count_nonzero(differ.any(axis=0))} channels. Image {i}, channel {c} "
        f"(gamma {gamma[c]:.3g}): the sum {int(sums[i, c])} has the norm {values[i, c]:.3g}, but "
        f"fold says threshold {thresholds[c]}, flipped {flipped[c]}"
    )


MILESTONE = Milestone(
    2, "BinaryNet", 2016, "Binarized Neural Networks",
    ("00.1", "01.1", "01.2", "01.3", "01.4", "02.1", "02.4", "03.1", "03.2", "03.3", "03.4",
     "03.5", "04.1", "04.2", "04.3", "06.1", "06.2", "06.4"), run, 20.0,
)  # fmt: skip
