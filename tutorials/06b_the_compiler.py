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
# # The compiler: from a model to a list of steps
#
# **You will learn** why a packed program is tested with `==` and not by its accuracy, how a
# compiler reads a model and decides what can be bits, what keeps the sums equal that stay floats,
# and what it says about a model that it cannot compile.
#
# **You need** [06](06_compiling.ipynb): batch norm and sign as one comparison. The model is the
# convolutional network of [03](03_first_binary_network.ipynb), built by `models.cnn`.
#
# **Time** about 13 minutes of reading; the cells run in less than half a minute.

# %%
import itertools

import matplotlib.pyplot as plt
import numpy as np

import tinybnn as tb
from tinybnn import datasets, deploy, models, nn, optim, plots, training
from tinybnn import functional as F
from tinybnn.tensor import trace

# %% [markdown]
# ## The question
#
# Here is the model, trained for three epochs on the digits. That is too short for a good result,
# but enough for numbers that are not random. About half of the $\gamma$ of batch norm begin with
# -1, so that channels of both kinds appear.

# %%
train, test = datasets.load("digits")
images, labels = next(iter(datasets.DataLoader(test, batch_size=len(test))))

rng = np.random.default_rng(0)
model = models.cnn(images.shape[1:], padding=1, rng=rng)
for module in model.modules():
    if isinstance(module, nn.BatchNorm2d):
        module.weight.data *= rng.choice(np.float32([-1, 1]), len(module.weight.data))

history = training.fit(
    model,
    datasets.DataLoader(train, batch_size=64, shuffle=True, rng=rng),
    epochs=3,
    optimizer=optim.Adam(model.parameters(), lr=1e-2),
    progress=False,
)
model.eval()
print(model)
print(f"accuracy in the last epoch of training: {history['accuracy'][-1]:.1%}")

assert history["accuracy"][-1] > 0.8

# %% [markdown]
# In 06 we wrote the program of one network by hand: which values are words, where the thresholds
# stand, what becomes of the pooling. **How does a program find this for any model, and how do we
# know that what it found is right?** We begin with the second half.
#
# ## The naive version
#
# The obvious test of a packed program is that it is as accurate as the model. To see what this test
# is worth, we make a mistake on purpose, as small as possible. We turn over *one* of the 512 signs
# that enter the second convolution, in each image another one, and count what differs behind each
# later batch norm.

# %%
with tb.no_grad():
    x = tb.Tensor(images)
    for i in range(3):
        x = model[i](x)
    before = x.data.transpose(0, 2, 3, 1).reshape(len(images), -1)  # (N, 512), the sign's argument
    after = before.copy()
    chosen = rng.integers(0, before.shape[1], len(images))
    after[np.arange(len(images)), chosen] *= -1
    a, b = (
        tb.Tensor(v.reshape(len(images), 4, 4, 32).transpose(0, 3, 1, 2)) for v in (before, after)
    )
    share = 1 / before.shape[1]
    layers = [("before layer 3", share, share)]  # share of values and of signs that differ
    for i in range(3, len(model)):
        a, b = model[i](a), model[i](b)
        if isinstance(model[i], nn.BatchNorm1d | nn.BatchNorm2d):
            signs_differ = (a.data >= 0) != (b.data >= 0)
            layers.append((f"behind layer {i}", (a.data != b.data).mean(), signs_differ.mean()))

changed = (a.data != b.data).any(axis=1)
moved = a.data.argmax(axis=1) != b.data.argmax(axis=1)
print(f"{changed.sum()} of {len(images)} images have other scores, {moved.sum()} another digit")
accuracies = [training.accuracy(scores.data, labels) for scores in (a, b)]
print(f"accuracy before {accuracies[0]:.1%}, after {accuracies[1]:.1%}")

assert changed.mean() > 0.5 and abs(accuracies[0] - accuracies[1]) < 0.05

# %%
figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
names, differing, signs = zip(*layers, strict=True)
axes.plot(names, differing, "o-", color=plots.MINUS, label="values")
axes.plot(names, signs, "o-", color=plots.PLUS, label="signs")
axes.set(yscale="log", ylabel="share that differs")
axes.grid(axis="y", color="0.92")
axes.legend(loc="upper left", frameon=False)
plt.show()

# %% [markdown]
# The sign reaches all sums of the pixels around it, and changes them by 2. Most stay on their side
# of the threshold; some pass it, and each of these does the same in the next layer. In a float
# network a small error mostly stays small. A binary network has no small errors: a bit is right or
# wrong.
#
# The accuracy hardly moves, since most wrong scores still have their largest value in the right
# place. A program that is wrong in a few bits of every image can have the accuracy of a right one.
# "Almost equal" is no test either: where a sign is turned over, the error is as large as any other.
# This leaves `==`, for every value inside the network. It needs no tolerance, and when it fails, it
# points to the first layer with a difference, which is where the mistake is.
#
# ## Trace
#
# Now to the compiler. A model is a Python program, and its `forward` can be anything. The compiler
# does not read the source. It runs the model once, in eval mode, and has each operation recorded
# with what came in and what came out. What it compiles is thus what the model computes.

# %%
x = tb.Tensor(images[:2])
with tb.no_grad(), trace() as calls:
    model(x)

for i, call in enumerate(calls[:7]):
    print(i, type(call.function).__name__, call.output.shape)

assert type(calls[0].function).__name__ == "SignConv2d" and calls[-1].output.shape == (2, 10)

# %% [markdown]
# ## Kinds
#
# Going forward, each value gets a *kind*:
#
# - **signs**: the result of a sign, or a rearrangement of signs;
# - **sums**: a convolution or a matrix product of signs with weights ±1, an integer whose bounds
#   are known;
# - **float**: anything else.
#
# A product of signs is the operation that training runs, too. It takes the latent weight, whose
# signs do not depend on the input: they are constants.


# %%
def kinds(calls, x):
    """id of each Tensor that depends on x -> its kind."""
    kind = {id(x): "float"}
    for call in calls:
        read = [kind[id(t)] for t in call.inputs if id(t) in kind]
        operation = type(call.function).__name__
        if not read:
            continue  # a constant
        found = "float"
        if operation == "Quantize":
            found = "signs"
        elif read == ["signs"] and operation in ("SignConv2d", "SignLinear"):
            found = "sums"
        elif read == ["signs"] and operation in ("MaxPool2d", "Reshape"):
            found = "signs"
        kind[id(call.output)] = found
    return kind


kind_of = kinds(calls, x)
kind_by_call = [kind_of.get(id(call.output), "constant") for call in calls]

assert kind_by_call.count("signs") == 4 and kind_by_call.count("sums") == 4

# %% [markdown]
# ## The better version: forms
#
# Going backward from the output, each value is asked for in the *forms* that its readers want: as a
# float array, as bits, or as accumulators, which are integers. A convolution of signs wants bits. A
# sign whose argument is a function of one sum wants the accumulators, and becomes thresholds, if
# the sign changes at most once. Then nobody asks for what lies between the two, and what nobody
# asks for is not computed. Going forward again, each form that somebody wants becomes a *step*.
#
# The table shows each operation of the model, its kind, and the forms in which it was asked for.

# %%
packed = deploy.compile(model, images.shape[1:])

forms = {}
for step in packed.steps:
    forms.setdefault(step.call, []).append(step.layout)
for i, call in enumerate(calls):
    shape = " × ".join(map(str, call.output.shape[1:]))
    print(f"{i:2} {type(call.function).__name__:<10} {shape:<12} {kind_by_call[i]:<9}", end=" ")
    print(", ".join(forms.get(i, ["-"])))

vanished = [i for i in range(len(calls)) if i not in forms and kind_by_call[i] != "constant"]
assert "BatchNorm" in [type(calls[i].function).__name__ for i in vanished]

# %% [markdown]
# Where a dash stands beside an operation, it has disappeared: max-pool and batch norm between sums
# and signs are part of the thresholds.
#
# What is left is the program. A step is the name of an operation, numbers of earlier steps, and
# arrays. There is no code in it, so that a program can be saved as data, and loading it runs
# nothing.

# %%
print(packed)

# %% [markdown]
# Are its thresholds those of 06? For the third convolution, with $K = 576$ products in a sum, we
# ask the float network at all 1153 sums. Each channel's sign changes once, or not at all.

# %%
norm, K = model[7], 576
integers = np.arange(-K, K + 1)
values = F.batch_norm(
    integers[:, None] * np.ones(64, np.float32),
    norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data, eps=norm.eps,
)  # fmt: skip
third = [step for step in packed.steps if step.operation == "threshold"][1]
thresholds, flips = third.arrays["thresholds"], third.arrays["flip"]

assert ((values[1:] >= 0) != (values[:-1] >= 0)).sum(axis=0).max() == 1
assert np.array_equal((integers[:, None] >= thresholds) != flips, values >= 0)

# %% [markdown]
# ## Sums that remain floats
#
# Sums of signs are integers below $2^{24}$. Float32 holds them exactly, and their order is of no
# importance. But the first layer sees pixels, and in many networks the last one has float weights.
# Their terms are real numbers, every addition rounds, and then the order matters:

# %%
big, small = np.float32(1e8), np.float32(1)
print("(big - big) + small =", (big - big) + small)
print("(big + small) - big =", (big + small) - big)

six = np.random.default_rng(0).normal(size=6).astype(np.float32)
totals = {np.cumsum(order, dtype=np.float32)[-1] for order in itertools.permutations(six)}
signs = {np.cumsum(order)[-1] for order in itertools.permutations(np.sign(six))}
print(f"720 orders of six numbers: {len(totals)} different sums; of their signs: {len(signs)}")

assert len(totals) > 1 and len(signs) == 1

# %% [markdown]
# (`np.cumsum` adds one after the other.) Which order does a matrix product take? A tuned library
# chooses by the size of the matrices, the number of threads and the processor. So one image alone
# can have other sums than the same image in a batch. Behind these sums stands a sign, and we know
# what one wrong bit does.
#
# The package therefore has *one* kernel for such sums, with one order: ascending $k$, each product
# rounded before it is added (no fused multiply-add, which would round once instead of twice). The
# float model in eval mode and the packed model both call it, and `fixed_order=True` asks for it.

# %%
rng = np.random.default_rng(2)
x, weight = rng.normal(size=(64, 1000)).astype("f4"), rng.normal(size=(10, 1000)).astype("f4")
alone = np.concatenate([row[None] @ weight.T for row in x])
print(f"NumPy, alone or in a batch: {(alone != x @ weight.T).sum()} of {alone.size} sums differ")

by_hand = np.zeros((64, 10), np.float32)
for k in range(1000):
    by_hand += x[:, k, None] * weight[None, :, k]
in_order = F.linear(x, weight, fixed_order=True)

assert np.array_equal(in_order, by_hand)
assert np.array_equal(
    np.concatenate([F.linear(row[None], weight, fixed_order=True) for row in x]), in_order
)

# %% [markdown]
# Our digits hide the problem: their pixels are multiples of 1/8, so even the first layer's sums are
# exact. Photographs, with the mean taken off and divided by a standard deviation, do not.
#
# What stands between such sums, like the batch norm at the end, works on each number by itself.
# There nothing is added up, and the same operations in the same order are enough.
#
# ## What does not compile
#
# Between sums and sign may stand anything that works on each number by itself, as long as the
# compiler knows the operation. If the sign changes more than once, there is no threshold; the
# program then keeps the floats, and stays exact. Below, $|\text{norm}| - 1$ changes twice.


# %%
class Folded(nn.Module):
    def __init__(self, norm):
        self.norm = norm

    def forward(self, x):
        return F.abs(self.norm(x)) - 1.0


def small_network(between):
    rng = np.random.default_rng(0)
    return nn.Sequential(
        nn.Flatten(),
        nn.BinaryLinear(64, 32, rng=rng),
        between,
        nn.BinaryLinear(32, 10, rng=rng),
    ).eval()


norm = nn.BatchNorm1d(32)
norm.running_var[:] = 64
for between in (norm, Folded(norm)):
    network = small_network(between)
    program = deploy.compile(network, (1, 8, 8))
    operations = [step.operation for step in program.steps]
    print(f"{type(between).__name__:<12}", ", ".join(operations))
    assert ("threshold" in operations) == (between is norm)
    deploy.verify(network, program, images)

# %% [markdown]
# The second program compares nothing: it computes the norm, `abs` and `sub` in float32 and packs
# the result.
#
# Two kinds of model cannot be compiled. One uses an operation that has no packed form. The other
# computes a constant from its input, outside of what is recorded: the trace would keep the value of
# the first run. The error names the layer, the operation, and what to do instead.


# %%
class Softmax(nn.Module):
    def forward(self, x):
        return F.log_softmax(x)


class Cut(nn.Module):
    def forward(self, x):
        return x * float(x.data.mean())


messages = []
for between in (Softmax(), Cut()):
    try:
        deploy.compile(small_network(between), (1, 8, 8))
    except deploy.CompileError as error:
        messages.append(str(error).split(" (line")[0])
        print(messages[-1], end="\n\n")

assert "no packed form" in messages[0] and "Cut" in messages[1]

# %% [markdown]
# ## Measured
#
# `deploy.verify` traces the model on the given images and compares the result of each step with the
# value that it stands for, with `==`. We give it the program, and then one with a mistake: a single
# threshold is 2 too high (these sums are all even, so 1 would change nothing).

# %%
compared = deploy.verify(model, packed, images)
print(f"{compared:,} values compared, all equal")
right = training.accuracy(packed.predict(images), labels)

packed.save("digits.tbnn")
spoilt = deploy.PackedModel.load("digits.tbnn")
step = next(step for step in spoilt.steps if step.operation == "threshold")
step.arrays["thresholds"] = step.arrays["thresholds"].copy()
step.arrays["thresholds"][3] += 2

try:
    deploy.verify(model, spoilt, images)
    message = ""
except Exception as error:
    message = str(error)
    print(message)
print(
    f"accuracy: right {right:.1%}, spoilt {training.accuracy(spoilt.predict(images), labels):.1%}"
)

assert message

# %% [markdown]
# The accuracy says little, and `==` says which step is wrong, in how many values.
#
# ## In the package
#
# | what | where |
# |---|---|
# | recording a forward pass | [`deploy/trace.py`](../tinybnn/deploy/trace.py) |
# | kinds, forms, steps | [`deploy/compiler.py`](../tinybnn/deploy/compiler.py) |
# | signs at every sum, thresholds | [`deploy/scan.py`](../tinybnn/deploy/scan.py) |
# | operations and their packed forms | [`deploy/operations.py`](../tinybnn/deploy/operations.py) |
# | comparison with `==` | [`deploy/verify.py`](../tinybnn/deploy/verify.py) |
# | sums in one order | [`kernels/floats/ordered.py`](../tinybnn/kernels/floats/ordered.py) |
#
# Our short `kinds` must find the same sums and signs as the compiler.

# %%
products = {step.call for step in packed.steps if step.operation.startswith("xnor")}
bits = {step.call for step in packed.steps if "bits" in step.layout}

assert products <= {i for i, kind in enumerate(kind_by_call) if kind == "sums"}
assert {i for i, kind in enumerate(kind_by_call) if kind == "signs"} <= bits

# %% [markdown]
# ## Summary
#
# A packed program is right if every value inside it equals the model's, with `==`; one wrong bit
# changes most scores and hardly the accuracy. The compiler records one forward pass, finds which
# values are signs and which are integer sums, asks for each value in the form its readers need, and
# turns what stands between a sum and a sign into thresholds. Sums of real numbers depend on the
# order of addition, so both sides use one kernel with one order. What has no packed form, or
# depends on the input behind the trace's back, is refused with the layer's name.
#
# ## Exercises
#
# The exercises of this chapter are in [06](06_compiling.ipynb). Think about:
#
# 1. Change the first batch norm of the model to $\gamma = 0$ in one channel. Which steps of the
#    program change? Predict, then look.
# 2. XNOR-Net multiplies each sum by the mean magnitude of the filter's weights, `scale="mean"`.
#    Where are these factors in the packed model of a network with batch norm? Compare the sizes of
#    the files with and without.
#
# ## Sources
#
# - Y. Umuroglu et al.: *FINN* (2017), arXiv:1612.07119: batch norm and sign as a threshold.
# - M. Rastegari et al.: *XNOR-Net* (2016), arXiv:1603.05279: scaled sums.
# - D. Goldberg: *What Every Computer Scientist Should Know About Floating-Point Arithmetic*, ACM
#   Computing Surveys 23(1) (1991): rounding, and the order of additions.
