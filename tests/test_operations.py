"""The times of operations: what is counted, for which layer, and that hooks are removed."""

import threading
import time

import numpy as np
import pytest

from tinybnn import Tensor, analysis, nn, optim
from tinybnn import functional as F
from tinybnn.analysis.operations import OperationTimes, table
from tinybnn.tensor import Function


class Slow(Function):
    """x, in 20 ms; its rule takes 30 ms, in which it runs another operation."""

    def forward(self, x):
        time.sleep(0.02)
        return x.copy()

    def backward(self, grad, output, x):
        time.sleep(0.03)
        return F.reshape(F.exp(F.flatten(grad, 0)) * 0.0 + 1.0, grad.shape) * grad


@pytest.fixture
def x():
    return Tensor(np.ones((2, 3), np.float32), requires_grad=True)


def by_name(times):
    return {(row["operation"], tuple(row["shape"])): row for row in times.rows}


def test_calls_and_seconds(x):
    with analysis.time_operations() as times:
        (Slow.apply(x) + Slow.apply(x)).sum().backward()
    rows = by_name(times)
    assert set(rows) == {("Slow", (2, 3)), ("Add", (2, 3)), ("Sum", ())}
    slow = rows["Slow", (2, 3)]
    assert slow["calls"] == 2
    assert 0.04 <= slow["forward_s"] < slow["backward_s"] and slow["backward_s"] >= 0.06
    assert times.rows[0] is not slow and times.rows[0] == slow  # the slowest first
    assert sum(r["forward_s"] + r["backward_s"] for r in times.rows) <= times.seconds
    assert slow["share"] == (slow["forward_s"] + slow["backward_s"]) / times.seconds
    np.testing.assert_array_equal(x.grad.data, 2.0)


def test_an_operation_inside_another_belongs_to_it(x):
    with analysis.time_operations() as times:
        Slow.apply(x).sum().backward()
    assert {row["operation"] for row in times.rows} == {"Slow", "Sum"}  # no Exp, no Reshape
    x.grad = None  # a second gradient would be added to it, which is an operation of its own
    with analysis.time_operations() as times:
        Slow.apply(x).sum().backward(create_graph=True)  # the rule on Tensors
    assert {row["operation"] for row in times.rows} == {"Slow", "Sum"}


def test_the_optimizer_is_counted():
    rng = np.random.default_rng(0)
    model = nn.Sequential(nn.Linear(4, 3, rng=rng))
    optimizer = optim.Adam(model.parameters())
    with analysis.time_operations() as times:
        F.cross_entropy(model(Tensor(np.ones((2, 4), np.float32))), np.array([0, 1])).backward()
        optimizer.step()
    rows = by_name(times)
    assert rows["Adam.step", ()]["calls"] == 1 and rows["Adam.step", ()]["forward_s"] > 0
    assert rows["Linear", (2, 3)]["backward_s"] > 0


def test_nothing_stays_behind(x):
    before = Function.__dict__["apply"], Function._gradients, optim.Optimizer.step
    with pytest.raises(ValueError, match="do not fit"), analysis.time_operations() as times:
        x + Tensor([1.0, 2.0])
    assert (Function.__dict__["apply"], Function._gradients, optim.Optimizer.step) == before
    seconds = times.seconds
    (x * x).sum().backward()
    assert times.rows == [] and times.seconds == seconds > 0


def test_an_operation_that_failed_does_not_hide_the_next(x):
    with analysis.time_operations() as times:
        with pytest.raises(ValueError, match="do not fit"):
            x + Tensor([1.0, 2.0])
        x + x
    assert [(row["operation"], row["calls"]) for row in times.rows] == [("Add", 1)]


def test_other_threads_are_not_counted(x):
    with analysis.time_operations() as times:
        thread = threading.Thread(target=lambda: (x * x).sum().backward())
        thread.start()
        thread.join()
        x + x
    assert {row["operation"] for row in times.rows} == {"Add"}
    np.testing.assert_array_equal(x.grad.data, 2.0)


def test_a_table_of_operations_and_the_shapes_that_matter():
    times = OperationTimes()
    times.seconds = 1.0
    times.add("Conv2d", (64, 128), calls=1, forward=0.1, backward=0.2)
    times.add("Conv2d", (64, 10), calls=2, forward=0.01, backward=0.005)  # below 2%
    times.add("Sum", (), calls=1, forward=0.5)
    header, first, second, third, rest = map(str.split, table(times.rows).splitlines())
    assert header[:3] == ["operation", "output", "calls"]
    assert first == ["Sum", "1", "500.000", "0.000", "50%"]
    assert second == ["Conv2d", "3", "110.000", "205.000", "32%"]  # of all shapes
    assert third == ["64×128", "1", "100.000", "200.000", "30%"]
    assert rest == ["layers,", "engine", "18%"]
    assert str(times) == table(times.rows)
