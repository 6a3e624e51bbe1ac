"""Architectures, drawn from a forward pass of the modules, as boxes and arrows."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tinybnn.autograd import Tensor, no_grad, trace
from tinybnn.models import BinaryVAE
from tinybnn.plots.boxes import Box, connect, draw, laid_out
from tinybnn.plots.canvas import MINUS, PALETTE, PLUS, figure, picture, tint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tinybnn.nn import Module
    from tinybnn.plots.canvas import Place

_TERNARY = PALETTE[2]
_LAYERS = {  # fill, edge, legend text
    "binary": (tint(MINUS, 0.3), MINUS, "sign products"),
    "ternary": (tint(_TERNARY, 0.55), _TERNARY, "ternary or 1.58-bit products"),
    "real": (tint(PLUS, 0.5), PLUS, "real products"),
    "sign": ("white", MINUS, "sign"),
    "other": ("0.95", "0.6", "no products"),
    "value": ("white", "black", ""),
}
_PATHS = {  # colour, line style, width, legend text
    "binary": (MINUS, "-", 2.4, "signs"),
    "ternary": (_TERNARY, "--", 1.8, "-1, 0, +1"),
    "real": ("0.3", "-", 0.9, "real values"),
}
_SYMBOLS = {"Add": "+", "Sub": "\N{MINUS SIGN}", "Mul": "×", "Div": "÷"}
_MOST_BOXES = 40  # of a picture with the default depth
_ROW = 0.78  # inches


@picture(size=None)
def architecture(
    model: Module,
    input_shape: Sequence[int],
    depth: int | None = None,
    fold: bool = False,
    *,
    ax: Place = None,
) -> Axes:
    """Draw a network: a box for each layer, arrows with the shapes between them.

    The drawing follows one forward pass in evaluation mode, with its residuals and branches. Blue
    boxes multiply signs, green ones are ternary or sum binary convolutions (1.58 bits), orange ones
    are real; thick blue arrows carry signs.

    Parameters
    ----------
    model : Module
    input_shape : sequence of int
        Shape of one sample, without the batch.
    depth : int, optional
        Number of module levels to open: 1 shows the children of the model. Default: the largest
        depth with at most 40 boxes.
    fold : bool
        Write batch norms and activations into the box of the layer before them.

    Returns
    -------
    matplotlib axes

    Raises
    ------
    ValueError
        If depth is below 1, or the model does not accept this shape.
    """
    if depth is not None and depth < 1:
        raise ValueError(f"architecture: depth must be at least 1, got {depth!r}")
    run = _Run({"": model}, input_shape, lambda x: {"output": model(x)})
    return draw(laid_out(run.boxes(depth, fold), True), ax, _LAYERS, _PATHS, _ROW)


def architectures(
    models: Mapping[str, Module],
    input_shape: Sequence[int],
    depth: int | None = None,
    fold: bool = False,
    *,
    ax: Sequence[Axes] | None = None,
) -> Figure:
    """Draw several architectures side by side, such as a block and its variants.

    Parameters
    ----------
    models : dict
        Title -> Module.
    input_shape, depth, fold
        As in `architecture`.
    ax : sequence of matplotlib axes, optional
        One for each model.

    Returns
    -------
    matplotlib.figure.Figure
    """
    if not models:
        raise ValueError("architectures: expects a title and a Module for each picture, got none")
    sides = _sides(models, input_shape, depth, fold) if ax is None else np.ravel(ax)
    if len(sides) != len(models):
        raise ValueError(
            f"architectures: ax must be {len(models)} axes, one for each model, got {len(sides)}"
        )
    for ax, title in zip(sides, models, strict=True):
        ax.set_title(title, fontsize="medium")
        ax.axis("off")
        ax.set_anchor("N")
    sides[0].figure.draw_without_rendering()  # fixes the size of the axes
    for ax, model in zip(sides, models.values(), strict=True):
        architecture(model, input_shape, depth, fold, ax=ax)
    return sides[0].figure


def _sides(models, input_shape, depth, fold):
    """Make the axes of a new figure, each of the size of its architecture alone."""
    alone = [architecture(model, input_shape, depth, fold).figure for model in models.values()]
    widths, heights = np.transpose([drawn.get_size_inches() for drawn in alone])
    together = figure(figsize=(widths.sum() + 0.2, heights.max() + 0.7))
    together.get_layout_engine().set(w_pad=0, wspace=0)
    return together.subplots(1, len(models), width_ratios=widths, squeeze=False)[0]


@picture(size=None)
def hybnn(vae: BinaryVAE, head: Module, *, ax: Place = None) -> Axes:
    """Draw HyBNN from its modules: encoder, binary latent space, decoder, and head on the bits.

    The parts of Fig. 2 of the paper: the autoencoder is trained without labels; then the decoder is
    dropped, the encoder is frozen, and a binary network is trained on the codes.

    Parameters
    ----------
    vae : models.BinaryVAE
    head : Module
        (N, bits) -> (N, classes), such as a `models.BinaryMLP`.

    Returns
    -------
    matplotlib axes
    """
    if not isinstance(vae, BinaryVAE):
        raise ValueError(f"hybnn: vae must be a models.BinaryVAE, got {type(vae).__name__}")
    parts = {"encoder": vae.encoder, "decoder": vae.decoder, "head": head}

    def forward(x):
        codes = vae.encoder(x)
        return {"reconstruction": vae.decoder(codes), "class scores": head(codes)}

    boxes = _Run(parts, vae.image_shape, forward).boxes(None, True)
    for box in boxes:
        if box.path == "encoder.sign":
            box.lines, box.group = ("binary latent space", f"{vae.latent_bits} signs"), ""
            box.height += 0.14
        else:
            box.group = _TITLES.get(box.path.split(".")[0], "")
    return draw(laid_out(boxes, True), ax, _LAYERS, _PATHS, _ROW)


_TITLES = {
    "encoder": "encoder, frozen after training without labels",
    "decoder": "decoder, dropped after that",
    "head": "binary network of the task",
}


class _Run:
    """A forward pass, and the boxes of its layers.

    Parameters
    ----------
    roots : dict
        Prefix of names -> Module.
    input_shape : sequence of int
    forward : callable
        Maps the input to a dict of outputs by name.
    """

    def __init__(self, roots, input_shape, forward):
        shape = tuple(int(n) for n in input_shape)
        self.x = Tensor(np.random.default_rng(0).standard_normal((1, *shape), np.float32))
        with contextlib.ExitStack() as modes, no_grad(), np.errstate(all="ignore"):
            for root in roots.values():
                modes.enter_context(root.in_mode(training=False))
            self.tape = modes.enter_context(trace())
            self.outputs = forward(self.x)
        self.paths = {
            id(module): path for prefix, root in roots.items()
            for path, module in root.named_modules(prefix)
        }  # fmt: skip
        self.roots = {id(root) for root in roots.values()}

    def boxes(self, depth, fold):
        """Make the boxes, the outputs first, each before its sources."""
        deepest = 1 + max((path.count(".") for path in self.paths.values()), default=0)
        for level in range(deepest if depth is None else depth, 0, -1):
            boxes = self._boxes(level)
            boxes = _folded(boxes) if fold else boxes
            if depth is not None or len(boxes) <= _MOST_BOXES:
                break
        return boxes[::-1]

    def _boxes(self, depth):
        start = Box("value", ("input",), _carried(self.x))
        start.path = ""
        made, order = {id(self.x): start}, [start]
        open_boxes, ends = {}, {}  # by running module; modules by their final output
        for module, _, output in self.tape.modules:
            ends.setdefault(id(output), set()).add(id(module))
        for call in self.tape:
            owner = next((m for m in call.scope if self._is_closed(m, depth)), None)
            box = open_boxes.get(id(owner))
            if owner is None or box is None:
                box = Box()
                box.path = self.paths.get(id(owner or (call.scope or (None,))[-1]), "")
                order.append(box)
                if owner is not None:
                    open_boxes[id(owner)] = box
            for value in call.inputs:
                source = made.get(id(self.tape.source(value)))
                if source not in (None, box, *box.sources):
                    connect(source, box)
            box.carries = _carried(call.output)
            if owner is None:
                box.kind, box.lines = "other", (_symbol(call.function),)
            else:
                is_branch = any(_is_dual(m) for m in call.scope)
                box.kind, box.lines = self._described(owner, box, is_branch)
            box.height = 0.14 * len(box.lines) + 0.12
            made[id(call.output)] = box
            if id(owner) in ends.get(id(call.output), ()):
                del open_boxes[id(owner)]
        for name, output in self.outputs.items():
            end = Box("value", (name,))
            end.path = ""
            source = made.get(id(self.tape.source(output)))
            if source is None:
                raise ValueError(
                    "architecture: the model's output must be one Tensor, computed from its input "
                    f"by operations on Tensors, got {type(output).__name__}"
                )
            connect(source, end)
            order.append(end)
        return order

    def _is_closed(self, module, depth):
        """Whether a module is a single box."""
        path = self.paths.get(id(module), "")
        level = 0 if id(module) in self.roots and not path else 1 + path.count(".")
        return not module.children() or level >= depth

    def _described(self, module, box, is_branch):
        """Choose kind and lines of a module's box."""
        name = type(module).__name__
        if module.children():
            kinds = {_kind(m, True) for m in module.modules() if not m.children()}
            if any(map(_is_dual, module.modules())):
                kinds.add("ternary")
            kind = next((k for k in ("ternary", "binary", "real") if k in kinds), "other")
            count = sum(p.numel() for p in module.parameters())
            return kind, (f"{box.path} ({name})".strip(), f"{count:,} parameters")
        kind = _kind(module, any(s.carries and s.carries[1] == "binary" for s in box.sources))
        if kind == "binary" and is_branch:
            kind = "ternary"
        if kind == "other" and box.carries[1] != "real" and hasattr(module, "quantizer"):
            kind = "sign"
        detail = _detail(module)
        return kind, (name, detail) if detail else (name,)


def _is_dual(module):
    """Whether it is a 1.58-bit convolution, a sum of binary ones."""
    return len(getattr(module, "branches", ())) > 1


def _carried(tensor):
    """Describe a Tensor for an arrow: its shape for one sample, and the kind of its values."""
    values = tensor.data
    kind = "real"
    if np.isin(values, (-1, 1)).all():
        kind = "binary"
    elif np.isin(values, (-1, 0, 1)).all() and values.any():
        kind = "ternary"
    return "×".join(map(str, tensor.shape[1:])), kind


def _symbol(function):
    return _SYMBOLS.get(type(function).__name__, type(function).__name__)


def _kind(module, takes_signs):
    """Classify a layer's products."""
    weight = getattr(module, "weight", None)
    if weight is None or weight.ndim < 2:
        return "other"
    quantizer = getattr(module, "weight_quantizer", None)
    takes_signs = takes_signs or getattr(module, "input_quantizer", None) is not None
    if quantizer is None or getattr(quantizer, "values", None) is None or not takes_signs:
        return "real"
    return "binary" if len(quantizer.values) == 2 else "ternary"


def _detail(module):
    """Format the second line of a layer's box: its geometry, or its quantizer."""
    parts = []
    if hasattr(module, "kernel_size"):
        size = module.kernel_size
        size = (size, size) if isinstance(size, int) else size
        parts.append("×".join(map(str, size)))
        stride = getattr(module, "stride", 1)
        stride = set(stride) if isinstance(stride, tuple) else {stride}
        if stride not in ({1}, {None}):
            parts.append(f"stride {'×'.join(map(str, sorted(stride)))}")
        groups = getattr(module, "groups", 1)
        if groups > 1:
            parts.append("depth-wise" if groups == module.in_channels else f"{groups} groups")
    elif hasattr(module, "in_features"):
        parts.append(f"{module.in_features} → {module.out_features}")
    if getattr(module, "input_quantizer", None) is not None:
        parts.append("sign(x)")
    if parts:
        return ", ".join(parts)
    if hasattr(module, "quantizer"):
        return type(module.quantizer).__name__
    return ""


def _folded(boxes):
    """Merge boxes without products into the box before them, if that has no other target."""
    kept = []
    for box in boxes:
        source = box.sources[0] if box.sources else None
        if (
            box.kind != "other" or len(box.sources) != 1 or source.targets != [box]
            or source.kind in ("value", "sign") or box.lines[0] in _SYMBOLS.values()
        ):  # fmt: skip
            kept.append(box)
            continue
        source.lines += box.lines[:1]
        source.height += 0.14
        source.carries, source.targets = box.carries, box.targets
        for target in box.targets:
            target.sources[target.sources.index(box)] = source
    return kept
