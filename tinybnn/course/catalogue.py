"""The chapters of the course: a notebook, a file that the student writes, and its exercises."""

from __future__ import annotations

import importlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from tinybnn.course.exercise import Exercise


@dataclass(frozen=True)
class Chapter:
    """A chapter: its notebooks, and the name of the student's file.

    Parameters
    ----------
    number : str
        Two digits.
    notebooks : tuple of str
        Names without suffix, in reading order; each lists the exercises that it prepares.
    file : str
        Name of the student's module in ``mybnn/``, and of the module with its checks.
    extends : bool
        Whether that file extends tinybnn, and may import it while its exercises are checked.
    """

    number: str
    notebooks: tuple[str, ...]
    file: str
    extends: bool = False

    @property
    def exercises(self) -> tuple[Exercise, ...]:
        """The chapter's exercises, in order."""
        return importlib.import_module(f"tinybnn.course.checks.{self.file}").EXERCISES


CHAPTERS: dict[str, Chapter] = {
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
        Chapter("07", ("07_binary_latents", "07b_a_binary_autoencoder"), "latents"),
        Chapter("08", ("08_hybnn",), "codes"),
        Chapter("09", ("09_federated_one_bit", "09b_clients_that_differ"), "averaging"),
        Chapter("10", ("10_depthwise_and_158_bit", "10b_depthwise_in_networks"), "dual"),
        Chapter("11", ("11_the_landscape", "11b_curvature"), "curvature"),
        Chapter("12", ("12_your_own_layer",), "own_layer", extends=True),
        Chapter("13", ("13_measuring_honestly",), "measuring"),
    )
}  # fmt: skip


def exercise(number: str) -> Exercise:
    """Return the exercise with a number such as "04.2" or "4.2".

    Raises
    ------
    ValueError
        If no exercise has this number.
    """
    name, _, last = number.partition(".")
    chapter = CHAPTERS.get(_padded(name))
    for one in chapter.exercises if chapter else ():
        if one.number == f"{_padded(name)}.{last}":
            return one
    raise ValueError(f"exercise: expected a number such as 00.1, got {number!r}{_choices(name)}")


def _padded(name):
    """Pad a chapter's name to two digits: "01" for "1", "01b" for "1b"."""
    return re.sub(r"^(\d)(?!\d)", r"0\1", name)


def _choices(name):
    """Say which exercises belong to a chapter's or a notebook's name; "" for other names."""
    chapter = CHAPTERS.get(_padded(name))
    if chapter is not None:
        numbers = [one.number for one in chapter.exercises]
        return f"; chapter {chapter.number} has {numbers[0]} to {numbers[-1]}"
    for one in CHAPTERS.values():
        if any(notebook.startswith(f"{_padded(name)}_") for notebook in one.notebooks):
            return f"; the exercises of {name} are in {one.number}"
    return f"; chapter {_padded(name)} has no exercises" if re.fullmatch(r"\d+[a-z]?", name) else ""


def student_file(exercise: Exercise, folder: str | os.PathLike[str]) -> Path:
    """Return the path of the student's file for an exercise, in a course folder."""
    return Path(folder) / "mybnn" / f"{CHAPTERS[exercise.number[:2]].file}.py"


def select(what: str) -> list[Exercise]:
    """Select the exercises of a chapter ("04", "4"), a single one ("04.2"), or "all".

    Raises
    ------
    ValueError
        If there is no such exercise.
    """
    if what == "all":
        return [one for chapter in CHAPTERS.values() for one in chapter.exercises]
    if _padded(what) in CHAPTERS:
        return list(CHAPTERS[_padded(what)].exercises)
    if "." in what:
        return [exercise(what)]
    raise ValueError(
        f"expected a chapter ({', '.join(CHAPTERS)}), an exercise such as "
        f"{next(iter(CHAPTERS))}.1, or all, got {what!r}{_choices(what)}"
    )
