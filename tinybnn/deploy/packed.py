"""A packed model: a short program on bits, integers and, for real-valued layers, floats.

The program is a list of steps. Each step applies one of the `operations` to results of earlier
steps, and stores its constants (packed weights, thresholds) as plain arrays. A saved model contains
data only: loading it looks up operations by name and never runs code from the file.

Values between steps are float32 arrays (N, C, H, W) or (N, F) in channels-last memory, int32
accumulators (N, H, W, C) or (N, F), and words of bits (N, H, W, words) or (N, words).
"""

from __future__ import annotations

import collections
import functools
import math
import time
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tinybnn import storage, tables
from tinybnn.datasets import check_brightness
from tinybnn.deploy.operations import OPERATIONS, ToFloat, Unpack, UnpackFlattened
from tinybnn.deploy.plan import make_plan
from tinybnn.deploy.runtime import Profile, Workspace, block_size, carry_out, last_results
from tinybnn.deploy.shapes import expect_results, infer
from tinybnn.kernels.machine.layout import described
from tinybnn.kernels.machine.threads import count as thread_count
from tinybnn.kernels.machine.threads import num_threads, on_threads
from tinybnn.kernels.signs import bits, xnor

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from os import PathLike

    from numpy.typing import ArrayLike, NDArray

    from tinybnn.deploy.plan import Task
    from tinybnn.typing import Array, Shape, Words

# ------------------------------------------------------------------------------------- the program

_WORTH_A_THREAD = 3e-4  # seconds that a block takes; starting a thread takes a third of it
_ENOUGH = 64  # numbers whose signs are unlikely to be all +1 by chance


@dataclass
class Step:
    """One operation of a packed model.

    Attributes
    ----------
    name : str
        The layer of the float model.
    operation : str
        The name of an `Operation`.
    inputs : tuple of int
        Indices of the steps whose results are read; -1 is the model's input.
    arrays : dict of arrays
        Constants that are stored as arrays.
    settings : dict
        Constants that are stored as JSON.
    bits : dict of int
        Number of bits in a row, for arrays of words and for float arrays that hold signs only.
        They are stored as ceil(bits / 8) bytes a row.
    call : int
        Index of the float model's operation that ends here; `verify` compares with its output.
    layout : str
        Layout of the result: 'float', 'accumulator', 'bits', 'flattened bits', or 'internal'
        if it has no counterpart in the float model.
    shape : tuple of int
        Shape of that operation's output for one sample (of the image, for 'flattened bits').
    """

    name: str
    operation: str
    inputs: tuple[int, ...]
    arrays: dict[str, Array] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    bits: dict[str, int] = field(default_factory=dict)
    call: int = -1
    layout: str = "float"
    shape: Shape = ()

    def run(self, *values: Any) -> Array:
        """Compute the result, (N, ...), for arrays of input values."""
        return OPERATIONS[self.operation].run(*values, **self.arrays, **self.settings)

    def as_floats(self, value: Array) -> Array:
        """Convert a result to floats as in the float model: signs for bits, (N, C, H, W) order."""
        if self.layout == "accumulator":
            return ToFloat.run(value)
        if self.layout == "bits":
            return Unpack.run(value, count=self.shape[0])
        if self.layout == "flattened bits":
            return UnpackFlattened.run(value, image=self.shape)
        return value


class PackedModel:
    """A compiled model; created by `deploy.compile` or `PackedModel.load`.

    It can be shared by threads. It can be copied and pickled, also after predictions, and thus be
    passed to other processes.

    Attributes
    ----------
    input_shape : tuple of int
        Shape of one sample.
    steps : list of Step
        The program; the last step gives the output.
    calls : int
        Number of operations in the float model's forward pass.
    info : dict
        Notes that are saved with the model, as JSON values; empty after `deploy.compile`. The
        command line stores ``classes``, ``maximum`` (of a pixel) and ``dataset`` in it.
    version : int
        The version of the file format whose operations the program uses. Before version 3, batch
        norm was ((x - mean) * scale) * weight + bias, now it is alpha x + beta. A model that is
        loaded from an older file keeps its operations and its results.
    """

    KIND: str = "packed-model"
    VERSION: int = 3
    input_shape: Shape
    steps: list[Step]
    calls: int
    info: dict[str, Any]
    version: int = VERSION
    _DERIVED = (
        "_values", "tasks", "_block", "output_shape", "_free", "_range_is_known", "_block_seconds",
    )  # fmt: skip

    def __init__(
        self,
        input_shape: Sequence[int],
        steps: Sequence[Step],
        calls: int,
        info: dict[str, Any] | None = None,
    ) -> None:
        self.input_shape, self.steps, self.calls = (
            tuple(input_shape),
            list(steps),
            calls,
        )
        self.info = dict(info or {})
        self._free = []  # workspaces that no call is using
        self._range_is_known = False  # whether the range of an input was checked
        self._block_seconds = 0.0  # that the last block took

    def __getstate__(self) -> dict[str, Any]:
        """The state without plans and their memory, which a copy or unpickled model recreates."""
        return {name: value for name, value in vars(self).items() if name not in self._DERIVED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        PackedModel.__init__(self, self.input_shape, self.steps, self.calls, self.info)

    def run(self, x: Array) -> Iterator[tuple[Step, Array]]:
        """Run the steps one by one on x (N, *input_shape), and yield (step, result) for each.

        This is the reference for `predict`. Results are freed after their last use.
        """
        last_use = {source: i for i, step in enumerate(self.steps) for source in step.inputs}
        values = {-1: x}
        for i, step in enumerate(self.steps):
            values[i] = step.run(*(values[source] for source in step.inputs))
            yield step, values[i]
            for source in step.inputs:
                if last_use[source] == i:
                    values.pop(source, None)

    @functools.cached_property
    def _values(self):
        """The `Value` of each step's result."""
        return infer(self.input_shape, self.steps)

    @functools.cached_property
    def tasks(self) -> list[Task]:
        """The plan of `predict`: tasks, each a kernel call for one or more steps."""
        return make_plan(self.input_shape, self.steps, self._values)

    @functools.cached_property
    def _block(self):
        return block_size(self.tasks)

    def run_plan(
        self, x: Array, clock: list[float] | None = None, packs: Collection[int] = ()
    ) -> Iterator[tuple[Step, Array]]:
        """Run the plan of `predict`, and yield (step, result); fused steps yield no result.

        Read a result before requesting the next one: its memory is reused.

        Parameters
        ----------
        x : (N, *input_shape) float32
        clock : list of float, optional
            Accumulates the seconds of each task.
        packs : collection of int
            Steps to skip because x already is their result: see `predict_packed`.
        """
        workspace = self._workspace(len(x))
        for task, results in carry_out(self.tasks, workspace, x, clock, packs):
            for i, result in zip(task.steps, results, strict=True):
                yield self.steps[i], result
        self._free.append(workspace)

    def _workspace(self, samples):
        """Memory for a block: a workspace that an earlier call released, or a new one."""
        while self._free:
            workspace = self._free.pop()  # not shared between concurrent calls
            if workspace.samples >= samples:
                return workspace
        return Workspace(self.tasks, samples)

    def predict(
        self,
        x: Array,
        batch_size: int | None = None,
        out: Array | None = None,
        threads: int | None = None,
    ) -> NDArray[np.float32]:
        """Compute the model's output.

        Buffers are kept for later calls; concurrent calls have their own.

        Parameters
        ----------
        x : (N, *input_shape) float32
            Inputs as in training; transform pixels as the training data, for example by
            ``datasets.to_signed(255)``. A warning is issued if the first sample looks
            untransformed.
        batch_size : int, optional
            Number of samples processed at a time; by default as many as fit the cache. It does not
            affect the result.
        out : (N, ...) float32, optional
            Array that the output is written to.
        threads : int, optional
            Number of threads; default: see `kernels.machine.threads.num_threads`. It does not
            affect the result.

        Returns
        -------
        (N, ...) float32
            Equal to the float model's output in eval mode, bit for bit.
        """
        x = self.check_input(x)
        if not self._range_is_known:
            self._warn_of_pixels(x)
        return self._predict(x, (), batch_size, out, threads)

    def predict_packed(
        self,
        words: Words,
        batch_size: int | None = None,
        out: Array | None = None,
        threads: int | None = None,
    ) -> NDArray[np.float32]:
        """Compute the model's output for an input that is already packed, such as stored codes.

        Parameters
        ----------
        words : (N, words) or (N, H, W, words) uint64
            The signs of the input, packed by `kernels.signs.bits.pack`: features (F,) in a row,
            images (C, H, W) pixel by pixel.
        batch_size, out, threads
            As in `predict`.

        Returns
        -------
        (N, ...) float32
            Equal to the result of `predict` for the unpacked signs.

        Raises
        ------
        ValueError
            If the model reads more than the signs of its input, or the words have a wrong shape.
        """
        packs = [i for i, step in enumerate(self.steps) if -1 in step.inputs]
        for i in packs:
            if self.steps[i].operation != "pack":
                raise ValueError(
                    f"predict_packed: {self.steps[i].name} ({self.steps[i].operation}) reads the "
                    "input as floats, not just its signs"
                )
        return self._predict(self._check_words(words), packs, batch_size, out, threads)

    def _predict(self, x, packs=(), batch_size=None, out=None, threads=None):
        if batch_size is None:
            batch_size = self._block
        elif batch_size < 1:
            raise ValueError(f"predict: batch_size must be >= 1, got {batch_size!r}")
        shape = (len(x), *self.output_shape)
        if out is None:
            out = np.empty(shape, np.float32)
        elif out.shape != shape or out.dtype != np.float32 or not out.flags.writeable:
            raise ValueError(f"predict: out must be float32 of shape {shape}, got {described(out)}")

        def predict(start):
            part = x[start : start + batch_size]
            workspace = self._workspace(len(part))
            *_, result = last_results(self.tasks, workspace, part, packs)
            out[start : start + batch_size] = result
            self._free.append(workspace)  # after copying: now another call may use its memory

        starts = range(0, len(x), batch_size)
        with num_threads(threads):
            spread = self._blocks_to_spread(len(x) // batch_size)
            on_threads(predict, starts[:spread])
            for start in starts[spread:]:
                began = time.perf_counter()
                predict(start)
                self._block_seconds = time.perf_counter() - began
        return out

    def _blocks_to_spread(self, blocks):
        """The number of blocks to compute at the same time, one per thread.

        Threads that have a block each need not wait for one another after each kernel. This pays if
        the last block took longer than starting a thread does.
        """
        if self._block_seconds < _WORTH_A_THREAD:
            return 0
        return blocks // thread_count() * thread_count() if thread_count() > 1 else 0

    @functools.cached_property
    def output_shape(self) -> Shape:
        """Shape of the output for one sample."""
        return self._values[-1].shape

    def profile(self, x: Array, repetitions: int = 10, threads: int | None = None) -> Profile:
        """Measure the time of each task of a prediction.

        Parameters
        ----------
        x : (N, *input_shape) float32
            Processed as one block.
        repetitions : int
            Number of runs; the result is their median.
        threads : int, optional
            As in `predict`.

        Returns
        -------
        Profile
            A list that prints as a table: for each task a dict with ``layer`` (names of its
            layers), ``operations`` (names of its steps), ``seconds``, ``share`` of the total time,
            ``products`` of signs (bit multiply-accumulates), ``rate`` (products per second), and
            ``peak_share``, the rate relative to the threads' peak on registers, without memory
            access (`kernels.signs.xnor.register_peak`).
        """
        x = self.check_input(x)
        with num_threads(threads):
            collections.deque(self.run_plan(x), maxlen=0)  # warm-up: compile and allocate
            runs = []
            for _ in range(repetitions):
                runs.append([0.0] * len(self.tasks))
                collections.deque(self.run_plan(x, runs[-1]), maxlen=0)
            peak = xnor.register_peak(20_000) * thread_count()
        seconds = np.median(runs, axis=0)
        rows = []
        for task, s in zip(self.tasks, seconds, strict=True):
            steps = [self.steps[i] for i in sorted(task.covers)]
            products = task.products * len(x)
            rows.append(
                {
                    "layer": " + ".join(dict.fromkeys(step.name for step in steps)),
                    "operations": [step.operation for step in steps],
                    "seconds": float(s),
                    "share": float(s / seconds.sum()),
                    "products": products,
                    "rate": products / float(s),
                    "peak_share": products / float(s) / peak,
                }
            )
        return Profile(rows)

    def check_input(self, x: ArrayLike) -> NDArray[np.float32]:
        """Return x as an array (N, *input_shape) float32, or raise a ValueError."""
        x = np.asarray(x)
        if x.dtype != np.float32 or x.shape[1:] != self.input_shape or x.ndim == 0:
            expected = ", ".join(map(str, ("N", *self.input_shape)))
            message = (
                f"PackedModel: x must be float32 of shape ({expected}), "
                f"got {x.dtype} of shape {x.shape}"
            )
            if x.dtype.kind in "iu":
                message += (
                    "; convert pixels by the transform of the training data, by default "
                    f"{self._transform()}(x, None)"
                )
            elif x.dtype.kind == "f" and x.dtype != np.float32:
                message += "; use x.astype(np.float32)"
            if x.shape == self.input_shape:
                message += "; use x[None] for a single sample"
            raise ValueError(message)
        return x

    def _transform(self):
        """The usual transform of pixels, as source text."""
        maximum = self.info.get("maximum")
        return f"datasets.to_signed({'maximum' if maximum is None else format(maximum, 'g')})"

    def _reads_signs(self):
        """Whether the program reads only the signs of its input."""
        same = {-1}
        for i, step in enumerate(self.steps):
            if not same.isdisjoint(step.inputs):
                if step.operation == "reshape":
                    same.add(i)
                elif step.operation != "pack":
                    return False
        return len(self.steps) - 1 not in same

    def _warn_of_pixels(self, x):
        """Warn if pixels are unscaled (0 to 255) but the model expects them from -1 to 1.

        This is known if `info` has the ``maximum`` of a pixel, or if the model reads only the signs
        of its input, which would all be +1.
        """
        if not x.size:
            return
        first = x[0]
        has_negative = first.min() < 0
        if not has_negative and first.max() <= 1:
            return  # undecided, for example a black image: check again at the next call
        self._range_is_known = True
        if has_negative:
            return
        reads_signs = self._reads_signs()
        if "maximum" in self.info or (reads_signs and first.size >= _ENOUGH):
            reason = "reads the signs of its input" if reads_signs else "takes pixels from -1 to 1"
            warnings.warn(
                f"PackedModel: this model {reason}, but x[0] goes from {first.min():g} to "
                f"{first.max():g}; predict {self._transform()}(x, None), or apply the transform "
                "of the training data",
                stacklevel=3,
            )

    def _check_words(self, words):
        """Return the packed input as an array of uint64 words, or raise a ValueError."""
        channels, *pixels = self.input_shape
        words, shape = np.asarray(words), (*pixels, bits.words_for(channels))
        if words.dtype != np.uint64 or words.shape[1:] != shape or words.ndim == 0:
            expected = ", ".join(map(str, ("N", *shape)))
            raise ValueError(
                f"predict_packed: words must be uint64 of shape ({expected}), "
                f"got {words.dtype} of shape {words.shape}"
            )
        if channels % 64 and np.any(words[..., -1] >> np.uint64(channels % 64)):
            raise ValueError(f"predict_packed: words has bits set after the {channels} of a row")
        return words

    # ---------------------------------------------------------------------------------- on disk

    def _stored(self):
        """Arrays by their names in the file, and the metadata.

        Equal arrays of signs are stored once, and so are equal floats within a layer: AdaBin
        multiplies the same weights with its input and with ones.
        """
        arrays, table, known = {}, [], {}
        for i, step in enumerate(self.steps):
            joined, stored = {}, {}
            for name, array in sorted(step.arrays.items()):  # the order after loading
                if name in step.bits:
                    count = step.bits[name]
                    if array.dtype != np.uint64:
                        array = bits.pack(array.reshape(len(array), -1))
                    if count < 8:  # join short rows: a depth-wise filter has a bit for each tap
                        joined[name] = array.shape[:-1]
                        array = bits.pack(bits.unpack(array, count).reshape(-1))
                        count *= math.prod(joined[name])
                    array, place = bits.to_bytes(array, count), None  # shared by all layers
                else:
                    place = step.name if array.dtype.kind == "f" else (i, name)
                content = place, array.dtype.str, array.shape, array.tobytes()
                stored[name] = known.setdefault(content, f"{i}.{name}")
                arrays.setdefault(stored[name], array)
            entry = {key: value for key, value in vars(step).items() if key != "arrays"}
            entry["settings"] = {key: _to_json(value) for key, value in step.settings.items()}
            # Signs that float operations read: loaded as floats of this shape.
            signs = {
                name: step.arrays[name].shape
                for name in step.bits
                if step.arrays[name].dtype.kind == "f"
            }
            table.append({**entry, "arrays": stored, "signs": signs, "joined": joined})
        return arrays, {
            "input_shape": self.input_shape,
            "calls": self.calls,
            "steps": table,
            "info": self.info,
        }

    def step_bytes(self) -> list[int]:
        """Return the stored bytes of each step's arrays; shared ones count for the first step."""
        sizes = [0] * len(self.steps)
        for name, array in self._stored()[0].items():
            sizes[int(name.split(".", 1)[0])] += array.nbytes
        return sizes

    @property
    def nbytes(self) -> int:
        """Total bytes of the stored arrays: packed weights, thresholds, remaining floats."""
        return sum(self.step_bytes())

    def save(self, path: str | PathLike[str]) -> int:
        """Write the model to a file (atomically), and return the file's size in bytes.

        Raises
        ------
        ValueError
            If its `info` or the name of a layer is not valid for `load`.
        OSError
            If the file cannot be written.
        """
        _check_info(self.info, self.output_shape)
        for i, step in enumerate(self.steps):
            storage.check_name(step.name, f"the name of step {i}")
        arrays, metadata = self._stored()
        return storage.save(path, arrays, kind=self.KIND, version=self.version, metadata=metadata)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> PackedModel:
        """Read a model that `save` wrote.

        Raises
        ------
        StorageError
            If the file is damaged, of another kind, or of a newer version.
        """
        version = storage.read_header(path)["version"]
        arrays, metadata = storage.load(path, kind=cls.KIND, version=cls.VERSION)
        with storage.expecting(path, "packed model"):
            stored = _StoredSigns(arrays)
            steps = [
                _read_step(i, dict(entry), arrays, stored)
                for i, entry in enumerate(metadata["steps"])
            ]
            info = metadata.get("info", {})
            packed = cls(metadata["input_shape"], steps, metadata["calls"])
            expect_results(steps, packed._values, packed.calls)
            _check_info(info, packed.output_shape)
            packed.info = dict(info)
            # Files of version 1 differ from those of version 2 in form only, not in operations.
            packed.version = max(2, version)
            return packed

    def __repr__(self) -> str:
        lines = [f"  {i}: {s.operation} {s.shape} <- {s.name}" for i, s in enumerate(self.steps)]
        return f"PackedModel(input_shape={self.input_shape}, {self.nbytes} bytes\n" + "\n".join(
            [*lines, ")"]
        )

    def _repr_html_(self):
        header = ("step", "operation", "output", "layer", "bytes")
        rows = [
            (i, step.operation, "×".join(map(str, step.shape)), step.name, f"{size:,}")
            for i, (step, size) in enumerate(zip(self.steps, self.step_bytes(), strict=True))
        ]
        shape = "×".join(map(str, self.input_shape))
        title = f"{type(self).__name__}: input {shape}, {self.nbytes:,} bytes"
        return tables.html(header, rows, "><<<>", title)


_NOT_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}  # not available in JSON


def _to_json(value):
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _from_json(value):
    if isinstance(value, list):  # JSON turned tuples into lists
        return tuple(map(_from_json, value))
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value


def _check_info(info, output_shape):
    """Check types and sizes of the entries of `PackedModel.info` that the command line reads."""
    if not isinstance(info, dict):
        raise ValueError(f"info must be a mapping, got {type(info).__name__}")
    classes, maximum = info.get("classes"), info.get("maximum", 1)
    if classes is not None:
        if not isinstance(classes, list | tuple) or len(classes) != math.prod(output_shape):
            raise ValueError(
                f"info's classes must be a list of {math.prod(output_shape)} names, one an output"
            )
        for name in classes:
            storage.check_name(name, "a name in info's classes")
    if type(maximum) not in (int, float) or not 0 < maximum <= 1e38:
        raise ValueError(f"info's maximum must be a number above 0, got {maximum!r}")
    if "dataset" in info:
        storage.check_name(info["dataset"], "info's dataset")
    check_brightness(info.get("brightness"), "info's brightness")


class _StoredSigns:
    """Unpacks rows of words, or floats of ±1, from a file's bytes; steps share the results."""

    def __init__(self, arrays):
        self.arrays, self.made = arrays, {}
        # A row of a single bit becomes a word, 64 times as large, and a few layers may share the
        # bits in different shapes. A file that needs more is a decompression bomb.
        self.left = 256 * sum(array.nbytes for array in arrays.values())

    def read(self, key, count, rows, signs):
        """The array with this key.

        Parameters
        ----------
        key : str
        count : int
            Number of bits in a row.
        rows : tuple of int, or None
            The shape without the last axis, if rows are stored without padding between them.
        signs : tuple of int, or None
            The shape of the floats; None for words.
        """
        content = key, count, rows, signs
        if content not in self.made:
            all_bits = count if rows is None else count * math.prod(rows)
            array = bits.from_bytes(self.arrays[key], all_bits)
            if rows is not None:
                self._take(8 * math.prod(rows) * bits.words_for(count))
                array = bits.pack(bits.unpack(array, all_bits).reshape(*rows, count))
            if signs is not None:
                array = bits.unpack(array, count).reshape(signs)
            self._take(array.nbytes)
            self.made[content] = array
        return self.made[content]

    def _take(self, size):
        self.left -= size
        if self.left < 0:
            raise ValueError("its steps read the same signs in too many ways")


def _whole(name, numbers):
    """Check that `numbers` is a list of ints, and return it as a tuple."""
    if not isinstance(numbers, list) or any(type(n) is not int for n in numbers):
        raise ValueError(f"{name} must be ints, got {numbers!r}")
    return tuple(numbers)


def _read_step(i, entry, arrays, stored_signs):
    """Create a step from its description in the file; anything unexpected is an error."""
    stored, signs, joined = entry.pop("arrays"), entry.pop("signs"), entry.pop("joined", {})
    if isinstance(stored, list):  # version 1: names only, arrays are not shared
        stored = {name: f"{i}.{name}" for name in stored}
    entry["arrays"] = {name: arrays[key] for name, key in stored.items()}
    for name in ("inputs", "shape"):
        entry[name] = _whole(name, entry[name])
    entry["settings"] = {key: _from_json(value) for key, value in entry["settings"].items()}
    step = Step(**entry)
    storage.check_name(step.name, f"the name of step {i}")
    storage.check_name(step.operation, f"the operation of step {i}")
    if any(not -1 <= source < i for source in step.inputs):
        raise ValueError(f"step {i} reads a later step")
    for name, count in step.bits.items():
        (count,) = _whole("bits", [count])
        rows, shape = (
            _whole("a shape", shapes[name]) if name in shapes else None
            for shapes in (joined, signs)
        )
        step.arrays[name] = stored_signs.read(stored[name], count, rows, shape)
    return step
