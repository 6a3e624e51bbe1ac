"""A table of a model's layers: shapes, parameters, bits, bytes, operations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tinybnn import deploy, tables
from tinybnn.analysis.opcount import costs
from tinybnn.autograd import Tensor, no_grad, trace

if TYPE_CHECKING:
    from tinybnn.nn import Module


@dataclass
class Summary:
    """The layers of a model; prints as a table.

    Attributes
    ----------
    rows : list of dict
        In order of execution: name, type, output_shape, parameters, bits (per weight, None without
        weights), weight_bits (of all parameters and statistics), packed_bytes (None if the model
        has no packed form), bops, flops.
    not_packed : str
        The reason why the model has no packed form; empty if it has one.
    """

    rows: list[dict[str, Any]]
    not_packed: str = ""

    def total(self, column: str) -> int | None:
        """Sum a column; None if a value is unknown."""
        values = [row[column] for row in self.rows]
        return None if None in values else sum(values)

    @property
    def ops(self) -> float:
        """BOPs / 64 + FLOPs (Bi-Real Net; BD-Net, Preliminaries)."""
        return self.total("bops") / 64 + self.total("flops")

    _HEADER = ("layer", "output", "parameters", "bits", "packed bytes", "BOPs", "FLOPs")
    _ALIGN = "<<>>>>>"

    def _cells(self):
        """Yield the rows of the table as texts; the last one has the sums."""
        columns = ("parameters", "bits", "packed_bytes", "bops", "flops")
        for row in self.rows:
            shape = "×".join(map(str, row["output_shape"]))
            yield f"{row['name']} ({row['type']})", shape, *(_cell(row[c]) for c in columns)
        yield "total", "", *("" if c == "bits" else _cell(self.total(c)) for c in columns)

    def _remarks(self):
        remarks = [f"OPs = BOPs / 64 + FLOPs = {self.ops:,.0f}"]
        return remarks + [f"no packed form: {self.not_packed}"] * bool(self.not_packed)

    def __str__(self) -> str:
        cells = [self._HEADER, *self._cells()]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        header, *rows, total = (tables.line(row, widths, self._ALIGN) for row in cells)
        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        return "\n".join([header, rule, *rows, rule, total, *self._remarks()])

    def _repr_html_(self):
        return tables.html(self._HEADER, self._cells(), self._ALIGN, "; ".join(self._remarks()))


def _cell(value):
    return "-" if value is None else f"{value:,}"


def summary(model: Module, input_shape: Sequence[int]) -> Summary:
    """List the layers that run, in order, with the cost of each for one sample.

    Parameters
    ----------
    model : Module
    input_shape : sequence of int
        Shape of one sample, without the batch.

    Returns
    -------
    Summary
        Packed bytes are those of the arrays that `PackedModel.save` stores; a threshold counts in
        the layer whose sign it computes.
    """
    input_shape = tuple(int(n) for n in input_shape)
    with model.in_mode(training=False), no_grad(), trace() as tape:
        model(Tensor(np.zeros((1, *input_shape), np.float32)))
    try:
        packed, not_packed = deploy.compile(model, input_shape), ""
        stored = Counter()
        for step, size in zip(packed.steps, packed.step_bytes(), strict=True):
            stored[step.name] += size
    except deploy.CompileError as error:
        stored, not_packed = None, str(error)

    paths = {id(module): path or "model" for path, module in model.named_modules()}
    rows, counted = [], set()
    for module, _, output, cost in costs(tape):
        name, kind = paths[id(module)], type(module).__name__
        again = id(module) in counted  # a shared layer: its parameters count once
        counted.add(id(module))
        parameters = 0 if again else sum(p.numel() for p in module.parameters())
        quantizer = getattr(module, "weight_quantizer", None)
        rows.append(
            {
                "name": name,
                "type": kind,
                "output_shape": output.shape[1:],
                "parameters": parameters,
                "bits": (quantizer.bits if quantizer else 32) if parameters else None,
                "weight_bits": 0 if again else cost.weight_bits,
                "packed_bytes": None if stored is None else stored.pop(f"{name} ({kind})", 0),
                "bops": cost.bops,
                "flops": cost.flops,
            }
        )
    # Computed by a user's forward method outside of any layer.
    rest = {"bits": None, "parameters": 0, "weight_bits": 0, "bops": 0, "flops": 0}
    for name, size in (stored or {}).items():
        path, kind = name.removesuffix(")").split(" (")
        rows.append({"name": path, "type": kind, "output_shape": (), "packed_bytes": size, **rest})
    return Summary(rows, not_packed)
