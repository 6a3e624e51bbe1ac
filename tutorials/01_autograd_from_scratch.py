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
# # Autograd from scratch
#
# **You will learn** how a program finds the derivative of a result with respect to every number it
# was computed from, and why the order of that work decides between right, wrong and never finished.
# This notebook builds an engine for single numbers; in the exercises, and in
# [01b](01b_autograd_on_arrays.ipynb), you write one for arrays.
#
# **You need** derivatives and the chain rule, Python's classes and functions, and the idea of
# gradient descent: to make a loss smaller, move each weight a little against its derivative.
#
# **Time** about 14 minutes of reading; the cells run in half a minute.
#
# Each step ends with a check: an `assert` that fails if the text is wrong.

# %%
import timeit

import matplotlib.pyplot as plt
import numpy as np

import tinybnn as tb
from tinybnn import datasets, plots
from tinybnn import functional as F

# %% [markdown]
# ## The question
#
# A model multiplies an input $x$ by a weight $w$, and the answer should be $y$. The *loss* measures
# how wrong the answer is:
#
# $$L = (w x - y)^2, \qquad w = 3,\; x = 2,\; y = 5.$$
#
# **How does $L$ change when $w$ changes a little?** Give the intermediate results names, $u = wx =
# 6$, $e = u - y = 1$, $L = e^2 = 1$; then each step has a simple derivative:
#
# $$\frac{dL}{de} = 2e = 2, \qquad \frac{de}{du} = 1, \qquad \frac{du}{dw} = x = 2.$$
#
# The chain rule multiplies them: $\frac{dL}{dw} = 2 \cdot 1 \cdot 2 = 4$. A network has the same
# structure with thousands of weights. We want a program that finds such derivatives for any
# formula.

# %% [markdown]
# ## The naive version
#
# The naive program measures. It moves one number by a small step $h$, computes $L$ again and sees
# how much it has changed:


# %%
def slope(f, values, i, h=1e-6):
    """Rate of change of f when value i moves."""
    moved = list(values)
    moved[i] += h
    return (f(*moved) - f(*values)) / h


def loss(w, x, y):
    return (w * x - y) * (w * x - y)


print("dL/dw is about", slope(loss, (3.0, 2.0, 5.0), 0))

assert abs(slope(loss, (3.0, 2.0, 5.0), 0) - 4) < 1e-4

# %% [markdown]
# It works for any function, but is not quite exact. Its real drawback is the cost: each weight
# needs its own evaluation of the loss. A network with 10,000 weights would run 10,001 times for one
# step of gradient descent.

# %% [markdown]
# ## Each operation knows its rule
#
# The derivation above used only two kinds of knowledge: how $L$ was put together, and the
# derivative of each single operation. So we let every number remember its *parents*, the numbers it
# was computed from, and a *rule*. The derivative of $L$ with respect to a number is called that
# number's *gradient*. The rule takes the gradient of the result, `grad`, and returns a tuple with a
# share for the gradient of each parent:
#
# | result | shares of the parents |
# |:-|:-|
# | $a + b$ | `grad`, `grad` |
# | $a - b$ | `grad`, `-grad` |
# | $a \cdot b$ | `grad * b`, `grad * a` |
# | $\max(a, 0)$, called ReLU | `grad` where $a > 0$, else 0 |
#
# Each line is the chain rule: `grad` times the derivative of one operation. A number that was not
# computed, an input or a weight, has no parents, and its rule returns an empty tuple.


# %%
class Value:
    """A number that remembers how it was computed."""

    def __init__(self, data, parents=(), rule=lambda grad: ()):
        self.data, self.parents, self.rule, self.grad = data, parents, rule, 0.0

    def __add__(self, other):
        other = value(other)
        return Value(self.data + other.data, (self, other), lambda grad: (grad, grad))

    def __sub__(self, other):
        other = value(other)
        return Value(self.data - other.data, (self, other), lambda grad: (grad, -grad))

    def __mul__(self, other):
        a, b = self, value(other)
        return Value(a.data * b.data, (a, b), lambda grad: (grad * b.data, grad * a.data))

    def relu(self):
        return Value(max(self.data, 0.0), (self,), lambda grad: (grad * (self.data > 0),))

    __radd__, __rmul__ = __add__, __mul__  # 2.0 * value asks the value


def value(number):
    """A plain number becomes a Value without parents."""
    return number if isinstance(number, Value) else Value(number)


# %% [markdown]
# Computing with Values now builds a graph. We go through it backwards by hand, from $L$, whose
# derivative with respect to itself is 1:

# %%
w, x, y = Value(3.0), Value(2.0), Value(5.0)
u = w * x
e = u - y
L = e * e
L.grad = 1.0
print("L gives e twice:", L.rule(L.grad))
e.grad = sum(L.rule(L.grad))
print("e gives u and y:", e.rule(e.grad))
u.grad, y.grad = e.rule(e.grad)
print("u gives w and x:", u.rule(u.grad))
w.grad, x.grad = u.rule(u.grad)

assert (w.grad, x.grad, y.grad) == (4.0, 6.0, -2.0)

# %% [markdown]
# Look at the first line: in $e \cdot e$, both parents are $e$. Each use of $e$ gets a share, 1 and
# 1, and **shares add up**: $\frac{dL}{de} = 2$, which is the rule for squares, $2e$, although
# nobody gave the program that rule.
#
# ## The chain rule on a graph
#
# Here is the whole computation: values go along the arrows, gradients come back against them (in
# this notebook, orange drawings show right gradients, the blue one wrong ones). One pass forward
# and one pass back gave *all three* derivatives, not only that of $w$.


# %%
def draw(ax, named, places, color, title=""):
    """Boxes with value and gradient; arrows from what was used to what was computed."""
    names = {node: name for name, node in named.items()}
    for name, node in named.items():
        for parent in node.parents:
            arrow = {"arrowstyle": "->", "color": "0.5", "shrinkA": 32, "shrinkB": 32}
            ax.annotate("", places[name], places[names[parent]], arrowprops=arrow)
        box = {"boxstyle": "round", "facecolor": "white", "edgecolor": color, "linewidth": 2}
        text = f"{name} = {node.data:g}\ngradient {node.grad:g}"
        ax.text(*places[name], text, ha="center", va="center", bbox=box)
    ax.set(xlim=(-0.5, 3.5), ylim=(-0.3, 1.3), title=title)
    ax.axis("off")


figure, ax = plt.subplots(figsize=(8, 2.4))
places = {"w": (0, 1), "x": (0, 0), "u": (1, 1), "y": (1, 0), "e": (2, 0.5), "L": (3, 0.5)}
draw(ax, {"w": w, "x": x, "u": u, "y": y, "e": e, "L": L}, places, plots.PLUS)
plt.show()

measured = [slope(loss, (3.0, 2.0, 5.0), i) for i in range(3)]
assert np.allclose(measured, [w.grad, x.grad, y.grad], atol=1e-4)

# %% [markdown]
# ## The diamond that breaks the naive order
#
# A program must choose the order itself. The simplest idea: begin at the result, and let the values
# pass on their gradients in the order in which they are reached. Try it on
#
# $$u = x^2, \qquad v = u^2, \qquad L = u + v, \qquad x = 3.$$
#
# By hand: $L = x^2 + x^4$, so $\frac{dL}{dx} = 2x + 4x^3 = 6 + 108 = 114$.


# %%
def in_the_order_found(result):
    """Each value passes its gradient on once, first come, first served."""
    result.grad = 1.0
    waiting, seen = [result], {result}
    while waiting:
        node = waiting.pop(0)
        for parent, share in zip(node.parents, node.rule(node.grad), strict=True):
            parent.grad += share
            if parent not in seen:
                seen.add(parent)
                waiting.append(parent)


def diamond():
    x = Value(3.0)
    u = x * x
    v = u * u
    return {"x": x, "u": u, "v": v, "L": u + v}


found = diamond()
in_the_order_found(found["L"])
print("dL/dx =", found["x"].grad, "- and 114 is right")

assert found["x"].grad == 6.0

# %% [markdown]
# What happened? $L$ gives 1 to $u$ and 1 to $v$. Then it is $u$'s turn. It has a gradient of 1 and
# passes $1 \cdot 6$ on to $x$. Only then does $v$ give its shares, $9 + 9$, to $u$. They are too
# late: $u$ has already had its turn. A part of a graph where two paths split and meet again is
# called a *diamond*, and every network has many of them.
#
# A second idea: pass on each share separately, at once, along every path to the inputs.

# %%
calls = 0


def on_each_path(node, share=1.0):
    global calls
    calls += 1
    node.grad += share
    for parent, part in zip(node.parents, node.rule(share), strict=True):
        on_each_path(parent, part)


paths = diamond()
on_each_path(paths["L"])
print("dL/dx =", paths["x"].grad)
for levels in (4, 8, 16):
    result, calls = Value(1.0), 0
    for _ in range(levels):
        result = result + result
    on_each_path(result)
    print(f"{levels:2} additions: {calls:7,} calls")

assert paths["x"].grad == 114.0
assert calls == 2**17 - 1

# %% [markdown]
# Right, but the number of paths doubles with each level: 16 additions take 131,071 calls, and 60
# would take tens of thousands of years.

# %% [markdown]
# ## The right order
#
# A value may pass on its gradient when **everything that was computed from it has had its turn**.
# Then its gradient is complete, and once is enough. So we list all values with parents before their
# *children*, the values computed from them (a *topological order*), and go through the list from
# the end. To build such a list, visit a value's parents first and append the value after them:


# %%
def topological(result):
    order, seen = [], set()

    def visit(node):
        if node not in seen:
            seen.add(node)
            for parent in node.parents:
                visit(parent)
            order.append(node)  # its parents are all in the list now

    visit(result)
    return order


def backward(result):
    """Set .grad of everything the result was computed from; return the number of rules that ran."""
    order = topological(result)
    for node in order:
        node.grad = 0.0
    result.grad = 1.0
    for node in reversed(order):
        for parent, share in zip(node.parents, node.rule(node.grad), strict=True):
            parent.grad += share
    return len(order)


right = diamond()
backward(right["L"])
result = first = Value(1.0)
for _ in range(60):
    result = result + result
rules = backward(result)
print("dL/dx =", right["x"].grad, f"and 60 additions take {rules} calls of rules")

assert right["x"].grad == 114.0
assert first.grad == 2.0**60 and rules == 61

# %%
figure, axes = plt.subplots(1, 2, figsize=(13, 2.6))
places = {"x": (0, 0), "u": (1.15, 0), "v": (2.1, 1), "L": (3, 0)}
draw(axes[0], found, places, plots.MINUS, "in the order found: u is too early")
draw(axes[1], right, places, plots.PLUS, "reversed topological order: u after v")
plt.show()

# %% [markdown]
# One thing is still wrong. `visit` calls itself for a parent, then for the parent's parent, and so
# on, and Python gives up at a depth of about 1,000:

# %%
result = Value(1.0)
for _ in range(10_000):
    result = result + 1.0
try:
    backward(result)
    depth = "enough"
except RecursionError as error:
    depth = f"RecursionError: {error}"
print(depth)

assert "RecursionError" in depth

# %% [markdown]
# Sums over many examples soon reach that depth. The way out is to manage the stack yourself, in a
# list. It holds pairs: a value, and whether its parents are done. Each value comes up twice: first
# to put its parents on top of it, later to be appended to the order. That is exercise 01.1.

# %% [markdown]
# ## Training with it
#
# Is this engine enough for a network? We tell the digits 4 and 9 apart, in images that are averaged
# to 4×4 pixels. There are six *hidden* numbers, each a ReLU of a weighted sum of the 16 pixels plus
# a constant; the score is a weighted sum of these six plus a constant. It should be +1 for a 9 and
# -1 for a 4; the loss is the mean squared error. All 109 weights are in one list, and `next` takes
# them one by one.


# %%
def network(weights, pixels, relu):
    """The score of an image; for floats and for Values."""
    hidden, weight = len(weights) // 18, iter(weights)  # 16 + 1 weights each, 1 in the score
    outputs = [relu(sum(next(weight) * p for p in pixels) + next(weight)) for _ in range(hidden)]
    return sum(next(weight) * h for h in outputs) + next(weight)


def mean_loss(weights, images, targets, relu):
    errors = [network(weights, p, relu) - t for p, t in zip(images, targets, strict=True)]
    return sum(e * e for e in errors) * (1 / len(errors))


def fours_and_nines(dataset, count):
    chosen = np.flatnonzero(np.isin(dataset.labels, (4, 9)))[:count]
    images = dataset.images[chosen].reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)) / 16
    return images.reshape(-1, 16).tolist(), np.where(dataset.labels[chosen] == 9, 1, -1).tolist()


def float_relu(z):
    return max(z, 0.0)


train, test = datasets.load("digits")
images, targets = fours_and_nines(train, 100)
test_images, test_targets = fours_and_nines(test, 100)


def accuracy(weights):
    scores = [network(weights, pixels, float_relu) for pixels in test_images]
    return np.mean((np.array(scores) > 0) == (np.array(test_targets) > 0))


weights = np.random.default_rng(0).normal(0, 0.4, 18 * 6 + 1).tolist()
print(f"{len(weights)} weights, {accuracy(weights):.0%} of {len(test_targets)} test images right")
for step in range(40):
    values = [Value(w) for w in weights]
    L = mean_loss(values, images, targets, Value.relu)
    size = backward(L)
    weights = [v.data - 0.1 * v.grad for v in values]
    if step % 10 == 0:
        print(f"step {step:2}: loss {L.data:.3f}")
print(f"loss {L.data:.3f}, {accuracy(weights):.0%} right; a graph of {size:,} values in each step")

assert accuracy(weights) > 0.9

# %% [markdown]
# ## Measured
#
# What does the backward pass cost? We give its time in units of one evaluation of the loss, because
# the naive program needs one evaluation for each weight and one more:

# %%
few, few_targets = images[:10], targets[:10]
for hidden in (2, 6, 18):
    values = [Value(w) for w in np.random.default_rng(0).normal(0, 0.4, 18 * hidden + 1).tolist()]

    def forward(values=values):
        return mean_loss(values, few, few_targets, Value.relu)

    once = min(timeit.repeat(forward, number=1, repeat=9))
    both = min(timeit.repeat(lambda forward=forward: backward(forward()), number=1, repeat=9))
    cost = (both - once) / once
    print(f"{len(values):3} weights: moving {len(values) + 1:3}, backward pass {cost:.1f}")
    assert cost < 20


def float_loss(*weights):
    return mean_loss(weights, few, few_targets, float_relu)


values = [Value(w) for w in weights]
backward(mean_loss(values, few, few_targets, Value.relu))
measured = [slope(float_loss, weights, i) for i in range(len(weights))]

assert np.allclose(measured, [v.grad for v in values], atol=1e-4)

# %% [markdown]
# The cost of the naive program grows with the number of weights. The backward pass costs as much as
# a few evaluations of the loss, whatever the network, because each rule runs once. This is why
# networks with millions of weights can be trained at all.

# %% [markdown]
# ## In the package
#
# `tinybnn/autograd/engine.py` is such an engine, for arrays. Its operations are classes with a
# `forward` and, below it, a `backward` rule, and `_topological_order` is the stack that you write
# in 01.1. Its Tensor differs from ours and from the one in the exercises. Gradients are kept only
# where `requires_grad=True`. `grad` is `None` at first, then itself a Tensor, and calls of
# `backward` *add* to it until you set it to `None`, while ours starts from 0 each time. Inside
# `tb.no_grad()` no graph is kept. Run on our network, number by number, it gives exactly our
# gradients:

# %%
tensors = [tb.Tensor(w, requires_grad=True, dtype=np.float64) for w in weights]
mean_loss(tensors, few[:2], few_targets[:2], F.relu).backward()
values = [Value(w) for w in weights]
backward(mean_loss(values, few[:2], few_targets[:2], Value.relu))
print("gradient of the last weight:", tensors[-1].grad.item(), values[-1].grad)

assert [t.grad.item() for t in tensors] == [v.grad for v in values]

# %% [markdown]
# ## Summary
#
# Each operation remembers its parents and has a rule that turns the gradient of its result into
# shares for them. Shares add up where a value is used several times. A value may pass its gradient
# on when it is complete, so the backward pass follows the reversed topological order; every rule
# then runs once. All gradients together cost about as much as a few evaluations of the loss.

# %% [markdown]
# ## Exercises
#
# Your own engine computes with arrays. Its `+`, `-`, `*` and `/` call `unbroadcast`, which is
# exercise 01.3; the checks of 01.1 and 01.2 provide it. To try your `backward` before you have
# written it, use `-x`, `x ** 2` and `x.relu()`, which do not need it.
#
# | | write | task |
# |:-|:-|:-|
# | 01.1 | `topological_order(result)` | parents before children, 10,000 operations deep |
# | 01.2 | `backward(result)` | the gradients of everything, on arrays |
# | 01.3 to 01.5 | | after [01b](01b_autograd_on_arrays.ipynb) |
#
# Edit `mybnn/engine.py`, beside this notebook. Its class `Tensor` is complete; it is the `Value` of
# this notebook, with arrays, and two details differ. A tensor that was not computed has the rule
# `None`, and `grad` is `None` until a gradient arrives. Then type in a terminal, in the folder of
# the course:
#
#     tinybnn course check 01.1    # check one; or all of the chapter: tinybnn course check 01
#     tinybnn course hint 01.1     # a hint; ask again for the next one, there are three

# %%
from tinybnn import course  # noqa: E402

course.show("01")

# %% [markdown]
# Think about:
#
# 1. The rule of `a + b` returns the same object twice. That is harmless for floats. With arrays,
#    what must `backward` never do with it?
# 2. Call `in_the_order_found` on $L = v + u$ instead of $u + v$. Why is the result right now, and
#    why does that not help in general?
# 3. The derivative of ReLU does not exist at 0. What does our rule say there?

# %% [markdown]
# ## Sources
#
# - S. Linnainmaa: *The representation of the cumulative rounding error of an algorithm as a Taylor
#   expansion of the local rounding errors* (1970): the backward pass through a graph.
# - D. Rumelhart, G. Hinton, R. Williams: *Learning representations by back-propagating errors*
#   (1986).
# - A. Baydin, B. Pearlmutter, A. Radul, J. Siskind: *Automatic differentiation in machine learning:
#   a survey* (2018).
# - A. Karpathy: *micrograd* (2020), an engine for single numbers in the same spirit.
# - E. Alpaydin, C. Kaynak: *Optical Recognition of Handwritten Digits*, UCI Machine Learning
#   Repository (1998), CC BY 4.0: the images.
