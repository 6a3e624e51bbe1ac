"""Rows of whole networks: VGG-small and the mobile networks on bits, beside floats."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from tinybnn import deploy, models
from tinybnn.autograd import Tensor, no_grad
from tinybnn.bench.peers import other_networks, torch_contenders
from tinybnn.bench.rounds import Row, Settings, compare, contender, ratio_of_this_cpu

# Batch size, and the targets for the ratio to PyTorch with AVX-512 and with AVX2.
BATCHES = ((64, (20.0, 10.0)), (1, (20.0, 13.0)))

# Forms of MobileNet V1: name and method.
FORMS = (
    ("BD-Net-A, packed", "bdnet-a"), ("BD-Net-B, packed", "bdnet-b"),
    ("ReActNet, packed", "reactnet"), ("MobileNet V1, ours", "float"),
)  # fmt: skip


class Task(NamedTuple):
    """Sizes at which MobileNet V1 is measured.

    Attributes
    ----------
    batch, size : int
        Images and their height and width.
    classes : int
    width : float
        Factor of all channel counts.
    ratios : (float, float), optional
        Targets for the ratio of BD-Net-A to PyTorch's float network, AVX-512 and AVX2.
    """

    batch: int
    size: int
    classes: int
    width: float = 1.0
    ratios: tuple[float, float] | None = None


_ONE, _MANY = (8.0, 6.0), (5.0, 3.0)
MOBILE = (
    Task(1, 32, 10, ratios=_ONE), Task(64, 32, 10, ratios=_MANY),
    Task(1, 224, 1000, ratios=(3.0, 3.0)),
)  # fmt: skip
QUICK = (Task(1, 32, 10, 0.25, _ONE), Task(4, 32, 10, 0.25, _MANY), Task(1, 128, 10, 0.25))


def networks(settings: Settings, say: Callable[[str], Any]) -> Iterator[Row]:
    """Yield the rows; the last of each shape has the profile of the layers."""
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
    """MobileNet V1 in its forms; PyTorch runs the float network of the same width."""
    rng = np.random.default_rng(0)
    for task in QUICK if settings.quick else MOBILE:
        x = _images(rng, task.batch, task.size)
        network = models.mobilenet_v1(task.width, task.size, task.classes, rng=rng)
        others = list(torch_contenders(network, x, settings.num_threads))
        for name, method in FORMS:
            model = models.mobilenet_v1(task.width, task.size, task.classes, method, rng=rng).eval()
            packed = deploy.compile(model, x.shape[1:])
            ratios = task.ratios if method == "bdnet-a" else None
            yield from _rows(name, model, packed, x, others, ratios, settings)


def _images(rng, batch, size):
    """Random images (N, 3, size, size), channels last in memory."""
    return rng.standard_normal((batch, size, size, 3), np.float32).transpose(0, 3, 1, 2)


def _rows(name, model, packed, x, others, ratios, settings):
    """Compare a packed network with our float path and the others."""
    profile = packed.profile(
        x, repetitions=2 if settings.quick else 10, threads=settings.num_threads
    )
    out = packed.predict(x)
    products = sum(row["products"] for row in profile)
    rows = compare(
        name, x.shape, partial(packed.predict, x),
        [contender("our float path", partial(_by_floats, model, x)), *others], settings,
        products=products or None, nbytes=x.nbytes + packed.nbytes + out.nbytes,
        of_peak=products > 0, target=ratios and ratio_of_this_cpu(*ratios),
    )  # fmt: skip
    rows[-1]["profile"] = profile
    return rows


def _by_floats(model, x):
    with no_grad():
        return model(Tensor(x))
