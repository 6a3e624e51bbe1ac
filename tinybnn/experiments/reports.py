"""Reports of runs that are over, written anew from their figures."""

from __future__ import annotations

import importlib
from pathlib import Path

from tinybnn.storage import StorageError, read_json

# The name that stands in a result.json -> the module that writes its report.
WRITERS = {
    "hybnn": "hybnn.report", "hybnn-bounds": "hybnn.bounds", "fedhybnn": "fedhybnn_report",
    "fedavg": "fedavg", "bdnet-ablation": "bdnet.report", "bdnet-table2": "bdnet.report",
}  # fmt: skip


def write_again(folder, say=print):
    """Write ``report.md`` in the folder of a run anew, and the pictures that its figures give.

    Nothing is trained and no images are read.

    Parameters
    ----------
    folder : path
        With a complete ``result.json``.
    say : callable
        Gets a line of text.

    Raises
    ------
    StorageError
        If there is none, or it is not the result of an experiment with such a report.
    """
    folder = Path(folder)
    path = folder / "result.json"
    result = read_json(path)
    experiment = writer(result, path)
    try:
        experiment.write(folder, result)
    except KeyError as error:
        raise StorageError(f"{path} lacks {error}; was the run stopped before its end?") from None
    say(f"{folder / 'report.md'}")


def writer(result, path):
    """The module with ``text(result)`` and ``write(folder, result)`` for the result in a file."""
    name = result.get("name") if isinstance(result, dict) else None
    if name not in WRITERS:
        raise StorageError(
            f"{path} is no result that a report is written of: expected one of {', '.join(WRITERS)}"
        )
    return importlib.import_module(f"tinybnn.experiments.{WRITERS[name]}")
