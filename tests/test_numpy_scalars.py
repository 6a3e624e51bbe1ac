"""NumPy scalars are accepted wherever Python's int, float or bool is, with the same result."""

from functools import partial

import numpy as np
import pytest

import tinybnn
from tinybnn import datasets, deploy, models, nn, optim, quantizers
from tinybnn import functional as F
from tinybnn.tensor import Tensor
from tinybnn.testing import assert_identical

IMAGES, ROWS = (4, 6, 8, 8), (4, 6)
GEOMETRY = {"stride": 2, "padding": 1, "groups": 2}


def quantize(name, *settings):
    return nn.Quantize(getattr(quantizers, name)(*settings))


LAYERS = [
    (nn.Linear, ROWS, (6, 3), {"bias": True}),
    (nn.Conv2d, IMAGES, (6, 4, 3), GEOMETRY | {"dilation": 1, "bias": True}),
    (nn.ConvTranspose2d, IMAGES, (6, 4, 3), GEOMETRY | {"output_padding": 1, "bias": True}),
    (nn.BatchNorm1d, ROWS, (6,), {"eps": 1e-3, "momentum": 0.3, "affine": True}),
    (nn.BatchNorm2d, IMAGES, (6,), {"eps": 1e-3, "momentum": 0.3, "affine": False}),
    (nn.LeakyReLU, IMAGES, (0.3,), {}), (nn.PReLU, IMAGES, (6, 0.3), {}),
    (nn.Softplus, IMAGES, (2.0,), {}), (nn.Hardtanh, IMAGES, (-0.7, 0.3), {}),
    (nn.MaxPool2d, IMAGES, (3, 2, 1), {}), (nn.AvgPool2d, IMAGES, (3, 2, 1), {}),
    (nn.AdaptiveAvgPool2d, IMAGES, (2,), {}), (nn.ChannelShuffle, IMAGES, (3,), {}),
    (nn.ReplicateChannels, IMAGES, (6, 9), {}), (nn.SqueezeExcite, IMAGES, (6, 2), {}),
    (nn.Flatten, IMAGES, (1, -1), {}), (nn.Dropout, IMAGES, (0.5,), {}),
    (nn.BinaryLinear, ROWS, (6, 3), {"bias": True, "clip_value": 0.5}),
    (nn.BinaryConv2d, IMAGES, (6, 4, 3), GEOMETRY | {"bias": True, "clip_value": 0.5}),
    (nn.BinaryDepthwiseConv2d, IMAGES, (6, 3), {"stride": 2, "padding": 1}),
    (nn.AdaBinConv2d, IMAGES, (6, 4, 3), GEOMETRY),
    (nn.DualBinaryConv2d, IMAGES, (6, 4, 3), GEOMETRY | {"branches": 3, "clip_value": 0.7}),
    (nn.DualAdaBinConv2d, IMAGES, (6, 4, 3), GEOMETRY | {"branches": 3}),
    (nn.RSign, IMAGES, (6,), {}), (nn.RPReLU, IMAGES, (6,), {}), (nn.Maxout, IMAGES, (6,), {}),
    (partial(quantize, "SteSign"), IMAGES, (0.5,), {}),
    (partial(quantize, "SwishSign"), IMAGES, (3.0,), {}),
    (partial(quantize, "EdeSign"), IMAGES, (2.0,), {}),
    (partial(quantize, "SteHeaviside"), IMAGES, (0.5,), {}),
    (partial(quantize, "SteTern"), IMAGES, (0.3, 0.5), {}),
    (partial(quantize, "DoReFaActivation"), IMAGES, (2,), {}),
    (partial(quantize, "DoReFaWeight"), IMAGES, (2,), {}),
    (partial(quantize, "MagnitudeAwareSign"), IMAGES, (0.7,), {}),
    (models.mlp, ROWS, (6,), {"hidden": (8, 5), "num_classes": 3}),
    (models.mobilenet_v1, (2, 3, 32, 32), (0.25, 32, 10, "bdnet-a"), {}),
]  # fmt: skip


def as_scalars(value, kinds):
    """Python's numbers as NumPy scalars; all floats given are exact in their type."""
    if isinstance(value, bool):
        return np.bool_(value)
    if isinstance(value, int | float):
        return kinds[isinstance(value, float)](value)
    return tuple(as_scalars(v, kinds) for v in value) if isinstance(value, tuple) else value


def rounded(value, kind):
    """A number that is exact in both Python and the NumPy type."""
    if isinstance(value, tuple):
        return tuple(rounded(v, kind) for v in value)
    return float(kind(value)) if isinstance(value, float) else value


def everything(make, shape, arguments, options):
    """Outputs and gradients in training, and in evaluation as float and packed."""
    try:
        layer = make(*arguments, **options, rng=np.random.default_rng(0))
    except TypeError as error:
        assert "rng" in str(error)
        layer = make(*arguments, **options)
    tinybnn.manual_seed(0)
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    t = Tensor(x, requires_grad=True)
    y = layer.train()(t)
    (y * y).sum().backward()
    grads = [p.grad.data for p in layer.parameters() if p.grad is not None]
    arrays = [y.data, t.grad.data, *grads, *layer.state_dict().values()]
    arrays.append(layer.eval()(Tensor(x)).data)
    try:
        arrays.append(deploy.compile(nn.Sequential(layer), shape[1:]).predict(x))
    except deploy.CompileError:
        arrays.append(np.zeros(0))
    return repr(layer), arrays


@pytest.mark.parametrize("kinds", [(np.int64, np.float64), (np.uint8, np.float32)], ids=str)
@pytest.mark.parametrize("case", LAYERS, ids=range(len(LAYERS)))
def test_settings_of_layers(case, kinds):
    make, shape, arguments, options = case
    if -1 in arguments and kinds[0] is np.uint8:
        kinds = (np.int8, kinds[1])
    arguments = rounded(arguments, kinds[1])
    options = {name: rounded(value, kinds[1]) for name, value in options.items()}
    text, expected = everything(make, shape, arguments, options)
    text_of_scalars, arrays = everything(
        make, shape, as_scalars(arguments, kinds),
        {name: as_scalars(value, kinds) for name, value in options.items()},
    )  # fmt: skip
    assert text_of_scalars == text
    for a, b in zip(arrays, expected, strict=True):
        assert_identical(a, b)


FUNCTIONS = {
    "conv2d": lambda x, c: F.conv2d(x, np.ones((4, 3, 3, 3), np.float32), groups=c(2), stride=c(2)),
    "batch_norm": lambda x, c: F.batch_norm(x, None, None, training=c(True), eps=c(1e-3)),
    "dropout": lambda x, c: F.dropout(x, c(0.5), c(True), np.random.default_rng(0)),
    "leaky_relu": lambda x, c: F.leaky_relu(x, c(0.3)),
    "hardtanh": lambda x, c: F.hardtanh(x, c(-0.5), c(0.5)),
    "softplus": lambda x, c: F.softplus(x, c(2.0)),
    "clamp": lambda x, c: x.clamp(c(-0.5), c(0.5)),
    "sum": lambda x, c: x.sum((c(1), c(-1)), keepdim=c(True)),
    "mean": lambda x, c: x.mean(c(1)), "var": lambda x, c: x.var(c(1), correction=c(1)),
    "amax": lambda x, c: x.amax(c(1)), "softmax": lambda x, c: F.softmax(x, c(1)),
    "reshape": lambda x, c: x.reshape(c(4), c(-1)),
    "permute": lambda x, c: x.permute(c(0), 3, 2, 1),
    "flatten": lambda x, c: x.flatten(c(1), c(2)), "index": lambda x, c: x[c(1), c(0) : c(3)],
    "pad": lambda x, c: F.pad(x, (c(1), c(2)), c(0.5)), "power": lambda x, c: x ** c(2),
    "arithmetic": lambda x, c: (c(2.5) * x - c(1)) / c(3.0) + c(2),
    "max_pool2d": lambda x, c: F.max_pool2d(x, c(2), c(2), c(1)),
    "cross_entropy": lambda x, c: F.cross_entropy(
        x.reshape(4, -1), np.zeros(4, int), label_smoothing=c(0.1)
    ),
    "where": lambda x, c: F.where(x.data > 0, x, c(0.5)),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arguments_of_functions(name):
    x = Tensor(np.random.default_rng(1).normal(size=IMAGES).astype(np.float32), requires_grad=True)
    plain = FUNCTIONS[name](x, lambda value: value)
    scalars = FUNCTIONS[name](x, lambda value: as_scalars(value, (np.int64, np.float64)))
    assert_identical(scalars.data, plain.data)


def test_settings_of_optimizers_and_schedules():
    def trained(c):
        rng = np.random.default_rng(0)
        model = nn.Linear(c(3), c(2), rng=rng)
        adam = optim.AdamW(
            model.parameters(), lr=c(0.1), betas=(c(0.8), c(0.9)), eps=c(1e-6), weight_decay=c(0.01)
        )
        schedules = [
            optim.LinearLR(adam, c(0.5), c(1.0), total_iters=c(2)), optim.StepLR(adam, c(2), c(0.5))
        ]  # fmt: skip
        schedule = optim.SequentialLR(adam, schedules, [c(3)])
        data = datasets.TensorDataset(rng.normal(size=(12, 3)), np.arange(12) % 2)
        loader = datasets.DataLoader(data, batch_size=c(4), shuffle=c(True), rng=c(3))
        history = tinybnn.training.fit(
            model, loader, epochs=c(5), optimizer=adam, schedule=schedule, progress=c(False)
        )
        return [p.data for p in model.parameters()], history["lr"], repr(adam), repr(schedule)

    expected = trained(lambda value: value)
    results = trained(lambda value: as_scalars(value, (np.int64, np.float64)))
    for a, b in zip(results[0], expected[0], strict=True):
        assert_identical(a, b)
    assert results[1:] == expected[1:]
