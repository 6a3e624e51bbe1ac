"""Layers and containers, with PyTorch's names."""

from tinybnn.nn.binary import BinaryConv2d, BinaryLinear, Quantize
from tinybnn.nn.layers import (
    AvgPool2d,
    BatchNorm1d,
    BatchNorm2d,
    Conv2d,
    Dropout,
    Flatten,
    Hardtanh,
    Identity,
    Linear,
    MaxPool2d,
    ReLU,
    Sigmoid,
    Tanh,
)
from tinybnn.nn.module import LatentParameter, Module, Parameter, Sequential

__all__ = [
    "AvgPool2d", "BatchNorm1d", "BatchNorm2d", "BinaryConv2d", "BinaryLinear", "Conv2d", "Dropout",
    "Flatten", "Hardtanh", "Identity", "LatentParameter", "Linear", "MaxPool2d", "Module",
    "Parameter", "Quantize", "ReLU", "Sequential", "Sigmoid", "Tanh",
]  # fmt: skip
