"""Layers and containers, with PyTorch's names."""

from tinybnn.nn import functional, init, utils
from tinybnn.nn.activations import GELU, LogSoftmax, ReLU6, SiLU, Softmax
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
from tinybnn.nn.containers import ModuleDict, ParameterList
from tinybnn.nn.layers import (
    AdaptiveAvgPool2d,
    AvgPool2d,
    BatchNorm1d,
    BatchNorm2d,
    ChannelShuffle,
    Conv2d,
    ConvTranspose2d,
    Dropout,
    Dropout2d,
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
    Upsample,
)
from tinybnn.nn.losses import (
    BCELoss,
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    KLDivLoss,
    L1Loss,
    MSELoss,
    NLLLoss,
    SmoothL1Loss,
)
from tinybnn.nn.module import Cost, LatentParameter, Module, ModuleList, Parameter, Sequential
from tinybnn.nn.normalization import FanInScale, GroupNorm, LayerNorm

__all__ = [
    "GELU", "AdaBinConv2d", "AdaptiveAvgPool2d", "AvgPool2d", "BCELoss", "BCEWithLogitsLoss",
    "BatchNorm1d", "BatchNorm2d", "BinaryConv2d", "BinaryDepthwiseConv2d", "BinaryLinear",
    "ChannelShuffle", "Conv2d", "ConvTranspose2d", "Cost", "CrossEntropyLoss", "Dropout",
    "Dropout2d", "DualAdaBinConv2d", "DualBinaryConv2d", "FanInScale", "Flatten", "GroupNorm",
    "Hardsigmoid", "Hardswish", "Hardtanh", "Identity", "KLDivLoss", "L1Loss", "LatentParameter",
    "LayerNorm", "LeakyReLU", "Linear", "LogSoftmax", "MSELoss", "MaxPool2d", "Maxout", "Module",
    "ModuleDict", "ModuleList", "NLLLoss", "PReLU", "Parameter", "ParameterList", "Quantize",
    "RPReLU", "RSign", "ReLU", "ReLU6", "ReplicateChannels", "Sequential", "SiLU", "Sigmoid",
    "SmoothL1Loss", "Softmax", "Softplus", "SqueezeExcite", "Tanh", "Upsample", "functional",
    "init", "utils",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__.copy()  # what is public, and nothing else
