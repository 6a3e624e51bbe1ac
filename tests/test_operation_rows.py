"""The operations of `deploy.operations` are complete and unique; users can add theirs."""

import inspect

import numpy as np
import pytest

from tinybnn import deploy, nn
from tinybnn import functional as F
from tinybnn.deploy import operations
from tinybnn.deploy.values import FLOAT, Value
from tinybnn.tensor import Function, Tensor
from tinybnn.testing import assert_identical, gradcheck

ROWS = list(operations.OPERATIONS.items())


@pytest.mark.parametrize(("name", "row"), ROWS, ids=[name for name, _ in ROWS])
def test_a_row_is_complete(name, row):
    assert row.name == name and issubclass(row, deploy.Operation)
    for method in ("run", "shape"):
        assert callable(getattr(row, method)) and method in dir(row)
    default = inspect.getattr_static(deploy.Operation, "run")  # that of its Function
    assert row.functions or inspect.getattr_static(row, "run") is not default
    for function in row.functions:
        assert issubclass(function, Function) and operations.OF_FUNCTION[function] is row
    if row.program is not None:
        assert len(inspect.signature(row.program).parameters) == 4
    for names in (row.arrays, row.settings):
        assert isinstance(names, tuple) and len(set(names)) == len(names)


def test_no_function_has_two_rows():
    functions = [function for _, row in ROWS for function in row.functions]
    assert len(functions) == len(set(functions))


# ------------------------------------------------------------------------- an operation of a user


class Cube(Function):
    """x³ + shift."""

    def forward(self, x, shift):
        self.shift = shift
        return x * x * x + np.float32(shift)

    def backward(self, grad, output, x):
        return 3.0 * grad * x * x


class CubeLayer(nn.Module):
    def __init__(self, shift):
        self.shift = shift

    def forward(self, x):
        return Cube.apply(x, shift=self.shift)


def model():
    rng = np.random.default_rng(0)
    return nn.Sequential(
        nn.Linear(6, 5, rng=rng), CubeLayer(0.5), nn.BinaryLinear(5, 4, rng=rng),
        nn.BatchNorm1d(4), CubeLayer(-1.0), nn.BinaryLinear(4, 3, rng=rng),
    ).eval()  # fmt: skip


def test_an_operation_of_a_user_compiles_and_is_saved(tmp_path):
    gradcheck(lambda x: Cube.apply(x, shift=0.5), np.random.default_rng(0).normal(size=(2, 3)))
    with pytest.raises(deploy.CompileError, match="Cube has no packed form"):
        deploy.compile(model(), (6,))
    before = dict(operations.OPERATIONS), dict(operations.OF_FUNCTION)
    try:

        class CubeOperation(deploy.Operation):
            """x³ + shift, elementwise, so that thresholds can absorb it."""

            name, settings, functions = "cube", ("shift",), (Cube,)
            is_elementwise = True

            @staticmethod
            def shape(x, *, shift):
                if not isinstance(shift, float):
                    raise ValueError(f"shift must be a float, got {shift!r}")
                return Value(FLOAT, x.shape, x.single)

        float_model, x = model(), np.random.default_rng(1).normal(size=(9, 6)).astype(np.float32)
        packed = deploy.compile(float_model, (6,))
        assert [s.operation for s in packed.steps].count("cube") == 1  # one is in the thresholds
        path = tmp_path / "model.npz"
        packed.save(path)
        for loaded in (packed, deploy.PackedModel.load(path)):
            assert_identical(loaded.predict(x), float_model(Tensor(x)).data)
            deploy.verify(float_model, loaded, x)
        packed.steps[[s.operation for s in packed.steps].index("cube")].settings["shift"] = "x"
        with pytest.raises(ValueError, match=r"\(cube\): shift must be a float, got 'x'"):
            packed.save(path)
            deploy.PackedModel.load(path)
    finally:
        for place, rows in zip(
            (operations.OPERATIONS, operations.OF_FUNCTION), before, strict=True
        ):
            place.clear()
            place.update(rows)
    packed.steps[[s.operation for s in packed.steps].index("cube")].settings["shift"] = 0.5
    with pytest.raises(ValueError, match=r"\(cube\): the operation is unknown"):
        deploy.PackedModel(packed.input_shape, packed.steps, packed.calls).tasks  # noqa: B018


def test_an_operation_may_refuse_a_call():
    class Odd(Function):
        def forward(self, x, side):
            return x + side

        def backward(self, grad, output, x):
            return grad

    class OddLayer(nn.Module):
        def forward(self, x):
            return Odd.apply(x, side=2)

    class OddOperation(deploy.Operation):
        name, settings, functions = "odd", ("side",), (Odd,)

        @classmethod
        def of_call(cls, call):
            if call.options["side"] % 2 == 0:
                raise deploy.NoPackedFormError("its side must be odd; write Odd.apply(x, side=1)")
            return super().of_call(call)

    try:
        with pytest.raises(deploy.CompileError, match="its side must be odd; write"):
            deploy.compile(nn.Sequential(OddLayer()), (3,))
        report = deploy.check(nn.Sequential(nn.Linear(3, 3), OddLayer(), nn.ReLU()), (3,))
        assert not report.ok and "its side must be odd" in str(report)
    finally:
        del operations.OPERATIONS["odd"], operations.OF_FUNCTION[Odd]


def test_programs_of_rows_compute_what_rows_compute():
    """A row has an elementwise form and a definition; a packed model uses the first."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(70, 40)).astype(np.float32)
    x.ravel()[:2] = 0.0, -0.0
    layers = [
        nn.ReLU(), nn.LeakyReLU(0.3), nn.PReLU(40), nn.Hardtanh(-0.5, 0.2), nn.BatchNorm1d(40),
    ]  # fmt: skip
    for layer in layers:
        network = nn.Sequential(layer).eval()
        packed = deploy.compile(network, (40,))
        (step,) = packed.steps
        assert operations.OPERATIONS[step.operation].program is not None
        assert_identical(packed.predict(x), step.run(x))
        assert_identical(packed.predict(x), network(Tensor(x)).data)
    assert F.relu(np.float32(-0.0)) == 0


def test_an_operation_does_not_take_the_place_of_another():
    before = dict(operations.OPERATIONS), dict(operations.OF_FUNCTION)
    for body in ({"name": "relu"}, {"name": "other", "functions": (F.Relu,)}):
        with pytest.raises(
            ValueError, match="Mine: Relu already has the name 'relu' or one of the func"
        ):
            type("Mine", (deploy.Operation,), body)
    assert (dict(operations.OPERATIONS), dict(operations.OF_FUNCTION)) == before
    for _ in range(2):  # a cell of a notebook that runs again
        row = type("Mine", (deploy.Operation,), {"name": "mine"})
    assert operations.OPERATIONS.pop("mine") is row
