"""Layers as functions: each operation is a `Function` with its forward pass and gradient rule.

All rules are differentiable in turn. Where a rule is a linear map itself (the adjoint of a
convolution or of a pooling), that map is a `Function` too, and the rules refer to each other.
`kernels.dispatch` selects the kernel that computes an operation on arrays.
The operations of `tinybnn.autograd` are exported here too.

Functions take Tensors or arrays of float32 or float64: with a Tensor among the operands they return
a Tensor, which records the gradient, else an array. The result has the dtype of the operands.
"""

from tinybnn.autograd import (
    abs,
    amax,
    amin,
    broadcast_to,
    cat,
    clamp,
    exp,
    flatten,
    flip,
    log,
    logsumexp,
    matmul,
    maximum,
    mean,
    minimum,
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
from tinybnn.functional.activation import (
    Erf,
    Hardtanh,
    LeakyRelu,
    LogSoftmax,
    PRelu,
    Relu,
    Sigmoid,
    Softplus,
    Tanh,
    dropout,
    dropout2d,
    gelu,
    hardsigmoid,
    hardswish,
    hardtanh,
    leaky_relu,
    log_softmax,
    relu,
    relu6,
    sigmoid,
    silu,
    softmax,
    softplus,
    tanh,
)
from tinybnn.functional.adabin import (
    AdaptedConv2d,
    AdaptedSet,
    adapted_conv2d,
    adapted_set,
    adapted_weight,
    adapted_weight_parts,
)
from tinybnn.functional.adapted import (
    Maxout,
    RPRelu,
    RSign,
    ScaleChannels,
    maxout,
    prelu,
    rprelu,
    rsign,
    scale_channels,
)
from tinybnn.functional.binary import (
    SignConv2d,
    SignLinear,
    binary_conv2d,
    binary_linear,
    packed_products,
)
from tinybnn.functional.channels import (
    AddChannels,
    TakeChannels,
    channel_shuffle,
    take_channels,
)
from tinybnn.functional.convolution import (
    Conv2d,
    ConvInput,
    ConvWeight,
    Geometry,
    conv2d,
    conv_transpose2d,
    pair,
)
from tinybnn.functional.linear import Linear, LinearInput, LinearWeight, linear
from tinybnn.functional.loss import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    kl_div,
    l1_loss,
    mse_loss,
    nll_loss,
    one_hot,
    smooth_l1_loss,
    squared_hinge,
)
from tinybnn.functional.normalization import (
    BatchNorm,
    batch_norm,
    fan_in_scale,
    group_norm,
    layer_norm,
    normalize,
)
from tinybnn.functional.pooling import (
    AvgPool2d,
    MaxPool2d,
    adaptive_avg_pool2d,
    avg_pool2d,
    max_pool2d,
)
from tinybnn.functional.resizing import interpolate
from tinybnn.functional.sign_rules import (
    SignConvInput,
    SignConvWeight,
    SignLinearInput,
    SignLinearWeight,
)

__all__ = [
    "AdaptedConv2d", "AdaptedSet", "AddChannels", "AvgPool2d", "BatchNorm", "Conv2d", "ConvInput",
    "ConvWeight", "Erf", "Geometry", "Hardtanh", "LeakyRelu", "Linear", "LinearInput",
    "LinearWeight", "LogSoftmax", "MaxPool2d", "Maxout", "PRelu", "RPRelu", "RSign", "Relu",
    "ScaleChannels", "Sigmoid", "SignConv2d", "SignConvInput", "SignConvWeight", "SignLinear",
    "SignLinearInput", "SignLinearWeight", "Softplus", "TakeChannels", "Tanh", "abs",
    "adapted_conv2d", "adapted_set", "adapted_weight", "adapted_weight_parts",
    "adaptive_avg_pool2d", "amax", "amin", "avg_pool2d", "batch_norm", "binary_conv2d",
    "binary_cross_entropy", "binary_cross_entropy_with_logits", "binary_linear", "broadcast_to",
    "cat", "channel_shuffle", "clamp", "conv2d", "conv_transpose2d", "cross_entropy", "dropout",
    "dropout2d", "exp", "fan_in_scale", "flatten", "flip", "gelu", "group_norm", "hardsigmoid",
    "hardswish", "hardtanh", "interpolate", "kl_div", "l1_loss", "layer_norm", "leaky_relu",
    "linear", "log", "log_softmax", "logsumexp", "matmul", "max_pool2d", "maximum", "maxout",
    "mean", "minimum", "mse_loss", "nll_loss", "normalize", "one_hot", "packed_products", "pad",
    "pair", "permute", "prelu", "relu", "relu6", "reshape", "rprelu", "rsign", "scale_channels",
    "sigmoid", "silu", "smooth_l1_loss", "softmax", "softplus", "sqrt", "squared_hinge", "stack",
    "sum", "take_channels", "tanh", "transpose", "var", "where",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__.copy()  # what is public, and nothing else
