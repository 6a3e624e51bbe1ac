# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The landscape of a binary network
#
# **You will learn** what the loss of a binary network looks like from the weights' point of view: a
# staircase that training never sees, and a smooth surface that it follows instead; how to draw a
# line through that landscape so that the picture means something; and what a single flip costs.
#
# **You need** surrogates and straight-through estimators from
# [02](02_the_gradient_of_sign.ipynb), and latent weights, batch norm and flips from
# [03](03_first_binary_network.ipynb).
#
# **Time** 11 minutes of reading; the cells run in about half a minute on two cores.

# %%
import matplotlib.pyplot as plt
import numpy as np

from tinybnn import Tensor, analysis, datasets, nn, optim, plots, quantizers, training
from tinybnn import functional as F

train, test = datasets.load("digits")

# %% [markdown]
# ## The question
#
# Take the smallest binary network: one latent weight $w$, one input $x = 1$, a target of 0.4, and
# the loss $(\operatorname{sign}(w)\, x - 0.4)^2$. It has two values, $(1 - 0.4)^2 = 0.36$ and
# $(-1 - 0.4)^2 = 1.96$, and its slope is 0 nearly everywhere: there is nothing for gradient descent
# to follow. The straight-through estimator pretends that sign has the slope of another function,
# its *surrogate*, here $\operatorname{clip}(w, -1, 1)$. Inside `quantizers.surrogates()` the
# network computes with the surrogate itself.

# %%
steps, target = np.linspace(-1.6, 1.6, 161), 0.4
q = quantizers.SteSign()
staircase = (q(steps) - target) ** 2
with quantizers.surrogates():
    slope = (q(steps) - target) ** 2

figure, ax = plt.subplots(figsize=(6, 2.8), layout="constrained")
ax.plot(steps, staircase, color=plots.MINUS, label="binary: what the network computes")
ax.plot(steps, slope, "--", color=plots.PLUS, label="surrogate: what training believes")
ax.set(xlabel="latent weight w", ylabel="loss")
ax.legend(fontsize=8)
plt.show()

print("lowest point of the surrogate at", steps[slope.argmin()].round(2))

assert np.allclose(np.unique(staircase.round(9)), [0.36, 1.96])
assert np.isclose(steps[slope.argmin()], 0.4)

# %% [markdown]
# Both agree beyond the clip, from $w = \pm 1$ on, and nowhere else. The surrogate has its lowest
# point at $w = 0.4$, where the binary loss is no better than anywhere right of 0. Training goes
# there, to and fro over nothing, or to and fro over the jump if the lowest point is near 0.
#
# **What do the two look like for a network of 9,000 weights, and how near to each other are they?**
#
# ## The naive version
#
# Here is a network to look at: one real layer, two binary ones, for the digits. (`swish_sign` has a
# smooth surrogate.) While it trains, `FlipTracker` counts how many weights change their sign in
# each step, and how many return within ten steps; a snapshot of all weights is kept each epoch.

# %%
rng = np.random.default_rng(0)
smooth = {"input_quantizer": "swish_sign", "weight_quantizer": "swish_sign", "rng": rng}
model = nn.Sequential(
    nn.Flatten(),
    nn.Linear(64, 64, bias=False, rng=rng),
    nn.BatchNorm1d(64),
    nn.BinaryLinear(64, 64, **smooth),
    nn.BatchNorm1d(64),
    nn.BinaryLinear(64, 10, **smooth),
    nn.BatchNorm1d(10),
)
loader = datasets.DataLoader(train, 64, shuffle=True, rng=np.random.default_rng(1))
optimizer = optim.Adam(model.parameters(), lr=1e-2)
schedule = optim.CosineAnnealingLR(optimizer, 20 * len(loader))
tracker = analysis.FlipTracker(model)
way = [analysis.parameter_vector(model)]

for _ in range(20):
    for x, labels in loader:
        optimizer.zero_grad()
        F.cross_entropy(model(Tensor(x)), labels).backward()
        optimizer.step()
        schedule.step()
        tracker.step()
    way.append(analysis.parameter_vector(model))

found = training.evaluate(model, datasets.DataLoader(test, 256))
print(f"test accuracy {found['accuracy']:.1%}, {len(way[0]):,} parameters")

assert found["accuracy"] > 0.85

# %% [markdown]
# 9,000 weights have 9,000 axes. The simplest picture: choose a random direction $d$ of normally
# distributed numbers, and draw the loss at $\theta + a\,d$ for $a$ from -1 to 1. (Batch norms
# keep their parameters; they normalize each place anew.) As a test, the same for a second network,
# whose first layer has all weights times 10. That layer stands before a batch norm, which divides
# by 10 again: the two networks compute the same.

# %%
batches = list(datasets.DataLoader(train[:512], 512))
places = np.linspace(-1, 1, 41)


def plain_direction(model, seed=1):
    """Normal numbers for all weights, zeros for batch norms."""
    rng = np.random.default_rng(seed)
    parts = [rng.normal(size=p.shape) * 0.2 * (p.ndim > 1) for p in model.parameters()]
    return np.concatenate([part.ravel() for part in parts]).astype(np.float32)


def binary_loss(model, direction):
    line = analysis.loss_landscape(
        model, batches, [direction], [places], surfaces=["binary"], training=True
    )
    return np.asarray(line.losses["binary"])


def both_networks(direction_of):
    """Losses along a line: of the network, and of its twin with a larger first layer."""
    losses = [binary_loss(model, direction_of(model))]
    model[1].weight.data *= 10
    losses.append(binary_loss(model, direction_of(model)))
    model[1].weight.data /= np.float32(10)
    return losses


def draw(losses):
    _, ax = plt.subplots(figsize=(6, 2.6), layout="constrained")
    for values, color, name in zip(
        losses, (plots.MINUS, plots.PLUS), ("network", "first layer times 10"), strict=True
    ):
        ax.plot(places, values, color=color, label=name)
    ax.set(xlabel="a", ylabel="loss")
    ax.legend(fontsize=8)
    plt.show()


plain = both_networks(plain_direction)
draw(plain)

assert np.isclose(plain[0][20], plain[1][20], rtol=0.01)  # the same network at a = 0
assert np.abs(plain[0] - plain[1]).max() > 0.1  # and another landscape

# %% [markdown]
# The same function, two landscapes. A step of a given length is long for small weights and short
# for large ones, and the size of weights before a batch norm means nothing. Such a picture shows
# the size of the weights, not the network.
#
# ## The better version: filters of their own length
#
# *Filter normalization* (Li et al. 2018) measures the step by the weights. A *filter* is all that
# feeds one output: a row of a dense layer's weight. Each filter of the direction is scaled to the
# length (the root of the sum of squares) of the weight's filter. Two filters of two weights:
#
# | | direction | its length | weight | its length | scaled direction |
# |---|---|---|---|---|---|
# | filter 0 | (3, 4) | 5 | (0.6, 0.8) | 1 | (0.6, 0.8) |
# | filter 1 | (0, 2) | 2 | (4, 3) | 5 | (0, 5) |
#
# At $a = 1$ each filter has moved by its own length. Parameters with one axis (biases, batch norms)
# do not move.


# %%
def lengths(rows):
    return np.sqrt((rows**2).sum(axis=1, keepdims=True))


direction = np.array([[3.0, 4.0], [0.0, 2.0]])
weight = np.array([[0.6, 0.8], [4.0, 3.0]])
scaled = direction * lengths(weight) / lengths(direction)
print(scaled)

assert np.allclose(scaled, [[0.6, 0.8], [0, 5]]) and np.allclose(lengths(scaled), lengths(weight))

normalized = both_networks(lambda model: analysis.random_direction(model, seed=1))
draw(normalized)

assert np.allclose(normalized[0], normalized[1], rtol=0.02)

# %% [markdown]
# Now both networks have one landscape, and one curve hides the other. (The small $\varepsilon$ of
# batch norm is all that differs.)
#
# ## Both landscapes
#
# Along the same line, the binary loss and the surrogate's:

# %%
direction = analysis.random_direction(model, seed=1)
line = analysis.loss_landscape(model, batches, [direction], [np.linspace(-1, 1, 81)], training=True)
figure, ax = plt.subplots(figsize=(7.5, 3.2), layout="constrained")
plots.landscape(line.coordinates[0], line.losses, ax=ax)
plt.show()

jumps = {name: np.abs(np.diff(losses, 2)).mean() for name, losses in line.losses.items()}
print("mean second difference:", {name: round(float(v), 4) for name, v in jumps.items()})

assert jumps["binary"] > 2 * jumps["surrogate"]

# %% [markdown]
# And over a plane, spanned by the two directions in which training itself moved most, with its way
# from the first weights to the last:

# %%
path = analysis.trajectory(way)
reach = [1.2 * np.abs(axis).max() for axis in path.coordinates.T]
axes = [np.linspace(-r, r, 15) for r in reach]
plane = analysis.loss_landscape(model, batches, path.directions, axes, training=True)

figure, panels = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
for ax, (surface, losses) in zip(panels, plane.losses.items(), strict=True):
    plots.contours(*axes, losses, path.coordinates, ax=ax)
    ax.set(title=surface)
plt.show()

print(f"{path.explained.sum():.0%} of the way lies in this plane")

assert path.explained.sum() > 0.5

# %% [markdown]
# The surrogate's valley is smooth, and training has walked down into it. The binary loss has the
# same valley, seen through a rough glass: at every place it is the loss of another network, and
# from step to step it jumps. Where the two valleys lie together, the estimator serves its purpose;
# where they part, training goes to a place that is good for a network that nobody will run.
#
# ## Flips that lead back
#
# What did the weights do on that way?

# %%
for row in tracker.rows:
    print(
        f"layer {row['layer']}: {row['flipped']:.0%} of the weights flipped at least once, "
        f"{row['return_share']:.0%} of all flips led back"
    )

rates = [np.array(tracker.flips[row["layer"]]) / row["weights"] for row in tracker.rows]
figure, ax = plt.subplots(figsize=(7.5, 2.2), layout="constrained")
plots.sign_flips(np.stack(rates, axis=1), list(tracker.flips), ax=ax)
plt.show()

tenth = len(rates[0]) // 10
for rate in rates:
    print(f"flips a step: first tenth {rate[:tenth].mean():.2%}, last {rate[-tenth:].mean():.2%}")
    assert rate[-tenth:].mean() < rate[:tenth].mean() / 2

# %% [markdown]
# Most flips fall silent when the learning rate does, not because the network has found something
# but because its steps get shorter than the distance to 0. Many of the flips had no lasting effect:
# the weight came back within ten steps. This is the to and fro of the first picture (Nagel et al.
# 2022 call it oscillation).
#
# ## Measured
#
# A binary network has something that no float network has: a finite number of next steps. Each
# weight can flip, or not. `flip_spectrum` computes the change of the true loss for every single
# flip of a layer, 4,096 losses here, exactly.

# %%
few = list(datasets.DataLoader(train[:256], 256))
flips = analysis.flip_spectrum(model, "3", few)
better = (flips.changes < 0).mean()
print(f"loss {flips.loss:.3f}; {better:.0%} of the single flips make it smaller")

assert flips.changes.shape == (64, 64) and 0 < better < 1

# %% [markdown]
# Does the gradient that trained the network know which flips are good? Flipping $w$ moves its sign
# by $-2 \operatorname{sign}(w)$, so to first order the change is $-2 \operatorname{sign}(w) \, g$
# with the estimator's gradient $g$.

# %%
layer = model[3]
model.eval()
model.zero_grad()
F.cross_entropy(model(Tensor(few[0][0])), few[0][1]).backward()
predicted = -2 * quantizers.sign(layer.weight.data) * layer.weight.grad.data
order = np.corrcoef(predicted.ravel(), flips.changes.ravel())[0, 1]
agree = ((predicted < 0) == (flips.changes < 0)).mean()
print(f"correlation {order:.2f}; the sign is right for {agree:.0%} of the weights")
model.train()

figure, ax = plt.subplots(figsize=(4.5, 3.6), layout="constrained")
ax.plot(predicted.ravel(), flips.changes.ravel(), ".", ms=2, color=plots.MINUS)
ax.axhline(0, color="0.7", lw=0.8)
ax.axvline(0, color="0.7", lw=0.8)
ax.set(xlabel="change by the estimator's gradient", ylabel="true change of the loss")
plt.show()

assert order > 0.1 and agree > 0.5

# %% [markdown]
# The straight-through gradient is no derivative of anything, and yet it is not noise: it tells good
# flips from bad ones better than a coin. This is one network, one layer and one batch; the sizes
# differ between networks.
#
# ## In the package
#
# Directions and landscapes are in [`analysis/landscape.py`](../tinybnn/analysis/landscape.py),
# flips in [`analysis/dynamics.py`](../tinybnn/analysis/dynamics.py). `random_direction` must be our
# formula, bit for bit:

# %%
rng, parts = np.random.default_rng(1), []
for p in model.parameters():
    part = np.zeros(p.shape, np.float32)
    if p.ndim > 1:
        part[...] = rng.standard_normal(p.shape)
        part *= lengths(p.data) / lengths(part)
    parts.append(part.ravel())

assert np.array_equal(np.concatenate(parts), direction)

# %% [markdown]
# `tinybnn reproduce landscape` does all this for BD-Net's networks on CIFAR-10, with seeds, and
# says what of the paper's claims is left.
#
# ## Summary
#
# Training a binary network walks through the smooth landscape of its surrogate; the network that
# runs has a rough one, a staircase in every direction. A picture along a direction means something
# only if the step is measured by the weights: each filter of the direction gets the length of the
# weight's filter. Many flips in training lead back within a few steps. The estimator's gradient
# predicts, roughly, which single flips lower the true loss.
#
# ## Exercises
#
# | number | name | task |
# |---|---|---|
# | 11.1 | `filter_normalized` | a direction whose filters are as long as the weight's |
# | 11.2 | `difference_product` | the Hessian times a vector, by a difference of gradients |
# | 11.3 | `hessian_vector` | the same, exactly, for a network with one hidden layer |
# | 11.4 | `power_iteration` | the eigenvalue of largest magnitude, by repeated products |
# | 11.5 | `lanczos` | orthonormal vectors in which a matrix is tridiagonal |
#
# Write them in `mybnn/curvature.py` beside this notebook; 11.2 to 11.5 are explained in
# [11b](11b_curvature.ipynb). Then `tinybnn course check 11` says what is right and what is not, and
# `tinybnn course hint 11.2` helps. The state of your answers:

# %%
from tinybnn import course  # noqa: E402

course.show("11")

# %% [markdown]
# Think about:
#
# 1. Replace the schedule by a constant learning rate. What happens to the flips of the last epochs,
#    and to the test accuracy? Does the share of flips that led back change?
# 2. Flip the best weight of the spectrum, compute it again, and go on. How far do you get in ten
#    flips, and what does the test set say to it?
# 3. The sign of a latent weight does not depend on its size. What does filter normalization measure
#    for a binary layer?
#
# ## Sources
#
# - H. Li, Z. Xu, G. Taylor, C. Studer, T. Goldstein: *Visualizing the Loss Landscape of Neural
#   Nets* (2018), arXiv:1712.09913.
# - M. Nagel, M. Fournarakis, Y. Bondarenko, T. Blankevoort: *Overcoming Oscillations in
#   Quantization-Aware Training* (2022), arXiv:2203.11086.
# - BD-Net: Figures 2, 5 and 6.
