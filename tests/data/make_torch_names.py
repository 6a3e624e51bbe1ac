"""Record PyTorch's results for the calls of `tests/torch_names.py`: values and two derivatives.

    python tests/data/make_torch_names.py          (PyTorch 2.13, CPU)

writes torch_names.npz beside this file: plain arrays, no pickle; one for each call, which holds all
its numbers in a row.
"""

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import torch_names as names


def weighted(tensors):
    """The sum of all elements, each with its own weight."""
    return sum((t * torch.from_numpy(names.weights(t.shape))).sum() for t in tensors)


def record(letters, call, derivatives):
    inputs = [torch.from_numpy(names.INPUTS[x].copy()) for x in letters]
    if derivatives:
        inputs = [x.requires_grad_() for x in inputs]
    outputs = call(torch, *inputs)
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    tensors = outputs[:]
    if derivatives:
        outputs = [y for y in outputs if y.requires_grad]
        twice = derivatives == 2
        options = {"create_graph": twice, "materialize_grads": True}
        gradients = torch.autograd.grad(weighted(outputs), inputs, **options)
        tensors += gradients
        gradients = [g for g in gradients if g.requires_grad]
        if twice and gradients:
            tensors += torch.autograd.grad(weighted(gradients), inputs, materialize_grads=True)
    dtypes.append(str(outputs[0].dtype).removeprefix("torch."))
    return np.concatenate(
        [t.detach().numpy(force=True).astype(np.float64).ravel() for t in tensors]
    )


dtypes = []  # of the first outputs
arrays = {f"input {name}": value for name, value in names.INPUTS.items()}
for cases, derivatives in (
    (names.VALUES, 0), (names.OWN_ONCE, 1), (names.SMOOTH, 2), (names.OWN, 2),
):  # fmt: skip
    for name, (letters, call) in cases.items():
        arrays[name] = record(letters, call, derivatives)
arrays["names"] = np.array([*names.VALUES, *names.OWN_ONCE, *names.SMOOTH, *names.OWN])
arrays["dtypes"] = np.array(dtypes)
np.savez_compressed(Path(__file__).with_name("torch_names.npz"), **arrays)
