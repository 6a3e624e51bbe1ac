"""What is kept of a training: its history, and checkpoints to go on from.

A checkpoint holds everything that training changes: the state of the model, the optimizer and the
schedule, the history, and the state of every random generator in use. A run that was killed goes on
from its last complete epoch to the same final weights, bit for bit.
"""

from __future__ import annotations

import json
import math
import os
import re
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from numbers import Number
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from tinybnn import datasets, storage, tables
from tinybnn.autograd import Tensor, default_generator
from tinybnn.nn import LatentParameter, Module
from tinybnn.quantizers import Quantizer

if TYPE_CHECKING:
    from tinybnn.typing import Array

__all__ = ["Checkpoint", "History", "load_weights"]
__dir__: Callable[[], list[str]] = __all__.copy  # dir() lists the public names only


@dataclass
class History:
    """One row for each epoch.

    Attributes
    ----------
    rows : list of dict
        Keys: epoch (from 1), lr, loss and accuracy (running means over the epoch's training
        batches), flip_ratio (share of latent weights whose sign changed during the epoch),
        seconds; val_loss and val_accuracy where a validation set was given. A regression has no
        accuracies.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)

    def __getitem__(self, name: str) -> list[Any]:
        """Return the values of one column, e.g. ``history["loss"]``."""
        return [row[name] for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def _repr_html_(self):
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        rows = [[_cell(row.get(name, "")) for name in columns] for row in self.rows]
        title = f"{type(self).__name__}: {len(self)} epochs"
        return tables.html(columns, rows, ">" * len(columns), title)


def _cell(value):
    """Format a figure of a History for reading."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Checkpoint:
    """Everything that training changes, as a file.

    `fit` uses it, and so can a training loop of your own: call `restore` before the loop, and
    `save` wherever the state is complete, such as after each epoch.

    Random generators are found automatically: the default one, and every generator reachable
    through attributes of the model's layers and of the loaders. A shared generator stays shared.
    Seeds must be the same when training goes on, except that the default generator may be seeded
    in only one of the two runs: a run with generators of its own need not call
    `tinybnn.manual_seed`, and a call made for another purpose does not keep it from going on.

    Results are equal bit for bit where the arithmetic is: on the same kind of processor, with the
    same versions of NumPy and Numba.

    Parameters
    ----------
    path : str or PathLike
    model : Module
    optimizer : Optimizer
    schedule : Schedule, optional
    train, validation : DataLoader, optional
    history : History, optional
    settings : dict, optional
        Further JSON values that must be the same when training goes on.
    """

    KIND: str = "checkpoint"
    VERSION: int = 2

    def __init__(
        self,
        path: str | os.PathLike[str],
        model: Module,
        optimizer: Any,
        schedule: Any = None,
        train: Any = None,
        validation: Any = None,
        history: History | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.path: str = os.fspath(path)
        self.model: Module = model
        self.optimizer: Any = optimizer
        self.schedule: Any = schedule
        self.history: History = History() if history is None else history
        self._generators = _find_generators(model=model, train=train, validation=validation)
        self._fixed = {
            "model": _describe_model(model, _moved_by(schedule)),
            "train": _describe_loader(train),
            "validation": _describe_loader(validation),
            "random generators": {
                name: {"kind": type(g.bit_generator).__name__, "seed": _seed(g)}
                for name, g in self._generators.items()
            },
            **(settings or {}),
        }

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            "Checkpoint: belongs to one file and to the objects that it restores; copy these, and "
            "make a Checkpoint of them"
        )

    def save(self) -> int:
        """Write the file atomically, and return its size in bytes.

        Raises
        ------
        OSError
            Naming the path. An older checkpoint stays as it was.
        """
        arrays = {f"model.{name}": array for name, array in self.model.state_dict().items()}
        optimizer = self.optimizer.state_dict()
        for i, state in optimizer["state"].items():
            arrays.update((f"optimizer.{i}.{name}", array) for name, array in state.items())
        metadata = {
            "run": self._description(),
            "param_groups": optimizer["param_groups"],
            "schedule": self.schedule.state_dict() if self.schedule else None,
            "random": {
                name: as_json(g.bit_generator.state) for name, g in self._generators.items()
            },
            "history": as_json(self.history.rows),
        }
        return storage.save(
            self.path, arrays, kind=self.KIND, version=self.VERSION, metadata=metadata
        )

    def restore(self) -> bool:
        """Read the file, and put its content back into the same objects.

        Returns
        -------
        bool
            False if there is no file to restore from.

        Raises
        ------
        StorageError
            If the file is damaged or no checkpoint.
        ValueError
            If it is of a run with another model, optimizer, schedule, loader or seed: the message
            says what differs. Nothing has been changed then.
        """
        try:
            arrays, metadata = _read(self.path)
            version = storage.read_header(self.path)["version"]
        except FileNotFoundError:
            return False
        then, now = metadata["run"], json.loads(json.dumps(self._description()))
        with storage.expecting(self.path, "checkpoint"):
            if version == 1:
                now = _as_in_version_1(now, then, self.model)
            default = then["random generators"]["default"]
            other = now["random generators"]["default"]
            if default["seed"] is None or other["seed"] is None:
                other["seed"] = default["seed"]
            different = list(_differences(then, now))
        if different:
            more = f" (and {len(different) - 1} more)" if len(different) > 1 else ""
            raise ValueError(
                f"{self.path} is the checkpoint of another run: {different[0]}{more}; "
                "choose another path, or delete the file to start anew"
            )
        if version == 1:
            warnings.warn(
                f"{self.path} was written by version 0.1, which recorded fewer settings of layers "
                "and no transforms: only what it recorded was compared with this run",
                stacklevel=2,
            )
        with storage.expecting(self.path, "checkpoint"):
            rows, state = rows_of(metadata), {}
            for name, array in below("optimizer.", arrays).items():
                i, name = name.split(".", 1)
                state.setdefault(i, {})[name] = array
            self.model.load_state_dict(below("model.", arrays))
            groups = metadata["param_groups"]
            self.optimizer.load_state_dict({"state": state, "param_groups": groups})
            if self.schedule:
                self.schedule.load_state_dict(metadata["schedule"])
            for name, generator in self._generators.items():
                generator.bit_generator.state = metadata["random"][name]
            self.history.rows[:] = rows
        return True

    def _description(self):
        """Describe everything that must be the same when training goes on, by name."""
        groups = []
        for (group, rate), entry in zip(
            self.optimizer.rates, self.optimizer.state_dict()["param_groups"], strict=True
        ):
            moving = {rate} if f"initial_{rate}" in group else set()  # a schedule moves the rate
            moving |= {
                name for part in _parts(self.schedule) for name in getattr(part, "moves", ())
            }
            groups.append({k: v for k, v in entry.items() if k not in moving})
        parts = getattr(self.optimizer, "optimizers", [self.optimizer])
        schedule = None
        if self.schedule:
            schedule = {"kind": type(self.schedule).__name__, **self.schedule.state_dict()}
            del schedule["last_epoch"]
        return {
            **self._fixed,
            "optimizer": " and ".join(type(part).__name__ for part in parts),
            "settings of the optimizer": groups,
            "schedule": schedule,
        }


def load_weights(path: str | os.PathLike[str], model: Module) -> History:
    """Load the weights of a checkpoint, and nothing else, into a model.

    Parameters
    ----------
    path : str or PathLike
        A file that `fit` or `Checkpoint` wrote.
    model : Module
        With the names and shapes of the model that was trained.

    Returns
    -------
    History
        The training so far.

    Raises
    ------
    StorageError
        If the file is damaged or no checkpoint.
    KeyError, ValueError
        If it holds another model.
    """
    arrays, metadata = _read(os.fspath(path))
    with storage.expecting(path, "checkpoint"):
        history = History(rows_of(metadata))
    model.load_state_dict(below("model.", arrays))
    return history


def _read(path):
    """Read the arrays and metadata of a checkpoint."""
    try:
        arrays, metadata = storage.load(path, kind=Checkpoint.KIND, version=Checkpoint.VERSION)
        if metadata.keys() != {"run", "param_groups", "schedule", "random", "history"}:
            raise storage.StorageError(f"{path}: damaged: its metadata is of no checkpoint")
    except storage.StorageError as error:
        raise storage.StorageError(
            f"{error}; training cannot go on from it: delete the file to start anew, "
            "or choose another path"
        ) from None
    return arrays, metadata


# ------------------------------------------------------------------------- contents of files


def below(prefix: str, arrays: dict[str, Array]) -> dict[str, Array]:
    """Select the arrays whose names start with a prefix, and remove it."""
    return {k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)}


def rows_of(metadata: dict[str, Any]) -> list[dict[str, Any]]:
    """Read the rows of a history; numbers that JSON cannot hold were stored as text."""
    return [
        {k: float(v) if isinstance(v, str) else v for k, v in row.items()}
        for row in metadata["history"]
    ]


def as_json(value: Any) -> Any:
    """Convert dicts, lists, arrays and numbers to JSON values; NaN and infinities become text."""
    if isinstance(value, dict):
        return {name: as_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return as_json(value.tolist())
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


# ------------------------------------------------------------------- descriptions, to compare runs


def _differences(old, new, where="") -> Iterator[str]:
    """Describe each place where two JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        if old.get("kind") != new.get("kind"):
            yield f"{where}{old.get('kind')} in the checkpoint, {new.get('kind')} here"
            return
        for name in sorted({*old, *new}):
            if name not in new:
                yield f"{where}{name} is in the checkpoint, but not here"
            elif name not in old:
                yield f"{where}{name} is not in the checkpoint"
            else:
                yield from _differences(old[name], new[name], f"{where}{name}: ")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from _differences(a, b, f"{where}[{i}] ")
    elif old != new:
        yield f"{where}{old!r} in the checkpoint, {new!r} here"


def _describe_model(model, moved):
    """Describe the settings of all layers, and the dtypes and shapes of the state."""
    layers = {
        path or "(top)": {"kind": type(module).__name__, **_settings(module, moved)}
        for path, module in model.named_modules()
    }
    state = {name: f"{a.dtype} {a.shape}" for name, a in model.state_dict().items()}
    return {"layers": layers, "state": state}


def _settings(thing, moved=()):
    """Return the public attributes of a layer, quantizer or transform as JSON values.

    Its state and what a schedule moves are left out.
    """
    settings = {}
    for name, value in vars(thing).items():
        if isinstance(value, LatentParameter):
            settings[f"{name}.clip_value"] = value.clip_value
        is_state = isinstance(value, Module | Tensor | np.ndarray | np.random.Generator)
        if name.startswith("_") or name in ("training", "frozen") or is_state:
            continue
        settings[name] = _setting(value, moved)
    return as_json(settings)


def _setting(value, moved):
    if isinstance(value, Quantizer):
        own = {} if id(value) in moved else _settings(value, moved)
        return {"kind": type(value).__name__, **own}
    if isinstance(value, list | tuple):
        return [_setting(item, moved) for item in value]
    if isinstance(value, dict):
        return {str(key): _setting(item, moved) for key, item in value.items()}
    if value is None or isinstance(value, Number | str | np.generic):
        return value
    if hasattr(value, "__qualname__"):
        return value.__qualname__
    return without_addresses(repr(value))


def without_addresses(text: str) -> str:
    """Remove the addresses of objects from a repr: they differ in each process."""
    return re.sub(r" at 0x\w+", "", text)


def _moved_by(schedule):
    """Return the ids of the quantizers whose steepness a schedule moves; their t is no setting."""
    return {id(q) for part in _parts(schedule) for q in getattr(part, "quantizers", ())}


def _parts(schedule):
    """Return the schedules that are chained in one."""
    return getattr(schedule, "schedules", [schedule])


# Settings that version 0.1 did not print: name=value at the start of a repr or after a comma.
_NEW_IN_VERSION_2 = re.compile(
    r"(^|, )(input_quantizer|weight_quantizer|quantizer|clip_value|eps|momentum|affine|beta|min_val"
    r"|max_val|start_dim|end_dim)=[^,()]*(\((?:[^()]|\([^()]*\))*\))?"
)


def _as_in_version_1(now, then, model):
    """Reduce a description to what version 0.1 stored: layers as text, with fewer settings."""
    now = {name: _restricted(value, then.get(name)) for name, value in now.items()}
    now["model"]["layers"] = layers = {}
    for path, module in model.named_modules():
        settings = without_addresses(_NEW_IN_VERSION_2.sub("", module.extra_repr()))
        layers[path or "(top)"] = f"{type(module).__name__}({settings.removeprefix(', ')})"
    return now


def _restricted(value, like):
    """Restrict a dict to the keys of another; return any other value unchanged."""
    if not (isinstance(value, dict) and isinstance(like, dict)):
        return value
    return {name: _restricted(item, like[name]) for name, item in value.items() if name in like}


def _describe_loader(loader):
    """Describe a loader well enough to tell it from another; None stays None."""
    if loader is None:
        return None
    description = {"batches": len(loader) if hasattr(loader, "__len__") else None}
    for name in ("batch_size", "shuffle", "drop_last"):
        if hasattr(loader, name):
            description[name] = getattr(loader, name)
    if hasattr(loader, "transform"):
        description["transform"] = _setting(loader.transform, ())
    dataset = getattr(loader, "dataset", None)
    if isinstance(dataset, datasets.TensorDataset):
        description["dataset"] = repr(dataset)
        description["targets (CRC-32)"] = _crc32(dataset.y)
    if hasattr(dataset, "images") and hasattr(dataset, "labels"):
        description["dataset"] = getattr(dataset, "name", None)
        description["images"] = f"{dataset.images.dtype} {dataset.images.shape}"
        description["labels (CRC-32)"] = _crc32(dataset.labels)
    return description


def _crc32(array):
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8))


# -------------------------------------------------------------------------------- random generators

_PLAIN = (Number, str, bytes, np.ndarray, np.generic, Tensor, type, ModuleType)


def _find_generators(**places):
    """Find the default generator and every Generator below some objects, each once, by name.

    Names are paths of attributes, such as ``train.rng`` or ``model.3.rng``.
    """
    generators, seen = {}, {}
    stack = [*reversed(places.items()), ("default", default_generator())]
    while stack:
        name, value = stack.pop()
        if isinstance(value, _PLAIN) or id(value) in seen:
            continue
        seen[id(value)] = value  # kept alive, so that no other object gets its id
        if isinstance(value, np.random.Generator):
            generators[name] = value
        elif isinstance(value, list | tuple):
            stack.extend((f"{name}.{i}", item) for i, item in enumerate(value))
        elif isinstance(value, dict):
            stack.extend((f"{name}.{key}", item) for key, item in value.items())
        elif hasattr(value, "__dict__"):
            stack.extend((f"{name}.{key}", item) for key, item in vars(value).items())
    return generators


def _seed(generator):
    """Return the chosen seed, an int or a list; None if the system drew it."""
    sequence = getattr(generator.bit_generator, "seed_seq", None)
    entropy = getattr(sequence, "entropy", None)
    if entropy is None:
        return None
    numbers = [int(n) for n in np.ravel(np.array(entropy, object))]
    if max(numbers, default=0) >= 1 << 64:  # NumPy draws 128 bits where no seed is given
        return None
    numbers += [int(n) for n in sequence.spawn_key]
    return numbers[0] if len(numbers) == 1 else numbers
