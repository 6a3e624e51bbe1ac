"""A variational autoencoder with binary latent variables: the feature extractor of HyBNN.

    image -> encoder -> logits -> a code of signs -> decoder -> a probability for each pixel

The architecture is that of BinPlay (Deja et al. 2020). For a 28×28 image and 200 bits, with the
mirrored decoder:

    encoder                                          output      weights
    conv 3×3 stride 2, 1 -> 32, BN, leaky ReLU       14×14       288
    conv 3×3 stride 2, 32 -> 64, BN, leaky ReLU      7×7         18,432
    conv 3×3 stride 2, 64 -> 128, BN, leaky ReLU     4×4         73,728
    dense 2048 -> 200, BN                            200         409,600
    sign                                             200 bits

    decoder
    dense 200 -> 2048, BN, leaky ReLU                4×4         409,600
    transposed conv 3×3 stride 2, 128 -> 64, ...     7×7         73,728
    transposed conv 3×3 stride 2, 64 -> 32, ...      14×14       18,432
    transposed conv 3×3 stride 2, 32 -> 1            28×28       288

The log likelihood of a pixel x in [0, 1] is x log p + (1 - x) log (1 - p) (Bernoulli). For pixels 0
and 1 the bounds below are bounds on a probability; for gray values it is only a loss.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tinybnn import functional as F
from tinybnn import nn
from tinybnn.autograd import Tensor, default_generator, no_grad
from tinybnn.models.latents import LN2, Enumeration
from tinybnn.models.latents import get as get_estimator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from tinybnn.models.latents import Estimator
    from tinybnn.typing import Shape, TensorLike, Words

CHANNELS = (32, 64, 128)  # of the encoder's convolutions
HIDDEN = (512, 256)  # widths of the dense encoder


class NegativeElbo(NamedTuple):
    """Negative evidence lower bound of each image, in nats, and its two terms; (N,) Tensors."""

    total: Tensor
    reconstruction: Tensor
    rate: Tensor


# ---------------------------------------------------------------------------- encoder and decoders


class BinaryEncoder(nn.Module):
    """Images (N, C, H, W) -> codes (N, bits) of ±1: the signs of a float network's logits.

    Parameters
    ----------
    network : Module
        (N, C, H, W) -> (N, bits) logits.

    Attributes
    ----------
    network : Module
    sign : Quantize
    """

    network: nn.Module
    sign: nn.Quantize

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.sign = nn.Quantize("ste_sign")

    def logits(self, x: Tensor) -> Tensor:
        """Compute the logits of the bits: (N, C, H, W) -> (N, bits)."""
        return self.network(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.sign(self.network(x))


class Unflatten(nn.Module):
    """(N, H W C) -> (N, C, H, W): rows with channels last, as images are in memory.

    Parameters
    ----------
    shape : (C, H, W)
    """

    shape: Shape

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        channels, height, width = self.shape
        return x.reshape(-1, height, width, channels).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        return f"{self.shape}"


class Crop(nn.Module):
    """The upper left part of images: (N, C, H, W) -> (N, C, *size).

    Parameters
    ----------
    size : (int, int)
        Height and width.
    """

    size: Shape

    def __init__(self, size: Sequence[int]) -> None:
        self.size = tuple(size)

    def forward(self, x: Tensor) -> Tensor:
        height, width = self.size
        return x if x.shape[2:] == self.size else x[:, :, :height, :width]

    def extra_repr(self) -> str:
        return f"{self.size}"


def _halved(size):
    """The size (H, W) of an image after a 3×3 convolution with stride 2 and padding 1."""
    return tuple((n + 1) // 2 for n in size)


def image_sizes(image_shape: Sequence[int]) -> list[Shape]:
    """Return the sizes (H, W) of an image (C, H, W) before and after each encoder convolution."""
    sizes = [tuple(image_shape[1:])]
    for _ in CHANNELS:
        sizes.append(_halved(sizes[-1]))
    return sizes


def convolutional_encoder(
    image_shape: Sequence[int], bits: int, latent_norm: bool, rng: np.random.Generator | None
) -> nn.Sequential:
    """Build BinPlay's encoder: three convolutions with stride 2 and a dense layer.

    (N, *image_shape) -> (N, bits).
    """
    layers, channels = [], image_shape[0]
    for outputs in CHANNELS:
        layers += [
            nn.Conv2d(channels, outputs, 3, stride=2, padding=1, bias=False, rng=rng),
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(0.01),
        ]
        channels = outputs
    features = channels * math.prod(image_sizes(image_shape)[-1])
    return nn.Sequential(*layers, nn.Flatten(), *_to_logits(features, bits, latent_norm, rng))


def dense_encoder(
    image_shape: Sequence[int],
    bits: int,
    latent_norm: bool,
    hidden: Sequence[int],
    rng: np.random.Generator | None,
) -> nn.Sequential:
    """Build dense layers with ReLU, as in the code of Jang et al. 2017.

    (N, *image_shape) -> (N, bits); `hidden` are the widths between.
    """
    layers, features = [nn.Flatten()], math.prod(image_shape)
    for width in hidden:
        layers += [nn.Linear(features, width, rng=rng), nn.ReLU()]
        features = width
    return nn.Sequential(*layers, *_to_logits(features, bits, latent_norm, rng))


def _to_logits(features, bits, latent_norm, rng):
    dense = nn.Linear(features, bits, bias=not latent_norm, rng=rng)
    return [dense, nn.BatchNorm1d(bits)] if latent_norm else [dense]


def mirrored_decoder(
    image_shape: Sequence[int], bits: int, rng: np.random.Generator | None
) -> nn.Sequential:
    """Build the mirrored convolutional encoder, of transposed convolutions.

    (N, bits) -> (N, *image_shape).
    """
    sizes = image_sizes(image_shape)[::-1]
    channels = (*CHANNELS[::-1], image_shape[0])
    layers = [
        nn.Linear(bits, channels[0] * math.prod(sizes[0]), bias=False, rng=rng),
        Unflatten((channels[0], *sizes[0])),
    ]
    for before, after, small, large in zip(channels, channels[1:], sizes, sizes[1:], strict=False):
        # The encoder maps the sizes 2 n - 1 and 2 n to n; output_padding selects the right one.
        more = tuple(b - (2 * a - 1) for a, b in zip(small, large, strict=True))
        layers += [nn.BatchNorm2d(before), nn.LeakyReLU(0.01)]
        layers.append(
            nn.ConvTranspose2d(
                before, after, 3, stride=2, padding=1, output_padding=more,
                bias=large is sizes[-1], rng=rng,
            )
        )  # fmt: skip
    return nn.Sequential(*layers)


def binplay_decoder(
    image_shape: Sequence[int], bits: int, rng: np.random.Generator | None
) -> nn.Sequential:
    """Build BinPlay's decoder, about 240 million products for a 28×28 image.

    (N, bits) -> (N, *image_shape); sizes are rounded up to a multiple of 4 and cropped.
    """
    size = tuple((n + 7) // 4 for n in image_shape[1:])  # 4 size - 4 pixels, at least the image's
    settings = {"bias": False, "rng": rng}
    layers = [
        nn.Linear(bits, 300, **settings),
        nn.BatchNorm1d(300),
        nn.LeakyReLU(0.01),
        nn.Linear(300, 32 * math.prod(size), **settings),
        Unflatten((32, *size)),
        nn.BatchNorm2d(32),
        nn.LeakyReLU(0.01),
    ]
    channels = 32
    for outputs, stride, padding in ((128, 2, 2), (192, 2, 0), (160, 1, 0)):
        layers += [
            nn.ConvTranspose2d(channels, outputs, 3, stride=stride, padding=padding, **settings),
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(0.01),
        ]
        channels = outputs
    last = nn.ConvTranspose2d(channels, image_shape[0], 4, padding=2, rng=rng)
    return nn.Sequential(*layers, last, Crop(image_shape[1:]))


def dense_decoder(
    image_shape: Sequence[int], bits: int, hidden: Sequence[int], rng: np.random.Generator | None
) -> nn.Sequential:
    """Build the mirrored dense encoder: (N, bits) -> (N, *image_shape)."""
    layers, features = [], bits
    for width in reversed(hidden):
        layers += [nn.Linear(features, width, rng=rng), nn.ReLU()]
        features = width
    layers += [nn.Linear(features, math.prod(image_shape), rng=rng), Unflatten(image_shape)]
    return nn.Sequential(*layers)


# ------------------------------------------------------------------------------------- the model


class BinaryVAE(nn.Module):
    """A variational autoencoder with Bernoulli latents and a uniform prior over codes.

    Train it on ``loss(x, rng).total.mean()``. In training mode the estimator defines the codes and
    their gradient; in evaluation mode codes are always ±1.

    Parameters
    ----------
    image_shape : (C, H, W)
        1 or 3 channels, at least 8×8.
    latent_bits : int
    estimator : Estimator or name
        The gradient estimator of the codes: see `latents`.
    encoder : 'convolutional' or 'dense'
    decoder : 'mirrored' or 'binplay'
        The mirrored encoder, or BinPlay's decoder.
    latent_norm : bool
        Add a batch norm in front of the sign, which keeps each bit nearly balanced (worth half a
        point of accuracy in HyBNN's tasks).
    hidden : sequence of int
        Widths of the dense encoder.
    rng : numpy.random.Generator, optional
        Source of the initial weights.

    Attributes
    ----------
    encoder : BinaryEncoder
        Images (N, C, H, W) -> codes (N, bits); kept, frozen and compiled after training.
    decoder : Sequential
        Codes (N, bits) -> logits of the pixels (N, C, H, W).
    estimator : Estimator

    Examples
    --------
    >>> import numpy as np
    >>> from tinybnn.models import BinaryVAE
    >>> rng = np.random.default_rng(0)
    >>> vae = BinaryVAE((1, 8, 8), latent_bits=20, rng=rng)
    >>> x = rng.random((5, 1, 8, 8), np.float32)
    >>> vae.loss(x, rng).total.shape
    (5,)
    >>> vae.encode(x).shape, vae.encode_packed(x).shape, vae.sample(3, rng).shape
    ((5, 20), (5, 1), (3, 1, 8, 8))
    """

    image_shape: Shape
    latent_bits: int
    estimator: Estimator
    encoder: BinaryEncoder
    decoder: nn.Sequential

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_bits: int = 200,
        estimator: str | Estimator = "sign",
        encoder: str = "convolutional",
        decoder: str = "mirrored",
        latent_norm: bool = True,
        hidden: Sequence[int] = HIDDEN,
        rng: np.random.Generator | None = None,
    ) -> None:
        self.image_shape = tuple(int(n) for n in image_shape)
        if len(self.image_shape) != 3 or self.image_shape[0] not in (1, 3):
            raise ValueError(
                f"BinaryVAE: image_shape must be (C, H, W) with 1 or 3 channels, got {image_shape}"
            )
        if min(self.image_shape[1:]) < 8:
            raise ValueError(f"BinaryVAE: images must have at least 8×8 pixels, got {image_shape}")
        if not isinstance(latent_bits, int | np.integer) or latent_bits < 1:
            raise ValueError(f"BinaryVAE: latent_bits must be an int >= 1, got {latent_bits!r}")
        if encoder not in ("convolutional", "dense"):
            raise ValueError(
                f"BinaryVAE: encoder must be 'convolutional' or 'dense', got {encoder!r}"
            )
        if decoder not in ("mirrored", "binplay"):
            raise ValueError(f"BinaryVAE: decoder must be 'mirrored' or 'binplay', got {decoder!r}")
        rng = default_generator() if rng is None else rng
        self.latent_bits = int(latent_bits)
        self.estimator = get_estimator(estimator)
        shape, bits = self.image_shape, self.latent_bits
        if encoder == "dense":
            network = dense_encoder(shape, bits, latent_norm, hidden, rng)
        else:
            network = convolutional_encoder(shape, bits, latent_norm, rng)
        self.encoder = BinaryEncoder(network)
        if decoder == "binplay":
            self.decoder = binplay_decoder(shape, bits, rng)
        elif encoder == "dense":
            self.decoder = dense_decoder(shape, bits, hidden, rng)
        else:
            self.decoder = mirrored_decoder(shape, bits, rng)

    def extra_repr(self) -> str:
        return f"{self.image_shape}, {self.latent_bits}, {self.estimator!r}"

    # ------------------------------------------------------------------------- bounds, as Tensors

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct without noise: images (N, C, H, W) -> logits of the pixels (N, C, H, W)."""
        return self.decoder(self.encoder(x))

    def reconstruction(self, codes: Tensor, x: TensorLike) -> Tensor:
        """Compute -log p(x | z), the cross entropy summed over each image, in nats.

        Parameters
        ----------
        codes : (M, bits) Tensor
        x : (N, C, H, W) Tensor or array
            N divides M; code i belongs to image i mod N.

        Returns
        -------
        (M,) Tensor
        """
        logits, images = self.decoder(codes), np.asarray(x)
        if len(logits) != len(images):
            images = np.tile(images, (len(logits) // len(images), 1, 1, 1))
        losses = F.binary_cross_entropy_with_logits(logits, images, reduction="none")
        return losses.sum((1, 2, 3))

    def loss(self, x: TensorLike, rng: np.random.Generator | None = None) -> NegativeElbo:
        """Compute the negative evidence lower bound (ELBO) of each image, with a gradient.

        In training mode the estimator computes the reconstruction term and its gradients. In
        evaluation mode it is the cost of one code of ±1 drawn from q(z | x).

        Parameters
        ----------
        x : (N, C, H, W) Tensor or array
            Pixels in [0, 1].
        rng : numpy.random.Generator, optional
            Draws the codes.

        Returns
        -------
        NegativeElbo
            total = reconstruction + rate, (N,) each, in nats.
        """
        x, rng = self._images("loss", x), default_generator() if rng is None else rng
        logits = self.encoder.logits(x)

        def cost(codes):
            return self.reconstruction(codes, x)

        if self.training:
            reconstruction = self.estimator.expectation(logits, cost, rng)
        else:
            reconstruction = cost(Tensor(self.estimator.sample(logits.data, rng)))
        rate = self.estimator.rate(logits)
        return NegativeElbo(reconstruction + rate, reconstruction, rate)

    def exact_elbo(self, x: TensorLike) -> Tensor:
        """Compute the evidence lower bound of each image by a sum over all codes (<= 10 bits).

        The gradient is exact too. A batch norm in the decoder should be in evaluation mode: in
        training mode its statistics would be over all codes.

        Parameters
        ----------
        x : (N, C, H, W) Tensor or array
            Pixels in [0, 1].

        Returns
        -------
        (N,) Tensor
            In nats.
        """
        x = self._images("exact_elbo", x)
        logits = self.encoder.logits(x)

        def cost(codes):
            return self.reconstruction(codes, x)

        estimator = Enumeration() if self.estimator.is_random else self.estimator
        expectation = estimator.expectation(logits, cost, None)
        return -(expectation + self.estimator.rate(logits))

    def _images(self, method, x):
        """x as a Tensor (N, C, H, W) of pixels in [0, 1]; else raise a ValueError."""
        x = x if isinstance(x, Tensor) else Tensor(x)
        if x.ndim != 4 or x.shape[1:] != self.image_shape:
            raise ValueError(
                f"BinaryVAE.{method}: x must be (N, {', '.join(map(str, self.image_shape))}), "
                f"got shape {x.shape}"
            )
        if x.data.size and not (x.data.min() >= 0 and x.data.max() <= 1):
            raise ValueError(
                f"BinaryVAE.{method}: pixels must lie in [0, 1], "
                f"got {x.data.min()} to {x.data.max()}"
            )
        return x

    # ----------------------------------------------------------- arrays in and out, no gradients

    def bound(
        self,
        x: TensorLike,
        samples: int = 1,
        rng: np.random.Generator | None = None,
        batch_size: int = 256,
    ) -> NDArray[np.float64]:
        """Compute a lower bound on log p(x) of each image, importance weighted over m codes.

        log 1/m Σ_k p(x, z_k) / q(z_k | x) with z_k ~ q, whose mean increases with m towards
        log p(x) (Burda et al. 2016, eq. 8). With m = 1 it is an estimate of the ELBO.

        Parameters
        ----------
        x : (N, C, H, W) array
            Pixels in [0, 1].
        samples : int
            m.
        rng : numpy.random.Generator, optional
        batch_size : int
            Number of images at a time; it only affects the order in which random numbers are drawn.

        Returns
        -------
        (N,) float64
            In nats, in evaluation mode.
        """
        if not isinstance(samples, int | np.integer) or samples < 1:
            raise ValueError(f"BinaryVAE.bound: samples must be an int >= 1, got {samples!r}")
        rng = default_generator() if rng is None else rng
        prior = -self.latent_bits * LN2

        def one_batch(x):
            logits = self.encoder.logits(Tensor(x)).data
            weights = np.empty((samples, len(x)))  # log p(x, z) - log q(z | x)
            for k in range(samples):
                codes = self.estimator.sample(logits, rng)
                cost = self.reconstruction(Tensor(codes), x).data
                weights[k] = prior - cost - self.estimator.log_prob(logits, codes)
            return F.logsumexp(weights, 0) - math.log(samples)

        return self._in_batches(one_batch, self._images("bound", x).data, batch_size)

    def encode(self, x: TensorLike, batch_size: int = 256) -> NDArray[np.float32]:
        """Compute the most probable codes: (N, C, H, W) array -> (N, bits) float32 of ±1."""
        return self._in_batches(
            lambda x: self.encoder(Tensor(x)).data, self._images("encode", x).data, batch_size
        )

    def encode_packed(self, x: TensorLike, batch_size: int = 256) -> Words:
        """Compute the codes of `encode` as bits: (N, words) uint64, rows padded to whole words."""
        from tinybnn.kernels.signs import bits  # compiled at the first use

        return self._in_batches(
            lambda x: bits.pack(self.encoder(Tensor(x)).data),
            self._images("encode_packed", x).data,
            batch_size,
        )

    def decode(self, codes: ArrayLike, batch_size: int = 256) -> NDArray[np.float32]:
        """Compute the probability of each pixel: (N, bits) of ±1 -> (N, C, H, W) float32."""
        codes = np.asarray(codes, np.float32)
        if codes.ndim != 2 or codes.shape[1] != self.latent_bits or not np.all(np.abs(codes) == 1):
            raise ValueError(
                f"BinaryVAE.decode: codes must be (N, {self.latent_bits}) of ±1, "
                f"got shape {codes.shape}"
            )
        return self._in_batches(
            lambda z: F.sigmoid(self.decoder(Tensor(z)).data), codes, batch_size
        )

    def sample(self, n: int, rng: np.random.Generator | None = None) -> NDArray[np.float32]:
        """Generate images: `decode` n codes drawn from the prior, (n, C, H, W) float32."""
        rng = default_generator() if rng is None else rng
        return self.decode(2 * rng.integers(0, 2, (n, self.latent_bits)) - 1)

    def _in_batches(self, function, rows, batch_size):
        """Apply a function to batches of rows in evaluation mode, and join the results."""
        if batch_size < 1:
            raise ValueError(f"BinaryVAE: batch_size must be >= 1, got {batch_size!r}")
        with self.in_mode(training=False), no_grad():
            parts = range(0, max(len(rows), 1), batch_size)
            return np.concatenate([function(rows[i : i + batch_size]) for i in parts])
