"""Run an exercise's checks on the student's file and describe the outcome."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import io
import os
import time
import tokenize
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from tinybnn.course.catalogue import CHAPTERS, student_file
from tinybnn.course.catalogue import exercise as find_exercise
from tinybnn.course.child import PACKAGE, Files, describe, put_back
from tinybnn.course.exercise import Exercise, Stopped, Wrong
from tinybnn.course.explain import explain
from tinybnn.course.process import run_in_child
from tinybnn.course.source import altered, code_around
from tinybnn.storage import open_regular

STATES = ("passed", "wrong", "not started", "broken", "too slow")


@dataclass(frozen=True)
class Verdict:
    """The outcome of an exercise.

    Parameters
    ----------
    number : str
    state : str
        One of `STATES`: "broken" means that the file does not run, "too slow" that it exceeded the
        time limit.
    message : str
        For the student; empty if passed.
    checked : tuple of str
        The checks that passed.
    seconds : float
    printed : str
        Output of the student's code, truncated if long.
    note : str
        The student's changes to parts that came with the course.
    """

    number: str
    state: str
    message: str = ""
    checked: tuple[str, ...] = ()
    seconds: float = 0.0
    printed: str = ""
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether the exercise passed."""
        return self.state == "passed"

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dict, ready for JSON."""
        return asdict(self)


def grade_file(
    exercise: Exercise, folder: str | os.PathLike[str], closed: Sequence[str] = ()
) -> Verdict:
    """Run the checks on the student's file in a child process.

    Parameters
    ----------
    exercise : Exercise
    folder : str or PathLike
        The course folder, which holds ``mybnn``.
    closed : sequence of str
        Files and folders that the student's code may not open.

    Returns
    -------
    Verdict

    Raises
    ------
    ValueError
        Without hypothesis, which the checks need.
    """
    expect_hypothesis()
    start = time.perf_counter()

    def verdict(state, message, printed=""):
        seconds = time.perf_counter() - start
        return Verdict(exercise.number, state, message, (), seconds, printed, note)

    note = altered(exercise, folder)
    if problem := _unreadable(student_file(exercise, folder), folder):
        return verdict("broken", problem)
    target = f"{__name__}:grade_by_number"
    chapter = CHAPTERS[exercise.number[:2]]
    ended = run_in_child(
        target, [exercise.number], folder, exercise.seconds,
        extends=chapter.file if chapter.extends else "", closed=closed,
    )  # fmt: skip
    if ended.problem:
        return verdict("too slow" if ended.slow else "broken", ended.problem, ended.printed)
    value = ended.value
    return Verdict(
        **{**value, "checked": tuple(value["checked"]), "printed": ended.printed, "note": note}
    )


def expect_hypothesis() -> None:
    """Raise a ValueError that says what to install if hypothesis is missing."""
    if importlib.util.find_spec("hypothesis") is None:
        raise ValueError("the checks need hypothesis: pip install 'tinybnn[tutorials]'")


def _unreadable(path, folder):
    """Say why the student's file cannot be read as Python text; "" if it can."""
    name = os.path.relpath(path, folder)
    try:
        with open_regular(path) as file:
            content = file.read()
    except FileNotFoundError:
        return f"there is no {name}; {put_back(folder)}"
    except IsADirectoryError:
        return f"{name} is a folder, expected a file"
    except (OSError, ValueError) as error:
        return f"{name} cannot be read: {getattr(error, 'strerror', None) or 'not a regular file'}"
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return (
            f"{name}, line {line}: the byte 0x{content[error.start]:02x} is not {encoding}; "
            "save the file as UTF-8"
        )
    except SyntaxError as error:
        return f"{name}: {error.msg}; save the file as UTF-8"
    return ""


def grade_by_number(note: Callable[[str], Any], number: str) -> dict[str, Any]:
    """Import the student's file and run the checks, in the child; return a `Verdict` as a dict."""
    one = find_exercise(number)
    file, start = CHAPTERS[number[:2]].file, time.perf_counter()
    note(f"importing {PACKAGE}/{file}.py")
    try:
        module = importlib.import_module(f"{PACKAGE}.{file}")
    except BaseException as error:
        text = describe(error, os.getcwd())
        return Verdict(number, "broken", text, (), time.perf_counter() - start).to_dict()
    return grade(one, module, note).to_dict()


def grade(
    exercise: Exercise, module: ModuleType, note: Callable[[str], Any] = lambda text: None
) -> Verdict:
    """Run the checks in this process, up to the first that fails.

    Parameters
    ----------
    exercise : Exercise
    module : module
        The student's module.
    note : callable
        Called with a text about the current action.

    Returns
    -------
    Verdict
    """
    start, checked = time.perf_counter(), []
    folder = Path(module.__file__).parents[1]

    def verdict(state, message=""):
        seconds = time.perf_counter() - start
        return Verdict(exercise.number, state, message, tuple(checked), seconds)

    if not hasattr(module, exercise.name):
        return verdict("wrong", f"{Path(module.__file__).name} does not define {exercise.name}")
    try:
        for check in exercise.checks:
            what = inspect.getdoc(check).splitlines()[0].rstrip(".")
            note(f"checking that {what}")
            check(module)
            checked.append(what)
    except NotImplementedError as error:
        return verdict(*_missing(error, exercise, module))
    except Wrong as wrong:
        return verdict("wrong", explain(wrong, exercise, folder))
    except Stopped as error:
        return verdict("wrong", describe(error.__cause__, folder))
    except (Exception, SystemExit) as error:
        if _is_flaky(error):
            text = f"{exercise.name} answers the same arguments in different ways from call to call"
            return verdict("wrong", text)
        return verdict("wrong", describe(error, folder))
    return verdict("passed")


def _missing(error, exercise, module):
    """Return state and message, which names the method or other function that is missing."""
    folder = Path(module.__file__).parents[1]
    line = Files(folder).line(error)
    code = error.__traceback__
    while code.tb_next is not None:
        code = code.tb_next
    frame, number = code.tb_frame.f_code, code.tb_lineno
    ours = frame.co_filename not in Files(folder)
    if not ours and (where := code_around(frame.co_filename, number)):
        todo = "delete it" if where == "below" else "write what is missing, or delete it"
        name = os.path.relpath(frame.co_filename, folder)
        return "wrong", (
            f"line {number} of {name} still raises NotImplementedError: {todo}; your code stands "
            f"{where}"
        )
    name = frame.co_name
    if not line or name in (exercise.name, "__init__"):
        return "not started", exercise.task
    method = getattr(getattr(module, exercise.name), name, None)
    if getattr(method, "__code__", None) is frame:
        return "not started", f"{exercise.task}\n  missing {name}: {line}"
    return "not started", f"{exercise.task}\n  needs   {name}, which is not written yet: {line}"


def _is_flaky(error):
    return any(cls.__name__ == "Flaky" for cls in type(error).__mro__)
