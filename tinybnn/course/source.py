"""Compare a student's file with the original that came with the course."""

from __future__ import annotations

import ast
import copy
import os
from pathlib import Path

from tinybnn.course.catalogue import CHAPTERS, student_file
from tinybnn.course.child import PACKAGE
from tinybnn.course.exercise import Exercise
from tinybnn.course.folder import material, parsed


def is_begun(exercise: Exercise, folder: str | os.PathLike[str]) -> bool:
    """Whether the student has written something for an exercise, or the file is unreadable."""
    path = student_file(exercise, folder)
    mine, original = _definitions(path), _original(path.name)
    if mine is None or exercise.name not in mine or exercise.name not in original:
        return True
    return _plain(mine[exercise.name]) != _plain(original[exercise.name])


def is_as_it_came(exercise: Exercise, folder: str | os.PathLike[str]) -> bool:
    """Whether an exercise's file is the one that came with the course, but for comments."""
    path, source = student_file(exercise, folder), material()
    if source is None or not path.is_file():
        return False
    try:
        original = parsed((source / PACKAGE / path.name).read_bytes())
        return ast.dump(parsed(path.read_bytes())) == ast.dump(original)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def altered(exercise: Exercise, folder: str | os.PathLike[str]) -> str:
    """Describe changes to parts that came with the course, in the exercise's file and its imports.

    Only definitions that came complete count; exercises and additional definitions do not.

    Returns
    -------
    str
        One line; empty without changes.
    """
    texts = []
    for path in _imported(student_file(exercise, folder)):
        mine, exercises = _definitions(path), _exercises(path.stem)
        for name, original in _original(path.name).items() if mine is not None else ():
            if name in exercises or isinstance(original, (ast.Import, ast.ImportFrom)):
                continue
            kind = f"class {name}" if isinstance(original, ast.ClassDef) else name
            if name not in mine:
                texts.append(f"{kind}, gone from {PACKAGE}/{path.name}")
            elif _plain(mine[name]) != _plain(original):
                line = _first_other(mine[name], original).lineno
                texts.append(f"{kind} in {PACKAGE}/{path.name} (line {line})")
    if not texts:
        return ""
    return (
        f"not as it came with the course: {', '.join(texts[:3])}{', ...' * (len(texts) > 3)}; if "
        "that was not meant, `tinybnn course start original` makes a folder with the original"
    )


def code_around(path: str | os.PathLike[str], line: int) -> str:
    """Whether the function around a line has code "below", "above", or none ("").

    Parameters
    ----------
    path : PathLike
    line : int
        The line that raises NotImplementedError.
    """
    functions = [
        node
        for node in ast.walk(parsed(Path(path).read_bytes()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.lineno <= line <= node.end_lineno
    ]
    if not functions:
        return ""
    body = _without_docstring(max(functions, key=lambda node: node.lineno).body)
    if body[-1].lineno > line:
        return "below"
    return "above" if body[0].lineno < line else ""


def _imported(path):
    """List the file and the course files that its original imports, recursively."""
    files, waiting = [], [path]
    while waiting:
        path = waiting.pop(0)
        if path in files:
            continue
        files.append(path)
        for node in _original(path.name).values():
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE + "."):
                waiting.append(path.with_name(node.module.partition(".")[2] + ".py"))
    return files


def _exercises(file):
    return {one.name for c in CHAPTERS.values() if c.file == file for one in c.exercises}


def _original(name):
    folder = material()
    return (folder and _definitions(folder / PACKAGE / name)) or {}


def _definitions(path):
    """Map each top-level name of a file to its definition; None if it cannot be parsed."""
    if not path.is_file():
        return None
    try:
        tree = parsed(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    definitions = {}
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.asname or alias.name for alias in node.names]
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            names = [part.id for part in ast.walk(node)
                     if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)]  # fmt: skip
        else:
            names = [node.name] if hasattr(node, "name") else []
        definitions.update(dict.fromkeys(names, node))
    return definitions


def _without_docstring(body):
    first = body[0]
    is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return body[1:] if is_text and isinstance(first.value.value, str) and body[1:] else body


def _plain(node):
    """Dump a definition as a text without comments, docstrings and line numbers."""
    try:
        node = copy.deepcopy(node)
    except RecursionError:
        return object()  # differs from all others
    for part in ast.walk(node):
        if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            part.body = _without_docstring(part.body)
    return ast.dump(node)


def _first_other(mine, original):
    """Find the innermost statement of a definition that is not in the original."""
    theirs = {_plain(node) for node in getattr(original, "body", ())}
    for node in getattr(mine, "body", ()):
        if _plain(node) not in theirs:
            twins = [n for n in original.body if getattr(n, "name", 0) == getattr(node, "name", 1)]
            return _first_other(node, twins[0]) if twins else node
    return mine
