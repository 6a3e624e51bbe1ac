"""Layers and containers, with PyTorch's names."""

from tinybnn.nn.binary import (
    AdaBinConv2d,
    BinaryConv2d,
    BinaryLinear,
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
    Conv2d,
    ConvTranspose2d,
    Dropout,
    Flatten,
    Hardtanh,
    Identity,
    LeakyReLU,
    Linear,
    MaxPool2d,
    PReLU,
    ReLU,
    Sigmoid,
    Softplus,
    Tanh,
)
from tinybnn.nn.module import Cost, LatentParameter, Module, ModuleList, Parameter, Sequential

__all__ = [
    "AdaBinConv2d", "AdaptiveAvgPool2d", "AvgPool2d", "BatchNorm1d", "BatchNorm2d",
    "BinaryConv2d", "BinaryLinear", "Conv2d", "ConvTranspose2d", "Cost", "Dropout", "Flatten",
    "Hardtanh", "Identity", "LatentParameter", "LeakyReLU", "Linear", "MaxPool2d", "Maxout",
    "Module", "ModuleList", "PReLU", "Parameter", "Quantize", "RPReLU", "RSign", "ReLU",
    "Sequential", "Sigmoid", "Softplus", "Tanh",
]  # fmt: skip
