"""The head: the part of a model's state that federated learning shares.

Parameters and buffers of frozen modules (`Module.freeze`) are not shared: an encoder that all
clients received beforehand is never sent. The other arrays have kinds, since not all of them may be
treated as weights:

    latent      the float behind a binary weight; a strategy decides how it travels
    real        weights and biases that are not binary
    norm        scale and shift of a batch norm
    mean        running mean of a batch norm
    variance    running variance of a batch norm
    counter     integers, such as the number of batches that a batch norm has seen
"""

from __future__ import annotations

import hashlib
import json
from typing import NamedTuple

import numpy as np

from tinybnn import nn
from tinybnn.autograd import Tensor, no_grad
from tinybnn.typing import Array, FloatArray, Shape

NORMS: tuple[str, ...] = ("average", "local", "frozen")
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
        Bound to which optimizers clip a latent weight, ±.
    """

    name: str
    kind: str
    shape: Shape
    clip: float | None = None


class Head:
    """The shared part of a model's state: its description, and access to its arrays.

    Parameters
    ----------
    model : Module
        Its floats must be float32.
    norm : 'average', 'local' or 'frozen'
        How batch norms are treated. They are averaged like other floats; or each client keeps its
        own, parameters and statistics (Li et al. 2021, FedBN); or all keep their first ones: the
        model's batch norms are frozen here.

    Attributes
    ----------
    norm : str
    entries : tuple of Entry
        The shared arrays, in the order of the model's state.
    local : tuple of str
        Names of the state that each client keeps for itself.
    digest : bytes
        8 bytes that identify the head: names, kinds and shapes of the entries, and the values of
        all frozen state. Two sides whose encoders differ have different digests.
    """

    def __init__(self, model: nn.Module, norm: str = "average") -> None:
        if norm not in NORMS:
            raise ValueError(f"Head: norm must be one of {', '.join(NORMS)}, got {norm!r}")
        self._model = model
        self.norm: str = norm
        entries, local, frozen = [], [], hashlib.sha256()
        for path, module in model.named_modules():
            is_norm = isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
            if is_norm and norm == "frozen":
                module.freeze()
            for name, array in _own_state(module):
                full = f"{path}.{name}" if path else name
                if module.frozen:
                    frozen.update(json.dumps([full, array.dtype.str, array.shape]).encode())
                    frozen.update(np.ascontiguousarray(array))
                elif is_norm and norm == "local":
                    local.append(full)
                else:
                    entries.append(_entry(full, name, array, module))
        if not entries:
            raise ValueError("Head: the model has no state that is not frozen or local")
        self.entries: tuple[Entry, ...] = tuple(entries)
        self.local: tuple[str, ...] = tuple(local)
        text = json.dumps([norm, self.entries, frozen.hexdigest()])
        self.digest: bytes = hashlib.sha256(text.encode()).digest()[:8]

    def read(self) -> dict[str, Array]:
        """Return copies of the shared arrays, by name, with the shapes of the entries."""
        return self._copies(entry.name for entry in self.entries)

    def read_local(self) -> dict[str, Array]:
        """Return copies of the arrays in `local`, by name."""
        return self._copies(self.local)

    def _copies(self, names):
        state = self._model.state_dict()
        return {name: np.array(state[name], order="C") for name in names}

    def write(self, shared: dict[str, Array], local: dict[str, Array] | None = None) -> None:
        """Copy arrays by name into the model.

        Parameters
        ----------
        shared : dict
            An array for each entry, of its shape.
        local : dict, optional
            An array for each name in `local`; by default these do not change.
        """
        self._model.load_state_dict({**self._model.state_dict(), **shared, **(local or {})})


def _own_state(module):
    """Yield (name, array) of a module's own parameters and buffers, as in `state_dict`."""
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
    elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        kind = _KINDS[name]
    elif isinstance(parameter, nn.LatentParameter) and getattr(module, "weight_quantizer", None):
        kind, clip = "latent", parameter.clip_value
    else:
        kind = "real"
    return Entry(full, kind, array.shape, clip)


def calibrate_norms(model: nn.Module, x: FloatArray) -> None:
    """Set the statistics of each batch norm that is not frozen to those of one batch.

    Batch norms that will be frozen need statistics that fit their inputs: the initial mean 0 and
    variance 1 are far from those of a sum of 200 signs. The batch must be known to all sides, so it
    cannot be a client's: use public data, or random codes.

    Parameters
    ----------
    model : Module
        Left in evaluation mode.
    x : (N, ...) float32
        A batch of inputs.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
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
