"""Copies, deep copies and pickles of every public class, made before and after its use.

Derived data (plans, workspaces, addresses) are not part of an object's state: a copy computes them
original and the copy both go on as an object does that nobody copied.
"""

import copy
import functools
import importlib
import inspect
import multiprocessing
import pathlib
import pickle
import pkgutil
import threading

import numba
import numpy as np
import pytest

import tinybnn
from tinybnn import (
    checkpoint,
    datasets,
    deploy,
    models,
    nn,
    optim,
    quantizers,
    storage,
    testing,
    training,
)
from tinybnn import functional as F
from tinybnn.analysis import curvature, dynamics, landscape, opcount, operations, spectra
from tinybnn.analysis.summary import Summary, summary
from tinybnn.datasets import download, sources
from tinybnn.deploy import compiler, plan, runtime, scan, values
from tinybnn.deploy import packed as packed_model
from tinybnn.deploy.own_sign import OwnSign
from tinybnn.deploy.trace import Problem
from tinybnn.experiments import classifiers, fedavg, fedhybnn, runner
from tinybnn.experiments import settings as experiment_settings
from tinybnn.experiments.bdnet import arms as bdnet_arms
from tinybnn.experiments.bdnet import curvature as bdnet_curvature
from tinybnn.experiments.bdnet import fronts as bdnet_fronts
from tinybnn.experiments.bdnet import landscape as bdnet_landscape
from tinybnn.experiments.bdnet import training as bdnet_training
from tinybnn.experiments.hybnn import bounds, networks
from tinybnn.experiments.hybnn import experiment as hybnn_experiment
from tinybnn.federated import aggregation, client, flower, head, launch, rounds, server, wire
from tinybnn.kernels.floats import (
    convolution_plans,
    fused,
    gathered,
    ordered,
    ordered_sums,
    pointwise,
)
from tinybnn.kernels.machine import compilation, pipeline, simd, windows
from tinybnn.kernels.machine.threads import num_threads
from tinybnn.kernels.signs import bits, depthwise, prepared, tables, xnor
from tinybnn.kernels.training import lookup, optimizers, sign_gradients
from tinybnn.models import binary_vae, blocks, latents, mobilenet_v3, resnet
from tinybnn.models.shufflenet_v1 import ShuffleUnit
from tinybnn.nn.hooks import Hooks, RemovableHandle
from tinybnn.nn.module import IncompatibleKeys
from tinybnn.packed_codes import PackedCodes
from tinybnn.plots.boxes import Box
from tinybnn.runs import Config
from tinybnn.tensor import (
    Call,
    Comparison,
    Escape,
    Function,
    Ordered,
    Tape,
    Tensor,
    Variable,
    no_grad,
    trace,
)
from tinybnn.testing import networks as random_networks

# ---------------------------------------------------------------------------------- ways to copy


def through_pickle(protocol):
    def pickled(x):
        return pickle.loads(pickle.dumps(x, protocol))

    pickled.__name__ = f"pickle, protocol {protocol}"
    return pickled


def cloudpickled(x):
    return pickle.loads(pytest.importorskip("cloudpickle").dumps(x))


PICKLES = [through_pickle(p) for p in range(2, pickle.HIGHEST_PROTOCOL + 1)]
DEEP = [copy.deepcopy, *PICKLES]
try:
    import cloudpickle  # noqa: F401

    DEEP.append(cloudpickled)
except ImportError:
    pass


def content(x):
    """The full content of a value, bit for bit, in a form that == can compare."""
    if isinstance(x, Tensor):
        return "Tensor", content(x.data), content(x.grad), x.requires_grad
    if isinstance(x, np.ndarray):
        return x.dtype.str, x.shape, x.tobytes()
    if isinstance(x, dict):
        return {key: content(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [content(value) for value in x]
    if type(x).__module__.startswith("tinybnn."):
        return type(x).__name__, content(vars(x))
    return repr(x) if isinstance(x, float) else x


# --------------------------------------------------------------------- examples and what they do

EXAMPLES = {}  # class -> (makes an object, uses it and returns the result)
REFUSED = {}  # class -> (makes an object, ways to copy it, the error's text)


def generator():
    return np.random.default_rng(0)


def floats(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def words(*shape, count=70):
    return bits.pack(floats(*shape, count))


def integers(low, high, *shape, dtype=np.int64):
    return np.random.default_rng(2).integers(low, high, shape, dtype=dtype)


def value(cls, *arguments, **settings):
    """Register a class whose objects only hold values."""
    EXAMPLES[cls] = functools.partial(cls, *arguments, **settings), lambda x: x


# ----------------------------------------------------------------------------- tensors and modules


def use_tensor(x):
    """Two steps of gradient descent, one by an in-place operator."""
    (x * x).sum().backward()
    with no_grad():
        x -= 0.1 * x.grad
    return x, x._version[0]


def use_latent(x):
    return use_tensor(x), x.clip_value


EXAMPLES[Tensor] = lambda: Tensor(floats(2, 3, 4, 4), requires_grad=True), use_tensor
EXAMPLES[Variable] = lambda: Variable(floats(2, 3)), lambda x: x.data
EXAMPLES[nn.Parameter] = lambda: nn.Parameter(floats(2, 3)), use_tensor
EXAMPLES[nn.LatentParameter] = lambda: nn.LatentParameter(floats(2, 3), clip_value=0.5), use_latent


def use_module(module, *shape):
    """A training step and a forward pass in evaluation mode."""
    module.train().zero_grad()
    x = Tensor(floats(*shape), requires_grad=True)
    y = module(x)
    (y * y).sum().backward()
    for p in module.parameters():
        if p.grad is not None:
            p.data -= 0.01 * p.grad.data
    trained = y.data.copy(), x.grad.data, module.state_dict()
    with no_grad():
        return trained, module.eval()(Tensor(floats(*shape))).data


def module(cls, *arguments, x=(4, 6, 5, 5), **settings):
    """Register an example of a module, for inputs of a shape."""

    def make():
        takes_rng = "rng" in inspect.signature(cls).parameters
        return cls(*arguments, **settings, **({"rng": generator()} if takes_rng else {}))

    EXAMPLES[cls] = make, lambda m: use_module(m, *x)


EXAMPLES[nn.Module] = nn.Module, lambda m: m.train().state_dict()
EXAMPLES[nn.ModuleList] = (
    lambda: nn.ModuleList([nn.Linear(3, 2, rng=generator())]),
    lambda m: [use_module(layer, 4, 3) for layer in m],
)
EXAMPLES[nn.Sequential] = (
    lambda: nn.Sequential(nn.Linear(3, 2, rng=generator()), nn.ReLU()),
    lambda m: use_module(m, 4, 3),
)
module(nn.Linear, 5, 4, x=(3, 5))
module(nn.Conv2d, 6, 4, 3)
module(nn.ConvTranspose2d, 6, 4, 3)
module(nn.BatchNorm1d, 6, x=(4, 6))
module(nn.BatchNorm2d, 6)
for layer in (
    nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Softplus, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Hardsigmoid,
    nn.Hardswish, nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout2d, nn.Quantize, nn.ReLU6,
    nn.SiLU, nn.GELU, nn.Softmax, nn.LogSoftmax,
):  # fmt: skip
    module(layer)
module(nn.GroupNorm, 3, 6)
module(nn.LayerNorm, 5)
module(nn.FanInScale, 6, 9)
module(nn.Upsample, None, 2)
EXAMPLES[nn.ModuleDict] = (
    lambda: nn.ModuleDict({"a": nn.Linear(3, 2, rng=generator())}),
    lambda m: [(name, use_module(layer, 4, 3)) for name, layer in m.items()],
)
EXAMPLES[nn.ParameterList] = (
    lambda: nn.ParameterList([nn.Parameter(floats(2, 3))]), lambda m: [use_tensor(p) for p in m],
)  # fmt: skip


def use_loss(loss):
    target = [0, 2, 1, 1] if isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss) else 0.5
    target = np.asarray(target) if np.ndim(target) else np.full((4, 3), target, np.float32)
    x = Tensor(np.abs(floats(4, 3)) / 9, requires_grad=True)
    loss(x, target).backward()
    return x.grad, loss.state_dict(), repr(loss)


for made in (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.KLDivLoss):
    EXAMPLES[made] = made, use_loss
for made in (nn.CrossEntropyLoss, nn.NLLLoss, nn.BCELoss, nn.BCEWithLogitsLoss):
    EXAMPLES[made] = (lambda cls=made: cls(floats(3))), use_loss
module(nn.MaxPool2d, 2)
module(nn.AvgPool2d, 2)
module(nn.AdaptiveAvgPool2d, 1)
module(nn.ChannelShuffle, 2)
module(nn.ReplicateChannels, 6, 9)
module(nn.SqueezeExcite, 6, 3)
module(nn.BinaryLinear, 70, 4, x=(3, 70))
for layer in (nn.BinaryConv2d, nn.AdaBinConv2d):
    module(layer, 6, 4, 3)
for layer in (nn.DualBinaryConv2d, nn.DualAdaBinConv2d):
    module(layer, 6, 6, 3, groups=6)
module(nn.BinaryDepthwiseConv2d, 6, 3)
for layer in (nn.RSign, nn.RPReLU, nn.Maxout):
    module(layer, 6)
value(nn.Cost, (3, 4), 1, 2, 3)

HOW = blocks.Method("reactnet", "reactnet")
VAE = functools.partial(models.BinaryVAE, (1, 8, 8), 20, "gumbel_softmax", "dense", hidden=(16,))


def use_vae(vae):
    vae.train()
    loss = vae.loss(np.abs(floats(4, 1, 8, 8)) % 1, generator()).total.mean()
    vae.zero_grad()
    loss.backward()
    for p in vae.parameters():
        p.data -= 0.01 * p.grad.data
    return loss.data, vae.eval().encode(np.abs(floats(4, 1, 8, 8)) % 1), vae.state_dict()


value(blocks.Method, "reactnet", "reactnet")
EXAMPLES[models.BinaryVAE] = lambda: VAE(rng=generator()), use_vae
EXAMPLES[binary_vae.BinaryEncoder] = (
    lambda: VAE(rng=generator()).encoder, lambda m: use_module(m, 4, 1, 8, 8),
)  # fmt: skip
module(binary_vae.Unflatten, (6, 5, 5), x=(4, 150))
module(binary_vae.Crop, (4, 3))
module(models.BinaryMLP, 20, 16, 3, x=(4, 20))
module(models.BinaryCNN, (1, 8, 8), 3, x=(4, 1, 8, 8))
EXAMPLES[models.HyBNN] = (
    lambda: models.HyBNN(VAE(rng=generator()).encoder, models.BinaryMLP(20, 16, rng=generator())),
    lambda m: use_module(m, 4, 1, 8, 8),
)
EXAMPLES[blocks.Layer] = (
    lambda: HOW.pointwise(6, 6, rng=generator()),
    lambda m: use_module(m, 4, 6, 5, 5),
)
module(resnet.ZeroChannels, 6, 10)
module(resnet.BasicBlock, nn.Identity(), nn.ReLU())
module(ShuffleUnit, HOW, 12, 12, 1, x=(2, 12, 6, 6))
module(mobilenet_v3.InvertedResidual, HOW, 6, 12, 6, 3, 1, True, True)
EXAMPLES[bdnet_training.Distilled] = (
    lambda: bdnet_training.Distilled(
        nn.Linear(5, 3, rng=generator()), nn.Linear(5, 3, rng=np.random.default_rng(1)), 0.5
    ),
    lambda m: (use_module(m, 4, 5), m.loss(Tensor(floats(4, 3)), [0, 1, 2, 0])),
)
value(binary_vae.NegativeElbo, Tensor(floats(3)), Tensor(floats(3)), Tensor(floats(3)))
value(PackedCodes, words(3), 70, integers(0, 2, 3), {})

# ------------------------------------------------------------------------ quantizers and estimators


def use_quantizer(q):
    x = Tensor(floats(40, 7), requires_grad=True)
    q(x).sum().backward()
    return q.forward(floats(40, 7)), x.grad, repr(q)


for quantizer in (
    quantizers.SteSign, quantizers.ApproxSign, quantizers.SwishSign, quantizers.EdeSign,
    quantizers.SteHeaviside, quantizers.SteTern, quantizers.MagnitudeAwareSign,
    quantizers.BitNetTernary, quantizers.DoReFaActivation, quantizers.DoReFaWeight,
):  # fmt: skip
    EXAMPLES[quantizer] = quantizer, use_quantizer
EXAMPLES[quantizers.Quantizer] = quantizers.Quantizer, repr


def use_estimator(estimator):
    logits = Tensor(floats(3, 4), requires_grad=True)
    estimator.expectation(logits, lambda z: (z * z + z).sum(1), generator()).sum().backward()
    return logits.grad, repr(estimator)


for estimator in (
    latents.Sign, latents.StraightThrough, latents.GumbelSoftmax, latents.StraightThroughGumbel,
    latents.ScoreFunction, latents.DisARM, latents.Enumeration,
):  # fmt: skip
    EXAMPLES[estimator] = estimator, use_estimator
EXAMPLES[latents.Estimator] = latents.Estimator, repr
value(latents.GradientComparison, [floats(3)], [floats(3)], [floats(3)])

# ------------------------------------------------------------------------ optimizers and schedules


def parameters():
    """A latent parameter, channels-last in memory as in layers, and a plain one."""
    weight = nn.Conv2d(3, 4, 3, rng=generator()).weight
    return [nn.LatentParameter(weight.data), nn.Parameter(floats(5))]


def use_optimizer(optimizer):
    for p in optimizer.parameters:
        p.grad = Tensor(np.sin(30 * p.data))
    optimizer.step()
    return [p.data for p in optimizer.parameters], optimizer.state_dict()


for made in (optim.SGD, optim.Adam, optim.AdamW, optim.RMSprop):
    settings = {"momentum": 0.9} if made in (optim.SGD, optim.RMSprop) else {}
    EXAMPLES[made] = (lambda cls=made, s=settings: cls(parameters(), 0.1, **s)), use_optimizer
EXAMPLES[optim.Bop] = lambda: optim.Bop(parameters()[:1], gamma=0.5), use_optimizer
EXAMPLES[optim.Optimizer] = (
    lambda: optim.Optimizer(parameters(), {"lr": 0.1}), lambda o: o.state_dict(),
)  # fmt: skip
EXAMPLES[optim.MultiOptimizer] = (
    lambda: optim.MultiOptimizer(optim.Bop(parameters()[:1]), optim.Adam(parameters()[1:])),
    use_optimizer,
)


def use_schedule(schedule):
    """Use a schedule together with its optimizer."""
    used = use_optimizer(schedule.optimizer)
    schedule.step()
    return used, [group[rate] for group, rate in schedule.optimizer.rates], schedule.state_dict()


def halved(epoch):
    return 0.5**epoch


def adam():
    return optim.Adam(parameters(), 0.1)


def in_sequence():
    optimizer = adam()
    first, second = optim.LinearLR(optimizer), optim.CosineAnnealingLR(optimizer, 5)
    return optim.SequentialLR(optimizer, [first, second], [1])


EXAMPLES[optim.Schedule] = (
    lambda: optim.LambdaLR(adam(), halved), lambda s: optim.Schedule.state_dict(s),
)  # fmt: skip
EXAMPLES[optim.StepLR] = lambda: optim.StepLR(adam(), 1), use_schedule
EXAMPLES[optim.CosineAnnealingLR] = lambda: optim.CosineAnnealingLR(adam(), 9), use_schedule
EXAMPLES[optim.LinearLR] = lambda: optim.LinearLR(adam()), use_schedule
EXAMPLES[optim.LambdaLR] = (
    lambda: optim.LambdaLR(adam(), halved), lambda s: use_schedule(s)[:2],
)  # fmt: skip
EXAMPLES[optim.SequentialLR] = in_sequence, use_schedule
EXAMPLES[optim.MultiStepLR] = lambda: optim.MultiStepLR(adam(), [1, 2]), use_schedule
EXAMPLES[optim.ExponentialLR] = lambda: optim.ExponentialLR(adam(), 0.9), use_schedule
EXAMPLES[optim.OneCycleLR] = lambda: optim.OneCycleLR(adam(), 0.2, 20), use_schedule


def use_plateau(schedule):
    for metric in (1.0, 2.0, 2.0):
        schedule.step(metric)
    return schedule.get_last_lr(), schedule.state_dict()


EXAMPLES[optim.ReduceLROnPlateau] = (
    lambda: optim.ReduceLROnPlateau(adam(), patience=0), use_plateau,
)  # fmt: skip


def use_average(average):
    model = nn.Linear(3, 2, rng=np.random.default_rng(3))
    average.update_parameters(model)
    average.update_parameters(nn.Linear(3, 2, rng=np.random.default_rng(4)))
    return average.state_dict(), average(Tensor(floats(4, 3))).data


EXAMPLES[optim.swa_utils.AveragedModel] = (
    lambda: optim.swa_utils.AveragedModel(nn.Linear(3, 2, rng=generator())), use_average,
)  # fmt: skip


def use_quantizer_schedule(schedule):
    schedule.step()
    return [q.t for q in schedule.quantizers], schedule.state_dict()


def ede():
    return optim.EdeSchedule(nn.Sequential(nn.Quantize("ede_sign"), nn.Quantize("ede_sign")), 5)


def use_chain(chain):
    chain.step()
    used = use_optimizer(chain.schedules[0].optimizer)
    return used, [q.t for q in chain.schedules[1].quantizers], chain.state_dict()


def use_temperature(schedule):
    schedule.step()
    return schedule.estimator.temperature, schedule.state_dict()


EXAMPLES[optim.EdeSchedule] = ede, use_quantizer_schedule
EXAMPLES[optim.ChainedScheduler] = (
    lambda: optim.ChainedScheduler([optim.StepLR(adam(), 1), ede()]), use_chain,
)  # fmt: skip
EXAMPLES[latents.TemperatureSchedule] = (
    lambda: latents.TemperatureSchedule(latents.GumbelSoftmax(), 5), use_temperature,
)  # fmt: skip

# ------------------------------------------------------------------------------ data and training


def images(n=12, size=6, classes=3):
    pixels = integers(0, 256, n, 2, size, size, dtype=np.uint8)
    return datasets.from_arrays(pixels, np.arange(n) % classes)


def use_dataset(dataset):
    return (
        dataset.images, dataset.labels, dataset.images.strides, dataset.classes, dataset[3],
        [part.labels for part in dataset.split(0.5)], repr(dataset),
    )  # fmt: skip


def augmenting():
    return datasets.Compose(
        [
            datasets.RandomCrop(5, 1), datasets.RandomHorizontalFlip(), datasets.RandomShift(1),
            datasets.to_signed(255), datasets.Normalize([0.1, 0.2], 2.0),
        ]
    )  # fmt: skip


def use_transform(transform):
    return transform(images().images, generator()), repr(transform)


EXAMPLES[datasets.Dataset] = images, use_dataset
EXAMPLES[datasets.DataLoader] = (
    lambda: datasets.DataLoader(images(), 5, shuffle=True, transform=augmenting(), rng=0),
    lambda loader: (list(loader), repr(loader)),
)
EXAMPLES[datasets.TensorDataset] = (
    lambda: datasets.TensorDataset(floats(5, 2), np.arange(5)),
    lambda data: (list(datasets.DataLoader(data, 2)), repr(data)),
)
EXAMPLES[datasets.Subset] = (
    lambda: datasets.Subset(images(), [3, 1]),
    lambda part: (list(datasets.DataLoader(part, 2)), repr(part)),
)
EXAMPLES[datasets.ConcatDataset] = (
    lambda: datasets.ConcatDataset([images(), images(5)]),
    lambda both: (list(datasets.DataLoader(both, 7)), repr(both)),
)
EXAMPLES[datasets.RandomRotation] = lambda: datasets.RandomRotation(20), use_transform
EXAMPLES[datasets.Resize] = lambda: datasets.Resize(4), use_transform
EXAMPLES[datasets.Cutout] = lambda: datasets.Cutout(3), use_transform
EXAMPLES[datasets.Compose] = augmenting, use_transform
EXAMPLES[datasets.Normalize] = lambda: datasets.Normalize(0.5, 2.0), use_transform
EXAMPLES[datasets.RandomCrop] = lambda: datasets.RandomCrop(4), use_transform
EXAMPLES[datasets.RandomShift] = lambda: datasets.RandomShift(1), use_transform
EXAMPLES[datasets.RandomHorizontalFlip] = datasets.RandomHorizontalFlip, use_transform
EXAMPLES[datasets.transforms.ImageTransform] = datasets.transforms.ImageTransform, repr
value(datasets.Available, "a", None, 1, (2, 3), (1, 8, 8), 10, "here", "free")
value(download.RemoteFile, "a", 1, "b")
value(download.Download, "a", (download.RemoteFile("a", 1, "b"),))
EXAMPLES[datasets.Source] = lambda: datasets.SOURCES["emnist-letters"], lambda x: x.size
EXAMPLES[sources.Layout] = lambda: datasets.SOURCES["cifar10"].layouts[0], lambda x: x.files
EXAMPLES[networks.CodeLoader] = (
    lambda: networks.CodeLoader(words(12), 70, np.arange(12), 5, generator(), 0.1), list,
)  # fmt: skip


def use_history(history):
    history.rows.append({"epoch": len(history) + 1, "loss": 0.5})
    return history["loss"], history.rows


def use_counter(counter):
    counter._model.weight.data[:1] *= -1
    return counter.ratio()


EXAMPLES[training.History] = training.History, use_history
EXAMPLES[training.FlipCounter] = (
    lambda: training.FlipCounter(nn.BinaryLinear(5, 4, rng=generator())), use_counter,
)  # fmt: skip
REFUSED[training.Checkpoint] = (
    lambda: training.Checkpoint("a", nn.Linear(2, 1), adam()), [copy.copy, *DEEP],
    "Checkpoint: .* make a Checkpoint of them",
)  # fmt: skip
value(Config, "mlp")

# ------------------------------------------------------------------------------- packed and kernels


@functools.cache
def compiled():
    """Convolutions on bits and floats, a residual sum, dense layers: every kind of memory."""
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1, rng=generator()), nn.BatchNorm2d(8),
        nn.BinaryConv2d(8, 70, 3, padding=1, rng=generator()), nn.BatchNorm2d(70), nn.RPReLU(70),
        nn.BinaryDepthwiseConv2d(70, 3, rng=generator()), nn.BatchNorm2d(70), nn.MaxPool2d(2),
        nn.Flatten(), nn.BinaryLinear(280, 30, rng=generator()), nn.BatchNorm1d(30),
        nn.ReLU(), nn.Linear(30, 4, rng=generator()),
    )  # fmt: skip
    return deploy.compile(model.eval(), (2, 6, 6))


def fresh():
    """A packed model that has not been used yet."""
    made = compiled()
    return deploy.PackedModel(made.input_shape, made.steps, made.calls, {"classes": ["a"]})


def use_packed(packed):
    x = floats(9, 2, 6, 6)
    results = packed.predict(x), packed.predict(x[:1]), packed.predict(x, 2, threads=1)
    *_, (_, last) = packed.run_plan(x[:3])
    return results, last.copy(), packed.output_shape, packed.info, packed.nbytes


EXAMPLES[deploy.PackedModel] = fresh, use_packed
EXAMPLES[packed_model.Step] = (
    lambda: next(step for step in compiled().steps if step.operation == "xnor_conv2d"),
    lambda step: step.run(words(3, 6, 6, count=8)),
)
value(plan.Buffer, np.float32, (3, 4))
value(Problem, "Pow has no packed form", "1 (Square)", "line 1 of a.py: x**2", 3)
EXAMPLES[deploy.Report] = (
    lambda: deploy.check(nn.Sequential(nn.Linear(2, 3), nn.Quantize("ste_tern")), (2,)),
    lambda report: (str(report), report.ok, report.layers),
)
EXAMPLES[compiler.Examination] = (
    lambda: compiler.examine(nn.Sequential(nn.Linear(2, 3, rng=generator())), (2,)),
    lambda compilation: (
        compilation.problems,
        compilation.operations,
        compilation.packed.predict(floats(3, 2)),
    ),
)
value(scan.Scan, 3, 2, True)
value(values.Value, "float", (3, 4))
value(deploy.TracedCall, (1.0,), {"dim": 1}, None, None, 1)
value(runtime.Profile, [{"layer": "0 (Linear)", "seconds": 0.5}])
REFUSED[plan.Task] = (
    lambda: compiled().tasks[0],
    [copy.copy, *DEEP],
    "Task: .* copy the PackedModel",
)
REFUSED[runtime.Workspace] = (
    lambda: runtime.Workspace(compiled().tasks, 4), [copy.copy, *DEEP],
    "Workspace: .* copy the PackedModel",
)  # fmt: skip

EXAMPLES[prepared.Prepared] = (
    lambda: xnor.prepare_conv2d(words(20, 3, 3), 70, (5, 5)),
    lambda p: xnor.run(p, words(2, 5, 5)),
)
EXAMPLES[tables.Tables] = lambda: xnor.prepare_matmul(words(20), 70).tables, tuple
LOOK_UPS = xnor.prepare_matmul(words(20), 70).tables.look_ups
EXAMPLES[tables.LookUps] = lambda: tables.LookUps(*LOOK_UPS), tuple
value(simd.Vector, numba.types.int32, 16)
EXAMPLES[depthwise.Plan] = (
    lambda: depthwise.prepare(words(3, 3), 70, (5, 5)),
    lambda p: depthwise.conv2d_sums(p, words(2, 5, 5)),
)
EXAMPLES[ordered.PreparedConv2d] = (
    lambda: ordered.prepare_conv2d(floats(4, 3, 3, 3), (5, 5)),
    lambda p: ordered.conv2d(p, floats(2, 5, 5, 3)),
)
EXAMPLES[ordered.PreparedSigns] = (
    lambda: ordered.prepare_signs_matmul(floats(4, 70)),
    lambda p: ordered.signs_matmul(p, words(3)),
)  # fmt: skip
PROGRAM = functools.partial(
    pointwise.prepare, (20,), ["sums"], [("mul", 0, floats(20))], [("floats", 1)]
)


def use_layer(layer):
    out = np.empty((3, 20), np.float32)
    fused.run(layer, [words(3)], [out])
    return out


EXAMPLES[pointwise.Program] = (
    PROGRAM,
    lambda p: pointwise.run(p, [integers(-9, 9, 3, 20, dtype=np.int32)]),
)
EXAMPLES[fused.Layer] = (
    lambda: fused.prepare([xnor.prepare_matmul(words(20), 70)], PROGRAM()), use_layer,
)  # fmt: skip
for cls in (
    convolution_plans.Plan, convolution_plans.Tables, convolution_plans.Units, gathered.Patches,
    gathered.Panel, gathered.Sums, lookup.SignLayout, optimizers.AdamStep, optimizers.SgdStep,
    pointwise.Arrays, pointwise.Scratch, ordered.Copying, ordered_sums.Tables,
):  # fmt: skip
    value(cls, *range(len(cls._fields)))
value(windows.Windows, 5, 5, 5, 5, 1, 1, 1, 1, 0, 0, 1, 1)
value(sign_gradients.Geometry, *sign_gradients.geometry_of(3, 2, (5, 5), (1, 1)))

# --------------------------------------------------------------------------------------- the graph


def recorded():
    with trace() as tape:
        x = Tensor([1.0], requires_grad=True)
        x * x
    return tape


def node():
    return (Tensor([1.0], requires_grad=True) * 2.0).function


NODE = "a node of a graph cannot be copied"
REFUSED[Function] = node, [copy.copy, *DEEP], NODE
REFUSED[Tape] = recorded, DEEP, NODE
REFUSED[Call] = lambda: recorded()[0], DEEP, NODE
value(Comparison, np.array([True]), ">", (Tensor(floats(1)), 0.0))
value(Escape, (Tensor(floats(2)),), "why", ())
value(F.Geometry, (2, 3, 5, 5), (4, 3, 3, 3), (1, 1), (0, 0), (1, 1), 1)

# ------------------------------------------------------------------------- own functions and hooks


class OwnSignFunction(Function):
    """A sign as users write it."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return quantizers.sign(x.data)

    @staticmethod
    def backward(ctx, grad):
        return ctx.factor * grad, None


def own_sign():
    with trace() as tape:
        OwnSignFunction.apply(Tensor(floats(3)), 2.0)
    return OwnSign(tape[0])


def doubled(module, inputs, output):
    return 2.0 * output


def hooks():
    registry = Hooks()
    registry.add("forward", doubled)
    return registry


def use_hooks(registry):
    registry.add("forward", doubled)
    return registry.call(nn.Identity(), (Tensor(floats(3)),), {}).data


def use_handle(handle):
    before = len(handle.hooks)
    handle.remove()
    return before - len(handle.hooks)


EXAMPLES[OwnSign] = own_sign, lambda q: q.forward(floats(5))
EXAMPLES[Hooks] = hooks, use_hooks
EXAMPLES[RemovableHandle] = lambda: nn.Identity().register_forward_hook(doubled), use_handle
value(Ordered, floats(2), integers(0, 2, 2))
value(IncompatibleKeys, ["a"], ["b", "c"])

# ---------------------------------------------------------------------------------------- federated


def network():
    return nn.Sequential(
        nn.Flatten(), nn.BinaryLinear(72, 6, rng=generator()), nn.BatchNorm1d(6),
        nn.Linear(6, 3, rng=generator()),
    )  # fmt: skip


def signs():
    return aggregation.SignOfUpdate(0.05, both=True)


def holder(number=0):
    return client.Client(number, images(), network(), signs(), norm="local", optimizer=optim.Adam)


def made_server():
    return server.Server(network(), signs(), norm="local")


def use_client(client):
    """Train on the message of a server that holds the client's last update."""
    own = made_server()
    answers = []
    for _ in range(2):
        own.open_round([client.number])
        answers.append(client.train(own.broadcast(client.version), batch_size=4))
        own.receive(client.number, answers[-1])
        own.close_round()
    client.version = None  # it holds nothing from the next server
    return answers, client.state()


def use_server(server):
    """A round with two clients, and the beginning of another one."""
    server.open_round([0, 1])
    message = server.broadcast()
    for number in (0, 1):
        server.receive(number, holder(number).train(message, batch_size=4))
    server.close_round()
    server.open_round([1])
    return message, server.state(), server.model.state_dict()


def use_exchange(exchange):
    for node in ("a", "b"):
        exchange.introduce(node, ord(node) - ord("a"), ["a", "b"])
    sent = exchange.begin(["a", "b"])
    replies = {
        node: {"message": holder(exchange.numbers[node]).train(what["message"], batch_size=4)}
        for node, what in sent.items()
    }
    changed = exchange.finish(replies)
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in exchange.history.rows]
    return changed, rows, exchange.history.ledger.rows, exchange.server.state()


def use_round(current):
    for number in current.open([0, 1], 0.5):
        current.receive(number, holder(number).train(current.send(number, None), batch_size=4))
    changed = current.close()
    return changed, {k: v for k, v in current.row.items() if k != "seconds"}


def use_head(head):
    state = {name: array + 1 for name, array in head.read().items()}
    head.write(state)
    return state, head.entries, head.digest, head._model.state_dict()


def use_ledger(ledger):
    ledger.rows.append(rounds.Transfer(len(ledger), 0, True, 10, 20))
    return ledger.total("up"), ledger.rows


def use_aggregation(rule):
    before, after = floats(5), floats(5, seed=2)
    sent = rule.encode(before, after, 1.0, generator())
    return sent, rule.aggregate(before, [sent, sent], [1, 2], 1.0, generator()), repr(rule)


EXAMPLES[client.Client] = holder, use_client
EXAMPLES[server.Server] = made_server, use_server
EXAMPLES[flower.Exchange] = lambda: flower.Exchange(made_server()), use_exchange
EXAMPLES[head.Head] = lambda: head.Head(network()), use_head
EXAMPLES[rounds.Ledger] = rounds.Ledger, use_ledger
EXAMPLES[rounds.Round] = (
    lambda: rounds.Round(made_server(), rounds.RoundHistory()), use_round,
)  # fmt: skip
EXAMPLES[rounds.RoundHistory] = (
    rounds.RoundHistory, lambda h: (use_history(h), use_ledger(h.ledger)),
)  # fmt: skip
value(rounds.Transfer, 1, 2, True, 3, 4)
for rule in (
    aggregation.FedAvg, aggregation.StochasticSign, aggregation.SignOfUpdate,
    aggregation.MajorityVote,
):  # fmt: skip
    EXAMPLES[rule] = rule, use_aggregation
EXAMPLES[aggregation.Aggregation] = aggregation.Aggregation, repr
value(head.Entry, "a", "latent", (3,), 1.0)
value(wire.Field, "bits", (3, 70))
value(wire.Header, "state", 1, 2, b"12345678", b"12345678")
REFUSED[launch.Network] = (
    lambda: launch.Network("a"),
    [copy.copy, *DEEP],
    "Network: .* start another",
)

# --------------------------------------------------------------------------- analysis, experiments


def use_times(times):
    times.add("Add", (2, 3), calls=1, forward=0.5)
    times.seconds += 1.0
    return times.rows, str(times)


EXAMPLES[operations.OperationTimes] = operations.OperationTimes, use_times
EXAMPLES[opcount.OperationCount] = (
    lambda: opcount.count_operations(network(), (2, 6, 6)), lambda x: (x.bops, str(x)),
)  # fmt: skip
EXAMPLES[opcount.LayerCount] = (
    lambda: opcount.count_operations(network(), (2, 6, 6)).layers[0], lambda x: x.output_shape,
)  # fmt: skip
EXAMPLES[Summary] = (
    lambda: summary(network().eval(), (2, 6, 6)), lambda x: (x.rows, str(x)),
)  # fmt: skip


def curved(operator):
    x, y = np.ones((4, 3), np.float32), np.arange(4) % 2
    return lambda: operator(nn.Sequential(nn.Linear(3, 2, rng=generator())), [(x, y)])


def use_curvature(operator):
    return operator @ np.arange(operator.size), operator.gradient(), repr(operator)


def use_lanczos(lanczos):
    lanczos.step()
    return lanczos.alphas, lanczos.betas, lanczos.basis


for cls in (curvature.HessianOperator, curvature.GaussNewtonOperator):
    EXAMPLES[cls] = curved(cls), use_curvature
EXAMPLES[curvature.CurvatureOperator] = curved(curvature.CurvatureOperator), repr
EXAMPLES[spectra.Lanczos] = (
    lambda: spectra.Lanczos(np.diag(np.arange(9.0)), np.ones(9), generator()), use_lanczos,
)  # fmt: skip


def use_tracker(tracker):
    for p in tracker.model.parameters():
        p.data = -p.data
    tracker.step()
    return tracker.flips, tracker.returns, tracker.rows


EXAMPLES[dynamics.FlipTracker] = lambda: dynamics.FlipTracker(network()), use_tracker
for noise in (dynamics.LogisticNoise, dynamics.UniformNoise):
    EXAMPLES[noise] = noise, lambda n: (n.probability(np.ones(2)), n.slope(np.ones(2)))
value(dynamics.BatchStatistics, {"0": {"variance": np.ones((2, 3))}}, {"0": {"norm": 1.0}})
value(dynamics.ExpectedLoss, 1.0, np.ones(1), np.ones(2), np.ones(2) / 2)
value(landscape.Landscape, (np.arange(3.0),), {"binary": np.ones(3)})
value(landscape.Trajectory, np.eye(2), np.ones((3, 2)), np.array([0.7, 0.2]))
value(landscape.FlipSpectrum, 1.0, np.ones((2, 3)))
value(spectra.Eigenpairs, np.ones(2), np.eye(3)[:, :2], np.zeros(2), np.ones(3), np.ones(3))
value(spectra.TraceEstimate, 1.0, 0.5)
EXAMPLES[spectra.SpectralDensity] = (
    lambda: spectra.SpectralDensity(np.ones((2, 3)), np.full((2, 3), 1 / 3)),
    lambda density: (density(np.arange(3.0), 0.5), density.moment(2)),
)  # fmt: skip
for config in (fedavg.Config, fedhybnn.Config, bdnet_training.Config, bdnet_curvature.Config,
               bdnet_fronts.Config, bdnet_landscape.Config, hybnn_experiment.Config,
               bounds.Config, classifiers.Config, experiment_settings.Config,
               experiment_settings.ImageConfig):  # fmt: skip
    value(config)
value(storage.Member, "weight", np.dtype("<f4"), (3,), 0, 80, 92)
EXAMPLES[Box] = lambda: Box("sign", ("RSign",)), lambda box: (box.kind, box.lines, box.height)
value(random_networks.Line, "{out} = {a}", (-1,))
value(random_networks.RandomNetwork, 0, (3,), (random_networks.Line("{out} = -{a}", (-1,)),))
value(testing.Campaign, 1, 1)
value(runner.Run, pathlib.Path("r"), fedavg.Config(), 1, {"a": 1}, "tinybnn x", False, halved, {})
value(runner.Experiment, "a", fedavg.Config, halved, halved, {"a.png": ((3, 2), halved)}, halved)
value(fedavg.Arm, "a", halved, network, adam)
value(fedhybnn.Arm, "a", halved)
value(networks.Arm, "a", "codes", halved)
value(networks.Features, words(3), words(2), 70)
value(bdnet_arms.Arm, "a", halved, "reactnet")


# --------------------------------------------------------------------------------------- the tests


def public_classes():
    """Every class without an underscore, except in the benchmarks, the course and Flower.

    The package is walked, so that a new class cannot be forgotten.
    """
    classes = set()
    for info in pkgutil.walk_packages(tinybnn.__path__, "tinybnn."):
        rooms = info.name.split(".")
        if {"bench", "cli", "course", "__main__", "flower_app"} & {*rooms}:
            continue
        for name, cls in vars(importlib.import_module(info.name)).items():
            if inspect.isclass(cls) and cls.__module__ == info.name and not name.startswith("_"):
                classes.add(cls)
    return sorted(classes, key=lambda cls: (cls.__module__, cls.__name__))


def named(cls):
    return f"{cls.__module__.removeprefix('tinybnn.')}.{cls.__name__}"


CLASSES = public_classes()
NODES = [cls for cls in CLASSES if issubclass(cls, Function)]
ERRORS = [cls for cls in CLASSES if issubclass(cls, BaseException)]
ROWS = [cls for cls in CLASSES if issubclass(cls, deploy.Operation)]  # never instantiated
PROTOCOLS = [cls for cls in CLASSES if getattr(cls, "_is_protocol", False)]  # only for hints


def test_every_public_class_is_here():
    # Numba makes a compiler for each kernel, and calls the one listener of the process.
    of_numba = {pipeline.KernelCompiler, pipeline.PartCompiler, compilation.Listener}
    for cls in {*CLASSES} - {*NODES} - {*ERRORS} - {*ROWS} - {*PROTOCOLS} - of_numba:
        assert cls in EXAMPLES or cls in REFUSED, (
            f"no example for {named(cls)}: add one to EXAMPLES"
        )


@pytest.mark.parametrize("uses", [0, 1, 2])
@pytest.mark.parametrize("cls", EXAMPLES, ids=named)
def test_copies_go_on_as_the_original_does(cls, uses):
    make, use = EXAMPLES[cls]
    twin = make()
    expected = [content(use(twin)) for _ in range(uses + 2)]

    def used():
        subject = make()
        assert [content(use(subject)) for _ in range(uses)] == expected[:uses]
        return subject

    for duplicate in DEEP:
        original = used()
        other = duplicate(original)
        assert type(other) is type(original)
        name = duplicate.__name__
        assert content(use(other)) == expected[uses], f"{name}: the copy"
        assert content(use(original)) == expected[uses], f"{name}: the original, after the copy"
        assert content(use(other)) == expected[uses + 1], f"{name}: the copy again"
        assert content(use(original)) == expected[uses + 1], f"{name}: the original again"
    original = used()
    assert content(use(copy.copy(original))) == expected[uses]
    use(original)  # it shares with the copy what both change in place


@pytest.mark.parametrize("cls", REFUSED, ids=named)
def test_what_cannot_be_copied_says_so(cls):
    make, ways, message = REFUSED[cls]
    original = make()
    for duplicate in ways:
        with pytest.raises(TypeError, match=message):
            duplicate(original)


@pytest.mark.parametrize("cls", NODES, ids=named)
def test_nodes_of_a_graph_are_not_copied(cls):
    for duplicate in (copy.copy, *DEEP):
        with pytest.raises(TypeError, match=f"{cls.__name__}: {NODE}"):
            duplicate(cls())


@pytest.mark.parametrize("cls", ERRORS, ids=named)
def test_errors_go_from_one_process_to_another(cls):
    for duplicate in (copy.copy, *DEEP):
        error = duplicate(cls("what went wrong"))
        assert type(error) is cls and str(error) == "what went wrong"


# ----------------------------------------------------------------------------------------- tensors


def test_a_result_is_copied_after_detach():
    x = Tensor([1.0, 2.0], requires_grad=True)
    y = x * x
    for duplicate in DEEP:
        with pytest.raises(RuntimeError, match=r"result of Mul \(shape \(2,\)\).*use .detach\(\)"):
            duplicate(y)
        assert content(duplicate(y.detach())) == content(y.detach())
        with pytest.raises(RuntimeError, match=r"use .detach\(\)"):
            duplicate(models_with(y))
    y.sum().backward()
    assert x.grad.data.tolist() == [2.0, 4.0]


def models_with(tensor):
    """A model that stores a tensor."""
    model = nn.Identity()
    model.seen = tensor
    return model


def test_a_shallow_copy_is_the_same_tensor_twice():
    x = Tensor([1.0, 2.0], requires_grad=True)
    y = x * x
    for tensor in (x, y):
        other = copy.copy(tensor)
        assert other is not tensor and other.data is tensor.data
        assert other._version is tensor._version and other.function is tensor.function
    copy.copy(y).sum().backward()
    assert x.grad.data.tolist() == [2.0, 4.0]
    z, kept = x.detach() * 1.0, x * 3.0
    other = copy.copy(x)
    with no_grad():
        other += 1.0
    assert x.data.tolist() == [2.0, 3.0] and z.data.tolist() == [1.0, 2.0]
    assert kept.data.tolist() == [3.0, 6.0]


def test_a_change_by_a_shallow_copy_is_noticed():
    x = Tensor([1.0, 2.0], requires_grad=True)
    y = x * x
    other = copy.copy(x)
    with no_grad():
        other += 1.0
    with pytest.raises(RuntimeError, match="was changed by an in-place operator"):
        y.sum().backward()


def test_tensors_on_the_same_memory_stay_so():
    x = Tensor(floats(3, 4), requires_grad=True)
    for duplicate in DEEP:
        y, z = duplicate((x, x.detach()))
        assert y.data is z.data and y._version is z._version and y.data is not x.data
    last = nn.Conv2d(3, 4, 3).weight  # channels-last: a pickle parts them
    y, z = copy.deepcopy((last, last.detach()))
    assert y.data is z.data and y._version is z._version and y.data is not last.data


class Named(Tensor):
    """A subclass with its own attributes."""

    def __init__(self, data, name):
        super().__init__(data)
        self.name = name


@pytest.mark.parametrize("duplicate", [copy.copy, *DEEP])
def test_subclasses_keep_their_attributes(duplicate):
    copied = duplicate(Named([1.0], ["a"]))
    assert type(copied) is Named and copied.name == ["a"] and copied.data.tolist() == [1.0]


@pytest.mark.parametrize("duplicate", DEEP)
def test_the_order_in_memory_stays(duplicate):
    """NumPy's pickle loses the order, but kernels need weights and their state in the same one."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 2, 3), nn.Linear(3, 2))
    optimizer = optim.Adam(model.parameters())
    model[1](model[0](Tensor(floats(2, 3, 8, 8)))).sum().backward()
    optimizer.step()
    other, optimizer_too = duplicate((model, optimizer))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert p.data.strides == q.data.strides and q.data.flags.writeable
        assert p.grad is None or p.grad.data.strides == q.grad.data.strides
    for p, arrays in zip(optimizer_too.parameters, optimizer_too.state, strict=True):
        assert all(a.strides == p.data.strides for a in arrays.values() if a.shape == p.shape)
    for dataset in (images(), duplicate(images())):
        assert dataset.images.transpose(0, 2, 3, 1).flags.c_contiguous
    for array in (floats(4, 3).T, floats(6, 4)[::2], np.broadcast_to(floats(3), (2, 3))):
        assert content(duplicate(Tensor(array))) == content(Tensor(array))


# --------------------------------------------------------------------------- what belongs together


@pytest.mark.parametrize("duplicate", DEEP)
def test_what_is_shared_stays_shared(duplicate):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model.again, model[2].weight = model[0], model[0].weight
    other = duplicate(model)
    assert other.again is other[0] and other[2].weight is other[0].weight
    assert len(other.parameters()) == len(model.parameters()) == 3
    assert other[0].weight is not model[0].weight


@pytest.mark.parametrize("duplicate", DEEP)
def test_a_whole_training_goes_on_in_both(duplicate):
    """Model, optimizer, schedule and loaders together, with the generator that they share."""

    def start():
        rng = generator()
        model = nn.Sequential(nn.Flatten(), nn.Dropout(0.3, rng=rng), network())
        optimizer = optim.Adam(model.parameters(), 0.01)
        schedule = optim.CosineAnnealingLR(optimizer, 4)
        loader = datasets.DataLoader(images(), 4, shuffle=True, rng=rng)
        return model, optimizer, schedule, loader, training.History()

    def train(model, optimizer, schedule, loader, history, epochs=1):
        training.fit(
            model, loader, epochs=epochs, optimizer=optimizer, schedule=schedule,
            history=history, progress=False,
        )  # fmt: skip
        return content([model.state_dict(), optimizer.state_dict(), history["loss"]])

    twin = start()
    expected = [train(*twin) for _ in range(3)]
    run = start()
    train(*run)
    other = duplicate(run)
    assert other[1].parameters[0] is other[0].parameters()[0]
    assert other[0][1].rng is other[3].rng and other[3].rng is not run[3].rng
    assert [train(*other), train(*other)] == expected[1:]
    assert [train(*run), train(*run)] == expected[1:]


@pytest.mark.parametrize("duplicate", [copy.copy, *DEEP])
def test_generators_keep_their_seeds(duplicate):
    """A checkpoint uses them to tell runs apart."""
    loader = datasets.DataLoader(images(), 4, shuffle=True, rng=17)
    list(loader)
    assert checkpoint._seed(duplicate(loader).rng) == 17


@pytest.mark.parametrize("duplicate", DEEP)
def test_every_architecture_can_be_copied(duplicate):
    settings = {"rng": generator(), "input_size": 32, "num_classes": 3, "method": "reactnet"}
    built = [
        models.mlp(20, (16,), 3, rng=generator()), models.cnn((1, 28, 28), 3, rng=generator()),
        models.vgg_small((3, 8, 8), 3, 0.125, rng=generator()),
        *(
            make(0.25, **settings)
            for make in (
                models.resnet20, models.mobilenet_v1, models.mobilenet_v3_small,
                models.shufflenet_v1,
            )
        ),
    ]  # fmt: skip
    for model in built:
        other = duplicate(model)
        assert content(other.state_dict()) == content(model.state_dict())
        assert repr(other) == repr(model)
        assert not any(
            np.shares_memory(a, b)
            for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True)
        )


# ------------------------------------------------------------------------------------ packed models


@pytest.mark.parametrize("duplicate", [copy.copy, *DEEP])
def test_a_copy_of_a_packed_model_has_memory_of_its_own(duplicate):
    x = floats(9, 2, 6, 6)
    packed = fresh()
    expected = packed.predict(x)
    other = duplicate(packed)
    used = {"_free", "_range_is_known", "_block_seconds"}
    assert vars(other).keys() == {"input_shape", "steps", "calls", "info", *used}
    assert other._free == [] and packed._free != []
    assert content(other.predict(x[::-1])) == content(expected[::-1])
    assert content(packed.predict(x)) == content(expected)
    assert other._free[0] is not packed._free[0]
    other.info["classes"] = ["b"]
    other.steps.pop()
    assert packed.info == {"classes": ["a"]} and len(packed.steps) == len(other.steps) + 1


def test_a_pickle_holds_no_plans():
    used, unused = fresh(), fresh()
    use_packed(used)
    assert pickle.dumps(used) == pickle.dumps(unused)


def test_a_packed_model_is_copied_while_threads_use_it():
    packed, x = fresh(), floats(9, 2, 6, 6)
    expected = content(packed.predict(x))
    wrong = []

    def run():
        for _ in range(20):
            for one in (packed, copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
                if content(one.predict(x)) != expected:
                    wrong.append(one)

    workers = [threading.Thread(target=run) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


class Noted(deploy.PackedModel):
    """A subclass with its own constructor and attribute."""

    def __init__(self, packed, note):
        super().__init__(packed.input_shape, packed.steps, packed.calls)
        self.note = note


@pytest.mark.parametrize("duplicate", [copy.copy, *DEEP])
def test_subclasses_of_packed_models_keep_their_attributes(duplicate):
    original = Noted(compiled(), "a")
    expected = content(original.predict(floats(2, 2, 6, 6)))
    other = duplicate(original)
    assert type(other) is Noted and other.note == "a" and other._free == []
    assert content(other.predict(floats(2, 2, 6, 6))) == expected


@pytest.mark.parametrize("duplicate", DEEP)
def test_what_has_begun_is_not_copied(duplicate):
    """Iterators and context managers: Python's own error names them."""
    loader = datasets.DataLoader(images(), 4)
    for begun in (iter(loader), no_grad(), trace(), num_threads(1)):
        with pytest.raises(TypeError, match="generator"):
            duplicate(begun)


def predict_elsewhere(packed, x):
    return content(packed.predict(x)), content(packed.predict(x[::2]))


@pytest.mark.slow
def test_another_process_predicts_the_same():
    packed, x = fresh(), floats(9, 2, 6, 6)
    expected = predict_elsewhere(packed, x)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for _ in range(2):
            assert pool.apply(predict_elsewhere, (packed, x)) == expected


@pytest.mark.slow
@pytest.mark.parametrize("limit", [None, 100])
def test_joblib_predicts_the_same(limit):
    """Also if it passes arrays, including weights, as read-only memory maps."""
    joblib = pytest.importorskip("joblib")
    packed, x = fresh(), floats(9, 2, 6, 6)
    expected = predict_elsewhere(packed, x)
    with joblib.Parallel(n_jobs=2, backend="loky", max_nbytes=limit) as parallel:
        for _ in range(2):
            calls = [joblib.delayed(predict_elsewhere)(packed, x) for _ in range(3)]
            assert parallel(calls) == [expected] * 3
