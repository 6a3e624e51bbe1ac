"""Milestone 8, BD-Net (2025): depth-wise convolutions of signs.

D. Kim et al.: *BD-Net: Has Depth-Wise Convolution Ever Been Applied in Binary Neural Networks?*,
2025, arXiv:2511.17633.

Mobile networks look at neighbouring pixels in each channel alone (depth-wise, 3 x 3), and mix
channels at each pixel alone (1 x 1). With signs the first of the two resists: a sum of nine signs
has ten values, so a sign that flips changes much. BD-Net's remedies are both here. Two planes of
signs make weights of three levels, log2(3) = 1.58 bits each (`three_levels`). And the input is
added to the sums *before* the batch norm as well (`residual_norm`), so that the norm divides by the
spread of real numbers, and not by that of a few signs.

In the trained network each depth-wise convolution is two products of words (`dual_matmul`) and each
1 x 1 convolution is one (`xnor_conv2d`). They must *equal* those of the float network in every
value. The frame around the images is -1, a sign like all others.

The network on 8 x 8 pixels: a first convolution with binary weights on real pixels, two units of a
depth-wise and a 1 x 1 layer, and a last layer of real weights. Each layer has its shortcut, and a
boundary of its own for each channel where the sign changes. Other than in the paper, the two planes
share this boundary and one output value, so the three levels are those of the weights; a relu takes
the place of its activation with learned slopes.

With good answers it takes about 12 seconds on one core. `SEEDS` are the accuracies of ten seeds:

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
from tinybnn.course.milestones.xnornet import as_images, as_rows, pooled

CHANNELS = 32
FIRST, PLANES = "convolution 1", ("plane 1", "plane 2")
UNITS = {
    unit: (f"depth-wise layer of {unit}", f"1 x 1 layer of {unit}") for unit in ("unit 1", "unit 2")
}
FEATURES = CHANNELS * 4 * 4  # the second unit has images of 4 x 4
EPOCHS, RATE = 10, 1e-2
SEEDS = (0.9333, 0.9222, 0.925, 0.925, 0.9333, 0.9111, 0.9222, 0.9194, 0.9278, 0.9167)
LEAST = 0.9


def run(progress: bool = False, seed: int = 0) -> Outcome:
    """Train, run the convolutions on words, and judge."""
    from mybnn.bits import sign
    from mybnn.convolution import binary_conv2d, weight_scale, xnor_conv2d
    from mybnn.dual import depthwise_conv2d, residual_norm, three_levels
    from mybnn.engine import Tensor
    from mybnn.estimators import sign_ste
    from mybnn.layers import batch_norm

    rng = np.random.default_rng(seed)
    x, labels, x_test, labels_test = digits()

    weights, boundaries, scales = {FIRST: latent(rng, CHANNELS, 1, 3, 3)}, {}, {}
    for unit, (spatial, pointwise) in UNITS.items():
        for plane in PLANES:
            weights[f"{plane} of {unit}"] = latent(rng, CHANNELS, 3, 3)
        weights[pointwise] = latent(rng, CHANNELS, CHANNELS, 1, 1)
        for name in (spatial, pointwise):
            boundaries[name] = _channels(0)
        scales[spatial] = _channels(1 / 3)  # nine signs have a variance of 9
    gammas, betas = norms(dict.fromkeys([FIRST, *boundaries], CHANNELS))
    last = Tensor((rng.normal(size=(FEATURES, 10)) / FEATURES**0.5).astype(np.float32))
    statistics = {}

    def planes(unit):
        return [weights[f"{plane} of {unit}"] for plane in PLANES]

    def norm(y, name):
        rows, *statistics[name] = batch_norm(as_rows(y), gammas[name], betas[name])
        return as_images(rows, y.shape)

    def network(x):
        x = norm(binary_conv2d(Tensor(x), weights[FIRST], padding=1), FIRST)
        for unit, (spatial, pointwise) in UNITS.items():
            signs = sign_ste(x - boundaries[spatial])
            sums = depthwise_conv2d(signs, three_levels(*planes(unit)), padding=1, value=-1)
            x, *statistics[spatial] = residual_norm(
                sums * scales[spatial], x, gammas[spatial], betas[spatial]
            )
            x = x.relu()
            sums = binary_conv2d(sign_ste(x - boundaries[pointwise]), weights[pointwise])
            x = (norm(sums, pointwise) + x).relu()
            if unit == "unit 1":
                x = pooled(x)
        return x.reshape(len(x.data), FEATURES) @ last

    others = norm_parameters(gammas, betas) | {"the last layer": last}
    others |= {f"boundaries of {name}": value for name, value in boundaries.items()}
    others |= {f"scales of {name}": value for name, value in scales.items()}
    try:
        flips = fit(
            network, weights, others, x, labels,
            epochs=EPOCHS, rate=RATE, rng=rng, progress=progress,
        )  # fmt: skip
    except Stopped as stopped:
        return Outcome({}, stopped.sentences)
    network(x)  # statistics of all training images

    # The trained network: each convolution of signs in floats and on words.
    def fixed_norm(y, name):
        mean, var = statistics[name]
        rows = (as_rows(y) - mean) / np.sqrt(var + 1e-5) * gammas[name].data + betas[name].data
        return as_images(rows, y.shape)

    failed, compared, differing = [], 0, 0

    def on_words(name, values, floats):
        nonlocal compared, differing
        compared += floats.size
        if wrong := int(np.count_nonzero(values != floats)):
            differing += wrong
            failed.append(_differs(name, values, floats, wrong))
        return values

    a = fixed_norm(binary_conv2d(Tensor(x_test), weights[FIRST], padding=1).data, FIRST)
    for unit, (spatial, pointwise) in UNITS.items():
        signs = sign(a - boundaries[spatial].data)
        floats = depthwise_conv2d(Tensor(signs), three_levels(*planes(unit)), 1, -1).data
        sums = on_words(spatial, _dual_sums(signs, *(sign(p.data) for p in planes(unit))), floats)
        sums = sums.astype(np.float32) * scales[spatial].data
        a = np.maximum(fixed_norm(sums + a, spatial) + a, 0)
        signs, filters = sign(a - boundaries[pointwise].data), weights[pointwise]
        floats = binary_conv2d(Tensor(signs), filters).data
        sums = xnor_conv2d(signs, sign(filters.data)).astype(np.float32)
        sums = on_words(pointwise, sums * weight_scale(filters.data)[:, None, None], floats)
        a = np.maximum(fixed_norm(sums, pointwise) + a, 0)
        if unit == "unit 1":
            a = pooled(a)
    scores = a.reshape(len(a), FEATURES) @ last.data

    accuracy = round(float(np.mean(scores.argmax(axis=1) == labels_test)), 4)
    figures = {"test accuracy on words": accuracy, "values compared with ==": compared}
    figures["values that differ"] = differing
    figures |= {f"flipped in {k}": round(v, 4) for k, v in flips.items()}
    return Outcome(figures, judge(accuracy, LEAST, SEEDS, flips) + failed)


def _channels(value):
    """Make a learned number for each channel, the student's Tensor (1, C, 1, 1)."""
    from mybnn.engine import Tensor

    return Tensor(np.full((1, CHANNELS, 1, 1), value, np.float32))


def _dual_sums(signs, first, second):
    """Convolve each channel by two products of words: (N, C, H, W) -> the same shape, int32.

    Parameters
    ----------
    signs : (N, C, H, W)
    first, second : (C, 3, 3) signs
    """
    from mybnn.convolution import windows
    from mybnn.dual import dual_matmul
    from mybnn.packing import pack

    images, channels, height, width = signs.shape
    seen = windows(signs, 3, padding=1, value=-1).reshape(-1, channels, 9)
    words, planes = pack(seen), [pack(plane.reshape(channels, 9)) for plane in (first, second)]
    sums = [
        dual_matmul(words[:, c], *(plane[c : c + 1] for plane in planes), 9)[:, 0]
        for c in range(channels)
    ]
    return np.stack(sums, axis=1).reshape(images, height, width, channels).transpose(0, 3, 1, 2)


def _differs(name, on_words, floats, wrong):
    """Describe the values of a layer that differ."""
    n, c, i, j = np.argwhere(on_words != floats)[0]
    function = "dual_matmul" if name.startswith("depth-wise") else "xnor_conv2d, weight_scale"
    return (
        f"{wrong:,} of {floats.size:,} values of {name} differ between words and floats. Image "
        f"{n}, channel {c}, row {i}, column {j}: {on_words[n, c, i, j]:.6g} on words, "
        f"{floats[n, c, i, j]:.6g} in floats ({function})"
    )


MILESTONE = Milestone(
    8, "BD-Net", 2025, "Has Depth-Wise Convolution Ever Been Applied in Binary Neural Networks?",
    ("00.1", "01.1", "01.2", "01.3", "01.4", "02.1", "02.4", "03.2", "03.3", "03.4", "03.5",
     "04.1", "04.2", "04.3", "05.1", "05.2", "05.3", "05.4", "10.1", "10.2", "10.3", "10.4"),
    run, 40.0,
)  # fmt: skip
