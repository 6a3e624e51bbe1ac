"""Rows of curvature: the cost of a product with the Hessian, in gradients of the same network.

A product differentiates a gradient once more, so it costs several gradients. Peers are that
gradient, by the training kernels, and PyTorch's double backward of the same layers. Each product is
complete: forward, gradient, and the gradient's derivative. In the row "graph held" the first two
are computed once and kept, as in `analysis.top_eigenvalues`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tinybnn import analysis, models, nn
from tinybnn.bench.rounds import Row, Settings, Target, compare, contender
from tinybnn.bench.torch_training import TorchTraining, Variant, variants
from tinybnn.bench.training import Network, Training
from tinybnn.kernels.machine import threads
from tinybnn.typing import Array, FloatArray

if TYPE_CHECKING:
    import torch


class Task(NamedTuple):
    """A network, and the target cost of a product in gradients."""

    network: Network
    gradients: float


def _float_mlp(rng):
    """Build 784-1024-1024-10 with ReLU and batch norm."""
    layers = []
    for inputs in (784, 1024):
        layers += [nn.Linear(inputs, 1024, rng=rng), nn.BatchNorm1d(1024), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(1024, 10, rng=rng))


_GREY = (1, 28, 28)
TASKS = (
    Task(Network("CNN for MNIST", lambda rng: models.cnn(_GREY, rng=rng), _GREY, 64, None), 4),
    Task(Network("float MLP 784-1024-1024-10", _float_mlp, (784,), 128, None), 3),
)


class Product(Training):
    """A call is a product with the Hessian of the mean loss, with batch statistics."""

    def __init__(self, network: Network, batch: int):
        super().__init__(network, batch)
        batches = [(self.x, self.target)]
        self.operator: analysis.HessianOperator = analysis.HessianOperator(
            self.model, batches, self.loss, training=True
        )
        self.vector: FloatArray = self.rng.standard_normal(self.operator.size, np.float32)

    def __call__(self) -> Array:
        return self.operator @ self.vector


class TorchProduct(TorchTraining):
    """PyTorch's product for the same weights, batch and vector, by double backward."""

    def __init__(self, ours: Product, variant: Variant, num_threads: int | None):
        super().__init__(ours, variant, num_threads)
        self.parameters: list[torch.Tensor] = list(self.network.parameters())
        self.directions: list[torch.Tensor] = [
            self._tensor(part) for part in ours.operator.split(ours.vector)
        ]

    def __call__(self) -> Array:
        grad = self._torch.autograd.grad
        value = self.loss(self.network(self.x), self.target)
        slopes = grad(value, self.parameters, create_graph=True)
        product = grad(
            slopes, self.parameters, self.directions, allow_unused=True, materialize_grads=True
        )
        return np.concatenate([part.numpy().reshape(-1) for part in product])


def curvature(settings: Settings) -> Iterator[Row]:
    """Yield the rows.

    Parameters
    ----------
    settings : Settings
    """
    for network, gradients in TASKS:
        batch = min(network.batch, 8) if settings.quick else network.batch
        product, training = Product(network, batch), Training(network, batch)
        peers = [contender("its gradient", training.compute_gradients, counts=True)]
        for variant in variants(has_images=len(network.input_shape) == 3):
            if not variant.fused:
                twin = TorchProduct(product, variant, settings.num_threads)
                peers.append(contender(f"{variant.name} product", twin))
                peers.append(contender(f"{variant.name} gradient", twin.compute_gradients))
        row = partial(
            compare, shape=(batch, *network.input_shape), settings=settings,
            target=Target("ratio", round(1 / gradients, 3)),
        )  # fmt: skip
        with threads.one_blas_thread():
            yield from row(f"{network.name}, Hessian product", ours=product, peers=peers)
            with product.operator.held():
                yield from row(f"{network.name}, graph held", ours=product, peers=peers[:1])
