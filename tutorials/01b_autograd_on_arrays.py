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
# # Autograd on arrays
#
# **You will learn** what changes in an engine when numbers become arrays: how broadcasting is
# undone, what the rule of the matrix product is, and how to make sure that rules are right.
#
# **You need** the graph, the rules and the backward pass of [01](01_autograd_from_scratch.ipynb),
# and NumPy's matrix product.
#
# **Time** about 11 minutes of reading; the cells run in a few seconds.

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
# The engine of [01](01_autograd_from_scratch.ipynb) made a graph of 32,512 values for a hundred
# tiny images. NumPy does thousands of multiplications in one operation, so let each node of the
# graph be a whole array. A layer of a network then takes two operations: the inputs `X`, one image
# in each row, times the weights `W`, plus a constant `b` for each output.

# %%
X = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])  # 2 images of 3 pixels
W = np.array([[1.0, -1.0], [0.0, 2.0], [3.0, 1.0]])  # 3 pixels, 2 outputs
b = np.array([0.5, -0.5])
Y = X @ W + b
print(Y)

assert Y[1, 0] == sum(X[1, k] * W[k, 0] for k in range(3)) + b[0]

# %% [markdown]
# The gradient of a loss $L$ with respect to an array is an array of **the same shape**: one
# derivative for each element. **Which rules stay as they are for arrays, which do not, and how do
# you know?**

# %% [markdown]
# ## The naive version
#
# Rules that work element by element can stay. For $a - b$ the shares are `grad` and `-grad`, with
# arrays as well as with numbers. So let us try the rule of $a + b$, which hands `grad` to both
# parents, on the constant `b` above. Let `G` be the gradient that arrives at `Y`.

# %%
G = np.array([[1.0, 10.0], [100.0, 1000.0]])
share_of_b = G  # the rule of a + b
moved = b - 0.1 * share_of_b  # a step of gradient descent
print("b before:", b.shape, " b after a step:", moved.shape)

assert moved.shape != b.shape

# %% [markdown]
# There was no error: the wrong share has the shape (2, 2), NumPy broadcasts `b` to it, and from now
# on each image has its own constants. This is the most common mistake in an engine, and no error
# reports it.

# %% [markdown]
# ## Checking gradients
#
# So we need a test. Every engine checks its rules against measured slopes. In
# [01](01_autograd_from_scratch.ipynb) we moved a number in one direction. Moving it in both is
# better:
#
# $$\frac{f(x + h) - f(x - h)}{2h}$$
#
# The curvature of $f$ changes both values alike, so it cancels in the difference. For $f(x) = x^3$
# at $x = 3$, where the derivative is 27:

# %%
steps = 10.0 ** -np.arange(1, 12)
one_sided = abs(((3 + steps) ** 3 - 27) / steps - 27)
central = abs(((3 + steps) ** 3 - (3 - steps) ** 3) / (2 * steps) - 27)

figure, ax = plt.subplots(figsize=(6, 3))
ax.loglog(steps, one_sided, "o-", color=plots.MINUS, label="one-sided")
ax.loglog(steps, central, "o-", color=plots.PLUS, label="central")
ax.set(xlabel="step h", ylabel="error", title="Measured slope of x³ at 3")
ax.legend()
plt.show()
print(f"h = 1e-5: one-sided error {one_sided[4]:.0e}, central error {central[4]:.0e}")

assert central[4] < one_sided[4] / 1000

# %% [markdown]
# Read it from right to left: with smaller $h$ the one-sided error falls like $h$, the central one
# like $h^2$. Then both rise, because the difference of two almost equal floats has few correct
# digits. Around $h = 10^{-5}$ central differences of float64 are right to about ten digits: enough
# to tell right from wrong.
#
# For an array, each element is moved in turn. Let $L$ be the sum of the elements of `G * Y`; then
# `G` is just the gradient that arrives at `Y`, and the check of `b` shows the mistake:


# %%
def measured(f, x, h=1e-5):
    """Slopes of f, which takes an array and returns a number, at each element of x."""
    slopes = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = h
        slopes[i] = (f(x + step) - f(x - step)) / (2 * h)
    return slopes


slopes = measured(lambda b: (G * (X @ W + b)).sum(), b)
print("measured:", slopes)
print("naive:   ", share_of_b.tolist())

assert np.allclose(slopes, [101.0, 1010.0])

# %% [markdown]
# This is most of exercise 01.5, in which the gradients of your own engine are compared with slopes.

# %% [markdown]
# ## From numbers to arrays
#
# Where do 101 and 1010 come from? NumPy *broadcasts*: in `X @ W + b` with shapes (2, 2) and (2,) it
# repeats `b` for each row. Element 0 of `b` is used twice, with gradients 1 and 100. Shares add up:
# $1 + 100 = 101$. So the share of `b` is the sum over the axis along which it was repeated.
#
# An operand of shape (2, 1) is repeated along the other axis, and its share is summed there:

# %%
column = np.array([[0.5], [-0.5]])
by_hand = G.sum(axis=1, keepdims=True)
print("share of a column of shape (2, 1):", by_hand.tolist())

assert np.allclose(G.sum(axis=0), slopes)
assert np.allclose(by_hand, measured(lambda c: (G * (X @ W + c)).sum(), column))
assert by_hand.shape == column.shape

# %% [markdown]
# In general there are two kinds of axes to sum over:
#
# 1. Axes that the operand does not have. NumPy aligns shapes at their *last* axis, so the missing
#    ones are the first. They vanish.
# 2. Axes where the operand has length 1 and the result more. They stay, with length 1.
#
# An operand of shape (3, 1) in a result of shape (2, 3, 4) has one of each: sum over axis 0, which
# vanishes, and over the last, which stays. For the product $a \cdot b$ the same holds: first the
# shares of two equal shapes, `grad * b` and `grad * a`, then the sums. Exercise 01.3 is one
# function for all shapes.

# %% [markdown]
# ## The rule of the matrix product
#
# The matrix product is nearly all of a network's work. $Y = XW$ with shapes $(N, K)(K, M) = (N, M)$
# means $Y_{nm} = \sum_k X_{nk} W_{km}$. Let $G$, of shape $(N, M)$, be the gradient with respect to
# $Y$. Where is $X_{nk}$ used? In row $n$ of $Y$, once for each $m$, and there its factor is
# $W_{km}$. Shares add up:
#
# $$\frac{dL}{dX_{nk}} = \sum_m G_{nm} W_{km}.$$
#
# That is row $n$ of $G$ times *row* $k$ of $W$: a matrix product with the transpose of $W$. The
# shapes agree: $(N, M)(M, K) = (N, K)$. For one element, in numbers:

# %%
slopes = measured(lambda X: (G * (X @ W)).sum(), X)
print("measured:")
print(slopes.round(6))
print(f"row 0 of G times row 1 of W: {G[0]} @ {W[1]} = {G[0] @ W[1]}")

assert np.isclose(slopes[0, 1], G[0] @ W[1])
assert slopes.shape == X.shape

# %% [markdown]
# The gradient of $W$ follows in the same way: in which column of $Y$ is $W_{km}$ used, in which
# rows, and with which factor? Its shape must be $(K, M)$, and it is made of $X$ and $G$; only one
# product of the two, one of them transposed, has that shape. Both gradients together are exercise
# 01.4. The result for $W$ must be:

# %%
slopes = measured(lambda W: (G * (X @ W)).sum(), W)
print(slopes.round(6))

assert np.allclose(slopes[:, 0], [1 * 1 + 100 * 4, 1 * 2 + 100 * 5, 1 * 3 + 100 * 6])

# %% [markdown]
# ## Measured
#
# A network for all ten digits: 64 pixels, 64 hidden numbers with ReLU, ten scores. Its targets are
# 1 for the right digit and 0 for the others. How long do its gradients take, and how long would it
# take to measure the slopes of all weights?

# %%
train, test = datasets.load("digits")
pixels, answers = train.images.reshape(-1, 64) / 16, np.eye(10)[train.labels]
rng = np.random.default_rng(0)
first, second = rng.normal(0, 0.1, (64, 64)), rng.normal(0, 0.1, (64, 10))


def loss(first, second):
    """Mean squared error over all 1,437 images; of Tensors, a Tensor."""
    errors = F.relu(pixels @ first) @ second - answers
    return (errors * errors).mean()


weights = [tb.Tensor(array, requires_grad=True) for array in (first, second)]
count = first.size + second.size


def gradients():
    for weight in weights:
        weight.grad = None
    loss(*weights).backward()


forward = min(timeit.repeat(lambda: loss(*weights), number=1, repeat=5))
both = min(timeit.repeat(gradients, number=1, repeat=5))
print(f"{count:,} weights, loss once: {forward * 1e3:.1f} ms")
print(f"loss and all gradients: {both * 1e3:.1f} ms")
slopes_all = 2 * count * forward
print(f"slopes of all weights:  {slopes_all:.0f} s, {slopes_all / both:,.0f} times as long")

assert slopes_all > 50 * both

# %% [markdown]
# The ratio varies widely from run to run and between machines; its order of magnitude does not. So
# nobody trains with measured slopes; they check rules, once, on small arrays.
#
# ## In the package
#
# `tinybnn/autograd/engine.py` undoes broadcasting in `SumTo`; `MatMul` in
# `tinybnn/autograd/operations.py` has the rule of the matrix product. On the layer from the
# beginning they give exactly the numbers that we derived. (`requires_grad=True` marks the arrays
# whose gradients are kept, and a `grad` is itself a Tensor, so its array is `grad.data`; calls of
# `backward` add to it until it is set to `None`, as in the cell above.)

# %%
tensors = [tb.Tensor(array, requires_grad=True) for array in (X, W, b)]
(tensors[0] @ tensors[1] + tensors[2]).backward(G)
for name, tensor in zip("XWb", tensors, strict=True):
    print(name, tensor.grad.data.tolist())

assert tensors[0].grad.data[0, 1] == G[0] @ W[1]
assert np.array_equal(tensors[2].grad.data, [101.0, 1010.0])
assert np.allclose(tensors[1].grad.data, slopes)

# %% [markdown]
# Its gradient check is `tinybnn.testing.gradcheck`; the package's own tests run it over all
# operations. Given a wrong rule, it says where the rule fails:

# %%
from tinybnn.testing import gradcheck  # noqa: E402

gradcheck(lambda X, W, b: X @ W + b, [X, W, b])


class WrongSquare(tb.Function):
    def forward(self, x):
        return x * x

    def backward(self, grad, output, x):
        return grad * x  # forgot the 2


try:
    gradcheck(WrongSquare.apply, [np.array([1.0, 3.0])])
    message = ""
except AssertionError as error:
    message = str(error)
print(message)

assert message

# %% [markdown]
# ## Summary
#
# The gradient of an array has the array's shape. Rules that work element by element stay as they
# are, up to broadcasting: what was repeated was used several times, so its share is the sum over
# the repetitions. The rule of the matrix product follows from the same count of uses: each gradient
# is the product of `grad` and the other operand, transposed. Central differences with $h = 10^{-5}$
# tell whether rules are right.

# %% [markdown]
# ## Exercises
#
# | | write | task |
# |:-|:-|:-|
# | 01.3 | `unbroadcast(grad, shape)` | sum a gradient over the axes along which it was repeated |
# | 01.4 | `matmul(a, b)` | the matrix product with its rule |
# | 01.5 | `gradcheck(function, *arrays)` | the largest difference from central differences |
#
# Edit `mybnn/engine.py`, beside this notebook. The other operations are complete; `multiply` is a
# good model for `matmul`, and shows where `unbroadcast` is called. Then type in a terminal, in the
# folder of the course:
#
#     tinybnn course check 01.3    # check one; or all of the chapter: tinybnn course check 01
#     tinybnn course hint 01.3     # a hint; ask again for the next one, there are three

# %%
from tinybnn import course  # noqa: E402

course.show("01")

# %% [markdown]
# When all five are right, restart the kernel and run the notebook again: here your own engine
# trains the network for the ten digits.

# %%
try:
    from mybnn.engine import Tensor

    mine = [Tensor(np.float32(array)) for array in (first, second)]
    for _ in range(200):
        errors = (np.float32(pixels) @ mine[0]).relu() @ mine[1] - answers
        (errors * errors).mean().backward()
        for weight in mine:
            weight.data -= 2.0 * weight.grad
    hidden = np.maximum(test.images.reshape(-1, 64) / 16 @ mine[0].data, 0)
    right = (hidden @ mine[1].data).argmax(axis=1) == test.labels
    print(f"your engine: {right.mean():.1%} of the test images right")
except (ImportError, NotImplementedError) as error:
    print("your engine is not complete yet:", repr(error))

# %% [markdown]
# Think about:
#
# 1. `gradcheck` compares gradients of the *sum* of what a function returns. Which mistakes does it
#    miss in a function whose elements always add up to 1?
# 2. The derivative of ReLU does not exist at 0. What would `gradcheck` say there?

# %% [markdown]
# ## Sources
#
# - A. Baydin, B. Pearlmutter, A. Radul, J. Siskind: *Automatic differentiation in machine learning:
#   a survey* (2018).
# - W. Press, S. Teukolsky, W. Vetterling, B. Flannery: *Numerical Recipes*, section 5.7: which step
#   for numerical derivatives.
# - E. Alpaydin, C. Kaynak: *Optical Recognition of Handwritten Digits*, UCI Machine Learning
#   Repository (1998), CC BY 4.0: the images.
