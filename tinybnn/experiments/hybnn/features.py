"""Phases 1 and 2 of HyBNN: a representation learned without labels, and the bits it gives.

Two features that are not learned serve as baselines for the codes of a trained encoder: pixels
compared with 0.5, and the signs of a random projection.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tinybnn import datasets, optim, training
from tinybnn.datasets import Dataset
from tinybnn.experiments.runner import bar
from tinybnn.experiments.settings import ImageConfig
from tinybnn.models import BinaryVAE, latents, load_codes, save_codes
from tinybnn.typing import FloatArray, Words

# Names and help texts of settings that several experiments have.
ESTIMATORS: tuple[str, ...] = (
    "sign", "straight_through", "straight_through_gumbel", "gumbel_softmax", "score_function",
    "disarm",
)  # fmt: skip
ESTIMATOR = "estimator of gradients through the code"
RATE_WEIGHT = "weight of KL(code || prior) beside the reconstruction; 1 is the ELBO"
IMAGES = "a data set, or a folder with four IDX files named as MNIST's"


def load(name: str, limit: int | None = None) -> tuple[Dataset, Dataset]:
    """Load training and test images.

    Parameters
    ----------
    name : str
        A name for `datasets.load`, or a folder with four IDX files named as MNIST's.
    limit : int, optional
        Load only the first `limit` images of each part.

    Returns
    -------
    train, test : Dataset
        Images (N, C, H, W) uint8.
    """
    if name in datasets.SOURCES or not Path(name).is_dir():
        parts = datasets.load(name)
    else:
        paths = datasets.mnist_files(name)
        parts = [_read_idx_pair(*pair) for pair in (paths[:2], paths[2:])]
        classes = max((part.classes for part in parts), key=len)
        parts = [dataclasses.replace(part, classes=classes) for part in parts]
    return tuple(part[:limit] for part in parts)


def load_for(config: ImageConfig) -> tuple[Dataset, Dataset]:
    """Load the training and test images of a configuration."""
    return load(config.dataset, config.limit)


def _read_idx_pair(images, labels):
    """A Dataset from the files of images and labels."""
    arrays = datasets.read_idx(images), datasets.read_idx(labels)
    return datasets.from_arrays(*arrays, name=images.parent.name)


def batch_size(images: int) -> int:
    """Choose a batch size for a number of training images: 128, or 64 for a small set."""
    return min(128 if images >= 5000 else 64, images)


# -------------------------------------------------------------------- 1. representation learning


def autoencoder(
    folder: Path, images: Dataset, config: Any, seed: int, progress: bool = True
) -> tuple[BinaryVAE, training.History]:
    """Train the autoencoder of a seed into FOLDER/vae.npz, or resume.

    Parameters
    ----------
    folder : path
    images : Dataset
    config : dataclass
        With ``bits``, ``estimator``, ``rate_weight`` and ``epochs_vae``, as `hybnn.Config`.
    seed : int
        Decides the initial weights, the order of the images and the codes.
    progress : bool

    Returns
    -------
    vae : BinaryVAE
        In evaluation mode, its encoder frozen.
    history : History
        As `train_vae` returns it.
    """
    rng = np.random.default_rng(seed)
    vae = BinaryVAE(images.images.shape[1:], config.bits, config.estimator, rng=rng)
    history = train_vae(
        folder / "vae.npz", vae, images, epochs=config.epochs_vae, rate_weight=config.rate_weight,
        rng=rng, progress=progress,
    )  # fmt: skip
    vae.encoder.freeze()
    return vae, history


def train_vae(
    path: str | Path,
    vae: BinaryVAE,
    images: Dataset,
    *,
    epochs: int,
    lr: float = 2e-3,
    rate_weight: float = 1.0,
    rng: np.random.Generator,
    progress: bool = True,
) -> training.History:
    """Train an autoencoder into a checkpoint, or resume where an earlier call was stopped.

    Adam, cosine to 0 over all batches; a Gumbel-softmax is cooled meanwhile.

    Parameters
    ----------
    path : path
        Checkpoint, written after each epoch.
    vae : BinaryVAE
        Left in evaluation mode.
    images : Dataset
        Images (N, C, H, W); labels are not read.
    epochs : int
    lr : float
        Learning rate at the start.
    rate_weight : float
        Weight of the rate in the loss: 1 for the ELBO; with less, more bits are used (β in Higgins
        et al. 2017, β-VAE).
    rng : numpy.random.Generator
        Draws the order of the images and the codes.
    progress : bool
        Show a progress bar on stderr.

    Returns
    -------
    History
        Rows with epoch, reconstruction and rate (means over the epoch, nats) and seconds.
    """
    from tinybnn.kernels.machine.threads import one_blas_thread  # compiled at the first use

    loader = datasets.DataLoader(
        images, batch_size(len(images)), shuffle=True, drop_last=True,
        transform=datasets.to_unit(images.maximum), rng=rng,
    )  # fmt: skip
    optimizer = optim.Adam(vae.parameters(), lr=lr)
    schedules = [optim.CosineAnnealingLR(optimizer, epochs * len(loader))]
    if isinstance(vae.estimator, latents.GumbelSoftmax):
        schedules.append(latents.TemperatureSchedule(vae.estimator, epochs * len(loader)))
    schedule, history = optim.ChainedScheduler(schedules), training.History()
    state = training.Checkpoint(
        path, vae, optimizer, schedule, loader, history=history,
        settings={"loss": "negative ELBO", "rate_weight": rate_weight, "epochs": epochs},
    )  # fmt: skip
    state.restore()
    left = (epochs - len(history)) * len(loader)
    with bar(None, "batch", progress and left > 0, left) as shown, one_blas_thread():
        for epoch in range(len(history) + 1, epochs + 1):
            shown.set_description(f"autoencoder, epoch {epoch}")
            start, sums = time.perf_counter(), np.zeros(2)
            vae.train()
            for x, _ in loader:
                optimizer.zero_grad()
                loss = vae.loss(x, rng)
                total = (loss.reconstruction + rate_weight * loss.rate).mean()
                if not math.isfinite(total.item()):
                    raise FloatingPointError(f"train_vae: the loss became {total.item()}")
                total.backward()
                optimizer.step()
                schedule.step()
                sums += loss.reconstruction.data.mean(), loss.rate.data.mean()
                shown.update()
            reconstruction, rate = map(float, sums / len(loader))
            seconds = time.perf_counter() - start
            history.rows.append(
                {"epoch": epoch, "reconstruction": reconstruction, "rate": rate, "seconds": seconds}
            )
            state.save()
            shown.set_postfix(reconstruction=f"{reconstruction:.2f}")
    vae.eval()
    return history


# ------------------------------------------------------------------------- 2. feature extraction


def extract(
    images: Dataset, function: Callable[[FloatArray], Words], batch_size: int = 1000
) -> Words:
    """Compute rows of bits for all images of a Dataset.

    Parameters
    ----------
    images : Dataset
        Images (N, C, H, W).
    function : callable
        (B, C, H, W) float32 in [0, 1] -> (B, words) uint64.
    batch_size : int

    Returns
    -------
    (N, words) uint64
    """
    loader = datasets.DataLoader(images, batch_size, transform=datasets.to_unit(images.maximum))
    return np.concatenate([function(x) for x, _ in loader])


def codes(folder: Path, vae: BinaryVAE, data: tuple[Dataset, Dataset]) -> list[Words]:
    """Compute the codes of all images, or read FOLDER/codes-train.npz and -test.npz.

    Parameters
    ----------
    folder : path
    vae : BinaryVAE
    data : (Dataset, Dataset)
        For training and for testing.

    Returns
    -------
    list of (N, words) uint64
        For the training images and for the test images.
    """
    words = []
    for part, images in zip(("train", "test"), data, strict=True):
        path = folder / f"codes-{part}.npz"
        if not path.exists():
            rows = extract(images, vae.encode_packed)
            save_codes(path, rows, vae.latent_bits, images.labels, {"images": images.name})
        words.append(load_codes(path).words)
    return words


def thresholded_pixels(x: FloatArray) -> Words:
    """Compute the bits x >= 0.5 of images: (B, C, H, W) float32 in [0, 1] -> (B, words) uint64."""
    from tinybnn.kernels.signs import bits

    return bits.pack(x.reshape(len(x), -1) - np.float32(0.5))


def random_projection(
    train: Dataset, count: int, rng: np.random.Generator
) -> Callable[[FloatArray], Words]:
    """Make an untrained encoder: x -> sign(R (x - mean)) with R (pixels, count) of random ±1.

    The mean is taken for each pixel over the training images, so that bits are about balanced. The
    function maps (B, C, H, W) float32 in [0, 1] to (B, words) uint64.
    """
    from tinybnn.kernels.signs import bits

    flat = train.images.reshape(len(train), -1)
    mean = (flat.mean(0) / train.maximum).astype(np.float32)
    signs = rng.choice(np.float32([-1, 1]), (flat.shape[1], count))
    return lambda x: bits.pack((x.reshape(len(x), -1) - mean) @ signs)
