"""PyTorch's twin of a training step: the same layers, weights, batch, loss and optimizer.

What PyTorch does not have is written as its users write it: the sign with a pseudo-gradient as an
autograd Function, a binary layer as a subclass whose forward takes the signs of its weight, and
the clipping of latent weights after the optimizer's step.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from tinybnn import functional as F
from tinybnn import nn
from tinybnn.bench.peers import is_installed


class Variant(NamedTuple):
    """A way to let PyTorch train.

    Attributes
    ----------
    name : str
    layout : str
        'contiguous_format' (NCHW) or 'channels_last' (NHWC), of images and of weights.
    fused : bool
        Whether Adam is its fused kernel, which has to be asked for.
    dtype : str
        Of weights and images.
    """

    name: str
    layout: str = "contiguous_format"
    fused: bool = False
    dtype: str = "float32"


def variants(has_images):
    """The variants that can run here: memory layouts, where there are images, and both of Adam.

    Parameters
    ----------
    has_images : bool
        Of dense layers alone the layout makes no difference.

    Returns
    -------
    list of Variant
        None without PyTorch.
    """
    if not is_installed("torch"):
        return []
    layouts = {"": "contiguous_format"}
    if has_images:
        layouts = {" NCHW": "contiguous_format", " NHWC": "channels_last"}
    return [
        Variant(f"PyTorch{name}{', fused Adam' * fused}", layout, fused)
        for fused in (False, True)
        for name, layout in layouts.items()
    ]


class TorchTraining:
    """PyTorch's twin of a `training.Training`; a call is a step of training.

    Parameters
    ----------
    ours : Training
    variant : Variant
    num_threads : int or None
        None leaves PyTorch's number as it is.

    Attributes
    ----------
    network : torch.nn.Sequential
    optimizer : torch.optim.Adam
    """

    def __init__(self, ours, variant, num_threads):
        import torch

        if num_threads is not None:
            torch.set_num_threads(num_threads)
        self._torch = torch
        self._layout, self._dtype = (getattr(torch, v) for v in (variant.layout, variant.dtype))
        self.network = twin(ours.model).to(dtype=self._dtype, memory_format=self._layout)
        self.copy_weights(ours.model)
        parameters = dict(self.network.named_parameters())
        self.latents = [
            (parameters[name], p.clip_value)
            for name, p in ours.model.named_parameters()
            if isinstance(p, nn.LatentParameter) and p.clip_value is not None
        ]
        (group,) = ours.optimizer.param_groups
        settings = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}
        fused = {"fused": True} if variant.fused else {}
        self.optimizer = torch.optim.Adam(self.network.parameters(), **settings, **fused)
        name = {
            F.cross_entropy: "cross_entropy",
            F.binary_cross_entropy_with_logits: "binary_cross_entropy_with_logits",
        }[ours.loss]
        self.loss = getattr(torch.nn.functional, name)
        self.copy_batch(ours)

    def copy_batch(self, ours):
        """Take our images and labels."""
        self.x = self._tensor(ours.x)
        self.target = self.x if ours.target is ours.x else self._tensor(ours.target)

    def copy_weights(self, model):
        """Take the parameters and the statistics of our model."""
        state = {name: self._tensor(array) for name, array in model.state_dict().items()}
        self.network.load_state_dict(state)

    def copy_gradients(self, model):
        """Take the gradients of our model's parameters."""
        for p, theirs in zip(model.parameters(), self.network.parameters(), strict=True):
            theirs.grad = self._tensor(p.grad.data)

    def _tensor(self, array):
        """A copy, images and weights of convolutions in the layout of the variant."""
        tensor = self._torch.tensor(np.ascontiguousarray(array))
        if array.dtype.kind != "f":
            return tensor
        layout = {"memory_format": self._layout} if tensor.ndim == 4 else {}
        return tensor.to(dtype=self._dtype, **layout)

    def gradients(self):
        """The gradient of each parameter, by its name."""
        return {name: p.grad.numpy() for name, p in self.network.named_parameters()}

    def weights(self):
        """Each parameter by its name."""
        return {name: p.detach().numpy() for name, p in self.network.named_parameters()}

    def watch_inputs(self):
        """A list that holds, after each forward pass, what each layer was given."""
        found = [None] * len(self.network)

        def keep(i):
            def hook(layer, inputs):
                found[i] = inputs[0].detach().numpy()

            return hook

        for i, layer in enumerate(self.network):
            layer.register_forward_pre_hook(keep(i))
        return found

    def compute_gradients(self):
        """The part of a step before the optimizer."""
        self.optimizer.zero_grad()
        self.loss(self.network(self.x), self.target).backward()

    def update(self):
        """The optimizer's step, and the clipping of latent weights."""
        self.optimizer.step()
        with self._torch.no_grad():
            for p, clip in self.latents:
                p.clamp_(-clip, clip)

    def __call__(self):
        self.compute_gradients()
        self.update()


# --------------------------------------------------------------------------------------- the twin


def twin(model):
    """PyTorch's Sequential of the same layers, with the same names of parameters.

    Parameters
    ----------
    model : Sequential
        Quantizers are `SteSign` and `ApproxSign`; convolutions pad zeros.

    Raises
    ------
    ValueError
        If a layer has no twin here.
    """
    import torch

    return torch.nn.Sequential(*(_twin_of(layer) for layer in model))


def _twin_of(layer):
    import torch

    kind, own = type(layer).__name__, _layers()
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
        return own.Quantize(_sign(layer.quantizer))
    if kind in ("Linear", "BinaryLinear"):
        sizes = layer.in_features, layer.out_features, layer.bias is not None
        return torch.nn.Linear(*sizes) if kind == "Linear" else own.BinaryLinear(layer, *sizes)
    if kind == "ConvTranspose2d":
        return torch.nn.ConvTranspose2d(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding,
            layer.output_padding, layer.groups, layer.bias is not None, layer.dilation,
        )  # fmt: skip
    if kind in ("Conv2d", "BinaryConv2d"):
        geometry = (
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding,
            layer.dilation, layer.groups, layer.bias is not None,
        )  # fmt: skip
        if kind == "Conv2d":
            return torch.nn.Conv2d(*geometry)
        return own.BinaryConv2d(layer, *geometry)
    raise ValueError(f"twin: PyTorch has no layer here for {kind}")


def _sign(quantizer):
    """The autograd Function of a quantizer; None for None."""
    if quantizer is None:
        return None
    name = type(quantizer).__name__
    if name not in ("SteSign", "ApproxSign") or getattr(quantizer, "clip_value", 1.0) != 1.0:
        raise ValueError(f"twin: PyTorch has no function here for {quantizer!r}")
    return getattr(_layers(), name).apply


@functools.cache
def _layers():
    """What PyTorch lacks, as the attributes of a class; it is made when PyTorch is first needed."""
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
            def __init__(self, sign):
                super().__init__()
                self.sign = sign

            def forward(self, x):
                return self.sign(x)

        class BinaryConv2d(torch.nn.Conv2d):
            def __init__(self, layer, *geometry):
                super().__init__(*geometry)
                _check(layer)
                self.of_input, self.of_weight = map(_sign, _quantizers(layer))

            def forward(self, x):
                x = self.of_input(x) if self.of_input else x
                return self._conv_forward(x, self.of_weight(self.weight), self.bias)

        class BinaryLinear(torch.nn.Linear):
            def __init__(self, layer, *sizes):
                super().__init__(*sizes)
                _check(layer)
                self.of_input, self.of_weight = map(_sign, _quantizers(layer))

            def forward(self, x):
                x = self.of_input(x) if self.of_input else x
                return torch.nn.functional.linear(x, self.of_weight(self.weight), self.bias)

    return Layers


def _quantizers(layer):
    return layer.input_quantizer, layer.weight_quantizer


def _check(layer):
    """Only what the classes above compute."""
    if layer.scale_mode is not None or getattr(layer, "padding_mode", "zeros") != "zeros":
        raise ValueError(f"twin: expects no scale and zeros as padding, got {layer!r}")
