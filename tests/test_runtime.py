"""Plans and their memory: allocated once, never shared by live results, no allocation in calls."""

import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinybnn import deploy, models, nn
from tinybnn.deploy import runtime
from tinybnn.deploy.plan import Buffer, Task
from tinybnn.deploy.runtime import Workspace, block_size
from tinybnn.kernels.machine import threads
from tinybnn.tensor import Tensor, no_grad


class Block(nn.Module):
    """A BD-Net-like block: two binary depth-wise convolutions, real residuals, a binary 1 × 1."""

    def __init__(self, channels, rng):
        options = {"input_quantizer": None, "rng": rng}
        depthwise = {"padding": 1, "groups": channels, "scale": "learned", **options}
        self.signs = nn.ModuleList([nn.RSign(channels) for _ in range(3)])
        self.dual = nn.ModuleList(
            [nn.BinaryConv2d(channels, channels, 3, **depthwise) for _ in range(2)]
        )
        self.norms = nn.ModuleList([nn.BatchNorm2d(channels) for _ in range(2)])
        self.activations = nn.ModuleList([nn.RPReLU(channels) for _ in range(2)])
        self.mix = nn.BinaryConv2d(channels, channels, 1, scale="mean", **options)

    def forward(self, x):
        branches = [dw(sign(x)) for dw, sign in zip(self.dual, self.signs, strict=False)]
        y = self.activations[0](self.norms[0](branches[0] + branches[1] + x) + x)
        return self.activations[1](self.norms[1](self.mix(self.signs[2](y))) + y)


def residual_network(channels=70):
    rng = np.random.default_rng(0)
    model = nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1, bias=False, rng=rng), nn.BatchNorm2d(channels),
        Block(channels, rng), Block(channels, rng),
        nn.AdaBinConv2d(channels, channels, 3, rng=rng), nn.BatchNorm2d(channels),
        nn.Maxout(channels), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(channels, 10, rng=rng),
    )  # fmt: skip
    for module in model.modules():
        for name in ("threshold", "shift_in", "shift_out", "running_mean"):
            value = getattr(module, name, None)
            if value is not None:
                array = value.data if isinstance(value, nn.Parameter) else value
                array[...] = rng.integers(-4, 5, array.shape) / 4
    return model.eval()


def images(*shape):
    return np.random.default_rng(1).standard_normal(shape, np.float32)


def test_a_residual_block_is_two_tasks():
    """One with both depth-wise products and the epilogue, one with the 1 × 1 and its epilogue."""
    model = residual_network()
    packed = deploy.compile(model, (3, 12, 12))
    x = images(3, 3, 12, 12)
    deploy.verify(model, packed, x)
    operations = [[packed.steps[i].operation for i in task.covers] for task in packed.tasks]
    assert [o.count("xnor_conv2d") for o in operations[:6]] == [0, 2, 1, 2, 1, 2]
    assert operations[0][0] == "conv2d"
    assert operations[1][-1] == "pack"
    # The sums of AdaBin over ones do not depend on the image: they are computed beforehand.
    assert all(step != "ones" for o in operations for step in o)


def test_ternary_products_have_their_epilogue_with_them():
    """One task takes a product with a mask to bits, or through scale and batch norm."""
    rng = np.random.default_rng(0)
    options = {"weight_quantizer": "ste_tern", "rng": rng}
    model = nn.Sequential(
        nn.BinaryConv2d(70, 66, 3, padding=1, **options), nn.BatchNorm2d(66),
        nn.Flatten(), nn.BinaryLinear(66 * 36, 10, **options), nn.BatchNorm1d(10), nn.RPReLU(10),
    ).eval()  # fmt: skip
    packed = deploy.compile(model, (70, 6, 6))
    deploy.verify(model, packed, images(5, 70, 6, 6))
    operations = [[packed.steps[i].operation for i in task.covers] for task in packed.tasks]
    assert operations[1] == ["ternary_conv2d", "threshold"]
    assert operations[-1][0] == "ternary_linear" and operations[-1][-1] == "add"


def test_predict_gives_the_same_for_any_batch_size_and_number_of_threads():
    packed = deploy.compile(residual_network(), (3, 12, 12))
    x = images(11, 3, 12, 12)
    expected = packed.predict(x)
    for batch_size in (1, 4, 100):
        for count in range(1, threads.most() + 1):
            assert np.array_equal(packed.predict(x, batch_size, threads=count), expected)


def test_predict_writes_to_out():
    packed = deploy.compile(residual_network(), (3, 12, 12))
    x = images(5, 3, 12, 12)
    out = np.full((5, 10), np.nan, np.float32)
    assert packed.predict(x, out=out) is out
    assert np.array_equal(out, packed.predict(x))
    with pytest.raises(ValueError, match=r"out must be float32 of shape \(5, 10\)"):
        packed.predict(x, out=out[:4])
    with pytest.raises(ValueError, match="n must be from 1 to"):
        packed.predict(x, threads=0)
    with pytest.raises(ValueError, match="batch_size must be >= 1"):
        packed.predict(x, 0)


def test_no_samples_give_no_results():
    packed = deploy.compile(residual_network(), (3, 12, 12))
    assert packed.predict(images(0, 3, 12, 12)).shape == (0, 10)


@pytest.mark.parametrize("samples", [1, 4])
def test_inputs_of_either_layout_in_turn(samples):
    """Callables bound to the copied input are reused only for copies."""
    model = residual_network()
    packed = deploy.compile(model, (3, 12, 12))
    batches = [images(samples, 12, 12, 3) * scale for scale in (1, -1, 2, -2, 3, -3)]
    batches = [x.transpose(0, 3, 1, 2) for x in batches]
    for i, x in enumerate(batches):
        if i % 3 == 0:
            x = batches[i] = np.ascontiguousarray(x)
        with no_grad():
            assert np.array_equal(packed.predict(x), model(Tensor(x)).data)


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_steady_state_allocates_nothing(channels_last):
    model = models.vgg_small(width=0.5, rng=np.random.default_rng(0)).eval()
    packed = deploy.compile(model, (3, 32, 32))
    x, out = images(6, 3, 32, 32), np.empty((6, 10), np.float32)
    if channels_last:
        x = images(6, 32, 32, 3).transpose(0, 3, 1, 2)
    for _ in range(5):  # the first calls resolve the kernels' addresses
        packed.predict(x, out=out)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for _ in range(3):
            packed.predict(x, out=out)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Small Python objects are allowed; the first layer's result has 1.5 MB as floats.
    assert peak - before < 40_000
    assert after - before < 20_000


def test_calls_at_the_same_time_have_their_own_memory():
    packed = deploy.compile(residual_network(), (3, 12, 12))
    inputs = [images(4, 3, 12, 12) * scale for scale in (1, -1, 2, 0.5)]
    expected = [packed.predict(x) for x in inputs]
    wrong = []

    def work(x, result):
        for _ in range(20):
            if not np.array_equal(packed.predict(x), result):
                wrong.append(1)

    workers = [threading.Thread(target=work, args=pair) for pair in zip(inputs, expected)]  # noqa: B905
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
    assert len(packed._free) <= len(workers)


def test_a_result_is_copied_before_its_memory_goes_to_another_call():
    packed = deploy.compile(residual_network(), (3, 12, 12))
    x = images(4, 3, 12, 12)
    expected = packed.predict(x)

    class Taken(list):
        """Memory that is overwritten by another user as soon as it is released."""

        def append(self, workspace):
            workspace.arena.fill(255)
            super().append(workspace)

    packed._free = Taken(packed._free)
    assert np.array_equal(packed.predict(x), expected)


def test_an_interrupted_run_does_not_spoil_the_next():
    packed = deploy.compile(residual_network(), (3, 12, 12))
    x = images(4, 3, 12, 12)
    expected = packed.predict(x)
    run = packed.run_plan(x)
    next(run)
    run.close()
    assert np.array_equal(packed.predict(x), expected)


@st.composite
def task_lists(draw):
    """Tasks that read earlier results, some of them views made by NumPy."""
    tasks = []
    for i in range(draw(st.integers(1, 8))):
        inputs = draw(st.lists(st.integers(-1, i - 1), min_size=1, max_size=3, unique=True))
        buffers = (Buffer(np.uint8, (draw(st.integers(1, 200)),)),) if draw(st.booleans()) else ()
        tasks.append(Task((i,), (i,), tuple(inputs), None, buffers))
    return tasks


@given(task_lists(), st.integers(1, 3))
def test_results_in_use_share_no_memory(tasks, samples):
    workspace = Workspace(tasks, samples)
    outputs = workspace.outputs(samples)
    holds = {-1: set()}  # step -> the buffered results that may hold its value
    for i, task in enumerate(tasks):
        sources = set().union(*(holds[s] for s in task.inputs))
        holds[i] = {i} if task.buffers else sources
    last = len(tasks) - 1
    for i, task in enumerate(tasks):
        if not task.buffers:
            continue
        # Results that task i or a later task still reads when i writes, and the output.
        needed = set(holds[last])
        for later in tasks[i:]:
            needed |= set().union(*(holds[s] for s in later.inputs))
        for other in needed - {i}:
            if other < i:
                assert not np.shares_memory(outputs[i][0][0], outputs[other][0][0])


def test_blocks_are_as_large_as_the_cache_allows():
    small = deploy.compile(models.mlp(64), (64,))
    large = deploy.compile(models.vgg_small(), (3, 32, 32))
    assert block_size(small.tasks) > block_size(large.tasks) >= 1


def test_profile_tells_where_the_time_goes():
    model = residual_network()
    packed = deploy.compile(model, (3, 12, 12))
    rows = packed.profile(images(2, 3, 12, 12), repetitions=2)
    assert len(rows) == len(packed.tasks)
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert all(row["seconds"] > 0 for row in rows)
    # Each product of two signs counts once; padded columns do not count.
    depthwise = rows[1]
    assert depthwise["products"] == 2 * 2 * 70 * 9 * 12 * 12
    assert depthwise["operations"].count("xnor_conv2d") == 2
    assert rows[2]["products"] == 2 * 70 * 70 * 12 * 12  # the 1 × 1, without the tails of words
    assert depthwise["peak_share"] > 0


def test_plans_follow_the_float_model_in_every_memory_layout():
    model = residual_network()
    packed = deploy.compile(model, (3, 12, 12))
    x = images(3, 3, 12, 12)
    with no_grad():
        expected = model(Tensor(x)).data
    for layout in (x, np.asfortranarray(x), x.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)):
        assert np.array_equal(packed.predict(layout), expected)


# ------------------------------------------------------------------------ blocks at the same time


@pytest.fixture
def two_threads():
    if threads.most() < 2:
        pytest.skip("needs two threads")


def test_blocks_that_are_mixed_up(two_threads):
    """17 samples in blocks of 2: eight blocks on two threads, and a last one of a single sample."""
    model = residual_network()
    packed, x = deploy.compile(model, (3, 8, 8)), images(17, 3, 8, 8)
    expected = packed.predict(x, batch_size=1, threads=1)
    for seconds in (0.0, 1.0):
        packed._block_seconds = seconds  # a block seems fast or slow
        assert np.array_equal(packed.predict(x, batch_size=2, threads=2), expected)


def test_blocks_on_one_thread(two_threads, monkeypatch):
    """With one thread, few blocks or fast ones, no threads are started."""
    packed = deploy.compile(nn.Sequential(nn.BinaryLinear(9, 3)).eval(), (9,))
    seen = []
    monkeypatch.setattr("tinybnn.deploy.packed.on_threads", lambda f, items: seen.append([*items]))
    x = images(8, 9)
    for n, given_threads, seconds in ((8, 1, 1.0), (8, 2, 0.0), (3, 2, 1.0), (8, 2, 1.0)):
        packed._block_seconds = seconds
        packed.predict(x[:n], batch_size=2, threads=given_threads)
    assert seen == [[], [], [], [0, 2, 4, 6]]


def test_an_error_in_one_block(two_threads, monkeypatch):
    packed = deploy.compile(nn.Sequential(nn.BinaryLinear(9, 3)).eval(), (9,))

    def fails(tasks, workspace, x, packs):
        if x[0, 0] == 7:
            raise MemoryError("in a block")
        return runtime.last_results(tasks, workspace, x, packs)

    monkeypatch.setattr("tinybnn.deploy.packed.last_results", fails)
    x = images(8, 9)
    for at in (0, 6):
        x[at, 0], packed._block_seconds = 7, 1.0
        with pytest.raises(MemoryError, match="in a block"):
            packed.predict(x, batch_size=2, threads=2)
        x[at, 0] = 0


def test_warnings_that_the_caller_has_silenced(two_threads):
    """Blocks on other threads have the caller's np.errstate."""

    class Logarithm(nn.Module):
        def forward(self, x):
            return x.log()

    packed = deploy.compile(nn.Sequential(Logarithm()).eval(), (9,))
    packed._block_seconds = 1.0
    with np.errstate(all="ignore"):
        assert np.isinf(packed.predict(np.zeros((8, 9), np.float32), 2, threads=2)).all()
