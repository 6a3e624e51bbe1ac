"""Holding a packed model against the float model that it was compiled from."""

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
    """A packed model does not give what the float model gives."""


def verify(model: Module, packed: PackedModel, x: Array, batch_size: int = 256) -> int:
    """Compare every result of the packed model with the float model's, exactly.

    Two values are equal if their bits are: 0.0 and -0.0 differ. NaN equals NaN.

    Parameters
    ----------
    model : Module
        It is run in eval mode, on copies of `x`, and left in the modes that it had.
    packed : PackedModel
        Compiled from `model`.
    x : (N, *input_shape) float32

    Returns
    -------
    int
        The number of values that were compared; all were equal.

    Raises
    ------
    AssertionError
        Naming the first layer whose results differ, and where.
    """
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
        # What escaped the tape is told by another run only.
        expected = evaluate(model, part) if tape.escapes else output.data
        for run in (packed.run, packed.run_plan):  # each step by itself, then as predict does it
            with np.errstate(all="ignore"):
                for step, result in run(part):
                    if step.layout != "internal":
                        found = step.as_floats(result)
                        of_model = tape[step.call].output.data
                        compare(step, found, _in_shape(of_model, found, step), start)
                        compared += found.size if run == packed.run else 0
                compare(step, found, expected, start)
    return compared


def _in_shape(expected, found, step):
    """The bits of a flattened image have its shape in the float model only by number."""
    is_flat = step.layout != "float" and expected.size == found.size
    return expected.reshape(found.shape) if is_flat else expected


def compare(step: Step, found: Array, expected: Array, start: int = 0) -> None:
    """Raise `DifferentError` unless the result of a step is the float model's, bit for bit."""
    if found.shape != expected.shape:
        raise DifferentError(
            f"verify: {step.name} ({step.operation}) gives {found.shape}, "
            f"the float model {expected.shape}"
        )
    different = ~identical(found, expected)
    if different.any():
        index = tuple(int(i) for i in np.argwhere(different)[0])
        where = (index[0] + start, *index[1:])
        raise DifferentError(
            f"verify: {step.name} ({step.operation}) differs in {int(different.sum())} of "
            f"{different.size} values, first at {where}: packed {found[index]!r}, "
            f"float {expected[index]!r}"
        )
