"""Layers and containers, with PyTorch's names."""

from tinybnn.nn.binary import (
    AdaBinConv2d,
    BinaryConv2d,
    BinaryDepthwiseConv2d,
    BinaryLinear,
    DualAdaBinConv2d,
    DualBinaryConv2d,
    Maxout,
    Quantize,
    RPReLU,
    RSign,
)
from tinybnn.nn.layers import (
    AdaptiveAvgPool2d,
    AvgPool2d,
    BatchNorm1d,
    BatchNorm2d,
    ChannelShuffle,
    Conv2d,
    ConvTranspose2d,
    Dropout,
    Flatten,
    Hardsigmoid,
    Hardswish,
    Hardtanh,
    Identity,
    LeakyReLU,
    Linear,
    MaxPool2d,
    PReLU,
    ReLU,
    ReplicateChannels,
    Sigmoid,
    Softplus,
    SqueezeExcite,
    Tanh,
)
from tinybnn.nn.module import Cost, LatentParameter, Module, ModuleList, Parameter, Sequential

__all__ = [
    "AdaBinConv2d", "AdaptiveAvgPool2d", "AvgPool2d", "BatchNorm1d", "BatchNorm2d", "BinaryConv2d",
    "BinaryDepthwiseConv2d", "BinaryLinear", "ChannelShuffle", "Conv2d", "ConvTranspose2d", "Cost",
    "Dropout", "DualAdaBinConv2d", "DualBinaryConv2d", "Flatten", "Hardsigmoid", "Hardswish",
    "Hardtanh", "Identity", "LatentParameter", "LeakyReLU", "Linear", "MaxPool2d", "Maxout",
    "Module", "ModuleList", "PReLU", "Parameter", "Quantize", "RPReLU", "RSign", "ReLU",
    "ReplicateChannels", "Sequential", "Sigmoid", "Softplus", "SqueezeExcite", "Tanh",
]  # fmt: skip
__dir__ = __all__.copy  # dir() shows what is public, and nothing else
