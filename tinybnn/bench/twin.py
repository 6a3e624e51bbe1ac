"""PyTorch's twins of our networks: the same layers, with the same names of parameters.

Layers that PyTorch lacks are written as its users write them: the sign with a pseudo-gradient as
an autograd Function, and a binary layer as a subclass whose forward takes the signs of its weight.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from tinybnn import nn


def twin(model: nn.Module, binary: bool = True) -> torch.nn.Sequential:
    """PyTorch's Sequential of the layers of a model; nested layers stand in a row.

    Parameters
    ----------
    model : Module
        Layers in the order of the forward pass, without shortcuts. Quantizers are `SteSign` and
        `ApproxSign`; convolutions pad zeros.
    binary : bool
        Whether binary layers stay binary. If False, real layers replace them, and Hardtanh replaces
        the signs of their inputs.

    Raises
    ------
    ValueError
        If a layer has no twin here.
    """
    import torch

    layers = [layer for layer in model.modules() if not layer.children()]
    return torch.nn.Sequential(*(_twin_of(layer, binary) for layer in layers))


def _twin_of(layer, binary):
    import torch

    kind = type(layer).__name__
    if kind in ("Flatten", "ReLU", "Sigmoid"):
        return getattr(torch.nn, kind)()
    if kind == "LeakyReLU":
        return torch.nn.LeakyReLU(layer.negative_slope)
    if kind == "AdaptiveAvgPool2d":
        return torch.nn.AdaptiveAvgPool2d(layer.output_size)
    if kind == "MaxPool2d":
        return torch.nn.MaxPool2d(layer.kernel_size, layer.stride, layer.padding)
    if kind in ("BatchNorm1d", "BatchNorm2d"):
        return getattr(torch.nn, kind)(layer.num_features, layer.eps, layer.momentum)
    if kind == "Quantize":
        return binary_layers().Quantize(layer.quantizer) if binary else torch.nn.Hardtanh()
    if kind == "ConvTranspose2d":
        return torch.nn.ConvTranspose2d(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding,
            layer.output_padding, layer.groups, layer.bias is not None, layer.dilation,
        )  # fmt: skip
    base = kind.removeprefix("Binary")
    if base == "Linear":
        sizes = layer.in_features, layer.out_features, layer.bias is not None
    elif base == "Conv2d":
        sizes = (
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding,
            layer.dilation, layer.groups, layer.bias is not None,
        )  # fmt: skip
    else:
        raise ValueError(f"twin: PyTorch has no layer here for {kind}")
    if kind != base and binary:
        return getattr(binary_layers(), kind)(layer, *sizes)
    real = getattr(torch.nn, base)(*sizes)
    return real if kind == base else torch.nn.Sequential(torch.nn.Hardtanh(), real)


def _sign(quantizer):
    """The autograd Function of a quantizer; the identity for None."""
    if quantizer is None:
        return lambda x: x
    name = type(quantizer).__name__
    if name not in ("SteSign", "ApproxSign") or getattr(quantizer, "clip_value", 1.0) != 1.0:
        raise ValueError(f"twin: PyTorch has no function here for {quantizer!r}")
    return getattr(binary_layers(), name).apply


@functools.cache
def binary_layers() -> Any:
    """The layers that PyTorch lacks, as attributes of a class made at the first call."""
    import torch

    class Sign(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            context.save_for_backward(x)
            # where(x >= 0, 1, -1), in half the time. torch.sign(0) would be 0.
            return (x >= 0).to(x.dtype).mul_(2).sub_(1)

    class Layers:
        class SteSign(Sign):
            @staticmethod
            def backward(context, grad):
                (x,) = context.saved_tensors
                if torch.is_grad_enabled():  # it will be differentiated once more
                    return (x.abs() <= 1) * grad
                return x.abs().le_(1).mul_(grad)

        class ApproxSign(Sign):
            @staticmethod
            def backward(context, grad):
                (x,) = context.saved_tensors
                if torch.is_grad_enabled():  # it will be differentiated once more
                    return (2 - 2 * x.abs()).clamp(min=0) * grad
                return x.abs().mul_(-2).add_(2).clamp_(min=0).mul_(grad)

        class Quantize(torch.nn.Module):
            def __init__(self, quantizer):
                super().__init__()
                self.forward = _sign(quantizer)

        class BinaryConv2d(torch.nn.Conv2d):
            def __init__(self, layer, *geometry):
                super().__init__(*geometry)
                self.input_sign, self.weight_sign = _signs_of(layer)

            def forward(self, x):
                return self._conv_forward(
                    self.input_sign(x), self.weight_sign(self.weight), self.bias
                )

        class BinaryLinear(torch.nn.Linear):
            def __init__(self, layer, *sizes):
                super().__init__(*sizes)
                self.input_sign, self.weight_sign = _signs_of(layer)

            def forward(self, x):
                weight = self.weight_sign(self.weight)
                return torch.nn.functional.linear(self.input_sign(x), weight, self.bias)

    return Layers


def _signs_of(layer):
    """The Functions of a binary layer's two quantizers, for a layer that the twin can compute."""
    if layer.scale_mode is not None or getattr(layer, "padding_mode", "zeros") != "zeros":
        raise ValueError(f"twin: expects no scale and zeros as padding, got {layer!r}")
    return _sign(layer.input_quantizer), _sign(layer.weight_quantizer)
