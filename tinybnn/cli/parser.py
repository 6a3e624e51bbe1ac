"""The parser of the command line: each error is one line with the command and an advice."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

from tinybnn.storage import printable


class Parser(argparse.ArgumentParser):
    """A parser whose errors fit on one line and suggest similar names."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, printable(f"{self.prog}: {message}; see `{self.prog} --help`") + "\n")

    def _print_message(self, message, file=None):
        (file or sys.stderr).write(message)  # argparse would ignore a full disk

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        args = sys.argv[1:] if args is None else list(args)
        self._refuse_unknown_options(args)
        return super().parse_known_args(args, namespace)

    def _refuse_unknown_options(self, words):
        """Report a misspelt option first: it is why another one seems to be missing."""
        known = self._option_string_actions
        leads_on = any(isinstance(a, argparse._SubParsersAction) for a in self._actions)
        for word in words:
            if word == "--" or (leads_on and not word.startswith("-")):
                return  # no options follow, or those of another command
            option = word.partition("=")[0]
            if word.startswith("--") and option not in known:
                self.error(f"unknown option {option}{nearest(option, known)}")

    def _check_value(self, action, value):
        if action.choices is not None and value not in action.choices:
            names = ", ".join(map(str, action.choices))
            raise argparse.ArgumentError(
                action, f"unknown {value!r}{nearest(value, action.choices)}, choose from {names}"
            )


def nearest(word: object, known: Iterable[str]) -> str:
    """Return the end of an error that names the most similar word; empty if none is similar.

    >>> nearest("minst", ["digits", "mnist"])
    " (did you mean 'mnist'?)"
    """
    names = {name.lower(): name for name in known}
    matches = difflib.get_close_matches(str(word).lower(), names, 1)
    return f" (did you mean {names[matches[0]]!r}?)" if matches else ""
