"""The parser of the command line: each error is one line that names the command and what to do."""

from __future__ import annotations

import argparse
import difflib
import sys

from tinybnn.storage import printable


class Parser(argparse.ArgumentParser):
    """A parser whose errors fit on one line and suggest what is alike."""

    def error(self, message):
        self.exit(2, printable(f"{self.prog}: {message}; see `{self.prog} --help`") + "\n")

    def _print_message(self, message, file=None):
        (file or sys.stderr).write(message)  # argparse would pass over a disk that is full

    def parse_known_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else list(args)
        self._refuse_unknown_options(args)
        return super().parse_known_args(args, namespace)

    def _refuse_unknown_options(self, words):
        """Before anything else: a misspelt option is the reason why another one is missing."""
        known = self._option_string_actions
        leads_on = any(isinstance(a, argparse._SubParsersAction) for a in self._actions)
        for word in words:
            if word == "--" or (leads_on and not word.startswith("-")):
                return  # what follows are no options, or those of another command
            option = word.partition("=")[0]
            if word.startswith("--") and option not in known:
                self.error(f"unknown option {option}{nearest(option, known)}")

    def _check_value(self, action, value):
        if action.choices is not None and value not in action.choices:
            names = ", ".join(map(str, action.choices))
            raise argparse.ArgumentError(
                action, f"unknown {value!r}{nearest(value, action.choices)}, choose from {names}"
            )


def nearest(word, known):
    """The end of an error that names what is most alike; empty if nothing is.

    >>> nearest("minst", ["digits", "mnist"])
    " (did you mean 'mnist'?)"
    """
    known = {name.lower(): name for name in known}
    found = difflib.get_close_matches(str(word).lower(), known, 1)
    return f" (did you mean {known[found[0]]!r}?)" if found else ""
