"""Peers for packed networks, each where it is installed: float networks, and Larq's binary ones.

All weights are random: the speed of a network does not depend on them.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import threadpool_limits

from tinybnn.bench.rounds import Contender, contender, rest
from tinybnn.bench.twin import twin

if TYPE_CHECKING:
    from tinybnn import nn
    from tinybnn.typing import Array

PACKAGES = ("torch", "onnxruntime", "larq_compute_engine", "threadpoolctl")


def is_installed(*names: str) -> bool:
    """Whether all of these modules are installed."""
    return all(importlib.util.find_spec(name) is not None for name in names)


def versions() -> dict[str, str]:
    """Return the version of each of `PACKAGES` that is installed."""
    installed = {}
    for name in filter(is_installed, PACKAGES):
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


def blas_threads(num_threads: int) -> contextlib.AbstractContextManager[Any]:
    """Limit NumPy's BLAS to `num_threads` threads inside the context."""
    return threadpool_limits(num_threads, user_api="blas")


def layers_of(model: nn.Sequential) -> list[tuple[Any, ...]]:
    """Describe a Sequential as plain data: (kind, sizes...) for each layer that does arithmetic.

    Kinds: 'convolution' (channels in, channels out, whether binary), 3×3 with padding 1;
    'norm' (channels); 'pool' 2×2; 'flatten'; 'dense' (features in, features out).
    """
    described = {
        "Conv2d": lambda layer: ("convolution", layer.in_channels, layer.out_channels, False),
        "BinaryConv2d": lambda layer: ("convolution", layer.in_channels, layer.out_channels, True),
        "BatchNorm2d": lambda layer: ("norm", layer.num_features),
        "MaxPool2d": lambda layer: ("pool",),
        "Flatten": lambda layer: ("flatten",),
        "Linear": lambda layer: ("dense", layer.in_features, layer.out_features),
    }
    layers = [(described.get(type(layer).__name__), layer) for layer in model]
    return [describe(layer) for describe, layer in layers if describe is not None]


@contextlib.contextmanager
def other_networks(
    model: nn.Sequential, x: Array, num_threads: int, say: Callable[[str], Any]
) -> Iterator[list[Contender]]:
    """Context manager: the contenders that can run a network of this shape on ``x``.

    Parameters
    ----------
    model : Sequential
        Only layers that `layers_of` knows.
    x : (N, C, H, W) float32
    num_threads : int
    say : callable
        Called with a text about a peer that is installed and does not run.
    """
    layers = layers_of(model)
    with contextlib.ExitStack() as stack:
        yield [
            *torch_contenders(model, x, num_threads),
            *_onnx(layers, x, num_threads),
            *_larq(layers, x, num_threads, say, stack),
        ]


def torch_contenders(model: nn.Module, x: Array, num_threads: int) -> Iterator[Contender]:
    """Yield PyTorch's float network in both memory layouts, where PyTorch is installed.

    Parameters
    ----------
    model : Module
        As `twin` takes it; its parameters are copied.
    x : (N, C, H, W) float32
    num_threads : int
    """
    if not is_installed("torch"):
        return
    import torch

    torch.set_num_threads(num_threads)
    network = twin(model, binary=False).eval()
    for theirs, p in zip(network.parameters(), model.parameters(), strict=True):
        theirs.data = torch.tensor(np.ascontiguousarray(p.data))
    for name, layout in (("NCHW", torch.contiguous_format), ("NHWC", torch.channels_last)):
        laid_out = copy.deepcopy(network).to(memory_format=layout)
        images = torch.tensor(np.ascontiguousarray(x)).to(memory_format=layout)

        def forward(network=laid_out, images=images):
            with torch.inference_mode():
                return network(images)

        yield contender(f"PyTorch float {name}", forward, counts=True)


# ------------------------------------------------------------------------------------ ONNX Runtime


def _onnx(layers, x, num_threads):
    """Yield ONNX Runtime's float network, which the package onnx builds."""
    if not is_installed("onnx", "onnxruntime"):
        return
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(
        _onnx_model(layers, x.shape), options, providers=["CPUExecutionProvider"]
    )
    images = np.ascontiguousarray(x)
    yield contender("ONNX Runtime float", lambda: session.run(None, {"x": images}))


def _onnx_model(layers, shape):
    """Serialize a network in ONNX's format, bytes."""
    import onnx
    from onnx import helper, numpy_helper

    rng = np.random.default_rng(0)
    nodes, constants = [], []

    def add(operation, inputs, **attributes):
        """Append a node that takes the last one's result."""
        names = [nodes[-1].output[0] if nodes else "x"]
        for array in inputs:
            names.append(f"c{len(constants)}")
            constants.append(numpy_helper.from_array(np.asarray(array, np.float32), names[-1]))
        nodes.append(helper.make_node(operation, names, [f"v{len(nodes)}"], **attributes))

    for kind, *sizes in layers:
        if kind == "convolution":
            inputs, outputs, _ = sizes
            weight = rng.standard_normal((outputs, inputs, 3, 3)) / np.sqrt(9 * inputs)
            add("Conv", [weight], kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        elif kind == "norm":
            ones, zeros = np.ones(sizes), np.zeros(sizes)
            add("BatchNormalization", [ones, zeros, zeros, ones])
            add("Clip", [-1.0, 1.0])
        elif kind == "pool":
            add("MaxPool", [], kernel_shape=[2, 2], strides=[2, 2])
        elif kind == "flatten":
            add("Flatten", [])
        else:
            inputs, outputs = sizes
            weight = rng.standard_normal((outputs, inputs)) / np.sqrt(inputs)
            add("Gemm", [weight, np.zeros(outputs)], transB=1)
    floats = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", floats, list(shape))],
        [helper.make_tensor_value_info(nodes[-1].output[0], floats, None)],
        constants,
    )
    opset = helper.make_opsetid("", 17)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()


# ----------------------------------------------------------------------------- Larq Compute Engine

# Larq Compute Engine 0.16 requires NumPy 1, this library NumPy 2, so it runs in a process of its
# own with the Python of another environment. The process reads a number of runs and answers with
# their seconds, as `turn` does. Its converter packs convolutions padded with ones and pooled after.
_LARQ_PYTHON = "TINYBNN_LARQ_PYTHON"
_LARQ = """
import json, os, sys, time
os.environ |= {"TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what libraries print
import numpy as np, tensorflow as tf, larq, larq_compute_engine as lce
layers, shape, num_threads = json.loads(sys.argv[1])
stack, K = [tf.keras.Input(shape)], tf.keras.layers
for kind, *sizes in layers:
    if kind == "convolution" and sizes[2]:
        stack.append(larq.layers.QuantConv2D(
            sizes[1], 3, padding="same", pad_values=1.0, use_bias=False,
            input_quantizer="ste_sign", kernel_quantizer="ste_sign",
            kernel_constraint="weight_clip"))
    elif kind == "convolution":
        stack.append(K.Conv2D(sizes[1], 3, padding="same", use_bias=False))
    else:
        make = {"norm": K.BatchNormalization, "pool": K.MaxPool2D, "flatten": K.Flatten}
        stack.append(K.Dense(sizes[1]) if kind == "dense" else make[kind]())
converted = lce.convert_keras_model(tf.keras.Sequential(stack))
network = lce.testing.Interpreter(converted, num_threads=num_threads)
x = np.zeros((1, *shape), np.float32)
network.predict(x)
print("[]", file=answers, flush=True)
for line in sys.stdin:
    network.predict(x)
    seconds = []
    for _ in range(int(line)):
        start = time.perf_counter()
        network.predict(x)
        seconds.append(time.perf_counter() - start)
    time.sleep(0.02)
    print(json.dumps(seconds), file=answers, flush=True)
"""


def _larq(layers, x, num_threads, say, stack):
    """Yield Larq Compute Engine's binary network, which takes one image at a time."""
    python = os.environ.get(_LARQ_PYTHON)
    if len(x) > 1 or not (python or is_installed("larq", "larq_compute_engine", "tensorflow")):
        return
    _, channels, height, width = x.shape
    task = json.dumps([layers, [height, width, channels], num_threads])
    errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
    stack.callback(errors.close)
    process = subprocess.Popen(
        [python or sys.executable, "-c", _LARQ, task],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
    )  # fmt: skip
    stack.callback(process.communicate)  # it ends when its input does
    if process.stdout.readline() == "[]\n":
        yield Contender("Larq Compute Engine", partial(_larq_turn, process))
    else:
        process.wait()
        errors.seek(0)
        [*_, reason] = ["it ended", *filter(str.strip, errors.read().splitlines())]
        say(
            f"Larq Compute Engine is left out: {reason}\n(It needs NumPy 1. Install it together "
            f"with larq and tensorflow in an environment of its own, and name\nthe Python of that "
            f"environment in {_LARQ_PYTHON}.)"
        )


def _larq_turn(process, calls):
    rest()
    process.stdin.write(f"{calls}\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())
