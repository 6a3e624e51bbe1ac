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
# # Tasks and time: from a list of steps to calls of kernels
#
# **You will learn** how several steps of a packed program become one call of a kernel, how real
# numbers between two products of signs are handled, what is in the file, and where the time goes.
#
# **You need** [06b](06b_the_compiler.ipynb): steps, forms and `==`. Convolutions on words are
# explained in [05](05_convolutions_on_bits.ipynb).
#
# **Time** about 14 minutes of reading; the cells run in less than a minute, longer the first time,
# since kernels are compiled. Times are those of the machine that ran the notebook.

# %%
import os

os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # NumPy on one core

# %%
import time

import matplotlib.pyplot as plt
import numba
import numpy as np

import tinybnn as tb
from tinybnn import datasets, deploy, models, nn, optim, plots, training
from tinybnn import functional as F
from tinybnn.functional.normalization import affine_constants
from tinybnn.kernels import xnor
from tinybnn.kernels.bits import pack, words_for
from tinybnn.kernels.floats import fused, pointwise
from tinybnn.tensor import trace

numba.set_num_threads(1)

# %% [markdown]
# ## The question
#
# The model is that of 06b: three convolutions and two dense layers, trained for three epochs.

# %%
train, test = datasets.load("digits")
images, labels = next(iter(datasets.DataLoader(test, batch_size=len(test))))
rng = np.random.default_rng(0)
model = models.cnn(images.shape[1:], padding=1, rng=rng)
training.fit(
    model,
    datasets.DataLoader(train, batch_size=64, shuffle=True, rng=rng),
    epochs=3,
    optimizer=optim.Adam(model.parameters(), lr=1e-2),
    progress=False,
)
packed = deploy.compile(model.eval(), images.shape[1:])
print(f"{len(packed.steps)} steps:", ", ".join(step.operation for step in packed.steps))

print(f"{deploy.verify(model, packed, images):,} values compared, all equal")

assert len(packed.steps) == 15

# %% [markdown]
# Each step in turn reads an array and writes an array. A sum takes 32 bits, and only one bit of it
# is kept. **How much of this traffic can be avoided, and how much faster than floats is the whole
# program then?**
#
# ## The naive version
#
# `packed.run` executes one step after the other. It is the reference, and `verify` checks it first.
# How large are its results?

# %%
of_steps = {step.operation: 0 for step in packed.steps}
for step, (_, result) in zip(packed.steps, packed.run(images), strict=False):
    of_steps[step.operation] += result.nbytes
for operation, size in of_steps.items():
    print(f"{operation:<14}{size:12,} bytes")

assert of_steps["xnor_conv2d"] > 8 * of_steps["threshold"]

# %% [markdown]
# ## The better version: tasks
#
# `packed.predict` is faster, because it executes several steps in one call of a kernel: a *task*.
# `packed.tasks` lists the tasks, and `covers` gives the steps of each.

# %%
for task in packed.tasks:
    operations = ", ".join(packed.steps[i].operation for i in task.covers)
    print(f"steps {', '.join(map(str, task.covers)):<12} {operations}")

results = [sum(r.nbytes for _, r in run(images)) for run in (packed.run, packed.run_plan)]
print(f"bytes of all results: {results[0]:,} step by step, {results[1]:,} task by task")

assert results[1] < results[0]
assert sorted(i for task in packed.tasks for i in task.covers) == list(range(len(packed.steps)))

# %% [markdown]
# A product of signs and its thresholds are one task: the kernel compares the differences that it
# has just counted and writes bits, as in [05b](05b_convolutions_by_addresses.ipynb). Each 32-bit
# sum becomes one bit; the sums are never written.
#
# In the last task, integers become floats and go through a batch norm. In the third, a batch norm
# of floats ends in bits. Such float arithmetic is our next topic.

# %% [markdown]
# ## Real numbers between the signs
#
# Networks with good accuracy add the input of a block to its output, as real numbers (Bi-Real Net).
# ReActNet adds two layers with learned values for each channel: *RSign*, the sign of $x - \alpha$,
# and *RPReLU*, which shifts, multiplies negative numbers by a slope, and shifts again. Then no
# integer threshold exists: before the sign, something real has been added.
#
# Here is a network of two such blocks. It is not trained, since that would not change the
# arithmetic; its parameters are drawn at random, so that none happens to be 0 or 1.


# %%
class Block(nn.Module):
    def __init__(self, channels, rng):
        self.sign = nn.RSign(channels)
        self.conv = nn.BinaryConv2d(
            channels, channels, 3, padding=1, input_quantizer=None, rng=rng
        )  # its input is signs already
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.RPReLU(channels)

    def forward(self, x):
        return self.act(self.norm(self.conv(self.sign(x))) + x)


rng = np.random.default_rng(3)
residual = nn.Sequential(
    nn.BinaryConv2d(1, 64, 3, padding=1, input_quantizer=None, rng=rng),
    nn.BatchNorm2d(64),
    Block(64, rng),
    Block(64, rng),
    nn.AvgPool2d(8),
    nn.Flatten(),
    nn.Linear(64, 10, rng=rng),
).eval()
for module in residual.modules():
    if isinstance(module, nn.BatchNorm2d):
        module.running_mean[:] = rng.normal(0, 5, 64)
        module.running_var[:] = rng.uniform(100, 900, 64)
        module.weight.data[:] = rng.normal(1, 0.5, 64)
    if isinstance(module, nn.RSign):
        module.threshold.data[:] = rng.normal(0, 0.3, 64)
    if isinstance(module, nn.RPReLU):
        module.shift_in.data[:], module.shift_out.data[:] = rng.normal(0, 0.3, (2, 64))

packed_residual = deploy.compile(residual, images.shape[1:])
print(f"{deploy.verify(residual, packed_residual, images):,} values compared, all equal")
for task in packed_residual.tasks:
    operations = ", ".join(packed_residual.steps[i].operation for i in task.covers)
    print(f"-> {len(task.steps)} result(s): {operations}")

# %% [markdown]
# Look at the second task. It begins with the product of the first block, ends with the bits that
# the second block's convolution reads, and gives two results: these bits, and the floats that the
# second block will add. `to_float`, `affine`, `add` (the residual), `sub`, `prelu`, `add`
# (RPReLU), `sub`, `pack` (RSign) are eight steps. In NumPy, each of them reads and writes the whole
# layer.

# %% [markdown]
# ## A program for one pass
#
# What follows the product is a list of elementwise operations. It could be compiled for each
# network, but that takes seconds. Instead, the list is *data* for a small virtual machine, which
# one compiled kernel implements: it has one accumulator, $v$, a block of 64 or 128 contiguous
# numbers in registers, and each instruction applies one operation to it.
#
# `pointwise.prepare` translates the list. Values are numbered: inputs first, then the result of
# each operation. An operand is the number of a value or a constant. This is the program of the
# second task, in which batch norm with fixed statistics is $\alpha v + \beta'$:

# %%
block, following = residual[2], residual[3]
norm, act = block.norm, block.act
alpha, beta = affine_constants(
    norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var, norm.eps
)
constants = {
    "alpha": alpha,
    "beta": beta,
    "shift_in": act.shift_in.data,
    "slope": act.weight.data,
    "shift_out": act.shift_out.data,
    "threshold": following.sign.threshold.data,
}
arguments = (
    (8, 8, 64),  # height, width, channels
    ["sums", "floats"],  # values 0 and 1: the product's sums, and the block's input x
    [
        ("mul", 0, constants["alpha"]),  # value 2
        ("add", 2, constants["beta"]),
        ("add", 3, 1),  # the residual
        ("sub", 4, constants["shift_in"]),
        ("prelu", 5, constants["slope"]),
        ("add", 6, constants["shift_out"]),  # value 7: the block's output
        ("sub", 7, constants["threshold"]),  # value 8
    ],
    [("floats", 7), ("bits", 8)],
)
program = pointwise.prepare(*arguments)
print(program.code)

# %% [markdown]
# Each row is an instruction, a source and a number in that source. Operations that often follow
# each other with constants of channels are one instruction, which reads consecutive constants. In
# words:

# %%
names = [f"{name} of the channel" for name in constants]  # as the operations use them
sources = {pointwise.SUMS: "the sums", pointwise.FLOATS: "the block's input"}
for instruction, source, number in program.code.tolist():
    if instruction == pointwise.LOAD:
        print("v =", sources[source])
    elif instruction == pointwise.ADD:
        print("v = v +", sources[source])
    elif instruction == pointwise.AFFINE:
        print("v = v * {} + {}".format(*names[number:]))
    elif instruction == pointwise.TWO_LINES:
        print("v = v - {}; where v <= 0, v * {}; then v + {}".format(*names[number:]))
    elif instruction == pointwise.STORE:
        print("write v to the float output", number)
    elif instruction == pointwise.PACK:
        print("write the bits v >=", names[source], "to the bit output", number)

# %% [markdown]
# A subtraction of which only the sign is read has become a comparison: $v - t \ge 0$ if and only if
# $v \ge t$, since floats that differ have a difference that is not 0. The kernel knows this usual
# order of instructions and runs it as one loop, without interpreting them one by one.
#
# Does this give the same numbers as NumPy, operation by operation, and as the float model? Every
# instruction rounds as NumPy's operation does, and the compiler behind Numba is not allowed to
# contract a product and a sum. So we can check with `==`.

# %%
with tb.no_grad():
    x = residual[1](residual[0](tb.Tensor(images)))
    output = block(x)
    next_signs = following.sign(output).data.transpose(0, 2, 3, 1)
    words = pack(block.sign(x).data.transpose(0, 2, 3, 1))

x = np.ascontiguousarray(x.data.transpose(0, 2, 3, 1))  # (N, H, W, C)
weight = pack(block.conv.binary_weight().transpose(0, 2, 3, 1))
product = xnor.prepare_conv2d(weight, 64, (8, 8), padding=(1, 1))
sums = xnor.run(product, words)


def in_numpy(sums, x):
    v = sums.astype(np.float32)
    v = v * constants["alpha"]
    v = v + constants["beta"]
    v = v + x
    v = v - constants["shift_in"]
    v = np.where(v > 0, v, v * constants["slope"])
    v = v + constants["shift_out"]
    return v, pack(v - constants["threshold"])


floats, bits = pointwise.run(program, [sums, x])
expected_floats, expected_bits = in_numpy(sums, x)

assert np.array_equal(floats, expected_floats) and np.array_equal(bits, expected_bits)
assert np.array_equal(floats, output.data.transpose(0, 2, 3, 1))
assert np.array_equal(bits, pack(next_signs))

# %% [markdown]
# The last step is to join product and program. `kernels.floats.fused` computes the sums of a few
# pixels in memory that stays in the cache, runs the program to turn them into floats and bits, and
# goes on to the next few pixels. An array of all sums never exists. This is the task.


# %%
def shortest(function, *arguments, seconds=0.2):
    """Seconds that the fastest run takes; runs are repeated for this long, at least 3 times."""
    function(*arguments)
    times = []
    start = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - start < seconds:
        begin = time.perf_counter()
        function(*arguments)
        times.append(time.perf_counter() - begin)
    return min(times)


layer = fused.prepare([product, None], program)  # what makes each input; None: it is given
outputs = [np.empty_like(floats), np.empty_like(bits)]
task = fused.bind(layer, [words, x], outputs)  # checks and scratch memory once, for these arrays
task()

assert np.array_equal(outputs[0], floats) and np.array_equal(outputs[1], bits)
for name, function, *given in (
    ("product alone", xnor.run, product, words),
    ("what follows, in NumPy", in_numpy, sums, x),
    ("what follows, as a program", pointwise.run, program, [sums, x]),
    ("both, joined", task),
):
    print(f"{name:<28}{shortest(function, *given) * 1e3:8.3f} ms")
print(f"the array of sums would take {sums.nbytes:,} bytes")

# %% [markdown]
# The large gain is from NumPy to the program: one pass instead of ten. Joining saves memory: the
# array of sums is neither stored nor moved. Whether that also saves time depends on the size of the
# array compared with the caches, and on how many cores share the memory bandwidth. On one core with
# a large cache the two calls may take as long as the joined one, or less.

# %% [markdown]
# ## What is in the file
#
# A weight is one bit. Is it one bit in the file, too? We count the bytes of each kind of array. A
# row of bits, that is, a filter's tap or a row of a matrix, is stored as whole bytes; thresholds
# are 16-bit integers here, and flips a byte each.

# %%
counted = sum(
    module.weight.data.size
    for module in model.modules()
    if isinstance(module, nn.BinaryConv2d | nn.BinaryLinear)
)
sizes = {"weights": 0, "thresholds and flips": 0, "floats": 0}
for step in packed.steps:
    for name, array in step.arrays.items():
        if name in step.bits:  # rows of this many bits: words, or floats ±1 in the first layer
            count = step.bits[name]
            rows = array.size // (words_for(count) if array.dtype == np.uint64 else count)
            sizes["weights"] += rows * -(-count // 8)
        elif array.dtype == np.float32:
            sizes["floats"] += array.nbytes
        else:
            sizes["thresholds and flips"] += array.nbytes

on_disk = packed.save("digits.tbnn")
print(f"counted: {counted:,} weights of one bit, {counted / 8:,.0f} bytes")
for name, size in sizes.items():
    print(f"{name:<24}{size:8,} bytes")
print(f"{'description':<24}{on_disk - packed.nbytes:8,} bytes")
print(f"{'file':<24}{on_disk:8,} bytes")
as_floats = sum(array.nbytes for array in model.state_dict().values())
print(f"{'the model as floats':<24}{as_floats:8,} bytes")

assert sum(sizes.values()) == packed.nbytes
assert counted / 8 <= sizes["weights"] < 1.1 * counted / 8
assert np.array_equal(
    deploy.PackedModel.load("digits.tbnn").predict(images), packed.predict(images)
)

# %% [markdown]
# The *description* is the list of steps as text, with their settings, names and a checksum. Its
# length grows with the number of steps, not with the number of weights, so its share is large in a
# small model and negligible in a large one.

# %% [markdown]
# ## Measured
#
# `profile` measures each task. *Products* are products of signs, and *of peak* is the speed as a
# share of what the processor could count if nothing had to be loaded (the flat roof of
# [04c](04c_tables_and_the_roofline.ipynb)).

# %%
profile = packed.profile(images, repetitions=20, threads=1)
for row in profile:
    operations = ", ".join(row["operations"])
    print(f"{operations:<34}{row['seconds'] * 1e6:8.0f} µs {row['share']:6.1%}", end="")
    print(f"{row['products'] / 1e6:8.1f} M, {row['peak_share']:4.0%} of peak" * (row["rate"] > 0))

# %% [markdown]
# And the float model? Its trace can be replayed call by call. A task replaces the calls up to the
# one in which it ends. Where a task ends in the middle of a call, because the packed program
# compares before it pools and the float model after, we take it together with the next task. BLAS
# computes the products of signs on floats. Taking the signs of the weights is left out, since a
# float program would do it only once. For both sides, the shortest of many runs counts.

# %%
x = tb.Tensor(images)
with tb.no_grad(), trace() as calls:
    model(x)


def seconds_of(call):
    inputs = [t.data if isinstance(t, tb.Tensor) else t for t in call.inputs]
    operation, options = type(call.function), call.options
    if operation in (F.SignConv2d, F.SignLinear):
        inputs[1] = options["quantizers"][1].forward(inputs[1])
        operation = F.Conv2d if operation is F.SignConv2d else F.Linear
        options = {k: v for k, v in options.items() if k in ("geometry", "fixed_order")}
    return shortest(lambda: operation.apply(*inputs, **options), seconds=0.05)


depends = {id(x)}
for call in calls:
    if any(id(t) in depends for t in call.inputs):
        depends.add(id(call.output))
float_times = [seconds_of(call) if id(call.output) in depends else 0.0 for call in calls]
runs = [packed.profile(images, repetitions=1, threads=1) for _ in range(20)]
packed_times = [min(row["seconds"] for row in rows) for rows in zip(*runs, strict=True)]

parts = []  # operations, seconds packed, seconds float
operations, seconds, first = [], 0.0, 0
for task, time_of_task in zip(packed.tasks, packed_times, strict=True):
    operations += [packed.steps[i].operation for i in task.covers]
    seconds += time_of_task
    last = packed.steps[task.covers[-1]].call
    if last >= 0:  # -1: no call of the float model ends here
        parts.append((", ".join(operations), seconds, sum(float_times[first : last + 1])))
        operations, seconds, first = [], 0.0, last + 1

names, times_packed, times_float = zip(*parts, strict=True)
print(f"float {sum(times_float) * 1e3:.2f} ms, packed {sum(times_packed) * 1e3:.2f} ms:", end=" ")
print(f"a ratio of {sum(times_float) / sum(times_packed):.1f}")

assert sum(times_packed) < sum(times_float)

# %%
figure, axes = plt.subplots(figsize=(9, 3.8), layout="constrained")
places = np.arange(len(names))
axes.barh(places - 0.2, np.array(times_float) * 1e6, 0.4, color=plots.MINUS, label="float")
axes.barh(places + 0.2, np.array(times_packed) * 1e6, 0.4, color=plots.PLUS, label="packed")
axes.set_yticks(places, names)
axes.invert_yaxis()
axes.set(xscale="log", xlabel=f"µs for {len(images)} images, one core")
axes.legend(frameon=False)
axes.grid(axis="x", color="0.92")
axes.set_axisbelow(True)
plt.show()

# %% [markdown]
# The first three rows are about the same work on both sides, since the first layer's sums are
# floats in both programs. The products of signs gain most.
#
# That changes what is worth working on. The first layer, a small part of the operations, now takes
# a large part of the time, so the next improvement has to be made there. This is Amdahl's law.

# %% [markdown]
# ## In the package
#
# | what | where |
# |---|---|
# | steps, `run`, `predict`, the file | [`deploy/packed.py`](../tinybnn/deploy/packed.py) |
# | which steps become a task | [`deploy/plan.py`](../tinybnn/deploy/plan.py) |
# | products and their thresholds | [`kernels/signs/xnor.py`](../tinybnn/kernels/signs/xnor.py) |
# | the small machine | [`kernels/floats/pointwise.py`](../tinybnn/kernels/floats/pointwise.py) |
# | product and program joined | [`kernels/floats/fused.py`](../tinybnn/kernels/floats/fused.py) |
#
# Running task by task and step by step gives the same scores, for both models.

# %%
for program in (packed, packed_residual):
    *_, (_, step_by_step) = program.run(images)
    assert np.array_equal(program.predict(images), step_by_step)

# %% [markdown]
# ## Summary
#
# Steps are joined into tasks, and each task is one call of a kernel: a sum becomes a bit in the
# loop that counted it, and is never written. Where real numbers occur between two products, as in
# residual blocks, a list of operations runs on numbers in registers and rounds as NumPy does. The
# file holds one bit per weight. The products of signs gain most, so parts that were small before,
# like the first layer, then take most of the time.
#
# ## Exercises
#
# The exercises of this chapter are in [06](06_compiling.ipynb). Think about:
#
# 1. The array of sums of the second convolution takes 1.5 MB. For which sizes would joining save
#    time as well as memory? Find the size of your processor's caches first.
# 2. The first layer now takes a large part of the time. Its pixels have 17 values. How could it be
#    computed with words, and how many products of signs would that take?
#
# ## Sources
#
# - Z. Liu et al.: *Bi-Real Net* (2018), arXiv:1808.00278: real-valued residuals.
# - Z. Liu et al.: *ReActNet* (2020), arXiv:2003.03488: RSign and RPReLU.
# - G. M. Amdahl: *Validity of the single processor approach to achieving large scale computing
#   capabilities*, AFIPS (1967).
