"""Elementwise float arithmetic between two products, in one pass over memory.

A binary convolution with a real-valued residual is followed by a scale, a batch norm, the residual,
an activation, and the next layer's sign: a dozen operations that do very little with each number
and, one after the other in NumPy, read and write the whole layer a dozen times. Here they form a
small *program* that runs on a block of adjacent numbers at a time (64, or 128 with AVX-512), which
stay in registers from the first operation to the last.

The program is data, not code: `prepare` turns a list of operations into a table of instructions for
a machine with one accumulator (a block of floats), and the kernel interprets the table. So one
compiled kernel serves every network. Operations that often follow each other with constants of
channels are one instruction: a product and a sum (a batch norm); RPReLU; and the subtraction of a
shift of which only the sign is read, which is a comparison. The usual program of a binary layer is
not interpreted at all: a loop has its stages in their usual order, and skips those that are absent.

Each operation rounds as NumPy's does, in the given order, and nothing is contracted into fused
multiply-adds: the results equal those of the operations one by one, bit for bit. For equal
operands, such as 0.0 and -0.0, `max` and `min` return the left one.

For speed alone: `run_reference` is the plain NumPy version, and `tinybnn bench models` shows the
packed networks that use it.
"""

from __future__ import annotations

import collections
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tinybnn.kernels.machine import exact
from tinybnn.kernels.machine.layout import for_kernel
from tinybnn.kernels.machine.memory import aligned, empty
from tinybnn.kernels.machine.simd import (
    BLOCK,
    absolute,
    inlined,
    load_block,
    maximum,
    minimum,
    positive_or,
    splat,
    square_root,
    store,
    store_at_least,
    subkernel,
    zeros,
)
from tinybnn.kernels.machine.simd import FLOATS as LANES
from tinybnn.kernels.signs.bits import bits_from, pack_reference, words_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from tinybnn.typing import Array, Shape

# Instructions. The right operand of a binary operation comes from one of the sources below.
LOAD, ADD, SUBTRACT, SUBTRACT_FROM, MULTIPLY, DIVIDE, SLOPE = range(7)
MAXIMUM, MAXIMUM_FROM, MINIMUM, MINIMUM_FROM = range(7, 11)
ABSOLUTE, SQUARE_ROOT, SAVE, STORE, PACK = range(11, 16)
# Instructions with consecutive constants of channels: v a + b; and, with u = v - a, (u or b u) + c.
AFFINE, TWO_LINES = 16, 17

# Sources: a constant for each channel; for each number of an image; a saved value; arrays.
CHANNELS, IMAGE, SLOT, FLOATS, SUMS, PIXELS = range(6)

MOST_INPUTS, MOST_OUTPUTS = 4, 2  # of a kind

_TWO = {
    "add": ADD, "sub": SUBTRACT, "mul": MULTIPLY, "div": DIVIDE, "max": MAXIMUM, "min": MINIMUM,
    "prelu": SLOPE,
}  # fmt: skip
# The accumulator as the right operand.
_FROM = {SUBTRACT: SUBTRACT_FROM, MAXIMUM: MAXIMUM_FROM, MINIMUM: MINIMUM_FROM}
_ONE = {"abs": ABSOLUTE, "sqrt": SQUARE_ROOT}
_JOINED = {"affine": AFFINE, "two_lines": TWO_LINES}
_REFERENCE = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "max": exact.maximum,
    "min": exact.minimum, "abs": np.abs, "sqrt": np.sqrt,
    "prelu": lambda x, slope: np.where(x > 0, x, slope * x),
}  # fmt: skip


class _Stages(NamedTuple):
    """The stages of a binary layer, in their order; each a number, or -1 if it is absent.

    Attributes
    ----------
    sums, floats : int
        The first input is one of these.
    scale : int
        The constant of channels that multiplies it.
    more_sums, more_scale : int
        A second product to add, and the constant that multiplies its sums.
    before : int
        Floats to add.
    affine : int
        The first constant of `AFFINE`.
    after : int
        Floats to add.
    lines : int
        The first constant of `TWO_LINES`.
    out : int
        The output for the floats.
    limit, more_limit : int
        The constants that the floats are compared with, for the first and second output of bits.
    """

    sums: int = -1
    floats: int = -1
    scale: int = -1
    more_sums: int = -1
    more_scale: int = -1
    before: int = -1
    affine: int = -1
    after: int = -1
    lines: int = -1
    out: int = -1
    limit: int = -1
    more_limit: int = -1


_NO_STAGES = _Stages()


class Program(NamedTuple):
    """Instructions and constants; made by `prepare`.

    Attributes
    ----------
    shape : (H, W, C) or (C,)
        Shape of a sample.
    code : (n, 3) int64
        Instruction, source, number of the operand in its source. For SAVE, STORE and PACK the
        number is that of the slot or output, and the source of PACK is the constant of channels
        that numbers are compared with. For AFFINE and TWO_LINES the number is that of the first of
        two or three constants.
    by_channel : (..., C + BLOCK) float32
        One row per constant, repeated periodically, so that a block can be loaded from any channel
        on.
    by_image : (..., H * W * C + BLOCK) float32
        One row per constant that differs between pixels.
    slots : int
        Saved values.
    inputs : tuple of str
        Kind of each input: "floats", "sums" or "pixels".
    outputs : tuple of str
        Kind of each output: "floats" or "bits".
    stages : _Stages
        All absent, unless the instructions are those of a binary layer.
    """

    shape: Shape
    code: np.ndarray
    by_channel: np.ndarray
    by_image: np.ndarray
    slots: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    stages: _Stages

    @property
    def tables(self) -> tuple[Any, ...]:
        """The tables that the kernel reads."""
        image = math.prod(self.shape)
        return (
            self.code, self.by_channel, self.by_image, self.shape[-1], image, self.slots,
            self.stages,
        )  # fmt: skip


def _stages_of(code: NDArray[np.int64]) -> _Stages:
    """The stages of instructions; all absent if there are others or they have another order."""
    left, found = code.tolist(), {}

    def take(stage, *pattern):
        """Take the next instructions if they match; None in the pattern is the stage's number."""
        taken, numbers = left[: len(pattern)], []
        if len(taken) < len(pattern):
            return False
        for row, expected in zip(taken, pattern, strict=True):
            for value, wanted in zip(row, expected, strict=True):
                if wanted is None:
                    numbers.append(value)
                elif value != wanted:
                    return False
        found.update(zip(stage.split(), numbers, strict=True))
        del left[: len(pattern)]
        return True

    scaling = (MULTIPLY, CHANNELS, None)
    if not (take("sums", (LOAD, SUMS, None)) or take("floats", (LOAD, FLOATS, None))):
        return _NO_STAGES
    take("scale", scaling)
    second = (SAVE, SLOT, 0), (LOAD, SUMS, None), scaling, (ADD, SLOT, 0)
    take("more_sums more_scale", *second)
    if not take("before affine", (ADD, FLOATS, None), (AFFINE, CHANNELS, None)):
        take("affine", (AFFINE, CHANNELS, None))
    take("after", (ADD, FLOATS, None))
    take("lines", (TWO_LINES, CHANNELS, None))
    take("out", (STORE, 0, None))
    take("limit", (PACK, None, 0)) and take("more_limit", (PACK, None, 1))
    take("out", (STORE, 0, None)) if "out" not in found else None
    return _NO_STAGES if left else _Stages(**found)


def prepare(
    shape: Sequence[int],
    inputs: Sequence[str],
    operations: Sequence[tuple[Any, ...]],
    outputs: Sequence[tuple[str, int]],
) -> Program:
    """Translate a list of operations into a program.

    Parameters
    ----------
    shape : (H, W, C) or (C,)
        Shape of the values of each sample.
    inputs : sequence of str
        At most 4 of each kind: "floats" for a float32 array (N, H, W, C), "sums" for an int32 one,
        "pixels" for an int32 array (N, H, W) that all channels of a pixel share.
    operations : sequence of tuples
        ``(name, operand)`` or ``(name, left, right)``. The names are add, sub, mul, div, max, min,
        prelu (``where(left > 0, left, right * left)``), abs and sqrt. An operand is the number of a
        value (inputs come first, then the results of the operations) or a constant: a float32 array
        that broadcasts to ``shape``. A constant cannot be divided by a value.
    outputs : sequence of (str, int)
        At most 2 of each kind: "floats" or "bits" (1 where a value is >= 0), and the value.

    Returns
    -------
    Program

    Raises
    ------
    ValueError
        If an argument is not as described.
    """
    return _Translator(shape, inputs, operations, outputs).program()


class _Translator:
    """Translate values to the instructions of a machine with one accumulator."""

    def __init__(self, shape, inputs, operations, outputs):
        self.shape = tuple(shape)
        self.inputs, self.operations = tuple(inputs), list(operations)
        self.outputs = [(kind, int(value)) for kind, value in outputs]
        self.by_channel, self.by_image, self.code = [], [], []
        self.slot_of, self.free, self.slots = {}, [], 0
        self.check()

    def check(self):
        if len(self.shape) not in (1, 3) or math.prod(self.shape) < 1:
            raise ValueError(f"prepare: shape must be (H, W, C) or (C,), got {self.shape}")
        for argument, kinds, known, most in (
            ("inputs", self.inputs, ("floats", "sums", "pixels"), MOST_INPUTS),
            ("outputs", [kind for kind, _ in self.outputs], ("floats", "bits"), MOST_OUTPUTS),
        ):
            for kind in kinds:
                if kind not in known:
                    raise ValueError(
                        f"prepare: {argument} must be of the kinds {known}, got {kind!r}"
                    )
                if list(kinds).count(kind) > most:
                    raise ValueError(f"prepare: at most {most} {argument} can be {kind}")
        if not self.outputs:
            raise ValueError("prepare: a program needs an output")
        for i, (name, *operands) in enumerate(self.operations):
            if name not in _REFERENCE or len(operands) != 1 + (name in _TWO):
                raise ValueError(
                    f"prepare: unknown operation {name!r} with {len(operands)} operands"
                )
            if name == "div" and not isinstance(operands[0], int):
                raise ValueError("prepare: a constant cannot be divided by a value")
            for operand in operands:
                if isinstance(operand, int) and not 0 <= operand < len(self.inputs) + i:
                    raise ValueError(
                        f"prepare: operation {i} reads value {operand} before it is computed"
                    )
        for _, value in self.outputs:
            if not 0 <= value < len(self.inputs) + len(self.operations):
                raise ValueError(f"prepare: an output is value {value}, which does not exist")

    def program(self):
        first = len(self.inputs)
        self.count_uses()
        self.limits = [np.float32(0)] * len(self.outputs)  # that packed values are compared with
        for value in range(first, first + len(self.operations)):
            self.join(value)
        self.count_uses()
        self.accumulator = None
        for value in range(first + len(self.operations)):
            if value >= first and (operation := self.operations[value - first]) is not None:
                self.operation(value, *operation)
            self.give_out(value)
        code = np.array(self.code, np.int64).reshape(-1, 3)
        channels, image = self.shape[-1], math.prod(self.shape)
        return Program(
            self.shape, code, _periodic(self.by_channel, channels),
            _periodic(self.by_image, image), self.slots, self.inputs,
            tuple(kind for kind, _ in self.outputs), _stages_of(code),
        )  # fmt: skip

    def count_uses(self):
        """Count how often each value is still read."""
        operations = [operation for operation in self.operations if operation is not None]
        operands = [v for _, *given in operations for v in given if isinstance(v, int)]
        self.uses = collections.Counter(operands + [v for _, v in self.outputs])

    def join(self, value):
        """Join an operation with those before it, if an instruction computes them together.

        The operations that it replaces become None.
        """
        if (found := self.constants_of(value, "mul", "add")) is not None:
            self.replace(value, "affine", *found)
        elif (found := self.constants_of(value, "sub", "prelu", "add")) is not None:
            self.replace(value, "two_lines", *found)
        elif (found := self.constants_of(value, "sub")) is not None:
            # x - a >= 0 if and only if x >= a: differences that are not 0 do not round to 0.
            readers = [i for i, output in enumerate(self.outputs) if output == ("bits", value)]
            operand, (limit,) = found
            if len(readers) == self.uses[value] and np.all(np.isfinite(limit)):
                for i in readers:
                    self.outputs[i], self.limits[i] = ("bits", operand), limit
                self.operations[value - len(self.inputs)] = None

    def constants_of(self, value, *names):
        """The operand of a chain of operations that ends with a value, and the chain's constants.

        None unless the operations have these names, and read a constant of channels and the result
        of the one before, which nothing else reads.
        """
        constants = []
        for name in reversed(names):
            i = value - len(self.inputs)
            operation = self.operations[i] if i >= 0 else None
            if operation is None or operation[0] != name:
                return None
            _, left, right = operation
            if name in ("mul", "add") and isinstance(right, int):
                left, right = right, left
            is_read_once = not constants or self.uses[value] == 1
            is_step = isinstance(left, int) and not isinstance(right, int) and is_read_once
            if not is_step or not self.is_of_channels(right):
                return None
            constants.insert(0, right)
            value = left
        return value, constants

    def replace(self, value, name, operand, constants):
        """Put one operation in the place of as many as there are constants."""
        i = value - len(self.inputs)
        replaced = [value]
        while len(replaced) < len(constants):
            _, *operands = self.operations[replaced[-1] - len(self.inputs)]
            replaced.append(next(v for v in operands if isinstance(v, int)))
        for other in replaced:
            self.operations[other - len(self.inputs)] = None
        self.operations[i] = (name, operand, *constants)

    def is_of_channels(self, constant):
        """Whether a constant is a number for each channel, or a single one."""
        shape = np.shape(constant)
        return math.prod(shape) == 1 or (shape[-1] == math.prod(shape) == self.shape[-1])

    def operation(self, result, name, left, right=None, *more):
        if name in _JOINED:
            return self.joined(result, _JOINED[name], left, right, *more)
        instruction = _ONE.get(name, _TWO.get(name))
        if self.holds(right) and not self.holds(left):
            if name in ("add", "mul"):
                left, right = right, left
            elif instruction in _FROM:
                left, right, instruction = right, left, _FROM[instruction]
        self.load(left)
        self.count_use(left)
        self.count_use(right)
        if self.uses[self.accumulator] or self.holds(right):
            self.save()
        self.emit(instruction, *((0, 0) if right is None else self.operand(right)))
        self.give(result)

    def joined(self, result, instruction, operand, *constants):
        """Emit an instruction with consecutive constants of channels."""
        self.load(operand)
        self.count_use(operand)
        if self.uses[operand]:
            self.save()
        (_, number), *_ = [self.operand(constant) for constant in constants]
        self.emit(instruction, CHANNELS, number)
        self.give(result)

    def give(self, result):
        """The accumulator now holds a result; slots of values that are not read again are free."""
        self.accumulator = result
        for value in [v for v in self.slot_of if not self.uses[v]]:
            self.free.append(self.slot_of.pop(value))

    def holds(self, operand):
        return isinstance(operand, int) and operand == self.accumulator

    def count_use(self, operand):
        if isinstance(operand, int):
            self.uses[operand] -= 1

    def give_out(self, value):
        """Emit the outputs that are this value."""
        for number, (kind, given) in enumerate(self.outputs):
            if given == value:
                self.load(value)
                self.count_use(value)
                same = [k for k, _ in self.outputs[:number] if k == kind]
                if kind == "floats":
                    self.emit(STORE, 0, len(same))
                else:
                    _, limit = self.operand(self.limits[number])
                    self.emit(PACK, limit, len(same))

    def load(self, operand):
        """Load into the accumulator, and save its old value if it is still needed."""
        if not self.holds(operand):
            if self.uses[self.accumulator]:
                self.save()
            self.emit(LOAD, *self.operand(operand))
            self.accumulator = operand if isinstance(operand, int) else None

    def save(self):
        """Save the accumulator's value, unless it is an input or already saved."""
        value = self.accumulator
        if value is None or value < len(self.inputs) or value in self.slot_of:
            return
        if not self.free:
            self.free.append(self.slots)
            self.slots += 1
        self.slot_of[value] = self.free.pop()
        self.emit(SAVE, SLOT, self.slot_of[value])

    def operand(self, operand):
        """Return the source and number of an operand."""
        if isinstance(operand, int):
            if operand < len(self.inputs):
                kind = self.inputs[operand]
                source = {"floats": FLOATS, "sums": SUMS, "pixels": PIXELS}[kind]
                return source, self.inputs[:operand].count(kind)
            return SLOT, self.slot_of[operand]
        constant = np.asarray(operand)
        if constant.dtype != np.float32:
            raise ValueError(f"prepare: constants must be float32, got {constant.dtype}")
        try:
            rows = np.broadcast_to(constant, self.shape)
        except ValueError:
            raise ValueError(
                f"prepare: a constant of shape {constant.shape} does not broadcast to {self.shape}"
            ) from None
        by_channel = self.is_of_channels(constant)
        table = self.by_channel if by_channel else self.by_image
        table.append(rows[0, 0] if by_channel and len(self.shape) == 3 else rows.reshape(-1))
        return (CHANNELS if by_channel else IMAGE), len(table) - 1

    def emit(self, instruction, source, number):
        self.code.append((instruction, source, number))


def _periodic(rows, period):
    """Concatenate constants, each repeated up to its period + BLOCK."""
    if not rows:
        return np.zeros(0, np.float32)
    table, behind = empty((len(rows), period + BLOCK), np.float32), np.arange(BLOCK) % period
    for place, row in zip(table, rows, strict=True):
        place[:period], place[period:] = row, row[behind]
    return aligned(table).reshape(-1)


# ------------------------------------------------------------------------------------------ running


def run(program: Program, inputs: Sequence[ArrayLike]) -> tuple[Array, ...]:
    """Run a program on arrays.

    Parameters
    ----------
    program : Program
    inputs : sequence of arrays
        As declared to `prepare`.

    Returns
    -------
    tuple of arrays
        (N, H, W, C) float32 or (N, H, W, words_for(C)) uint64 each.

    Raises
    ------
    ValueError
        If a dtype or a shape does not fit.
    """
    if len(inputs) != len(program.inputs):
        raise ValueError(f"run: the program takes {len(program.inputs)} inputs, got {len(inputs)}")
    given, image = [], math.prod(program.shape)
    for i, (kind, array) in enumerate(zip(program.inputs, inputs, strict=True)):
        array = np.asarray(array)
        dtype, shape = sample(program.shape, kind)
        per_sample = math.prod(shape)
        if array.dtype != dtype or array.ndim == 0 or array.size != len(array) * per_sample:
            raise ValueError(
                f"run: input {i} must be {np.dtype(dtype)} with {per_sample} numbers a sample, "
                f"got {array.dtype} of shape {array.shape}"
            )
        given.append(for_kernel(array))
    samples = {len(array) for array in given}
    if len(samples) > 1:
        raise ValueError(f"run: the inputs must have the same number of samples, got {samples}")
    (samples,) = samples or {1}
    output_samples = [sample(program.shape, kind) for kind in program.outputs]
    results = [np.empty((samples, *shape), dtype) for dtype, shape in output_samples]
    end = samples * image
    slots = np.empty(slot_floats(program), np.float32)
    scratch = Scratch(slots, 0, np.empty(mask_words(program, end), np.uint64), 0)
    # In compiled code inf - inf is NaN without a warning; do the same when the JIT is off.
    with np.errstate(all="ignore"):
        origins = np.zeros((3, MOST_INPUTS), np.int64)
        chunk(program.tables, 0, end, origins, arrays(program, given, results), scratch)
    return tuple(results)


def run_reference(
    program_arguments: tuple[Any, ...], inputs: Sequence[ArrayLike]
) -> tuple[Array, ...]:
    """Compute ``run(prepare(*program_arguments), inputs)`` in plain NumPy, step by step."""
    shape, kinds, operations, outputs = program_arguments
    values = [
        np.asarray(a)[..., None].astype(np.float32)
        if kind == "pixels"
        else np.asarray(a, np.float32)
        for kind, a in zip(kinds, inputs, strict=True)
    ]
    samples = len(values[0]) if values else 1
    with np.errstate(all="ignore"):
        for name, *operands in operations:
            numbers = [values[v] if isinstance(v, int) else v for v in operands]
            values.append(np.asarray(_REFERENCE[name](*numbers), np.float32))
    full = [np.broadcast_to(values[v], (samples, *shape)) for _, v in outputs]
    return tuple(
        np.array(value) if kind == "floats" else pack_reference(value)
        for (kind, _), value in zip(outputs, full, strict=True)
    )


def sample(shape: Sequence[int], kind: str) -> tuple[type[np.generic], Shape]:
    """Return dtype and shape of one sample of an input or output of this kind."""
    *pixels, channels = shape
    dtype = {"floats": np.float32, "bits": np.uint64}.get(kind, np.int32)
    return dtype, (*pixels, {"pixels": 1, "bits": words_for(channels)}.get(kind, channels))


def slot_floats(program: Program) -> int:
    """Return the length of the float32 scratch memory that `chunk` needs."""
    return (program.slots + 1) * BLOCK + LANES


def mask_words(program: Program, numbers: int) -> int:
    """Return the length of the uint64 scratch memory that `chunk` needs for ``numbers`` numbers."""
    return program.outputs.count("bits") * ((numbers + 63) // 64 + 2)


class Arrays(NamedTuple):
    """Inputs and outputs by kind, flat: a fixed number of arrays for the kernel to choose from."""

    floats: tuple[Array, ...]
    sums: tuple[Array, ...]
    pixels: tuple[Array, ...]
    outs: tuple[Array, ...]
    bits: tuple[Array, ...]


class Scratch(NamedTuple):
    """Memory from ``slots[slot]`` and ``masks[mask]`` on, `slot_floats` and `mask_words` long.

    Attributes
    ----------
    slots : (...,) float32
    slot : int
    masks : (...,) uint64
    mask : int
    """

    slots: np.ndarray
    slot: int
    masks: np.ndarray
    mask: int


def arrays(program: Program, inputs: Sequence[Array], outputs: Sequence[Array]) -> Arrays:
    """Group the arrays of a call by kind, flat, for the kernel."""
    by_kind = {"floats": [], "sums": [], "pixels": [], "outs": [], "bits": []}
    for kind, array in zip(program.inputs, inputs, strict=True):
        by_kind[kind].append(array.reshape(-1))
    for kind, array in zip(program.outputs, outputs, strict=True):
        by_kind["outs" if kind == "floats" else kind].append(array.reshape(-1))
    return Arrays(*[(*rows, *_NOTHING[kind][len(rows) :]) for kind, rows in by_kind.items()])


def _nothing(most, dtype):
    return (np.empty(0, dtype),) * most


_NOTHING = {
    "floats": _nothing(MOST_INPUTS, np.float32),
    "sums": _nothing(MOST_INPUTS, np.int32),
    "pixels": _nothing(MOST_INPUTS, np.int32),
    "outs": _nothing(MOST_OUTPUTS, np.float32),
    "bits": _nothing(MOST_OUTPUTS, np.uint64),
}


# ------------------------------------------------------------------------------------------- kernel


@subkernel
def chunk(
    tables: tuple[Any, ...],
    first: int,
    end: int,
    origins: NDArray[np.int64],
    arrays: Arrays,
    scratch: Scratch,
) -> None:
    """Compute the numbers first to end - 1 (flat, across all samples; whole pixels).

    Number p of input k is ``floats[k][p - origins[0, k]]`` or, for integers,
    ``sums[k][p - origins[1, k]]``; pixel q is ``pixels[k][q - origins[2, k]]``. Origins are 0 for
    arrays of the whole batch; otherwise they refer to scratch memory in which a product has just
    computed the sums of this chunk.

    Parameters
    ----------
    tables : tuple
        ``program.tables``.
    first, end : int
    origins : (3, MOST_INPUTS) int64
    arrays : Arrays
    scratch : Scratch
    """
    code, channels, image = tables[0], tables[3], tables[4]
    row = channels + BLOCK
    slots, slot, masks, mask = scratch
    part = slot + tables[5] * BLOCK
    whole, length = channels % 64 == 0, (end - first + 63) // 64 + 2
    start = first
    if tables[6][0] >= 0 or tables[6][1] >= 0:
        start = _in_stages(tables, first, end, origins, arrays, masks, mask)
    c, i = start % channels, start % image
    channel_step, image_step = BLOCK % channels, BLOCK % image  # no division for each block
    for p in range(start, end, BLOCK):
        count = min(BLOCK, end - p)
        v = zeros(BLOCK)
        for line in range(len(code)):
            instruction, source, number = code[line, 0], code[line, 1], code[line, 2]
            at = number * row + c  # of the first constant of channels
            if instruction == AFFINE:
                v = v * load_block(tables[1], at)
                v = v + load_block(tables[1], at + row)
            elif instruction == TWO_LINES:
                v = v - load_block(tables[1], at)
                v = positive_or(v, load_block(tables[1], at + row) * v)
                v = v + load_block(tables[1], at + 2 * row)
            elif instruction < ABSOLUTE:
                if source == CHANNELS:
                    w = load_block(tables[1], at)
                elif source == IMAGE:
                    w = load_block(tables[2], number * (image + BLOCK) + i)
                elif source == SLOT:
                    w = load_block(slots, slot + number * BLOCK)
                elif source == FLOATS and count == BLOCK:
                    w = load_block(arrays.floats[number], p - origins[0, number])
                elif source == SUMS and count == BLOCK:
                    w = load_block(arrays.sums[number], p - origins[1, number])
                else:  # numbers that are not contiguous, or less than a block of them
                    _gather(source, number, p, count, channels, origins, arrays, slots, part)
                    w = load_block(slots, part)
                v = _combine(instruction, v, w)
            elif instruction == ABSOLUTE:
                v = absolute(v)
            elif instruction == SQUARE_ROOT:
                v = square_root(v)
            elif instruction == SAVE:
                store(slots, slot + number * BLOCK, v)
            elif instruction == STORE and count == BLOCK:
                store(arrays.outs[number], p, v)
            elif instruction == STORE:
                store(slots, part, v)
                _copy(slots, part, arrays.outs[number], p, count)
            else:
                limits = load_block(tables[1], source * row + c)
                if whole and count == BLOCK:
                    store_at_least(arrays.bits[number], p // 64, v, limits)
                else:
                    store_at_least(masks, mask + number * length + (p - first) // 64, v, limits)
        c, i = c + channel_step, i + image_step
        c, i = c if c < channels else c - channels, i if i < image else i - image
    for number in range(MOST_OUTPUTS):
        bits, start = arrays.bits[number], mask + number * length
        if len(bits) and not whole:
            _space_out(masks, start, first // channels, end // channels, channels, bits)
        elif len(bits) and (end - first) % BLOCK:  # an odd number of words
            bits[end // 64 - 1] = masks[start + (end - first) // 64 - 1]


@subkernel
def _in_stages(tables, first, end, origins, arrays, masks, mask):
    """Compute the whole blocks of a chunk in `_Stages`; return the first number that is left."""
    constants, channels, length = tables[1], tables[3], (end - first + 63) // 64 + 2
    sums, floats, scale, more_sums, more_scale, before, affine, after, lines = tables[6][:9]
    out, limit, more_limit = tables[6][9:]
    row, whole, zero = channels + BLOCK, channels % 64 == 0, np.int64(0)
    integers = arrays.sums[max(sums, zero)]
    more_integers = arrays.sums[max(more_sums, zero)]
    reals = arrays.floats[max(floats, zero)]
    added, more_added = arrays.floats[max(before, zero)], arrays.floats[max(after, zero)]
    target = arrays.outs[max(out, zero)]
    words, more_words, word = masks, masks, mask
    if whole:
        words, more_words, word = arrays.bits[0], arrays.bits[1], first // 64
    more_word = word if whole else mask + length
    sums_from, more_from = origins[1, max(sums, zero)], origins[1, max(more_sums, zero)]
    floats_from = origins[0, max(floats, zero)]
    before_from, after_from = origins[0, max(before, zero)], origins[0, max(after, zero)]
    c, step = first % channels, BLOCK % channels
    p = first
    while p + BLOCK <= end:
        v = zeros(BLOCK)
        if sums >= 0:
            v = load_block(integers, p - sums_from)
        if floats >= 0:
            v = load_block(reals, p - floats_from)
        if scale >= 0:
            v = v * load_block(constants, scale * row + c)
        if more_sums >= 0:
            more = load_block(more_integers, p - more_from)
            v = v + more * load_block(constants, more_scale * row + c)
        if before >= 0:
            v = v + load_block(added, p - before_from)
        if affine >= 0:
            v = v * load_block(constants, affine * row + c)
            v = v + load_block(constants, affine * row + row + c)
        if after >= 0:
            v = v + load_block(more_added, p - after_from)
        if lines >= 0:
            v = v - load_block(constants, lines * row + c)
            v = positive_or(v, load_block(constants, lines * row + row + c) * v)
            v = v + load_block(constants, lines * row + 2 * row + c)
        if out >= 0:
            store(target, p, v)
        if limit >= 0:
            store_at_least(words, word, v, load_block(constants, limit * row + c))
        if more_limit >= 0:
            store_at_least(more_words, more_word, v, load_block(constants, more_limit * row + c))
        word, more_word = word + BLOCK // 64, more_word + BLOCK // 64
        c = c + step
        c = c if c < channels else c - channels
        p += BLOCK
    return p


@inlined
def _gather(source, number, p, count, channels, origins, arrays, slots, part):
    """Copy ``count`` numbers of an input, from number p on, to slots[part] and following."""
    if source == FLOATS:
        _copy(arrays.floats[number], p - origins[0, number], slots, part, count)
    elif source == SUMS:
        _copy(arrays.sums[number], p - origins[1, number], slots, part, count)
    else:
        _spread(arrays.pixels[number], origins[2, number], p, count, channels, slots, part)


@inlined
def _combine(instruction, v, w):
    """Apply an instruction to the accumulator and its operand."""
    if instruction == LOAD:
        v = w
    elif instruction == ADD:
        v = v + w
    elif instruction == SUBTRACT:
        v = v - w
    elif instruction == SUBTRACT_FROM:
        v = w - v
    elif instruction == MULTIPLY:
        v = v * w
    elif instruction == DIVIDE:
        v = v / w
    elif instruction == SLOPE:
        v = positive_or(v, w * v)
    elif instruction == MAXIMUM:
        v = maximum(v, w)
    elif instruction == MAXIMUM_FROM:
        v = maximum(w, v)
    elif instruction == MINIMUM:
        v = minimum(v, w)
    else:
        v = minimum(w, v)
    return v


@inlined
def _copy(source, first, target, to, count):
    for j in range(count):
        target[to + j] = source[first + j]


@inlined
def _spread(pixels, origin, first, count, channels, slots, at):
    """Copy the number of each pixel to all of its channels."""
    pixel = first // channels
    j, stop = 0, channels - first % channels
    while j < count:
        value = splat(np.float32(pixels[pixel - origin]))
        # Numbers stored behind the pixel are overwritten by the next one, or lie behind the block.
        for q in range(j, min(stop, count), LANES):
            store(slots, at + q, value)
        pixel += 1
        j, stop = stop, stop + channels


@inlined
def _space_out(masks, start, first, end, channels, bits):
    """Copy bits of one string to rows of whole words, one row per pixel."""
    words = (channels + 63) // 64
    if 64 % channels == 0:  # several pixels in a word
        ones = np.uint64((1 << channels) - 1)
        for pixel in range(first, end):
            bit = (pixel - first) * channels
            bits[pixel] = (masks[start + bit // 64] >> np.uint64(bit % 64)) & ones
        return
    for pixel in range(first, end):
        for j in range(words):
            bit = (pixel - first) * channels + 64 * j
            bits[pixel * words + j] = bits_from(masks, start, bit, min(64, channels - 64 * j))
