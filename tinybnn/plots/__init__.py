"""Pictures of networks, training, bits and measurements.

Each function draws on ``ax=``, matplotlib axes, so that figures can be composed; without it, on a
new figure (the `.figure` of the returned axes, which `save` writes to a file). It returns the axes,
or the Figure if a picture has several. No function opens a window, needs a display or changes
matplotlib's settings.
"""

from tinybnn.plots.arrays import filters, heat_map, images, partition, signs, table
from tinybnn.plots.binary import accumulators, convolution, layer_accumulators, quantizer
from tinybnn.plots.canvas import (
    MINUS,
    PALETTE,
    PLUS,
    figure,
    legend_beside,
    logarithmic,
    marks,
    save,
    whole_numbers,
    zoom,
)
from tinybnn.plots.files import packed_file
from tinybnn.plots.landscapes import (
    contours,
    eigenvalues,
    flip_spectrum,
    landscape,
    landscape_html,
    latents,
    sign_flips,
    spectrum,
)
from tinybnn.plots.lines import curves, curves_through, dots, history, trade_off
from tinybnn.plots.modules import architecture, architectures, hybnn
from tinybnn.plots.networks import graph
from tinybnn.plots.roof import roofline

__all__ = [
    "MINUS", "PALETTE", "PLUS", "accumulators", "architecture", "architectures", "contours",
    "convolution", "curves", "curves_through", "dots", "eigenvalues", "figure", "filters",
    "flip_spectrum", "graph", "heat_map", "history", "hybnn", "images", "landscape",
    "landscape_html", "latents", "layer_accumulators", "legend_beside", "logarithmic", "marks",
    "packed_file", "partition", "quantizer", "roofline", "save", "sign_flips", "signs",
    "spectrum", "table", "trade_off", "whole_numbers", "zoom",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__.copy()  # what is public, and nothing else
