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
# # Curvature without the matrix
#
# **You will learn** how steep a loss can be, and why that limits the step of training; how to
# multiply with the matrix of second derivatives without writing it down, by differences and
# exactly; how such products give its eigenvalues; what that matrix can mean for a binary network;
# and how far an argument about condition numbers carries.
#
# **You need** gradients from [01](01_autograd_from_scratch.ipynb), matrices and eigenvectors, and
# the surrogate's landscape of [11](11_the_landscape.ipynb).
#
# **Time** 14 minutes of reading; the cells run in about half a minute on two cores.

# %%
import matplotlib.pyplot as plt
import numpy as np

from tinybnn import Tensor, analysis, datasets, nn, optim, plots
from tinybnn import functional as F
from tinybnn.experiments.bdnet import conditioning

train, test = datasets.load("digits")

# %% [markdown]
# ## The question
#
# Take the loss $\frac12 (a^2 + 25\, b^2)$ of two weights. Its gradient is $(a, 25\, b)$, and a
# step of gradient descent with the rate $\eta$ multiplies $a$ by $1 - \eta$ and $b$ by $1 - 25\,
# \eta$. If $\eta > 2 / 25 = 0.08$, the second factor is below -1, and $b$ grows with each step.

# %%
for rate in (0.07, 0.09):
    weights = np.array([1.0, 1.0])
    for _ in range(50):
        weights -= rate * np.array([1.0, 25.0]) * weights
    print(f"rate {rate}: after 50 steps a = {weights[0]:.3f}, b = {weights[1]:.3g}")
    assert (abs(weights[1]) > 1) == (rate > 2 / 25)

# %% [markdown]
# 25 is the largest *curvature*. For $n$ weights, the second derivatives form a symmetric matrix
# $H$, the *Hessian*, with $H_{ij} = \partial^2 \ell / \partial w_i \partial w_j$. Along an
# eigenvector the curvature is the eigenvalue; so the largest eigenvalue $\lambda_1$ limits the
# rate to $2 / \lambda_1$. The network of [11](11_the_landscape.ipynb) has 9,000 weights, and $H$
# has 81 million entries. **What is its largest eigenvalue, without writing $H$ down?**
#
# ## The naive version
#
# Begin with a problem whose $H$ can be written down: *logistic regression*, one layer that tells
# zeros from other digits. With 64 pixels in the rows of $X$, labels $y$ of 0 and 1, and $\sigma(z)
# = 1 / (1 + e^{-z})$, the probability of a zero is $p = \sigma(Xw)$. The gradient of the mean cross
# entropy is
#
# $$g = X^T (p - y) / N.$$
#
# Column $i$ of $H$ tells how the gradient changes with weight $i$: move that weight a little in
# both senses, and divide the difference of the gradients.

# %%
images, labels = next(iter(datasets.DataLoader(train, batch_size=len(train))))
X, y = images.reshape(len(images), -1).astype(np.float64), (labels == 0).astype(np.float64)
n = X.shape[1]
w = np.random.default_rng(0).normal(size=n) / 8


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def gradient(w):
    return X.T @ (sigmoid(X @ w) - y) / len(X)


h = 1e-4
columns = [(gradient(w + h * e) - gradient(w - h * e)) / (2 * h) for e in np.eye(n)]
matrix = np.array(columns).T
eigenvalues = np.linalg.eigvalsh(matrix)
print(f"H is {matrix.shape}, from {2 * n} gradients; eigenvalues {eigenvalues[0]:.2g} to "
      f"{eigenvalues[-1]:.4f}")  # fmt: skip

assert np.allclose(matrix, matrix.T, atol=1e-8) and eigenvalues[0] > -1e-8

# %% [markdown]
# For 9,000 weights that would be 18,000 gradients, and all of them kept.
#
# ## The better version: a product by two gradients
#
# Eigenvectors are found by products $Hv$ alone (below), and a product needs no matrix. Move *all*
# weights a little along $v$:
#
# $$Hv \approx \frac{g(w + hv) - g(w - hv)}{2h}$$
#
# Two gradients, whatever $n$ is. How short should $h$ be? Too long, and the gradient bends on the
# way: an error of the order $h^2$. Too short, and the two gradients agree in so many digits that
# rounding is most of their difference: an error of the order $10^{-16} / h$.

# %%
v = np.random.default_rng(1).normal(size=n)
errors = {}
for h in 10.0 ** np.arange(0, -13, -2):
    product = (gradient(w + h * v) - gradient(w - h * v)) / (2 * h)
    p = sigmoid(X @ w)
    exact = X.T @ (p * (1 - p) * (X @ v)) / len(X)  # explained below
    errors[h] = np.linalg.norm(product - exact) / np.linalg.norm(exact)
    print(f"h = {h:.0e}   relative error {errors[h]:.0e}")

assert min(errors, key=errors.get) in (1e-4, 1e-6)

# %% [markdown]
# ## Exactly: differentiate the gradient's lines
#
# Let the weights be $w + t v$. Then everything in the program that computes $g$ depends on the
# number $t$, and $Hv$ is the derivative of $g$ with respect to $t$, at $t = 0$. Differentiate the
# program line by line, and write a `d` before each variable's name for its derivative:
#
# | line of the gradient | its derivative | rule |
# |---|---|---|
# | `z = X @ w` | `dz = X @ v` | $w$ changes by $v$, $X$ does not |
# | `p = sigmoid(z)` | `dp = p * (1 - p) * dz` | chain rule, $\sigma' = \sigma (1 - \sigma)$ |
# | `g = X.T @ (p - y) / N` | `dg = X.T @ dp / N` | $y$ does not change |
#
# Where a line is a product of two things that change, its derivative has two terms: `e * w2` gives
# `de * w2 + e * v2`. This is Pearlmutter's product (1994). It costs about two gradients, too, and
# has no $h$ and no error but rounding.


# %%
def hessian_product(v):
    p = sigmoid(X @ w)
    dp = p * (1 - p) * (X @ v)
    return X.T @ dp / len(X)


assert np.allclose(hessian_product(v), matrix @ v, rtol=1e-6, atol=1e-8)

# %% [markdown]
# ## The steepest direction: power iteration
#
# Write $v$ as a sum of eigenvectors. A product multiplies each part by its eigenvalue. After many
# products the part with the eigenvalue of largest magnitude has outgrown all others. So multiply
# again and again, and bring the vector to length 1 each time, before it overflows. For the matrix
# with the rows (2, 1) and (1, 2) the answer is 3, with the direction (1, 1):

# %%
small, u = np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([1.0, 0.0])
for i in range(6):
    u = small @ u
    u /= np.linalg.norm(u)
    print(f"{i + 1}: v = {u.round(3)}, v @ A @ v = {u @ small @ u:.4f}")

assert np.isclose(u @ small @ u, 3, atol=0.01)

# %% [markdown]
# The value is read off as $v^T A v$, which for an eigenvector of length 1 is its eigenvalue. (The
# length of $Av$ would lose the sign of a negative one.) The Hessian of our layer:

# %%
values, v = [], np.random.default_rng(1).normal(size=n)
for _ in range(40):
    v = hessian_product(v)
    v /= np.linalg.norm(v)
    values.append(v @ hessian_product(v))
print(f"by 40 products {values[-1]:.6f}, by the matrix {eigenvalues[-1]:.6f}")

assert np.isclose(values[-1], eigenvalues[-1], rtol=1e-4)

# %% [markdown]
# ## All outer eigenvalues: Lanczos
#
# Power iteration forgets all vectors but the last. Keep them instead: multiply, take away the parts
# along all vectors that are there, bring the rest to length 1, and go on. After $m$ products there
# are $m$ orthonormal vectors $q_1, q_2, \ldots$, and in them $H$ is a small matrix $T$. It is
# *tridiagonal*: beside the diagonal $\alpha_j = q_j^T H q_j$ there is only $\beta_j$, the length of
# the rest after step $j$. The outer eigenvalues of $T$ are soon those of $H$.
#
# In exact arithmetic the parts along the last two vectors are all there is to take away. With
# rounding they are not: as soon as an eigenvector is found, its direction creeps back in, and the
# eigenvalue appears a second time.


# %%
def lanczos(product, start, steps, last=None):
    """Diagonals of T and the vectors; orthogonal to the `last` vectors only, or to all."""
    basis, alphas, betas = [start / np.linalg.norm(start)], [], []
    for _ in range(steps):
        rest = product(basis[-1])
        alphas.append(rest @ basis[-1])
        for q in 2 * basis[-last if last else 0 :]:  # twice: once leaves rounding errors
            rest = rest - (rest @ q) * q
        betas.append(np.linalg.norm(rest))
        basis.append(rest / betas[-1])
    T = np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1)
    return np.linalg.eigvalsh(T), np.array(basis[:-1])


start = np.random.default_rng(2).normal(size=n)
for last in (None, 2):
    found, basis = lanczos(hessian_product, start, 40, last)
    skew = np.abs(basis @ basis.T - np.eye(40)).max()
    name = f"the last {last}" if last else "all"
    print(f"orthogonal to {name:<11} largest {found[-1:-5:-1].round(5)}, products of vectors "
          f"{skew:.0e}")  # fmt: skip
    assert (skew < 1e-10) == (last is None)

assert np.allclose(lanczos(hessian_product, start, 40)[0][-3:], eigenvalues[-3:], rtol=1e-5)

# %% [markdown]
# ## What is the Hessian of a binary network?
#
# A network with sign has none: its first derivative is 0 and its second one, too. What could be
# meant?
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
# default. The network is that of [11](11_the_landscape.ipynb), with a smooth surrogate. (With the
# clip of `ste_sign`, all curvature sits in the kinks, and a Hessian does not see them.)

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
for _ in range(20):
    for x, digits in loader:
        optimizer.zero_grad()
        F.cross_entropy(model(Tensor(x)), digits).backward()
        optimizer.step()
        schedule.step()

batches = list(datasets.DataLoader(train[:512], 512))
figure, panels = plt.subplots(2, 1, figsize=(7.5, 5.2), layout="constrained")
for ax, signs in zip(panels, ("straight-through", "surrogate"), strict=True):
    operator = analysis.HessianOperator(model, batches, signs=signs)
    top = analysis.top_eigenvalues(operator, k=5, max_steps=60, seed=0)
    density = analysis.spectral_density(operator, vectors=3, steps=30, seed=0)
    low, high = density.nodes.min(), density.nodes.max()
    grid = np.linspace(low - 0.1 * (high - low), high + 0.1 * (high - low), 400)
    plots.spectrum(grid, density(grid, 0.01 * (high - low)), top.values, ax=ax)
    ax.set(title=signs)
    print(f"{signs:<18} largest {top.values[0]:.3g}, smallest {low:.3g} "
          f"after {top.steps} products")  # fmt: skip
    assert top.residuals.max() < 0.05 * abs(top.values[0]) and low < 0
plt.show()

# %% [markdown]
# (The curve is the density of all eigenvalues, from the $T$ of random start vectors; Ghorbani et
# al. 2019.) Both have what the spectra of float networks have: a great heap of eigenvalues near 0,
# directions in which nothing happens, and a few large ones. Both have negative ones: the loss is no
# bowl. So a *condition number*, the largest eigenvalue divided by the smallest, says little about a
# network. For a single layer it says more.
#
# ## An argument about condition numbers
#
# BD-Net ([10](10_depthwise_and_158_bit.ipynb)) puts a residual in front of the batch norm of a
# depth-wise layer, and argues as follows. With $D$ the matrix of the convolution and $\alpha$ the
# factor of the batch norm, the layer's derivative is $J = \alpha D + I$ without, and $J' = J +
# \alpha I$ with that residual. Adding $\alpha$ to the largest and to the smallest eigenvalue
# brings their ratio down to $(\lambda_1 + \alpha) / (\lambda_n + \alpha)$. There are only 512
# filters of $3 \times 3$ signs. Let us try all of them.

# %%
result = conditioning.run(say=lambda text: None)
conditioning.draw(plt.subplots(figsize=(6.5, 3.6), layout="constrained")[1], result)
plt.show()

large = result["rows"][-1]
assert large["with"][1] < large["without"][1]  # the residual does help
assert large["with"][1] > 5 * large["eq9"][1]  # by far less than the formula says

# %% [markdown]
# The residual helps: the median is several times smaller with it. But it is not what the formula
# promises. The condition number of $J$ is the ratio of the largest and the smallest factor by which
# it stretches a vector, its *singular values*. For a symmetric matrix without negative eigenvalues
# they are the eigenvalues, and adding $\alpha I$ adds $\alpha$ to each. The $D$ of a filter of
# signs is not symmetric, and has eigenvalues on all sides of 0. This does not mean that BD-Net does
# not work; its reason is another one, or a weaker one, than the one given.
#
# ## Measured
#
# How many products with the surrogate's Hessian, 9,108 by 9,108, until the largest eigenvalue is
# right to 1 percent? Both methods begin with the same vector. And does the limit $2 / \lambda_1$
# hold for the rate of logistic regression?

# %%


def network_product(v):
    return np.asarray(operator @ v.astype(np.float32), np.float64)


v = first = np.random.default_rng(1).normal(size=operator.shape[0])
power, value = 0, 0.0
while power < 200 and value < 0.99 * top.values[0]:
    v = network_product(v / np.linalg.norm(v))
    power += 1
    value = np.linalg.norm(v)  # at most the largest magnitude
steps = next(
    m for m in (4, 8, 12, 16) if lanczos(network_product, first, m)[0][-1] > 0.99 * top.values[0]
)
print(f"power iteration {power} products, Lanczos at most {steps}")

rates = (1.8 / eigenvalues[-1], 2.4 / eigenvalues[-1])
for rate in rates:  # on the parabola that the loss is near w
    away = start
    for _ in range(100):
        away = away - rate * hessian_product(away)
    print(f"rate {rate:.2f}: after 100 steps the distance is {np.linalg.norm(away):.2g}")
    assert (np.linalg.norm(away) > 1e3) == (rate > 2 / eigenvalues[-1])

assert steps < power

# %% [markdown]
# ## In the package
#
# [`analysis/curvature.py`](../tinybnn/analysis/curvature.py) has products,
# [`analysis/spectra.py`](../tinybnn/analysis/spectra.py) has Lanczos, traces and densities. The
# network of exercise 11.3 has one hidden layer of signs, whose surrogate is tanh: `ede_sign` in
# the package. Its product with a vector must be the difference of our gradients, and its largest
# eigenvalue what our Lanczos finds.

# %%
rng = np.random.default_rng(3)
hidden = nn.Sequential(
    nn.Linear(64, 6, bias=False, rng=rng),
    nn.BinaryLinear(6, 1, input_quantizer="ede_sign", weight_quantizer=None, rng=rng),
)
data = [(X[:200].astype(np.float32), y[:200, None].astype(np.float32))]
H = analysis.HessianOperator(hidden, data, F.mse_loss, signs="surrogate")
w1, w2 = (p.data.astype(np.float64) for p in hidden.parameters())


def squared_gradient(both):
    """Of mean((tanh(X w1^T) w2 - y)^2), in all weights as one vector."""
    w1, w2 = both[:-6].reshape(6, 64), both[-6:]
    a = np.tanh(X[:200] @ w1.T)
    e = 2 * (a @ w2 - y[:200]) / 200
    return np.concatenate([((e[:, None] * w2 * (1 - a**2)).T @ X[:200]).ravel(), a.T @ e])


both, v = np.concatenate([w1.ravel(), w2.ravel()]), rng.normal(size=6 * 64 + 6)
ours = (squared_gradient(both + 1e-5 * v) - squared_gradient(both - 1e-5 * v)) / 2e-5
theirs = H @ v.astype(np.float32)
largest = analysis.top_eigenvalues(H, k=1, seed=0).values[0]
found, _ = lanczos(lambda v: np.asarray(H @ v.astype(np.float32), np.float64), v, 30)
print(f"relative difference {np.linalg.norm(ours - theirs) / np.linalg.norm(ours):.0e}")

assert np.allclose(ours, theirs, rtol=1e-3, atol=1e-4 * np.abs(ours).max())
assert np.isclose(largest, found[-1], rtol=1e-3)

# %% [markdown]
# `tinybnn reproduce hessian` does this for BD-Net's networks on CIFAR-10, with seeds.
#
# ## Summary
#
# The largest eigenvalue of the Hessian limits the rate of gradient descent. A product with the
# Hessian costs about two gradients: by a difference, with an error that depends on the step, or
# exactly, by differentiating the gradient's program line by line. Power iteration finds the
# eigenvalue of largest magnitude by products, and Lanczos the outer ones, if its vectors are kept
# orthogonal. A binary network has no Hessian; what is computed belongs to its surrogate, or to the
# estimator.
#
# ## Exercises
#
# The exercises of this chapter are listed in [11](11_the_landscape.ipynb); 11.2 to 11.5 are about
# this notebook. Think about:
#
# 1. `analysis.GaussNewtonOperator` leaves out a part of the Hessian. Compare its largest eigenvalue
#    with those above. Which of the two parts has the negative eigenvalues? *Hint:*
#    `top_eigenvalues` takes `which="SA"`.
# 2. Two eigenvalues of equal magnitude, 3 and -3: what does power iteration do?
# 3. `conditioning.run` takes other filters. Try some that are symmetric under a rotation by 180
#    degrees: for these $D$ is symmetric. Which part of the argument is mended by this, and which is
#    not?
#
# ## Sources
#
# - B. A. Pearlmutter: *Fast Exact Multiplication by the Hessian*, Neural Computation 6(1) (1994).
# - B. Ghorbani, S. Krishnan, Y. Xiao: *An Investigation into Neural Net Optimization via Hessian
#   Eigenvalue Density* (2019), arXiv:1901.10159.
# - B. N. Parlett: *The Symmetric Eigenvalue Problem* (1998): Lanczos and orthogonality.
# - BD-Net: Equations 3 to 10.
