"""The compiler's input: every operation that ran inside a `trace` block, in order."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tinybnn.autograd.engine import Function, Variable, state

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tinybnn.autograd.tensor import Tensor


@dataclass(frozen=True)
class Call:
    """One operation that ran inside `trace`."""

    function: Function
    inputs: tuple[Any, ...]
    options: dict[str, Any]
    output: Tensor
    scope: tuple[Any, ...]  # the modules whose forward was running, outermost first
    line: tuple[Any, ...] = ()  # (file, number) in a forward method outside of this package, or ()


@dataclass(frozen=True)
class Escape:
    """An action of a traced model that its tape cannot repeat for another input."""

    tensors: tuple[Any, ...]  # harmless if none depends on the input; (): harmful in any case
    reason: str
    scope: tuple[Any, ...]  # the modules whose forward was running, outermost first
    line: tuple[Any, ...] = ()  # as in `Call`


class Tape(list[Call]):
    """The calls of a `trace` block, in order.

    Attributes
    ----------
    modules : list of (module, inputs, output)
        The modules that ran, in the order in which they ended.
    aliases : dict
        For each result x of `Tensor.detach`, ``id(x)`` to ``(x, the Tensor it was taken from)``.
    escapes : list of Escape
    failed : tuple
        The modules that were running when one of them raised an exception, outermost first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.modules: list[tuple[Any, Any, Any]] = []
        self.failed: tuple[Any, ...] = ()
        self.aliases: dict[int, tuple[Tensor, Tensor]] = {}
        self.escapes: list[Escape] = []
        self._changed = {}  # id -> version counter of memory that an in-place operator changed

    def source(self, x: Tensor) -> Tensor:
        """Return the Tensor that x is an alias of, or x itself."""
        while id(x) in self.aliases:
            x = self.aliases[id(x)][1]
        return x

    def escape(self, reason: str, *tensors: Any) -> None:
        """Note that values of `tensors` leave the tape, or that the model changes its own state."""
        self.escapes.append(Escape(tensors, reason, state.scope, _line_of_model()))

    def record(
        self, function: Function, inputs: tuple[Any, ...], options: dict[str, Any], output: Tensor
    ) -> None:
        """Append a `Call`."""
        self.reads(*inputs)
        self.append(Call(function, inputs, options, output, state.scope, _line_of_model()))

    def reads(self, *inputs: Any) -> None:
        """Note an escape for each of `inputs` that is outdated: see `changed`."""
        if not self._changed:
            return
        for x in inputs:
            if isinstance(x, Variable) and id(x._version) in self._changed:
                self.escape(
                    "it is read after an in-place operator changed it under another name, or in a "
                    "view; write x = x + y there",
                    x,
                )

    def changed(self, x: Tensor) -> None:
        """Mark x and its views as outdated: an in-place operator bound its name to a new Tensor."""
        self._changed[id(x._version)] = x._version


def _line_of_model():
    """(file, number) of the running line in the innermost module's forward; () in this package."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not traced_forward.__code__:
        if not frame.f_globals.get("__name__", "").startswith("tinybnn."):
            return frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back
    return ()


@contextlib.contextmanager
def trace() -> Iterator[Tape]:
    """Collect every operation on Tensors inside the block, in order of execution.

    Yields
    ------
    Tape
        Grows while the block runs. Calls in a nested ``trace`` block are recorded there only.
    """
    before, state.tape = state.tape, Tape()
    try:
        yield state.tape
    finally:
        state.tape = before


def traced_forward(module: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Run a module's forward, with the module added to the scope of its calls (`Call.scope`)."""
    before, tape = state.scope, state.tape
    state.scope = (*before, module)
    try:
        output = module.forward(*inputs, **options)
    except Exception:
        tape.failed = tape.failed or state.scope
        raise
    finally:
        state.scope = before
    tape.modules.append((module, inputs, output))
    return output


def is_tracing() -> bool:
    """Whether a `trace` block is open in this thread."""
    return state.tape is not None
