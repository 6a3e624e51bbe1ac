"""Search for thresholds: the integer sums at which the sign of a function of them changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from tinybnn.typing import Array


class Scan:
    """The sign as a function of an integer sum, for each channel and all reachable integers.

    The integers are scanned in ascending blocks, to bound the memory.

    Parameters
    ----------
    count : int
        Sums lie in [-count, count].
    channels : int
    is_pooled : bool
        Whether a max-pool of the values precedes the sign.
    """

    BLOCK = 1 << 17  # numbers of a block
    count: int
    channels: int
    is_pooled: bool
    turns: NDArray[np.int64]  # (C,) number of sign changes
    where: NDArray[np.int64]  # (C,) the integer at the first sign change
    any_nan: NDArray[np.bool_]  # (C,)
    all_nan: NDArray[np.bool_]  # (C,)
    low: NDArray[np.float32]  # (2, C) the smallest value of each sign
    high: NDArray[np.float32]  # (2, C) the largest value of each sign
    first: NDArray[np.bool_]  # (C,) the sign at -count
    last: NDArray[np.bool_]  # (C,) the sign at the last scanned integer

    def __init__(self, count: int, channels: int, is_pooled: bool) -> None:
        self.count, self.channels, self.is_pooled = count, channels, is_pooled
        self.turns = np.zeros(channels, np.int64)
        self.where = np.full(channels, -count, np.int64)
        self.any_nan, self.all_nan = np.zeros(channels, bool), np.ones(channels, bool)
        self.low, self.high = (np.full((2, channels), v, np.float32) for v in (np.inf, -np.inf))

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Yield all integers in ascending order, in float32 arrays (n,)."""
        step = max(1, self.BLOCK // self.channels)
        for start in range(-self.count, self.count + 1, step):
            yield np.arange(start, min(start + step, self.count + 1), dtype=np.float32)

    def add(self, integers: Array, values: Array, signs: Array) -> None:
        """Add a block: integers (n,), values before the pool and signs (n, C)."""
        if integers[0] == -self.count:
            self.first = self.last = signs[0]
        changes = signs != np.concatenate([self.last[None], signs[:-1]])
        is_first = (self.turns == 0) & changes.any(0)
        self.where[is_first] = integers[changes.argmax(0)[is_first]]
        self.turns += changes.sum(0)
        self.last = signs[-1]
        is_nan = np.isnan(values)
        self.any_nan |= is_nan.any(0)
        self.all_nan &= is_nan.all(0)
        if self.is_pooled:
            for sign in (0, 1):
                has_sign = (signs == sign) & ~is_nan
                low, high = (np.where(has_sign, values, v) for v in (np.inf, -np.inf))
                self.low[sign] = np.minimum(self.low[sign], low.min(0))
                self.high[sign] = np.maximum(self.high[sign], high.max(0))

    def is_threshold(self) -> bool:
        """Whether one comparison for each channel reproduces all signs."""
        # A NaN among other values would win a max-pool, but fail the comparison.
        if np.any(self.any_nan & ~self.all_nan) or np.any(self.turns > 1):
            return False
        return not self.is_pooled or bool(np.all(self.rises() | self.falls() | (self.turns == 0)))

    def thresholds(self) -> tuple[Array, NDArray[np.bool_]]:
        """Return integers t and flips, (C,) each, such that the sign is (sum >= t) != flip."""
        constant = self.turns == 0
        flip = np.where(constant, ~self.first, self.first)
        return self.where.astype(smallest_int(self.count)), flip

    def rises(self) -> NDArray[np.bool_]:
        """Return, for each channel (C,), whether larger values have the sign +1."""
        return self.high[0] < self.low[1]

    def falls(self) -> NDArray[np.bool_]:
        """Return, for each channel (C,), whether larger values have the sign -1.

        The sign of a maximum is then the minimum of the signs.
        """
        return (self.high[1] < self.low[0]) & (self.turns > 0)


def smallest_int(bound: int) -> type[np.signedinteger[Any]]:
    """Return the smallest signed integer dtype that can represent -bound to bound + 1."""
    return next(t for t in (np.int8, np.int16, np.int32) if np.iinfo(t).max > bound)
