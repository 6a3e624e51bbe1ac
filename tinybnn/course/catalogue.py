"""The chapters of the course: a notebook, a file that the student writes, and its exercises."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from tinybnn.course.exercise import Exercise


@dataclass(frozen=True)
class Chapter:
    """A chapter: the notebooks that teach it, and what the student's file is called.

    Parameters
    ----------
    number : str
        Two digits.
    notebooks : tuple of str
        Names without ending; the first one's exercises section has the exercises.
    file : str
        Name of the student's module in ``mybnn/``, and of the module with its checks.
    """

    number: str
    notebooks: tuple[str, ...]
    file: str

    @property
    def exercises(self) -> tuple[Exercise, ...]:
        return importlib.import_module(f"tinybnn.course.checks.{self.file}").EXERCISES


CHAPTERS = {
    chapter.number: chapter
    for chapter in (
        Chapter("00", ("00_bits_and_signs",), "bits"),
        Chapter("06", ("06_compiling", "06b_the_compiler", "06c_tasks_and_time"), "folding"),
    )
}  # fmt: skip


def exercise(number: str) -> Exercise:
    """The exercise of a number such as "04.2".

    Raises
    ------
    ValueError
        If there is none.
    """
    chapter = CHAPTERS.get(number[:2])
    for one in chapter.exercises if chapter else ():
        if one.number == number:
            return one
    raise ValueError(f"exercise: expected a number such as 00.1, got {number!r}")
