"""Averages of a model's weights during training; the name of the file is PyTorch's."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from tinybnn.autograd import Tensor, as_array, no_grad
from tinybnn.nn import BatchNorm1d, BatchNorm2d, Module

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    AverageFunction = Callable[[Any, Any, int], Any]


def get_ema_avg_fn(decay: float = 0.999) -> AverageFunction:
    """Return the ``avg_fn`` of an exponential average: decay * average + (1 - decay) * new."""
    if not 0 <= decay <= 1:
        raise ValueError(f"get_ema_avg_fn: decay must lie in [0, 1], got {decay!r}")

    def average(averaged, new, num_averaged):
        return decay * averaged + (1 - decay) * new

    return average


def get_swa_avg_fn() -> AverageFunction:
    """Return the ``avg_fn`` of the mean of all weights (Izmailov et al. 2018)."""

    def average(averaged, new, num_averaged):
        return averaged + (new - averaged) / (num_averaged + 1)

    return average


class AveragedModel(Module):
    """A copy of a model that holds averages of the model's weights.

    Call `update_parameters` after each step or epoch, and at the end `update_bn` if the model has
    batch norm. The latent weights of binary layers are averaged like the others; the sign of an
    average depends on how long, and how far, the weight was on either side of 0.

    Parameters
    ----------
    model : Module
    device : None
        Ignored.
    avg_fn : callable, optional
        (average, new, number averaged so far) -> average, of arrays of equal shape; default: the
        mean. To pickle the model, use a function that is defined in a module, not a lambda.
    use_buffers : bool
        Average float buffers too; by default they are copied from the model each time.

    Attributes
    ----------
    module : Module
        The copy.
    n_averaged : () int64 buffer
    """

    module: Module
    n_averaged: NDArray[np.int64]
    avg_fn: AverageFunction | None
    use_buffers: bool

    def __init__(
        self,
        model: Module,
        device: None = None,
        avg_fn: AverageFunction | None = None,
        *,
        use_buffers: bool = False,
    ) -> None:
        self.module = copy.deepcopy(model)
        self.register_buffer("n_averaged", np.zeros((), np.int64))
        self.avg_fn, self.use_buffers = avg_fn, bool(use_buffers)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        return self.module(*inputs, **options)

    def update_parameters(self, model: Module) -> None:
        """Include the model's weights in the average; the first ones are copied."""
        average = self.avg_fn or get_swa_avg_fn()
        state, learned = model.state_dict(), {name for name, _ in model.named_parameters()}
        for name, own in self.module.state_dict().items():
            new = state[name]
            is_averaged = name in learned or (self.use_buffers and own.dtype.kind == "f")
            if is_averaged and self.n_averaged:
                new = as_array(average(own, new, int(self.n_averaged)))
            own[...] = new
        self.n_averaged += 1


def update_bn(loader: Iterable[Any], model: Module, device: None = None) -> None:
    """Recompute the running statistics of all batch norms as means over the batches.

    Parameters
    ----------
    loader : iterable
        Yields x, a Tensor or array for the model, or tuples that begin with it.
    model : Module
        Its batch norms keep their momentum, and each module its mode.
    device : None
        Ignored.
    """
    norms = [m for m in model.modules() if isinstance(m, BatchNorm1d | BatchNorm2d)]
    norms = [norm for norm in norms if not norm.frozen]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.running_mean[...], norm.running_var[...], norm.num_batches_tracked[...] = 0.0, 1.0, 0
    try:
        with model.in_mode(training=True), no_grad():
            for count, batch in enumerate(loader if norms else ()):
                x = batch[0] if isinstance(batch, tuple | list) else batch
                for norm in norms:
                    norm.momentum = 1.0 / (count + 1)
                model(x if isinstance(x, Tensor) else Tensor(x))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
