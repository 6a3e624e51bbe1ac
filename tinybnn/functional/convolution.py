"""Convolution and transposed convolution.

A convolution is linear in the image and linear in the weight. Its two adjoints, together with
itself, are closed under differentiation::

                         gradient in the first input        gradient in the second input
    Conv2d(x, w)         ConvInput(grad, w)                 ConvWeight(x, grad)
    ConvInput(g, w)      Conv2d(grad, w)                    ConvWeight(grad, g)
    ConvWeight(x, g)     ConvInput(g, grad)                 Conv2d(x, grad)

The transposed convolution is ConvInput (Dumoulin and Visin 2016, section 4).

Images are (N, C, H, W) in shape and channels-last in memory: a view without a copy turns them
into contiguous (N, H, W, C) arrays, on which the computation runs.

Each Function is written as a product with a matrix of patches (im2col; Chellapilla et al. 2006).
float64 is computed in this way; for float32 there are faster kernels (`kernels.dispatch`).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from tinybnn.autograd import Function, plain, reshape
from tinybnn.functional.linear import check_bias, product
from tinybnn.kernels import dispatch
from tinybnn.kernels.machine.memory import empty

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike

    from tinybnn.typing import Array, Pair, Shape, V


class Geometry:
    """The geometry that the three maps of a convolution share, and images as matrices of patches.

    Attributes
    ----------
    image : tuple of int
        Shape of the images, (N, C, H, W).
    weight : tuple of int
        Shape of the weight, (O, C / groups, kh, kw).
    stride, padding, dilation : pair of ints
    groups : int
    output : pair of ints
        Size of the output (OH, OW).
    """

    image: Shape
    weight: Shape
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    output: Shape
    BLOCK: int = 1 << 21  # elements of a patch matrix processed at a time (fits the cache)

    def __init__(
        self,
        image: Shape,
        weight: Shape,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
        output: Shape | None = None,
    ) -> None:
        self.image, self.weight = image, weight
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        # Passed by a transposed convolution, whose output_padding makes several sizes possible.
        self.output = output or tuple(
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(image[2:], weight[2:], stride, padding, dilation, strict=True)
        )

    @property
    def options(self) -> dict[str, Any]:
        """Stride, padding, dilation and groups as keyword arguments."""
        return {
            "stride": self.stride, "padding": self.padding, "dilation": self.dilation,
            "groups": self.groups,
        }  # fmt: skip

    def blocks(self) -> list[slice]:
        """Slices of the batch, each small enough that its patches fit into the cache."""
        patch = int(np.prod(self.weight[2:])) * self.image[1] * int(np.prod(self.output))
        step = max(1, self.BLOCK // max(patch, 1))
        return [slice(i, i + step) for i in range(0, self.image[0], step)]

    def padded(self, x: Array) -> Array:
        """Pad with zeros: (n, C, H, W) -> contiguous (n, H + 2 ph, W + 2 pw, C)."""
        ph, pw = self.padding
        x = x.transpose(0, 2, 3, 1)
        if ph == pw == 0:
            return np.ascontiguousarray(x)
        n, h, w, c = x.shape
        result = np.zeros((n, h + 2 * ph, w + 2 * pw, c), x.dtype)
        result[:, ph : ph + h, pw : pw + w] = x
        return result

    def tap(self, padded: Array, i: int, j: int) -> Array:
        """View the pixels under tap (i, j) of the kernel, one for each output: (n, OH, OW, C)."""
        (oh, ow), (sh, sw), (dh, dw) = self.output, self.stride, self.dilation
        top, left = i * dh, j * dw
        return padded[:, top : top + (oh - 1) * sh + 1 : sh, left : left + (ow - 1) * sw + 1 : sw]

    def patches(self, x: Array) -> Array:
        """im2col: (n, C, H, W) -> (G, n * OH * OW, kh * kw * C / G), a row an output pixel."""
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

    def rows_of_weight(self, weight: Array) -> Array:
        """Flatten filters in patch order: (O, C / G, kh, kw) -> (G, O / G, kh * kw * C / G)."""
        groups = self.groups
        return weight.transpose(0, 2, 3, 1).reshape(groups, len(weight) // groups, -1)

    def rows_of_output(self, y: Array) -> Array:
        """Flatten an output to rows: (n, O, OH, OW) -> (G, n * OH * OW, O / G)."""
        rows = y.transpose(0, 2, 3, 1).reshape(-1, self.groups, y.shape[1] // self.groups)
        return rows.transpose(1, 0, 2)

    def image_of_rows(self, rows: Array) -> Array:
        """Invert `rows_of_output`: (G, n * OH * OW, O / G) -> (n, O, OH, OW), channels-last."""
        return (
            rows.transpose(1, 0, 2).reshape(-1, *self.output, self.weight[0]).transpose(0, 3, 1, 2)
        )


def empty_image(shape: Shape, dtype: DTypeLike) -> Array:
    """Allocate an uninitialized (N, C, H, W) array that is channels-last in memory."""
    n, c, h, w = shape
    return empty((n, h, w, c), dtype).transpose(0, 3, 1, 2)


class Conv2d(Function):
    """out[n, o, y, x] = Σ_{c, i, j} image[n, c, s y + d i - p, s x + d j - p] weight[o, c, i, j].

    With stride s, dilation d and padding p; pixels outside of the image are 0.
    """

    geometry: Geometry
    fresh = True

    def forward(
        self, x: Array, weight: Array, geometry: Geometry, fixed_order: bool = False
    ) -> Array:
        self.geometry = geometry
        kernel = dispatch.ordered_conv2d if fixed_order else dispatch.conv2d
        if (result := kernel(x, weight, geometry)) is not None:
            return result
        shape = len(x), len(weight), *geometry.output
        result = empty_image(shape, np.result_type(x, weight))
        columns = geometry.rows_of_weight(weight).transpose(0, 2, 1)  # (G, kh * kw * C / G, O / G)
        for block in geometry.blocks():
            rows = product(geometry.patches(x[block]), columns, fixed_order)
            result[block] = geometry.image_of_rows(rows)
        return result

    def backward(self, grad: V, output: V, x: V, weight: V) -> tuple[V | None, ...]:
        return (
            ConvInput.apply(grad, weight, geometry=self.geometry) if self.needs[0] else None,
            ConvWeight.apply(x, grad, geometry=self.geometry) if self.needs[1] else None,
        )


class ConvInput(Function):
    """The adjoint of Conv2d in the image: scatter each output pixel over its patch (col2im).

    grad (N, O, OH, OW), weight (O, C / groups, kh, kw) -> (N, C, H, W).
    """

    geometry: Geometry
    fresh = True

    def forward(
        self, grad: Array, weight: Array, geometry: Geometry, fixed_order: bool = False
    ) -> Array:
        self.geometry = geometry
        result = None if fixed_order else dispatch.conv2d_input(grad, weight, geometry)
        if result is not None:
            return result
        kh, kw = geometry.weight[2:]
        (ph, pw), (h, w) = geometry.padding, geometry.image[2:]
        result = empty_image(geometry.image, np.result_type(grad, weight))
        rows_of_weight = geometry.rows_of_weight(weight)
        for block in geometry.blocks():
            n = len(grad[block])
            patches = product(geometry.rows_of_output(grad[block]), rows_of_weight, fixed_order)
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

    def backward(self, grad: V, output: V, g: V, weight: V) -> tuple[V | None, ...]:
        return (
            Conv2d.apply(grad, weight, geometry=self.geometry) if self.needs[0] else None,
            ConvWeight.apply(grad, g, geometry=self.geometry) if self.needs[1] else None,
        )


class ConvWeight(Function):
    """The adjoint of Conv2d in the weight: sum all patches, weighted by their outputs' gradients.

    x (N, C, H, W), grad (N, O, OH, OW) -> (O, C / groups, kh, kw).
    """

    geometry: Geometry
    fresh = True

    def forward(self, x: Array, grad: Array, geometry: Geometry) -> Array:
        self.geometry = geometry
        if (result := dispatch.conv2d_weight(x, grad, geometry)) is not None:
            return result
        outputs, per_group, kh, kw = geometry.weight
        groups = geometry.groups
        total = np.zeros((groups, outputs // groups, kh * kw * per_group), np.result_type(x, grad))
        for block in geometry.blocks():
            total += geometry.rows_of_output(grad[block]).transpose(0, 2, 1) @ geometry.patches(
                x[block]
            )
        return total.reshape(outputs, kh, kw, per_group).transpose(0, 3, 1, 2)

    def backward(self, grad: V, output: V, x: V, g: V) -> tuple[V | None, ...]:
        return (
            ConvInput.apply(g, grad, geometry=self.geometry) if self.needs[0] else None,
            Conv2d.apply(x, grad, geometry=self.geometry) if self.needs[1] else None,
        )


def pair(name: str, argument: str, value: Any, minimum: int) -> tuple[int, int]:
    """Return an int or a pair of ints as a pair; a ValueError names the function and argument."""
    if type(value) is tuple and tuple(map(type, value)) == (int, int) and min(value) >= minimum:
        return value
    pair = (value, value) if np.ndim(value) == 0 else tuple(value)
    if len(pair) != 2 or any(not isinstance(v, int | np.integer) or v < minimum for v in pair):
        raise ValueError(
            f"{name}: {argument} must be an int or a pair of ints >= {minimum}, got {value!r}"
        )
    return tuple(int(v) for v in pair)


def named_padding(
    name: str,
    padding: Pair | str,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> Pair:
    """Resolve padding 'valid' (0) or 'same' to a pair of ints; return other values unchanged.

    Parameters
    ----------
    name : str
        Name of the calling function, for error messages.
    padding : int, pair of ints, 'valid' or 'same'
    kernel_size, stride, dilation : pair of ints
    """
    if not isinstance(padding, str):
        return padding
    if padding == "valid":
        return (0, 0)
    if padding != "same":
        raise ValueError(f"{name}: padding must be ints, 'valid' or 'same', got {padding!r}")
    if stride != (1, 1):
        raise ValueError(f"{name}: padding='same' needs stride 1, got {stride}")
    border = [d * (k - 1) for k, d in zip(kernel_size, dilation, strict=True)]
    if any(b % 2 for b in border):
        raise ValueError(
            f"{name}: padding='same' with kernel_size={kernel_size} needs {tuple(border)} zeros, "
            "an odd number that two equal sides cannot share; write F.pad(x, (left, right, top, "
            "bottom))"
        )
    return tuple(b // 2 for b in border)


def conv2d(
    x: V | ArrayLike,
    weight: V | ArrayLike,
    bias: V | ArrayLike | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    fixed_order: bool = False,
) -> V:
    """Convolve images in 2-D (cross-correlation, as in every deep learning library).

    out[n, o, y, x] = bias[o] + Σ_{c, i, j} image[n, c, s y + d i - p, s x + d j - p]
    weight[o, c, i, j], with stride s, dilation d and padding p.

    Parameters
    ----------
    x : (N, C, H, W)
    weight : (O, C / groups, kh, kw)
    bias : (O,), optional
    stride, padding, dilation : int or pair of ints
        `padding` zeros are added on both sides of each axis; 'same' keeps the size (with stride 1
        and odd kernels), 'valid' is 0.
    groups : int
        Number of independent groups of input and output channels; groups = C is the depth-wise
        convolution.
    fixed_order : bool
        Evaluate the sums in one fixed order; see `linear`.

    Returns
    -------
    (N, O, OH, OW), where OH = (H + 2 padding - dilation (kh - 1) - 1) // stride + 1
    """
    geometry = geometry_of(
        "conv2d", np.shape(x), np.shape(weight), stride, padding, dilation, groups
    )
    check_bias("conv2d", bias, geometry.weight[0])
    output = Conv2d.apply(x, weight, geometry=geometry, fixed_order=fixed_order)
    return output if bias is None else output + reshape(bias, (1, -1, 1, 1))


def geometry_of(
    name: str,
    image: Shape,
    weight: Shape,
    stride: Pair,
    padding: Pair | str,
    dilation: Pair,
    groups: int,
) -> Geometry:
    """Check the shapes and options of a convolution and return its `Geometry`.

    Parameters
    ----------
    name : str
        Name of the calling function, for error messages.
    image, weight : tuple of int
        Shapes of the images (N, C, H, W) and of the weight (O, C / groups, kh, kw).
    stride, padding, dilation, groups
        As in `conv2d`.
    """
    stride = pair(name, "stride", stride, 1)
    dilation = pair(name, "dilation", dilation, 1)
    padding = named_padding(name, padding, weight[2:], stride, dilation)
    padding = pair(name, "padding", padding, 0)
    return _checked_geometry(name, image, weight, stride, padding, dilation, plain(groups))


@functools.lru_cache(maxsize=256)  # a layer in training asks at each step
def _checked_geometry(name, image, weight, stride, padding, dilation, groups):
    if len(image) != 4:
        raise ValueError(f"{name}: x must have the shape (N, C, H, W), got {image}")
    if len(weight) != 4:
        raise ValueError(f"{name}: weight must have the shape (O, C, kh, kw), got {weight}")
    if not isinstance(groups, int) or groups < 1 or weight[0] % groups:
        raise ValueError(
            f"{name}: groups must divide the {weight[0]} output channels, got {groups!r}"
        )
    if weight[1] * groups != image[1]:
        raise ValueError(
            f"{name}: weight expects {weight[1] * groups} input channels, "
            f"x has {image[1]} (shape {image})"
        )
    for n, k, p, d in zip(image[2:], weight[2:], padding, dilation, strict=True):
        if d * (k - 1) + 1 > n + 2 * p:
            raise ValueError(
                f"{name}: a kernel of {weight[2:]} with dilation {dilation} does not fit into "
                f"images of {image[2:]} with padding {padding}"
            )
    return Geometry(image, weight, stride, padding, dilation, groups)


def conv_transpose2d(
    x: V | ArrayLike,
    weight: V | ArrayLike,
    bias: V | ArrayLike | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    output_padding: Pair = 0,
    groups: int = 1,
    dilation: Pair = 1,
    *,
    fixed_order: bool = False,
) -> V:
    """Apply the 2-D transposed convolution: the adjoint of `conv2d` in the image.

    out[n, o, s y + d i - p, s x + d j - p] += Σ_c image[n, c, y, x] weight[c, o, i, j], starting
    from zeros (Dumoulin and Visin 2016, section 4).

    Parameters
    ----------
    x : (N, C, H, W)
    weight : (C, O / groups, kh, kw)
    bias : (O,), optional
    stride, padding, dilation, groups
        Settings of the convolution whose adjoint this is.
    output_padding : int or pair of ints
        Added to the output size on one side: with a stride above 1, `conv2d` maps several image
        sizes to the size of x, and this selects one of them.
    fixed_order : bool
        Evaluate the sums in one fixed order; see `linear`.

    Returns
    -------
    (N, O, OH, OW), where OH = (H - 1) stride - 2 padding + dilation (kh - 1) + output_padding + 1
    """
    name = "conv_transpose2d"
    shape, expected = np.shape(x), np.shape(weight)
    if len(shape) != 4:
        raise ValueError(f"{name}: x must have the shape (N, C, H, W), got {shape}")
    if len(expected) != 4:
        raise ValueError(f"{name}: weight must have the shape (C, O, kh, kw), got {expected}")
    if expected[0] != shape[1]:
        raise ValueError(
            f"{name}: weight expects {expected[0]} input channels, x has {shape[1]} (shape {shape})"
        )
    groups = plain(groups)
    if not isinstance(groups, int) or groups < 1 or shape[1] % groups:
        raise ValueError(f"{name}: groups must divide the {shape[1]} channels, got {groups!r}")
    stride, padding = pair(name, "stride", stride, 1), pair(name, "padding", padding, 0)
    dilation = pair(name, "dilation", dilation, 1)
    output_padding = pair(name, "output_padding", output_padding, 0)
    if any(o >= max(s, d) for o, s, d in zip(output_padding, stride, dilation, strict=True)):
        raise ValueError(
            f"{name}: output_padding {output_padding} must be smaller than stride or dilation"
        )
    size = tuple(
        (n - 1) * s - 2 * p + d * (k - 1) + o + 1
        for n, k, s, p, d, o in zip(
            shape[2:], expected[2:], stride, padding, dilation, output_padding, strict=True
        )
    )
    if min(size) < 1:
        raise ValueError(f"{name}: padding {padding} leaves an output of {size}")
    outputs = expected[1] * groups
    check_bias(name, bias, outputs)
    geometry = Geometry(
        (shape[0], outputs, *size), expected, stride, padding, dilation, groups, output=shape[2:]
    )
    output = ConvInput.apply(x, weight, geometry=geometry, fixed_order=fixed_order)
    return output if bias is None else output + reshape(bias, (1, -1, 1, 1))
