"""Packed models held against many random networks."""

from __future__ import annotations

import collections
import re
import time
import traceback
from dataclasses import dataclass, field

from tqdm import tqdm

from tinybnn import deploy
from tinybnn.testing.exactness import check_packed, quiet
from tinybnn.testing.networks import random_network

__all__ = ["Campaign", "campaign"]

_SHRINKING = 60.0  # seconds that a counterexample is made smaller for


@dataclass
class Campaign:
    """What became of random networks.

    Attributes
    ----------
    tried, equal, refused, wrong : int
    reasons : dict
        Reason -> how many networks were refused for it.
    seconds : float
    counterexample : RandomNetwork or None
        The first wrong network, made small.
    error : str
        What is wrong with it.
    """

    tried: int = 0
    equal: int = 0
    refused: int = 0
    wrong: int = 0
    reasons: dict = field(default_factory=collections.Counter)
    seconds: float = 0.0
    counterexample: object = None
    error: str = ""

    def __str__(self):
        return (
            f"{self.tried} random networks: {self.equal} equal in every bit, {self.refused} "
            f"refused, {self.wrong} wrong ({self.seconds:.0f} s)"
        )


def campaign(count, seed=0, progress=True):
    """Check `count` random networks; stop at the first that is wrong and make it small.

    Parameters
    ----------
    count : int
    seed : int
        Network i is ``random_network(seed * 1_000_003 + i)``.
    progress : bool
        Show a bar on stderr.

    Returns
    -------
    Campaign

    Examples
    --------
    >>> campaign(3, progress=False).wrong
    0
    """
    found, begin = Campaign(), time.perf_counter()
    for i in tqdm(range(count), disable=not progress, unit="network", leave=False):
        network = _network(seed * 1_000_003 + i)
        kind, said = outcome(network)
        found.tried += 1
        setattr(found, kind, getattr(found, kind) + 1)
        if kind == "refused":
            found.reasons[_reason(said)] += 1
        elif kind == "wrong":
            found.counterexample, found.error = shrink(network, said)
            break
    found.seconds = time.perf_counter() - begin
    return found


def _network(seed):
    try:
        return random_network(seed)
    except Exception as error:
        raise RuntimeError(f"random_network({seed}) cannot be written: {error}") from error


def outcome(network):
    """('equal', ''), ('refused', reason) or ('wrong', error) of a RandomNetwork."""
    with quiet():
        try:
            check_packed(network.build(), network.input_shape, network.generator(), network.extreme)
        except deploy.CompileError as error:
            said = str(error)
            return ("wrong" if "does not give what the model gives" in said else "refused"), said
        except Exception as error:
            return "wrong", "".join(traceback.format_exception_only(error)).strip()
    return "equal", ""


def shrink(network, error, seconds=_SHRINKING):
    """The smallest network found in some time that is wrong as well, and its error."""
    end, shrinks = time.monotonic() + seconds, True
    while shrinks and time.monotonic() < end:
        shrinks = False
        for smaller in network.smaller():
            with quiet():
                try:
                    smaller.build()
                except Exception:  # its lines do not fit to each other any more
                    continue
            kind, said = outcome(smaller)
            if kind == "wrong" and _kind(said) == _kind(error):
                network, error, shrinks = smaller, said, True
                break
    return network, error


def _kind(error):
    """An error without its numbers and names of layers: equal for smaller networks."""
    if "differ" in error:
        return "differs"
    return re.sub(r"[\d.+-]+|layer_\w+", "#", error)[:60]


def _reason(said):
    """The part of a CompileError that does not depend on the network."""
    return re.sub(r"\d+", "#", re.sub(r"^compile: (layer|step) [^:]*: ", "", said))[:80]
