"""Rows of whole networks: VGG-small and the mobile networks on bits, beside floats."""

from __future__ import annotations

import copy
from functools import partial
from typing import NamedTuple

import numpy as np

from tinybnn import deploy, models
from tinybnn.autograd import Tensor, no_grad
from tinybnn.bench.peers import is_installed, other_networks
from tinybnn.bench.rounds import compare, contender, ratio_of_this_cpu
from tinybnn.models.blocks import scaled
from tinybnn.models.mobilenet_v1 import SEPARABLE, STEM

# Batch size, and the ratios to PyTorch that it should reach with AVX-512 and with AVX2.
BATCHES = ((64, (20.0, 10.0)), (1, (20.0, 13.0)))

# Forms of MobileNet V1: name and method.
FORMS = (
    ("BD-Net-A, packed", "bdnet-a"), ("BD-Net-B, packed", "bdnet-b"),
    ("ReActNet, packed", "reactnet"), ("MobileNet V1, ours", "float"),
)  # fmt: skip


class Task(NamedTuple):
    """On what a MobileNet V1 is measured.

    Attributes
    ----------
    batch, size : int
        Images and their height and width.
    classes : int
    width : float
        Factor of all channel counts.
    ratios : (float, float), optional
        To PyTorch's float network, that BD-Net-A should reach with AVX-512 and with AVX2.
    """

    batch: int
    size: int
    classes: int
    width: float = 1.0
    ratios: tuple[float, float] | None = None


_ONE, _MANY = (5.0, 5.0), (8.0, 8.0)
MOBILE = (Task(1, 32, 10, ratios=_ONE), Task(64, 32, 10, ratios=_MANY), Task(1, 224, 1000))
QUICK = (Task(1, 32, 10, 0.25, _ONE), Task(4, 32, 10, 0.25, _MANY), Task(1, 128, 10, 0.25))


def networks(settings, say):
    """Yield the rows; the last of each shape carries the profile of the layers."""
    yield from _vgg_small(settings, say)
    yield from _mobile(settings)


def _vgg_small(settings, say):
    rng = np.random.default_rng(0)
    model = models.vgg_small(rng=rng).eval()
    packed = deploy.compile(model, (3, 32, 32))
    for batch, ratios in BATCHES:
        x = _images(rng, batch, 32)
        with other_networks(model, x, settings.num_threads, say) as others:
            yield from _rows("VGG-small, packed", model, packed, x, others, ratios, settings)


def _mobile(settings):
    """MobileNet V1 in its forms; PyTorch always runs the float network of the same width."""
    rng = np.random.default_rng(0)
    for task in QUICK if settings.quick else MOBILE:
        x = _images(rng, task.batch, task.size)
        others = list(_torch_mobilenet(task, x, settings.num_threads))
        for name, method in FORMS:
            model = models.mobilenet_v1(task.width, task.size, task.classes, method, rng=rng).eval()
            packed = deploy.compile(model, x.shape[1:])
            ratios = task.ratios if method == "bdnet-a" else None
            yield from _rows(name, model, packed, x, others, ratios, settings)


def _images(rng, batch, size):
    """Images (N, 3, size, size), channels last in memory."""
    return rng.standard_normal((batch, size, size, 3), np.float32).transpose(0, 3, 1, 2)


def _rows(name, model, packed, x, others, ratios, settings):
    """A packed network against our float path and the others; the last row has the profile."""
    profile = packed.profile(
        x, repetitions=2 if settings.quick else 10, threads=settings.num_threads
    )
    out = packed.predict(x)
    products = sum(row["products"] for row in profile)
    rows = compare(
        name, "×".join(map(str, x.shape)), partial(packed.predict, x),
        [contender("our float path", partial(_by_floats, model, x)), *others], settings,
        products=products or None, nbytes=x.nbytes + packed.nbytes + out.nbytes,
        of_peak=products > 0, target=ratios and ratio_of_this_cpu(*ratios),
    )  # fmt: skip
    rows[-1]["profile"] = profile
    return rows


def _by_floats(model, x):
    with no_grad():
        return model(Tensor(x))


def _torch_mobilenet(task, x, num_threads):
    """PyTorch's float MobileNet V1 in both memory layouts, if it is installed."""
    if not is_installed("torch"):
        return
    import torch

    torch.set_num_threads(num_threads)
    network = torch_mobilenet(task)
    for name, layout in (("NCHW", torch.contiguous_format), ("NHWC", torch.channels_last)):
        laid_out = copy.deepcopy(network).to(memory_format=layout)
        images = torch.from_numpy(np.ascontiguousarray(x)).to(memory_format=layout)

        def forward(network=laid_out, images=images):
            with torch.inference_mode():
                return network(images)

        yield contender(f"PyTorch float {name}", forward, counts=True)


def torch_mobilenet(task):
    """MobileNet V1 of a task's sizes in PyTorch, in evaluation mode; see `models.mobilenet_v1`."""
    import torch

    def layer(inputs, outputs, size, stride=1, groups=1):
        return [
            torch.nn.Conv2d(
                inputs, outputs, size, stride, size // 2, groups=groups, bias=False
            ),
            torch.nn.BatchNorm2d(outputs), torch.nn.ReLU(),
        ]  # fmt: skip

    channels = scaled(STEM, task.width)
    layers = layer(3, channels, 3, 2 if task.size > 96 else 1)
    for outputs, stride in SEPARABLE:
        before, channels = channels, scaled(outputs, task.width)
        layers += layer(before, before, 3, stride, before) + layer(before, channels, 1)
    return torch.nn.Sequential(
        *layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        torch.nn.Linear(channels, task.classes),
    ).eval()  # fmt: skip
