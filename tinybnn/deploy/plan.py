"""Planning of fast kernel calls for the steps of a packed program.

`Step.run` defines the steps one at a time and is the reference. A plan computes the same results
with fewer passes over memory:

- Constant subexpressions (AdaBin's sums over ones, which depend on the border only) are computed
  once.
- A binary layer whose sums are only compared with thresholds outputs bits; no sums are written.
- Consecutive elementwise operations on floats are fused, for a few pixels at a time, and so is the
  product before them: sums, scale, batch norm, residual, activation and the next layer's bits in
  one pass.
- Weights are arranged for the kernels once.

A plan is a list of `Task`, each one kernel call that writes to given buffers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tinybnn.deploy.operations import OPERATIONS, POOLING, filled, in_rows
from tinybnn.deploy.values import BITS, FLAT, FLOAT, SUMS, Value, nhwc
from tinybnn.kernels.floats import fused, ordered, ordered_matmul, pointwise
from tinybnn.kernels.machine.layout import for_kernel
from tinybnn.kernels.signs import bits, depthwise, pooling, thresholds, xnor
from tinybnn.kernels.training import channel_order, float_pooling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tinybnn.deploy.packed import Step
    from tinybnn.typing import Shape


@dataclass(frozen=True)
class Buffer:
    """Memory for a result: its dtype, and the shape of a sample in memory, (H, W, C) or (F,)."""

    dtype: type
    shape: Shape

    @property
    def nbytes(self) -> int:
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)


@dataclass(frozen=True)
class Task:
    """One call that computes the results of some steps.

    Attributes
    ----------
    steps : tuple of int
        The steps whose results it outputs, in order.
    covers : tuple of int
        All steps that it computes.
    inputs : tuple of int
        The steps whose results it reads; -1 is the model's input.
    function : callable
        ``function(inputs, outputs, memory)`` returns a callable that writes to the outputs, arrays
        with the layout of the buffers; it can be called again for new values in the same arrays.
        Without buffers ``function(*inputs)`` returns the result of its only step.
    buffers : tuple of Buffer
        One for each of ``steps``, or none.
    memory : callable
        Number of samples -> number of words of scratch memory.
    products : int
        Number of products of signs for each sample.
    """

    steps: tuple[int, ...]
    covers: tuple[int, ...]
    inputs: tuple[int, ...]
    function: Callable[..., Any]
    buffers: tuple[Buffer, ...] = ()
    memory: Callable[[int], int] = lambda samples: 0
    products: int = 0

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("Task: a part of a plan cannot be copied; copy the PackedModel")


def make_plan(input_shape: Shape, steps: Sequence[Step], values: Sequence[Value]) -> list[Task]:
    """Plan the tasks that run a program, in order.

    Parameters
    ----------
    input_shape : tuple of int
    steps : sequence of Step
    values : sequence of Value
        The result of `shapes.infer` for the steps.

    Returns
    -------
    list of Task
    """
    return _Planner(input_shape, steps, values).tasks()


_BINARY = ("xnor_linear", "xnor_conv2d", "ternary_linear", "ternary_conv2d")
_PRODUCTS = (*_BINARY, "conv2d")


class _Planner:
    def __init__(self, input_shape, steps, values):
        self.steps = steps
        self.values = {-1: Value(FLOAT, input_shape), **dict(enumerate(values))}
        self.constants = {}  # step -> its result, if equal for all inputs
        for i, step in enumerate(steps[:-1]):
            is_constant = step.operation == "ones" or set(step.inputs) <= set(self.constants)
            if is_constant and step.inputs:
                sources = [self.constants.get(source) for source in step.inputs]
                self.constants[i] = step.run(*sources)
        self.readers = {i: [] for i in self.values}
        for i, step in enumerate(steps):
            if i not in self.constants:
                for source in step.inputs:
                    self.readers[source].append(i)
        self.ancestors = {-1: 0}  # step -> set of steps, as bits of an int
        for i, step in enumerate(steps):
            self.ancestors[i] = 1 << i
            for source in step.inputs:
                self.ancestors[i] |= self.ancestors[source]

    def tasks(self):
        """The tasks that the last step needs, in topological order."""
        made = {}  # step -> the task that outputs its result
        for members in self.regions():
            if (task := self.region_task(members)) is not None:
                made |= dict.fromkeys(task.steps, task)
        order, stack = [], [len(self.steps) - 1]
        while stack:
            if stack[-1] not in made:
                made[stack[-1]] = self.step_task(stack[-1])
            task = made[stack[-1]]
            missing = [s for s in task.inputs if s >= 0 and made.get(s) not in order]
            if task in order or not missing:
                stack.pop()
                if task not in order:
                    order.append(task)
            else:
                stack.extend(missing)
        return order

    # -------------------------------------------------------------------------------------- regions

    def regions(self):
        """Sets of elementwise steps that one pointwise program can compute, each in order."""
        region_of = {}
        for i, step in enumerate(self.steps):
            if not self.is_elementwise(i):
                continue
            members = {i}
            # The latest input first: it can be joined if one branch depends on the other.
            for source in sorted(set(step.inputs), reverse=True):
                if source in region_of and self.values[source].shape == self.values[i].shape:
                    joined = members | region_of[source]
                    if self.is_convex(joined):
                        members = joined
            for member in members:
                region_of[member] = members
        return [sorted(members) for members in {id(m): m for m in region_of.values()}.values()]

    def is_convex(self, members):
        """Whether no outside input of a region depends on the region."""
        inside = sum(1 << member for member in members)
        return not any(
            self.ancestors[source] & inside
            for member in members
            for source in self.steps[member].inputs
            if source not in members
        )

    def is_elementwise(self, i):
        step, value = self.steps[i], self.values[i]
        has_form = OPERATIONS[step.operation].program is not None
        if not has_form or i in self.constants or value.single:
            return False
        if len(value.shape) not in (1, 3) or 0 in value.shape:
            return False
        if step.operation == "div" and ("left" in step.arrays or step.inputs[0] in self.constants):
            return False
        return all(
            source in self.constants
            or self.values[source].shape == value.shape
            or self.pixel_sums(source, value.shape) is not None
            for source in step.inputs
        )

    def pixel_sums(self, i, shape):
        """The step of integer sums, one a pixel, that step i converts to floats; else None."""
        if i < 0 or i in self.constants or self.steps[i].operation != "to_float":
            return None
        is_map = len(shape) == 3 and self.values[i].shape == (1, *shape[1:])
        return self.steps[i].inputs[0] if is_map and shape[0] > 1 else None

    def region_task(self, members):
        """A pointwise program for a region; None if it has too many inputs or outputs."""
        if [self.steps[i].operation for i in members] == ["pack"]:
            return None  # bits.pack is faster
        inside, last = set(members), len(self.steps) - 1
        shape = self.values[members[-1]].shape
        read = []  # the program's inputs: (step, kind)
        for i in members:
            for source in self.steps[i].inputs:
                if source not in inside and source not in self.constants:
                    read.append(self.program_input(source, shape))
        read = list(dict.fromkeys(read))
        sources, kinds = [source for source, _ in read], [kind for _, kind in read]
        results = [i for i in members if i == last or set(self.readers[i]) - inside]
        outputs = ["bits" if self.steps[i].operation == "pack" else "floats" for i in results]
        limits = (outputs, pointwise.MOST_OUTPUTS), (kinds, pointwise.MOST_INPUTS)
        is_too_much = any(used.count(kind) > most for used, most in limits for kind in used)
        if is_too_much or not results:
            return None
        number = {key: k for k, key in enumerate(read)}
        operations, value_of = [], {}
        for i in members:
            value_of[i] = self.translate(i, shape, number, operations, value_of)
        program = pointwise.prepare(
            _in_memory(shape), kinds, operations,
            [(kind, value_of[i]) for kind, i in zip(outputs, results, strict=True)],
        )  # fmt: skip
        producers, covers, inputs = self.producers(sources, kinds, inside)
        layer = fused.prepare(producers, program)
        buffers = tuple(self.buffer(i) for i in results)

        def bind(inputs, outputs, memory):
            return fused.bind(layer, [_in_order(x) for x in inputs], outputs, memory)

        return Task(
            tuple(results), (*covers, *members), tuple(inputs), bind, buffers,
            lambda samples: layer.memory_words, layer.products,
        )  # fmt: skip

    def program_input(self, source, shape):
        """The input of a program of this shape for a step: (step to read, kind)."""
        pixels = self.pixel_sums(source, shape)
        if pixels is not None:
            return pixels, "pixels"
        return source, "sums" if self.values[source].kind == SUMS else "floats"

    def translate(self, i, shape, number, operations, value_of):
        """Append the operations of a step, and return the number of its value."""
        step = self.steps[i]

        def operand(source):
            if source in self.constants:
                return _constant(self.constants[source], shape)
            if source in value_of:
                return value_of[source]
            return number[self.program_input(source, shape)]

        def emit(name, left, *right):
            operations.append((name, left, *right))
            return len(number) + len(operations) - 1

        def constant(array):
            return _constant(np.asarray(array, np.float32), shape)

        operands = [operand(source) for source in step.inputs]
        return OPERATIONS[step.operation].program(emit, constant, operands, step)

    # ------------------------------------------------------------------------------------- products

    def producers(self, sources, kinds, inside):
        """The products that can be fused into a program: no other step reads their results.

        Returns
        -------
        producers : list
            For each input of the program its prepared product, or None for an array.
        covers : list of int
            The steps of these products.
        inputs : list of int
            The steps whose results are read.
        """
        fusable = {
            k: self.prepared(source, None)
            for k, (source, kind) in enumerate(zip(sources, kinds, strict=True))
            if self.is_producer(source, kind, inside)
        }
        product_kinds = [prepared.kind for prepared in fusable.values()]
        if product_kinds:  # one kernel fuses products of one kind; others remain separate tasks
            kind = max(product_kinds, key=product_kinds.count)
            most = 1 if kind == "float" else fused.MOST_PRODUCERS
            chosen = [k for k in fusable if fusable[k].kind == kind][:most]
            fusable = {k: fusable[k] for k in chosen}
        producers = [fusable.get(k) for k in range(len(sources))]
        covers = [sources[k] for k in fusable]
        inputs = [
            self.steps[source].inputs[0] if k in fusable else source
            for k, source in enumerate(sources)
        ]
        return producers, covers, inputs

    def is_producer(self, source, kind, inside):
        if source < 0 or self.steps[source].operation not in _PRODUCTS:
            return False
        readers = set(self.readers[source])
        if kind == "pixels":  # read through a step that converts them to floats
            (reader, *more) = readers
            return not more and set(self.readers[reader]) <= inside
        return readers <= inside

    def prepared(self, i, threshold):
        """The prepared weights of a product, with those of a threshold step if it has one."""
        step, value = self.steps[i], self.values[self.steps[i].inputs[0]]
        weight, mask = step.arrays["weight"], step.arrays.get("mask")
        comparison = {} if threshold is None else _comparison(threshold)
        if step.operation in ("xnor_linear", "ternary_linear"):
            weight, mask = in_rows(**step.arrays)
            return xnor.prepare_matmul(weight, **step.settings, mask=mask, **comparison)
        size = value.shape[1:]
        geometry = dict(step.settings)
        if step.operation == "conv2d":
            return ordered.prepare_conv2d(weight, size, **geometry)
        channels, groups = geometry.pop("channels"), geometry.pop("groups")
        taps = weight.shape[1] * weight.shape[2]
        if mask is None and groups == channels == len(weight) and taps <= depthwise.MAX_TAPS:
            signs = bits.unpack(weight, 1)[..., 0]  # (C, kh, kw)
            words = bits.pack(signs.transpose(1, 2, 0))
            return depthwise.prepare(words, channels, size, **geometry, **comparison)
        return xnor.prepare_conv2d(
            weight, channels, size, groups=groups, mask=mask, **geometry, **comparison
        )

    # ---------------------------------------------------------------------------------- other steps

    def buffer(self, i):
        """The buffer of a step's result."""
        value = self.values[i]
        *pixels, channels = _in_memory(value.shape)
        if value.kind == FLAT:
            return Buffer(np.uint64, (math.prod(pixels) * bits.words_for(channels),))
        if value.kind == BITS:
            return Buffer(np.uint64, (*pixels, bits.words_for(channels)))
        return Buffer(np.int32 if value.kind == SUMS else np.float32, (*pixels, channels))

    def step_task(self, i):
        """A task that ends with step i, outside of all regions."""
        step, source = self.steps[i], self.steps[i].inputs[0]
        if step.operation in _PRODUCTS:
            return self.product_task(i, (i,), None)
        if step.operation == "threshold":
            is_alone = source not in self.constants and self.readers[source] == [i]
            if is_alone and self.steps[source].operation in _BINARY:
                return self.product_task(source, (source, i), step)
            comparison = _comparison(step)
            return self.task(
                i, lambda x, out: lambda: thresholds.threshold(x, **comparison, out=out)
            )
        if step.operation == "linear" and (unpacking := self.unpacking(source, i)):
            return self.signs_task(i, *unpacking)
        if step.operation == "linear":  # of floats
            weight = for_kernel(step.arrays["weight"].T)
            return self.task(i, lambda x, out: ordered_matmul.bind_ordered_matmul(x, weight, out))
        if step.operation == "pack" and source not in self.constants:
            return self.task(i, bits.bind_pack)
        if step.operation == "max_pool_bits":
            return self.task(
                i, lambda x, out: pooling.bind(x, **step.settings, **step.arrays, out=out)
            )
        sources = tuple(s for s in step.inputs if s not in self.constants)
        if i in self.constants or len(sources) < len(step.inputs):
            constants = [self.constants.get(s) for s in step.inputs]
            return Task((i,), (i,), sources, lambda *x: step.run(*filled(constants, x)))
        if step.operation == "avg_pool2d":
            geometry = tuple(step.settings[name] for name in POOLING)
            return self.task(i, lambda x, out: float_pooling.bind_avg_pool2d(x, geometry, out))
        if step.operation == "sum_pixels" and sorted(step.settings["dim"]) == [2, 3]:
            size = self.values[source].shape[1:]  # a single window of the size of the image
            return self.task(
                i,
                lambda x, out: float_pooling.bind_avg_pool2d(
                    x, (size, size, (0, 0)), out.reshape(len(out), 1, 1, -1), total=True
                ),
            )
        if step.operation == "take_channels":
            index = step.arrays["index"]
            return self.task(i, lambda x, out: channel_order.bind(x, index, out))
        return Task((i,), (i,), sources, step.run)

    def task(self, i, bind):
        """A task with one input and one output; ``bind(x, out)`` returns the callable."""
        return Task(
            (i,), (i,), self.steps[i].inputs,
            lambda inputs, outputs, memory: bind(_in_order(inputs[0]), outputs[0]),
            (self.buffer(i),),
        )  # fmt: skip

    def product_task(self, i, covers, threshold):
        """A task for a product, which writes sums or, with thresholds, bits."""
        prepared = self.prepared(i, threshold)

        def bind(inputs, outputs, memory):
            return fused.bind_product(prepared, _in_order(inputs[0]), outputs[0], memory)

        return Task(
            covers[-1:], covers, self.steps[i].inputs, bind, (self.buffer(covers[-1]),),
            prepared.workspace_words, prepared.products,
        )  # fmt: skip

    def unpacking(self, i, reader):
        """The steps up to i that unpack bits to a row of floats for one reader, else None."""
        chain = []
        while i >= 0 and i not in self.constants and self.readers[i] == [reader]:
            chain.insert(0, i)
            if self.steps[i].operation in ("unpack", "unpack_flattened"):
                return chain
            if self.steps[i].operation != "reshape":
                return None
            i, reader = self.steps[i].inputs[0], i
        return None

    def signs_task(self, i, *unpacking):
        """A task for a real-valued dense layer on signs: it adds or subtracts the weights."""
        weight, first = self.steps[i].arrays["weight"], self.steps[unpacking[0]]
        source = first.inputs[0]
        # Terms are summed channel by channel, while the bits are ordered pixel by pixel.
        channels, *size = self.values[source].shape
        pixel = 64 * bits.words_for(channels) * np.arange(math.prod(size))
        order = (np.arange(channels)[:, None] + pixel).reshape(-1)
        prepared = ordered.prepare_signs_matmul(weight, order)
        row_words = bits.words_for(channels) * math.prod(size)

        def bind(inputs, outputs, memory):
            rows, floats = inputs[0].reshape(-1, row_words), memory.view(np.float32)
            return lambda: ordered.signs_matmul(prepared, rows, outputs[0], floats)

        return Task(
            (i,), (*unpacking, i), (source,), bind, (self.buffer(i),),
            lambda samples: ordered.signs_floats(samples, row_words) // 2 + 1,
        )  # fmt: skip


def _comparison(step):
    """The constants of a threshold step in the form that kernels take."""
    return step.arrays | {"thresholds": step.arrays["thresholds"].astype(np.int32)}


def _in_order(array):
    """An array in kernel layout: contiguous, and float images as (N, H, W, C)."""
    return for_kernel(nhwc(array) if array.dtype == np.float32 else array)


def _in_memory(shape):
    """(C, H, W) -> (H, W, C); (F,) is unchanged."""
    return (*shape[1:], shape[0])


def _constant(array, shape):
    """Convert an array that broadcasts to (1, C, H, W) or (1, C) to memory order.

    (H, W, C) or (C,); axes that are broadcast have length 1.
    """
    array = array.reshape((1,) * (1 + len(shape) - array.ndim) + array.shape)[0]
    return array.transpose(1, 2, 0) if array.ndim == 3 else array
