"""Milestone 3, XNOR-Net (2016): binary convolutions whose sums are scaled.

M. Rastegari, V. Ordonez, J. Redmon, A. Farhadi: *XNOR-Net: ImageNet Classification Using Binary
Convolutional Neural Networks*, ECCV 2016, arXiv:1603.05279.

A sign forgets how large a weight was. XNOR-Net keeps one number of each filter: among all multiples
of its signs, alpha * sign(w) with alpha = mean |w| lies nearest to the filter w (`weight_scale`).
The second idea is the order within a block: batch norm, sign, convolution, pooling. So the norm
stands right before the sign, and pooling sees sums with many values, not signs.

alpha multiplies the integer sum once it is complete, so inside there is still nothing but XNOR and
popcount (`xnor_conv2d`). The packed convolution, with zeros around the image, must *equal* the
float one in every value of each block.

The network on 8 x 8 pixels: a first convolution, two binary blocks, and a last layer of real
weights, as in the paper. Other than there, the first convolution has binary weights too (on real
pixels), pooling takes the mean of 2 x 2 sums and not the largest, and activations have no scale of
their own, which matters little according to the paper.

With good answers it takes about 13 seconds on one core. `SEEDS` are the accuracies of ten
seeds:

    [round(run(seed=s).figures["test accuracy on words"], 4) for s in range(10)]
"""

from __future__ import annotations

from typing import Any

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
from tinybnn.typing import Shape

FILTERS = {"convolution 1": (16, 1, 3, 3), "block 2": (64, 16, 3, 3), "block 3": (64, 64, 3, 3)}
FEATURES = 64 * 4 * 4
EPOCHS, RATE = 20, 1e-2
SEEDS = (0.9167, 0.9167, 0.9333, 0.9333, 0.9194, 0.925, 0.9389, 0.925, 0.9083, 0.9194)
LEAST = 0.9


def pooled(x: Any) -> Any:
    """Average 2 x 2 pixels: Tensor (N, C, H, W) -> (N, C, H / 2, W / 2)."""
    n, c, height, width = x.data.shape
    return x.reshape(n, c, height // 2, 2, width // 2, 2).mean(axis=(3, 5))


def as_rows(x: Any) -> Any:
    """Convert (N, C, H, W) to (N H W, C), so that batch norm has its channels in the columns."""
    n, c, height, width = x.shape
    return x.transpose(0, 2, 3, 1).reshape(n * height * width, c)


def as_images(rows: Any, shape: Shape) -> Any:
    """Convert rows (N H W, C) back to images of a shape (N, C, H, W)."""
    n, c, height, width = shape
    return rows.reshape(n, height, width, c).transpose(0, 3, 1, 2)


def run(progress: bool = False, seed: int = 0) -> Outcome:
    """Train, run the convolutions on words, and judge."""
    from mybnn.bits import sign
    from mybnn.convolution import binary_conv2d, weight_scale, xnor_conv2d
    from mybnn.engine import Tensor
    from mybnn.estimators import sign_ste
    from mybnn.layers import batch_norm

    rng = np.random.default_rng(seed)
    x, labels, x_test, labels_test = digits()

    weights = {name: latent(rng, *shape) for name, shape in FILTERS.items()}
    first, *blocks = weights
    gammas, betas = norms({name: FILTERS[name][1] for name in blocks})
    last = Tensor((rng.normal(size=(FEATURES, 10)) / FEATURES**0.5).astype(np.float32))
    statistics = {}

    def network(x):
        x = binary_conv2d(Tensor(x), weights[first], padding=1)
        for name in blocks:
            shape = x.data.shape
            rows, *statistics[name] = batch_norm(as_rows(x), gammas[name], betas[name])
            x = sign_ste(as_images(rows, shape))
            x = binary_conv2d(x, weights[name], padding=1)
            if name == "block 2":
                x = pooled(x)
        return x.reshape(len(x.data), FEATURES) @ last

    others = norm_parameters(gammas, betas) | {"the last layer": last}
    try:
        flips = fit(
            network, weights, others, x, labels,
            epochs=EPOCHS, rate=RATE, rng=rng, progress=progress,
        )  # fmt: skip
    except Stopped as stopped:
        return Outcome({}, stopped.sentences)
    network(x)  # statistics of all training images

    # The trained network: each block's convolution in floats and in words.
    failed, compared, differing = [], 0, 0
    a = binary_conv2d(Tensor(x_test), weights[first], padding=1)
    for name in blocks:
        mean, var = statistics[name]
        rows = (as_rows(a.data) - mean) / np.sqrt(var + 1e-5) * gammas[name].data
        signs = sign(as_images(rows + betas[name].data, a.data.shape))
        a = binary_conv2d(Tensor(signs), weights[name], padding=1)
        filters = weights[name].data
        sums = xnor_conv2d(signs, sign(filters), padding=1)
        on_words = sums.astype(np.float32) * weight_scale(filters)[:, None, None]
        compared += on_words.size
        if wrong := int(np.count_nonzero(on_words != a.data)):
            differing += wrong
            failed.append(_differs(name, on_words, a.data, wrong))
        a = Tensor(on_words)
        if name == "block 2":
            a = pooled(a)
    scores = a.data.reshape(len(x_test), FEATURES) @ last.data

    accuracy = round(float(np.mean(scores.argmax(axis=1) == labels_test)), 4)
    figures = {"test accuracy on words": accuracy, "values compared with ==": compared}
    figures["values that differ"] = differing
    figures |= {f"flipped in {k}": round(v, 4) for k, v in flips.items()}
    return Outcome(figures, judge(accuracy, LEAST, SEEDS, flips) + failed)


def _differs(name, on_words, floats, wrong):
    """Describe the values of a block that differ, and whether they are all at the border."""
    differ = on_words != floats
    where = "" if differ[:, :, 1:-1, 1:-1].any() else (
        ", all at the border: what stands outside the image must count as 0, not as -1 or +1"
    )  # fmt: skip
    n, c, i, j = np.argwhere(differ)[0]
    return (
        f"{wrong:,} of {differ.size:,} values of {name} differ between words and floats{where}. "
        f"Image {n}, channel {c}, row {i}, column {j}: {on_words[n, c, i, j]:.6g} on words, "
        f"{floats[n, c, i, j]:.6g} in floats (xnor_conv2d, weight_scale)"
    )


MILESTONE = Milestone(
    3, "XNOR-Net", 2016, "ImageNet Classification Using Binary Convolutional Neural Networks",
    ("00.1", "01.1", "01.2", "01.3", "01.4", "02.1", "02.4", "03.2", "03.3", "03.4", "03.5",
     "04.1", "04.2", "04.3", "05.1", "05.2", "05.3", "05.4"), run, 40.0,
)  # fmt: skip
