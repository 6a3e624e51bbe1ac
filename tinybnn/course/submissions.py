"""What students hand in: read from a folder with a folder a student, and bounded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath

from tinybnn.course.catalogue import CHAPTERS
from tinybnn.course.child import PACKAGE
from tinybnn.storage import open_regular

TIME_FILE = "submitted"  # in a student's folder: when the work was handed in
_LARGEST = 1 << 20  # bytes of a file
_MOST = 200  # Python files of a student
_NAMED = 3  # files in a remark
_DEPTH = 6  # of folders in a student's folder
_IGNORED = {"__pycache__", "__MACOSX", "node_modules"}


@dataclass(frozen=True)
class Submission:
    """A student's work as it was handed in.

    Parameters
    ----------
    student : str
        Name of the folder.
    files : dict of str to bytes
        Content of the Python files, by their name in a course folder such as "mybnn/bits.py".
    submitted : datetime or None
        When, in UTC; None if there is no file.
    remarks : list of str
        What was left out and why.
    """

    student: str
    files: dict[str, bytes]
    submitted: datetime | None
    remarks: list[str]


def students(folder: str | os.PathLike[str]) -> tuple[list[str], list[str]]:
    """Names of the folders in a folder, and of what else lies there; hidden ones left out."""
    folders, others = [], []
    for entry in _entries(folder):
        (folders if entry.is_dir() else others).append(entry.name)
    return folders, others


def read_submission(folder: str | os.PathLike[str], student: str) -> Submission:
    """Read a student's Python files; links are not followed, and large files left out.

    The files are those of the course folder that the student's folder is or holds, or those that
    lie directly in it as they would in ``mybnn``.
    """
    place = Path(folder, student)
    if place.is_symlink():
        return Submission(student, {}, None, ["the folder is a link, which is not followed"])
    found = _Found(place)
    found.walk()
    root, inside, others = _root(found.files)
    remarks = found.remarks
    if inside is None:
        remarks.append(f"no file of the course{found.instead()}")
    remarks += [f"{name} is not graded, since {root or '.'} is" for name in others]
    files, times = {}, []
    for name in found.files if inside is not None else ():
        if name.is_relative_to(root):
            target = (PurePosixPath(inside) / name.relative_to(root)).as_posix()
            content, time = found.read(name)
            if content is not None:
                files[target] = content
                times.append(time)
    submitted = found.time() or (_utc(max(times)) if times else None)
    return Submission(student, files, submitted, remarks)


def parse_time(text: str, end_of_day: bool = False) -> datetime:
    """A date, or date and time, of ISO 8601 in UTC; without a zone it is the local time.

    Raises
    ------
    ValueError
        If it is none.
    """
    text = text.strip()
    try:
        time = datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith("Z") else text)
        if end_of_day and len(text) == len("2026-01-31"):
            time = time.replace(hour=23, minute=59, second=59)
        return time.astimezone(timezone.utc)
    except (ValueError, OverflowError, OSError):
        raise ValueError(
            f"expected a date or a time such as 2026-01-31 or 2026-01-31T18:00, got {text[:40]!r}"
        ) from None


def _utc(seconds):
    return datetime.fromtimestamp(seconds, timezone.utc)


def _entries(folder):
    """What lies in a folder, in the order of names; hidden things left out."""
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    return [entry for entry in found if entry.name[0] != "." and entry.name not in _IGNORED]


def _root(files):
    """Where the course's files are, where they belong, and further such places.

    Returns
    -------
    root : PurePosixPath
        The folder that holds ``mybnn``, or the chapters' files themselves.
    inside : str or None
        Where the content of `root` belongs in a course folder; None if there is none.
    others : list of str
        Further places, which are not graded.
    """
    chapters = {f"{chapter.file}.py" for chapter in CHAPTERS.values()}
    bare = {name.parent for name in files if name.name in chapters}
    packages = {folder.parent for folder in bare if folder.name == PACKAGE}
    for places, inside in ((packages, ""), (bare, PACKAGE)):
        if places:
            root, *others = sorted(places, key=lambda place: (len(place.parts), place))
            return root, inside, [str(place) for place in others]
    return PurePosixPath(), None, []


@dataclass
class _Found:
    """The Python files in a student's folder."""

    folder: Path
    files: list[PurePosixPath] = field(default_factory=list)
    others: list[PurePosixPath] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def walk(self):
        for name in self._names(PurePosixPath(), _DEPTH):
            if len(self.files) == _MOST:
                self.remarks.append(f"more than {_MOST} Python files; the others are left out")
                return
            self.files.append(name)

    def _names(self, inside, depth) -> Iterator[PurePosixPath]:
        try:
            entries = _entries(self.folder / inside)
        except OSError as error:
            self.remarks.append(f"{inside} cannot be read: {error.strerror}")
            return
        if inside.parts and any(entry.name == "pyvenv.cfg" for entry in entries):
            return  # an environment
        for entry in entries:
            name = inside / entry.name
            if entry.is_symlink():
                self.remarks.append(f"{name} is a link, which is not followed")
            elif entry.is_dir():
                if depth:
                    yield from self._names(name, depth - 1)
                else:
                    self.remarks.append(f"{name} lies too deep")
            elif name.suffix == ".py":
                yield name
            elif len(self.others) < _NAMED:
                self.others.append(name)

    def instead(self):
        """Name the first files, such as an archive or a file with another name."""
        names = [*map(str, self.files), *map(str, self.others)]
        more = ", ..." if len(names) > _NAMED else ""
        return f", but {', '.join(names[:_NAMED])}{more}" if names else ""

    def read(self, name):
        """A file's content and time of change; None for both if it is left out."""
        try:
            with open_regular(self.folder / name) as file:
                content, time = file.read(_LARGEST + 1), os.fstat(file.fileno()).st_mtime
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "not a regular file"
            self.remarks.append(f"{name} cannot be read: {why}")
            return None, None
        if len(content) > _LARGEST:
            self.remarks.append(f"{name} is larger than {_LARGEST >> 20} MiB and left out")
            return None, None
        return content, time

    def time(self):
        """The time in the file `TIME_FILE`; None if there is no such file."""
        path = self.folder / TIME_FILE
        if path.is_symlink() or not path.exists():
            return None
        try:
            with open_regular(path) as file:
                return parse_time(file.read(100).decode())
        except (OSError, ValueError):
            self.remarks.append(f"the file {TIME_FILE} holds no time; those of the files count")
            return None
