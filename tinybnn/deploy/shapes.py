"""Shape inference and checks for packed programs, without running them.

Before a program runs, every step is checked against its operation: kind and shape of its inputs,
dtype and shape of its arrays, type and range of its settings. A program that passes can be run, in
memory of the order of its images and weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinybnn.deploy.operations import OPERATIONS
from tinybnn.deploy.values import BITS, FLAT, FLOAT, SUMS, Value, expect_memory, expect_sizes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tinybnn.deploy.packed import Step


def infer(input_shape: Sequence[int], steps: Sequence[Step]) -> list[Value]:
    """Infer the `Value` of each step's result.

    Parameters
    ----------
    input_shape : tuple of int
    steps : sequence of Step

    Returns
    -------
    list of Value

    Raises
    ------
    ValueError
        Names the step that is not valid.
    """
    values = [Value(FLOAT, expect_sizes("input_shape", input_shape))]
    for i, step in enumerate(steps):
        inputs = [values[source + 1] for source in step.inputs]
        try:
            if step.operation not in OPERATIONS:
                raise ValueError("the operation is unknown")
            operation = OPERATIONS[step.operation]
            _expect_inputs(inputs, operation.inputs)
            _expect_names("arrays", step.arrays, operation.arrays)
            _expect_names("settings", step.settings, operation.settings)
            for name, array in step.arrays.items():
                if not array.size:
                    raise ValueError(f"{name} must not be empty, got shape {array.shape}")
            values.append(operation.shape(*inputs, **step.arrays, **step.settings))
            expect_memory("the result", values[-1].shape)
        except ValueError as error:
            raise ValueError(f"step {i} of layer {step.name} ({step.operation}): {error}") from None
    if not steps or values[-1].kind != FLOAT:
        raise ValueError(f"a program must end in floats, this one ends in {values[-1].kind}")
    return values[1:]


# The layout of a step's result -> the kind of its value.
_LAYOUTS = {"float": FLOAT, "accumulator": SUMS, "bits": BITS, "flattened bits": FLAT}


def expect_results(steps: Sequence[Step], values: Sequence[Value], calls: int) -> None:
    """Check that each step's result has its stated layout and shape, and refers to a valid call.

    Parameters
    ----------
    steps : sequence of Step
    values : list of Value
        The result of `infer` for the steps.
    calls : int
        Number of the float model's operations.

    Raises
    ------
    ValueError
        Names the step.
    """
    for i, (step, value) in enumerate(zip(steps, values, strict=True)):
        if step.layout == "internal":
            continue
        where = f"step {i} of layer {step.name} ({step.operation})"
        if _LAYOUTS.get(step.layout) != value.kind:
            raise ValueError(f"{where}: the result is {value.kind}, the layout {step.layout!r}")
        if step.shape != value.shape:
            raise ValueError(
                f"{where}: the result has the shape {value.shape}, the step says {step.shape}"
            )
        if type(step.call) is not int or not 0 <= step.call < calls:
            raise ValueError(f"{where}: call must be from 0 to {calls - 1}, got {step.call!r}")


def _expect_inputs(inputs, kinds):
    if kinds is ...:  # any number of floats
        kinds = (FLOAT,) * max(1, len(inputs))
    if len(inputs) != len(kinds):
        raise ValueError(f"expects {len(kinds)} inputs, got {len(inputs)}")
    for value, kind in zip(inputs, kinds, strict=True):
        if value.kind not in kind.split("|"):
            raise ValueError(f"expects {kind}, got {value.kind}")


def _expect_names(kind, given, expected):
    needed = {name for name in expected if not name.endswith("?")}
    allowed = {name.rstrip("?") for name in expected}
    if not needed <= set(given) <= allowed:
        raise ValueError(f"expects the {kind} {sorted(allowed)}, got {sorted(given)}")
