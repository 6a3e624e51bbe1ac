"""Comparison of a packed model with the float model that it was compiled from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tinybnn.deploy.trace import evaluate, trace_model
from tinybnn.kernels.machine.exact import identical

if TYPE_CHECKING:
    from tinybnn.deploy.packed import PackedModel, Step
    from tinybnn.nn import Module
    from tinybnn.typing import Array


class DifferentError(AssertionError):
    """Raised if a packed model's results differ from the float model's."""


def verify(model: Module, packed: PackedModel, x: Array, batch_size: int = 256) -> int:
    """Compare every result of the packed model with the float model's, exactly.

    Values are equal if their bits are: 0.0 and -0.0 differ. NaN equals NaN.

    Parameters
    ----------
    model : Module
        Run in eval mode, on copies of `x`; its modes are restored.
    packed : PackedModel
        Compiled from `model`.
    x : (N, *input_shape) float32
    batch_size : int
        Number of samples at a time.

    Returns
    -------
    int
        The number of compared values, all equal.

    Raises
    ------
    AssertionError
        Names the first layer whose results differ, and the position. For a model from a file of an
        older version, asks to compile again.
    """
    try:
        return _verify(model, packed, x, batch_size)
    except DifferentError as error:
        if packed.version == packed.VERSION:
            raise
        raise DifferentError(
            f"{error}; the packed model is from a file of version {packed.version}, in which batch "
            "norm was rounded otherwise: compile the model again"
        ) from None


def _verify(model, packed, x, batch_size):
    x = packed.check_input(x)
    compared = 0
    for start in range(0, max(len(x), 1), batch_size):
        part = x[start : start + batch_size]
        tape, _, output = trace_model(model, part)
        if len(tape) != packed.calls:
            raise DifferentError(
                f"verify: the model runs {len(tape)} operations, "
                f"the packed model was compiled from {packed.calls}"
            )
        # Values that escaped the tape require a run without it.
        expected = evaluate(model, part) if tape.escapes else output.data
        for run in (packed.run, packed.run_plan):  # step by step, then the plan of predict
            with np.errstate(all="ignore"):
                for step, result in run(part):
                    if step.layout != "internal":
                        floats = step.as_floats(result)
                        float_output = tape[step.call].output.data
                        compare(step, floats, _in_shape(float_output, floats, step), start)
                        compared += floats.size if run == packed.run else 0
                compare(step, floats, expected, start)
    return compared


def _in_shape(expected, floats, step):
    """Reshape the float model's output for bits of a flattened image, which keep its shape."""
    is_flat = step.layout != "float" and expected.size == floats.size
    return expected.reshape(floats.shape) if is_flat else expected


def compare(step: Step, output: Array, expected: Array, start: int = 0) -> None:
    """Raise `DifferentError` unless two arrays of a step's result are equal, bit for bit.

    Parameters
    ----------
    step : Step
    output : (N, ...) float32
        Result of the packed model.
    expected : (N, ...) float32
        Result of the float model.
    start : int
        Index of the first sample, for the error message.
    """
    if output.shape != expected.shape:
        raise DifferentError(
            f"verify: {step.name} ({step.operation}) has the shape {output.shape}, "
            f"the float model {expected.shape}"
        )
    different = ~identical(output, expected)
    if different.any():
        index = tuple(int(i) for i in np.argwhere(different)[0])
        where = (index[0] + start, *index[1:])
        raise DifferentError(
            f"verify: {step.name} ({step.operation}) differs in {int(different.sum())} of "
            f"{different.size} values, first at {where}: packed {output[index]!r}, "
            f"float {expected[index]!r}"
        )
