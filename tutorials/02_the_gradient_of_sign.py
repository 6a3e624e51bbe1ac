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
# # The gradient of sign
#
# **You will learn** why gradient descent cannot train a sign, what a straight-through estimator
# puts in place of the gradient, which function really has this gradient, and how far the estimate
# is from being right.
#
# **You need** derivatives and the chain rule, the sign function ([00](00_bits_and_signs.ipynb)),
# what a Tensor and its rule are ([01](01_autograd_from_scratch.ipynb)), and gradient checks
# ([01b](01b_autograd_on_arrays.ipynb)).
#
# **Time** 12 minutes of reading, a few seconds of running on two cores.

# %%
import matplotlib.pyplot as plt
import numpy as np

import tinybnn as tb
from tinybnn import plots, quantizers
from tinybnn.analysis import dynamics

# %% [markdown]
# ## The question
#
# The smallest binary network has one weight $w$ and computes $\operatorname{sign}(w)$. It should
# answer $+1$, so its loss is $(\operatorname{sign}(w) - 1)^2$. At the beginning $w = -0.3$: the
# answer is $-1$ and the loss is $4$. Any $w \ge 0$ would make the loss $0$. How does the weight
# find out in which direction to go?


# %%
def sign(x):
    return np.where(x >= 0, 1.0, -1.0)


def loss(w):
    return (sign(w) - 1) ** 2


for w in (-0.4, -0.3, -0.2, 0.1):
    print(f"w = {w:4}: sign {sign(w):2.0f}, loss {loss(w):.0f}")

assert loss(-0.3) == 4 and loss(0.1) == 0

# %% [markdown]
# ## The naive version
#
# Gradient descent: measure the slope of the loss by a central difference, and take a small step
# against it, again and again.

# %%
w, h = -0.3, 1e-3
for _ in range(100):
    slope = (loss(w + h) - loss(w - h)) / (2 * h)
    w -= 0.1 * slope
print("w after 100 steps:", w)

assert w == -0.3

# %% [markdown]
# Nothing moves. The sign is flat on both sides of its step, so its derivative is 0 wherever it
# exists, and by the chain rule so is every gradient that comes through it. The loss says that the
# answer should be larger, $\partial L / \partial s = 2(s - 1) = -4$, but the sign multiplies this
# message by 0.
#
# ## The straight-through estimator
#
# The remedy is to compute with one function and to differentiate another. In the forward pass the
# sign stays as it is. In the backward pass the zero is replaced by a *pseudo-gradient*: 1 where
# $|x| \le 1$, and 0 elsewhere. The message from above goes *straight through* the sign to $x$,
# unless $x$ is already far from 0:
#
# $$s = \operatorname{sign}(x), \qquad \frac{\partial L}{\partial x} :=
#   \frac{\partial L}{\partial s} \cdot \mathbb{1}\bigl[|x| \le 1\bigr].$$
#
# Six inputs, with six messages from above:

# %%
x = np.array([-2.0, -1.0, -0.3, 0.0, 0.4, 1.5])
message = np.array([1.0, 1.0, -4.0, 5.0, 0.5, 3.0])
pseudo = 1.0 * (np.abs(x) <= 1)

print("x                 ", x)
print("sign(x)           ", sign(x))
print("message from above", message)
print("pseudo-gradient   ", pseudo)
print("gradient for x    ", message * pseudo)

assert np.array_equal(message * pseudo, [0, 1, -4, 5, 0.5, 0])

# %% [markdown]
# With it, the weight of our question moves past 0 and stays there, because the loss then sends no
# message any more:

# %%
w, path = -0.3, []
while loss(w) > 0:
    path.append(round(float(w), 2))
    w -= 0.02 * 2 * (sign(w) - 1) * (abs(w) <= 1)
print("w:", path, "->", round(float(w), 2))

assert loss(w) == 0

# %% [markdown]
# Why the clipping at 1? A sign in a network, together with the sum $x$ that enters it, is called a
# *unit*. A unit at $x = 30$ does not change its sign in any step that we take. Without clipping it
# would still pass on a gradient, and the layers before it would adapt to a unit that cannot
# respond. What this costs is measured in [02b](02b_estimators_compared.ipynb).
#
# ## An operation with a rule of its own
#
# In the engine of [01](01_autograd_from_scratch.ipynb) an operation is data, parents and a rule.
# Nothing forces the rule to be the true derivative. This is all that an estimator changes; the
# rest of backpropagation stays as it was. In your `engine.py` look at `relu`: it is one line, with
# another function and another rule. In the package's engine an operation is a class:


# %%
class MySign(tb.Function):
    """sign(x); its rule multiplies the incoming gradient by 1 or 0."""

    def forward(self, x):
        return sign(x).astype(x.dtype)

    def backward(self, grad, output, x):
        return grad * (np.abs(x) <= 1).astype(x.dtype)


t = tb.Tensor(x, requires_grad=True)
(MySign.apply(t) * message).sum().backward()
print(t.grad.data)

assert np.array_equal(t.grad.data, message * pseudo)

# %% [markdown]
# ## A check: the surrogate
#
# A gradient check ([01b](01b_autograd_on_arrays.ipynb)) compares a rule with central differences
# of the forward pass. It must fail here: the differences of sign are 0. But the pseudo-gradient is
# the true derivative of *another* function, the **surrogate**. The slope 1 between $-1$ and $1$
# and 0 beyond belongs to the clipped line
#
# $$\operatorname{clip}(x, -1, 1) = \max(-1, \min(x, 1)).$$
#
# So we check the rule against the surrogate. Each estimator in the package has three methods,
# `forward`, `pseudo_gradient` and `surrogate`; here are all estimators that give a sign.

# %%
ESTIMATORS = {
    "SteSign": quantizers.SteSign(),
    "ApproxSign": quantizers.ApproxSign(),
    "SwishSign, β = 5": quantizers.SwishSign(5.0),
    "EdeSign, t = 1": quantizers.EdeSign(1.0),
    "EdeSign, t = 3": quantizers.EdeSign(3.0),
    "MagnitudeAwareSign": quantizers.MagnitudeAwareSign(),
}

at, h = np.array([[-1.7, -0.9, -0.35, 0.1, 0.6, 1.2]]), 1e-6  # (1, 6): one filter of 6 weights
for name, q in ESTIMATORS.items():
    # A scale (the mean magnitude m) is a constant to the gradient: held fixed here.
    scale = {"factor": np.abs(at).mean()} if name == "MagnitudeAwareSign" else {}
    slope = (q.surrogate(at + h, **scale) - q.surrogate(at - h, **scale)) / (2 * h)
    print(f"{name:20} {np.round(slope[0], 3)}")

    assert np.allclose(slope, q.pseudo_gradient(at), atol=1e-5)
    assert np.array_equal(np.sign(q.forward(at)), sign(at))

# %% [markdown]
# Training with an estimator therefore means: *compute with the sign, follow the surrogate's slope*.
# Inside `quantizers.surrogates()` a network also computes the surrogates in the forward pass; its
# gradient is then the true one:

# %%
with quantizers.surrogates():
    print("inside: ", quantizers.ste_sign(np.array([-2.0, -0.3, 0.4])))
print("outside:", quantizers.ste_sign(np.array([-2.0, -0.3, 0.4])))

with quantizers.surrogates():
    assert np.array_equal(quantizers.ste_sign(x), np.clip(x, -1, 1))

# %% [markdown]
# ## Other estimators
#
# The clipped line is a rough approximation of a step. Bi-Real Net uses a better one, a parabola on
# each side of 0. Its slope is a tent: $2 - 2|x|$ inside, so that a unit near 0, whose sign may soon
# change, receives a larger gradient than one near $\pm 1$. Integrate the tent from 0 to $x > 0$:
# $2x - x^2$, which is 1 at $x = 1$. For $x < 0$ it is mirrored at the origin, $f(x) = -f(-x)$.

# %%
figure, rows = plt.subplots(2, 3, figsize=(11, 6.4), layout="constrained")
for axes, (name, q) in zip(rows.flat, ESTIMATORS.items(), strict=True):
    plots.quantizer(q, name, ax=axes).get_legend().remove()
figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
plt.show()

half, parabola = np.linspace(0, 1, 9), quantizers.approx_sign.surrogate
assert np.array_equal(parabola(half), 2 * half - half**2)
assert np.array_equal(parabola(-half), -parabola(half))
swish, at = quantizers.SwishSign(5.0), np.array([0.0, 0.47, 0.49, 1.0])
print("SwishSign, β = 5, at", at)
print("slope              ", swish.pseudo_gradient(at).round(3))
print("surrogate          ", swish.surrogate(at).round(3))

assert np.array_equal(np.sign(swish.pseudo_gradient(at)), [1, 1, -1, -1])
assert swish.surrogate(at)[2] > 1

# %% [markdown]
# | estimator | pseudo-gradient | surrogate |
# |---|---|---|
# | `SteSign` (BinaryNet) | 1 inside $[-1, 1]$ | clip(x, -1, 1) |
# | `ApproxSign` (Bi-Real Net) | $2 - 2\lvert x\rvert$ inside | $2x - x^2$ up to 1, mirrored |
# | `SwishSign` (BNN+) | falls below 0 | $2\sigma(\beta x)(1 + \beta x\,\sigma(-\beta x)) - 1$ |
# | `EdeSign` (IR-Net) | $k\,t\,(1 - \tanh^2(t x))$ | $k \tanh(t x)$, $k = \max(1/t, 1)$ |
# | `MagnitudeAwareSign` (XNOR-Net) | $m$ = mean $\lvert x\rvert$, inside | $m$ clip(x, -1, 1) |
#
# $\sigma(z) = 1 / (1 + e^{-z})$ is the logistic function, which rises from 0 to 1. With $\beta = 5$
# the slope of `SwishSign` is negative beyond $|x| = 0.48$: its surrogate overshoots 1 and comes
# back. `EdeSign` is meant to change while training: with a small $t$ its surrogate is nearly the
# line $x$ and every unit learns, with a large $t$ it is nearly the sign. $k$ keeps the slope at 0
# from falling below 1. `MagnitudeAwareSign` multiplies the sign by $m$, the mean of $|x|$ over a
# filter of weights; in the drawing $m = 1$, so it looks like `SteSign`.
#
# ## What would be right?
#
# The sign has no useful gradient, but an *average* over random signs has. Add noise $e$, uniform
# between $-1$ and $1$, before the sign: $s = \operatorname{sign}(a + e)$. For $|a| \le 1$ the sign
# is $+1$ if $e \ge -a$, which is $1 + a$ of the interval's length 2. So $P(s=1)=(1+a)/2$, the mean
# of $s$ is
#
# $$\mathrm{E}[s] = \tfrac{1+a}{2} - \tfrac{1-a}{2} = a = \operatorname{clip}(a, -1, 1).$$
#
# Let $\ell(s)$ be the loss as a function of the sign. Its mean is $P(s=1)\,\ell(1) +
# P(s=-1)\,\ell(-1)$, with the exact slope $(\ell(1) - \ell(-1))/2$. So the surrogate of `SteSign`
# is not an arbitrary curve: it is the mean of a noisy sign.

# %%
a, e = np.array([-1.5, -0.6, 0.0, 0.5, 2.0]), np.random.default_rng(0).uniform(-1, 1, (100_000, 1))
print("a                      ", a)
print("mean of sign(a + noise)", sign(a + e).mean(0).round(2))

assert np.abs(sign(a + e).mean(0) - np.clip(a, -1, 1)).max() < 0.01

# %% [markdown]
# Is the estimator exact, then? If $\ell$ is a straight line, yes. Otherwise it uses the slope of
# $\ell$ *at* one sign, while what matters is the difference of $\ell$ *between* the two signs. Take
# $\ell(s) = (s - 0.4)^2$: $\ell(1) = 0.36$, $\ell(-1) = 1.96$, the exact slope is $-0.8$: $a$
# should grow. At $a = 0.5$ the sign is $+1$, the slope there is $2 \cdot 0.6 = 1.2$, and the
# estimator moves $a$ down, in the wrong direction. Averaged over the noise it does no better: at $a
# = 0.5$ the sign is $+1$ with probability 0.75, and $-1$, where the slope is $2 \cdot (-1.4) =
# -2.8$, with 0.25. That makes $0.75 \cdot 1.2 - 0.25 \cdot 2.8 = 0.2$.
#
# The package computes all three. Its `compare_estimators` takes the loss, the inputs $a$,
# estimators and the noise, and sums over all patterns of signs, so nothing is sampled:


# %%
def slopes(loss, units):
    """Slopes summed over all units, each at a = 0.5: exact, at the signs, averaged over noise."""
    exact, ste = dynamics.compare_estimators(
        loss, np.full(units, 0.5), {"SteSign": quantizers.SteSign()}, dynamics.UniformNoise(1.0)
    )
    return exact["gradient"].sum(), ste["at_signs"].sum(), ste["gradient"].sum()


line, curve = slopes(lambda s: 3 * s.mean(1), 1), slopes(lambda s: (s.mean(1) - 0.4) ** 2, 1)
for name, (exact, at_sign, averaged) in {"3 s": line, "(s - 0.4)²": curve}.items():
    print(f"{name:11} exact {exact:5.2f}, at the sign {at_sign:5.2f}, averaged {averaged:5.2f}")

assert np.allclose(line, 3) and np.allclose(curve, [-0.8, 1.2, 0.2])

# %% [markdown]
# Averaging over the noise does not remove the error. That is what *biased* means.
#
# ## Measured
#
# Why does it work all the same? A sign is seldom alone. Let the mean of several units enter the
# same curved loss, and compare the exact slope with the estimator's average:

# %%
for units in (1, 2, 4, 12):
    exact, _, averaged = slopes(lambda s: (s.mean(1) - 0.4) ** 2, units)
    print(f"{units:2} units: exact {exact:6.3f}, averaged {averaged:.3f}, "
          f"error {averaged - exact:.3f}")  # fmt: skip
    assert np.isclose(averaged - exact, 1 / units)

# %% [markdown]
# The more units there are, the less one sign moves the mean, and the closer the loss is to a
# straight line over that distance. With twelve units the error is a twelfth, and the direction is
# right. Whether the choice of an estimator matters in a network is measured in
# [02b](02b_estimators_compared.ipynb).
#
# ## In the package
#
# [`tinybnn/quantizers.py`](../tinybnn/quantizers.py) has one class for each estimator. A layer
# takes one by name, `nn.BinaryLinear(64, 32, input_quantizer="approx_sign")`. Ours and the
# package's give the same numbers:

# %%
values = np.random.default_rng(1).normal(size=1000).astype(np.float32)
ours, theirs = (tb.Tensor(values, requires_grad=True) for _ in range(2))
MySign.apply(ours).sum().backward()
quantizers.ste_sign(theirs).sum().backward()

assert np.array_equal(MySign.apply(ours).data, quantizers.ste_sign(theirs).data)
assert np.array_equal(ours.grad.data, theirs.grad.data)
print("1,000 values and 1,000 gradients, all equal")

# %% [markdown]
# ## Summary
#
# The derivative of sign is 0, so nothing before a sign would learn. A straight-through estimator
# keeps the sign forward and multiplies the incoming gradient by a pseudo-gradient backward. The
# pseudo-gradient is the exact derivative of a surrogate, which is how it is checked. For `SteSign`
# the surrogate is the mean of a sign with uniform noise. For curved losses the estimator is biased,
# but the bias shrinks as more units share the work.
#
# ## Exercises
#
# | | name | task |
# |---|---|---|
# | 02.1 | `ste_gradient` | the straight-through estimator |
# | 02.2 | `approx_gradient` | the tent of Bi-Real Net |
# | 02.3 | `approx_surrogate` | the function whose slope is the tent |
# | 02.4 | `sign_ste` | sign as an operation of your engine, with either pseudo-gradient |
# | 02.5 | `ede_gradient` | the slope of $k \tanh(t x)$ |
#
# Edit `mybnn/estimators.py` beside this notebook, then run `tinybnn course check 02` in a
# terminal; `tinybnn course hint 02.4` gives a hint, and a second and a third one if you ask again.
# The next cell shows how far you are.

# %%
from tinybnn import course  # noqa: E402

course.show("02")

# %% [markdown]
# Think about:
#
# 1. Suppose a rule returns $-1$ times the pseudo-gradient. What would training do?
# 2. The weight of our question ends at $w = 0.02$ and gets no message any more. What would a little
#    noise in the next batch do to its sign? (A *flip*; [03](03_first_binary_network.ipynb) counts
#    them.)
#
# ## Sources
#
# - Y. Bengio, N. Léonard, A. Courville: *Estimating or Propagating Gradients Through Stochastic
#   Neurons for Conditional Computation* (2013): the straight-through estimator.
# - M. Courbariaux, I. Hubara, D. Soudry, R. El-Yaniv, Y. Bengio: *Binarized Neural Networks*
#   (2016): `SteSign`, and noise before the sign.
# - M. Rastegari et al.: *XNOR-Net* (2016): `MagnitudeAwareSign`.
# - Z. Liu et al.: *Bi-Real Net* (2018): `ApproxSign`.
# - S. Darabi et al.: *BNN+: Improved Binary Network Training* (2018): `SwishSign`.
# - H. Qin et al.: *Forward and Backward Information Retention for Accurate Binary Neural Networks*
#   (IR-Net, 2020): `EdeSign`.
