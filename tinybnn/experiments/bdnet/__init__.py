"""BD-Net: the ablation of Table 6, and accuracy against operations and measured time (Fig. 1).

``bdnet-ablation``
    MobileNet V1 with binary depth-wise convolutions: naive, with the shortcut before the batch
    norm, with the 1.58-bit convolution, with both.
``bdnet-table2``
    MobileNet V1 as float network, ReActNet, AdaBin and BD-Net; ShuffleNet V1 and MobileNet V3 with
    and without broadcast residual (Tables 2, 4 and 5).

The paper's settings stand in an appendix that we could not read; ours are those of `Config`. All
networks of a seed see the same images in the same order. Each network has a folder in RUN, and what
has its file there is not computed again; training goes on from its last epoch, bit for bit:

    step-1.npz, step-2.npz    the state after the last complete epoch of each step of training
    packed.npz                the compiled network
    result.json               its figures: accuracy on test images after the last epoch, cost, and
                              what `layer_statistics` says about its k×k layers

In RUN itself are result.json, report.md and the pictures.

`arms` lists the networks, `training` trains and measures one of them, `instability` looks at
variances and gradients, `levels` draws Figure 4, `report` writes tables and pictures, and
`experiment` leads through all of it.
"""

from tinybnn.experiments.bdnet.arms import ABLATION, EXPERIMENTS, TABLE_2, Arm
from tinybnn.experiments.bdnet.experiment import QUICK, Config, load, run
from tinybnn.experiments.bdnet.instability import layer_statistics
from tinybnn.experiments.bdnet.levels import otsu, to_gray, to_levels

__all__ = [
    "ABLATION", "EXPERIMENTS", "QUICK", "TABLE_2", "Arm", "Config", "layer_statistics", "load",
    "otsu", "run", "to_gray", "to_levels",
]  # fmt: skip
