"""The compiler: the trace of a float model becomes a program on bits.

1. *Trace.* The model runs once in eval mode, and every operation is recorded in order, with its
   constants. What the compiler reads is therefore exactly what the model computes, whatever its
   forward method looks like.
2. *Kinds.* Going forward, each value is found to be ``signs`` (the result of a sign, or a
   rearrangement of one), ``sums`` (a convolution or product of signs with sign weights: an integer
   of known bounds) or ``float``.
3. *Forms.* Going backward from the output, each value is asked for in the forms that its readers
   want: bits, accumulator or float. A sign whose argument is an elementwise function of sums asks
   for the accumulator and becomes integer thresholds; all in between disappears.
4. *Steps.* Going forward again, each form that somebody wants becomes a step.
5. *Trial.* Other inputs, in batches of other sizes, are traced and predicted: what a trace cannot
   see (`deploy.trace`) shows there, and is refused.

Thresholds are not derived by algebra. The float functions between the accumulator and the sign are
evaluated at every integer that the accumulator can reach, and the place where the sign changes is
read off. So the rounding of float32 is part of the result, and γ of any sign needs no case of its
own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tinybnn import functional as F
from tinybnn import tensor as T
from tinybnn.deploy.packed import PackedModel, Step
from tinybnn.deploy.scan import Scan, smallest_int
from tinybnn.deploy.shapes import expect_results, infer
from tinybnn.deploy.trace import (
    CompileError,
    difference,
    evaluate,
    layer_name,
    layer_names,
    outline,
    trace_model,
)
from tinybnn.deploy.verify import DifferentError, compare, verify
from tinybnn.kernels import bits
from tinybnn.nn.binary import OnesOfOneSample
from tinybnn.quantizers import Quantize
from tinybnn.tensor import Tensor


def compile(model, input_shape):
    """Turn a trained model into its packed form.

    Parameters
    ----------
    model : Module
        float32. It is traced in eval mode (and left in the mode that it was in).
    input_shape : sequence of int
        Shape of one sample, without the batch: (C, H, W) or (F,).

    Returns
    -------
    PackedModel

    Raises
    ------
    CompileError
        Naming the layer, if an operation has no packed form, if the model does something else for
        other values or another batch size, or if the packed model would not give its values.
    """
    input_shape = tuple(int(n) for n in input_shape)
    if not input_shape or min(input_shape) < 1:
        raise CompileError(
            "compile: input_shape must be the shape of one sample, of sizes >= 1, "
            f"got {input_shape}"
        )
    for name, parameter in model.named_parameters():
        if parameter.dtype != np.float32:
            raise CompileError(f"compile: {name} is {parameter.dtype}, a packed model is float32")
    names, (x, *others) = layer_names(model), _inputs(input_shape)
    tape, x, output = trace_model(model, x)
    packed = _Compiler(names, tape, x, output).program(input_shape)
    first = outline(tape, x, output)
    del tape, x, output  # constants as large as the latent weights
    for x in others:
        if found := difference(first, outline(*_trace_again(model, x))):
            scope, reason = found
            raise CompileError(f"compile: layer {layer_name(names, scope)}: {reason}")
        _expect_equal(model, packed, x)
    return packed


# The batch size of the trace: a reshape keeps it as its first size, and it is unlikely elsewhere.
_TRACE_BATCH = 2


def _inputs(shape):
    """What a model is traced with, and two batches of other sizes that it is tried with.

    Their means, ranges and signs differ, so that an ``if`` on such a value goes the other way.
    """
    rng = np.random.default_rng(0)
    usual = rng.standard_normal((_TRACE_BATCH, *shape))
    high, wide, low = rng.standard_normal((3, *shape))
    batches = usual, (2 * high + 4, 1000 * wide, np.copysign(0, wide)), (2 * low - 4,)
    return [np.stack(samples).astype(np.float32) for samples in batches]


def _trace_again(model, x):
    try:
        return trace_model(model, x)
    except CompileError:
        raise
    except Exception as error:
        raise CompileError(
            f"compile: the model ends in {type(error).__name__} for a batch of shape {x.shape}: "
            f"{error}; is a batch size written down in it?"
        ) from error


def _expect_equal(model, packed, x):
    """Hold a packed model against the float model, outside of any trace."""
    try:
        with np.errstate(all="ignore"):
            compare(packed.steps[-1], packed.predict(x), evaluate(model, x))
    except DifferentError as error:
        raise CompileError(
            "compile: the packed model does not give what the model gives: "
            f"{_first_difference(model, packed, x) or error}"
        ) from None


def _first_difference(model, packed, x):
    """What `verify` says of the first layer that differs; None if none does."""
    try:
        verify(model, packed, x)
    except DifferentError as error:
        return error


# Functions of each element alone, given their constants: what may stand between sums and a sign.
_ELEMENTWISE = (
    T.Add, T.Sub, T.Mul, T.Div, T.Pow, T.Exp, T.Log, T.Sqrt, T.Abs, T.Clamp,
    T.Maximum, F.Relu, F.Hardtanh, F.LeakyRelu, F.PRelu, F.Softplus, F.Sigmoid, F.Tanh, F.BatchNorm,
)  # fmt: skip

_UNARY = {
    F.Relu: "relu", F.Sigmoid: "sigmoid", F.Tanh: "tanh", T.Abs: "abs", T.Exp: "exp", T.Log: "log",
    T.Sqrt: "sqrt",
}  # fmt: skip

_BINARY = {T.Add: "add", T.Sub: "sub", T.Mul: "mul", T.Div: "div", T.Maximum: "maximum"}

# Operations whose keyword options are the settings of the step.
_WITH_OPTIONS = {
    F.Hardtanh: "hardtanh", T.Clamp: "clamp", F.LeakyRelu: "leaky_relu", F.Softplus: "softplus",
}  # fmt: skip

_NO_FIXED_ORDER = "its float sums run in no fixed order; pass fixed_order=not self.training"


@dataclass
class _Thresholds:
    """A sign of a function of sums, as integer comparisons on the accumulator."""

    source: int  # the call that gives the accumulator
    thresholds: np.ndarray
    flip: np.ndarray
    pool: object = None  # the max-pool's windows, if one stood in between
    minimum: np.ndarray | None = None  # channels whose pool is a minimum
    flattened: bool = False  # whether the image was flattened before the sign


class _Compiler:
    def __init__(self, names, tape, x, output):
        self.names, self.calls, self.output = names, tape, output
        self.producer = {id(x): -1}  # Tensor -> the call that made it (-1: the model's input)
        self.symbolic = []  # for each call: the producers of its inputs that depend on x
        self.kinds = {-1: "float"}
        self.expect_no_escapes(x)
        for i, call in enumerate(tape):
            sources = [self.made_by(t) for t in call.inputs]
            self.symbolic.append([s for s in sources if s is not None])
            if self.symbolic[i]:
                if call.output.dtype != np.float32:
                    raise self.refuse(
                        i, f"it computes in {call.output.dtype}; a packed model is float32"
                    )
                self.kinds[i] = self.kind(i)
                self.producer[id(call.output)] = self.without_repetition(i)
        if self.made_by(output) is None:
            raise CompileError("compile: the model's output does not depend on its input")
        self._thresholds = {}

    # ------------------------------------------------------------------------------------ helpers

    def expect_no_escapes(self, x):
        """All that depends on x is on the tape."""
        dependent = {id(x)}
        for call in self.calls:
            if any(id(self.calls.source(t)) in dependent for t in call.inputs):
                dependent.add(id(call.output))
        for escape in self.calls.escapes:
            tensors = map(self.calls.source, escape.tensors)
            if not escape.tensors or any(id(t) in dependent for t in tensors):
                raise CompileError(
                    f"compile: layer {layer_name(self.names, escape.scope)}: {escape.reason}"
                )

    def made_by(self, x):
        """The call that made x; -1 for the model's input, None for a constant."""
        return self.producer.get(id(self.calls.source(x)))

    def name(self, i):
        return layer_name(self.names, self.calls[i].scope)

    def shape(self, i):
        """Shape of one sample of a call's output."""
        return self.calls[i].output.shape[1:]

    def constant(self, i, position):
        """Input number `position` of call i as a constant array, or None if it depends on x."""
        value = self.calls[i].inputs[position]
        if isinstance(value, Tensor):
            return value.data if self.made_by(value) is None else None
        return np.asarray(value, np.float32)

    def refuse(self, i, reason):
        operation = type(self.calls[i].function).__name__
        return CompileError(
            f"compile: layer {self.name(i)}: {operation} has no packed form: {reason}"
        )

    # -------------------------------------------------------------------------------------- kinds

    def kind(self, i):
        """What the result of call i is: 'signs', 'sums' or 'float'."""
        call = self.calls[i]
        function, kinds = type(call.function), [self.kinds[s] for s in self.symbolic[i]]
        if function is Quantize:
            quantizer = call.options["quantizer"]
            if quantizer.values != (-1.0, 1.0) or quantizer.levels() is not quantizer:
                raise self.refuse(i, f"{quantizer!r} does not give signs")
            if call.output.ndim not in (2, 4):
                raise self.refuse(
                    i, f"it takes features (N, F) or images (N, C, H, W), not {call.output.shape}"
                )
            return "signs"
        if function is OnesOfOneSample:
            return "signs"
        if kinds == ["signs"]:
            if function in (F.Conv2d, F.Linear):
                weight = self.constant(i, 1)
                if weight is not None and _are_small_integers(weight):
                    return "sums"
            if function is F.MaxPool2d:
                return "signs"
            if function is T.Reshape and len(call.output) == len(call.inputs[0]):
                return "signs"
            if function is T.Pad and call.options["value"] == 1.0:
                return "signs"
        return "float"

    def without_repetition(self, i):
        """The call whose result is that of call i: an earlier one, if i is the sign of signs."""
        source = self.symbolic[i][0]
        is_repeated = type(self.calls[i].function) is Quantize and self.kinds[source] == "signs"
        return source if is_repeated else i

    def flattens(self, i):
        """Whether call i merges the axes of an image (C, H, W) into one."""
        is_reshape = i >= 0 and type(self.calls[i].function) is T.Reshape
        return (
            is_reshape
            and self.calls[i].output.shape == (_TRACE_BATCH, int(np.prod(self.shape(i))))
            and self.calls[i].inputs[0].ndim == 4
        )

    def image_of(self, i):
        """The shape (C, H, W) if the bits of call i are those of a flattened image, else None.

        They then stand pixel by pixel, each pixel padded to whole words, while the floats of a
        flattened image stand channel by channel.
        """
        if type(self.calls[i].function) is Quantize:
            found = self.thresholds(i)
            if found is None or not found.flattened:
                return None
            return self.calls[self.symbolic[i][0]].inputs[0].shape[1:]
        if self.flattens(i) and self.has_bits(self.symbolic[i][0]):
            return self.shape(self.symbolic[i][0])
        return None

    def has_bits(self, i):
        """Whether the signs of call i can be had as bits without packing floats."""
        function = type(self.calls[i].function) if i >= 0 else None
        if function is F.MaxPool2d:
            return self.kinds[i] == "signs" and self.has_bits(self.symbolic[i][0])
        return function in (Quantize, OnesOfOneSample)

    def padded_source(self, i):
        """For a convolution that reads a border of ones: (the value inside the border, padding)."""
        source = self.symbolic[i][0]
        if source < 0 or type(self.calls[source].function) is not T.Pad:
            return None
        widths = self.calls[source].options["widths"]
        symmetric = len(widths) == 4 and all(before == after for before, after in widths)
        unpadded = self.calls[i].options["padding"] == (0, 0)
        inside = self.symbolic[source][0]
        if self.kinds[source] == "signs" and symmetric and unpadded and widths[1] == (0, 0):
            return inside, (widths[2][0], widths[3][0])
        return None

    # --------------------------------------------------------------------------------- thresholds

    def thresholds(self, i):
        """The Quantize call i as thresholds on an accumulator, or None if it is not one."""
        if i not in self._thresholds:
            self._thresholds[i] = self._find_thresholds(i)
        return self._thresholds[i]

    def _find_thresholds(self, i):
        chain, source = [], self.symbolic[i][0]
        if flattened := self.flattens(source):
            source = self.symbolic[source][0]
        while source >= 0 and self.kinds[source] == "float" and len(self.symbolic[source]) == 1:
            chain.append(self.calls[source])
            source = self.symbolic[source][0]
        if source < 0 or self.kinds[source] != "sums":
            return None
        chain.reverse()
        pools = [k for k, c in enumerate(chain) if type(c.function) is F.MaxPool2d]
        if len(pools) > 1 or any(
            type(c.function) not in (*_ELEMENTWISE, F.MaxPool2d) for c in chain
        ):
            return None
        split = pools[0] if pools else len(chain)
        quantizer = self.calls[i].options["quantizer"]
        scan = Scan(self.terms(source), self.shape(source)[0], bool(pools))
        ndim = self.calls[source].output.ndim
        with np.errstate(all="ignore"):
            for integers in scan.blocks():
                grid = np.repeat(integers[:, None], scan.channels, axis=1)
                grid = grid.reshape(*grid.shape, *(1,) * (ndim - 2))  # (n, C) or (n, C, 1, 1)
                values = self.replay(chain[:split], grid)
                if values is None:
                    return None
                results = self.replay(chain[split + 1 :], values)
                if results is None:
                    return None
                signs = quantizer.forward(results) > 0
                scan.add(integers, values.reshape(grid.shape[:2]), signs.reshape(grid.shape[:2]))
        if not scan.is_threshold():
            return None
        found = _Thresholds(source, *scan.thresholds(), flattened=flattened)
        if pools:
            found.pool, found.minimum = chain[split].options["windows"], scan.falls()
        return found

    def replay(self, calls, x):
        """The calls' elementwise functions, applied to other values; None if they are not."""
        for call in calls:
            shape = x.shape
            inputs = [T.as_array(t) if self.made_by(t) is None else x for t in call.inputs]
            x = type(call.function).apply(*inputs, **call.options)
            if x.shape != shape:  # a constant of its own for each pixel
                return None
        return x

    def terms(self, i):
        """Number of signs in each sum of call i: its accumulator lies in ± this number."""
        return int(np.prod(self.calls[i].inputs[1].shape[1:]))

    # -------------------------------------------------------------------------------------- forms

    def program(self, input_shape):
        """Ask for the output as floats, and give a step to every form that is asked for."""
        wanted = {(self.made_by(self.output), "float")}
        recipes = {}
        if (-1, "float") in wanted:
            raise CompileError("compile: the model gives its input back, there is nothing to do")
        for i in reversed(range(len(self.calls))):
            for form in ("float", "bits", "accumulator"):
                if (i, form) in wanted:
                    recipes[i, form] = recipe = getattr(self, f"recipe_{form}")(i)
                    for _, _, sources in recipe:
                        # An earlier call, or another form of this one that comes next in line.
                        wanted.update(source for source in sources if source is not None)
        steps, made = [], {(-1, "float"): -1}
        for i in range(len(self.calls)):
            for form in ("accumulator", "bits", "float"):
                for operation, details, sources in recipes.get((i, form), ()):
                    # None stands for the step before: the second half of a recipe.
                    inputs = [len(steps) - 1 if s is None else made[s] for s in sources]
                    steps.append(Step(self.name(i), operation, tuple(inputs), **details))
                if (i, form) in recipes:
                    made[i, form] = len(steps) - 1
        self.check_shapes(input_shape, steps)
        return PackedModel(input_shape, steps, len(self.calls))

    def check_shapes(self, input_shape, steps):
        """Every step fits to those that it reads, and gives what the float model gave."""
        try:
            expect_results(steps, infer(input_shape, steps), len(self.calls))
        except ValueError as error:
            raise CompileError(f"compile: {error}") from None

    def recipe_accumulator(self, i):
        call, weight = self.calls[i], self.constant(i, 1)
        source = self.symbolic[i][0]
        result = {"call": i, "layout": "accumulator", "shape": self.shape(i)}
        kind = "xnor" if np.all(weight) else "ternary"
        if type(call.function) is F.Linear:
            count = weight.shape[1]
            if image := self.image_of(source):
                channels, height, width = image
                pixels = weight.reshape(-1, channels, height, width).transpose(0, 2, 3, 1)
                rows = pixels.reshape(len(weight), height * width, channels)
            else:
                rows = weight
            result |= _planes(rows)
            result["settings"] = {"count": count}
            return [(f"{kind}_linear", result, [(source, "bits")])]
        options = {k: call.options[k] for k in ("stride", "padding", "dilation", "groups")}
        options |= {"channels": int(call.inputs[0].shape[1]), "padding_mode": "zeros"}
        padded = self.padded_source(i)
        if padded:
            source, options["padding"] = padded
            options["padding_mode"] = "ones"
        result |= _planes(weight.transpose(0, 2, 3, 1))
        result["settings"] = options
        return [(f"{kind}_conv2d", result, [(source, "bits")])]

    def recipe_bits(self, i):
        call, result = self.calls[i], {"call": i, "layout": "bits", "shape": self.shape(i)}
        if type(call.function) is OnesOfOneSample:
            shape = {"settings": {"shape": self.shape(i)}}
            return [("ones", result | shape, [(self.symbolic[i][0], "bits")])]
        source = self.symbolic[i][0]
        if type(call.function) is Quantize:
            found = self.thresholds(i)
            if found is None:
                return [("pack", result, [(source, "float")])]
            arrays = {"thresholds": found.thresholds, "flip": found.flip}
            recipe = [("threshold", {"arrays": arrays}, [(found.source, "accumulator")])]
            if found.pool is not None:
                recipe.append(("max_pool_bits", self.pool_bits(found.pool, found.minimum), [None]))
            if found.flattened:
                recipe.append(("flatten_bits", {}, [None]))
                result["layout"], result["shape"] = "flattened bits", self.image_of(i)
            # Only the last step has a counterpart in the float model.
            for _, details, _ in recipe[:-1]:
                details["layout"] = "internal"
            recipe[-1][1].update(result)
            return recipe
        if image := self.image_of(i):
            result["layout"], result["shape"] = "flattened bits", image
            return [("flatten_bits", result, [(source, "bits")])]
        if self.has_bits(i):
            minimum = np.zeros(self.shape(i)[0], bool)
            result |= self.pool_bits(call.options["windows"], minimum)
            return [("max_pool_bits", result, [(source, "bits")])]
        return [*self.recipe_float_operation(i), ("pack", result, [None])]

    def pool_bits(self, windows, minimum):
        return {
            "arrays": {"minimum": minimum},
            "settings": {"channels": windows.shape[1], **_pooling(windows)},
        }

    def recipe_float(self, i):
        result = {"call": i, "shape": self.shape(i)}
        if self.kinds[i] == "sums":
            return [("to_float", result, [(i, "accumulator")])]
        if type(self.calls[i].function) in (Quantize, OnesOfOneSample):
            if image := self.image_of(i):
                return [
                    ("unpack_flattened", result | {"settings": {"image": image}}, [(i, "bits")])
                ]
            count = self.shape(i)[0]
            return [("unpack", result | {"settings": {"count": count}}, [(i, "bits")])]
        return self.recipe_float_operation(i)

    def recipe_float_operation(self, i):
        """The operation itself on floats."""
        call = self.calls[i]
        function, options = type(call.function), call.options
        result = {"call": i, "shape": self.shape(i)}
        sources = [(s, "float") for s in self.symbolic[i]]
        batches = {_TRACE_BATCH, 1} if function in (*_UNARY, *_BINARY) else {_TRACE_BATCH}
        if call.output.ndim == 0 or call.output.shape[0] not in batches:
            raise self.refuse(i, "it mixes the samples of a batch")
        arrays, settings, packed_bits = {}, {}, {}
        if function in _UNARY:
            operation = _UNARY[function]
        elif function in _BINARY:
            operation = _BINARY[function]
            for side, position in (("left", 0), ("right", 1)):
                value = self.constant(i, position)
                if value is not None:
                    arrays[side] = value
        elif function in (F.Linear, F.Conv2d):
            operation = "linear" if function is F.Linear else "conv2d"
            weight = self.constant(i, 1)
            if weight is None or len(sources) != 1:
                raise self.refuse(i, "its weight depends on the input")
            if not options["fixed_order"]:
                is_nan = np.isnan(weight).any()
                raise self.refuse(i, "some of its weights are NaN" if is_nan else _NO_FIXED_ORDER)
            settings = {k: v for k, v in options.items() if k != "fixed_order"}
            arrays["weight"] = weight
        elif function is F.BatchNorm and options["mean"] is not None:
            operation = "batch_norm"
            arrays = {"weight": self.constant(i, 1), "bias": self.constant(i, 2)}
            arrays |= {"mean": options["mean"], "var": options["var"]}
            settings = {"eps": options["eps"]}
        elif function is F.ConvInput and self.constant(i, 1) is not None:
            operation, geometry = "conv_transpose2d", options["geometry"]
            if not options["fixed_order"]:
                raise self.refuse(i, _NO_FIXED_ORDER)
            arrays["weight"] = self.constant(i, 1)
            settings = {
                k: getattr(geometry, k) for k in ("stride", "padding", "dilation", "groups")
            }
            settings["image"] = geometry.image[1:]
        elif function is F.PRelu and len(sources) == 1:
            operation, arrays = "prelu", {"weight": self.constant(i, 1)}
        elif function in _WITH_OPTIONS:
            operation, settings = _WITH_OPTIONS[function], dict(options)
        elif function in (F.MaxPool2d, F.AvgPool2d):
            operation = "max_pool2d" if function is F.MaxPool2d else "avg_pool2d"
            settings = _pooling(options["windows"])
        elif function is T.Reshape:
            operation, settings = "reshape", {"shape": self.shape(i)}
        elif function is T.Pad and options["widths"][0] == (0, 0):
            operation, settings = "pad", dict(options)
        elif function is T.Cat and options["dim"] > 0 and len(sources) == len(call.inputs):
            operation, settings = "cat", dict(options)
        elif function is T.Compare:
            operation, settings = "compare", dict(options)
            for side, position in (("left", 0), ("right", 1)):
                if (value := self.constant(i, position)) is not None:
                    arrays[side] = value
        elif function is T.Where:
            operation = "where"
            for name, position in (("condition", 0), ("left", 1), ("right", 2)):
                if (value := self.constant(i, position)) is not None:
                    arrays[name] = value.astype(np.float32)
        elif function is F.TakeChannels:
            index = options["index"]
            operation = "take_channels"
            arrays = {"index": index.astype(smallest_int(int(index.max())))}
        else:
            raise self.refuse(i, "no step of a packed model computes it")
        if function in (F.Linear, F.Conv2d) and np.all(np.abs(weight) == 1):
            packed_bits["weight"] = int(np.prod(weight.shape[1:]))
        if any(value is None for value in arrays.values()):
            raise self.refuse(i, "one of its constants depends on the input")
        if function in (*_BINARY, T.Compare, T.Where) and any(
            value.ndim == call.output.ndim and len(value) == _TRACE_BATCH
            for value in arrays.values()
        ):
            raise self.refuse(i, "one of its constants has a row for each sample of the batch")
        details = {"arrays": {k: np.array(v) for k, v in arrays.items()}, "settings": settings}
        return [(operation, result | details | {"bits": packed_bits}, sources)]


def _pooling(windows):
    return {
        "kernel_size": windows.kernel, "stride": windows.stride, "padding": windows.padding,
    }  # fmt: skip


def _are_small_integers(weight):
    """Whether all weights are -1 or 1, or -1, 0 or 1."""
    return all(np.all((np.abs(row) == 1) | (row == 0)) for row in weight)


def _planes(rows):
    """Weights of ±1 as one plane of bits, ternary ones as two: their sign, and where they are 0."""

    def packed(condition):
        # Filter by filter: a large layer is not to be in memory again as bytes or words.
        return np.concatenate([bits.pack(np.where(condition(row), 1, -1)[None]) for row in rows])

    arrays = {"weight": packed(lambda row: row > 0)}
    if not np.all(rows):
        arrays["mask"] = packed(lambda row: row != 0)
    return {"arrays": arrays, "bits": dict.fromkeys(arrays, rows.shape[-1])}
