"""Milestone 7, HyBNN (2022): a float encoder once, a binary network on its codes.

K. Dua: *HyBNN and FedHyBNN: (Federated) Hybrid Binary Neural Networks*, 2022, arXiv:2205.09839.

The idea of the paper: turning images into bits loses information, so let a network learn how to do
it. A float autoencoder sees the images, without labels, and writes each as a code of bits. Then it
is frozen. Whatever is to be learned about the images is learned by a binary network, the *head*,
which sees nothing but codes: bits in, signs inside, integers out.

1. The autoencoder: 64 pixels, 128 units, 100 logits; bits drawn from them (`straight_through`); and
   back to 64 pixels. It is trained on the two terms of the bound: the cross entropy of the
   pixels, and a tenth of the bits' distance from fair coins (`kl_to_coin`). At its full price, for
   images as small as these, most bits would become coins.
2. Each image once through the encoder: its likelier bits, two words (`pack_codes`).
3. The head: binary layers of 256, 256 and 10, trained on the signs of the words (`unpack_codes`).
   The trained head runs on stored words (`predict_words`), and its scores must *equal* those of the
   float network, for every test image.

The codes must also be good for something without labels: the nearest training code (`nearest`) of a
test image usually has the right label.

Other than in the paper, whose autoencoder has convolutions and 200 bits and whose heads tell two
classes apart, all is small, and one head reads ten digits.

With good answers it takes about 3 seconds on one core. `SEEDS`, `NATS` and `NEAREST` are the
accuracies, reconstructions and shares of ten seeds:

    [run(seed=s).figures for s in range(10)]
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinybnn.course.milestones.milestone import (
    BATCH,
    Milestone,
    Outcome,
    Stopped,
    check_gradients,
    digits,
    fit,
    judge,
    latent,
    norm_parameters,
    norms,
)
from tinybnn.typing import Array

PIXELS, UNITS, BITS = 64, 128, 100
WIDTHS = (BITS, 256, 256, 10)
ENCODER_EPOCHS, ENCODER_RATE = 30, 3e-3
WEIGHT = 0.1  # of the rate, the distance from coins
EPOCHS, RATE = 20, 1e-2
SEEDS = (0.9056, 0.8972, 0.9056, 0.8972, 0.9111, 0.9056, 0.9, 0.9167, 0.8972, 0.9028)
NATS = (18.8, 18.77, 18.86, 18.77, 19.02, 18.89, 18.93, 18.97, 18.92, 18.82)
NEAREST = (0.925, 0.9222, 0.9111, 0.9417, 0.9306, 0.9361, 0.9139, 0.9361, 0.9306, 0.9444)
LEAST, MOST_NATS, LEAST_NEAREST = 0.88, 20.0, 0.88


def run(progress: bool = False, seed: int = 0) -> Outcome:
    """Train the autoencoder, store codes, train a head on them, run it on words, and judge."""
    from mybnn.bits import sign
    from mybnn.codes import nearest, pack_codes, predict_words, unpack_codes
    from mybnn.engine import Tensor
    from mybnn.estimators import sign_ste
    from mybnn.folding import fold, normalized
    from mybnn.layers import batch_norm, binary_linear
    from mybnn.packing import pack

    rng = np.random.default_rng(seed)
    x, labels, x_test, labels_test = digits()
    x, x_test = ((part.reshape(len(part), -1) + 1) / 2 for part in (x, x_test))

    # Phase 1: the autoencoder, without labels.
    coder = Autoencoder(rng)
    try:
        coder.train(x, rng, progress)
    except Stopped as stopped:
        return Outcome({}, stopped.sentences)
    nats, rate = coder.price(x_test, rng)

    # Phase 2: codes.
    logits = [coder.logits(Tensor(part)).data for part in (x, x_test)]
    words, words_test = (pack_codes(part) for part in logits)
    codes, codes_test = (unpack_codes(part, BITS) for part in (words, words_test))
    failed = []
    wrong = int(np.count_nonzero(codes_test != sign(logits[1])))
    if wrong:
        failed.append(
            f"{wrong:,} of {codes_test.size:,} signs differ between the stored codes and the "
            "encoder's logits: look at pack_codes and unpack_codes"
        )
    rows, _ = nearest(words_test, words)
    share = round(float(np.mean(labels[rows] == labels_test)), 4)

    # Phase 3: a binary head on the codes.
    shapes = zip(WIDTHS[1:], WIDTHS[:-1], strict=True)
    weights = {f"layer {i}": latent(rng, m, k) for i, (m, k) in enumerate(shapes, 1)}
    *hidden, last = weights
    gammas, betas = norms(dict(zip(hidden, WIDTHS[1:-1], strict=True)))
    statistics = {}

    def head(x):
        x = Tensor(x)
        for name in hidden:
            x = binary_linear(x, weights[name])
            x, *statistics[name] = batch_norm(x, gammas[name], betas[name])
            x = sign_ste(x)
        return binary_linear(x, weights[last]) * WIDTHS[-2] ** -0.5

    others = norm_parameters(gammas, betas)
    try:
        flips = fit(
            head, weights, others, codes, labels,
            epochs=EPOCHS, rate=RATE, rng=rng, progress=progress,
        )  # fmt: skip
    except Stopped as stopped:
        return Outcome({}, failed + stopped.sentences)
    head(codes)  # statistics of all training codes

    # The trained head, in floats and on words.
    a, layers = codes_test, []
    for name in hidden:
        norm = (*statistics[name], gammas[name].data, betas[name].data)
        signs = sign(weights[name].data)
        thresholds, flipped = fold(signs.shape[1], *norm)
        layers.append({"words": pack(signs), "k": signs.shape[1]})
        layers[-1] |= {"thresholds": thresholds, "flipped": flipped}
        a = sign(normalized(a @ signs.T, *norm))
    signs = sign(weights[last].data)
    scores = a @ signs.T
    on_words = predict_words([*layers, {"words": pack(signs), "k": signs.shape[1]}], words_test)
    differ = int(np.count_nonzero(on_words != scores))
    if differ:
        failed.append(
            f"{differ:,} of {scores.size:,} scores differ between the head on words and the float "
            "head: look at predict_words, fold and pack"
        )
    accuracy = round(float(np.mean(on_words.argmax(axis=1) == labels_test)), 4)

    figures = {
        "test accuracy on words": accuracy,
        "nearest code has the right label": share,
        "reconstruction, nats": round(nats, 2),
        "rate, nats": round(rate, 2),
        "signs and scores compared with ==": codes_test.size + scores.size,
        "signs and scores that differ": wrong + differ,
    } | {f"flipped in {k}": round(v, 4) for k, v in flips.items()}
    return Outcome(
        figures, failed + judge(accuracy, LEAST, SEEDS, flips) + _judge_codes(nats, share)
    )


class Autoencoder:
    """A float network that writes images as bits and reads them back, of the student's pieces.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of the initial weights.
    """

    parameters: dict[str, Any]

    def __init__(self, rng: np.random.Generator) -> None:
        from mybnn.engine import Tensor

        widths = (PIXELS, UNITS, BITS, UNITS, PIXELS)
        names = ("encoder 1", "encoder 2", "decoder 1", "decoder 2")
        self.parameters = {}
        for name, k, m in zip(names, widths[:-1], widths[1:], strict=True):
            weight = rng.normal(size=(k, m)) * (2 / k) ** 0.5
            self.parameters[name] = Tensor(weight.astype(np.float32))
            self.parameters[f"bias of {name}"] = Tensor(np.zeros(m, np.float32))

    def _layer(self, x, name):
        return x @ self.parameters[name] + self.parameters[f"bias of {name}"]

    def logits(self, x: Any) -> Any:
        """Encode images: Tensor (N, 64) -> Tensor (N, BITS)."""
        return self._layer(self._layer(x, "encoder 1").relu(), "encoder 2")

    def decode(self, codes: Any) -> Any:
        """Decode codes: Tensor (N, BITS) -> logits of the pixels, Tensor (N, 64)."""
        return self._layer(self._layer(codes, "decoder 1").relu(), "decoder 2")

    def terms(self, x: Array, rng: np.random.Generator) -> tuple[Any, Any]:
        """Compute both terms of minus the bound in nats, means over the images: two Tensors."""
        from mybnn.engine import Tensor
        from mybnn.latents import kl_to_coin, straight_through

        logits = self.logits(Tensor(x))
        pixels = self.decode(straight_through(logits, rng.random(logits.shape)))
        size = pixels.relu() + (-pixels).relu()  # |pixels|
        entropy = pixels.relu() + ((-size).exp() + 1.0).log() - pixels * x
        data = logits.data.astype(np.float64)
        p = 0.5 + 0.5 * np.tanh(data / 2)
        slope = (data * p * (1 - p)).astype(logits.dtype)
        rate = Tensor(
            kl_to_coin(data).astype(logits.dtype), (logits,), lambda grad: (grad[:, None] * slope,)
        )
        return entropy.sum(1).mean(), rate.mean()

    def train(self, x: Array, rng: np.random.Generator, progress: bool) -> None:
        """Train by Adam on batches; raise `Stopped` if a gradient does not arrive."""
        from mybnn.layers import Adam

        reconstruction, _ = self.terms(x[:BATCH], np.random.default_rng(0))
        reconstruction.backward()
        check_gradients(reconstruction, self.parameters)  # through the bits, not through the rate
        adam = Adam(list(self.parameters.values()), ENCODER_RATE)
        for epoch in range(ENCODER_EPOCHS):
            batches = rng.permutation(len(x))[: len(x) // BATCH * BATCH].reshape(-1, BATCH)
            for batch in batches:
                reconstruction, rate = self.terms(x[batch], rng)
                loss = reconstruction + rate * WEIGHT
                loss.backward()
                check_gradients(loss, self.parameters)
                adam.step()
            adam.lr = ENCODER_RATE * (1 - (epoch + 1) / ENCODER_EPOCHS)
            if progress and epoch % 10 == 9:
                print(f"autoencoder, epoch {epoch + 1:3}: {float(loss.data):.2f} nats", flush=True)

    def price(self, x: Array, rng: np.random.Generator) -> tuple[float, float]:
        """Return reconstruction and rate of images, in nats."""
        reconstruction, rate = self.terms(x, rng)
        return float(reconstruction.data), float(rate.data)


def _judge_codes(nats, share):
    """Describe codes that say too little of the images."""
    failed = []
    if not nats <= MOST_NATS:
        failed.append(
            f"the autoencoder needs {nats:.2f} nats for a test image, at most {MOST_NATS} are "
            f"asked for; with good answers ten seeds reach {min(NATS)} to {max(NATS)}. "
            "Gradients arrive at the encoder, but they lead elsewhere: check straight_through and "
            "kl_to_coin"
        )
    if not share >= LEAST_NEAREST:
        failed.append(
            f"for {share:.1%} of the test images the nearest code has the right label, "
            f"{LEAST_NEAREST:.0%} are asked for; with good answers ten seeds reach "
            f"{min(NEAREST):.1%} to {max(NEAREST):.1%}: check nearest and pack_codes"
        )
    return failed


MILESTONE = Milestone(
    7, "HyBNN", 2022, "HyBNN and FedHyBNN: (Federated) Hybrid Binary Neural Networks",
    ("00.1", "01.1", "01.2", "01.3", "01.4", "02.1", "02.4", "03.1", "03.2", "03.3", "03.4",
     "03.5", "04.1", "04.2", "04.3", "06.1", "06.2", "07.1", "07.4", "07.5", "08.1", "08.2", "08.3",
     "08.4"), run, 30.0,
)  # fmt: skip
