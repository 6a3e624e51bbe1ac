"""The course: exercises that check themselves, hints, milestones that run the student's code.

In a notebook of the course, or in a course folder:

>>> from tinybnn import course
>>> course.show("04")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinybnn.course.report import check, show

__all__ = ["check", "show"]


def __dir__() -> list[str]:
    return __all__.copy()  # what is public, and nothing else


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("tinybnn.course.report"), name)
    raise AttributeError(f"module 'tinybnn.course' has no attribute {name!r}")
