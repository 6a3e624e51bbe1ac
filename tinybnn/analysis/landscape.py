"""Loss landscapes: the loss along directions in parameter space, and of single flipped weights.

The loss of a binary network is a staircase in its latent weights; training follows the slope of
surrogates. `loss_landscape` evaluates both at the same points: ``"binary"``, the network itself,
whose binary layers run on packed signs (in eval mode a packed model computes the same floats), and
``"surrogate"``, the network of `quantizers.surrogates`. `flip_spectrum`, for binary networks only,
computes the exact change of the loss for each single flipped weight of a layer.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tinybnn import functional as F
from tinybnn import nn, quantizers, storage
from tinybnn.analysis.curvature import Batches, Loss, Parameters, parameters_of
from tinybnn.analysis.dynamics import binary_layers
from tinybnn.autograd import Tensor, no_grad
from tinybnn.typing import FloatArray

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

SURFACES = ("binary", "surrogate")


# -------------------------------------------------------------------------------------- directions


def parameter_vector(model: nn.Module, parameters: Parameters = None) -> FloatArray:
    """Copy the parameters to one vector (n,), each in C order, as in `CurvatureOperator`.

    Parameters
    ----------
    model : Module
    parameters : Module or sequence of Tensors, optional
        Default: all parameters that require gradients.

    Returns
    -------
    (n,) array of the parameters' dtype
    """
    variables = parameters_of("parameter_vector", model, parameters)
    return np.concatenate([p.data.reshape(-1) for p in variables])


def random_direction(
    model: nn.Module, parameters: Parameters = None, *, seed: int = 0
) -> FloatArray:
    """Draw a random direction whose filters are as long as those of the model.

    Filter normalisation (Li et al. 2018, section 4): normally distributed numbers, with each filter
    (first axis of a weight) scaled to the length of the model's filter. Parameters with a single
    axis, those of batch norms and biases, get zeros.

    Parameters
    ----------
    model, parameters
        As in `parameter_vector`.
    seed : int

    Returns
    -------
    (n,) array
    """
    rng, parts = np.random.default_rng(seed), []
    for p in parameters_of("random_direction", model, parameters):
        part = np.zeros(p.shape, p.dtype)
        if p.ndim > 1:
            part[...] = rng.standard_normal(p.shape)
            axes = tuple(range(1, p.ndim))
            own, wanted = (np.sqrt((v**2).sum(axes, keepdims=True)) for v in (part, p.data))
            part *= wanted / np.where(own == 0, 1, own)
        parts.append(part.reshape(-1))
    return np.concatenate(parts)


class Trajectory(NamedTuple):
    """The path of training in its own plane; see `trajectory`.

    Attributes
    ----------
    directions : (count, n)
        Orthonormal vectors.
    coordinates : (steps, count) float64
        Coordinates of each snapshot, with the last one as origin.
    explained : (count,) float64
        Share of the squared distances from the last snapshot that each direction explains.
    """

    directions: FloatArray
    coordinates: FloatArray
    explained: FloatArray


def trajectory(snapshots: ArrayLike | Sequence[FloatArray], count: int = 2) -> Trajectory:
    """Find the directions in which training moved most: principal components of θ_t - θ_last.

    (Li et al. 2018, section 7.)

    Parameters
    ----------
    snapshots : (steps, n) array or sequence of (n,)
        More than `count`, such as `parameter_vector` after each epoch.
    count : int

    Returns
    -------
    Trajectory
    """
    snapshots = np.asarray(snapshots)
    if snapshots.ndim != 2 or len(snapshots) <= count or count < 1:
        raise ValueError(
            f"trajectory: expects more than {count} snapshots, (steps, n), and count >= 1; got "
            f"the shape {snapshots.shape} and count={count}"
        )
    away = (snapshots - snapshots[-1]).astype(np.float64)
    # From the small Gram matrix (steps, steps), since n may be millions.
    squares, vectors = np.linalg.eigh(away @ away.T)
    squares, vectors = squares[::-1][:count], vectors[:, ::-1][:, :count]
    lengths = np.sqrt(np.maximum(squares, 0))
    if not (lengths > 1e-12 * max(lengths[0], 1e-300)).all():
        raise ValueError(f"trajectory: the snapshots do not span {count} directions")
    directions = (vectors / lengths).T @ away
    total = float((away**2).sum())
    return Trajectory(directions.astype(snapshots.dtype), away @ directions.T, squares / total)


# ------------------------------------------------------------------------------------------- grids


class Landscape(NamedTuple):
    """Losses on a grid; see `loss_landscape`.

    Attributes
    ----------
    coordinates : tuple of (P,) float64
        One axis, or two.
    losses : dict of str to (P,) or (P, Q) float64
        By surface. Point 0, 0 is the model itself.
    """

    coordinates: tuple[FloatArray, ...]
    losses: dict[str, FloatArray]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file that `load_landscape` reads."""
        _save(path, self, "")


_KIND = {"kind": "landscape", "version": 1}


def _save(path, landscape, fingerprint):
    arrays = {f"axis{i}": axis for i, axis in enumerate(landscape.coordinates)}
    arrays |= {f"loss.{name}": loss for name, loss in landscape.losses.items()}
    storage.save(path, arrays, **_KIND, metadata={"fingerprint": fingerprint})


def load_landscape(path: str | os.PathLike[str]) -> Landscape:
    """Load a `Landscape`; missing points of an incomplete one are NaN.

    Parameters
    ----------
    path : str or PathLike

    Returns
    -------
    Landscape

    Raises
    ------
    StorageError
        If the file is not a landscape.
    """
    return _load(path)[0]


def _load(path):
    arrays, metadata = storage.load(path, **_KIND)
    axes = tuple(arrays[name] for name in sorted(arrays) if name.startswith("axis"))
    losses = {name[5:]: a for name, a in arrays.items() if name.startswith("loss.")}
    return Landscape(axes, losses), metadata.get("fingerprint")


def loss_landscape(
    model: nn.Module, batches: Batches, directions: ArrayLike | Sequence[FloatArray],
    coordinates: ArrayLike | Sequence[FloatArray] | None = None, loss: Loss = F.cross_entropy,
    parameters: Parameters = None, *, surfaces: Sequence[str] = SURFACES, training: bool = False,
    checkpoint: str | os.PathLike[str] | None = None, progress: bool = False,
) -> Landscape:  # fmt: skip
    """Evaluate the loss at θ + a d, or at θ + a d + b e, on a grid.

    Parameters
    ----------
    model : Module
        Unchanged afterwards.
    batches : sequence of (x, target)
        The loss is the mean over all samples.
    directions : (n,) array, or a sequence of one or two
        Such as `random_direction`, those of a `Trajectory`, or eigenvectors of `top_eigenvalues`.
    coordinates : array, or a sequence of one for each direction, optional
        Default: 21 points from -1 to 1 on each axis.
    loss : callable
        ``loss(output, target)``, the mean over the samples of a batch.
    parameters : optional
        The parameters that the directions move, as in `parameter_vector`.
    surfaces : sequence of 'binary' and 'surrogate'
        The network itself and the network of its surrogates.
    training : bool
        Normalise by the statistics of each batch. By default batch norms keep the running
        statistics of the model, which do not fit points far from it.
    checkpoint : str or PathLike, optional
        File with the grid after each row of the first axis; a second call with the same arguments
        continues from it, and `load_landscape` reads it.
    progress : bool
        Show a progress bar on stderr.

    Returns
    -------
    Landscape

    Raises
    ------
    ValueError
        If directions and coordinates do not fit, or the checkpoint belongs to another landscape.
    """
    from tqdm import tqdm

    variables = parameters_of("loss_landscape", model, parameters)
    directions = np.atleast_2d(np.asarray(directions))
    axes = _axes(coordinates, len(directions))
    size = sum(p.numel() for p in variables)
    if directions.ndim != 2 or not 1 <= len(directions) <= 2 or directions.shape[1] != size:
        raise ValueError(
            f"loss_landscape: directions must be one or two vectors of {size} numbers, got the "
            f"shape {directions.shape}"
        )
    unknown = set(surfaces) - {*SURFACES}
    if unknown or not surfaces:
        raise ValueError(f"loss_landscape: surfaces must be some of {SURFACES}, got {surfaces!r}")
    shape = tuple(len(axis) for axis in axes)
    result = Landscape(axes, {name: np.full(shape, np.nan) for name in surfaces})
    fingerprint = ""
    if checkpoint is not None:
        fingerprint = _fingerprint(model, batches, directions, axes, training, loss)
        if os.path.exists(checkpoint):
            result = _resumed(checkpoint, result, fingerprint)
    total = int(np.prod(shape))
    done = total - int(np.isnan(result.losses[surfaces[-1]]).sum())
    bar = tqdm(total=total, initial=done, unit="point", disable=not progress, leave=False)
    with bar, _moved(model, variables) as move:
        for row in range(shape[0]):
            places = [(row, *rest) for rest in np.ndindex(shape[1:])]
            missing = [p for p in places if np.isnan(result.losses[surfaces[-1]][p])]
            for place in missing:
                move([axis[i] for axis, i in zip(axes, place, strict=True)], directions)
                for name in surfaces:
                    result.losses[name][place] = mean_loss(model, batches, loss, name, training)
                bar.update()
            if checkpoint is not None and missing:
                _save(checkpoint, result, fingerprint)
    return result


def _axes(coordinates, count):
    """Convert and check the axes of a grid, float64."""
    if coordinates is None:
        coordinates = [np.linspace(-1.0, 1.0, 21)] * count
    elif np.ndim(coordinates[0]) == 0:
        coordinates = [coordinates]
    axes = tuple(np.array(axis, np.float64) for axis in coordinates)
    if len(axes) != count or any(a.ndim != 1 or not a.size for a in axes):
        raise ValueError(
            f"loss_landscape: coordinates must be an array for each of the {count} directions, "
            f"got the shapes {[a.shape for a in axes]}"
        )
    return axes


def _fingerprint(model, batches, directions, axes, training, loss):
    """Hash everything that a landscape depends on."""
    digest = hashlib.sha256(f"{training} {getattr(loss, '__name__', '')}".encode())
    arrays = [*model.state_dict().values(), directions, *axes]
    for array in (*arrays, *(np.asarray(part) for pair in batches for part in pair)):
        digest.update(f"{array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _resumed(path, expected, fingerprint):
    """Load the landscape of a checkpoint, which must belong to the same call."""
    landscape, stored = _load(path)
    if stored != fingerprint or landscape.losses.keys() != expected.losses.keys():
        raise ValueError(
            f"{os.fspath(path)}: is of another landscape: other parameters, batches, directions or "
            "settings; choose another checkpoint, or delete it"
        )
    losses = {name: landscape.losses[name] for name in expected.losses}
    return Landscape(expected.coordinates, losses)


@contextlib.contextmanager
def _moved(model, parameters):
    """Context manager: a function that moves the parameters, which are restored at the end."""
    before = [p.data.copy() for p in parameters]

    def move(steps, directions):
        place = 0
        for p, origin in zip(parameters, before, strict=True):
            shift = sum(
                s * d[place : place + p.numel()] for s, d in zip(steps, directions, strict=True)
            )
            p.data[...] = origin + shift.reshape(p.shape)
            place += p.numel()

    try:
        yield move
    finally:
        for p, origin in zip(parameters, before, strict=True):
            p.data[...] = origin


def mean_loss(
    model: nn.Module,
    batches: Batches,
    loss: Loss = F.cross_entropy,
    surface: str = "binary",
    training: bool = False,
) -> float:
    """Compute the mean loss over all samples, of the network itself or of its surrogates.

    Parameters
    ----------
    model : Module
        Unchanged afterwards, including its mode and running statistics.
    batches : sequence of (x, target)
    loss : callable
        ``loss(output, target)``, the mean over the samples of a batch.
    surface : 'binary' or 'surrogate'
    training : bool

    Returns
    -------
    float
    """
    if surface not in SURFACES:
        raise ValueError(f"mean_loss: surface must be one of {SURFACES}, got {surface!r}")
    buffers = [(array, array.copy()) for _, array in model.named_buffers()] if training else []
    total, count = 0.0, 0
    signs = quantizers.surrogates() if surface == "surrogate" else contextlib.nullcontext()
    try:
        with model.in_mode(training=training), no_grad(), signs:
            for x, target in batches:
                total += float(loss(model(Tensor(x)), target).data) * len(x)
                count += len(x)
    finally:
        for array, before in buffers:
            array[...] = before
    if not count:
        raise ValueError("mean_loss: batches has no sample")
    return total / count


# ----------------------------------------------------------------------------------- flip spectrum

_AT_ONCE = 1 << 22  # elements of a layer's output that are kept for several flips


class FlipSpectrum(NamedTuple):
    """The change of the loss by each single flip; see `flip_spectrum`.

    Attributes
    ----------
    loss : float
        The loss without flips.
    changes : float64 array of the shape of the layer's weight
        Loss with this one sign flipped, minus `loss`.
    """

    loss: float
    changes: FloatArray


def flip_spectrum(
    model: nn.Module,
    layer: str,
    batches: Batches,
    loss: Loss = F.cross_entropy,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> FlipSpectrum:
    """Compute the exact change of the loss for each single flipped weight of a binary layer.

    In eval mode and without approximation: each value is the difference of two losses of the packed
    model. A flip changes one output channel of its layer, so the layers before it run once per
    batch, the changed channels of many flips are one product with as many filters, and the layers
    after it run on all of them together.

    Parameters
    ----------
    model : Module
        Unchanged afterwards. In a `Sequential`, only the children after the layer's own run again.
    layer : str
        The path of a `BinaryLinear` or `BinaryConv2d` whose weights are signs, such as "3".
    batches : sequence of (x, target)
        The loss is the mean over all samples.
    loss : callable
        ``loss(output, target)``, the mean over the samples of a batch.
    checkpoint : str or PathLike, optional
        File with the result after each filter; a second call with the same arguments continues from
        it.
    progress : bool
        Show a progress bar on stderr.

    Returns
    -------
    FlipSpectrum

    Raises
    ------
    ValueError
        If the layer's weights are not signs, it runs more than once, or the checkpoint belongs to
        another model.
    """
    from tqdm import tqdm

    module = _sign_layer(model, layer)
    weight = module.weight.data
    rows = weight.reshape(len(weight), -1)
    sums, state = np.zeros(rows.shape), {"batch": 0, "filter": 0, "samples": 0, "loss": 0.0}
    fingerprint = ""
    if checkpoint is not None:
        fingerprint = _fingerprint(model, batches, np.array([*layer.encode()]), (), False, loss)
        if os.path.exists(checkpoint):
            sums, state = _resumed_flips(checkpoint, fingerprint)
    bar = tqdm(unit="filter", disable=not progress, leave=False, initial=state["filter"])
    with bar, model.in_mode(training=False), no_grad():
        for number, (x, target) in enumerate(batches):
            if number < state["batch"]:
                continue
            flips = _Flips(model, layer, module, x)
            if state["filter"] == 0:
                state["loss"] += float(loss(model(Tensor(x)), target).data) * len(x)
                state["samples"] += len(x)
            for i in range(state["filter"], len(rows)):
                for columns, outputs in flips.of_filter(i):
                    for column, output in zip(columns, outputs, strict=True):
                        value = loss(Tensor(output), target)
                        sums[i, column] += float(value.data) * len(x)
                bar.update()
                state["filter"] = i + 1
                if checkpoint is not None:
                    _save_flips(checkpoint, sums, state, fingerprint)
            state["batch"], state["filter"] = number + 1, 0
    if not state["samples"]:
        raise ValueError("flip_spectrum: batches has no sample")
    base = state["loss"] / state["samples"]
    return FlipSpectrum(base, (sums / state["samples"] - base).reshape(weight.shape))


def _sign_layer(model, path):
    module = binary_layers(model).get(path)
    kinds = nn.BinaryLinear | nn.BinaryConv2d
    if not isinstance(module, kinds) or not module.weight_quantizer.levels().is_sign:
        raise ValueError(
            f"flip_spectrum: layer must be the path of a BinaryLinear or BinaryConv2d whose "
            f"weights are signs; the model has {[*binary_layers(model)]}, got {path!r}"
        )
    return module


def _save_flips(path, sums, state, fingerprint):
    metadata = state | {"fingerprint": fingerprint}
    storage.save(path, {"sums": sums}, kind="flip-spectrum", version=1, metadata=metadata)


def _resumed_flips(path, fingerprint):
    arrays, state = storage.load(path, kind="flip-spectrum", version=1)
    if state.pop("fingerprint") != fingerprint:
        raise ValueError(
            f"{os.fspath(path)}: is of another spectrum: another model, layer or batches; choose "
            "another checkpoint, or delete it"
        )
    return arrays["sums"], state


class _Flips:
    """Outputs of a model for all flips of a layer's weights, for one batch."""

    def __init__(self, model, path, layer, x):
        self.layer, self.model, self.h, self.rest = layer, model, Tensor(x), None
        if isinstance(model, nn.Sequential):
            first, *below = path.split(".")
            before, self.model = model[: int(first)], model[int(first) :]
            self.h = before(self.h)
            if not below:
                self.rest = model[int(first) + 1 :]
        inputs = []

        def noted(x):
            inputs.append(x)
            return type(layer).forward(layer, x)

        with _replaced(layer, noted):
            self.model(self.h)
        if len(inputs) != 1:
            raise ValueError(
                f"flip_spectrum: layer {path!r} runs {len(inputs)} times in a forward pass; it "
                "must run once"
            )
        self.x = inputs[0].data
        self.sums = _channels_last(self._product(self.x, layer.weight.data))  # (N, ..., O)

    def _product(self, x, weight, groups=None):
        layer = self.layer
        product, options = F.binary_linear, {}
        if isinstance(layer, nn.BinaryConv2d):
            product = F.binary_conv2d
            options = {
                "stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation,
                "groups": layer.groups if groups is None else groups,
                "padding_mode": layer.padding_mode,
            }  # fmt: skip
        quantizers = layer.input_quantizer, layer.weight_quantizer
        return product(x, weight, *quantizers, fixed_order=True, **options)

    def of_filter(self, i):
        """Yield columns of the filter (array of int) and the model's output for each, in chunks."""
        weight, x = self.layer.weight.data, self.x
        if isinstance(self.layer, nn.BinaryConv2d):
            inputs = weight.shape[1]
            group = i // (len(weight) // self.layer.groups)
            x = x[:, group * inputs : (group + 1) * inputs]
        row = weight[i].reshape(-1)
        step = max(1, _AT_ONCE // self.sums.size)
        for start in range(0, row.size, step):
            columns = np.arange(start, min(start + step, row.size))
            filters = np.repeat(row[None], len(columns), 0)
            signs = quantizers.sign(row[columns])
            # With the same magnitude, so that a scale stays: only the sign changes.
            filters[np.arange(len(columns)), columns] = -signs * np.maximum(
                np.abs(row[columns]), np.finfo(row.dtype).tiny
            )
            filters = filters.reshape(len(columns), *weight.shape[1:])
            changed = _channels_last(self._product(x, filters, 1))  # (N, ..., flips)
            yield columns, self._outputs(i, changed)

    def _outputs(self, i, changed):
        """Compute the outputs (flips, N, ...) of the model with channel i replaced."""
        flips = changed.shape[-1]
        sums = np.repeat(self.sums[None], flips, 0)  # (flips, N, ..., O)
        sums[..., i] = np.moveaxis(changed, -1, 0)
        sums = sums.reshape(-1, *self.sums.shape[1:])
        y = self.layer._scaled(Tensor(np.moveaxis(sums, -1, 1)))
        if self.rest is not None:
            output = self.rest(y)
        else:
            many = np.repeat(self.h.data[None], flips, 0).reshape(-1, *self.h.shape[1:])
            with _replaced(self.layer, lambda x: y):
                output = self.model(Tensor(many))
        return output.data.reshape(flips, -1, *output.shape[1:])


def _channels_last(x):
    """Move channels last: (N, O) or (N, O, H, W) -> (N, O) or (N, H, W, O) array."""
    return np.ascontiguousarray(np.moveaxis(np.asarray(x), 1, -1))


@contextlib.contextmanager
def _replaced(layer, forward):
    """Context manager: replace the forward method of a layer."""
    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward
