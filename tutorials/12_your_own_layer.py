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
# # Your own layer: from an idea to a packed model
#
# **You will learn** how to add to tinybnn what it does not have: an estimator, a function with its
# gradient, a layer with latent weights, and the packed form of the function, so that the compiled
# model gives the same bits as the trained one.
#
# **You need** pseudo-gradients and surrogates from [02](02_the_gradient_of_sign.ipynb), latent
# weights and batch norm from [03](03_first_binary_network.ipynb), and what a compiler does with a
# binary network from [06](06_compiling.ipynb).
#
# **Time** about 14 minutes of reading; the cells run in less than half a minute.
#
# So far you wrote a library. Now you extend one: the file of this chapter's exercises imports
# tinybnn.

# %%
import inspect

import matplotlib.pyplot as plt
import numpy as np

import tinybnn as tb
from tinybnn import datasets, deploy, nn, optim, plots, quantizers, testing, training
from tinybnn import functional as F
from tinybnn.deploy import operations
from tinybnn.deploy.values import FLOAT, Value

# %% [markdown]
# ## The question
#
# One binary neuron with two inputs ±1 compares one sum, $w_1 x_1 + w_2 x_2$ with $w_1, w_2 = \pm
# 1$, with a threshold. It cannot tell whether its inputs *differ* (exclusive or): for that it has
# to say yes to (+1, -1) and to (-1, +1), and no to the other two. But in either group the two
# inputs are opposite, and so are their sums: no threshold has both sums of one group on one side
# and both of the other on the other side. Two sums and their *maximum* can:

# %%
pairs = np.float32([[1, 1], [1, -1], [-1, 1], [-1, -1]])
first, second = pairs @ [1, -1], pairs @ [-1, 1]
largest = np.maximum(first, second)
for x, a, b, most in zip(pairs, first, second, largest, strict=True):
    print(f"x = ({x[0]:2.0f}, {x[1]:2.0f})   sums {a:2.0f} and {b:2.0f}   largest {most:1.0f}")

assert np.array_equal(largest >= 1, pairs[:, 0] != pairs[:, 1])

# %% [markdown]
# A layer whose outputs are the largest of $k$ sums each is called *maxout* (Goodfellow et al.
# 2013); the $k$ sums are its *pieces*. tinybnn has none with binary weights. (Its `nn.Maxout` is
# another function of that name, an activation.) **How does one add this layer, so that it trains,
# and its packed form gives the same bits?**
#
# ## The naive version: put it together from what there is
#
# A binary layer with $k$ times as many outputs, a reshape that puts the $k$ pieces of an output
# side by side, and the maximum over them:


# %%
class Composed(nn.Module):
    """The largest of each `pieces` neighbours: (N, M pieces) -> (N, M)."""

    def __init__(self, pieces):
        self.pieces = pieces

    def forward(self, x):
        return x.reshape(len(x), -1, self.pieces).amax(2)


def network(after, pieces=2, seed=0):
    """Two binary layers; `after` the first one come its maxima."""
    rng = np.random.default_rng(seed)
    return nn.Sequential(
        nn.BinaryLinear(64, 32 * pieces, rng=rng), after, nn.BatchNorm1d(32),
        nn.BinaryLinear(32, 10, rng=rng),
    )  # fmt: skip


x = np.random.default_rng(1).standard_normal((200, 64), np.float32)
print("output", network(Composed(2))(tb.Tensor(x)).shape)

try:
    deploy.compile(network(Composed(2)), (64,))
    message = ""
except deploy.CompileError as error:
    message = str(error)
print(message)

assert "Amax has no packed form" in message

# %% [markdown]
# It runs, and each of its operations has a gradient, but it does not compile: the
# compiler has no rule for `amax`. The message names a way around, the maximum of two slices. That
# works, for $k = 2$, but look at the steps:


# %%
class OfSlices(nn.Module):
    def forward(self, x):
        return F.maximum(x[:, 0::2], x[:, 1::2])


of_slices = deploy.compile(network(OfSlices()), (64,))
print(of_slices)

assert len(of_slices.steps) == 14

# %% [markdown]
# Seven steps (3 to 9) for one maximum, and the indices of the slices became arrays that the model
# stores. The idea deserves a function of its own.
#
# ## A Function with its gradient
#
# A `Function` is what your own engine called an operation with a rule. `forward` computes an array
# from arrays. `backward` gets the gradient of the result, the result itself (`output`) and all
# inputs of `forward`, and returns the gradient of each input: one value, or a tuple if there are
# several inputs. What `backward` needs besides, `forward` keeps as an attribute.
#
# Which of the pieces gets the gradient? Only the largest one reaches the result, so the slope is 1
# for it and 0 for the others. But which one if two are equal? For real numbers that hardly happens.
# For sums of signs it is common:

# %%
sums = network(Composed(2))[0](tb.Tensor(x)).data  # sums of 64 signs
ties = (sums[:, 0::2] == sums[:, 1::2]).mean()
print(f"the two pieces are equal in {ties:.1%} of {sums.size // 2:,} outputs")

assert 0.02 < ties < 0.1

# %% [markdown]
# So the rule must say it: here the first of equal ones is chosen.


# %%
class GroupMax(tb.Function):
    """The largest of each `pieces` neighbours: (N, M pieces) -> (N, M)."""

    def forward(self, x, pieces):
        rows = x.reshape(len(x), -1, pieces)
        places = rows.argmax(axis=2)[:, :, None]  # of the first largest one
        self.chosen = (np.arange(pieces) == places).astype(x.dtype)  # (N, M, pieces)
        return rows.max(axis=2)

    def backward(self, grad, output, x):
        return (grad.reshape(*grad.shape, 1) * self.chosen).reshape(x.shape)


small = tb.Tensor(np.float32([[3, 5, 4, 4]]), requires_grad=True)
result = GroupMax.apply(small, pieces=2)
result.backward(np.float32([[10, 20]]))
print("x       ", small.data, "\nlargest ", result.data, "\ngradient", small.grad.data)

assert np.array_equal(small.grad.data, [[0, 10, 20, 0]])

# %% [markdown]
# `apply` runs the function: on arrays it returns an array, on Tensors a Tensor with a place in the
# graph. Arrays and Tensors are *inputs*, given by position; everything else, such as `pieces`, is
# an *option*, given by name, and has no gradient.
#
# `backward` is written with operators, `reshape` and the mask only. These work on Tensors too, so
# that the gradient has a gradient itself, which [11](11_the_landscape.ipynb) needs.
# `testing.gradcheck` compares the rule with finite differences, `gradgradcheck` the rule of the
# rule; both raise an error if they disagree.

# %%
distinct = np.random.default_rng(2).permutation(24).reshape(4, 6) / 4.0
testing.gradcheck(lambda x: GroupMax.apply(x, pieces=3), distinct)
testing.gradgradcheck(lambda x: GroupMax.apply(x, pieces=3), distinct)

assert np.array_equal(GroupMax.apply(distinct, pieces=3), distinct.reshape(4, 2, 3).max(2))

# %% [markdown]
# The numbers are distinct on purpose: where two are equal, the maximum has a kink, and a difference
# over it is no derivative.
#
# ## An estimator of your own
#
# The signs of the layer need an estimator. You know two: the straight-through estimator, whose
# slope is 1 up to $|x| = 1$ and then 0, and Bi-Real Net's, whose slope is a tent. Another idea: the
# cubic $s(x) = (3x - x^3) / 2$, which is -1 and +1 at the ends and has slope 0 there, $s'(x) =
# \frac{3}{2} (1 - x^2)$, without the tent's kink at 0.
#
# An estimator is a subclass of `Quantizer` with three methods: what the network computes
# (`forward`), the factor for the gradient (`pseudo_gradient`), and the function whose slope that
# factor is (`surrogate`). Training never computes the surrogate; it is there to test the
# pseudo-gradient.


# %%
class CubicSign(quantizers.Quantizer):
    """sign(x), with the slope of (3 x - x³) / 2 where |x| <= 1."""

    def forward(self, x):
        return np.where(x >= 0, 1, -1).astype(x.dtype)

    def pseudo_gradient(self, x):
        return np.where(np.abs(x) <= 1, 1.5 * (1 - x * x), 0).astype(x.dtype)

    def surrogate(self, x):
        x = tb.clamp(x, -1.0, 1.0)
        return 1.5 * x - 0.5 * x * x * x


cubic, points = CubicSign(), np.array([-1.7, -0.6, 0.2, 0.9, 2.5])
testing.gradcheck(cubic, points, surrogate=cubic.surrogate)

assert cubic.gives_signs and cubic.forward(np.float32([0])).dtype == np.float32

# %% [markdown]
# Three traps. The sign of 0 is +1, as everywhere in tinybnn, since a bit has no third value.
# Without `.astype(x.dtype)` the signs would be integers, and a packed model computes with float32.
# And the surrogate uses `tb.clamp`, not `np.clip`: it must take Tensors, so that one can
# differentiate it. (The class attribute `values`, by default -1 and 1, tells the compiler what
# comes out; `gives_signs` reads it. The tent in the picture is `ApproxSign`.)

# %%
line = np.linspace(-1.6, 1.6, 401)
figure, sides = plt.subplots(1, 2, figsize=(9, 2.6), layout="constrained")
for axes, method, title in zip(
    sides, ("surrogate", "pseudo_gradient"), ("surrogate", "pseudo-gradient"), strict=True
):
    for estimator, color in (
        (quantizers.SteSign(), "0.6"), (quantizers.ApproxSign(), plots.MINUS), (cubic, plots.PLUS),
    ):  # fmt: skip
        values = getattr(estimator, method)(line)
        axes.plot(line, values, color=color, label=type(estimator).__name__)
    axes.set(title=title, xlabel="x")
sides[0].legend(frameon=False)
plt.show()

# %% [markdown]
# ## A layer
#
# A layer is a `Module`: its parameters are attributes that `__init__` sets (it need not call
# `super().__init__()`), and `forward` calls functions. The float weight behind a sign is a
# `LatentParameter`: optimizers clip it to [-1, 1] after each step, and leave it out of weight
# decay. A plain `Parameter` would drift out of the range in which the estimator passes a gradient,
# and its sign would hardly ever flip again.


# %%
class BinaryMaxout(nn.Module):
    """The largest of `pieces` binary products: (N, in) -> (N, out).

    Attributes
    ----------
    weight : (out pieces, in) float32, latent
    """

    def __init__(self, in_features, out_features, pieces=2, quantizer="ste_sign", rng=None):
        rng = np.random.default_rng() if rng is None else rng
        weight = rng.uniform(-1, 1, (out_features * pieces, in_features))
        self.weight = nn.LatentParameter(weight.astype(np.float32))
        self.pieces, self.quantizer = pieces, quantizers.get(quantizer)

    def forward(self, x):
        sums = F.linear(self.quantizer(x), self.quantizer(self.weight))
        return GroupMax.apply(sums, pieces=self.pieces)


layer = BinaryMaxout(2, 1, rng=np.random.default_rng(0))
layer.weight.data[...] = [[0.3, -0.8], [-0.1, 0.5]]
print("the largest sums:", layer(tb.Tensor(pairs)).data.ravel())

assert np.array_equal(layer(tb.Tensor(pairs)).data[:, 0], largest)
assert [name for name, _ in layer.named_parameters()] == ["weight"]

# %% [markdown]
# That is the neuron of the beginning. With `quantizer(...)` both factors become signs and keep a
# gradient; `quantizers.sign` would have none. `F.linear` is the product that the compiler knows: of
# two factors that are signs it makes XNOR and popcount.
#
# ## A packed operation
#
# What is missing is the maximum. The compiler runs the model once and records each `Function` that
# is called ([06b](06b_the_compiler.ipynb)). For each it needs a class that answers three questions:
#
# - *What does it mean?* `run` computes the result from arrays. By default it applies the Function,
#   so that the packed model computes what the float model does.
# - *What comes out?* `shape` gets the `Value` of each input: its kind (floats, sums or bits), the
#   shape of **one** sample, and `single`, whether one sample stands for the whole batch. It returns
#   the `Value` of the result, or raises a ValueError: a packed model may come from a damaged file,
#   and is checked by this rule before it runs.
# - *Which calls does it match, and what does it keep of them?* `functions` names the Functions, and
#   `of_call` gets a recorded call and returns two dicts, of arrays and of settings (numbers, text).
#   By default it copies the options that `settings` names. It may refuse a call: it then raises
#   `NoPackedFormError` with a sentence that says why, or returns None, and the compiler's general
#   message appears.


# %%
class GroupMaxOperation(deploy.Operation):
    """Floats (M pieces,) -> floats (M,)."""

    name, functions, settings = "group_max", (GroupMax,), ("pieces",)

    @staticmethod
    def shape(x, *, pieces):
        if type(pieces) is not int or pieces < 1:
            raise ValueError(f"pieces must be an int >= 1, got {pieces!r}")
        if len(x.shape) != 1 or x.shape[0] % pieces:
            raise ValueError(f"expects a multiple of {pieces} features, got {x.shape}")
        return Value(FLOAT, (x.shape[0] // pieces,), x.single)


def maxout(pieces=2, quantizer="ste_sign", seed=0):
    rng = np.random.default_rng(seed)
    return nn.Sequential(
        BinaryMaxout(64, 32, pieces, quantizer, rng), nn.BatchNorm1d(32),
        nn.BinaryLinear(32, 10, rng=rng),
    )  # fmt: skip


packed = deploy.compile(maxout().eval(), (64,))
print(packed)

assert [step.operation for step in packed.steps].count("group_max") == 1
assert len(packed.steps) == len(of_slices.steps) - 6

# %% [markdown]
# Defining the class registers it; nothing else in tinybnn changes. The product is one of bits, and
# the maximum one step. A saved model holds the operation's *name*, so a program that loads it must
# define the class.
#
# **Is it exact?** `deploy.verify` compares all layers of both models on given inputs.
# `testing.check_packed` is stricter: it compiles, saves and loads, predicts in blocks of odd sizes,
# by one thread and two, from several memory layouts, with zeros of both signs among the inputs, and
# compares every bit. `randomize` first gives batch norm factors of either sign, and 0.

# %%
model = testing.randomize(maxout(pieces=3), np.random.default_rng(0)).eval()
print(deploy.verify(model, deploy.compile(model, (64,)), x), "values compared")
for pieces in (1, 2, 3, 5):
    model = testing.randomize(maxout(pieces), np.random.default_rng(pieces)).eval()
    testing.check_packed(model, (64,))

assert np.array_equal(packed.predict(x), maxout().eval()(tb.Tensor(x)).data)

# %% [markdown]
# What does a wrong rule do? Suppose the meaning were fast and almost right: `run` in float16, in
# which integers beyond 2048 are no longer exact. Sums of 64 signs do not notice. Sums of 6,000 do:


# %%
def in_float16(x, *, pieces):
    rows = x.astype(np.float16).reshape(len(x), -1, pieces)
    return rows.max(axis=2).astype(np.float32)


wide = nn.Sequential(BinaryMaxout(6000, 4, rng=np.random.default_rng(0))).eval()
wide[0].weight.data[...] = 1
GroupMaxOperation.run = staticmethod(in_float16)
testing.check_packed(maxout().eval(), (64,))
try:
    deploy.compile(wide, (6000,))
    message = ""
except deploy.CompileError as error:
    message = str(error)
del GroupMaxOperation.run
print(message)

assert "differs" in message

# %% [markdown]
# The compiler tries each packed model out, and found it. In the small model no input would have
# shown it; in the large one a relative tolerance of 0.001 would have hidden it. Test with `==`, and
# with sizes at which numbers become large.
#
# ## Measured
#
# Is the idea any good? On the digits, a maxout of 64 outputs with 2 pieces is compared with plain
# binary layers of 64 outputs, and of 128, which have as many binary products of the input as the
# maxout. Each is trained with two of the estimators. Test accuracy, mean and range of three seeds:

# %%
train, test = datasets.load("digits")
images, labels = next(iter(datasets.DataLoader(test, batch_size=len(test))))


def trained(hidden, outputs, rng):
    model = nn.Sequential(
        nn.Flatten(), hidden, nn.BatchNorm1d(outputs), nn.BinaryLinear(outputs, 10, rng=rng),
        nn.BatchNorm1d(10),
    )  # fmt: skip
    training.fit(
        model, datasets.DataLoader(train, batch_size=64, shuffle=True, rng=rng),
        epochs=15, optimizer=optim.Adam(model.parameters(), lr=1e-2), progress=False,
    )  # fmt: skip
    return model.eval()


def plain(outputs, q, rng):
    return nn.BinaryLinear(64, outputs, input_quantizer=q, weight_quantizer=q, rng=rng)


layers = {
    "maxout 64": (64, lambda q, rng: BinaryMaxout(64, 64, 2, q, rng)),
    "plain 64": (64, lambda q, rng: plain(64, q, rng)),
    "plain 128": (128, lambda q, rng: plain(128, q, rng)),
}
means = {}
for name, (outputs, make) in layers.items():
    for quantizer in (quantizers.ste_sign, cubic):
        found = []
        for seed in range(3):
            rng = np.random.default_rng(seed)
            model = trained(make(quantizer, rng), outputs, rng)
            scores = deploy.compile(model, (1, 8, 8)).predict(images)
            with tb.no_grad():
                assert np.array_equal(scores, model(tb.Tensor(images)).data)
            found.append(training.accuracy(scores, labels))
        kind = type(quantizer).__name__
        means[name, kind] = np.mean(found)
        print(f"{name:<11}{kind:<11}{np.mean(found):.1%}   ({min(found):.1%} to {max(found):.1%})")

assert min(means.values()) > 0.7
kinds = ("SteSign", "CubicSign")
assert sum(means["maxout 64", k] for k in kinds) < sum(means["plain 128", k] for k in kinds)

# %% [markdown]
# The idea does not pay here. Maxout is not clearly better than the plain layer of 64 outputs, which
# has half the products, and worse in the mean than the one with as many. The two estimators differ
# by about as much as seeds do. Most ideas end like that; a comparison at equal cost, with several
# seeds, shows it. And all packed networks gave the float network's scores.
#
# ## In the package
#
# The maximum agrees with the composition of tinybnn's own functions, and its operation is found
# where all operations are, in [`deploy/operations.py`](../tinybnn/deploy/operations.py):

# %%
composed, own = Composed(2)(tb.Tensor(sums)).data, GroupMax.apply(sums, pieces=2)
assert np.array_equal(composed, own)
assert operations.OF_FUNCTION[GroupMax] is GroupMaxOperation

print(inspect.getsource(operations.PRelu))

# %% [markdown]
# This operation has an *array*, `weight`: `arrays` names it, `of_call` returns it in the first
# dict, and `shape` gets it by name and checks it. `of_call` reads it with `call.constant(1)`: input
# 1 of the call (input 0 is $x$) as an array, or None if it depends on the model's input. Such a
# weight has no fixed value, so there is no packed form. (Here `call.results`, the number of inputs
# that depend on the model's input, tells the same: it is 1 if only $x$ does. `program` is the
# operation's form in the fused kernels of floats; without it `run` is used.)
#
# `is_elementwise` says that each number of the result depends on one number of the input. Between a
# sum and a sign it then costs nothing: the compiler evaluates it at each possible sum, and it
# disappears in the thresholds of [06](06_compiling.ipynb). The maximum mixes sums, so it stays a
# step.
#
# The library's estimators are in [`quantizers.py`](../tinybnn/quantizers.py). To add such parts to
# tinybnn itself, follow the recipes in its CONTRIBUTING.md.
#
# ## Summary
#
# A new idea needs up to four small classes. A `Function` has a forward pass and a gradient. A
# `Quantizer` has a forward pass, a pseudo-gradient, and the surrogate that tests it. A `Module`
# holds latent weights and calls functions. An `Operation` tells the compiler what a Function means,
# which shapes it takes and makes, and what to keep of a call. `gradcheck` and `check_packed` say
# whether all of that is right, the second one without tolerance.
#
# ## Exercises
#
# The idea of the exercises is a *vote*: three binary products for each output, of which the middle
# one counts. Its sign is the majority of three signs.
#
# | number | name | task |
# |---|---|---|
# | 12.1 | `SineSign` | an estimator with the slope of a sine |
# | 12.2 | `MiddleOfThree` | a Function with two inputs, and both gradients |
# | 12.3 | `BinaryVote` | a layer with a latent weight and an offset |
# | 12.4 | `MiddleOfThreeOperation` | the packed form, which keeps an array |
#
# Write them in `mybnn/own_layer.py` beside this notebook. Then `tinybnn course check 12` says what
# is right and what is not, and `tinybnn course hint 12.2` helps. The state of your answers:

# %%
from tinybnn import course  # noqa: E402

course.show("12")

# %% [markdown]
# Think about:
#
# 1. With $\gamma > 0$, the sign after batch norm of the largest sum is the OR of the signs that the
#    pieces would have (06). Would a packed maxout on bits be smaller or faster than the one here?
# 2. Set `is_elementwise = True` in `GroupMaxOperation`. The compiled model is still right. Why?
#    *Hint:* what does the compiler see when it evaluates the maximum at a column of sums?
# 3. The sign of the middle of three numbers is the majority of their signs. Why? Is it still so
#    after a batch norm with $\gamma < 0$?
#
# ## Sources
#
# - I. Goodfellow, D. Warde-Farley, M. Mirza, A. Courville, Y. Bengio: *Maxout Networks* (2013),
#   arXiv:1302.4389.
# - Z. Liu et al.: *Bi-Real Net* (2018), arXiv:1808.00278: the tent.
# - M. Courbariaux, I. Hubara, D. Soudry, R. El-Yaniv, Y. Bengio: *Binarized Neural Networks*
#   (2016), arXiv:1602.02830: latent weights, clipped.
