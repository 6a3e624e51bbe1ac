"""Run the scripts of this folder with PyTorch or, with other import lines, with tinybnn.

    PYTHONPATH=. python tests/ports/harness.py          (PyTorch 2.13, CPU)

records the losses of 20 steps in losses.json, on synthetic images and on the first images of MNIST
and CIFAR-10, which must be there.
"""

import json
import re
import tempfile
import types
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
SHAPES = {"binarynet_mlp": (1, 28, 28), "xnor_net": (3, 32, 32), "reactnet": (3, 32, 32)}
DATA = {"binarynet_mlp": "mnist", "xnor_net": "cifar10", "reactnet": "cifar10"}


def with_imports_of(library, source):
    """The script's text with this library in its import lines."""
    source = re.sub(r"^import torch$", f"import {library} as torch", source, flags=re.MULTILINE)
    return re.sub(r"^(import|from) torch\b", rf"\1 {library}", source, flags=re.MULTILINE)


def script(name, library):
    """Load a script as a module; `library` is 'torch' or 'tinybnn'."""
    source = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    if library != "torch":
        source = with_imports_of(library, source)
    module = types.ModuleType(f"{name}_with_{library}")
    exec(compile(source, f"{name}.py", "exec"), vars(module))
    return module


def synthetic(name, count=200):
    """Noisy images of ten patterns, from -1 to 1, and their labels."""
    rng, shape = np.random.RandomState(0), SHAPES[name]
    labels = rng.randint(0, 10, count).astype(np.int64)
    patterns = rng.uniform(-1, 1, (10, *shape))
    images = 0.5 * patterns[labels] + 0.5 * rng.uniform(-1, 1, (count, *shape))
    return images.astype(np.float32), labels


def real(name, count=200):
    """The first images of a dataset, from -1 to 1; raises a DatasetError if it is missing."""
    from tinybnn import datasets

    train, _ = datasets.load(DATA[name])
    images = datasets.to_signed(train.maximum)(train.images[:count], None)
    return images, train.labels[:count].astype(np.int64)


def run(module, images, labels):
    """Run a script; return (losses, arguments seen by hooks, model)."""
    if module.__name__.startswith("reactnet"):
        with tempfile.TemporaryDirectory() as folder:
            return module.train(images, labels, folder)
    losses, model = module.train(images, labels)
    return losses, (), model


def main():
    recorded = {}
    for name in SHAPES:
        for kind, images in (("synthetic", synthetic), ("real", real)):
            losses, seen, _ = run(script(name, "torch"), *images(name))
            recorded[f"{name}, {kind}"] = {"losses": losses, "seen": seen}
    text = json.dumps(recorded, indent=0)
    (FOLDER / "losses.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
