"""Run an exercise's checks on the student's module and say in words what came of it."""

from __future__ import annotations

import inspect
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from tinybnn.course.exercise import Exercise, Wrong

STATES = ("passed", "wrong", "not started", "broken", "too slow")


@dataclass(frozen=True)
class Verdict:
    """What came of an exercise.

    Parameters
    ----------
    number : str
    state : str
        One of `STATES`: "broken" means that the file does not run, "too slow" that the time was up.
    message : str
        For the student; empty if passed.
    checked : tuple of str
        What was checked and right.
    seconds : float
    """

    number: str
    state: str
    message: str = ""
    checked: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return self.state == "passed"

    def to_dict(self):
        return asdict(self)


def grade(exercise: Exercise, module: ModuleType) -> Verdict:
    """Run the checks in this process, up to the first that fails."""
    start, checked = time.perf_counter(), []

    def verdict(state, message=""):
        seconds = time.perf_counter() - start
        return Verdict(exercise.number, state, message, tuple(checked), seconds)

    if not hasattr(module, exercise.name):
        return verdict("wrong", f"{Path(module.__file__).name} does not define {exercise.name}")
    try:
        for check in exercise.checks:
            check(module)
            checked.append(inspect.getdoc(check).splitlines()[0].rstrip("."))
    except NotImplementedError:
        return verdict("not started", exercise.task)
    except Wrong as wrong:
        return verdict("wrong", explain(wrong, exercise, module))
    except Exception as error:
        return verdict("wrong", f"{type(error).__name__}: {error}{_where(error, module)}")
    return verdict("passed")


def explain(wrong: Wrong, exercise: Exercise, module: ModuleType) -> str:
    """Which mistake, with which input, what came, what was expected, where to read."""
    lines = [wrong.why + (_where(wrong.__cause__, module) if wrong.__cause__ else "")]
    lines += [f"  with    {name} = {_shown(value)}" for name, value in wrong.inputs.items()]
    if wrong.expected is not None:
        lines += [f"  got     {_shown(wrong.got)}", f"  wanted  {_shown(wrong.expected)}"]
    lines.append(f"  read    {wrong.section or exercise.section}")
    return "\n".join(lines)


def _shown(value):
    text = np.array2string(value, separator=", ", threshold=64) if isinstance(value, np.ndarray) \
        else repr(value)  # fmt: skip
    return text.replace("\n", "\n          ")


def _where(error, module):
    """The last line of the student's own files that an error passed through."""
    folder = Path(module.__file__).parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if folder in Path(frame.filename).parents:
            return f"\n  in      {Path(frame.filename).name}, line {frame.lineno}: {frame.line}"
    return ""
