"""The folder of an experiment: its configuration, figures that are kept, what was run and where.

An experiment is a chain of steps, each of which leaves a file. Repeating the call that started it
skips what has its file, wherever it was stopped. A configuration is a frozen dataclass whose
fields all have defaults; it decides every figure but the times.
"""

from __future__ import annotations

import dataclasses
import json
import time

from tinybnn import analysis
from tinybnn.experiments.report_text import notice, wrapped
from tinybnn.storage import StorageError, read_json, write_json


def kept(path, compute):
    """What a JSON file holds; without the file, what `compute` gives, which is written to it."""
    if not path.exists():
        write_json(path, compute())
    return read_json(path)


def open_folder(out, config, say=print):
    """Make the folder of a run, or check that it is one with the same configuration.

    A field that came into the configuration after the run was begun had its default then. What has
    to be said first of the run is said here, before any of its figures.
    """
    new = dataclasses.asdict(config)
    path = out / "config.json"
    if path.exists():
        _check_settings(path, new, config)
    else:
        if out.is_dir() and any(not p.name.startswith(".") for p in out.iterdir()):
            raise ValueError(f"{out} holds files, but no run; choose a new or empty folder")
        out.mkdir(parents=True, exist_ok=True)
        write_json(path, new)
    if said := notice(new):
        say(wrapped(said))


def _check_settings(path, new, config):
    """Raise an error if a file holds other settings than the new ones."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    old = read_json(path)
    if not isinstance(old, dict):
        raise StorageError(f"{path} is damaged: expected a mapping of settings")
    old = defaults | old
    if different := [name for name in new if old[name] != new[name]]:
        was = ", ".join(f"{name}={json.dumps(old[name])}" for name in different)
        now = ", ".join(f"{name}={json.dumps(new[name])}" for name in different)
        raise ValueError(
            f"{path.parent} is a run with {was}, not {now}; repeat its own settings, "
            "or choose another folder"
        )


# ------------------------------------------------------------------------------ the configuration


def check_least(config, **least):
    """Raise a ValueError for the first of the named fields that is below its least value."""
    for name, value in least.items():
        if getattr(config, name) < value:
            raise ValueError(f"Config: {name} must be >= {value}, got {getattr(config, name)!r}")


def as_options(config):
    """A configuration as options of the command line: the fields that differ from their defaults.

    Returns
    -------
    list of str
        ``--name value`` each; a field that is True is an option without a value.
    """
    words = []
    for field in dataclasses.fields(config):
        value, option = getattr(config, field.name), f"--{field.name.replace('_', '-')}"
        if value != field.default:
            words.append(option if value is True else f"{option} {value}")
    return words


def provenance(name, config, command, **more):
    """What a result begins with: what was run, on which machine and when.

    Parameters
    ----------
    name : str
        Of the experiment.
    config : dataclass
    command : str
        The command that gives these figures.
    **more
        Further entries about the call.

    Returns
    -------
    dict
        Ready for JSON: ``name``, ``config``, ``command``, those of `more`, ``machine`` (see
        `analysis.machine`), ``date``.
    """
    return {
        "name": name,
        "config": dataclasses.asdict(config),
        "command": command,
        **more,
        "machine": analysis.machine(),
        "date": time.strftime("%Y-%m-%d"),
    }
