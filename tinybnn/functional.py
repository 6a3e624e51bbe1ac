"""Layers as functions: activations, convolution, pooling, normalisation, losses.

Each operation is a `Function`: forward on arrays, and beside it the rule of its gradient. All
rules are differentiable in turn; where a rule is a linear map of its own (the adjoint of a
convolution or of a pooling), that map is a `Function` as well, and the rules refer to each other.

Images are (N, C, H, W) in shape and channels-last in memory: a view without a copy turns them
into contiguous (N, H, W, C) arrays, on which the work is done.
"""

from __future__ import annotations

import numpy as np

from tinybnn.tensor import (
    Function,
    abs,
    amax,
    as_array,
    broadcast_to,
    cat,
    clamp,
    default_generator,
    exp,
    flatten,
    flip,
    log,
    matmul,
    mean,
    pad,
    permute,
    reshape,
    sqrt,
    stack,
    sum,
    transpose,
    var,
    where,
)

__all__ = [
    "abs", "amax", "avg_pool2d", "batch_norm", "broadcast_to", "cat", "clamp", "conv2d",
    "cross_entropy", "dropout", "exp", "flatten", "flip", "hardtanh", "linear", "log",
    "log_softmax", "matmul", "max_pool2d", "mean", "pad", "permute", "relu", "reshape", "sigmoid",
    "softmax", "sqrt", "squared_hinge", "stack", "sum", "tanh", "transpose", "var", "where",
]  # fmt: skip

# ------------------------------------------------------------------------------------ activations


class Relu(Function):
    saves = ("output",)

    def forward(self, x):
        return np.maximum(x, 0)

    def backward(self, grad, output, x):
        return grad * (as_array(output) > 0)


class Hardtanh(Function):
    """Limit to [low, high]; the slope is 1 strictly inside, 0 elsewhere."""

    def forward(self, x, low, high):
        self.low, self.high = low, high
        return np.clip(x, low, high)

    def backward(self, grad, output, x):
        values = as_array(x)
        return grad * ((values > self.low) & (values < self.high))


class Sigmoid(Function):
    saves = ("output",)

    def forward(self, x):
        z = np.exp(-np.abs(x))  # at most 1: no overflow on either side
        return np.where(x >= 0, 1 / (1 + z), z / (1 + z))

    def backward(self, grad, output, x):
        return grad * output * (1.0 - output)


class Tanh(Function):
    saves = ("output",)

    def forward(self, x):
        return np.tanh(x)

    def backward(self, grad, output, x):
        return grad * (1.0 - output * output)


class LogSoftmax(Function):
    saves = ("output",)

    def forward(self, x, dim):
        self.dim = dim
        shifted = x - x.max(axis=dim, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=dim, keepdims=True))

    def backward(self, grad, output, x):
        return grad - exp(output) * sum(grad, self.dim, keepdim=True)


def relu(x):
    """max(x, 0); slope 0 at 0."""
    return Relu.apply(x)


def hardtanh(x, min_val=-1.0, max_val=1.0):
    """Limit to [min_val, max_val]; the slope is 1 strictly inside and 0 elsewhere."""
    if not min_val < max_val:
        raise ValueError(f"hardtanh: min_val {min_val} must be below max_val {max_val}")
    return Hardtanh.apply(x, low=min_val, high=max_val)


def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return Sigmoid.apply(x)


def tanh(x):
    """Hyperbolic tangent."""
    return Tanh.apply(x)


def log_softmax(x, dim=-1):
    """log(softmax(x)) along the axis `dim`, without overflow."""
    _check_dim("log_softmax", x, dim)
    return LogSoftmax.apply(x, dim=dim)


def softmax(x, dim=-1):
    """exp(x) / sum(exp(x)) along the axis `dim`, without overflow."""
    _check_dim("softmax", x, dim)
    return exp(LogSoftmax.apply(x, dim=dim))


def _check_dim(name, x, dim):
    if not -np.ndim(x) <= dim < np.ndim(x):
        raise ValueError(f"{name}: dim {dim} is out of range for shape {np.shape(x)}")


def dropout(x, p=0.5, training=True, rng=None):
    """Set each element to 0 with probability `p` and divide the others by 1 - p, in training.

    Parameters
    ----------
    rng : numpy.random.Generator, optional
        Source of randomness; the one that `tinybnn.manual_seed` restarts by default.
    """
    if not 0 <= p < 1:
        raise ValueError(f"dropout: p must be in [0, 1), got {p}")
    if not training or p == 0:
        return x
    rng = default_generator() if rng is None else rng
    values = as_array(x)
    kept = rng.random(values.shape, dtype=np.float32) >= p
    return x * (kept * (1.0 / (1.0 - p))).astype(values.dtype)


# ----------------------------------------------------------------------------------- linear layers


class Linear(Function):
    """x @ weight.T for rows x : (M, K), weight : (N, K)."""

    def forward(self, x, weight, fixed_order):
        if fixed_order:
            return _ordered_product(x, weight.T)
        return x @ weight.T

    def backward(self, grad, output, x, weight):
        return (
            grad @ weight if self.needs[0] else None,
            transpose(grad, 0, 1) @ x if self.needs[1] else None,
        )


def linear(x, weight, bias=None, *, fixed_order=False):
    """y = x @ weight.T + bias.

    Parameters
    ----------
    x : (..., in_features)
    weight : (out_features, in_features)
    bias : (out_features,), optional
    fixed_order : bool
        Evaluate the sums in one fixed order (`kernels.signed.ordered_matmul`) rather than by BLAS,
        whose order depends on the batch. Layers in eval mode do, so that a packed model can give
        the same floats.
    """
    shape, expected = np.shape(x), np.shape(weight)
    if len(expected) != 2 or not shape or shape[-1] != expected[1]:
        raise ValueError(
            f"linear: weight of shape {expected} expects {expected[-1]} features, "
            f"x has {shape[-1] if shape else 'no axis'} (shape {shape})"
        )
    _check_bias("linear", bias, expected[0])
    rows = x if len(shape) == 2 else reshape(x, (-1, shape[-1]))
    output = Linear.apply(rows, weight, fixed_order=fixed_order)
    if len(shape) != 2:
        output = reshape(output, (*shape[:-1], expected[0]))
    return output if bias is None else output + bias


def _check_bias(name, bias, outputs):
    if bias is not None and np.shape(bias) != (outputs,):
        raise ValueError(f"{name}: bias must have the shape ({outputs},), got {np.shape(bias)}")


def _ordered_product(a, b):
    """The product whose sums run in one fixed order; compiled at its first use."""
    from tinybnn.kernels.signed import ordered_matmul

    dtype = np.result_type(a, b)
    return ordered_matmul(a.astype(dtype, copy=False), b.astype(dtype, copy=False))


# ------------------------------------------------------------------------------------- convolution
#
# A convolution is linear in the image and linear in the weight. Its two adjoints, together with
# itself, are closed under differentiation:
#
#                      gradient in the first input        gradient in the second input
#   Conv2d(x, w)       ConvInput(grad, w)                 ConvWeight(x, grad)
#   ConvInput(g, w)    Conv2d(grad, w)                    ConvWeight(grad, g)
#   ConvWeight(x, g)   ConvInput(g, grad)                 Conv2d(x, grad)


class _Geometry:
    """What the three maps of a convolution share: sizes, and images as matrices of patches."""

    BLOCK = 1 << 21  # elements of a patch matrix that is worked on at a time (fits the cache)

    def __init__(self, image, weight, stride, padding, dilation, groups):
        self.image, self.weight = image, weight  # shapes (N, C, H, W), (O, C / groups, kh, kw)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.output = tuple(
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(image[2:], weight[2:], stride, padding, dilation, strict=True)
        )

    def blocks(self):
        """Slices of the batch, small enough that the patches of one stay in the cache."""
        patch = int(np.prod(self.weight[2:])) * self.image[1] * int(np.prod(self.output))
        step = max(1, self.BLOCK // max(patch, 1))
        return [slice(i, i + step) for i in range(0, self.image[0], step)]

    def padded(self, x):
        """(n, C, H, W) -> (n, H + 2 ph, W + 2 pw, C), contiguous, zeros around."""
        ph, pw = self.padding
        x = x.transpose(0, 2, 3, 1)
        if ph == pw == 0:
            return np.ascontiguousarray(x)
        n, h, w, c = x.shape
        result = np.zeros((n, h + 2 * ph, w + 2 * pw, c), x.dtype)
        result[:, ph : ph + h, pw : pw + w] = x
        return result

    def tap(self, padded, i, j):
        """The pixels under tap (i, j) of the kernel, for each output: (n, OH, OW, C), a view."""
        (oh, ow), (sh, sw), (dh, dw) = self.output, self.stride, self.dilation
        top, left = i * dh, j * dw
        return padded[:, top : top + (oh - 1) * sh + 1 : sh, left : left + (ow - 1) * sw + 1 : sw]

    def patches(self, x):
        """(n, C, H, W) -> (G, n * OH * OW, kh * kw * C / G): one row an output pixel (im2col)."""
        padded = self.padded(x)
        (kh, kw), groups = self.weight[2:], self.groups
        if kh == kw == groups == 1:
            return self.tap(padded, 0, 0).reshape(1, -1, self.image[1])
        n, (oh, ow) = len(x), self.output
        (step_n, step_h, step_w, step_c), (sh, sw) = padded.strides, self.stride
        (dh, dw), per_group = self.dilation, self.weight[1]
        view = np.lib.stride_tricks.as_strided(
            padded,
            (groups, n, oh, ow, kh, kw, per_group),
            (
                per_group * step_c,
                step_n,
                sh * step_h,
                sw * step_w,
                dh * step_h,
                dw * step_w,
                step_c,
            ),
            writeable=False,
        )
        return view.reshape(groups, n * oh * ow, kh * kw * per_group)

    def rows_of_weight(self, weight):
        """(O, C / G, kh, kw) -> (G, O / G, kh * kw * C / G), in the order of a patch."""
        groups = self.groups
        return weight.transpose(0, 2, 3, 1).reshape(groups, len(weight) // groups, -1)

    def rows_of_output(self, y):
        """(n, O, OH, OW) -> (G, n * OH * OW, O / G)."""
        rows = y.transpose(0, 2, 3, 1).reshape(-1, self.groups, y.shape[1] // self.groups)
        return rows.transpose(1, 0, 2)

    def image_of_rows(self, rows):
        """(G, n * OH * OW, O / G) -> (n, O, OH, OW), channels last in memory."""
        return (
            rows.transpose(1, 0, 2).reshape(-1, *self.output, self.weight[0]).transpose(0, 3, 1, 2)
        )


def _empty_image(shape, dtype):
    """An (N, C, H, W) array that is channels-last in memory."""
    n, c, h, w = shape
    return np.empty((n, h, w, c), dtype).transpose(0, 3, 1, 2)


class Conv2d(Function):
    """out[n, o] = sum over c, i, j of x[n, c, y s + i d, x s + j d] weight[o, c, i, j]."""

    def forward(self, x, weight, stride, padding, dilation, groups, fixed_order=False):
        self.geometry = geometry = _Geometry(
            x.shape, weight.shape, stride, padding, dilation, groups
        )
        dtype = np.result_type(x, weight)
        result = _empty_image((len(x), len(weight), *geometry.output), dtype)
        columns = geometry.rows_of_weight(weight).transpose(0, 2, 1)  # (G, kh * kw * C / G, O / G)
        for block in geometry.blocks():
            patches = geometry.patches(x[block])
            if fixed_order:
                rows = np.stack([_ordered_product(*pair) for pair in zip(patches, columns)])  # noqa: B905
            else:
                rows = patches @ columns  # (G, n * OH * OW, O / G)
            result[block] = geometry.image_of_rows(rows)
        return result

    def backward(self, grad, output, x, weight):
        return (
            ConvInput.apply(grad, weight, geometry=self.geometry) if self.needs[0] else None,
            ConvWeight.apply(x, grad, geometry=self.geometry) if self.needs[1] else None,
        )


class ConvInput(Function):
    """The adjoint of Conv2d in the image: each output pixel is spread over its patch."""

    def forward(self, grad, weight, geometry):
        self.geometry = geometry
        kh, kw = geometry.weight[2:]
        (ph, pw), (h, w) = geometry.padding, geometry.image[2:]
        result = _empty_image(geometry.image, np.result_type(grad, weight))
        rows_of_weight = geometry.rows_of_weight(weight)
        for block in geometry.blocks():
            patches = geometry.rows_of_output(grad[block]) @ rows_of_weight
            n = len(grad[block])
            patches = patches.reshape(geometry.groups, n, *geometry.output, kh, kw, -1)
            # (n, OH, OW, kh, kw, G, C / G)
            patches = patches.transpose(1, 2, 3, 4, 5, 0, 6)
            padded = np.zeros((n, h + 2 * ph, w + 2 * pw, geometry.image[1]), result.dtype)
            for i in range(kh):
                for j in range(kw):
                    tap = geometry.tap(padded, i, j)
                    tap += patches[:, :, :, i, j].reshape(tap.shape)
            inside = padded[:, ph : ph + h, pw : pw + w]
            result[block] = inside.transpose(0, 3, 1, 2)
        return result

    def backward(self, grad, output, g, weight):
        options = _conv_options(self.geometry)
        return (
            Conv2d.apply(grad, weight, **options) if self.needs[0] else None,
            ConvWeight.apply(grad, g, geometry=self.geometry) if self.needs[1] else None,
        )


class ConvWeight(Function):
    """The adjoint of Conv2d in the weight: every patch, weighted by the gradient of its output."""

    def forward(self, x, grad, geometry):
        self.geometry = geometry
        outputs, per_group, kh, kw = geometry.weight
        groups = geometry.groups
        total = np.zeros((groups, outputs // groups, kh * kw * per_group), np.result_type(x, grad))
        for block in geometry.blocks():
            total += geometry.rows_of_output(grad[block]).transpose(0, 2, 1) @ geometry.patches(
                x[block]
            )
        return total.reshape(outputs, kh, kw, per_group).transpose(0, 3, 1, 2)

    def backward(self, grad, output, x, g):
        options = _conv_options(self.geometry)
        return (
            ConvInput.apply(g, grad, geometry=self.geometry) if self.needs[0] else None,
            Conv2d.apply(x, grad, **options) if self.needs[1] else None,
        )


def _conv_options(geometry):
    return {name: getattr(geometry, name) for name in ("stride", "padding", "dilation", "groups")}


def pair(name, argument, value, minimum):
    """An int or a pair of ints as a pair; an error that names the argument otherwise."""
    pair = (value, value) if isinstance(value, int | np.integer) else tuple(value)
    if len(pair) != 2 or any(not isinstance(v, int | np.integer) or v < minimum for v in pair):
        raise ValueError(
            f"{name}: {argument} must be an int or a pair of ints >= {minimum}, got {value!r}"
        )
    return tuple(int(v) for v in pair)


def conv2d(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, *, fixed_order=False):
    """2-D convolution (cross-correlation, as in every deep learning library).

    Parameters
    ----------
    x : (N, C, H, W)
    weight : (O, C / groups, kh, kw)
    bias : (O,), optional
    stride, padding, dilation : int or pair of ints
        `padding` zeros are added on both sides of each axis.
    groups : int
        Input and output channels are cut into this many groups that do not see each other;
        groups = C is the depth-wise convolution.
    fixed_order : bool
        Evaluate the sums in one fixed order; see `linear`.

    Returns
    -------
    (N, O, OH, OW), where OH = (H + 2 padding - dilation (kh - 1) - 1) // stride + 1
    """
    shape, expected = np.shape(x), np.shape(weight)
    if len(shape) != 4:
        raise ValueError(f"conv2d: x must have the shape (N, C, H, W), got {shape}")
    if len(expected) != 4:
        raise ValueError(f"conv2d: weight must have the shape (O, C, kh, kw), got {expected}")
    if not isinstance(groups, int) or groups < 1 or expected[0] % groups:
        raise ValueError(
            f"conv2d: groups must divide the {expected[0]} output channels, got {groups!r}"
        )
    if expected[1] * groups != shape[1]:
        raise ValueError(
            f"conv2d: weight expects {expected[1] * groups} input channels, "
            f"x has {shape[1]} (shape {shape})"
        )
    _check_bias("conv2d", bias, expected[0])
    stride = pair("conv2d", "stride", stride, 1)
    padding = pair("conv2d", "padding", padding, 0)
    dilation = pair("conv2d", "dilation", dilation, 1)
    for n, k, p, d in zip(shape[2:], expected[2:], padding, dilation, strict=True):
        if d * (k - 1) + 1 > n + 2 * p:
            raise ValueError(
                f"conv2d: a kernel of {expected[2:]} with dilation {dilation} does not fit into "
                f"images of {shape[2:]} with padding {padding}"
            )
    output = Conv2d.apply(
        x, weight, stride=stride, padding=padding, dilation=dilation, groups=groups,
        fixed_order=fixed_order,
    )  # fmt: skip
    return output if bias is None else output + reshape(bias, (1, -1, 1, 1))


# ----------------------------------------------------------------------------------------- pooling


class _Windows:
    """Pooling windows over (N, C, H, W): the pixels under one tap are a strided view."""

    def __init__(self, shape, kernel, stride, padding):
        self.shape, self.kernel, self.stride, self.padding = shape, kernel, stride, padding
        self.output = tuple(
            (n + 2 * p - k) // s + 1
            for n, k, s, p in zip(shape[2:], kernel, stride, padding, strict=True)
        )

    def padded(self, dtype, value):
        (n, c, h, w), (ph, pw) = self.shape, self.padding
        result = _empty_image((n, c, h + 2 * ph, w + 2 * pw), dtype)
        result[...] = value
        return result

    def inside(self, padded):
        (h, w), (ph, pw) = self.shape[2:], self.padding
        return padded[:, :, ph : ph + h, pw : pw + w]

    def pad(self, x, value):
        if self.padding == (0, 0):
            return x
        padded = self.padded(x.dtype, value)
        self.inside(padded)[...] = x
        return padded

    def taps(self, padded):
        """For each position in the window the pixels there: kh * kw views (N, C, OH, OW)."""
        (oh, ow), (sh, sw), (kh, kw) = self.output, self.stride, self.kernel
        return [
            padded[:, :, i : i + (oh - 1) * sh + 1 : sh, j : j + (ow - 1) * sw + 1 : sw]
            for i in range(kh)
            for j in range(kw)
        ]


class MaxPool2d(Function):
    """Maximum of each window; NaN wins. The first of equal maxima gets the gradient."""

    saves = ("inputs", "output")

    def forward(self, x, windows):
        self.windows = windows
        taps = windows.taps(windows.pad(x, -np.inf))
        result = taps[0].copy(order="K")
        for tap in taps[1:]:
            np.maximum(result, tap, out=result)
        return result

    def backward(self, grad, output, x):
        taps = self.windows.taps(self.windows.pad(as_array(x), -np.inf))
        dtype = np.min_scalar_type(len(taps))  # one byte for windows of up to 255 pixels
        winner = np.full_like(as_array(output), len(taps), dtype=dtype)
        for i in reversed(range(len(taps))):
            winner[taps[i] == as_array(output)] = i
        return MaxUnpool2d.apply(grad, windows=self.windows, winner=winner)


class MaxUnpool2d(Function):
    """Each value goes back to the pixel that won its window."""

    saves = ()

    def forward(self, x, windows, winner):
        self.windows, self.winner = windows, winner
        padded = windows.padded(x.dtype, 0)
        for i, tap in enumerate(windows.taps(padded)):
            tap += x * (winner == i)
        return windows.inside(padded)

    def backward(self, grad, output, x):
        return PickWinners.apply(grad, windows=self.windows, winner=self.winner)


class PickWinners(Function):
    """From each window the pixel that won it when `winner` was recorded."""

    saves = ()

    def forward(self, x, windows, winner):
        self.windows, self.winner = windows, winner
        result = np.zeros_like(winner, dtype=x.dtype)
        for i, tap in enumerate(windows.taps(windows.pad(x, 0))):
            result += tap * (winner == i)
        return result

    def backward(self, grad, output, x):
        return MaxUnpool2d.apply(grad, windows=self.windows, winner=self.winner)


class AvgPool2d(Function):
    """Mean of each window; taps are added in row-major order, zeros of the padding count."""

    saves = ()

    def forward(self, x, windows):
        self.windows = windows
        taps = windows.taps(windows.pad(x, 0))
        result = taps[0].copy(order="K")
        for tap in taps[1:]:
            result += tap
        result *= 1.0 / len(taps)
        return result

    def backward(self, grad, output, x):
        return AvgUnpool2d.apply(grad, windows=self.windows)


class AvgUnpool2d(Function):
    """The adjoint of AvgPool2d: each value is spread evenly over its window."""

    saves = ()

    def forward(self, x, windows):
        self.windows = windows
        padded = windows.padded(x.dtype, 0)
        taps = windows.taps(padded)
        share = x * (1.0 / len(taps))
        for tap in taps:
            tap += share
        return windows.inside(padded)

    def backward(self, grad, output, x):
        return AvgPool2d.apply(grad, windows=self.windows)


def _windows(name, x, kernel_size, stride, padding):
    shape = np.shape(x)
    if len(shape) != 4:
        raise ValueError(f"{name}: x must have the shape (N, C, H, W), got {shape}")
    kernel = pair(name, "kernel_size", kernel_size, 1)
    stride = kernel if stride is None else pair(name, "stride", stride, 1)
    padding = pair(name, "padding", padding, 0)
    if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        raise ValueError(
            f"{name}: padding {padding} must be at most half of kernel_size {kernel}, "
            "so that every window holds a pixel"
        )
    if any(k > n + 2 * p for k, n, p in zip(kernel, shape[2:], padding, strict=True)):
        raise ValueError(f"{name}: windows of {kernel} do not fit into images of {shape[2:]}")
    return _Windows(shape, kernel, stride, padding)


def max_pool2d(x, kernel_size, stride=None, padding=0):
    """Maximum over windows of each channel.

    Parameters
    ----------
    x : (N, C, H, W)
    kernel_size, stride, padding : int or pair of ints
        `stride` is the kernel size by default; padded pixels never win.
    """
    return MaxPool2d.apply(x, windows=_windows("max_pool2d", x, kernel_size, stride, padding))


def avg_pool2d(x, kernel_size, stride=None, padding=0):
    """Mean over windows of each channel; padded zeros count (PyTorch's default).

    Parameters
    ----------
    x : (N, C, H, W)
    kernel_size, stride, padding : int or pair of ints
        `stride` is the kernel size by default.
    """
    return AvgPool2d.apply(x, windows=_windows("avg_pool2d", x, kernel_size, stride, padding))


# ----------------------------------------------------------------------------- batch normalisation


class BatchNorm(Function):
    """(x - mean) / sqrt(var + eps) * weight + bias for each channel (axis 1).

    With statistics of the batch (`mean` is None) they depend on x, and the gradient loses the
    part that a shift or a change of scale of the batch would have: Ioffe and Szegedy 2015,
    section 3.
    """

    def forward(self, x, weight, bias, mean, var, eps):
        self.eps = eps
        self.from_batch = mean is None
        if self.from_batch:
            mean, var, scale = self.statistics(x)
            self.mean, self.var, self.scale = mean, var, scale
        else:
            mean = _per_channel(mean, x)
            scale = 1.0 / np.sqrt(_per_channel(var, x) + eps)
            self.mean, self.scale = mean.astype(x.dtype), scale.astype(x.dtype)
        result = x - self.mean
        result *= self.scale
        result *= _per_channel(weight, x)
        result += _per_channel(bias, x)
        return result

    def statistics(self, x):
        """Mean, biased variance and 1 / sqrt(variance + eps) of each channel, (1, C, 1, ...)."""
        mean_ = mean(x, _all_but_channel(x), keepdim=True)
        var_ = var(x, _all_but_channel(x), correction=0, keepdim=True)
        return mean_, var_, 1.0 / sqrt(var_ + self.eps)

    def backward(self, grad, output, x, weight, bias):
        dims = _all_but_channel(x)
        is_recorded = not isinstance(x, np.ndarray)
        if self.from_batch and is_recorded:  # the statistics as functions of x
            mean_, _, scale = self.statistics(x)
        else:
            mean_, scale = self.mean, self.scale
        normalised = (x - mean_) * scale
        grad_weight = sum(grad * normalised, dims)
        grad_bias = sum(grad, dims)
        grad_x = None
        if self.needs[0]:
            grad_x = grad
            if self.from_batch:
                count = np.size(as_array(x)) // np.shape(x)[1]
                grad_x = grad_x - _per_channel(grad_bias * (1.0 / count), x)
                grad_x = grad_x - normalised * _per_channel(grad_weight * (1.0 / count), x)
            grad_x = grad_x * (_per_channel(weight, x) * scale)
        return grad_x, grad_weight, grad_bias


def _all_but_channel(x):
    return (0, *range(2, np.ndim(x)))


def _per_channel(v, x):
    """(C,) -> (1, C, 1, ...), to meet x of shape (N, C, ...)."""
    return reshape(v, (1, -1) + (1,) * (np.ndim(x) - 2))


def batch_norm(
    x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
):
    """Batch normalisation of each channel.

    Parameters
    ----------
    x : (N, C) or (N, C, H, W)
    running_mean, running_var : (C,) arrays or None
        In training they are updated in place (unbiased variance, as in PyTorch); in evaluation
        they are the statistics. Without them the batch's statistics serve in both modes.
    weight, bias : (C,), optional
        Scale γ and shift β; 1 and 0 by default.
    training : bool
        Normalise by the statistics of the batch.
    momentum : float
        Share of the new statistics in the running ones.
    """
    shape = np.shape(x)
    if len(shape) < 2:
        raise ValueError(f"batch_norm: x must have the shape (N, C, ...), got {shape}")
    dtype = as_array(x).dtype
    for name, v in (
        ("running_mean", running_mean),
        ("running_var", running_var),
        ("weight", weight),
        ("bias", bias),
    ):
        if v is not None and np.shape(v) != (shape[1],):
            raise ValueError(
                f"batch_norm: {name} has shape {np.shape(v)}, x has {shape[1]} channels "
                f"(shape {shape})"
            )
    weight = np.ones(shape[1], dtype) if weight is None else weight
    bias = np.zeros(shape[1], dtype) if bias is None else bias
    if not training and running_mean is not None:
        return BatchNorm.apply(x, weight, bias, mean=running_mean, var=running_var, eps=eps)
    count = int(np.prod(shape)) // shape[1] if shape[1] else 0
    if count < 2:
        raise ValueError(
            f"batch_norm: training needs more than one value for each channel, x has shape {shape}"
        )
    if running_mean is not None:
        values = as_array(x)
        dims = _all_but_channel(values)
        running_mean += momentum * (values.mean(dims) - running_mean)
        running_var += momentum * (values.var(dims, ddof=1) - running_var)
    return BatchNorm.apply(x, weight, bias, mean=None, var=None, eps=eps)


# ------------------------------------------------------------------------------------------ losses


def _reduce(name, values, reduction):
    if reduction == "mean":
        return mean(values)
    if reduction == "sum":
        return sum(values)
    if reduction == "none":
        return values
    raise ValueError(f"{name}: reduction must be 'mean', 'sum' or 'none', got {reduction!r}")


def _class_labels(name, x, target):
    """Check logits (N, classes) and integer labels (N,); give the labels as an array."""
    target = np.asarray(as_array(target))
    shape = np.shape(x)
    if len(shape) != 2 or target.shape != shape[:1] or target.dtype.kind not in "iu":
        raise ValueError(
            f"{name}: expects logits (N, classes) and integer labels (N,), got shapes {shape} and "
            f"{target.shape} of {target.dtype}"
        )
    if target.size and (target.min() < 0 or target.max() >= shape[1]):
        raise ValueError(
            f"{name}: labels must lie in 0..{shape[1] - 1}, got {target.min()}..{target.max()}"
        )
    return target


def cross_entropy(input, target, reduction="mean"):
    """-log softmax(input)[target].

    Parameters
    ----------
    input : (N, classes)
        Logits.
    target : (N,) integers
    reduction : 'mean', 'sum' or 'none'
    """
    target = _class_labels("cross_entropy", input, target)
    rows = np.arange(len(target))
    return _reduce("cross_entropy", -log_softmax(input, 1)[rows, target], reduction)


def squared_hinge(input, target, reduction="mean"):
    """max(0, 1 - y * input)², where y is +1 at the label's class and -1 at the others.

    The loss of BinaryNet (Courbariaux et al. 2016). Means are over classes and samples.

    Parameters
    ----------
    input : (N, classes)
    target : (N,) integers
    reduction : 'mean', 'sum' or 'none'
    """
    target = _class_labels("squared_hinge", input, target)
    signs = np.full(np.shape(input), -1.0, as_array(input).dtype)
    signs[np.arange(len(target)), target] = 1.0
    margin = relu(1.0 - input * signs)
    return _reduce("squared_hinge", margin * margin, reduction)
