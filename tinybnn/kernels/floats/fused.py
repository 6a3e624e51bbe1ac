"""A product and what follows it, in one pass: no array of the sums exists.

A layer is one or more products (binary, depth-wise, or of floats) and a `pointwise` program that
reads their sums. A few pixels' sums are made in scratch memory that stays in the cache, the program
turns them into the layer's floats and bits, and the next few pixels follow. Two products whose sums
meet in one program are the dual binary ("1.58-bit") convolution of BD-Net; AdaBin's sum of the
signs in a window is a product with one filter, whose number holds for all channels of a pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np

from tinybnn.kernels.floats import pointwise, signed
from tinybnn.kernels.machine import parallel, threads
from tinybnn.kernels.machine.layout import described, for_kernel
from tinybnn.kernels.machine.memory import empty
from tinybnn.kernels.machine.simd import inlined, kernel
from tinybnn.kernels.machine.threads import tasks_for
from tinybnn.kernels.signs import depthwise, xnor
from tinybnn.kernels.signs.bits import words_for

MOST_PRODUCERS = 3
_CHUNK = 16384  # numbers that a program works on at a time, about: they stay in the second cache
_CHUNK_PIXELS = 256  # pixels at most
# A second's products of signs, products of floats, and products of instructions and numbers.
_PRODUCTS, _MULTIPLICATIONS, _NUMBERS = 1e12, 3e10, 3e10


def kind(prepared):
    """Which kernel makes the sums of a prepared product.

    "xnor", "ternary" (the same with masks, compiled for them), "depthwise" or "float".
    """
    if isinstance(prepared, xnor.Prepared):
        return "ternary" if prepared.is_ternary else "xnor"
    return "depthwise" if isinstance(prepared, depthwise.Plan) else "float"


@dataclass(frozen=True, eq=False)
class Layer:
    """Products and the program that reads their sums; made by `prepare`.

    Attributes
    ----------
    producers : tuple
        For each input of the program a prepared product, or None for an array that is given.
    program : pointwise.Program
    kind : str
        Of the producers; "none" if there are none.
    products : int
        Products of signs a sample.
    seconds : float
        Roughly what one core needs for a sample.
    """

    producers: tuple
    program: pointwise.Program
    kind: str
    products: int
    seconds: float

    def memory_words(self, samples):
        """Words of scratch memory that `run` needs for so many samples, at most."""
        return threads.most() * _KINDS[self.kind].places(self, samples)[_SIZE]


def prepare(producers, program):
    """Join products and a program.

    Parameters
    ----------
    producers : sequence
        For each input of the program what makes it: an `xnor.Prepared`, a `depthwise.Plan` (each
        without thresholds; inputs "sums", or "pixels" for one filter), a `signed.PreparedConv2d`
        (input "floats"), or None for an array that is given to `run`. Producers are of one kind and
        at most 3; each has as many output pixels as the program.
    program : pointwise.Program

    Returns
    -------
    Layer

    Raises
    ------
    ValueError
        If something does not fit.
    """
    producers = tuple(producers)
    if len(producers) != len(program.inputs):
        raise ValueError(
            f"prepare: the program takes {len(program.inputs)} inputs, "
            f"got {len(producers)} producers"
        )
    found = [(p, i) for i, p in enumerate(producers) if p is not None]
    kinds = {kind(p) for p, _ in found}
    if len(kinds) > 1 or len(found) > (1 if kinds == {"float"} else MOST_PRODUCERS):
        raise ValueError(
            f"prepare: at most {MOST_PRODUCERS} producers of one kind (one of floats), "
            f"got {len(found)} of {sorted(kinds)}"
        )
    *pixels, channels = program.shape
    for producer, i in found:
        makes = "floats" if isinstance(producer, signed.PreparedConv2d) else "sums"
        shape = output_shape(producer)
        expected = (*pixels, channels if program.inputs[i] == makes else 1)
        if program.inputs[i] not in (makes, "pixels") or shape != expected:
            raise ValueError(
                f"prepare: input {i} of the program is {program.inputs[i]} for {program.shape}, "
                f"its producer gives {makes} of shape {shape}"
            )
        if not isinstance(producer, signed.PreparedConv2d) and gives_bits(producer):
            raise ValueError(f"prepare: the producer of input {i} has thresholds, it gives bits")
    (of,) = kinds or {"none"}
    of_signs = sum(products(producer) for producer, _ in found)
    seconds = of_signs / _PRODUCTS + math.prod(program.shape) * len(program.code) / _NUMBERS
    if of == "float":
        seconds += sum(producer.work for producer, _ in found) / _MULTIPLICATIONS
    return Layer(producers, program, of, of_signs, seconds)


def output_shape(prepared):
    """Shape of a prepared product's sums for a sample."""
    if isinstance(prepared, depthwise.Plan):
        return *prepared.windows.out_size, prepared.channels
    return tuple(prepared.output_shape)


def gives_bits(prepared):
    """Whether a binary product has thresholds."""
    return (
        len(prepared.not_levels) > 0 if isinstance(prepared, depthwise.Plan) else prepared.to_bits
    )


def products(prepared):
    """Products of signs that a prepared product computes for a sample; 0 for floats."""
    if isinstance(prepared, signed.PreparedConv2d):
        return 0
    if isinstance(prepared, depthwise.Plan):
        return prepared.channels * prepared.windows.taps * math.prod(prepared.windows.out_size)
    return prepared.products


def run(layer, inputs, outputs, memory=None):
    """Carry out a layer.

    Parameters
    ----------
    layer : Layer
    inputs : sequence of arrays
        What each producer reads, (N, H, W, words) uint64 (or (N, words) for a matrix product) or
        (N, H, W, C) float32; where there is no producer, the program's input.
    outputs : sequence of arrays
        Contiguous, (N, ..., C) float32 or (N, ..., words_for(C)) uint64, to be written to.
    memory : (n,) uint64, optional
        Scratch, at least ``layer.memory_words(N)`` words.

    Raises
    ------
    ValueError
        If something does not fit.
    """
    bind(layer, [for_kernel(x) for x in inputs], outputs, memory)()


def bind(layer, inputs, outputs, memory=None):
    """What `run` does, for the same arrays again and again: all but the work itself is done here.

    Returns
    -------
    callable
        Without arguments. It uses as many threads as are set now.
    """
    samples = len(inputs[0])
    check(layer, samples, inputs, outputs)
    tasks = tasks_for(samples * layer.seconds)
    of = _KINDS[layer.kind]
    strips, *places = of.places(layer, samples)
    needed = tasks * places[_SIZE - 1]
    if memory is None:
        memory = empty(needed, np.uint64)
    elif memory.dtype != np.uint64 or memory.ndim != 1 or len(memory) < needed:
        raise ValueError(
            f"run: memory must be a row of at least {needed} words, "
            f"got {memory.dtype} of shape {memory.shape}"
        )
    wiring = _Wiring(layer, inputs, outputs, memory, strips)
    items, worker, arguments = of.bind(layer, samples, tuple(places), wiring)
    shares = parallel.shares(items, tasks)
    origins = np.zeros((tasks, 3, pointwise.MOST_INPUTS), np.int64)
    work = parallel.bind(worker, shares, origins, *arguments)
    # inf - inf is NaN without a warning in compiled code; the same when the JIT is off.
    return np.errstate(all="ignore")(work) if numba.config.DISABLE_JIT else work


def check(layer, samples, inputs, outputs):
    """Hold the arrays of a call against the layer, or a ValueError."""
    program = layer.program
    *pixels, channels = program.shape
    if len(inputs) != len(layer.producers) or len(outputs) != len(program.outputs):
        raise ValueError(
            f"run: the layer takes {len(layer.producers)} inputs and "
            f"{len(program.outputs)} outputs, got {len(inputs)} and {len(outputs)}"
        )
    for i, (producer, what, array) in enumerate(
        zip(layer.producers, program.inputs, inputs, strict=True)
    ):
        if producer is None:
            dtype = np.float32 if what == "floats" else np.int32
            shape = (*pixels, 1 if what == "pixels" else channels)
        else:
            dtype, shape = _reads(producer)
        _check_array(f"input {i}", array, dtype, (samples, *shape))
    for i, (what, array) in enumerate(zip(program.outputs, outputs, strict=True)):
        dtype = np.float32 if what == "floats" else np.uint64
        shape = (samples, *pixels, channels if what == "floats" else words_for(channels))
        _check_array(f"output {i}", array, dtype, shape)


def _reads(prepared):
    """Dtype and shape of a sample of what a prepared product reads."""
    if isinstance(prepared, depthwise.Plan):
        return np.uint64, (*prepared.windows.size, prepared.words)
    dtype = np.float32 if isinstance(prepared, signed.PreparedConv2d) else np.uint64
    return dtype, tuple(prepared.input_shape)


def _check_array(name, array, dtype, shape):
    if array.dtype != dtype or array.shape != shape or not array.flags.carray:
        raise ValueError(
            f"run: {name} must be contiguous {np.dtype(dtype)} of shape {shape}, "
            f"got {described(array)}"
        )


# --------------------------------------------------------------------------------- scratch memory

# The scratch memory of a task, in words: the sums of a chunk for each producer, the program's slots
# and masks, and what the producer's kernel needs. The kernels see the same memory as words and as
# 32-bit numbers, so places are counted in words, and there are two 32-bit numbers to a word.


def _even(numbers):
    """Words for so many 32-bit numbers, in whole cache lines."""
    return -(-numbers // 16) * 8


def _chunk_pixels(layer):
    """Pixels of a chunk: enough of them that a product finds some for each load of its weights."""
    return min(_CHUNK_PIXELS, max(16, _CHUNK // layer.program.shape[-1] // 4 * 4))


def _places(layer, pixels, extra=0):
    """Where in a task's memory everything begins, for chunks of so many pixels.

    Returns
    -------
    strips : list of int
        For each input the place of its chunk's sums; -1 without producer.
    slots, masks, rest, size : int
        ``rest`` is where ``extra`` words begin.
    """
    channels, place, strips = layer.program.shape[-1], 0, []
    for producer, what in zip(layer.producers, layer.program.inputs, strict=True):
        strips.append(-1 if producer is None else place)
        if producer is not None:
            place += _even(pixels * (1 if what == "pixels" else channels))
    slots = place
    masks = slots + _even(pointwise.slot_floats(layer.program))
    rest = masks + _even(2 * pointwise.mask_words(layer.program, pixels * channels))
    return strips, slots, masks, rest, rest + _even(2 * extra)


_SIZE = 4  # where it stands in what `_places` returns, and so in what each kind's function does


class _Wiring:
    """The arrays of a call, as the kernels take them."""

    def __init__(self, layer, inputs, outputs, memory, strips):
        words, floats, integers = memory, memory.view(np.float32), memory.view(np.int32)
        given = {"floats": [], "sums": [], "pixels": []}
        self.producers, self.sources, self.rows = [], [], []
        for producer, what, array, strip in zip(
            layer.producers, layer.program.inputs, inputs, strips, strict=True
        ):
            if producer is None:
                given[what].append(array)
                continue
            # Row of the origins, column, place of the strip: the kernels move the origin along.
            row = ("floats", "sums", "pixels").index(what)
            self.rows.append((row, len(given[what]), 2 * strip))
            self.producers.append(producer)
            self.sources.append(array.reshape(-1))
            given[what].append(floats if what == "floats" else integers)
        results = {"floats": [], "bits": []}
        for what, array in zip(layer.program.outputs, outputs, strict=True):
            results[what].append(array)
        self.program = _Program(
            pointwise.tables(layer.program), pointwise.arrays(given, results),
            (floats, integers, words),
        )  # fmt: skip


class _Program(NamedTuple):
    """What carries out a program: its tables, its arrays, and scratch memory under three types."""

    tables: tuple
    arrays: pointwise.Arrays
    memory: tuple


@inlined
def _apply(program, first, end, origins, slots, masks):
    """The program, for pixels first to end - 1."""
    (floats, _, words), channels = program.memory, program.tables[3]
    pointwise.chunk(
        program.tables, first * channels, end * channels, origins, program.arrays,
        pointwise.Scratch(floats, 2 * slots, words, masks),
    )  # fmt: skip


@inlined
def _move(origins, rows, first, channels, base):
    """Let the inputs that products make begin with pixel ``first``, in a task's memory."""
    for k in range(len(rows)):
        row, column, strip = rows[k]
        start = first if row == 2 else first * channels
        origins[row, column] = start - strip - 2 * base


# ------------------------------------------------------------------------------- without producers


def _places_alone(layer, samples):
    pixels = _chunk_pixels(layer)
    return *_places(layer, pixels), pixels


def _bind_alone(layer, samples, places, wiring):
    items = samples * math.prod(layer.program.shape[:-1])
    return items, _alone, (places, wiring.program)


@kernel(allocates=False)
def _alone(first, end, task, origins, places, program):
    slots, masks, _, size, pixels = places
    base, origins = task * size, origins[task]
    for start in range(first, end, pixels):
        stop = min(start + pixels, end)
        _apply(program, start, stop, origins, base + slots, base + masks)


# ------------------------------------------------------------------------------- products of floats


def _float_extra(layer, samples):
    """Words for padded images."""
    (prepared,) = (p for p in layer.producers if p is not None)
    return prepared.workspace_floats(samples, 1) // 2 + 8


def _places_float(layer, samples):
    pixels = _chunk_pixels(layer)
    return *_places(layer, pixels, _float_extra(layer, samples)), pixels


def _bind_float(layer, samples, places, wiring):
    (prepared,), (source,) = wiring.producers, wiring.sources
    product = source, np.array(wiring.rows)
    items = samples * math.prod(layer.program.shape[:-1])
    arguments = places, product, *signed.conv2d_arguments(prepared), wiring.program
    return items, _float, arguments


@kernel(allocates=False)
def _float(first, end, task, origins, places, product, copying, tables, program):
    """Output pixels first to end - 1, counted through all images."""
    slots, masks, rest, size, pixels = places
    base, origins = task * size, origins[task]
    (source, rows), floats = product, program.memory[0]
    per_image, copies = len(tables.pixels), copying.copies
    images = (end - 1) // per_image + 1
    together = copying.together if copies else images
    strip, slot = 2 * base + rows[0, 2], 2 * (base + rest)
    for image in range(first // per_image, images, together):
        after = min(image + together, images)
        last = min(end, after * per_image)
        if copies:
            signed.pad_images(source, image, after, floats, slot, copying)
        for start in range(max(first, image * per_image), last, pixels):
            stop = min(start + pixels, last)
            if copies:
                at = slot - image * tables.image_stride
                signed.sums(start, stop, floats, at, floats, strip, tables)
            else:
                signed.sums(start, stop, source, np.int64(0), floats, strip, tables)
            _move(origins, rows, start, program.tables[3], base)
            _apply(program, start, stop, origins, base + slots, base + masks)


# ------------------------------------------------------------------------------ depth-wise products


def _places_depthwise(layer, samples):
    plans = [p for p in layer.producers if p is not None]
    # Words for a padded image, the counts and the sums of a row, for each producer.
    padded = _even(max([2 * len(plan.padded) for plan in plans]))
    counts = _even(max([2 * 6 * plan.run for plan in plans]))
    row = _even(max([plan.minus_base.shape[1] // 4 + 16 for plan in plans]))
    extra = MOST_PRODUCERS * padded + counts + row
    return *_places(layer, layer.program.shape[1], extra), padded, counts


def _bind_depthwise(layer, samples, places, wiring):
    # As many as the kernel is compiled for; those beyond the rows are not used.
    more = MOST_PRODUCERS - len(wiring.rows)
    plans = tuple(wiring.producers + wiring.producers[:1] * more)
    sources = tuple(wiring.sources + wiring.sources[:1] * more)
    octets = wiring.program.memory[-1].view(np.int8)
    products = _Depthwise(np.array(wiring.rows), plans, sources, octets)
    items = samples * plans[0].windows.out_height
    return items, _depthwise, (places, products, wiring.program)


class _Depthwise(NamedTuple):
    """Depth-wise products, where their sums go, and the scratch memory as bytes."""

    rows: np.ndarray
    plans: tuple
    sources: tuple
    octets: np.ndarray


@kernel(allocates=False)
def _depthwise(first, end, task, origins, places, products, program):
    """Output rows first to end - 1, counted through all images."""
    slots, masks, rest, size, padded_words, counts_words = places
    base, origins = task * size, origins[task]
    (rows, plans, sources, octets), (_, integers, words) = products, program.memory
    at = base + rest
    counts_at = at + MOST_PRODUCERS * padded_words
    row_at = counts_at + counts_words
    for k in range(len(rows)):
        plan = plans[k]
        for i in range(len(plan.padded)):
            words[at + k * padded_words + i] = plan.padded[i]
    image = -1
    for item in range(first, end):
        out_height, out_width = plans[0].windows.out_height, plans[0].windows.out_width
        n, oy = item // out_height, item % out_height
        for k in range(len(rows)):
            plan = plans[k]
            padded = words[at + k * padded_words : at + k * padded_words + len(plan.padded)]
            if n != image:
                length = plan.windows.height * plan.windows.width * plan.words
                depthwise.pad_image(plan, sources[k][n * length : (n + 1) * length], padded)
            counts = words[counts_at : counts_at + 6 * plan.run]
            row = octets[8 * row_at :]
            start = oy * plan.windows.row_stride * plan.row_words
            depthwise.count_agreements(plan, padded, start, counts)
            depthwise.unpack_counts(plan, counts, plan.row_class[oy], row)
            # What is written behind this strip belongs to the next one, or to the program.
            depthwise.copy_sums(plan, row, integers, 2 * base + rows[k, 2])
        image = n
        start = item * out_width
        _move(origins, rows, start, program.tables[3], base)
        stop = start + out_width
        _apply(program, start, stop, origins, base + slots, base + masks)


# ---------------------------------------------------------------------------------- binary products


def _together(layer, samples):
    """Images that are padded at a time: enough pixels that starting a chunk does not count."""
    return min(samples, max(1, _CHUNK_PIXELS // math.prod(layer.program.shape[:-1])))


def _places_xnor(layer, samples):
    tables = [p.tables for p in layer.producers if p is not None]
    # Words for the padded images of one producer.
    slot = _together(layer, samples) * max([t.image_stride * t.copies for t in tables])
    pixels = _chunk_pixels(layer)
    return *_places(layer, pixels, MOST_PRODUCERS * slot), pixels, slot


def _bind_xnor(layer, samples, places, wiring):
    # As many as the kernel is compiled for; those beyond the rows are not used.
    more = MOST_PRODUCERS - len(wiring.rows)
    prepared = wiring.producers + wiring.producers[:1] * more
    zeros, tables = tuple([p.masks for p in prepared]), tuple([p.arguments for p in prepared])
    sources = tuple(wiring.sources + wiring.sources[:1] * more)
    # Pixels between two copies of images; all of them where none are needed.
    items = samples * math.prod(layer.program.shape[:-1])
    step = _together(layer, samples) * len(prepared[0].tables.pixels) if places[-1] else items
    products = _Binary(np.array(wiring.rows), zeros, tables, sources)
    return items, _xnor, ((*places, step), products, wiring.program)


class _Binary(NamedTuple):
    """Binary products, where their sums go; ``masks`` are those of ternary weights."""

    rows: np.ndarray
    masks: tuple
    tables: tuple
    sources: tuple


@kernel(allocates=False)
def _xnor(first, end, task, origins, places, products, program):
    """Output pixels first to end - 1, counted through all images."""
    slots, masks, rest, size, pixels, slot, step = places
    base, origins = task * size, origins[task]
    (rows, zeros, tables, sources), (_, integers, words) = products, program.memory
    start = first
    while start < end:
        stop = min(start // step * step + step, end)
        for k in range(len(rows)):
            if xnor.Tables(*tables[k]).copies:
                xnor.pad(start, stop, sources[k], words, base + rest + k * slot, tables[k])
        for chunk in range(start, stop, pixels):
            chunk_end = min(chunk + pixels, stop)
            for k in range(len(rows)):
                of = xnor.Tables(*tables[k])
                sums = integers[2 * base + rows[k, 2] :]
                if of.copies:
                    at = base + rest + k * slot - start // len(of.pixels) * of.image_stride
                    xnor.sums_of(chunk, chunk_end, words, at, zeros[k], tables[k], sums)
                else:
                    source, at = sources[k], np.int64(0)
                    xnor.sums_of(chunk, chunk_end, source, at, zeros[k], tables[k], sums)
            _move(origins, rows, chunk, program.tables[3], base)
            _apply(program, chunk, chunk_end, origins, base + slots, base + masks)
        start = stop


@dataclass(frozen=True)
class _Kind:
    """What the three kinds of producers, and none, have to say.

    Attributes
    ----------
    places : callable
        (layer, samples) -> what `_places` returns for a task, and more that the kernel has to know.
    bind : callable
        (layer, samples, places without the strips, wiring) -> the number of items that tasks share
        out, the kernel of a task, and its arguments after (first item, end, task, origins of all
        tasks).
    """

    places: object
    bind: object


_KINDS = {
    "none": _Kind(_places_alone, _bind_alone),
    "float": _Kind(_places_float, _bind_float),
    "depthwise": _Kind(_places_depthwise, _bind_depthwise),
    "xnor": _Kind(_places_xnor, _bind_xnor),
    "ternary": _Kind(_places_xnor, _bind_xnor),
}


# ------------------------------------------------------------------------------- products alone


def bind_product(prepared, x, out, memory):
    """A prepared product without a program: its sums, or bits, are written to ``out``.

    ``memory`` has at least `product_words` words. Returns a callable, as `bind` does.
    """
    if isinstance(prepared, xnor.Prepared):
        return xnor.bind(prepared, x, out, memory)
    if isinstance(prepared, signed.PreparedConv2d):
        return lambda: signed.conv2d(prepared, x, out, memory.view(np.float32))
    if gives_bits(prepared):
        return lambda: depthwise.conv2d_bits(prepared, x, out)
    return lambda: depthwise.conv2d_sums(prepared, x, np.int32, out)


def product_words(prepared, samples):
    """Words of scratch memory that `bind_product` needs for so many samples."""
    if isinstance(prepared, xnor.Prepared):
        return prepared.workspace_words(samples)
    return (
        prepared.workspace_floats(samples) // 2 + 1
        if isinstance(prepared, signed.PreparedConv2d)
        else 0
    )
