"""Averages of a model's weights along its training; the name of the file is PyTorch's."""

from __future__ import annotations

import copy

import numpy as np

from tinybnn.autograd import Tensor, as_array, no_grad
from tinybnn.nn import BatchNorm1d, BatchNorm2d, Module


def get_ema_avg_fn(decay=0.999):
    """The ``avg_fn`` of an exponential moving average: decay average + (1 - decay) new."""
    if not 0 <= decay <= 1:
        raise ValueError(f"get_ema_avg_fn: decay must lie in [0, 1], got {decay!r}")

    def average(averaged, new, num_averaged):
        return decay * averaged + (1 - decay) * new

    return average


def get_swa_avg_fn():
    """The ``avg_fn`` of an equal average (Izmailov et al. 2018)."""

    def average(averaged, new, num_averaged):
        return averaged + (new - averaged) / (num_averaged + 1)

    return average


class AveragedModel(Module):
    """A copy of a model whose weights are averages of the model's.

    Call `update_parameters` after each step or epoch, and at the end `update_bn` where the model
    has batch norm. The latent weight of a binary layer is averaged as the others are; its sign then
    depends on how long, and how far, it was on either side of 0.

    Parameters
    ----------
    model : Module
    device : None
        Without effect.
    avg_fn : callable, optional
        (average, new, number averaged so far) -> average, of arrays; by default the equal
        average. To pickle the model, give a function that is defined in a module, not a lambda.
    use_buffers : bool
        Average buffers of floats too; by default they are copied from the model each time.

    Attributes
    ----------
    module : Module
        The copy.
    n_averaged : int64 buffer
    """

    def __init__(self, model, device=None, avg_fn=None, *, use_buffers=False):
        self.module = copy.deepcopy(model)
        self.register_buffer("n_averaged", np.zeros((), np.int64))
        self.avg_fn, self.use_buffers = avg_fn, bool(use_buffers)

    def forward(self, *inputs, **options):
        return self.module(*inputs, **options)

    def update_parameters(self, model):
        """Take the model's weights into the average; the first ones are copied."""
        average = self.avg_fn or get_swa_avg_fn()
        theirs, learned = model.state_dict(), {name for name, _ in model.named_parameters()}
        for name, own in self.module.state_dict().items():
            new = theirs[name]
            is_averaged = name in learned or (self.use_buffers and own.dtype.kind == "f")
            if is_averaged and self.n_averaged:
                new = as_array(average(own, new, int(self.n_averaged)))
            own[...] = new
        self.n_averaged += 1


def update_bn(loader, model, device=None):
    """Compute the running statistics of all batch norms anew, as means over the batches.

    Parameters
    ----------
    loader : iterable
        Yields x, or tuples that begin with it.
    model : Module
        Its batch norms keep their momentum; each module is left in the mode that it had.
    device : None
        Without effect.
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
