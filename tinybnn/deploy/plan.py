"""How the steps of a packed program are carried out.

`Step.run` says what a step means, one at a time; it is the reference. A plan gives the same results
faster: weights are laid out once for the kernels, a binary layer whose sums are only compared with
thresholds gives bits without writing the sums, and depth-wise layers run on bit planes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tinybnn.deploy.shapes import FLOAT, Value, infer
from tinybnn.kernels import bits, depthwise, xnor


@dataclass(frozen=True)
class Task:
    """One call that computes the result of a step, perhaps passing over steps before it.

    Attributes
    ----------
    step : int
        The step whose result this is.
    inputs : tuple of int
        Steps whose results come in; -1 is the model's input.
    function : callable
    """

    step: int
    inputs: tuple
    function: Callable


def make_plan(input_shape, steps):
    """The tasks that carry out a program, in order.

    Parameters
    ----------
    input_shape : tuple of int
    steps : sequence of Step

    Returns
    -------
    list of Task
    """
    values = {-1: Value(FLOAT, tuple(input_shape)), **dict(enumerate(infer(input_shape, steps)))}
    readers = {i: [] for i in values}
    for i, step in enumerate(steps):
        for source in step.inputs:
            readers[source].append(i)
    tasks, done = [], set()
    for i, step in enumerate(steps):
        if i in done:
            continue
        last, function = i, step.run
        if step.operation in ("xnor_linear", "xnor_conv2d"):
            after = readers[i]
            follower = steps[after[0]] if len(after) == 1 else None
            if follower is not None and follower.operation == "threshold":
                last = after[0]
                done.add(last)
            else:
                follower = None
            only_floats = all(steps[j].operation == "to_float" for j in after)
            function = _binary_layer(step, values[step.inputs[0]], follower, only_floats)
        tasks.append(Task(last, step.inputs, function))
    return tasks


def _binary_layer(step, value, threshold, only_floats):
    """The product or convolution of bits with prepared weights; bits where `threshold` is given."""
    weight, comparison = step.arrays["weight"], {}
    if threshold is not None:
        comparison = {
            "thresholds": threshold.arrays["thresholds"].astype(np.int32),
            "flip": threshold.arrays["flip"],
        }
    if step.operation == "xnor_linear":
        rows = weight.reshape(len(weight), -1)
        prepared = xnor.prepare_matmul(rows, step.settings["count"], **comparison)
        return lambda x: xnor.run(prepared, x)
    settings = dict(step.settings)
    channels, groups = settings.pop("channels"), settings.pop("groups")
    size, geometry = value.shape[1:], {k: _tuple(v) for k, v in settings.items()}
    taps = weight.shape[1] * weight.shape[2]
    if groups == channels == len(weight) and taps <= depthwise.MAX_TAPS:
        signs = bits.unpack(weight, 1)[..., 0]  # (C, kh, kw)
        words = bits.pack(signs.transpose(1, 2, 0))
        plan = depthwise.prepare(words, channels, size, **geometry, **comparison)
        if threshold is not None:
            return lambda x: depthwise.conv2d_bits(plan, x)
        dtype = np.int8 if only_floats else np.int32
        return lambda x: depthwise.conv2d_sums(plan, x, dtype)
    prepared = xnor.prepare_conv2d(weight, channels, size, groups=groups, **geometry, **comparison)
    return lambda x: xnor.run(prepared, x)


def _tuple(value):
    return tuple(value) if isinstance(value, list) else value
