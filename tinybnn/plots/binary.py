"""How a binary layer computes: quantizers, convolutions on bits, sums and thresholds."""

from __future__ import annotations

import numpy as np

from tinybnn import quantizers
from tinybnn.plots.canvas import MINUS, PALETTE, PLUS, picture


@picture
def quantizer(q, title=None, *, ax=None):
    """What a quantizer computes over [-2, 2], its pseudo-gradient, and its surrogate.

    A weight quantizer, whose values depend on all weights of a filter, sees the points of the
    drawing as one filter.

    Parameters
    ----------
    q : Quantizer or name
    title : str, optional
        By default the name of the quantizer.
    """
    found = quantizers.get(q)
    if found is None:
        raise ValueError("quantizer: expects a quantizer, got None")
    x = np.linspace(-2, 2, 2001)
    for position in (ax.axhline, ax.axvline):
        position(0, color="0.85", linewidth=0.8, zorder=0)
    ax.plot(x, found(x[None])[0], color=PALETTE[-1], linewidth=1, label="forward")
    ax.plot(x, found.pseudo_gradient(x[None])[0], color=PLUS, label="pseudo-gradient")
    ax.plot(x, found.surrogate(x[None])[0], "--", color=MINUS, label="surrogate")
    ax.set(xlabel="x", xlim=(-2, 2), title=type(found).__name__ if title is None else title)
    low, high = ax.get_ylim()
    ax.set_ylim(min(low, -0.7 * high), high)  # nothing is drawn right below: the legend's place
    ax.legend(loc="lower right", frameon=False, fontsize="small")
