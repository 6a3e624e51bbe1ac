"""Products of signs with signs: forward on bits, backward without multiplication.

A binary layer computes with s = sign(x) and v = sign(weight), in training, in eval mode and in the
trace that the compiler lowers. Here the signs are packed into bits: the forward pass is the XNOR
product of the packed model (XNOR-Net, Rastegari et al. 2016, section 3.2),

    Σ s v = K - 2 popcount(s xor v)    over K signs,

and the backward pass reads the packed signs again. The sums are integers, so packing changes time
and memory only: `packed_products` switches between bits and floats, and both give the same result.

The gradients are products of floats with signs (`kernels.training.sign_gradients`), times the
pseudo-gradients of the two quantizers. With ``create_graph=True`` they can be differentiated
again, like a composition of quantizers and convolution (`functional.sign_rules`).
"""

from __future__ import annotations

import contextlib
import functools
import math
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from tinybnn.autograd import is_tracing, pad, reshape
from tinybnn.functional.composed import Composed
from tinybnn.functional.convolution import Conv2d, ConvInput, ConvWeight, conv2d, geometry_of
from tinybnn.functional.linear import check_linear, linear
from tinybnn.kernels.machine.memory import empty

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike

    from tinybnn.functional.convolution import Geometry
    from tinybnn.quantizers import Quantizer
    from tinybnn.typing import Array, Pair, V, Words

_on_bits = True
_SMALL = 1 << 20  # with fewer products in a call, packing costs more than BLAS on floats
_FEW = 16  # with fewer channels in a group, gradients and ternary sums are faster on floats
_AT_ONCE = 1 << 16  # values checked at a time: few enough for the cache
_TERNARY = (-1.0, 0.0, 1.0)


@contextlib.contextmanager
def packed_products(enabled: bool) -> Iterator[None]:
    """Context manager: run the forward pass of binary layers on bits, or on floats.

    Parameters
    ----------
    enabled : bool
        True, as outside of any such context, packs the signs. With False, BLAS computes the same
        numbers from signs stored as floats.
    """
    global _on_bits
    previous, _on_bits = _on_bits, bool(enabled)
    try:
        yield
    finally:
        _on_bits = previous


def binary_conv2d(
    x: V | ArrayLike,
    weight: V | ArrayLike,
    input_quantizer: Quantizer | None,
    weight_quantizer: Quantizer | None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    *,
    fixed_order: bool = False,
) -> V:
    """Convolve the quantized x with the quantized weight: conv2d(q(x), r(weight)).

    If both operands are signs, whichever quantizer or layer computed them, a large float32 product
    runs on packed bits (Rastegari et al. 2016, section 3.2), as does one of signs with ternary
    weights. Everything else runs on floats.

    Parameters
    ----------
    x : (N, C, H, W), float32 or float64
    weight : (O, C / groups, kh, kw), float32 or float64
        Latent weights.
    input_quantizer : Quantizer or None
        q; None uses x unchanged.
    weight_quantizer : Quantizer or None
        r is this quantizer without its scale (`Quantizer.levels`); None uses the weight unchanged.
    stride, padding, dilation : int or pair of ints
    groups : int
    padding_mode : "zeros" or "ones"
    fixed_order : bool
        Evaluate sums of non-integers in one fixed order; see `linear`.

    Returns
    -------
    (N, O, OH, OW)
        Equal to `conv2d` of the quantized operands. The gradients, too, are those of this
        composition, up to rounding in their sums.
    """
    if padding_mode not in ("zeros", "ones"):
        raise ValueError(
            f"binary_conv2d: padding_mode must be 'zeros' or 'ones', got {padding_mode!r}"
        )
    geometry = geometry_of(
        "binary_conv2d", np.shape(x), np.shape(weight), stride, padding, dilation, groups
    )
    options = {"geometry": geometry, "padding_mode": padding_mode}
    return _product(SignConv2d, x, weight, input_quantizer, weight_quantizer, fixed_order, options)


def binary_linear(
    x: V | ArrayLike,
    weight: V | ArrayLike,
    input_quantizer: Quantizer | None,
    weight_quantizer: Quantizer | None,
    *,
    fixed_order: bool = False,
) -> V:
    """Multiply the quantized x with the quantized weight: q(x) @ r(weight).T.

    Parameters
    ----------
    x : (..., K)
    weight : (O, K)
        Latent weights.
    input_quantizer, weight_quantizer, fixed_order
        As in `binary_conv2d`.

    Returns
    -------
    (..., O)
    """
    check_linear("binary_linear", np.shape(x), np.shape(weight))
    return _product(SignLinear, x, weight, input_quantizer, weight_quantizer, fixed_order, {})


def _product(kind, x, weight, input_quantizer, weight_quantizer, fixed_order, options):
    levels = weight_quantizer and weight_quantizer.levels()
    has_signs = bool(levels and levels.is_sign)
    if input_quantizer and (is_tracing() or not (has_signs and input_quantizer.is_sign)):
        # A trace must record the sign as a separate call: the compiler turns it, with the
        # operations before it, into thresholds.
        is_exact = input_quantizer.is_sign and levels and levels.values is not None
        x, input_quantizer = input_quantizer(x), None
        fixed_order = fixed_order and not is_exact
    if not has_signs:
        is_ternary = levels and levels.values == _TERNARY and kind is SignConv2d
        compute = ternary_conv2d if is_ternary and not is_tracing() else kind.on_floats
        return compute(x, levels(weight) if levels else weight, fixed_order, **options)
    rows = reshape(x, (-1, np.shape(x)[-1])) if kind is SignLinear and np.ndim(x) != 2 else x
    quantizers = input_quantizer, levels
    y = kind.apply(rows, weight, quantizers=quantizers, fixed_order=fixed_order, **options)
    return y if rows is x else reshape(y, (*np.shape(x)[:-1], len(weight)))


def are_signs(x: Array) -> bool:
    """Whether all values of an array (N, ...) are -1 or 1.

    The result is not cached, since the array may be changed in place between calls.
    """
    step = max(1, _AT_ONCE * len(x) // max(x.size, 1))
    return all(np.all(np.abs(x[i : i + step]) == 1) for i in range(0, len(x), step))


class _Signs(Composed):
    """Base class: product of x with the signs of a weight.

    A subclass defines the product on packed words and on floats, and both gradients. The forward
    pass runs on words if x holds signs, too, and the product is large enough; else on floats.
    """

    quantizers: tuple[Quantizer | None, Quantizer]
    options: dict[str, Any]
    has_words: bool

    def forward(
        self,
        x: Array,
        weight: Array,
        quantizers: tuple[Quantizer | None, Quantizer],
        fixed_order: bool,
        **options: Any,
    ) -> Array:
        self.quantizers, self.options = quantizers, options
        is_large = self.products(x, weight) >= _SMALL and x.dtype == weight.dtype == np.float32
        self.has_words = is_large and (quantizers[0] is not None or are_signs(x))
        if self.has_words:
            self.pack(x, weight)
            if _on_bits:
                return self.on_words()
        return self.composition(x, weight, fixed_order and quantizers[0] is None, **options)

    def composition(self, x: V, weight: V, fixed_order: bool = False, **options: Any) -> V:
        return self.on_floats(*self.quantized(x, weight), fixed_order, **options)

    def quantized(self, x: V, weight: V) -> tuple[V, V]:
        input_quantizer, weight_quantizer = self.quantizers
        return input_quantizer(x) if input_quantizer else x, weight_quantizer(weight)

    def gradients(self, grad: Array, x: Array, weight: Array) -> tuple[Array | None, ...]:
        results = [None, None]
        for i, (quantizer, operand) in enumerate(zip(self.quantizers, (x, weight), strict=True)):
            if self.needs[i]:
                result = (self.weight_gradient if i else self.input_gradient)(grad, x, weight)
                results[i] = quantizer.gradient(result, operand) if quantizer else result
        return tuple(results)


class SignLinear(_Signs):
    """x @ sign(weight).T with the quantizers' pseudo-gradients.

    x (M, K), weight (N, K) -> (M, N)
    """

    features: int
    x_bits: Words
    weight_bits: Words

    @staticmethod
    def on_floats(x: V | ArrayLike, weight: V | ArrayLike, fixed_order: bool) -> V:
        return linear(x, weight, fixed_order=fixed_order)

    def products(self, x: Array, weight: Array) -> int:
        return x.size * len(weight)

    def pack(self, x: Array, weight: Array) -> None:
        bits, self.features = _kernels().bits, x.shape[1]
        self.x_bits, self.weight_bits = bits.pack(x), bits.pack(weight)

    def on_words(self) -> Array:
        return _kernels().xnor.xnor_matmul(
            self.x_bits, self.weight_bits, self.features, dtype=np.float32
        )

    def input_gradient(self, grad: Array, x: Array, weight: Array) -> Array:
        if not self.has_words:
            return grad @ self.quantizers[1].forward(weight)
        kernels = _kernels().input_gradient
        return kernels.linear_input_gradient(grad, self.weight_bits, self.features)

    def weight_gradient(self, grad: Array, x: Array, weight: Array) -> Array:
        if not self.has_words:
            return grad.T @ self.quantized(x, weight)[0]
        kernels = _kernels().weight_gradient
        return kernels.linear_weight_gradient(grad, self.x_bits, self.features)


class SignConv2d(_Signs):
    """conv2d(x, sign(weight)) with the quantizers' pseudo-gradients; shapes as in `conv2d`."""

    geometry: Geometry
    padding_mode: str
    x_bits: Words
    weight_bits: Words

    @staticmethod
    def on_floats(
        x: V | ArrayLike,
        weight: V | ArrayLike,
        fixed_order: bool,
        geometry: Geometry,
        padding_mode: str,
    ) -> V:
        x, options = _with_border(x, geometry, padding_mode)
        return conv2d(x, weight, **options, fixed_order=fixed_order)

    def products(self, x: Array, weight: Array) -> int:
        self.geometry, self.padding_mode = self.options["geometry"], self.options["padding_mode"]
        return weight.size * len(x) * math.prod(self.geometry.output)

    def pack(self, x: Array, weight: Array) -> None:
        if self.is_depthwise:
            taps = weight[:, 0].transpose(1, 2, 0)  # (kh, kw, C)
        else:
            taps = weight.transpose(0, 2, 3, 1)  # (O, kh, kw, C / groups)
        pack = _kernels().bits.pack
        self.x_bits, self.weight_bits = pack(x.transpose(0, 2, 3, 1)), pack(taps)

    @functools.cached_property
    def is_depthwise(self) -> bool:
        """Whether each channel has one filter, of a size that the depth-wise kernel supports."""
        geometry, (filters, _, kh, kw) = self.geometry, self.geometry.weight
        has_one_each = geometry.groups == geometry.image[1] == filters
        return has_one_each and kh * kw <= _kernels().depthwise.MAX_TAPS

    def on_words(self) -> Array:
        kernels, geometry = _kernels(), self.geometry
        channels, *size = geometry.image[1:]
        options = geometry.options | {"padding_mode": self.padding_mode}
        out = empty((geometry.image[0], *geometry.output, geometry.weight[0]), np.float32)
        if self.is_depthwise:
            del options["groups"]
            plan = kernels.depthwise.prepare(self.weight_bits, channels, size, **options)
            kernels.depthwise.conv2d_sums(plan, self.x_bits, np.float32, out)
        else:
            plan = kernels.xnor.prepare_conv2d(self.weight_bits, channels, size, **options)
            kernels.xnor.run(plan, self.x_bits, out)
        return out.transpose(0, 3, 1, 2)

    def input_gradient(self, grad: Array, x: Array, weight: Array) -> Array:
        geometry = self.geometry
        if self.runs_on_floats:
            weight = self.quantizers[1].forward(weight)
            return ConvInput.apply(grad, weight, geometry=geometry)
        gradient = _kernels().input_gradient.conv2d_input_gradient
        return gradient(_rows(grad), self.weight_bits, self.shape).transpose(0, 3, 1, 2)

    def weight_gradient(self, grad: Array, x: Array, weight: Array) -> Array:
        geometry = self.geometry
        if self.runs_on_floats:
            x, options = _with_border(self.quantized(x, weight)[0], geometry, self.padding_mode)
            geometry = geometry_of("binary_conv2d", x.shape, geometry.weight, **options)
            return ConvWeight.apply(x, grad, geometry=geometry)
        gradient = _kernels().weight_gradient.conv2d_weight_gradient
        return gradient(_rows(grad), self.x_bits, self.shape).transpose(0, 3, 1, 2)

    @functools.cached_property
    def shape(self) -> Any:
        """The shape of the convolution in the form that the kernels of both gradients take."""
        (_, channels, *size), (filters, _, *kernel) = self.geometry.image, self.geometry.weight
        return _kernels().sign_gradients.geometry_of(
            channels, filters, tuple(size), tuple(kernel), **self.geometry.options,
            padding_mode=self.padding_mode,
        )  # fmt: skip

    @property
    def runs_on_floats(self) -> bool:
        """Whether the gradients are computed on floats: no packed signs, or too few channels."""
        return not self.has_words or self.geometry.weight[1] < _FEW


class TernaryConv2d(Conv2d):
    """conv2d(x, weight) with weights -1, 0 and 1; shapes as in `conv2d`.

    If x holds signs and the product is large enough, it runs on packed words, with the same sums.
    """

    geometry: Geometry

    def forward(
        self, x: Array, weight: Array, geometry: Geometry, fixed_order: bool = False
    ) -> Array:
        self.geometry = geometry
        is_large = weight.size * len(x) * math.prod(geometry.output) >= _SMALL
        is_large = is_large and weight.shape[1] >= _FEW and x.dtype == weight.dtype == np.float32
        is_ternary = _on_bits and is_large and np.all(weight * weight == np.abs(weight))
        if not (is_ternary and are_signs(x)):
            return super().forward(x, weight, geometry, fixed_order)
        pack, taps = _kernels().bits.pack, weight.transpose(0, 2, 3, 1)
        sums = _kernels().xnor.xnor_conv2d(
            pack(x.transpose(0, 2, 3, 1)), pack(taps), x.shape[1], **geometry.options,
            mask=pack(np.abs(taps) - np.float32(0.5)),
        )  # fmt: skip
        return sums.astype(np.float32).transpose(0, 3, 1, 2)


def ternary_conv2d(
    x: V | ArrayLike,
    weight: V | ArrayLike,
    fixed_order: bool,
    geometry: Geometry,
    padding_mode: str,
) -> V:
    """Apply `TernaryConv2d`: x (N, C, H, W), weight (O, C / groups, kh, kw) -> (N, O, OH, OW)."""
    x, options = _with_border(x, geometry, padding_mode)
    geometry = geometry_of("binary_conv2d", np.shape(x), np.shape(weight), **options)
    return TernaryConv2d.apply(x, weight, geometry=geometry, fixed_order=fixed_order)


def _with_border(x, geometry, padding_mode):
    """Pad x with ones if `padding_mode` says so: (x, options of the convolution still to do)."""
    options = geometry.options
    if padding_mode == "ones" and geometry.padding != (0, 0):
        (ph, pw), options["padding"] = geometry.padding, (0, 0)
        x = pad(x, (pw, pw, ph, ph), 1.0)
    return x, options


@functools.cache
def _kernels():
    """Import the kernel modules at their first use, since importing Numba is slow."""
    from tinybnn.kernels.signs import bits, depthwise, xnor
    from tinybnn.kernels.training import input_gradient, sign_gradients, weight_gradient

    return SimpleNamespace(
        bits=bits, depthwise=depthwise, input_gradient=input_gradient,
        sign_gradients=sign_gradients, weight_gradient=weight_gradient, xnor=xnor,
    )  # fmt: skip


def _rows(grad):
    """(N, O, OH, OW) -> (N, OH, OW, O), contiguous."""
    return np.ascontiguousarray(grad.transpose(0, 2, 3, 1))
