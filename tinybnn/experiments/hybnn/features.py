"""Phases 1 and 2 of HyBNN: a representation learned without labels, and the bits it gives.

Beside the codes of a trained encoder stand two features that were not learned, as baselines: pixels
compared with 0.5, and the signs of a random projection.
"""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tinybnn import datasets, optim, training
from tinybnn.models import BinaryVAE, latents, load_codes, save_codes


def load(name, limit=None):
    """Training and test images.

    Parameters
    ----------
    name : str
        For `datasets.load`; or a folder with four IDX files, named as MNIST's are.
    limit : int, optional
        Only the first so many of each.

    Returns
    -------
    train, test : Dataset
    """
    if name in datasets.SOURCES or not Path(name).is_dir():
        parts = datasets.load(name)
    else:
        paths = datasets.mnist_files(name)
        parts = [_read_idx_pair(*pair) for pair in (paths[:2], paths[2:])]
        classes = max((part.classes for part in parts), key=len)
        parts = [dataclasses.replace(part, classes=classes) for part in parts]
    return tuple(part[:limit] for part in parts)


def _read_idx_pair(images, labels):
    """A Dataset from the files of images and labels."""
    arrays = datasets.read_idx(images), datasets.read_idx(labels)
    return datasets.from_arrays(*arrays, name=images.parent.name)


def batch_size(images):
    """For so many training images: 128, or 64 where an epoch would have few steps."""
    return min(128 if images >= 5000 else 64, images)


# -------------------------------------------------------------------- 1. representation learning


def autoencoder(folder, images, config, seed, threads=None, progress=True):
    """The autoencoder of a seed, trained into FOLDER/vae.npz.

    Parameters
    ----------
    folder : path
    images : Dataset
    config : dataclass
        With ``bits``, ``estimator``, ``rate_weight`` and ``epochs_vae``, as `hybnn.Config`.
    seed : int
        Of the weights, of the order of the images and of the codes.
    threads, progress
        As for `train_vae`.

    Returns
    -------
    vae : BinaryVAE
        In evaluation mode, its encoder frozen.
    history : History
        As of `train_vae`.
    """
    rng = np.random.default_rng(seed)
    vae = BinaryVAE(images.images.shape[1:], config.bits, config.estimator, rng=rng)
    history = train_vae(
        folder / "vae.npz", vae, images, epochs=config.epochs_vae, rate_weight=config.rate_weight,
        rng=rng, threads=threads, progress=progress,
    )  # fmt: skip
    vae.encoder.freeze()
    return vae, history


def train_vae(
    path, vae, images, *, epochs, lr=2e-3, rate_weight=1.0, rng, threads=None, progress=True
):
    """Train an autoencoder into a checkpoint, or go on where an earlier call was stopped.

    Adam, cosine to 0 over all batches; a Gumbel-softmax is cooled on the way.

    Parameters
    ----------
    path : path
        Of the checkpoint, written after each epoch.
    vae : BinaryVAE
        Left in evaluation mode.
    images : Dataset
        Labels are not read.
    epochs : int
    lr : float
        At the start.
    rate_weight : float
        What the rate counts beside the reconstruction: 1 for the ELBO; less, and more bits are
        used (β in Higgins et al. 2017, β-VAE).
    rng : numpy.random.Generator
        Draws the order of the images and the codes.
    threads : int, optional
        As for `training.fit`.
    progress : bool
        Show a progress bar on stderr.

    Returns
    -------
    History
        Rows with epoch, reconstruction and rate (means over the epoch, nats) and seconds.
    """
    from tinybnn.kernels.machine.threads import (  # compiled at the first use
        num_threads,
        one_blas_thread,
    )

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
    bar = tqdm(
        total=epochs * len(loader), initial=len(history) * len(loader), unit="batch",
        disable=not progress or len(history) == epochs,
    )  # fmt: skip
    with bar, num_threads(threads), one_blas_thread():
        for epoch in range(len(history) + 1, epochs + 1):
            bar.set_description(f"autoencoder, epoch {epoch}")
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
                bar.update()
            reconstruction, rate = map(float, sums / len(loader))
            seconds = time.perf_counter() - start
            history.rows.append(
                {"epoch": epoch, "reconstruction": reconstruction, "rate": rate, "seconds": seconds}
            )
            state.save()
            bar.set_postfix(reconstruction=f"{reconstruction:.2f}")
    vae.eval()
    return history


# ------------------------------------------------------------------------- 2. feature extraction


def extract(images, function, batch_size=1000):
    """Rows of bits for all images of a Dataset.

    Parameters
    ----------
    images : Dataset
    function : callable
        (B, C, H, W) float32 in [0, 1] -> (B, words) uint64.
    """
    loader = datasets.DataLoader(images, batch_size, transform=datasets.to_unit(images.maximum))
    return np.concatenate([function(x) for x, _ in loader])


def codes(folder, vae, data):
    """The codes of all images; from FOLDER/codes-train.npz and -test.npz, if they are there.

    Parameters
    ----------
    folder : path
    vae : BinaryVAE
    data : (Dataset, Dataset)
        For training and for testing.

    Returns
    -------
    list of (N, words) uint64
        Of the training images and of the test images.
    """
    found = []
    for part, images in zip(("train", "test"), data, strict=True):
        path = folder / f"codes-{part}.npz"
        if not path.exists():
            words = extract(images, vae.encode_packed)
            save_codes(path, words, vae.latent_bits, images.labels, {"images": images.name})
        found.append(load_codes(path).words)
    return found


def thresholded_pixels(x):
    """Images (B, C, H, W) in [0, 1] -> the bits x >= 0.5, as words."""
    from tinybnn.kernels.signs import bits

    return bits.pack(x.reshape(len(x), -1) - np.float32(0.5))


def random_projection(train, count, rng):
    """A function like an encoder, which was not trained: x -> sign(R (x - mean)), R of random ±1.

    The mean is that of each pixel over the training images, so that a bit is about balanced.
    """
    from tinybnn.kernels.signs import bits

    flat = train.images.reshape(len(train), -1)
    mean = (flat.mean(0) / train.maximum).astype(np.float32)
    signs = rng.choice(np.float32([-1, 1]), (flat.shape[1], count))
    return lambda x: bits.pack((x.reshape(len(x), -1) - mean) @ signs)
