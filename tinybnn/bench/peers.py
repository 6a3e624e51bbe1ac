"""Other software that computes the same with floats, or (Larq) with bits; each where installed.

All weights are random: how fast a network is does not depend on them.
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
from functools import partial
from importlib import metadata

import numpy as np
from threadpoolctl import threadpool_limits

from tinybnn.bench.rounds import Contender, contender, rest

PACKAGES = ("torch", "onnxruntime", "larq_compute_engine", "threadpoolctl")


def is_installed(*names):
    """Whether all of these modules could be imported."""
    return all(importlib.util.find_spec(name) is not None for name in names)


def versions():
    """Version of each package that is installed."""
    found = {}
    for name in PACKAGES:
        if is_installed(name):
            with contextlib.suppress(metadata.PackageNotFoundError):
                found[name] = metadata.version(name)
    return found


def blas_threads(num_threads):
    """A context in which NumPy's BLAS uses so many threads."""
    return threadpool_limits(num_threads, user_api="blas")


def layers_of(model):
    """A Sequential as plain data: (kind, sizes...) for each layer that does arithmetic.

    Kinds: 'convolution' (channels in, channels out, whether binary), 3×3 with padding 1;
    'norm' (channels); 'pool' 2×2; 'flatten'; 'dense' (features in, features out).
    """
    found = []
    for layer in model:
        kind = type(layer).__name__
        if kind.endswith("Conv2d"):
            is_binary = kind == "BinaryConv2d"
            found.append(("convolution", layer.in_channels, layer.out_channels, is_binary))
        elif kind == "BatchNorm2d":
            found.append(("norm", layer.num_features))
        elif kind == "MaxPool2d":
            found.append(("pool",))
        elif kind == "Flatten":
            found.append(("flatten",))
        elif kind == "Linear":
            found.append(("dense", layer.in_features, layer.out_features))
    return found


@contextlib.contextmanager
def other_networks(model, x, num_threads, say):
    """Everything that can run a network of this shape on ``x``, as a list of contenders.

    Parameters
    ----------
    model : Sequential
        Of the layers that `layers_of` knows.
    x : (N, C, H, W) float32
    num_threads : int
    say : callable
        Told what is installed and does not run.
    """
    layers = layers_of(model)
    with contextlib.ExitStack() as stack:
        found = list(_torch(layers, x, num_threads))
        found += _onnx(layers, x, num_threads)
        found += _larq(layers, x, num_threads, say, stack)
        yield found


# ----------------------------------------------------------------------------------------- PyTorch


def _layouts():
    import torch

    return (("NCHW", torch.contiguous_format), ("NHWC", torch.channels_last))


def _torch(layers, x, num_threads):
    """PyTorch's float network in both memory layouts."""
    if not is_installed("torch"):
        return
    import torch

    torch.set_num_threads(num_threads)
    made = []
    for kind, *sizes in layers:
        if kind == "convolution":
            made.append(torch.nn.Conv2d(*sizes[:2], 3, padding=1, bias=False))
        elif kind == "norm":
            made += [torch.nn.BatchNorm2d(*sizes), torch.nn.Hardtanh()]
        elif kind == "pool":
            made.append(torch.nn.MaxPool2d(2))
        elif kind == "flatten":
            made.append(torch.nn.Flatten())
        else:
            made.append(torch.nn.Linear(*sizes))
    network = torch.nn.Sequential(*made).eval()
    for name, layout in _layouts():
        yield _torch_contender(name, copy.deepcopy(network), x, layout)


def torch_depthwise(x, weight, stride, num_threads):
    """PyTorch's float depth-wise convolution in both memory layouts.

    Parameters
    ----------
    x : (N, H, W, C) float32
    weight : (k, k, C) float32
    """
    if not is_installed("torch"):
        return
    import torch

    torch.set_num_threads(num_threads)
    size, _, channels = weight.shape
    layer = torch.nn.Conv2d(
        channels, channels, size, stride, size // 2, groups=channels, bias=False
    )
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight.transpose(2, 0, 1)[:, None].copy()))
    for name, layout in _layouts():
        yield _torch_contender(name, copy.deepcopy(layer), x.transpose(0, 3, 1, 2), layout)


def _torch_contender(name, network, x, layout):
    import torch

    network = network.to(memory_format=layout)
    images = torch.from_numpy(np.ascontiguousarray(x)).to(memory_format=layout)

    def forward():
        with torch.inference_mode():
            return network(images)

    return contender(f"PyTorch float {name}", forward, counts=True)


# ------------------------------------------------------------------------------------ ONNX Runtime


def _onnx(layers, x, num_threads):
    """ONNX Runtime's float network; `onnx` is needed to write it down."""
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
    """A network in ONNX's format, as bytes."""
    import onnx
    from onnx import helper, numpy_helper

    rng = np.random.default_rng(0)
    nodes, constants = [], []

    def add(operation, inputs, **attributes):
        """Append a node that takes the last one's result."""
        source = nodes[-1].output[0] if nodes else "x"
        names = []
        for array in inputs:
            names.append(f"c{len(constants)}")
            constants.append(numpy_helper.from_array(np.asarray(array, np.float32), names[-1]))
        nodes.append(
            helper.make_node(operation, [source, *names], [f"v{len(nodes)}"], **attributes)
        )

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

# Larq Compute Engine 0.16 wants NumPy 1, and this library NumPy 2: it runs in a process of its own,
# by the Python of another environment. It answers a number of runs with their seconds, as `turn`
# does. Padding with ones, pooling after the convolution: what its converter turns into bits.
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
    """Larq Compute Engine's binary network, for one image, which is all that it takes at a time."""
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
    stack.callback(_end, process)
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


def _end(process):
    """Its input ends, and so does it."""
    process.communicate()
