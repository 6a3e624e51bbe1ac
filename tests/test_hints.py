"""Public classes and functions have type hints for parameters and results."""

import ast
import inspect
from pathlib import Path

import pytest

import tinybnn
from tinybnn.autograd import Function, Tensor, Variable
from tinybnn.nn import Module

PACKAGE = Path(tinybnn.__file__).parent
ROOMS = ("autograd", "nn", "optim", "testing")
FILES = sorted(path for room in ROOMS for path in (PACKAGE / room).rglob("*.py"))


def is_public(name):
    return not name.startswith("_") or (name.startswith("__") and name.endswith("__"))


def public_functions(node, prefix=""):
    """(name, function, its parameters except self) in a file or class, nested ones included."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef) and is_public(child.name):
            yield from public_functions(child, f"{child.name}.")
        elif isinstance(child, ast.FunctionDef) and is_public(child.name):
            parameters = [*child.args.posonlyargs, *child.args.args]
            is_method = prefix and "staticmethod" not in map(ast.unparse, child.decorator_list)
            extra = [*child.args.kwonlyargs, child.args.vararg, child.args.kwarg]
            named = parameters[1:] if is_method else parameters
            yield f"{prefix}{child.name}", child, [*named, *(x for x in extra if x)]


def without_hints(tree):
    """Functions with a parameter or a result that has no hint."""
    return [
        name
        for name, function, parameters in public_functions(tree)
        if function.returns is None or any(x.annotation is None for x in parameters)
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_public_function_without_hints(path):
    assert without_hints(ast.parse(path.read_text(encoding="utf-8"))) == []


def test_what_counts_as_a_hint():
    tree = ast.parse("class A:\n def f(self, x: int): ...\n def g(self, *x) -> int: ...")
    assert without_hints(tree) == ["A.f", "A.g"]
    assert without_hints(ast.parse("def f(x: int) -> int: ...\ndef _f(x): ...")) == []


@pytest.mark.parametrize("cls", [Variable, Tensor, Function, Module])
def test_a_method_that_only_exists_at_run_time(cls):
    """Each attribute is declared in the class body with a type, not set by a loop."""
    (node,) = ast.parse(inspect.getsource(cls)).body
    declared = {x.name for x in ast.walk(node) if isinstance(x, ast.FunctionDef)}
    declared |= {x.target.id for x in node.body if isinstance(x, ast.AnnAssign)}
    assert {name for name in vars(cls) if not name.startswith("_")} <= declared
