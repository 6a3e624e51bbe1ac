"""Compare packed models with many random networks."""

from __future__ import annotations

import collections
import re
import time
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tqdm import tqdm

from tinybnn import deploy
from tinybnn.testing.exactness import check_packed, quiet
from tinybnn.testing.networks import random_network

if TYPE_CHECKING:
    from tinybnn.testing.networks import RandomNetwork

__all__ = ["Campaign", "campaign"]

_SHRINKING = 60.0  # seconds to spend on making a counterexample smaller


@dataclass
class Campaign:
    """The result of checking random networks.

    Attributes
    ----------
    tried, equal, refused, wrong : int
        Numbers of networks.
    reasons : dict of str to int
        Number of networks refused for each reason.
    seconds : float
    counterexample : RandomNetwork or None
        The first wrong network, reduced.
    error : str
        The error of the counterexample.
    """

    tried: int = 0
    equal: int = 0
    refused: int = 0
    wrong: int = 0
    reasons: dict[str, int] = field(default_factory=collections.Counter)
    seconds: float = 0.0
    counterexample: RandomNetwork | None = None
    error: str = ""

    def __str__(self) -> str:
        return (
            f"{self.tried} random networks: {self.equal} equal in every bit, {self.refused} "
            f"refused, {self.wrong} wrong ({self.seconds:.0f} s)"
        )


def campaign(count: int, seed: int = 0, progress: bool = True) -> Campaign:
    """Check `count` random networks; stop at the first that is wrong and reduce it.

    Parameters
    ----------
    count : int
    seed : int
        Network i is ``random_network(seed * 1_000_003 + i)``.
    progress : bool
        Show a progress bar on stderr.

    Returns
    -------
    Campaign

    Examples
    --------
    >>> campaign(3, progress=False).wrong
    0
    """
    result, begin = Campaign(), time.perf_counter()
    for i in tqdm(range(count), disable=not progress, unit="network", leave=False):
        network = _network(seed * 1_000_003 + i)
        verdict, message = outcome(network)
        result.tried += 1
        setattr(result, verdict, getattr(result, verdict) + 1)
        if verdict == "refused":
            result.reasons[_reason(message)] += 1
        elif verdict == "wrong":
            result.counterexample, result.error = shrink(network, message)
            break
    result.seconds = time.perf_counter() - begin
    return result


def _network(seed: int) -> RandomNetwork:
    try:
        return random_network(seed)
    except Exception as error:
        raise RuntimeError(f"random_network({seed}) cannot be generated: {error}") from error


def outcome(network: RandomNetwork) -> tuple[str, str]:
    """Check a network: ('equal', ''), ('refused', reason) or ('wrong', error)."""
    with quiet():
        try:
            check_packed(network.build(), network.input_shape, network.generator(), network.extreme)
        except deploy.CompileError as error:
            message = str(error)
            is_wrong = "does not give what the model gives" in message
            return ("wrong" if is_wrong else "refused"), message
        except Exception as error:
            return "wrong", "".join(traceback.format_exception_only(error)).strip()
    return "equal", ""


def shrink(
    network: RandomNetwork, error: str, seconds: float = _SHRINKING
) -> tuple[RandomNetwork, str]:
    """Search for `seconds` for a smaller network with the same kind of error; return both."""
    end, shrinks = time.monotonic() + seconds, True
    while shrinks and time.monotonic() < end:
        shrinks = False
        for smaller in network.smaller():
            with quiet():
                try:
                    smaller.build()
                except Exception:  # its lines no longer fit together
                    continue
            verdict, message = outcome(smaller)
            if verdict == "wrong" and _kind(message) == _kind(error):
                network, error, shrinks = smaller, message, True
                break
    return network, error


def _kind(error):
    """Strip numbers and layer names from an error, so that smaller networks give the same text."""
    if "differ" in error:
        return "differs"
    return re.sub(r"[\d.+-]+|layer_\w+", "#", error)[:60]


def _reason(message):
    """Return the part of a CompileError that does not depend on the network."""
    return re.sub(r"\d+", "#", re.sub(r"^compile: (layer|step) [^:]*: ", "", message))[:80]
