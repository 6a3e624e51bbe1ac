"""BD-Net: the ablation of Table 6, accuracy against operations and measured time (Fig. 1).

``bdnet-ablation``
    MobileNet V1 with binary depth-wise convolutions: naive, with the shortcut before the batch
    norm, with the 1.58-bit convolution, with both.
``bdnet-training``
    BD-Net-A in one step or two, with a float network as its teacher or without.
``bdnet-fronts``
    These networks at widths at which they cost the same, in `fronts`.
``bdnet-table2``
    MobileNet V1 as float network, ReActNet, AdaBin and BD-Net; ShuffleNet V1 and MobileNet V3 with
    and without broadcast residual (Tables 2, 4 and 5).
``hessian``, ``landscape``
    The curvature of these networks (Figures 2, 5 and 6), in `curvature` and `landscape`.

The paper's settings are in an appendix that was not available to us; ours are those of `Config`.
All networks of a seed see the same images in the same order. Each network has a folder in RUN, and
what has its file there is not computed again; training resumes after its last epoch, bit for bit:

    step-1.npz, step-2.npz    the state after the last complete epoch of each step of training
    packed.npz                the compiled network
    result.json               its figures: accuracy on test images after the last epoch, cost, and
                              the `layer_statistics` of its k×k layers

RUN itself holds result.json, report.md and the pictures.

`arms` lists the networks, `training` trains and measures one of them, `instability` measures
variances and gradients, `levels` draws Figure 4, `report` writes tables and pictures, and
`experiment` runs all of it. `conditioning` computes the condition numbers of Eq. 3 to 10.
"""

from pathlib import Path
from typing import Any

from tinybnn.experiments.bdnet.arms import ABLATION, TABLE_2, Arm
from tinybnn.experiments.bdnet.experiment import EXPERIMENTS, QUICK
from tinybnn.experiments.bdnet.instability import layer_statistics
from tinybnn.experiments.bdnet.levels import otsu, to_gray, to_levels
from tinybnn.experiments.bdnet.training import Config, load


def run(experiment: str, out: str | Path, config: Config, **options: Any) -> dict[str, Any]:
    """Carry out one of `EXPERIMENTS`; see `runner.Experiment.run` for the other arguments."""
    return EXPERIMENTS[experiment].run(out, config, **options)


__all__ = [
    "ABLATION", "EXPERIMENTS", "QUICK", "TABLE_2", "Arm", "Config", "layer_statistics", "load",
    "otsu", "run", "to_gray", "to_levels",
]  # fmt: skip
