"""The head: the part of a model's state that federated learning shares.

Parameters and buffers of frozen modules (`Module.freeze`) stay where they are: an encoder that all
clients were given beforehand is never sent. What is left is sorted into kinds, since not everything
may be treated as a weight:

    latent      the float behind a binary weight; a strategy decides how it travels
    real        weights and biases that are not binary
    norm        scale and shift of a batch norm
    mean        running mean of a batch norm
    variance    running variance of a batch norm
    counter     whole numbers, such as the batches that a batch norm has seen
"""

from __future__ import annotations

import hashlib
import json
from typing import NamedTuple

import numpy as np

from tinybnn import nn
from tinybnn.autograd import Tensor, no_grad

NORMS = ("average", "local", "frozen")
_KINDS = {"weight": "norm", "bias": "norm", "running_mean": "mean", "running_var": "variance"}


class Entry(NamedTuple):
    """One array of the head.

    Attributes
    ----------
    name : str
        As in `Module.state_dict`.
    kind : str
        See the top of this file.
    shape : tuple of int
    clip : float or None
        To what optimizers limit a latent weight, ±.
    """

    name: str
    kind: str
    shape: tuple
    clip: float | None = None


class Head:
    """What of a model is shared, and the way to read and write it.

    Parameters
    ----------
    model : Module
        Its floats must be float32.
    norm : 'average', 'local' or 'frozen'
        What happens to batch norms. They are averaged like other floats; or each client keeps its
        own, parameters and statistics (Li et al. 2021, FedBN); or all keep those they started
        with: the model's batch norms are frozen here.

    Attributes
    ----------
    entries : tuple of Entry
        What is shared, in the order of the model's state.
    local : tuple of str
        Names of the state that each client keeps for itself.
    digest : bytes
        8 bytes that tell this head from another: names, kinds and shapes of the entries, and the
        values of all that is frozen. Two sides whose encoders differ have different digests.
    """

    def __init__(self, model, norm="average"):
        if norm not in NORMS:
            raise ValueError(f"Head: norm must be one of {', '.join(NORMS)}, got {norm!r}")
        self._model, self.norm = model, norm
        if norm == "frozen":
            for module in model.modules():
                if _is_norm(module):
                    module.freeze()
        entries, local, frozen = [], [], hashlib.sha256()
        for path, module in model.named_modules():
            for name, array in _own_state(module):
                full = f"{path}.{name}" if path else name
                if module.frozen:
                    frozen.update(json.dumps([full, array.dtype.str, array.shape]).encode())
                    frozen.update(np.ascontiguousarray(array))
                elif norm == "local" and _is_norm(module):
                    local.append(full)
                else:
                    entries.append(_entry(full, name, array, module))
        if not entries:
            raise ValueError("Head: the model has no state that is not frozen or local")
        self.entries, self.local = tuple(entries), tuple(local)
        text = json.dumps([norm, self.entries, frozen.hexdigest()])
        self.digest = hashlib.sha256(text.encode()).digest()[:8]

    def read(self):
        """The shared state as a dict of copies."""
        state = self._model.state_dict()
        return {entry.name: np.array(state[entry.name], order="C") for entry in self.entries}

    def read_local(self):
        """The state that is not shared, as a dict of copies."""
        state = self._model.state_dict()
        return {name: np.array(state[name], order="C") for name in self.local}

    def write(self, shared, local=None):
        """Copy arrays by name into the model.

        Parameters
        ----------
        shared : dict
            An array for each entry.
        local : dict, optional
            One for each name in `local`; by default these stay as they are.
        """
        self._model.load_state_dict({**self._model.state_dict(), **shared, **(local or {})})


def _is_norm(module):
    return isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)


def _is_quantized(module):
    return getattr(module, "weight_quantizer", None) is not None


def _own_state(module):
    """(name, array) of a module's own parameters and buffers, in the order of `state_dict`."""
    for name, value in vars(module).items():
        if isinstance(value, nn.Parameter):
            yield name, value.data
    for name in module._buffer_names:
        yield name, getattr(module, name)


def _entry(full, name, array, module):
    parameter, clip = getattr(module, name), None
    if array.dtype == np.int64:
        kind = "counter"
    elif array.dtype != np.float32:
        raise ValueError(f"Head: {full} must be float32 or int64, got {array.dtype}")
    elif _is_norm(module):
        kind = _KINDS[name]
    elif isinstance(parameter, nn.LatentParameter) and _is_quantized(module):
        kind, clip = "latent", parameter.clip_value
    else:
        kind = "real"
    return Entry(full, kind, array.shape, clip)


def calibrate_norms(model, x):
    """Give each batch norm that is not frozen yet the statistics of one batch.

    Batch norms that will be frozen need statistics that fit the sums they see: mean 0 and variance
    1, with which they begin, are far from those of a sum of 200 signs. The batch must be known to
    all sides, so it is no client's: public data, or random codes.

    Parameters
    ----------
    model : Module
        Left in evaluation mode.
    x : array
        A batch of inputs.
    """
    norms = [module for module in model.modules() if _is_norm(module)]
    momenta = [module.momentum for module in norms]
    try:
        for module in norms:
            module.momentum = 1.0
        model.train()
        with no_grad():
            model(Tensor(x))
    finally:
        for module, momentum in zip(norms, momenta, strict=True):
            module.momentum = momentum
        model.eval()
