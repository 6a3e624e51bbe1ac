"""Checks of code that must be exact: equal bits, without tolerance."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tinybnn import deploy, nn, optim
from tinybnn.autograd import Tensor, as_array, no_grad
from tinybnn.kernels.machine.exact import identical
from tinybnn.kernels.signs import bits

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tinybnn.typing import TensorLike

__all__ = ["assert_identical", "check_packed", "quiet", "randomize", "train_briefly"]


def assert_identical(actual: TensorLike, expected: TensorLike, name: str = "array") -> None:
    """Check that two arrays have the same shape, kind of dtype and values, without tolerance.

    0.0 and -0.0 differ, since a division distinguishes them; NaN equals NaN.

    Parameters
    ----------
    actual, expected : array_like or Tensor, of any shape
    name : str
        Name of the arrays in the error message.

    Raises
    ------
    AssertionError
        With the number of differing values and the first of them.

    Examples
    --------
    >>> assert_identical(np.array([1.0, 2.0]), np.array([1.0, 2.5]), "logits")
    Traceback (most recent call last):
    AssertionError: logits: 1 of 2 values differ, first at (1,): 2.0, expected 2.5
    """
    actual, expected = np.asarray(as_array(actual)), np.asarray(as_array(expected))
    if actual.shape != expected.shape:
        raise AssertionError(f"{name}: shape {actual.shape}, expected {expected.shape}")
    if actual.dtype.kind != expected.dtype.kind:
        raise AssertionError(f"{name}: dtype {actual.dtype}, expected {expected.dtype}")
    different = ~identical(actual, expected)
    count = int(np.count_nonzero(different))
    if count:
        first = np.unravel_index(int(np.argmax(different)), different.shape)
        raise AssertionError(
            f"{name}: {count} of {actual.size} values differ, "
            f"first at {tuple(int(i) for i in first)}: {actual[first]}, expected {expected[first]}"
        )


_SPECIAL = (np.nan, np.inf, -np.inf, -0.0, 3e38, 1e-45)


def randomize(model: nn.Module, rng: np.random.Generator, extreme: bool = False) -> nn.Module:
    """Give a model difficult parameters and statistics, as training might leave them or worse.

    Batch norms get factors of either sign and 0, sums of signs that equal thresholds exactly,
    negative slopes, and shifts of 0.0 and -0.0.

    Parameters
    ----------
    model : Module
        Changed in place.
    rng : numpy.random.Generator
    extreme : bool
        Put NaN, infinities, very large and very small numbers into the statistics.

    Returns
    -------
    Module
        The same model.
    """

    def fill(array, values):
        array[...] = values
        if extreme and array.size and rng.random() < 0.5:
            array.flat[rng.integers(array.size)] = rng.choice(_SPECIAL)

    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            n = module.num_features
            if module.weight is not None:
                fill(module.weight.data, rng.normal(size=n) * rng.choice([0.0, -0.0, 1.0, 1.0], n))
                fill(module.bias.data, rng.normal(size=n) * rng.choice([0.0, -0.0, 1.0], n))
            fill(module.running_mean, rng.integers(-8, 9, n) / 2)
            fill(module.running_var, rng.choice([0.0, 0.25, 1.0, 7.3, 40.0], n))
        elif isinstance(module, nn.RSign | nn.RPReLU | nn.Maxout | nn.PReLU):
            for parameter in module.parameters():
                signs = rng.choice([-1.0, 1.0], parameter.shape)
                fill(parameter.data, rng.integers(0, 7, parameter.shape) / 4 * signs)
        elif isinstance(module, nn.AdaBinConv2d):
            fill(module.input_scale.data, rng.choice([-1.0, 0.3, 1.0, 2.5], 1))
            fill(module.input_offset.data, rng.choice([-0.7, 0.0, 0.1], 1))
        elif isinstance(getattr(module, "scale", None), nn.Parameter):
            fill(module.scale.data, rng.normal(size=module.scale.shape))
    return model


def train_briefly(
    model: nn.Module, input_shape: Sequence[int], steps: int, rng: np.random.Generator
) -> nn.Module:
    """Train a model for some steps of Adam towards small outputs for random inputs.

    Parameters
    ----------
    model : Module
        Changed in place; left in training mode if there are any steps.
    input_shape : sequence of int
        Shape of one sample.
    steps : int
    rng : numpy.random.Generator

    Returns
    -------
    Module
        The same model.
    """
    parameters = model.train().parameters() if steps else []
    adam = optim.Adam(parameters, lr=0.03) if parameters else None
    for _ in range(steps if parameters else 0):
        output = model(Tensor(_inputs(rng, (5, *input_shape))))
        if output.requires_grad:
            adam.zero_grad()
            (output * output).mean().backward()
            adam.step()
    return model


def check_packed(
    model: nn.Module,
    input_shape: Sequence[int],
    rng: np.random.Generator | None = None,
    extreme: bool = False,
) -> deploy.PackedModel:
    """Compile a model, save it, load it, and compare the bits of predictions.

    The check covers batches of several sizes in blocks of odd sizes, one thread and two, several
    memory layouts, each step of the packed model separately, and the model loaded from its file.

    Parameters
    ----------
    model : Module
    input_shape : sequence of int
        Shape of one sample.
    rng : numpy.random.Generator, optional
        Source of the inputs.
    extreme : bool
        Put NaN, infinities, very large and very small numbers into the inputs.

    Returns
    -------
    PackedModel

    Raises
    ------
    deploy.CompileError
        If the model is refused.
    AssertionError
        If anything differs.

    Examples
    --------
    >>> from tinybnn import nn
    >>> len(check_packed(nn.Sequential(nn.BinaryLinear(9, 70), nn.BatchNorm1d(70)), (9,)).steps)
    4
    """
    rng = np.random.default_rng(0) if rng is None else rng
    before = _state(model)
    packed = deploy.compile(model, input_shape)
    if _state(model) != before:
        raise AssertionError("check_packed: compile has changed the model")
    with tempfile.TemporaryDirectory() as folder:
        path, again = Path(folder) / "model.npz", Path(folder) / "again.npz"
        packed.save(path)
        loaded = deploy.PackedModel.load(path)
        loaded.save(again)
        if path.read_bytes() != again.read_bytes():
            raise AssertionError("check_packed: a loaded model is saved as different bytes")
    for samples in (1, 3, 7):
        x = _inputs(rng, (samples, *input_shape), extreme)
        with quiet():
            expected = _evaluated(model, x)
            deploy.verify(model, packed, x)
            for name, one in (("packed", packed), ("loaded", loaded)):
                _check_predictions(name, one, x, expected)
    x = _inputs(rng, (65, *input_shape), extreme)  # several blocks of any size
    with quiet():
        expected = _evaluated(model, x)
        assert_identical(packed.predict(x), expected, "packed model, 65 samples")
        assert_identical(_evaluated(model, x[-1:]), expected[-1:], "model, one sample of 65")
    return packed


def _evaluated(model, x):
    """Return the output of a model in eval mode for a copy of x."""
    with no_grad():
        return model.eval()(Tensor(x.copy())).data


def _check_predictions(name, packed, x, expected):
    assert_identical(packed.predict(x), expected, f"{name} model, {len(x)} samples")
    out = np.empty_like(expected)
    packed.predict(x, batch_size=3, threads=1, out=out)
    assert_identical(out, expected, f"{name} model, blocks of 3, one thread")
    for layout, array in _layouts(x):
        output = packed.predict(array, batch_size=2, threads=2)
        assert_identical(
            output, expected, f"{name} model, {layout} input, blocks of 2, two threads"
        )
    if all(step.operation == "pack" for step in packed.steps if -1 in step.inputs):
        words = bits.pack(x.transpose(0, 2, 3, 1) if x.ndim == 4 else x)
        assert_identical(packed.predict_packed(words), expected, f"{name} model, packed input")


def _layouts(x):
    """Yield the same numbers in other memory layouts."""
    yield "Fortran", np.asfortranarray(x)
    wide = np.repeat(x, 2, axis=-1)
    yield "sliced", wide[..., ::2]
    yield "reversed", x[:, ::-1].copy()[:, ::-1]
    fixed = x.view()
    fixed.flags.writeable = False
    yield "read-only", fixed
    if x.ndim == 4:
        yield "channels-last", x.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)


def _inputs(rng, shape, extreme=False):
    """Draw floats with ties and zeros of both signs among them."""
    x = rng.standard_normal(shape).astype(np.float32)
    ties = rng.integers(-4, 5, shape).astype(np.float32) / 2
    x = np.where(rng.random(shape) < 0.3, ties, x)
    x = np.where(rng.random(shape) < 0.2, np.copysign(np.float32(0), x), x)
    if extreme:
        special = rng.choice(np.array(_SPECIAL, np.float32), shape)
        x = np.where(rng.random(shape) < 0.05, special, x)
    return x


def _state(model):
    """Return the bytes of all arrays of a model, and its modes."""
    arrays = {name: array.tobytes() for name, array in model.state_dict().items()}
    return arrays, [module.training for module in model.modules()]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Context manager: suppress warnings, since infinities and NaN are part of the check."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield
