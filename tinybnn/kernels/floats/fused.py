"""A product and the program that follows it, in one pass: its sums are never stored.

A layer is one or more products (binary, depth-wise, or of floats) and a `pointwise` program that
reads their sums. The sums of a few pixels are computed in scratch memory that stays in the cache,
the program turns them into the layer's floats and bits, and the next few pixels follow. Two
products whose sums meet in one program are the dual binary ("1.58-bit") convolution of BD-Net.
AdaBin's sum of the signs in a window is a product with a single filter; all channels of a pixel
share its result.

For speed alone, compared with a product and `pointwise.run` in turn: `tinybnn bench models` shows
the packed networks that use it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numba
import numpy as np

from tinybnn.kernels.floats import ordered, ordered_sums, pointwise
from tinybnn.kernels.machine import parallel, threads
from tinybnn.kernels.machine.layout import described, for_kernel
from tinybnn.kernels.machine.memory import empty
from tinybnn.kernels.machine.simd import copy, inlined, kernel
from tinybnn.kernels.machine.threads import tasks_for
from tinybnn.kernels.signs import depthwise, xnor
from tinybnn.kernels.signs.tables import Tables

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tinybnn.typing import Array, Shape, Words

    Producer: TypeAlias = xnor.Prepared | depthwise.Plan | ordered.PreparedConv2d

MOST_PRODUCERS = 3
_CHUNK = 16384  # approximate numbers of a chunk of a program: they stay in the second-level cache
_CHUNK_PIXELS = 256  # pixels of a chunk at most
# Assumed throughput per second: sign products, float products, program instructions x elements.
_PRODUCTS, _MULTIPLICATIONS, _NUMBERS = 1e12, 3e10, 3e10


@dataclass(frozen=True, eq=False)
class Layer:
    """Products and the program that reads their sums; made by `prepare`.

    Attributes
    ----------
    producers : tuple
        For each input of the program a prepared product, or None for an array passed to `run`.
    program : pointwise.Program
    kind : str
        Kind of the producers; "none" if there are none.
    products : int
        Sign products per sample.
    seconds : float
        Estimated time of one core per sample.
    items : int
        Parts of a sample that tasks can share.
    reads, writes : tuple of (dtype, shape)
        Dtype and shape of a sample of each input and output.
    places : tuple of int
        Offsets in a task's memory, as the kernel of this kind reads them.
    strips : (producers, 3) int64
        For each producer: the row of the origins, the column, and the offset of its sums.
    operands : tuple
        The producers' data as the kernel reads it.
    """

    producers: tuple[Producer | None, ...]
    program: pointwise.Program
    kind: str
    products: int
    seconds: float
    items: int
    reads: tuple[tuple[type[np.generic], Shape], ...]
    writes: tuple[tuple[type[np.generic], Shape], ...]
    places: tuple[int, ...]
    strips: np.ndarray
    operands: tuple[Any, ...]

    @property
    def task_words(self) -> int:
        """Words of a task's memory."""
        return self.places[_SIZE]

    @property
    def memory_words(self) -> int:
        """Most words of scratch memory that `run` needs."""
        return threads.most() * self.task_words


def prepare(producers: Sequence[Producer | None], program: pointwise.Program) -> Layer:
    """Combine products and a program.

    Parameters
    ----------
    producers : sequence
        One product for each input of the program: an `xnor.Prepared` or a `depthwise.Plan` (without
        thresholds; inputs "sums", or "pixels" for one filter), an `ordered.PreparedConv2d` (input
        "floats"), or None for an array passed to `run`. There are at most 3, all of one kind; each
        has as many output pixels as the program.
    program : pointwise.Program

    Returns
    -------
    Layer

    Raises
    ------
    ValueError
        If producers and program do not match.
    """
    producers = tuple(producers)
    _check_producers(producers, program)
    prepared = [producer for producer in producers if producer is not None]
    kind = prepared[0].kind if prepared else "none"
    products = sum(producer.products for producer in prepared)
    seconds = products / _PRODUCTS + math.prod(program.shape) * len(program.code) / _NUMBERS
    if kind == "float":
        seconds += sum(producer.work for producer in prepared) / _MULTIPLICATIONS
    pixels, extra, *more = _KINDS[kind].lay_out(prepared, program)
    strips, places = _places(producers, program, pixels, extra)
    return Layer(
        producers=producers,
        program=program,
        kind=kind,
        products=products,
        seconds=seconds,
        items=program.shape[0] if kind == "depthwise" else math.prod(program.shape[:-1]),
        reads=tuple(
            pointwise.sample(program.shape, kind_of_input)
            if producer is None
            else (np.float32 if producer.kind == "float" else np.uint64, producer.input_shape)
            for kind_of_input, producer in zip(program.inputs, producers, strict=True)
        ),
        writes=tuple(
            pointwise.sample(program.shape, kind_of_input) for kind_of_input in program.outputs
        ),
        places=(*places, *more),
        strips=strips,
        operands=_KINDS[kind].operands(prepared),
    )


def _check_producers(producers, program):
    if len(producers) != len(program.inputs):
        raise ValueError(
            f"prepare: the program takes {len(program.inputs)} inputs, "
            f"got {len(producers)} producers"
        )
    prepared = [(p, i) for i, p in enumerate(producers) if p is not None]
    kinds = {p.kind for p, _ in prepared}
    if len(kinds) > 1 or len(prepared) > (1 if kinds == {"float"} else MOST_PRODUCERS):
        raise ValueError(
            f"prepare: at most {MOST_PRODUCERS} producers of one kind (one of floats), "
            f"got {len(prepared)} of the kinds {sorted(kinds)}"
        )
    *pixels, channels = program.shape
    for producer, i in prepared:
        makes = "floats" if producer.kind == "float" else "sums"
        expected = (*pixels, channels if program.inputs[i] == makes else 1)
        if program.inputs[i] not in (makes, "pixels") or producer.output_shape != expected:
            raise ValueError(
                f"prepare: input {i} of the program is {program.inputs[i]} for {program.shape}, "
                f"its producer gives {makes} of shape {producer.output_shape}"
            )
        if producer.to_bits:
            raise ValueError(f"prepare: the producer of input {i} has thresholds, it gives bits")


def run(
    layer: Layer, inputs: Sequence[Array], outputs: Sequence[Array], memory: Words | None = None
) -> None:
    """Run a layer.

    Parameters
    ----------
    layer : Layer
    inputs : sequence of arrays
        Input of each producer, (N, H, W, words) uint64 (or (N, words) for a matrix product) or
        (N, H, W, C) float32; where there is no producer, the program's input.
    outputs : sequence of arrays
        Contiguous arrays for the results, (N, ..., C) float32 or (N, ..., words_for(C)) uint64.
    memory : (n,) uint64, optional
        Scratch memory, at least ``layer.memory_words`` words.

    Raises
    ------
    ValueError
        If an array does not match the layer.
    """
    bind(layer, [for_kernel(x) for x in inputs], outputs, memory)()


def bind(
    layer: Layer, inputs: Sequence[Array], outputs: Sequence[Array], memory: Words | None = None
) -> Callable[[], None]:
    """Prepare `run` for repeated calls on the same arrays: only the work itself is left.

    Parameters
    ----------
    layer, inputs, outputs, memory
        As in `run`; all arrays are contiguous.

    Returns
    -------
    callable
        Takes no arguments. It uses as many threads as are set now.
    """
    samples = len(inputs[0])
    _check(layer, samples, inputs, outputs)
    tasks = tasks_for(samples * layer.seconds)
    needed = tasks * layer.task_words
    if memory is None:
        memory = empty(needed, np.uint64)
    elif memory.dtype != np.uint64 or memory.ndim != 1 or len(memory) < needed:
        raise ValueError(
            f"run: memory must be a row of at least {needed} words, "
            f"got {memory.dtype} of shape {memory.shape}"
        )
    sources, program = _wire(layer, inputs, outputs, memory)
    shares = parallel.shares(samples * layer.items, tasks)
    origins = np.zeros((tasks, 3, pointwise.MOST_INPUTS), np.int64)
    work = parallel.bind(
        _KINDS[layer.kind].kernel, shares, origins, layer.places, layer.strips, layer.operands,
        sources, program,
    )  # fmt: skip
    # In compiled code inf - inf is NaN without a warning; do the same when the JIT is off.
    return np.errstate(all="ignore")(work) if numba.config.DISABLE_JIT else work


def _check(layer, samples, inputs, outputs):
    """Check the arrays of a call against the layer."""
    if len(inputs) != len(layer.reads) or len(outputs) != len(layer.writes):
        raise ValueError(
            f"run: the layer takes {len(layer.reads)} inputs and {len(layer.writes)} outputs, "
            f"got {len(inputs)} and {len(outputs)}"
        )
    for name, kinds, arrays in (("input", layer.reads, inputs), ("output", layer.writes, outputs)):
        for i, ((dtype, shape), array) in enumerate(zip(kinds, arrays, strict=True)):
            shape = samples, *shape
            if array.dtype != dtype or array.shape != shape or not array.flags.carray:
                raise ValueError(
                    f"run: {name} {i} must be contiguous {np.dtype(dtype)} of shape {shape}, "
                    f"got {described(array)}"
                )


# --------------------------------------------------------------------------------- scratch memory

# The scratch memory of a task, in words: the sums of a chunk for each producer, the program's slots
# and masks, and the memory of the producer's kernel. The kernels see the same memory as words and
# as 32-bit numbers, so offsets are counted in words, of two 32-bit numbers each.


def _even(numbers):
    """Return the words of this many 32-bit numbers, in whole cache lines."""
    return -(-numbers // 16) * 8


def _chunk_pixels(program):
    """Choose the pixels of a chunk: enough for a product to reuse each load of its weights."""
    return min(_CHUNK_PIXELS, max(16, _CHUNK // program.shape[-1] // 4 * 4))


def _places(producers, program, pixels, extra):
    """Lay out a task's memory for chunks of ``pixels`` pixels.

    Returns
    -------
    strips : (producers, 3) int64
        As in `Layer`.
    places : tuple of int
        Offsets of the slots, of the masks, and of ``extra`` more words; and the size.
    """
    channels, slots, strips = program.shape[-1], 0, np.zeros((0, 3), np.int64)
    for i, (producer, kind_of_input) in enumerate(zip(producers, program.inputs, strict=True)):
        if producer is not None:
            row, column = (
                ("floats", "sums", "pixels").index(kind_of_input),
                program.inputs[:i].count(kind_of_input),
            )
            strips = np.append(strips, [[row, column, 2 * slots]], axis=0)
            slots += _even(pixels * (1 if kind_of_input == "pixels" else channels))
    masks = slots + _even(pointwise.slot_floats(program))
    rest = masks + _even(2 * pointwise.mask_words(program, pixels * channels))
    return strips, (slots, masks, rest, rest + _even(2 * extra))


_SIZE = 3  # index of the size in the places


def _wire(layer, inputs, outputs, memory):
    """Return the producers' inputs, flat, and the program with the arrays of a call."""
    floats, integers, octets = (memory.view(t) for t in (np.float32, np.int32, np.int8))
    sources, given = [], []
    for producer, kind_of_input, array in zip(
        layer.producers, layer.program.inputs, inputs, strict=True
    ):
        if producer is not None:
            sources.append(array.reshape(-1))
            array = floats if kind_of_input == "floats" else integers
        given.append(array)
    arrays = pointwise.arrays(layer.program, given, outputs)
    program = _Program(layer.program.tables, arrays, (floats, integers, memory, octets))
    # As many as the kernel is compiled for; those beyond the strips are unused.
    return _filled(sources), program


def _filled(values):
    """Extend a list to the length that kernels are compiled for, repeating its first element."""
    return tuple(values + values[:1] * (MOST_PRODUCERS - len(values)))


class _Program(NamedTuple):
    """A program for the kernels: its tables, its arrays, and scratch memory in several dtypes."""

    tables: tuple
    arrays: pointwise.Arrays
    memory: tuple


@inlined
def _apply(program, first, end, origins, slots, masks):
    """Run the program for pixels first to end - 1."""
    (floats, _, words, _), channels = program.memory, program.tables[3]
    pointwise.chunk(
        program.tables, first * channels, end * channels, origins, program.arrays,
        pointwise.Scratch(floats, 2 * slots, words, masks),
    )  # fmt: skip


@inlined
def _move(origins, strips, first, channels, base):
    """Set the origins of inputs that products compute: they begin with pixel ``first``."""
    for k in range(len(strips)):
        row, column, strip = strips[k]
        start = first if row == 2 else first * channels
        origins[row, column] = start - strip - 2 * base


# ------------------------------------------------------------------------------- without producers


def _lay_out_alone(products, program):
    pixels = _chunk_pixels(program)
    return pixels, 0, pixels


@kernel(allocates=False)
def _alone(first, end, task, origins, places, strips, operands, sources, program):
    slots, masks, _, size, pixels = places
    base, origins = task * size, origins[task]
    for start in range(first, end, pixels):
        stop = min(start + pixels, end)
        _apply(program, start, stop, origins, base + slots, base + masks)


# ------------------------------------------------------------------------------- products of floats


def _lay_out_float(products, program):
    (prepared,), pixels = products, _chunk_pixels(program)
    padded = prepared.workspace_floats(prepared.copying.together, 1) // 2 + 8
    return pixels, padded, pixels


@kernel(allocates=False)
def _float(first, end, task, origins, places, strips, operands, sources, program):
    """Compute output pixels first to end - 1, numbered across all images."""
    slots, masks, rest, size, pixels = places
    base, origins = task * size, origins[task]
    (copying, tables), source, floats = operands, sources[0], program.memory[0]
    per_image, copies = len(tables.pixels), copying.copies
    images = (end - 1) // per_image + 1
    together = copying.together if copies else images
    strip, slot = 2 * base + strips[0, 2], 2 * (base + rest)
    for image in range(first // per_image, images, together):
        after = min(image + together, images)
        last = min(end, after * per_image)
        if copies:
            ordered.pad_images(source, image, after, floats, slot, copying)
        for start in range(max(first, image * per_image), last, pixels):
            stop = min(start + pixels, last)
            if copies:
                at = slot - image * tables.image_stride
                ordered_sums.sums(start, stop, floats, at, floats, strip, tables)
            else:
                ordered_sums.sums(start, stop, source, np.int64(0), floats, strip, tables)
            _move(origins, strips, start, program.tables[3], base)
            _apply(program, start, stop, origins, base + slots, base + masks)


# ------------------------------------------------------------------------------ depth-wise products


def _lay_out_depthwise(plans, program):
    # Words for a padded image, the counts and the sums of a row, for each producer.
    padded = _even(max([2 * len(plan.padded) for plan in plans]))
    counts = _even(max([2 * 6 * plan.run for plan in plans]))
    row = _even(max([plan.minus_base.shape[1] // 4 + 16 for plan in plans]))
    extra = MOST_PRODUCERS * padded + counts + row
    _, width, channels = program.shape
    rows = max(1, _CHUNK // (width * channels))
    return rows * width, extra, padded, counts, rows


@kernel(allocates=False)
def _depthwise(first, end, task, origins, places, strips, plans, sources, program):
    """Compute output rows first to end - 1, numbered across all images."""
    slots, masks, rest, size, padded_words, counts_words, rows = places
    base, origins = task * size, origins[task]
    _, integers, words, octets = program.memory
    at = base + rest
    counts_at = at + MOST_PRODUCERS * padded_words
    row_at = counts_at + counts_words
    for k in range(len(strips)):
        plan = plans[k]
        copy(plan.padded, 0, words, at + k * padded_words, len(plan.padded))
    out_height, out_width = plans[0].windows.out_height, plans[0].windows.out_width
    numbers = out_width * program.tables[3]  # of a row
    for start in range(first, end, rows):
        stop = min(start + rows, end)
        for k in range(len(strips)):
            plan = plans[k]
            padded = words[at + k * padded_words : at + k * padded_words + len(plan.padded)]
            for item in range(start, stop):
                n, oy = item // out_height, item % out_height
                if oy == 0 or item == first:
                    length = plan.windows.height * plan.windows.width * plan.words
                    depthwise.pad_image(plan, sources[k][n * length : (n + 1) * length], padded)
                counts = words[counts_at : counts_at + 6 * plan.run]
                row = octets[8 * row_at :]
                row_start = oy * plan.windows.row_stride * plan.row_words
                depthwise.count_agreements(plan, padded, row_start, counts)
                depthwise.unpack_counts(plan, counts, plan.row_class[oy], row)
                # Numbers written behind a row, or behind a strip, are overwritten by the next one
                # or by the program.
                to = 2 * base + strips[k, 2] + (item - start) * numbers
                depthwise.copy_sums(plan, row, integers, to)
        _move(origins, strips, start * out_width, program.tables[3], base)
        _apply(program, start * out_width, stop * out_width, origins, base + slots, base + masks)


# ---------------------------------------------------------------------------------- binary products


def _lay_out_xnor(products, program):
    per_image = math.prod(program.shape[:-1])
    # Images padded at a time: enough pixels that the cost of starting a chunk is negligible.
    together = max(1, _CHUNK_PIXELS // per_image)
    tables = [product.tables for product in products]
    # Words for the padded images of one producer, and pixels between two copies.
    slot = together * max([t.image_stride * t.copies for t in tables])
    step = together * per_image if slot else _ALL_PIXELS
    pixels = _chunk_pixels(program)
    return pixels, MOST_PRODUCERS * slot, pixels, slot, step


_ALL_PIXELS = 1 << 62


def _xnor_operands(products):
    """Return the masks of ternary weights, and the tables of each product."""
    return _filled([p.masks for p in products]), _filled([tuple(p.tables) for p in products])


@kernel(allocates=False)
def _xnor(first, end, task, origins, places, strips, operands, sources, program):
    """Compute output pixels first to end - 1, numbered across all images."""
    slots, masks, rest, size, pixels, slot, step = places
    base, origins = task * size, origins[task]
    (masks_of, tables), (_, integers, words, _) = operands, program.memory
    start = first
    while start < end:
        stop = min(start // step * step + step, end)
        for k in range(len(strips)):
            if Tables(*tables[k]).copies:
                xnor.pad(start, stop, sources[k], words, base + rest + k * slot, tables[k])
        for chunk in range(start, stop, pixels):
            chunk_end = min(chunk + pixels, stop)
            for k in range(len(strips)):
                of = Tables(*tables[k])
                sums = integers[2 * base + strips[k, 2] :]
                if of.copies:
                    at = base + rest + k * slot - start // len(of.pixels) * of.image_stride
                    xnor.sums_of(chunk, chunk_end, words, at, masks_of[k], tables[k], sums)
                else:
                    source, at = sources[k], np.int64(0)
                    xnor.sums_of(chunk, chunk_end, source, at, masks_of[k], tables[k], sums)
            _move(origins, strips, chunk, program.tables[3], base)
            _apply(program, chunk, chunk_end, origins, base + slots, base + masks)
        start = stop


class _Kind(NamedTuple):
    """Functions for one kind of producers.

    Attributes
    ----------
    kernel : callable
        Computes a task.
    lay_out : callable
        (products, program) -> pixels of a chunk, words that the kernel needs, and more places.
    operands : callable
        Products -> their data as the kernel reads it.
    """

    kernel: object
    lay_out: object
    operands: object


_KINDS = {
    "none": _Kind(_alone, _lay_out_alone, tuple),
    "float": _Kind(
        _float, _lay_out_float, lambda products: (products[0].copying, products[0].tables)
    ),
    "depthwise": _Kind(_depthwise, _lay_out_depthwise, _filled),
    "xnor": _Kind(_xnor, _lay_out_xnor, _xnor_operands),
    "ternary": _Kind(_xnor, _lay_out_xnor, _xnor_operands),
    "xnor_bytes": _Kind(_xnor, _lay_out_xnor, _xnor_operands),
    "ternary_bytes": _Kind(_xnor, _lay_out_xnor, _xnor_operands),
    "look_ups": _Kind(_xnor, _lay_out_xnor, _xnor_operands),
}


# ------------------------------------------------------------------------------- products alone


def bind_product(prepared: Producer, x: Array, out: Array, memory: Words) -> Callable[[], Any]:
    """Prepare a product without a program: its sums, or bits, are written to ``out``.

    ``prepared``, ``x`` and ``out`` as in `xnor.run`, `depthwise.conv2d_sums` or `ordered.conv2d`;
    ``memory`` has at least ``prepared.workspace_words(len(x))`` words. Returns a callable, as
    `bind` does.
    """
    if prepared.kind == "float":
        return lambda: ordered.conv2d(prepared, x, out, memory.view(np.float32))
    if prepared.kind != "depthwise":
        return xnor.bind(prepared, x, out, memory)
    if prepared.to_bits:
        return lambda: depthwise.conv2d_bits(prepared, x, out)
    return lambda: depthwise.conv2d_sums(prepared, x, np.int32, out)
