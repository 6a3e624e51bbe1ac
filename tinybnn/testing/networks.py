"""Random networks of any layers, with forward methods as people write them.

A network is a list of lines of a ``forward`` method with the layers that they call. Its source is
a runnable script, and the Module is built from that source, so a failure in a test is reproduced by
the script.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tinybnn.autograd import Tensor, no_grad
from tinybnn.models import blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tinybnn.nn import Module
    from tinybnn.typing import Shape

__all__ = ["RandomNetwork", "random_network"]

_HEADER = '''"""A random network; as a script it exits with code 1 if its packed model differs."""

import numpy as np

from tinybnn import functional as F
from tinybnn import models, nn
from tinybnn.models import blocks
from tinybnn.testing import check_packed, randomize, train_briefly


class Network(nn.Module):
    def __init__(self, rng):
'''

_SIGNS = ("approx_sign", "swish_sign", "ede_sign")
_MAX_ELEMENTS = 6000  # of a sample's values, so that a network takes milliseconds


@dataclass(frozen=True)
class Line:
    """One line of a forward method.

    Attributes
    ----------
    code : str
        With ``{out}`` for its result, ``{a}`` and ``{b}`` for its operands, ``{layer}`` for its
        layer.
    reads : tuple of int
        Line numbers of the operands; -1 is the input.
    layer : str
        The expression that creates its layer; empty for none.
    shares : int or None
        The line whose layer it calls again.
    """

    code: str
    reads: tuple[int, ...]
    layer: str = ""
    shares: int | None = None


@dataclass(frozen=True)
class RandomNetwork:
    """A network as data.

    Attributes
    ----------
    seed : int
        Seed of weights, statistics and inputs.
    input_shape : tuple of int
        Shape of one sample.
    lines : tuple of Line
        The last one computes the output.
    steps : int
        Number of training steps before it is compiled.
    extreme : bool
        Whether statistics and inputs contain NaN and infinities.
    """

    seed: int
    input_shape: Shape
    lines: tuple[Line, ...]
    steps: int = 0
    extreme: bool = False

    def source(self) -> str:
        """Return the text of a script that builds the network and checks it."""
        layers, forward = [], []
        for i, line in enumerate(self.lines):
            number = i if line.shares is None else line.shares
            if line.layer:
                layers.append(f"        self.layer_{i} = {line.layer}")
            names = dict(zip("ab", map(_value, line.reads), strict=False))
            code = line.code.format(out=_value(i), layer=f"self.layer_{number}", **names)
            forward += [f"        {one}" for one in code.split("\n")]
        return (
            _HEADER
            + "\n".join(layers or ["        pass"])
            + "\n\n    def forward(self, x):\n"
            + "\n".join(forward)
            + f"\n        return {_value(len(self.lines) - 1)}\n\n\n"
            + f"SHAPE = {self.input_shape}\n\n\n"
            + "def network():\n"
            + f"    rng = np.random.default_rng({self.seed})\n"
            + f"    model = randomize(Network(rng), rng, extreme={self.extreme})\n"
            + f"    return train_briefly(model, SHAPE, steps={self.steps}, rng=rng)\n\n\n"
            + 'if __name__ == "__main__":\n'
            + f"    rng = np.random.default_rng({self.seed})\n"
            + f"    check_packed(network(), SHAPE, rng, extreme={self.extreme})\n"
            + '    print("all equal")\n'
        )

    def build(self) -> Module:
        """Build the Module by running the script.

        Returns
        -------
        Module
            In training mode if there are training steps.
        """
        names: dict[str, Any] = {"__name__": "random_network"}
        exec(compile(self.source(), f"<random network {self.seed}>", "exec"), names)
        return names["network"]()

    def generator(self) -> np.random.Generator:
        """Return the numpy.random.Generator of its inputs."""
        return np.random.default_rng(self.seed)

    def smaller(self) -> Iterator[RandomNetwork]:
        """Yield networks with something removed; some of them cannot be built."""
        if self.steps:
            yield replace(self, steps=0)
        if self.extreme:
            yield replace(self, extreme=False)
        for end in range(1, len(self.lines)):
            yield replace(self, lines=self.lines[:end])
        for i in reversed(range(len(self.lines))):
            if self._is_removable(i):
                yield self._without(i)
        for axis in (1, 2):
            if axis < len(self.input_shape) and self.input_shape[axis] > 1:
                shape = list(self.input_shape)
                shape[axis] -= 1
                yield replace(self, input_shape=tuple(shape))
        for number in sorted(self._numbers(), reverse=True):
            for fewer in {1, 2, number // 2, number - 1}:
                if 0 < fewer < number:
                    yield self._with(number, fewer)

    def _numbers(self):
        """The integers in the layers, mostly numbers of channels."""
        layers = " ".join(line.layer for line in self.lines)
        return {self.input_shape[0], *map(int, re.findall(r"(?<![\w.])\d+(?![\w.])", layers))}

    def _with(self, number, fewer):
        """Replace every occurrence of a number, so that layers still fit together."""
        token = re.compile(rf"(?<![\w.]){number}(?![\w.])")
        lines = (replace(line, layer=token.sub(str(fewer), line.layer)) for line in self.lines)
        first, *pixels = self.input_shape
        shape = (fewer if first == number else first, *pixels)
        return replace(self, input_shape=shape, lines=tuple(lines))

    def _is_removable(self, i):
        shared = any(line.shares == i for line in self.lines)
        return len(self.lines) > 1 and not shared and i < len(self.lines) - 1

    def _without(self, i):
        """Remove line i; its readers read its first operand instead."""

        def moved(number):
            number = self.lines[i].reads[0] if number == i else number
            return number - (number > i)

        lines = [
            replace(
                line,
                reads=tuple(map(moved, line.reads)),
                shares=None if line.shares is None else line.shares - (line.shares > i),
            )
            for line in self.lines[:i] + self.lines[i + 1 :]
        ]
        return replace(self, lines=tuple(lines))


def _value(number):
    return "x" if number < 0 else f"v{number}"


def random_network(seed: int) -> RandomNetwork:
    """Generate a network that is determined by the seed.

    Parameters
    ----------
    seed : int

    Returns
    -------
    RandomNetwork
    """
    return _Writer(seed).network()


class _Writer:
    """Writes one line after the other, and runs each to determine its shape."""

    def __init__(self, seed) -> None:
        self.seed, self.rng = seed, np.random.default_rng([seed, 0])
        self.lines = []
        self.input_shape = self.first_shape()
        self.shapes = {-1: self.input_shape}
        self.alive = [-1]  # the values that may still be read
        self.memory = {-1: {-1}}  # for each value, those that may share its memory
        self.can_train = True

    def network(self):
        for _ in range(int(self.rng.integers(2, 10))):
            if self.chance(0.15):
                self.usual_lines()
            else:
                self.add(self.any_line())
        if len(self.shapes[self.last]) == 3 and self.chance(0.6):
            self.add(self.layer("nn.Flatten()"))
            self.add(self.dense())
        if not self.lines:
            self.add(Line("{out} = {a} * 2.0", (-1,)))
        return RandomNetwork(
            self.seed, self.input_shape, tuple(self.lines),
            steps=int(self.pick(0, 0, 0, 2)) * self.can_train, extreme=self.chance(0.15),
        )  # fmt: skip

    # ---------------------------------------------------------------------------------- choices

    def chance(self, probability):
        return bool(self.rng.random() < probability)

    def pick(self, *options):
        return options[self.rng.integers(len(options))]

    def first_shape(self):
        if self.chance(0.35):
            return (int(self.pick(1, 2, 9, 63, 64, 65, 130)),)
        if self.chance(0.1):  # a size that whole models accept
            return (int(self.pick(1, 3)), 16, 16)
        side = lambda: int(self.pick(1, 2, 3, 4, 5, 7, 8))  # noqa: E731
        return int(self.pick(1, 1, 2, 3, 3, 8, 63, 64, 65, 129)), side(), side()

    @property
    def last(self):
        return self.alive[-1]

    def like(self, a):
        """The values of a's shape that may be read."""
        return [v for v in self.alive if self.shapes[v] == self.shapes[a]]

    def read(self):
        """Choose a value to read, mostly the last one."""
        return self.last if self.chance(0.75) else self.pick(*self.alive)

    def layer(self, code, a=None, line="{out} = {layer}({a})"):
        return Line(line, (self.last if a is None else a,), code)

    # ------------------------------------------------------------------------------------ lines

    def any_line(self):
        a = self.read()
        is_image = len(self.shapes[a]) == 3
        kinds = [self.activation, self.activation, self.arithmetic, self.two_values, self.in_place]
        kinds += [self.norm, self.norm, self.rearrangement, self.constant, self.unusual]
        images = [self.convolution] * 5 + [self.pool] * 2 + [self.block]
        kinds += images if is_image else [self.dense] * 5
        return self.pick(*kinds)(a)

    def usual_lines(self):
        """Add a binary layer, and the usual layers between two of them in any order."""
        is_image = len(self.shapes[self.last]) == 3
        self.add((self.convolution if is_image else self.dense)(self.last))
        kinds = [self.norm, self.activation, *[self.pool] * is_image]
        for i in self.rng.permutation(len(kinds)):
            if kinds[i] == self.norm or self.chance(0.5):
                self.add(kinds[i](self.last))

    def binary_options(self):
        quantizer = self.pick(
            "ste_sign", "ste_sign", "ste_sign", *_SIGNS, "magnitude_aware_sign", "ste_tern",
            "bitnet_ternary", "dorefa_weight", None,
        )  # fmt: skip
        return (
            f"bias={self.chance(0.3)}, scale={self.pick(None, None, 'mean', 'learned')!r}, "
            f"input_quantizer={self.pick('ste_sign', 'ste_sign', *_SIGNS, None)!r}, "
            f"weight_quantizer={quantizer!r}, rng=rng"
        )

    def dense(self, a=None):
        a = self.last if a is None else a
        features, outputs = self.shapes[a][0], int(self.pick(1, 3, 10, 64, 65, 70))
        if self.chance(0.3):
            return self.layer(f"nn.Linear({features}, {outputs}, rng=rng)", a)
        if self.chance(0.1):
            hidden = self.pick((5,), (70, 3))
            head = f"models.BinaryMLP({features}, {hidden}, {outputs}, rng=rng)"
            return self.layer(
                self.pick(f"models.mlp({features}, {hidden}, {outputs}, rng=rng)", head), a
            )
        return self.layer(f"nn.BinaryLinear({features}, {outputs}, {self.binary_options()})", a)

    def convolution(self, a):
        channels = self.shapes[a][0]
        outputs = int(self.pick(1, 3, 16, 65))
        kernel, padding = (self.pick(1, 2, 3), self.pick(1, 3)), (self.pick(0, 1, 1, 2, 4), 1)
        geometry = (
            f"{kernel}, stride={self.pick(1, 1, 1, 2, (2, 1), 3)}, "
            f"padding={self.pick(0, 1, 1, padding)}, dilation={self.pick(1, 1, 1, 2)}"
        )
        divisor = next((g for g in (5, 3, 2) if channels % g == 0), 1)
        groups = self.pick(1, 1, 1, 1, divisor, channels)
        sizes = f"{channels}, {groups * self.pick(1, 2) if groups > 1 else outputs}"
        kind = self.pick(
            "real", "binary", "binary", "binary", "depthwise", "adabin", "dual", "dual adabin",
            "transposed",
        )  # fmt: skip
        mode = f"padding_mode={self.pick('zeros', 'zeros', 'ones')!r}"
        return self.layer(
            {
                "real": f"nn.Conv2d({sizes}, {geometry}, groups={groups}, rng=rng)",
                "binary": f"nn.BinaryConv2d({sizes}, {geometry}, groups={groups}, {mode}, "
                f"{self.binary_options()})",
                "depthwise": f"nn.BinaryDepthwiseConv2d({channels}, {geometry}, {mode}, rng=rng)",
                "adabin": f"nn.AdaBinConv2d({sizes}, {geometry}, groups={groups}, rng=rng)",
                "dual": f"nn.DualBinaryConv2d({sizes}, {geometry}, groups={groups}, {mode}, "
                "rng=rng)",
                "dual adabin": f"nn.DualAdaBinConv2d({sizes}, {geometry}, groups={groups}, "
                "rng=rng)",
                "transposed": f"nn.ConvTranspose2d({channels}, {groups * self.pick(1, 4)}, "
                f"{kernel}, stride={self.pick(1, 2, 3)}, padding={self.pick(0, 0, 1)}, "
                f"output_padding={self.pick(0, 0, (1, 0))}, dilation={self.pick(1, 1, 2)}, "
                f"groups={groups}, rng=rng)",
            }[kind],
            a,
        )

    def norm(self, a):
        name = "BatchNorm2d" if len(self.shapes[a]) == 3 else "BatchNorm1d"
        options = self.pick("", "", "", ", eps=0.1", ", affine=False")
        return self.layer(f"nn.{name}({self.shapes[a][0]}{options})", a)

    def pool(self, a):
        kernel = self.pick(2, 2, 3, 5, (1, 2), (3, 2))
        padding = {2: 1, 3: 1, 5: self.pick(1, 2), (1, 2): (0, 1), (3, 2): (1, 0)}[kernel]
        options = self.pick(
            "", ", stride=1", ", stride=(1, 3)", f", stride={self.pick(1, 2)}, padding={padding}"
        )
        kinds = (f"nn.MaxPool2d({kernel}{options})",) * 3 + (f"nn.AvgPool2d({kernel}{options})",)
        whole = f"nn.AdaptiveAvgPool2d({self.pick(1, 1, self.shapes[a][1:])})"
        return self.layer(self.pick(*kinds, whole), a)

    def block(self, a):
        """A building block of a model, or a whole model."""
        channels, method = self.shapes[a][0], self.pick(*blocks.METHODS)
        maker = f"blocks.make_method('block', {method!r})"
        stride, more = self.pick(1, 1, 2), channels * self.pick(1, 2)
        if self.chance(0.2):
            return self.whole_model(a)
        return self.layer(
            self.pick(
                f"{maker}.pointwise({channels}, {more}, rng=rng)",
                f"{maker}.spatial({channels}, 3, {stride}, rng=rng)",
                f"{maker}.conv({channels}, {more}, 3, {stride}, rng=rng)",
            ),
            a,
        )

    def whole_model(self, a):
        shape, method = self.shapes[a], self.pick(*blocks.METHODS)
        regular = self.pick("float", "birealnet", "reactnet", "adabin")
        small = f"input_size={shape[1]}, num_classes=3, in_channels={shape[0]}, rng=rng"
        models = [
            f"models.cnn({shape}, 5, (3, 8, 65), 9, padding=1, rng=rng)",
            f"models.BinaryCNN({shape}, 3, features=20, hidden=9, rng=rng)",
            f"models.vgg_small({shape}, 3, width=0.05, rng=rng)",
            f"models.resnet20(0.2, method={regular!r}, {small})",
            f"models.mobilenet_v1(0.1, method={method!r}, {small})",
            f"models.mobilenet_v3_small(0.2, method={method!r}, {small})",
            f"models.shufflenet_v1(0.1, method={method!r}, {small})",
        ]
        return self.layer(self.pick(*models), a)

    def constant(self, a):
        """An operation with a parameter of the network, per channel or per element."""
        channels, *pixels = self.shapes[a]
        shape = self.pick((channels, *pixels), (channels, *(1 for _ in pixels)), (1,))
        layer = f"nn.Parameter(rng.integers(-3, 4, {shape}).astype(np.float32) / 2)"
        line = self.pick(
            "{out} = {a} + {layer}", "{out} = {layer} - {a}", "{out} = {a} * {layer}",
            "{out} = {a} / {layer}", "{out} = F.maximum({layer}, {a})",
            "{out} = F.where({a} > {layer}, {a}, {layer})",
        )  # fmt: skip
        return self.layer(layer, a, line)

    def activation(self, a):
        channels = self.shapes[a][0]
        names = [
            "nn.ReLU()", "nn.Hardtanh()", "nn.Hardtanh(-0.5, 3.0)", "nn.Softplus()", "nn.Sigmoid()",
            "nn.Tanh()", "nn.Hardswish()", "nn.Hardsigmoid()", "nn.Quantize()", "nn.Dropout(0.3)",
            "nn.PReLU()", "nn.Identity()", f"nn.LeakyReLU({self.pick(0.1, 0.0, 2.0, -1.0)})",
            f"nn.Quantize({self.pick(*_SIGNS)!r})", f"nn.Softplus({self.pick(0.5, 20.0)})",
        ]  # fmt: skip
        names += [f"nn.{name}({channels})" for name in ("PReLU", "RPReLU", "RSign", "Maxout")]
        return self.layer(self.pick(*names), a)

    def rearrangement(self, a):
        channels, *pixels = self.shapes[a]
        if not pixels:
            pad = f"{{out}} = F.pad({{a}}, (1, 2), {self.pick(1.0, 0.0, -1.0)})"
            images = f"{{out}} = {{a}}.reshape(len({{a}}), {channels}, 1, 1)"
            return self.pick(
                Line("{out} = F.cat([{a}, {b}], 1)", (a, self.vector())),
                Line("{out} = F.cat([{a}, {b}], 1)", (a, self.vector())),
                Line(pad, (a,)), Line(images, (a,)),
                Line(f"{{out}} = {{a}}[:, {self.pick('::-1', '1:', '[0, -1, 0]', ':1')}]", (a,)),
            )  # fmt: skip
        padding = self.pick((1, 0), (0, 2, 1, 1), (1, 1, 1, 1), (0, 0, 0, 0, 1, 2), (0, 0, 9, 9))
        value = self.pick(1.0, 1.0, 0.0, -0.0, -1.0, 2.5)
        groups = next(g for g in (3, 2, 1) if channels % g == 0)
        keep = self.pick("", ", keepdim=True")
        return self.pick(
            Line(f"{{out}} = F.pad({{a}}, {padding}, {value})", (a,)),
            self.layer(f"nn.ChannelShuffle({groups})", a),
            self.layer(f"nn.ReplicateChannels({channels}, {channels + int(self.pick(1, 5))})", a),
            self.layer(f"nn.SqueezeExcite({channels}, {int(self.pick(1, 4))}, rng=rng)", a),
            self.layer("nn.Flatten()", a),
            Line(f"{{out}} = {{a}}.reshape(len({{a}}), {pixels[0]}, {channels}, -1)", (a,)),
            Line(f"{{out}} = {{a}}[{self.pick(':, ::-1', ':, :1', ':, :, 1:', '..., ::2')}]", (a,)),
            Line(f"{{out}} = {{a}}.{self.pick('transpose(2, 3)', 'permute(0, 2, 3, 1)')}", (a,)),
            Line(f"{{out}} = {{a}}.{self.pick('mean', 'sum', 'var')}((2, 3){keep})", (a,)),
        )

    def vector(self):
        return self.pick(*(v for v in self.alive if len(self.shapes[v]) == 1))

    def arithmetic(self, a):
        c = self.pick(0.5, -0.4, 2.0, -1.0, 3.0, 0.0, -0.0, 1e-30)
        return Line(
            self.pick(
                f"{{out}} = {{a}} + {c}", f"{{out}} = {c} - {{a}}", f"{{out}} = {{a}} * {c}",
                f"{{out}} = {{a}} / {c or 7.0}", "{out} = -{a}", "{out} = {a} - {a}",
                f"{{out}} = F.clamp({{a}}, {c - 1.0}, {c})", f"{{out}} = F.clamp({{a}}, {c}, None)",
                f"{{out}} = F.maximum({{a}}, {c})", f"{{out}} = F.minimum({{a}}, {c})",
                f"{{out}} = F.where({{a}} > {c}, {{a}}, {c})",
                f"{{out}} = {{a}} * ({{a}} >= {c})", "{out} = 1.0 / {a}", "{out} = F.abs({a})",
                "{out} = F.sqrt(F.abs({a}))", "{out} = F.exp(F.clamp({a}, -5.0, 5.0))",
                "{out} = {a} * {a}", "{out} = F.log(F.abs({a}))", f"{{out}} = F.relu({{a}} - {c})",
                f"{{out}} = ({{a}} < {c}) * {{a}}",
            ),
            (a,),
        )  # fmt: skip

    def two_values(self, a):
        shared = [
            i
            for i, line in enumerate(self.lines)
            if line.layer
            and "{layer}(" in line.code
            and self.shapes[line.reads[0]] == self.shapes[a]
        ]
        if shared and self.chance(0.4):
            return Line("{out} = {layer}({a})", (a,), shares=self.pick(*shared))
        lines = [
            "{out} = {a} + {b}", "{out} = {a} - {b}", "{out} = {a} * {b}", "{out} = {b} + {a}",
            "{out} = F.maximum({a}, {b})", "{out} = F.cat([{a}, {b}], 1)",
            "{out} = F.where({a} < {b}, {a}, {b})", "{out} = {b} + ({a} - {b}).detach()",
            "{out} = {a} / (F.abs({b}) + 0.5)",
        ]  # fmt: skip
        return Line(self.pick(*lines), (a, self.pick(*self.like(a))))

    def in_place(self, a):
        """An in-place operator on a; afterwards neither a nor its views may be read."""
        others = [v for v in self.like(a) if v not in self.memory[a]]
        symbol = self.pick("+", "-", "*", "/")
        if others and self.chance(0.7):
            return Line(f"{{out}} = {{a}}\n{{out}} {symbol}= {{b}}", (a, self.pick(*others)))
        operand = self.pick("0.4", "-2.0", "({out} * 0.5)")
        return Line(f"{{out}} = {{a}}\n{{out}} {symbol}= {operand}", (a,))

    def unusual(self, a):
        """Occasionally an operation without a packed form."""
        if not self.chance(0.15):
            return self.activation(a)
        features = self.shapes[a][0]
        quantizer = self.pick("ste_tern", "ste_heaviside", "dorefa_activation")
        if self.chance(0.2):
            return self.layer(f"nn.Quantize({quantizer!r})", a)
        code = self.pick(
            "{a} ** 2.0", "F.softmax({a}, 1)", "{a} - {a}.mean(1, keepdim=True)",
            "{a}.amax(1, keepdim=True)", f"{{a}}.sum(1, keepdim=True) * {float(features)}",
            "F.stack([{a}, {a}], 1).reshape(len({a}), *{a}.shape[1:-1], -1)",
        )  # fmt: skip
        return Line(f"{{out}} = {code}", (a,))

    # ---------------------------------------------------------------------------------- running

    def add(self, line):
        """Append a line, unless it fails or its result is too large."""
        trial = RandomNetwork(self.seed, self.input_shape, (*self.lines, line))
        x = np.ones((2, *self.input_shape), np.float32)
        try:
            with no_grad(), np.errstate(all="ignore"):
                shape = trial.build().eval()(Tensor(x)).shape[1:]
        except ValueError:  # a window that does not fit
            return
        if not shape or not 0 < np.prod(shape) <= _MAX_ELEMENTS:
            return
        self.lines.append(line)
        number, a = len(self.lines) - 1, line.reads[0]
        self.shapes[number], self.memory[number] = shape, {number}
        if "\n" in line.code:  # in place
            # Without a graph it overwrites values that an earlier line's backward pass may need.
            self.can_train &= not any(self.memory[a] & {*one.reads} for one in self.lines[:-1])
            self.alive = [v for v in self.alive if v not in self.memory[a]]
        elif "{layer}({a})" in line.code or "reshape" in line.code:  # maybe a, or a view of it
            self.memory[number] = self.memory[a]
            self.memory[a].add(number)
        self.alive.append(number)
