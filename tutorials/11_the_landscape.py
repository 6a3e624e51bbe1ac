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
# **You will learn** what the loss of a binary network looks like from the weights' point of view:
# a staircase that training never sees, and a smooth surface that it follows instead; what the
# Hessian of such a network can mean; how to compute its largest eigenvalues without ever writing it
# down; and how far an argument about condition numbers carries.
#
# **You need** notebooks 03 (straight-through estimators) and 10 (BD-Net). Reading takes about
# fifteen minutes, running half a minute.

# %%
import matplotlib.pyplot as plt
import numpy as np

from tinybnn import Tensor, analysis, datasets, nn, optim, plots, quantizers, training
from tinybnn import functional as F
from tinybnn.experiments.bdnet import conditioning

train, test = datasets.load("digits")

# %% [markdown]
# ## 1. One weight
#
# Take the smallest binary network, $\ell(w) = (\operatorname{sign}(w)\, x - y)^2$. It has two
# values, and its slope is 0 nearly everywhere: there is nothing for gradient descent to follow. The
# straight-through estimator pretends that sign has the slope of another function, its *surrogate*,
# here $\operatorname{clip}(w, -1, 1)$. `quantizers.surrogates` computes with the surrogate itself.

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

# %% [markdown]
# Both agree at the clip, $w = \pm 1$, and nowhere else. The surrogate has its lowest point at $w =
# 0.4$, where the binary loss is no better than anywhere right of 0. Training goes there, to and fro
# over nothing, or to and fro over the jump if the lowest point is near 0. Keep this picture in
# mind: what follows is the same in a few thousand dimensions.

# %% [markdown]
# ## 2. A network
#
# Two binary layers on the digits, with a smooth surrogate (`swish_sign`) for the sake of section 3.
# While the network trains, `FlipTracker` counts how many weights change
# their sign in each step, and how many return within ten steps.

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
print(f"test accuracy {found['accuracy']:.1%}")
for row in tracker.rows:
    print(
        f"layer {row['layer']}: {row['flipped']:.0%} of the weights flipped at least once, "
        f"{row['return_share']:.0%} of all flips led back"
    )

assert found["accuracy"] > 0.85

# %%
rates = [np.array(tracker.flips[row["layer"]]) / row["weights"] for row in tracker.rows]
figure, ax = plt.subplots(figsize=(7.5, 2.2), layout="constrained")
plots.sign_flips(np.stack(rates, axis=1), list(tracker.flips), ax=ax)
plt.show()

# %% [markdown]
# Most flips fall silent when the learning rate does, not because the network has found something
# but because its steps get shorter than the distance to 0. Many of the flips had no lasting effect:
# the weight came back within ten steps. This is the to and fro of the picture above (Nagel et al.
# 2022 call it oscillation).

# %% [markdown]
# ## 3. What is its Hessian?
#
# The matrix of second derivatives tells how the slope changes from place to place: its largest
# eigenvalue is the steepest curvature, and decides how long a step may be. But a network with sign
# has none: its first derivative is 0 and its second one, too. What could be meant?
#
# - The derivative of the estimator's gradient? It is a matrix, but in general not a symmetric one,
#   and no Hessian of anything.
# - The Hessian of the surrogate's loss. It exists, but it belongs to another network, with other
#   activations.
# - What every framework computes if it differentiates the backward pass once more: here each sign
#   is replaced by $s(x) + [\operatorname{sign}(x_0) - s(x_0)]$ with the surrogate $s$ and a
#   constant in brackets. At $x_0$ this has the value of the sign and the slope of the surrogate.
#
# `analysis.HessianOperator` computes the second one with `signs="surrogate"` and the third one by
# default. A product with a vector takes a forward pass and two backward passes; the matrix itself,
# 9,000 by 9,000 here, is never written down.

# %%
batches = list(datasets.DataLoader(train[:512], 512))
hessians = {
    signs: analysis.HessianOperator(model, batches, signs=signs)
    for signs in ("straight-through", "surrogate")
}
H = hessians["surrogate"]
print(H)

# %% [markdown]
# Is it what it says it is? Take a direction $v$, move the weights a little in both senses, and
# compare the gradients of the surrogate network: their difference must be $H v$.

# %%
v = analysis.random_direction(model, seed=0)
v /= np.linalg.norm(v)


def gradient_at(step):
    """The gradient of the surrogate network after a step along v."""
    place = 0
    for p in H.parameters:
        part = v[place : place + p.numel()].reshape(p.shape)
        p.data += np.float32(step) * part
        place += p.numel()
    return H.gradient().astype(np.float64)


step = 1e-2
ahead = gradient_at(step)
behind = gradient_at(-2 * step)
gradient_at(step)  # back to where it was
difference, product = (ahead - behind) / (2 * step), H @ v
error = np.linalg.norm(difference - product) / np.linalg.norm(product)
print(f"relative difference {error:.1e}")

assert error < 0.01

# %% [markdown]
# With the clip of `ste_sign` the same comparison fails, however short the step (exercise 2). Its
# slope is 1 up to the kink and 0 behind it, and its second derivative 0 on both sides; all of its
# curvature sits in the kinks. A Hessian does not see them. A step of any length crosses some, since
# there are tens of thousands of activations.

# %% [markdown]
# ## 4. Eigenvalues without the matrix
#
# Multiply a random vector by $H$ again and again, and keep what is new in each product: after $m$
# products there are $m$ orthogonal directions, and within them $H$ is a small tridiagonal matrix
# $T$. The outer eigenvalues of $T$ are soon those of $H$. This is the Lanczos iteration; each
# eigenvalue comes with a residual that says how far off it may be. And since the first vector was
# random, all of $T$ together tells how the eigenvalues are distributed (stochastic Lanczos
# quadrature; Ghorbani et al. 2019).

# %%
figure, panels = plt.subplots(2, 1, figsize=(7.5, 5.2), layout="constrained")
for ax, (signs, operator) in zip(panels, hessians.items(), strict=True):
    top = analysis.top_eigenvalues(operator, k=5, max_steps=60, seed=0)
    density = analysis.spectral_density(operator, vectors=3, steps=30, seed=0)
    low, high = density.nodes.min(), density.nodes.max()
    grid = np.linspace(low - 0.1 * (high - low), high + 0.1 * (high - low), 400)
    plots.spectrum(grid, density(grid, 0.01 * (high - low)), top.values, ax=ax)
    ax.set(title=signs)
    print(
        f"{signs:<18} largest {top.values[0]:.3g}, smallest {low:.3g}, residual "
        f"{top.residuals.max():.1e} after {top.steps} products"
    )
    assert top.residuals.max() < 0.05 * abs(top.values[0])
plt.show()

# %% [markdown]
# Both have what the spectra of float networks have: a great heap of eigenvalues near 0, directions
# in which nothing happens, and a few large ones. Both have negative ones: the loss is no bowl. So a
# *condition number*, the largest eigenvalue divided by the smallest, says little about a network.
# For a single layer it says more.

# %% [markdown]
# ## 5. An argument about condition numbers
#
# BD-Net puts a residual in front of the batch norm of a depth-wise layer, and argues as follows
# (Eq. 3 to 10). With $D$ the Jacobian of the convolution and $\alpha$ the factor of the batch norm,
# a layer has the Jacobian $J = \alpha D + I$ without, and $J' = J + \alpha I$ with that residual.
# Adding $\alpha$ to the largest and to the smallest eigenvalue brings their ratio down to
# $(\lambda_1 + \alpha) / (\lambda_n + \alpha)$. Since the sums of nine signs have a small variance,
# $\alpha$ is large, and the ratio small.
#
# There are 512 filters of $3 \times 3$ signs in the world. Let us try all of them.

# %%
result = conditioning.run()
conditioning.draw(plt.subplots(figsize=(6.5, 3.6), layout="constrained")[1], result)
plt.show()

large = result["rows"][-1]
assert large["with"][1] < large["without"][1]  # the residual does help
assert large["with"][1] > 5 * large["eq9"][1]  # by far less than the formula says

# %% [markdown]
# The residual helps: for most filters the condition number is smaller with it, and the median is
# several times smaller. But it is not what the formula promises. Where does the argument break?
#
# The condition number of $J$ is the ratio of the largest and the smallest factor by which it
# stretches a vector, its *singular values*. For a symmetric matrix without negative eigenvalues
# they are the eigenvalues, and adding $\alpha I$ adds $\alpha$ to each. The $D$ of a filter of
# signs is not symmetric, and has eigenvalues on all sides of 0: $\alpha D + (1 + \alpha) I$ may be
# as near to a singular matrix as $\alpha D + I$ was. And for small $\alpha$, Eq. 9 leaves out what
# matters most.
#
# This does not mean that BD-Net does not work. It means that its reason is another one, or a
# weaker one, than the one given. A residual also keeps the signs of neighbours apart and makes the
# variance larger (notebook 10), so that $\alpha$ does not get as large in the first place.

# %% [markdown]
# ## 6. What a single flip costs
#
# A binary network has something that no float network has: a finite number of next steps. Each
# weight can flip, or not. `flip_spectrum` computes the change of the true loss for every single
# flip of a layer, 4,096 losses here, exactly.

# %%
few = list(datasets.DataLoader(train[:256], 256))
flips = analysis.flip_spectrum(model, "3", few)
better = (flips.changes < 0).mean()
print(f"loss {flips.loss:.3f}; {better:.0%} of the single flips make it smaller")
figure, ax = plt.subplots(figsize=(7.5, 3), layout="constrained")
plots.flip_spectrum({"layer 3": flips.changes}, ax=ax)
plt.show()

assert flips.changes.shape == (64, 64) and 0 < better < 1

# %% [markdown]
# Does the gradient that trained the network know which flips are good? Flipping $w$ moves the
# weight by $-2 \operatorname{sign}(w)$, so to first order the change is $-2 \operatorname{sign}(w)
# \, g$ with the estimator's gradient $g$.

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

# %% [markdown]
# The straight-through gradient is no derivative of anything, and yet it is not noise: read off how
# well it tells good flips from bad ones. That is why training works at all.

# %% [markdown]
# ## 7. Both landscapes
#
# At last the whole picture. Each filter gets a random direction of its own length (Li et al. 2018),
# and we walk along it, computing both losses at the same places; then over a plane, spanned by the
# two directions in which training itself moved most.

# %%
direction = analysis.random_direction(model, seed=1)
line = analysis.loss_landscape(model, batches, [direction], [np.linspace(-1, 1, 81)], training=True)
figure, ax = plt.subplots(figsize=(7.5, 3.2), layout="constrained")
plots.landscape(line.coordinates[0], line.losses, ax=ax)
plt.show()

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

# %% [markdown]
# The surrogate's valley is smooth, and training has walked down into it. The binary loss has the
# same valley, seen through a rough glass: at every place it is the loss of another network, and
# from step to step it jumps. Where the two valleys lie together, the estimator serves its purpose;
# where they part, training goes to a place that is good for a network that nobody will run.
#
# `tinybnn reproduce hessian` and `tinybnn reproduce landscape` do all this for BD-Net's networks on
# CIFAR-10, with seeds, and say what of the paper's claims is left.

# %% [markdown]
# ## Exercises
#
# 1. In section 2, replace the schedule by a constant learning rate. What happens to the flips of
#    the last epochs, and to the test accuracy? Does the share of flips that led back change?
# 2. Train the network of section 2 with `ste_sign` instead, and compare $H v$ with differences of
#    gradients for steps from 0.0001 to 0.1. Which of the two would you trust to choose a learning
#    rate?
# 3. `analysis.GaussNewtonOperator` leaves out a part of the Hessian. Compare its largest eigenvalue
#    with those of section 4. Which of the two parts has the negative eigenvalues? *Hint:*
#    `top_eigenvalues` takes `which="SA"`.
# 4. `conditioning.run` takes other filters. Try three levels, -1, 0 and +1, drawn at random: does
#    the residual help more, or less? Then filters that are symmetric under a rotation by 180
#    degrees: for these $D$ is symmetric. Which part of the argument is mended by this, and which is
#    not?
# 5. Flip the best weight of section 6, compute the spectrum again, and go on. How far do you get in
#    ten flips, and what does the test set say to it?

# %% [markdown]
# ## Sources
#
# - BD-Net: Equations 3 to 10, Figures 2, 5 and 6.
# - H. Li, Z. Xu, G. Taylor, C. Studer, T. Goldstein: *Visualizing the Loss Landscape of Neural
#   Nets* (2018), arXiv:1712.09913.
# - B. Ghorbani, S. Krishnan, Y. Xiao: *An Investigation into Neural Net Optimization via Hessian
#   Eigenvalue Density* (2019), arXiv:1901.10159.
# - M. Nagel, M. Fournarakis, Y. Bondarenko, T. Blankevoort: *Overcoming Oscillations in
#   Quantization-Aware Training* (2022), arXiv:2203.11086.
# - B. A. Pearlmutter: *Fast Exact Multiplication by the Hessian*, Neural Computation 6(1) (1994).
