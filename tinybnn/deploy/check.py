"""Check before training which layers of a model have a packed form."""

from __future__ import annotations

import copy
import itertools
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tinybnn.autograd import default_generator
from tinybnn.deploy.compiler import examine, sample_shape
from tinybnn.deploy.operations import OPERATIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tinybnn.nn import Module
    from tinybnn.typing import Shape


@dataclass(frozen=True)
class Report:
    """The result of `check`; true if the model compiles.

    Attributes
    ----------
    input_shape : tuple of int
        The shape of one sample.
    layers : list of (str, str)
        The layers in the order in which they run, each with the steps of the packed model that
        compute it, or with the numbers of its problems.
    problems : list of str
        Operations without a packed form: where they are, and what to write instead.
    """

    input_shape: Shape
    layers: list[tuple[str, str]] = field(repr=False)
    problems: list[str]

    @property
    def ok(self) -> bool:
        """Whether `deploy.compile` accepts the model."""
        return not self.problems

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        count = len(self.problems)
        verdict = "it compiles" if self.ok else f"{count} problem{'s' * (count > 1)}"
        width = max((len(layer) for layer, _ in self.layers), default=0)
        rows = [f"  {layer:{width}}  {steps}" for layer, steps in self.layers]
        listed = [f"{i}. {problem}" for i, problem in enumerate(self.problems, start=1)]
        return "\n".join([f"samples of shape {self.input_shape}: {verdict}", *rows, *listed])


def check(model: Module, input_shape: Sequence[int]) -> Report:
    """Report all problems that keep `deploy.compile` from accepting a model.

    The result does not depend on the values of the weights, so check a model before training. It
    runs a copy of the model, if it can be copied: the model, its statistics and the random
    generators are unchanged.

    Parameters
    ----------
    model : Module
    input_shape : sequence of int
        Shape of one sample, without the batch: (C, H, W) or (F,).

    Returns
    -------
    Report
        Prints as a table of the layers; true if the model compiles.

    Raises
    ------
    Exception
        Any exception of the model's forward pass, if it does not run for this shape.

    Examples
    --------
    >>> from tinybnn import deploy, nn
    >>> print(deploy.check(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), (4,)))
    samples of shape (4,): it compiles
      0 (Linear)  linear, add
      1 (ReLU)    relu
    """
    shape = sample_shape(input_shape)
    generator = default_generator().bit_generator
    states = generator.state, np.random.get_state(), random.getstate()
    try:
        examination = examine(_copy(model), shape)
    finally:
        generator.state = states[0]
        np.random.set_state(states[1])
        random.setstate(states[2])
    rows = []
    for layer, operations in itertools.groupby(examination.operations, lambda row: row[1]):
        operations = list(operations)
        calls = {i for i, _, _ in operations}
        names = [name for _, _, names in operations for name in names if name]
        parts = [name for name in names if name in OPERATIONS] or names[:1]
        problems = enumerate(examination.problems, 1)
        parts += [f"REFUSED ({n})" for n, problem in problems if problem.call in calls]
        rows.append((layer, ", ".join(parts) or "nothing of its own"))
    return Report(shape, rows, [str(problem) for problem in examination.problems])


def _copy(model):
    """A copy of the model, or the model itself if a member cannot be copied."""
    try:
        return copy.deepcopy(model)
    except Exception:
        return model
