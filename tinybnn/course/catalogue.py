"""The chapters of the course: a notebook, a file that the student writes, and its exercises."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

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
        Chapter("01", ("01_autograd_from_scratch", "01b_autograd_on_arrays"), "engine"),
        Chapter("02", ("02_the_gradient_of_sign", "02b_estimators_compared"), "estimators"),
        Chapter("03", ("03_first_binary_network",), "layers"),
        Chapter(
            "04",
            (
                "04_xnor_and_popcount",
                "04b_a_product_as_fast_as_the_machine",
                "04c_tables_and_the_roofline",
            ),
            "packing",
        ),
        Chapter(
            "05",
            (
                "05_convolutions_on_bits",
                "05b_convolutions_by_addresses",
                "05c_depthwise_on_bit_planes",
            ),
            "convolution",
        ),
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


def student_file(exercise: Exercise, folder) -> Path:
    """Where the student writes an exercise, in a course folder."""
    return Path(folder) / "mybnn" / f"{CHAPTERS[exercise.number[:2]].file}.py"


def select(what: str) -> list[Exercise]:
    """The exercises that a number stands for: of a chapter ("04"), one ("04.2"), or "all".

    Raises
    ------
    ValueError
        If there is none.
    """
    if what == "all":
        return [one for chapter in CHAPTERS.values() for one in chapter.exercises]
    if what in CHAPTERS:
        return list(CHAPTERS[what].exercises)
    if "." in what:
        return [exercise(what)]
    raise ValueError(
        f"expected a chapter ({', '.join(CHAPTERS)}), an exercise such as "
        f"{next(iter(CHAPTERS))}.1, or all, got {what!r}"
    )
