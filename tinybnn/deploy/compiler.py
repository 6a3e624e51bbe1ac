"""The compiler: lowers the trace of a float model to a program on bits.

1. *Trace.* The model runs once in eval mode, and every operation is recorded in order, with its
   constants. The compiler thus reads exactly what the model computes, however its forward method
   is written.
2. *Kinds.* A forward pass over the trace classifies each value as ``signs`` (the result of a sign,
   or a rearrangement of one), ``sums`` (a convolution or product of signs with sign weights: an
   integer with known bounds) or ``float``.
3. *Forms.* A backward pass from the output requests each value in the forms that its readers need:
   bits, accumulator or float. A sign of an elementwise function of sums requests the accumulator
   and becomes integer thresholds; the operations in between are merged into them.
4. *Steps.* A second forward pass emits a step for each requested form.
5. *Trial.* The model is traced again on inputs with other values and batch sizes, and the packed
   model predicts them. Dependences that a single trace cannot record (`deploy.trace`), such as an
   ``if`` on a value, show up as differences, and the model is refused.

Thresholds are not derived algebraically. The float functions between the accumulator and the sign
are evaluated at every integer that the accumulator can reach, and the threshold is the integer at
which the sign changes. The rounding of float32 is thereby included, and a negative γ needs no
special case.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tinybnn import autograd as T
from tinybnn import functional as F
from tinybnn.autograd import Tensor
from tinybnn.deploy.advice import (
    OWN_SAMPLES,
    double_precision,
    instead_of,
    not_signs,
)
from tinybnn.deploy.operations import (
    OF_FUNCTION,
    NoPackedFormError,
    TakeChannels,
    TracedCall,
    pooling_settings,
)
from tinybnn.deploy.packed import PackedModel, Step
from tinybnn.deploy.scan import Scan
from tinybnn.deploy.shapes import expect_results
from tinybnn.deploy.trace import (
    CompileError,
    Problem,
    difference,
    evaluate,
    layer_name,
    layer_names,
    line_text,
    outline,
    trace_model,
    without_repetition,
)
from tinybnn.deploy.verify import DifferentError, compare, verify
from tinybnn.functional.adabin import OnesOfOneSample
from tinybnn.kernels.signs import bits
from tinybnn.nn.module import warn_of_unregistered
from tinybnn.quantizers import Quantize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tinybnn.nn import Module
    from tinybnn.typing import Shape


def compile(model: Module, input_shape: Sequence[int]) -> PackedModel:
    """Turn a trained model into its packed form.

    Parameters
    ----------
    model : Module
        With float32 parameters. It is traced in eval mode; its own modes are restored afterwards.
    input_shape : sequence of int
        Shape of one sample, without the batch: (C, H, W) or (F,).

    Returns
    -------
    PackedModel

    Raises
    ------
    CompileError
        If an operation has no packed form, if the model computes a different function for other
        input values or another batch size, or if the packed model's output would differ. The
        message names the layer. It reports the first problem; `deploy.check` lists all of them.
    """
    input_shape = sample_shape(input_shape)
    warn_of_unregistered(model, "compile")
    try:
        examination = examine(model, input_shape)
        if examination.problems:
            raise CompileError.of(examination.problems[0])
    except Exception as error:
        if _takes_samples_of(model, input_shape):
            raise CompileError.of(
                f"input_shape {input_shape} includes a batch axis; leave it out: "
                f"input_shape={input_shape[1:]}"
            ) from error
        raise
    return examination.packed


@dataclass
class Examination:
    """The result of `examine`.

    Attributes
    ----------
    problems : list of Problem
        In the order of the model's operations.
    operations : list of (int, str, tuple of str)
        For each operation that depends on the model's input: its index, its layer, and the names of
        the steps that compute it (or a note that it is merged into thresholds).
    packed : PackedModel or None
        None if there is a problem.
    """

    problems: list[Problem]
    operations: list[tuple[int, str, tuple[str, ...]]]
    packed: PackedModel | None = None


def examine(model: Module, input_shape: Sequence[int]) -> Examination:
    """Compile a model as far as possible, and collect all problems.

    Parameters
    ----------
    model : Module
    input_shape : sequence of int
        Shape of one sample: (C, H, W) or (F,).

    Returns
    -------
    Examination

    Raises
    ------
    Exception
        Any exception of the model's forward pass.
    """
    problems = [
        Problem(f"{name} is {parameter.dtype}, a packed model is float32")
        for name, parameter in model.named_parameters()
        if parameter.dtype != np.float32
    ]
    names, (x, *others) = layer_names(model), _inputs(input_shape)
    try:
        tape, x, output = trace_model(model, x)
    except CompileError as error:  # no output to start the backward pass from
        return Examination([*problems, error.problem], [])
    compiler = _Compiler(names, tape, x, output)
    recipes = compiler.recipes()
    problems += sorted(compiler.problems, key=lambda problem: problem.call)
    examination = Examination(problems, compiler.operations(recipes))
    try:
        if not problems:
            examination.packed = compiler.program(input_shape, recipes)
        first = outline(tape, x, output)
        del compiler, recipes, tape, x, output  # they hold constants as large as the weights
        for x in others:
            if differs := difference(first, outline(*_trace_again(model, x))):
                scope, reason, line = differs
                raise CompileError.of(Problem(reason, layer_name(names, scope), line))
            if examination.packed is not None:
                _expect_equal(model, examination.packed, x)
    except CompileError as error:
        problems.append(error.problem)
        examination.packed = None
    return examination


def sample_shape(input_shape: Sequence[int]) -> Shape:
    """Check the shape of a sample, (C, H, W) or (F,), and return it as a tuple."""
    try:
        shape = tuple(int(n) for n in input_shape)
    except TypeError:
        shape = ()
    if not shape or min(shape) < 1:
        raise CompileError.of(
            "input_shape must be the shape of one sample, of sizes >= 1, such as (1, 28, 28), "
            f"got {input_shape!r}"
        )
    return shape


def _takes_samples_of(model, shape):
    """Whether a model that does not compile for a shape compiles without its first axis."""
    try:
        return len(shape) > 1 and not examine(model, shape[1:]).problems
    except Exception:
        return False


# The batch size of the trace: an output whose first axis has another size mixes samples. Few other
# axes have size 2, so hardly any is taken for the batch by mistake.
_TRACE_BATCH = 2


def _inputs(shape):
    """The input of the trace, (2, *shape), and two batches of other sizes for the trial.

    Their means, ranges and signs differ, so that an ``if`` on such a value takes the other branch.
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
        raise CompileError.of(
            f"the model raises {type(error).__name__} for a batch of shape {x.shape}: "
            f"{error}; does its code contain a fixed batch size?"
        ) from error


def _expect_equal(model, packed, x):
    """Compare a packed model with the float model, outside of any trace."""
    try:
        with np.errstate(all="ignore"):
            output = packed._predict(x)  # predict() would warn about pixels outside of -1 to 1
            compare(packed.steps[-1], output, evaluate(model, x))
    except DifferentError as error:
        raise CompileError.of(
            "the packed model's output differs from the model's: "
            f"{_first_difference(model, packed, x) or error}"
        ) from None


def _first_difference(model, packed, x):
    """The error of `verify` for the first layer that differs; None if none does."""
    try:
        verify(model, packed, x)
    except DifferentError as error:
        return error


_CONVOLUTIONS, _LINEAR = (F.Conv2d, F.SignConv2d), (F.Linear, F.SignLinear)


def _is_elementwise(function):
    """Whether a Function, its constants fixed, is elementwise, so that thresholds can absorb it."""
    return function is T.Pow or (function in OF_FUNCTION and OF_FUNCTION[function].is_elementwise)


# Operations that only reorder, omit or repeat the values of a sample.
_REARRANGING = (T.Index, T.Permute, T.Flip, T.BroadcastTo)


class _Compiler:
    """The trace of a model, the kinds of its values, and the recipes of their forms.

    Attributes
    ----------
    problems : list of Problem
        Grows during compilation: after a problem, the call is treated as one on floats, so that
        later calls are examined, too.
    """

    def __init__(self, names, tape, x, output):
        self.names, self.calls, self.output = names, tape, output
        self.producer = {id(x): -1}  # Tensor -> the call that made it (-1: the model's input)
        self.symbolic = []  # for each call: the producers of its inputs that depend on x
        self.kinds = {-1: "float"}
        self.problems = self.escapes(x)
        self.refused = set()  # calls
        self.merged = set()  # calls that are part of a sign's thresholds
        self._thresholds = {}
        for i, call in enumerate(tape):
            sources = [self.made_by(t) for t in call.inputs]
            self.symbolic.append([s for s in sources if s is not None])
            if self.symbolic[i]:
                self.kinds[i] = self.try_to(self.kind, i) or "float"
                self.producer[id(call.output)] = self.without_repetition(i)
        if self.made_by(output) is None:
            self.problems.append(Problem("the model's output does not depend on its input"))

    def try_to(self, method, i):
        """Return ``method(i)``; None, with the problem recorded, where it is refused."""
        try:
            return method(i)
        except CompileError as error:
            self.problems.append(error.problem)
            self.refused.add(i)
            return None

    # ------------------------------------------------------------------------------------ helpers

    def escapes(self, x):
        """List a problem for each value that depends on x and leaves the trace, as in x.data."""
        dependent = {id(x)}
        for call in self.calls:
            if any(id(self.calls.source(t)) in dependent for t in call.inputs):
                dependent.add(id(call.output))
        problems = []
        for escape in self.calls.escapes:
            tensors = map(self.calls.source, escape.tensors)
            if not escape.tensors or any(id(t) in dependent for t in tensors):
                layer = layer_name(self.names, escape.scope)
                problems.append(Problem(escape.reason, layer, line_text(escape.line)))
        return list(dict.fromkeys(problems))

    def made_by(self, x):
        """The call that made x; -1 for the model's input, None for a constant."""
        return self.producer.get(id(self.calls.source(x)))

    def name(self, i):
        return layer_name(self.names, self.calls[i].scope)

    def shape(self, i):
        """Shape of one sample of a call's output."""
        return self.calls[i].output.shape[1:]

    def constant(self, i, position):
        """Return input `position` of call i, a weight quantized; None if it depends on x."""
        call, value = self.calls[i], self.calls[i].inputs[position]
        if isinstance(value, Tensor) and self.made_by(value) is not None:
            return None
        array = value.data if isinstance(value, Tensor) else np.asarray(value, np.float32)
        quantizers = call.options.get("quantizers") if position == 1 else None
        return quantizers[1].forward(array) if quantizers else array  # a product's weight

    def refuse(self, i, reason):
        call = self.calls[i]
        reason = f"{type(call.function).__name__} has no packed form: {reason}"
        return CompileError.of(Problem(reason, self.name(i), line_text(call.line), i))

    # -------------------------------------------------------------------------------------- kinds

    def kind(self, i):
        """Classify the result of call i: 'signs', 'sums' or 'float'."""
        call = self.calls[i]
        function, kinds = type(call.function), [self.kinds[s] for s in self.symbolic[i]]
        if call.output.dtype != np.float32 and not any(
            isinstance(x, Tensor) and x.dtype != np.float32 and self.made_by(x) is not None
            for x in call.inputs
        ):  # unless an input is float64 already: then an earlier call is reported
            raise self.refuse(i, double_precision(call))
        if function is Quantize:
            quantizer = call.options["quantizer"]
            if not quantizer.gives_signs:
                raise self.refuse(i, not_signs(quantizer))
            if call.output.ndim not in (2, 4):
                raise self.refuse(
                    i, f"expects features (N, F) or images (N, C, H, W), got {call.output.shape}"
                )
            return "signs"
        if function is OnesOfOneSample:
            return "signs"
        if kinds != ["signs"]:
            return "float"
        if function in (*_CONVOLUTIONS, *_LINEAR):
            weight = self.constant(i, 1)
            return "sums" if weight is not None and _are_small_integers(weight) else "float"
        keeps_signs = (
            function is F.MaxPool2d
            or (function is T.Reshape and len(call.output) == len(call.inputs[0]))
            or (function is T.Pad and call.options["value"] == 1.0)
        )
        return "signs" if keeps_signs else "float"

    def without_repetition(self, i):
        """Return i or, if call i takes the sign of signs, which changes nothing, its source."""
        source = self.symbolic[i][0]
        is_repeated = type(self.calls[i].function) is Quantize and self.kinds[source] == "signs"
        return source if is_repeated else i

    def image_before(self, i):
        """The shape (C, H, W) if call i merges the axes of an image into one, else None."""
        call = self.calls[i]
        if i < 0 or type(call.function) is not T.Reshape or call.inputs[0].ndim != 4:
            return None
        is_row = call.output.shape == (_TRACE_BATCH, int(np.prod(self.shape(i))))
        return call.inputs[0].shape[1:] if is_row else None

    def image_of(self, i):
        """The shape (C, H, W) if the bits of call i are those of a flattened image, else None.

        These bits are ordered pixel by pixel, each pixel padded to whole words, while the floats of
        a flattened image are ordered channel by channel.
        """
        source = self.symbolic[i][0]
        if type(self.calls[i].function) is Quantize:  # flattened before its thresholds
            return self.image_before(source) if self.thresholds(i) else None
        return self.image_before(i) if self.has_bits(source) else None

    def has_bits(self, i):
        """Whether the signs of call i are available as bits without packing floats."""
        function = type(self.calls[i].function) if i >= 0 else None
        if function is F.MaxPool2d:
            return self.kinds[i] == "signs" and self.has_bits(self.symbolic[i][0])
        return function in (Quantize, OnesOfOneSample)

    def padded_source(self, i):
        """For a convolution of an image padded with ones: (the unpadded value, padding)."""
        source = self.symbolic[i][0]
        if source < 0 or type(self.calls[source].function) is not T.Pad:
            return None
        widths = self.calls[source].options["widths"]
        symmetric = len(widths) == 4 and all(before == after for before, after in widths)
        unpadded = self.calls[i].options["geometry"].padding == (0, 0)
        inside = self.symbolic[source][0]
        if self.kinds[source] == "signs" and symmetric and unpadded and widths[1] == (0, 0):
            return inside, (widths[2][0], widths[3][0])
        return None

    # --------------------------------------------------------------------------------- thresholds

    def thresholds(self, i):
        """The recipe of Quantize call i as thresholds on an accumulator; [] if impossible."""
        if i not in self._thresholds:
            self._thresholds[i] = self._find_thresholds(i)
        return self._thresholds[i]

    def _find_thresholds(self, i):
        chain, numbers, source = [], [], self.symbolic[i][0]
        if is_flattened := self.image_before(source) is not None:
            numbers.append(source)
            source = self.symbolic[source][0]
        while source >= 0 and self.kinds[source] == "float" and len(self.symbolic[source]) == 1:
            chain.insert(0, self.calls[source])
            numbers.append(source)
            source = self.symbolic[source][0]
        if source < 0 or self.kinds[source] != "sums":
            return []
        pools = [k for k, c in enumerate(chain) if type(c.function) is F.MaxPool2d]
        split = pools[0] if pools else len(chain)
        before, after = chain[:split], chain[split + 1 :]
        if not all(_is_elementwise(type(c.function)) for c in (*before, *after)):
            return []
        scan = Scan(self.terms(source), self.shape(source)[0], bool(pools))
        ndim = self.calls[source].output.ndim
        with np.errstate(all="ignore"):
            for integers in scan.blocks():
                grid = np.repeat(integers[:, None], scan.channels, axis=1)
                grid = grid.reshape(*grid.shape, *(1,) * (ndim - 2))  # (n, C) or (n, C, 1, 1)
                values = self.replay(before, grid)
                results = None if values is None else self.replay(after, values)
                if results is None:
                    return []
                signs = self.signs(i, results) > 0
                scan.add(integers, values.reshape(grid.shape[:2]), signs.reshape(grid.shape[:2]))
        if not scan.is_threshold():
            return []
        self.merged.update(numbers)
        thresholds, flip = scan.thresholds()
        arrays = {"thresholds": thresholds, "flip": flip}
        recipe = [("threshold", {"arrays": arrays}, [(source, "accumulator")])]
        if pools:
            recipe.append(_pool_bits(chain[split].options["windows"], scan.falls(), None))
        return [*recipe, ("flatten_bits", {}, [None])] if is_flattened else recipe

    def signs(self, i, x):
        """Apply the quantizer of call i to x, and check that it returns -1 and 1 only."""
        quantizer = self.calls[i].options["quantizer"]
        signs = quantizer.forward(x)
        wrong = np.abs(signs) != 1
        if np.any(wrong):
            raise self.refuse(i, not_signs(quantizer, x[wrong][0].item(), signs[wrong][0].item()))
        return signs

    def expect_sign(self, i):
        """Check that the quantizer of call i is the sign that `pack` computes: 1 where x >= 0.

        User-defined quantizers are tested on some values.
        """
        quantizer, shape = self.calls[i].options["quantizer"], self.calls[i].inputs[0].shape
        if quantizer.is_sign:
            return
        for value in (0.0, -0.0, 1e-30, -1e-30, 0.3, -0.3, 1.0, -1.0, 1e9, -1e9, np.nan):
            x = np.full(shape, value, np.float32)
            signs = self.signs(i, x)
            wrong = signs != (1 if value >= 0 else -1)
            if np.any(wrong):
                raise self.refuse(i, not_signs(quantizer, value, signs[wrong][0].item()))

    def replay(self, calls, x):
        """Apply elementwise calls to other values; None if a constant varies by sample or pixel."""
        for call in calls:
            shape = x.shape
            constants = {id(t): self.alike(call, t) for t in call.inputs if self.made_by(t) is None}
            if any(np.ndim(c) == x.ndim and len(c) > 1 for c in constants.values()):
                return None  # a constant that varies by sample
            inputs = [constants.get(id(t), x) for t in call.inputs]
            x = type(call.function).apply(*inputs, **call.options)
            if x.shape != shape:  # a constant that varies by pixel
                return None
        return x

    def alike(self, call, constant):
        """A constant of an elementwise call, reduced to one number along axes of equal values."""
        constant, shape = T.as_array(constant), call.output.shape
        is_whole = np.ndim(constant) == len(shape) and any(
            self.made_by(t) is not None and t.shape == shape for t in call.inputs
        )
        return without_repetition(constant, (0, 2, 3)) if is_whole else constant

    def terms(self, i):
        """The number of signs in each sum of call i, which bounds its accumulator."""
        return int(np.prod(self.calls[i].inputs[1].shape[1:]))

    # -------------------------------------------------------------------------------------- forms

    def recipes(self):
        """Starting from the float output, collect the steps of every requested form.

        Returns
        -------
        dict
            (call, form) -> list of (operation, details, sources)
        """
        wanted, recipes = {(self.made_by(self.output), "float")}, {}
        if (-1, "float") in wanted:
            self.problems.append(Problem("the model returns its input unchanged"))
        for i in reversed(range(len(self.calls))):
            for form in ("float", "bits", "accumulator"):
                if (i, form) not in wanted:
                    continue
                make = functools.partial(self.recipe, form)
                recipe = None if i in self.refused else self.try_to(make, i)
                if recipe is None:  # its sources are examined nevertheless
                    recipe = [("", {}, [(source, "float") for source in self.symbolic[i]])]
                recipes[i, form] = recipe
                for _, _, sources in recipe:
                    # An earlier call, or a form of this call that is handled next.
                    wanted.update(source for source in sources if source is not None)
        return recipes

    def operations(self, recipes):
        """For each call that depends on x: (layer, names of its steps); see `Examination`."""
        rows = []
        for i in sorted(self.kinds.keys() - {-1}):
            forms = (recipes.get((i, form), ()) for form in ("accumulator", "bits", "float"))
            names = tuple(name for recipe in forms for name, _, _ in recipe)
            merged = ("in the thresholds of a later sign",) * (i in self.merged)
            rows.append((i, self.name(i), names or merged))
        return rows

    def program(self, input_shape, recipes):
        """Emit a step for every requested form, in order."""
        steps, made = [], {(-1, "float"): -1}
        for i in range(len(self.calls)):
            for form in ("accumulator", "bits", "float"):
                for operation, details, sources in recipes.get((i, form), ()):
                    # None refers to the previous step of the same recipe.
                    inputs = [len(steps) - 1 if s is None else made[s] for s in sources]
                    steps.append(Step(self.name(i), operation, tuple(inputs), **details))
                    made[i, form] = len(steps) - 1
        packed = PackedModel(input_shape, steps, len(self.calls))
        try:
            expect_results(steps, packed._values, packed.calls)
        except ValueError as error:
            raise CompileError.of(str(error)) from None
        return packed

    def recipe(self, form, i):
        """The steps of a form of call i; the last one yields the result of the call."""
        image = self.image_of(i) if form == "bits" else None
        layout, shape = ("flattened bits", image) if image else (form, self.shape(i))
        return _giving(
            getattr(self, f"recipe_{form}")(i), {"call": i, "layout": layout, "shape": shape}
        )

    def recipe_accumulator(self, i):
        call, weight, source = self.calls[i], self.constant(i, 1), self.symbolic[i][0]
        kind = "xnor" if np.all(weight) else "ternary"
        if type(call.function) in _LINEAR:
            settings = {"count": weight.shape[1]}
            if image := self.image_of(source):
                pixels = weight.reshape(-1, *image).transpose(0, 2, 3, 1)
                weight = pixels.reshape(len(weight), -1, image[0])
            return [
                (f"{kind}_linear", {**_planes(weight), "settings": settings}, [(source, "bits")])
            ]
        settings = call.options["geometry"].options | {"channels": int(call.inputs[0].shape[1])}
        settings["padding_mode"] = call.options.get("padding_mode", "zeros")
        if padded := self.padded_source(i):
            source, settings["padding"] = padded
            settings["padding_mode"] = "ones"
        details = {**_planes(weight.transpose(0, 2, 3, 1)), "settings": settings}
        return [(f"{kind}_conv2d", details, [(source, "bits")])]

    def recipe_bits(self, i):
        call, source = self.calls[i], self.symbolic[i][0]
        if type(call.function) is OnesOfOneSample:
            return [("ones", {"settings": {"shape": self.shape(i)}}, [(source, "bits")])]
        if type(call.function) is Quantize:
            if recipe := self.thresholds(i):
                return recipe
            self.expect_sign(i)
            return [("pack", {}, [(source, "float")])]
        if self.image_of(i):
            return [("flatten_bits", {}, [(source, "bits")])]
        if self.has_bits(i):
            minimum = np.zeros(self.shape(i)[0], bool)
            return [_pool_bits(call.options["windows"], minimum, (source, "bits"))]
        floats = {"call": i, "layout": "float", "shape": self.shape(i)}
        return [*_giving(self.float_operation(i), floats), ("pack", {}, [None])]

    def recipe_float(self, i):
        if self.kinds[i] == "sums":
            return [("to_float", {}, [(i, "accumulator")])]
        if type(self.calls[i].function) not in (Quantize, OnesOfOneSample):
            return self.float_operation(i)
        if image := self.image_of(i):
            return [("unpack_flattened", {"settings": {"image": image}}, [(i, "bits")])]
        return [("unpack", {"settings": {"count": self.shape(i)[0]}}, [(i, "bits")])]

    def float_operation(self, i):
        """The recipe of call i on floats."""
        call = self.calls[i]
        operation = OF_FUNCTION.get(type(call.function))
        batches = {_TRACE_BATCH, 1 if operation and operation.takes_one_for_all else _TRACE_BATCH}
        if call.output.ndim == 0 or call.output.shape[0] not in batches:
            raise self.refuse(i, OWN_SAMPLES)
        if type(call.function) in _REARRANGING:
            return self.rearranged(i)
        sources = [(source, "float") for source in self.symbolic[i]]
        traced = TracedCall(
            call.inputs, call.options, call.output, functools.partial(self.constant, i),
            len(sources),
        )  # fmt: skip
        try:
            constants = operation.of_call(traced) if operation else None
        except NoPackedFormError as error:
            raise self.refuse(i, str(error)) from None
        if constants is None:
            raise self.refuse(i, instead_of(call, len(sources)))
        arrays, settings = constants
        if any(value is None for value in arrays.values()):
            raise self.refuse(i, "an operand that must be constant depends on the input")
        arrays = {name: np.array(value) for name, value in arrays.items()}
        before = []
        if call.options.get("padding_mode") == "ones":
            before = [self.pad_with_ones(i, sources)]
            settings["padding"], sources = (0, 0), [None]
        details = {"arrays": arrays, "settings": settings, "bits": operation.bits(arrays)}
        return [*before, (operation.name, details, sources)]

    def pad_with_ones(self, i, sources):
        """The step that pads the float input of convolution i with ones."""
        call = self.calls[i]
        widths = [(0, 0), (0, 0), *((p, p) for p in call.options["geometry"].padding)]
        channels, *size = call.inputs[0].shape[1:]
        shape = (channels, *(n + 2 * p for n, (p, _) in zip(size, widths[2:], strict=True)))
        settings = {"widths": tuple(widths), "value": 1.0}
        return "pad", {"call": i, "shape": shape, "settings": settings}, sources

    def rearranged(self, i):
        """The recipe of a call that only moves values: it takes channels, or single values."""
        call = self.calls[i]
        before, after = call.inputs[0].shape, self.shape(i)
        size = int(np.prod(before[1:]))
        places = np.arange(_TRACE_BATCH * size).reshape(_TRACE_BATCH, *before[1:])
        if before[0] != _TRACE_BATCH:
            raise self.refuse(i, OWN_SAMPLES)
        first, second = (p.ravel() for p in type(call.function)().forward(places, **call.options))
        if np.any(first >= size) or not np.array_equal(second, first + size):
            raise self.refuse(i, OWN_SAMPLES)
        if not first.size:
            raise self.refuse(i, "it selects nothing of a sample")
        if not after:
            raise self.refuse(i, "it selects a single number of a sample; keep its axis: x[:, 0:1]")
        source, pixels = (self.symbolic[i][0], "float"), int(np.prod(before[2:]))
        channels = first.reshape(after[0], -1)[:, 0] // pixels
        if (
            len(before) == 4
            and after[1:] == before[2:]
            and np.array_equal(
                first.reshape(after[0], -1), channels[:, None] * pixels + np.arange(pixels)
            )
        ):
            return [("take_channels", {"arrays": TakeChannels.taking(channels)}, [source])]
        return [
            ("reshape", {"settings": {"shape": (size, 1, 1)}}, [source]),
            ("take_channels", {"arrays": TakeChannels.taking(first)}, [None]),
            ("reshape", {"settings": {"shape": after}}, [None]),
        ]


def _giving(recipe, result):
    """Declare the last step of a recipe to yield `result`; mark the steps before it as internal."""
    *before, (operation, details, sources) = recipe
    internal = [(name, {"layout": "internal", **rest}, read) for name, rest, read in before]
    return [*internal, (operation, details | result, sources)]


def _pool_bits(windows, minimum, source):
    """The step of a max-pool on bits; channels set in `minimum`, (C,) bool, take the minimum."""
    settings = {"channels": windows.shape[1], **pooling_settings(windows)}
    return "max_pool_bits", {"arrays": {"minimum": minimum}, "settings": settings}, [source]


def _are_small_integers(weight):
    """Whether all weights are -1 or 1, or -1, 0 or 1."""
    return all(np.all((np.abs(row) == 1) | (row == 0)) for row in weight)


def _planes(rows):
    """Pack weights of ±1 as one array of bits, ternary ones as two: their signs, and a mask.

    rows : (O, ..., K), packed along the last axis; the mask is 1 where a weight is not 0
    """

    def packed(condition):
        # Filter by filter, to avoid a second copy of a large layer in memory.
        return np.concatenate([bits.pack(np.where(condition(row), 1, -1)[None]) for row in rows])

    arrays = {"weight": packed(lambda row: row > 0)}
    if not np.all(rows):
        arrays["mask"] = packed(lambda row: row != 0)
    return {"arrays": arrays, "bits": dict.fromkeys(arrays, rows.shape[-1])}
