"""Exercises, and the functions with which checks compare answers and describe mistakes."""

from __future__ import annotations

import bdb
import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Exercise:
    """A task of the course: one name that the student's file must define, and its checks.

    Parameters
    ----------
    number : str
        Chapter and number: "04.2".
    name : str
        The function or class to write.
    task : str
        Its task, in one line.
    section : str
        Heading of the notebook's section that explains it.
    checks : tuple of callables
        Each takes the student's module and raises `Wrong`. The first line of its docstring
        completes the sentence "checked that ...".
    hints : tuple of three str
        From a nudge to almost the whole way, but never the solution.
    seconds : float
        Time limit of all checks together, including compilation.
    """

    number: str
    name: str
    task: str
    section: str
    checks: tuple[Callable[[ModuleType], None], ...]
    hints: tuple[str, str, str]
    seconds: float = 30.0


DOCSTRING = "docstring"  # in place of a section: the docstring of the student's function


class Wrong(Exception):  # noqa: N818 - reads as a sentence: raise Wrong("...")
    """A wrong answer, with everything needed to see why.

    Parameters
    ----------
    why : str
        The name of the mistake, and what would be right.
    inputs : mapping of str to object, optional
        Arguments of the student's function.
    got, expected : object, optional
        The actual and the expected answer.
    section : str, optional
        The section to read, if not the exercise's own; or `DOCSTRING`.
    cause : Exception, optional
        The error that the student's code raised.
    wanted : str, optional
        Shown in place of `expected`, such as "about 0".
    labels : pair of str
        Labels of `got` and `expected`.
    """

    why: str
    inputs: dict[str, Any]
    got: Any
    expected: Any
    section: str | None
    cause: Exception | None
    wanted: str
    labels: tuple[str, str]

    def __init__(
        self, why: str, inputs: Mapping[str, Any] | None = None, got: Any = None,
        expected: Any = None, section: str | None = None, cause: Exception | None = None,
        wanted: str = "", labels: tuple[str, str] = ("got", "wanted"),
    ) -> None:  # fmt: skip
        super().__init__(why)
        self.why, self.inputs = why, dict(inputs or {})
        self.got, self.expected, self.section = got, expected, section
        self.cause, self.wanted, self.labels = cause, wanted, labels


class Stopped(BaseException):
    """Raised from an error that does not depend on the arguments, such as an import's."""


def call(function: Callable[..., Any], inputs: Mapping[str, Any]) -> Any:
    """Call the student's function with copies of the inputs, which it must not change.

    Raises
    ------
    Wrong
        If the function raises an error (which is its `cause`) or writes into its arguments.
    """
    given = copy.deepcopy(dict(inputs))
    try:
        answer, failed = function(*given.values()), None
    except NotImplementedError:
        raise
    except (MemoryError, ImportError, EOFError, SystemExit, bdb.BdbQuit) as error:
        raise Stopped from error
    except Wrong as wrong:  # from a function that a check provides
        wrong.inputs = wrong.inputs or dict(inputs)
        raise
    except Exception as error:
        answer, failed = None, error
    if failed is not None:  # raised here, without a context, by which hypothesis tells errors apart
        text = f"{_name(function)} raises {type(failed).__name__}: {failed}"
        raise Wrong(text, inputs, cause=failed)
    for name, value in given.items():
        if isinstance(value, np.ndarray) and not equal(value, inputs[name]):
            raise Wrong(
                f"{_name(function)} writes into its argument {name}; work on a copy",
                {n: v for n, v in inputs.items() if n != name}, inputs[name], value,
                labels=("before", "after"),
            )  # fmt: skip
    return answer


def _name(function):
    return getattr(function, "__name__", type(function).__name__)


@contextlib.contextmanager
def provided(module: ModuleType, **functions: Callable[..., Any]) -> Iterator[None]:
    """Context manager: replace other functions of the student's module by right ones.

    An exercise is thus judged independently: its answer may call another exercise's function that
    is wrong or not written yet.
    """
    before = {name: getattr(module, name) for name in functions if hasattr(module, name)}
    vars(module).update(functions)
    try:
        yield
    finally:
        for name in functions:
            delattr(module, name)
        vars(module).update(before)


def equal(a: Any, b: Any, tolerance: float = 0.0) -> bool:
    """Whether two answers have the same shape and the same values; NaN equals NaN."""
    if isinstance(b, tuple):
        same = isinstance(a, tuple) and len(a) == len(b)
        return same and all(equal(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if isinstance(a, int | np.integer) and isinstance(b, int):  # of any length
        return int(a) == int(b)
    try:
        a, b = np.asarray(a), np.asarray(b)
        if a.shape != b.shape or a.dtype == object:
            return False
        if tolerance:
            return bool(np.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True))
        return np.array_equal(a, b, equal_nan=b.dtype.kind == "f" and a.dtype.kind == "f")
    except Exception:  # an object of the student's own class may raise anything
        return False


def compare(
    function: Callable[..., Any],
    reference: Callable[..., Any],
    inputs: Mapping[str, Any],
    mistakes: Mapping[str, Callable[..., Any] | tuple[Callable[..., Any], ...]] | None = None,
    tolerance: float = 0.0,
    probes: Sequence[Mapping[str, Any]] = (),
    results: Sequence[str] = (),
) -> None:
    """Raise `Wrong` unless the student's function agrees with the reference.

    Parameters
    ----------
    function : callable
        The student's function.
    reference : callable
        Takes the same arguments.
    inputs : mapping of str to object
        The arguments, in their order.
    mistakes : mapping of str to callable or tuple of callables, optional
        Known mistakes: the message, and the functions that make the mistake. The first one that
        agrees with the student's function on the inputs and all probes determines the message.
    tolerance : float
        Relative and absolute; 0 for exact mathematics.
    probes : sequence of mappings
        More inputs, which distinguish the known mistakes.
    results : sequence of str
        Names of the parts of an answer that is a tuple.
    """
    got, expected = call(function, inputs), reference(*inputs.values())
    if equal(got, expected, tolerance):
        return
    why = named(function, mistakes or {}, [inputs, *probes], tolerance)
    raise Wrong(why or _differs(got, expected, results), inputs, got, expected)


def named(
    function: Callable[..., Any],
    mistakes: Mapping[str, Any],
    probes: Sequence[Mapping[str, Any]],
    tolerance: float = 0.0,
) -> str | None:
    """Return the message of the known mistake that agrees on all probes, or None."""
    try:
        answers = [call(function, inputs) for inputs in probes]
    except Wrong:
        return None
    for text, mistaken in mistakes.items():
        for one in mistaken if isinstance(mistaken, tuple) else (mistaken,):
            if all(_makes(one, inputs, got, tolerance)
                   for inputs, got in zip(probes, answers, strict=True)):  # fmt: skip
                return text
    return None


def _makes(mistaken, inputs, got, tolerance):
    with np.errstate(all="ignore"):
        return equal(got, mistaken(*copy.deepcopy(dict(inputs)).values()), tolerance)


def _differs(got, expected, results=()):
    """Describe the difference if no known mistake fits."""
    if got is None:
        return "the answer is None: is a return missing?"
    if isinstance(expected, tuple):
        if not isinstance(got, tuple) or len(got) != len(expected):
            return f"the answer must be a tuple of {len(expected)}"
        for number, (one, wanted) in enumerate(zip(got, expected, strict=True), 1):
            if not equal(one, wanted, 1e-6):
                what = results[number - 1] if results else f"result {number} of {len(expected)}"
                return f"{what}: {_differs(one, wanted)}"
    try:
        if np.asarray(got).dtype.kind not in "biufc":
            raise ValueError
    except Exception:  # an object of the student's own class may raise anything
        return f"the answer is of type {type(got).__name__}, expected {type(expected).__name__}"
    shape, wanted = np.shape(got), np.shape(expected)
    if shape != wanted:
        return f"the answer has shape {shape}, expected {wanted}"
    if shape == ():
        return "the value is not as expected"
    wrong = np.count_nonzero(np.asarray(got) != np.asarray(expected))
    return f"{wrong} of {max(np.size(expected), 1)} values are not as expected"


def for_all(check: Callable[..., Any], examples: int = 200, **strategies: Any) -> None:
    """Call ``check(**values)`` with many values; raise the error of the smallest failing ones.

    Parameters
    ----------
    check : callable
    examples : int
    **strategies : hypothesis strategies
        A strategy for each argument of the check.
    """
    from hypothesis import HealthCheck, given, settings

    bounded = settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    bounded(given(**strategies)(lambda **values: check(**values)))()
