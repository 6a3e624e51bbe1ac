"""What the compiler sees: every operation that ran inside a `trace` block, in order."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass

from tinybnn.autograd.engine import Function, Variable, state


@dataclass(frozen=True)
class Call:
    """One operation that ran inside `trace`: what was applied to what, and where."""

    function: Function
    inputs: tuple
    options: dict
    output: Variable
    scope: tuple  # the modules whose forward was running, outermost first
    line: tuple = ()  # (file, number) in a forward method that is not of this package, else ()


@dataclass(frozen=True)
class Escape:
    """Something that a traced model did and its tape cannot repeat for another input."""

    tensors: tuple  # harmless if none of these depends on the input; () for a harm in any case
    reason: str
    scope: tuple  # the modules whose forward was running, outermost first
    line: tuple = ()  # as in `Call`


class Tape(list):
    """The calls of a `trace` block in order.

    Attributes
    ----------
    modules : list of (module, inputs, output)
        The modules that ran, in the order in which they ended.
    aliases : dict
        ``id(x)`` of a Tensor that is another one without its graph, by `Tensor.detach`, to
        ``(x, that other Tensor)``.
    escapes : list of Escape
    failed : tuple
        The modules that were running when one of them raised an exception, outermost first.
    """

    def __init__(self):
        super().__init__()
        self.modules = []
        self.failed = ()
        self.aliases = {}
        self.escapes = []
        self._changed = {}  # id -> version cell of memory that an in-place operator changed

    def source(self, x):
        """The Tensor that x is an alias of, or x itself."""
        while id(x) in self.aliases:
            x = self.aliases[id(x)][1]
        return x

    def escape(self, reason, *tensors):
        """Note that the values of `tensors` leave the tape, or that the model changes itself."""
        self.escapes.append(Escape(tensors, reason, state.scope, _line_of_model()))

    def record(self, function, inputs, options, output):
        """Append a call."""
        self.reads(*inputs)
        self.append(Call(function, inputs, options, output, state.scope, _line_of_model()))

    def reads(self, *inputs):
        """Note which of `inputs` are not any more what the tape knows: see `changed`."""
        if not self._changed:
            return
        for x in inputs:
            if isinstance(x, Variable) and id(x._version) in self._changed:
                self.escape(
                    "it is read after an in-place operator changed it under another name, or in a "
                    "view; write x = x + y there",
                    x,
                )

    def changed(self, x):
        """An in-place operator gave its name to a new Tensor; x and views of it are outdated."""
        self._changed[id(x._version)] = x._version


def _line_of_model():
    """(file, number) of the line that runs in the innermost module's forward; () in our own."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not traced_forward.__code__:
        if not frame.f_globals.get("__name__", "").startswith("tinybnn."):
            return frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back
    return ()


@contextlib.contextmanager
def trace():
    """Collect every operation on Tensors inside the block, in order of execution.

    Yields
    ------
    Tape
        Grows while the block runs. Calls inside another ``trace`` block belong to the inner one.
    """
    before, state.tape = state.tape, Tape()
    try:
        yield state.tape
    finally:
        state.tape = before


def traced_forward(module, inputs, options):
    """Run a module's forward with its calls marked as made by it (see `Call.scope`)."""
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


def is_tracing():
    """Whether a `trace` block is open in this thread."""
    return state.tape is not None
