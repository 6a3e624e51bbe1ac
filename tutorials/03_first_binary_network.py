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
# # Your first binary network
#
# **You will learn** why the sign function does not learn by itself and what is done about it, how
# a network of ±1 weights is trained, and why the same network can run on bits, with XNOR and
# popcount, and give exactly the same answer.
#
# **You need** Python and NumPy, and an idea of what gradient descent is. Reading takes about ten
# minutes, running a minute on two CPU cores.
#
# Each step ends with a check: an `assert` that would fail if the text were wrong.

# %%
import matplotlib.pyplot as plt
import numpy as np

import tinybnn as tb
from tinybnn import datasets, deploy, nn, optim, plots, training
from tinybnn import functional as F

# %% [markdown]
# ## 1. A tensor and its gradient
#
# A `Tensor` is a NumPy array that remembers how it was computed. `backward` walks that history in
# reverse and leaves the derivative of the result in the `.grad` of each tensor that asked for it.

# %%
x = tb.Tensor([-2.0, -0.3, 0.4, 1.5], requires_grad=True)
y = (x * x).sum()
y.backward()
print("x      ", x.data)
print("dy/dx  ", x.grad.data)

assert np.array_equal(x.grad.data, 2 * x.data)

# %% [markdown]
# ## 2. The gradient of sign
#
# A binary network computes with signs:
#
# $$\operatorname{sign}(x) = \begin{cases} +1 & x \ge 0 \\ -1 & x < 0 \end{cases}$$
#
# The derivative of this step is 0 wherever it exists. A weight behind a sign would never receive a
# gradient and never learn. A small change of $x$ does not change $\operatorname{sign}(x)$ at all:

# %%
h = 1e-3
slope = (np.where(x.data + h >= 0, 1, -1) - np.where(x.data - h >= 0, 1, -1)) / (2 * h)
print("slope of sign:", slope)

assert not slope.any()

# %% [markdown]
# The way out is a small, deliberate lie. The forward pass computes the sign; the backward pass
# pretends that it was a clipped line and lets the gradient *straight through* where $|x| \le 1$.
# That is the straight-through estimator, and `ste_sign` is its plainest form.

# %%
x.grad = None
s = tb.quantizers.ste_sign(x)
s.sum().backward()
print("sign(x)         ", s.data)
print("pseudo-gradient ", x.grad.data)

assert np.array_equal(s.data, [-1, -1, 1, 1])
assert np.array_equal(x.grad.data, [0, 1, 1, 0])

# %% [markdown]
# The pseudo-gradient is not arbitrary: it is the true derivative of another function, the
# *surrogate*, which here is the clipped line. `approx_sign`, which the network below uses, follows
# a parabola instead: the nearer to zero, the larger the slope.

# %%
figure, sides = plt.subplots(1, 2, figsize=(9, 2.8))
grid = np.linspace(-2, 2, 401, dtype=np.float32)
for axes, q in zip(sides, (tb.quantizers.ste_sign, tb.quantizers.approx_sign), strict=True):
    axes.plot(grid, q.forward(grid), color="0.6", label="forward: sign")
    axes.plot(grid, q.surrogate(grid), color=plots.MINUS, label="surrogate")
    axes.plot(grid, q.pseudo_gradient(grid), color=plots.PLUS, label="pseudo-gradient")
    axes.set_title(type(q).__name__)
axes.legend(loc="upper left", fontsize=8)
plt.show()

# %% [markdown]
# ## 3. A binary layer by hand
#
# The *latent* weight is an ordinary float. The layer computes with its sign only. The latent
# weight is where small gradient steps add up until, now and then, a sign flips.

# %%
rng = np.random.default_rng(0)
latent = tb.Tensor(rng.uniform(-1, 1, (3, 8)).astype(np.float32), requires_grad=True)
x = tb.Tensor(rng.normal(size=(5, 8)).astype(np.float32))

sign = tb.quantizers.ste_sign
y = sign(x) @ sign(latent).T
print(y.data)

# %% [markdown]
# Every output is a sum of eight products of ±1, an integer between -8 and 8, and even: flipping
# one sign changes the sum by 2. Floats hold such integers exactly, so `==` is the right
# comparison. `nn.BinaryLinear` is this line with a module around it.

# %%
layer = nn.BinaryLinear(8, 3)
layer.weight.data[:] = latent.data

assert np.array_equal(layer(x).data, y.data)
assert np.array_equal(y.data, np.round(y.data))
assert np.all(y.data % 2 == 0)
assert np.all(np.abs(layer.binary_weight()) == 1)

# %% [markdown]
# ## 4. Train a binary network
#
# The data are 1,797 handwritten digits of 8×8 pixels that come with the package. The test images
# are by other writers than most of the training images. We keep some training images aside to make
# choices on, and look at the test set once, at the end.

# %%
train, test = datasets.load("digits")
train, validation = train.split(0.1, rng=0)
print(train)

figure, sides = plt.subplots(1, 10, figsize=(9, 1.2))
for axes, image, label in zip(sides, train.images, train.labels, strict=False):
    axes.imshow(image[0], cmap="gray_r")
    axes.set(title=str(label), xticks=[], yticks=[])
plt.show()

# %% [markdown]
# The network: a binary convolution on the real pixels (its weights are signs, its input is not),
# then layers whose inputs and weights are all signs. Batch norm stands before each sign. Without
# it the sums would drift to one side, and every output would have the same sign.

# %%
rng = np.random.default_rng(0)
binary = {"input_quantizer": "approx_sign", "rng": rng}
model = nn.Sequential(
    nn.BinaryConv2d(1, 32, 3, padding=1, input_quantizer=None, rng=rng),
    nn.BatchNorm2d(32),
    nn.BinaryConv2d(32, 64, 3, padding=1, **binary),
    nn.MaxPool2d(2),
    nn.BatchNorm2d(64),
    nn.Flatten(),
    nn.BinaryLinear(64 * 4 * 4, 64, **binary),
    nn.BatchNorm1d(64),
    nn.BinaryLinear(64, 10, **binary),
    nn.BatchNorm1d(10),
)
print(model)

# %% [markdown]
# Training is ordinary. Adam updates the latent weights; after each step they are clipped to $[-1,
# 1]$, because beyond that the straight-through estimator would give them no gradient any more. The
# *flip ratio* in the table is the share of weights whose sign changed during the epoch: it falls
# as the network settles.

# %%
optimizer = optim.Adam(model.parameters(), lr=1e-2)
history = training.fit(
    model,
    datasets.DataLoader(train, batch_size=64, shuffle=True, rng=rng),
    epochs=15,
    optimizer=optimizer,
    schedule=optim.CosineAnnealingLR(optimizer, 15),
    validation=datasets.DataLoader(validation, batch_size=256),
    progress=False,
)
for row in history.rows[::2]:
    print(
        f"epoch {row['epoch']:2}: loss {row['loss']:.3f}, validation accuracy "
        f"{row['val_accuracy']:.1%}, flipped {row['flip_ratio']:.2%}"
    )

assert history["val_accuracy"][-1] > 0.9

# %% [markdown]
# ## 5. The same numbers from bits
#
# Now the point of it all. Write +1 as bit 1 and -1 as bit 0. Two signs multiply to +1 where their
# bits agree and to -1 where they differ, so a dot product of $K$ signs is
#
# $$a \cdot b = (\text{agreements}) - (\text{differences}) = K - 2\,\operatorname{popcount}(a
# \oplus b).$$
#
# With Python's integers, for the first row of the layer above:


# %%
def as_integer(signs):
    """Bit i is 1 where element i is +1."""
    return sum(1 << i for i, s in enumerate(signs) if s > 0)


a = as_integer(sign(x).data[0])
b = as_integer(layer.binary_weight()[0])
print(f"{a:08b} xor {b:08b} = {a ^ b:08b}")
print("8 - 2 *", (a ^ b).bit_count(), "=", 8 - 2 * (a ^ b).bit_count())

assert 8 - 2 * (a ^ b).bit_count() == y.data[0, 0]

# %% [markdown]
# The kernels of the package do this with 64 signs in each machine word.

# %%
from tinybnn.kernels.bits import pack  # noqa: E402
from tinybnn.kernels.xnor import xnor_matmul  # noqa: E402

sums = xnor_matmul(pack(x.data), pack(layer.binary_weight()), 8)

assert np.array_equal(sums, y.data)

# %% [markdown]
# ## 6. Compile the network
#
# `deploy.compile` traces one forward pass and rewrites it. Weights become bits. Batch norm
# followed by sign becomes *one integer comparison* for each channel: whatever mean, variance, γ
# and β are, the sign of the result depends on an integer only, and changes at one threshold.

# %%
packed = deploy.compile(model, test.images.shape[1:])
print(packed)

# %% [markdown]
# Between the first `pack` and the last `to_float` there is no float any more. Is the result the
# same? `deploy.verify` compares every value inside both networks over the whole test set, with
# `==`.

# %%
images, labels = next(iter(datasets.DataLoader(test, batch_size=len(test))))
compared = deploy.verify(model, packed, images)
print(f"{compared:,} values compared, all equal")

with tb.no_grad():
    float_logits = model(tb.Tensor(images)).data
packed_logits = packed.predict(images)
print(f"test accuracy {training.accuracy(packed_logits, labels):.1%}")

assert np.array_equal(packed_logits, float_logits)

# %% [markdown]
# And it is small. The weights of the binary layers take one bit each; what remains are a few
# floats for the batch norms at the ends.

# %%
float_bytes = sum(a.nbytes for a in model.state_dict().values())
print(f"float {float_bytes:,} bytes, packed {packed.nbytes:,} bytes")
print(f"ratio {float_bytes / packed.nbytes:.0f}")

assert packed.nbytes * 20 < float_bytes

# %% [markdown]
# A packed model is a file of plain arrays; loading it runs no code from it.

# %%
size = packed.save("digits.tbnn")
loaded = deploy.PackedModel.load("digits.tbnn")
print(f"{size:,} bytes on disk")

assert np.array_equal(loaded.predict(images), packed_logits)

# %% [markdown]
# ## Exercises
#
# 1. Replace `approx_sign` by `ste_sign` in the model. Compare the validation accuracy over three
#    seeds, not one: how large is the difference against the spread?
# 2. Take the batch norms out, all but the last. What happens to the training loss, and why? Print
#    the share of +1 in the inputs of the last layer.
# 3. Compute the threshold of one channel by hand. For `norm = model[7]`, channel `c`, evaluate
#    `F.batch_norm` at every integer from -1024 to 1024 and find where the sign changes; compare
#    with the `thresholds` of the step that belongs to it in `packed.steps`. The first lines are
#    given.

# %%
norm = model[7].eval()
integers = np.arange(-1024, 1025, dtype=np.float32)[:, None] * np.ones(64, np.float32)
values = F.batch_norm(
    integers, norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data
)
print(values.shape, "values: one row for each integer, one column for each channel")

# %% [markdown]
# ## Sources
#
# - M. Courbariaux, I. Hubara, D. Soudry, R. El-Yaniv, Y. Bengio: *Binarized Neural Networks*
#   (2016): binary weights and activations, the clipped straight-through estimator.
# - Y. Bengio, N. Léonard, A. Courville: *Estimating or Propagating Gradients Through Stochastic
#   Neurons* (2013): the straight-through estimator.
# - Z. Liu et al.: *Bi-Real Net* (2018): the `approx_sign` pseudo-gradient.
# - M. Rastegari et al.: *XNOR-Net* (2016): convolutions by XNOR and popcount.
# - E. Alpaydin, C. Kaynak: *Optical Recognition of Handwritten Digits*, UCI Machine Learning
#   Repository (1998), CC BY 4.0: the images.
