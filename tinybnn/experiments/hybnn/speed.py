"""HyBNN's compiled head: check that it predicts the same from bits alone, its size, and times."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tinybnn import datasets, deploy, nn, optim, runs, training
from tinybnn import functional as F
from tinybnn.autograd import Tensor
from tinybnn.datasets import Dataset
from tinybnn.experiments.demo import best_seconds, float_logits
from tinybnn.experiments.hybnn.features import batch_size
from tinybnn.experiments.hybnn.networks import ARMS, tasks_of
from tinybnn.kernels.machine.exact import identical
from tinybnn.kernels.machine.threads import one_blas_thread
from tinybnn.kernels.signs import bits
from tinybnn.models import BinaryVAE, HyBNN
from tinybnn.typing import Array, FloatArray, Words


def compile_heads(
    folder: Path, heads: Mapping[str, nn.Module], words: Words, count: int
) -> dict[str, Any]:
    """Compile heads, write them to files, and compare them with the float models on all codes.

    Parameters
    ----------
    folder : path
        A file ``head-NAME.npz`` is written there for each head.
    heads : dict
        Name -> trained head, in evaluation mode.
    words : (N, words) uint64
        Codes of test images.
    count : int
        Bits of a code.

    Returns
    -------
    dict
        Name -> figures: the numbers of ``images``, of ``identical_predictions`` and of
        ``identical_logits``; ``bits_only``, see `is_bits_only`; ``steps`` of the program;
        ``packed_bytes`` and ``float_bytes`` (weights and statistics), ``file_bytes``.
    """
    codes = bits.unpack(words, count)
    result = {}
    for name, head in heads.items():
        packed = deploy.compile(head, (count,))
        logits, expected = packed.predict_packed(words), float_logits(head, codes)
        result[name] = {
            **_compared(logits, expected),
            "bits_only": is_bits_only(packed, words),
            "steps": [step.operation for step in packed.steps],
            **_sizes(folder / f"head-{name}.npz", packed, head),
        }
    return result


def compile_whole(path: Path, encoder: nn.Module, head: nn.Module, test: Dataset) -> dict[str, Any]:
    """Compile encoder and head together, from image to scores, and compare with the float model.

    Parameters
    ----------
    path : path
        The packed model is written there.
    encoder, head : Module
    test : Dataset
        Images (N, C, H, W).

    Returns
    -------
    dict
        As `compile_heads` returns for a head, without ``bits_only`` and ``steps``.
    """
    model = HyBNN(encoder, head).eval()
    packed = deploy.compile(model, test.images.shape[1:])
    loader = datasets.DataLoader(test, 500, transform=datasets.to_unit(test.maximum))
    logits = np.concatenate([packed.predict(x) for x, _ in loader])
    expected, _ = training.predict(model, loader)
    return {**_compared(logits, expected), **_sizes(path, packed, model)}


def _compared(logits, expected):
    return {
        "images": len(expected),
        "identical_predictions": int((logits.argmax(1) == expected.argmax(1)).sum()),
        "identical_logits": int(identical(logits, expected).all(1).sum()),
    }


def _sizes(path, packed, model):
    return {
        "float_bytes": runs.float_bytes(model),
        "packed_bytes": packed.nbytes,
        "file_bytes": packed.save(path),
    }


def is_bits_only(packed: deploy.PackedModel, words: Words) -> bool:
    """Check that a compiled head uses only words and integers up to the sums of its last layer.

    The results of all tasks but the last, which ends in the scores, are checked on codes
    (N, words) uint64, and the constants of all steps before the sums become floats.
    """
    packs = [i for i, step in enumerate(packed.steps) if step.operation == "pack"]
    last = [step.operation for step in packed.steps].index("to_float")
    *before, _ = [result.dtype for _, result in packed.run_plan(words[:8], packs=packs)]
    constants = [array.dtype for step in packed.steps[:last] for array in step.arrays.values()]
    return packs == [0] and all(dtype.kind in "iub" for dtype in before + constants)


# ------------------------------------------------------------------------------------------- times


def measure(config: Any, images: Dataset) -> dict[str, Any]:
    """Measure times of inference and of training for the arms of a task, untrained.

    Parameters
    ----------
    config : dataclass
        With ``bits``, as `hybnn.Config`.
    images : Dataset
        Training images (N, C, H, W); the first ones are used.

    Returns
    -------
    dict
        ``inference``, rows of `inference_times`; ``training``, rows of `step_times`, and
        ``training_batch``, the batch size of these steps.
    """
    rng = np.random.default_rng(0)
    shape = images.images.shape[1:]
    vae = BinaryVAE(shape, config.bits, rng=rng).eval()
    x = datasets.to_unit(images.maximum)(images.images[:256], rng)
    codes, labels = vae.encode(x), rng.integers(0, 2, len(x))
    trained = {}
    for name in ("hybnn", "float-head", "cnn", "float-cnn"):
        arm = ARMS[name]
        from_codes = arm.features == "codes"
        model = arm.build(config.bits if from_codes else shape, 2, rng).eval()
        trained[arm.title] = model, from_codes
    head, _ = trained[ARMS["hybnn"].title]
    others = {
        "encoder alone": (vae.encoder, False),
        "encoder and binary head": (HyBNN(vae.encoder, head).eval(), False),
    }
    size = min(batch_size(len(images) // len(tasks_of(images))), len(x))
    with one_blas_thread():
        return {
            "inference": inference_times({**trained, **others}, x, codes),
            "training": step_times(trained, x[:size], codes[:size], labels[:size]),
            "training_batch": size,
        }


def inference_times(
    models: Mapping[str, tuple[nn.Module, bool]],
    images: FloatArray,
    codes: FloatArray,
    repeats: int = 25,
) -> list[dict[str, Any]]:
    """Time predictions of the float model and the compiled one, for a batch and for one image.

    Parameters
    ----------
    models : dict
        Name -> (model, whether it starts from codes).
    images : (N, C, H, W) float32
    codes : (N, bits) float32 of ±1
        The codes of these images. A compiled model that reads only their signs gets them packed.
    repeats : int
        Number of runs; the shortest counts.

    Returns
    -------
    list of dict
        ``name``, ``from``, ``batch``, and microseconds an image: ``float_us``, ``packed_us``.
    """
    rows = []
    for name, (model, from_codes) in models.items():
        inputs = codes if from_codes else images
        packed = deploy.compile(model, inputs.shape[1:])
        predict, given = packed.predict, inputs
        if from_codes and packed.steps[0].operation == "pack":
            predict, given = packed.predict_packed, bits.pack(codes)
        for batch in (len(inputs), 1):
            row = {"name": name, "from": "codes" if from_codes else "images", "batch": batch}
            for column, function, x in (
                ("float_us", partial(float_logits, model), inputs[:batch]),
                ("packed_us", predict, given[:batch]),
            ):
                row[column] = best_seconds(partial(function, x), repeats) / batch * 1e6
            rows.append(row)
    return rows


def step_times(
    models: Mapping[str, tuple[nn.Module, bool]],
    images: FloatArray,
    codes: FloatArray,
    labels: Array,
    repeats: int = 25,
) -> list[dict[str, Any]]:
    """Time a training step with its forward products of signs on floats and on bits.

    Parameters
    ----------
    models : dict
        Name -> (untrained model, whether it starts from codes). They are trained a little.
    images, codes
        As for `inference_times`, a batch of them.
    labels : (N,) int64
    repeats : int

    Returns
    -------
    list of dict
        ``name``, and microseconds an image: ``float_us``, ``bits_us``.
    """
    rows = []
    for name, (model, from_codes) in models.items():
        x = codes if from_codes else images
        optimizer = optim.Adam(model.parameters(), lr=1e-3)
        model.train()

        def step(model=model, optimizer=optimizer, x=x):
            optimizer.zero_grad()
            F.cross_entropy(model(Tensor(x)), labels).backward()
            optimizer.step()

        row = {"name": name, "from": "codes" if from_codes else "images"}
        for column, on_bits in (("float_us", False), ("bits_us", True)):
            with F.packed_products(on_bits):
                row[column] = best_seconds(step, repeats) / len(x) * 1e6
        rows.append(row)
    return rows
