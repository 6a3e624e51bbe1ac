"""The student's folder: notebooks, the student's package, data, and progress."""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinybnn.course.catalogue import CHAPTERS, student_file
from tinybnn.course.exercise import Exercise
from tinybnn.storage import StorageError, expecting, read_json, write_atomic, write_json

PROGRESS = "course.json"
LEVELS = 3  # of hints
_COPIED = ("*.ipynb", "images/*", "mybnn/*.py")
# A notebook's link to the source of the package, which is broken in a copy.
_LINK_TO_SOURCE = re.compile(rb"\[([^][\"\n]*)\]\(\.\./(tinybnn/[^)]*)\)")


def material() -> Path | None:
    """Return the folder with the notebooks; None if this installation has none.

    It is ``tinybnn/tutorials`` in an installed package, ``tutorials`` beside the package in a
    checkout.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "tutorials", package.parent / "tutorials"):
        if (folder / "mybnn" / "__init__.py").is_file():
            return folder
    return None


def is_course(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder was made by `start` or holds a chapter's file."""
    files = [Path(folder, "mybnn", f"{chapter.file}.py") for chapter in CHAPTERS.values()]
    return Path(folder, PROGRESS).exists() or any(map(os.path.lexists, files))


def find_folder(folder: str | os.PathLike[str] | None = None) -> Path:
    """Find the course folder: the given one, or the current one, or the nearest above it.

    Raises
    ------
    ValueError
        If there is no course folder.
    """
    if folder is not None:
        if is_course(folder):
            return Path(folder).resolve()
        raise ValueError(
            f"{folder} is no course folder; make one with `tinybnn course start FOLDER`"
        )
    here = Path.cwd()
    for place in (here, *here.parents):
        if is_course(place):
            return place
    raise ValueError(
        f"{here} is in no course folder; change into yours, or name it with --folder, "
        "or make one with `tinybnn course start FOLDER`"
    )


def start(folder: str | os.PathLike[str]) -> tuple[list[str], list[str]]:
    """Copy notebooks, skeletons and data into a folder; existing files stay unchanged.

    Parameters
    ----------
    folder : str or PathLike
        A new or empty folder, or a course folder, to which missing files are added.

    Returns
    -------
    copied, kept : list of str
        Names of files, relative to the folder.

    Raises
    ------
    ValueError
        If the folder holds other things, or this installation has no notebooks.
    OSError
        If a file cannot be written.
    """
    source, folder = material(), Path(folder)
    if source is None:
        raise ValueError("this installation has no notebooks; install tinybnn again")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, expected a folder")
    others = sorted(os.listdir(folder)) if folder.is_dir() and not is_course(folder) else []
    if others := [name for name in others if not name.startswith(".")]:
        names = ", ".join(others[:3]) + (", ..." if others[3:] else "")
        raise ValueError(f"{folder} holds other things ({names}); choose a new or an empty folder")
    if (folder / PROGRESS).exists():
        Progress.load(folder)  # a broken one is an error before anything is copied
    else:
        folder.mkdir(parents=True, exist_ok=True)
        Progress(folder).save()  # first, so that an interrupted copy can be continued
    copied, kept = [], []
    for path, name in _files(source):
        target = folder / name
        if os.path.lexists(target):
            kept.append(name)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes()
        if target.suffix == ".ipynb":
            content = _LINK_TO_SOURCE.sub(rb"\1 (\2)", content)
        write_atomic(target, content)
        copied.append(name)
    return copied, kept


def _files(source):
    """Yield each file to copy and its name in the student's folder."""
    for pattern in _COPIED:
        for path in sorted(source.glob(pattern)):
            yield path, path.relative_to(source).as_posix()
    data = source.parent / "data"
    for path in sorted([data / "README.md", *(data / "digits").iterdir()]):
        yield path, f"data/{path.relative_to(data).as_posix()}"


@functools.lru_cache(maxsize=32)
def parsed(content: bytes) -> ast.Module:
    """Parse a file's bytes without warnings; the tree is shared and must not be changed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(content)


def fingerprint(exercise: Exercise, path: str | os.PathLike[str]) -> str:
    """Hash the student's file without the definitions of the chapter's other exercises.

    Work on one exercise thus does not make the others look changed.
    """
    content = Path(path).read_bytes()
    others = {one.name for one in CHAPTERS[exercise.number[:2]].exercises} - {exercise.name}
    try:
        tree = parsed(content)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return hashlib.sha256(content).hexdigest()
    lines = content.split(b"\n")
    for node in tree.body:
        if getattr(node, "name", None) in others:
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            lines[first - 1 : node.end_lineno] = [None] * (node.end_lineno - first + 1)
    rest = [line.rstrip() for line in lines if line is not None]
    return hashlib.sha256(b"\n".join(filter(None, rest))).hexdigest()


@dataclass
class Progress:
    """A student's progress, stored in ``course.json`` of the folder.

    Parameters
    ----------
    folder : PathLike
    passed : dict of str to str
        Number of an exercise -> fingerprint of the file when it passed.
    hints : dict of str to int
        Number of an exercise -> level of the last hint shown.
    milestones : dict of str to dict
        Figures of the milestones reached.
    """

    folder: Path
    passed: dict[str, str] = field(default_factory=dict)
    hints: dict[str, int] = field(default_factory=dict)
    milestones: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Progress:
        """Read a folder's progress, or return an empty one if there is no file yet.

        Raises
        ------
        StorageError
            If the file is damaged or another program's; it stays as it is.
        """
        path = Path(folder, PROGRESS)
        if not os.path.lexists(path):
            return cls(Path(folder))
        advice = "move it away, and the course begins a new one; your answers lie in mybnn/"
        try:
            value = read_json(path)
            with expecting(path, "file of progress"):
                if value["format"] != "tinybnn-course":
                    raise ValueError("another program's file")
                kinds = {"passed": str, "hints": int, "milestones": dict}
                for name, kind in kinds.items():
                    if not all(isinstance(v, kind) for v in value[name].values()):
                        raise ValueError(f"{name} holds other values than {kind.__name__}")
        except StorageError as error:
            raise StorageError(f"{error}; {advice}") from None
        return cls(Path(folder), **{name: value[name] for name in kinds})

    def save(self) -> None:
        """Write the progress to its folder."""
        value = {
            "format": "tinybnn-course",
            "passed": self.passed, "hints": self.hints, "milestones": self.milestones,
        }  # fmt: skip
        write_json(Path(self.folder, PROGRESS), value)

    def state(self, exercise: Exercise) -> str:
        """Return "passed", "changed" (since it passed) or "open"."""
        if exercise.number not in self.passed:
            return "open"
        path = student_file(exercise, self.folder)
        same = path.is_file() and fingerprint(exercise, path) == self.passed[exercise.number]
        return "passed" if same else "changed"
