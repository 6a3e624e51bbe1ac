"""Vector operations: compiled, as NumPy lanes, and on CPUs with fewer features."""

import os
import platform
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinybnn
from tinybnn.kernels.machine.simd import (
    BLOCK,
    FLOATS,
    INTEGERS,
    WORDS,
    absolute,
    at_most,
    clear,
    copy,
    interleave,
    kernel,
    load,
    load_block,
    load_bytes,
    load_like,
    load_splat,
    maximum,
    minimum,
    popcount,
    positive_or,
    splat,
    square_root,
    store,
    store_at_least,
    store_first,
    zero_counts,
    zero_floats,
    zero_words,
    zeros,
)

from cpus import compiles_for

seeds = st.integers(0, 2**32 - 1)
compiled = pytest.mark.skipif(numba.config.DISABLE_JIT, reason="the run without compilation")
x86 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="LLVM aborts at the names of x86 CPUs"
)


@kernel
def on_words(a, b, out):
    """A slot of ``out`` for each word of the vocabulary that gives words."""
    x, y = load(a, 1), load(b, 2)
    store(out, 0, x + y)
    store(out, 8, x - y)
    store(out, 16, x ^ y)
    store(out, 24, x & y)
    store(out, 32, x | y)
    store(out, 40, popcount(x))
    store(out, 48, splat(a[3]))
    store(out, 56, load_splat(a, 3))
    total = zero_words()
    total += x
    total -= y
    total ^= x
    total &= y
    total |= x
    store(out, 64, total)
    store_first(out, 72, x, 3)


@kernel
def on_integers(a, b, words, out):
    x, y = load(a, 1), load(b, 2)
    store(out, 0, x + y)
    store(out, 16, x - y)
    store(out, 32, interleave(load_like(words, 0, zero_counts(16))))
    for count in range(-1, 18):
        store_first(out, 48 + 16 * (count + 1), x, count)
    return at_most(x, y)


@kernel
def on_bytes(a, out):
    store(out, 0, load_bytes(a, 1))


@kernel
def on_floats(a, b, out):
    x, y = load(a, 1), load(b, 2)
    store(out, 0, x + y)
    store(out, 16, x - y)
    store(out, 32, x * y)
    store(out, 48, splat(a[3]))
    store(out, 64, load_splat(a, 3))
    total = zero_floats()
    total += x
    total -= y
    total *= x
    store(out, 80, total)
    store_first(out, 96, x, 5)


def both(function, *arguments):
    """The results of a kernel compiled and as plain Python: what it returns and what it wrote."""
    plain = getattr(function, "py_func", function)
    results = []
    for call in (function, plain):
        copies = [array.copy() for array in arguments]
        results.append((call(*copies), copies[-1]))
    return results


def random_words(rng, count):
    return rng.integers(0, 2**64, count, np.uint64)


@given(seeds)
def test_words(seed):
    rng = np.random.default_rng(seed)
    a, b, out = random_words(rng, 10), random_words(rng, 10), random_words(rng, 80)
    (_, one), (_, two) = both(on_words, a, b, out)
    assert np.array_equal(one, two)
    x, y = a[1:9], b[2:10]
    expected = [x + y, x - y, x ^ y, x & y, x | y, np.bitwise_count(x), [a[3]] * 8, [a[3]] * 8]
    assert np.array_equal(one[:64], np.concatenate(expected).astype(np.uint64))
    assert np.array_equal(one[64:72], (((x - y) ^ x) & y) | x)
    assert np.array_equal(one[72:], [*x[:3], *out[75:]])


@given(seeds)
def test_integers(seed):
    rng = np.random.default_rng(seed)
    limits = np.iinfo(np.int32)
    a, b = rng.integers(-2, 3, (2, 18), np.int32)  # ties
    a[rng.random(18) < 0.2], b[rng.random(18) < 0.2] = limits.min, limits.max
    words = random_words(rng, 16)
    out = rng.integers(limits.min, limits.max, 48 + 16 * 20, np.int32)
    (mask, one), (same_mask, two) = both(on_integers, a, b, words, out)
    assert mask == same_mask and np.array_equal(one, two)
    x, y = a[1:17], b[2:18]
    assert mask == sum(int(x[i] <= y[i]) << i for i in range(INTEGERS))
    assert np.array_equal(one[:48].reshape(3, 16)[:2], [x + y, x - y])
    assert np.array_equal(one[32:48:2], words[:8].astype(np.int32))
    assert np.array_equal(one[33:48:2], words[8:].astype(np.int32))
    for count in range(-1, 18):
        at, stored = 48 + 16 * (count + 1), min(max(count, 0), 16)
        assert np.array_equal(one[at : at + stored], x[:stored])
        assert np.array_equal(one[at + stored : at + 16], out[at + stored : at + 16])


@kernel
def as_floats(a, out):
    store(out, 0, load(a, 1))
    for count in range(-1, 18):
        store_first(out, 16 * (count + 2), load(a, 1), count)


@given(seeds)
def test_integers_in_an_array_of_floats(seed):
    rng = np.random.default_rng(seed)
    limits = np.iinfo(np.int32)
    a = rng.integers(limits.min, limits.max, 18, np.int32, endpoint=True)
    before = rng.standard_normal(16 * 20).astype(np.float32)
    for _, out in both(as_floats, a, before):
        assert np.array_equal(out[:16], a[1:17].astype(np.float32))
        for count in range(-1, 18):
            at, stored = 16 * (count + 2), min(max(count, 0), 16)
            assert np.array_equal(out[at : at + stored], a[1 : 1 + stored].astype(np.float32))
            assert np.array_equal(out[at + stored : at + 16], before[at + stored : at + 16])


@kernel
def copied(source, length, out):
    copy(source, 2, out, 3, length)
    clear(out, 30, length)


@pytest.mark.parametrize("dtype", [np.float32, np.uint64, np.int32])
@pytest.mark.parametrize("length", [0, 1, 7, 16, 21])
def test_copy_and_clear_touch_nothing_else(dtype, length):
    source, before = np.arange(1, 24).astype(dtype), np.full(60, 77, dtype)
    plain = getattr(copied, "py_func", copied)
    for call in (copied, plain):
        out = before.copy()
        call(source, length, out)
        assert np.array_equal(out[3 : 3 + length], source[2 : 2 + length])
        assert not np.any(out[30 : 30 + length])
        out[3 : 3 + length] = out[30 : 30 + length] = 77
        assert np.array_equal(out, before)


@given(seeds)
def test_bytes(seed):
    a = np.random.default_rng(seed).integers(-128, 128, 18).astype(np.int8)
    for _, out in both(on_bytes, a, np.empty(16, np.int32)):
        assert np.array_equal(out, a[1:17])


@given(seeds)
def test_floats(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((2, 18)).astype(np.float32)
    out = rng.standard_normal(112).astype(np.float32)
    (_, one), (_, two) = both(on_floats, a, b, out)
    assert np.array_equal(one, two)
    x, y = a[1:17], b[2:18]
    assert np.array_equal(one[:48].reshape(3, 16), [x + y, x - y, x * y])
    assert np.all(one[48:80] == a[3])
    assert np.array_equal(one[80:96], (x - y) * x)
    assert np.array_equal(one[96:], [*x[:5], *out[101:]])


def test_lanes():
    assert (WORDS, INTEGERS, FLOATS) == (8, 16, 16)
    assert len(zero_words()) == len(splat(np.uint64(1))) == WORDS
    assert len(zero_floats()) == len(splat(np.float32(1))) == FLOATS


# ------------------------------------------------------------------------------------------- caches


@compiled
def test_cache_is_stale_when_an_imported_file_changes(tmp_path):
    """A kernel is compiled again after a change of a file that its file imports, and only then."""
    package = Path(tinybnn.__file__).parent
    ignored = shutil.ignore_patterns("__pycache__", "data")
    shutil.copytree(package, tmp_path / "tinybnn", ignore=ignored)
    program = textwrap.dedent("""
        import numpy as np
        from tinybnn.kernels.floats import pointwise

        program = pointwise.prepare((3,), ("floats",), [("abs", 0)], [("floats", 1)])
        pointwise.run(program, [np.ones((1, 3), np.float32)])
        print(sum(pointwise.chunk.kernel.stats.cache_hits.values()))
    """)
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    environment["PYTHONPATH"] = str(tmp_path)

    def hits():
        command = [sys.executable, "-c", program]
        run = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=100, cwd=tmp_path
        )
        assert run.returncode == 0, run.stderr
        return int(run.stdout)

    result = [hits(), hits()]
    # It imports simd.py and bits.py; tiles.py is none of its business.
    for name in ("machine/tiles.py", "machine/simd.py", "signs/bits.py"):
        with (tmp_path / "tinybnn" / "kernels" / name).open("a", encoding="utf-8") as file:
            file.write("# a change\n")
        result.append(hits())
    assert result == [0, 1, 1, 0, 0]


# ------------------------------------------------------------------------------------- smaller CPUs

REGISTERS = {"AVX2": ("zmm", "k1"), "SSE4.2": ("zmm", "ymm", "k1")}  # that are not there
PROGRAM = """
    import numpy as np
    from tinybnn.kernels.floats import ordered_matmul
    from tinybnn.kernels.machine import threads
    from tinybnn.kernels.signs import xnor
    from tinybnn.kernels.signs.thresholds import threshold_reference

    rng = np.random.default_rng(0)
    words = lambda *shape: rng.integers(0, 2**64, shape, np.uint64)
    thresholds, flip = rng.integers(-9, 9, 70, np.int32), rng.random(70) < 0.5
    with threads.num_threads(1):
        for rows in (1, 3, 6):
            a, b = words(rows, 5), words(70, 5)
            expected = xnor.xnor_matmul_reference(a, b, 320)
            assert np.array_equal(xnor.xnor_matmul(a, b, 320), expected)
            prepared = xnor.prepare_matmul(b, 320, thresholds=thresholds, flip=flip)
            bits = threshold_reference(expected, thresholds, flip)
            assert np.array_equal(xnor.run(prepared, a), bits)
            for columns in (10, 50):
                a, b = rng.standard_normal((rows, 20)), rng.standard_normal((20, columns))
                a, b = a.astype("f"), b.astype("f")
                expected = ordered_matmul.ordered_matmul_reference(a, b)
                assert np.array_equal(ordered_matmul.ordered_matmul(a, b), expected)
        x, weight = words(2, 6, 5, 2), words(35, 3, 3, 2)
        expected = xnor.xnor_conv2d_reference(x, weight, 128, padding=(1, 1))
        assert np.array_equal(xnor.xnor_conv2d(x, weight, 128, padding=(1, 1)), expected)
        assert xnor.register_peak(1000) > 0
    names = ordered_matmul._ordered_floats, ordered_matmul._ordered_floats_narrow
    for function in (xnor._task, *names):
        (assembly,) = function.inspect_asm().values()
        for register in {registers}:
            assert "%" + register not in assembly, register
"""


@compiled
@x86
@pytest.mark.parametrize("cpu", REGISTERS)
def test_smaller_cpus(cpu, tmp_path):
    """The same kernels are correct with shorter vectors, and use no missing instructions."""
    program = textwrap.dedent(PROGRAM).replace("{registers}", repr(REGISTERS[cpu]))
    environment = os.environ | compiles_for(cpu)
    environment |= {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode == 0, run.stderr


# ------------------------------------------------------------------------------------------- blocks


@kernel
def on_blocks(a, integers, b, out, bits):
    """A row of ``out`` for each word of the vocabulary that gives a block."""
    x, y, i = load_block(a, 1), load_block(b, 0), load_block(integers, 3)
    store(out[0], 0, x + y)
    store(out[1], 0, x - y)
    store(out[2], 0, x * y)
    store(out[3], 0, x / y)
    store(out[4], 0, maximum(x, y))
    store(out[5], 0, minimum(x, y))
    store(out[6], 0, positive_or(x, y))
    store(out[7], 0, absolute(x))
    store(out[8], 0, square_root(x))
    store(out[9], 0, i)
    store(out[10], 0, zeros(BLOCK))
    store_at_least(bits, 0, x, y)


@given(seeds)
def test_blocks(seed):
    rng = np.random.default_rng(seed)
    special = np.array([0, -0.0, np.inf, -np.inf, np.nan, 1e-42, 2.5, -2.5], np.float32)
    a, b = rng.choice(special, BLOCK + 1), rng.choice(special, BLOCK + 1)
    integers = rng.integers(-(2**24), 2**24, BLOCK + 3, dtype=np.int32)
    out, bits = np.full((11, BLOCK), 7, np.float32), np.zeros(BLOCK // 64, np.uint64)
    with np.errstate(all="ignore"):
        on_blocks(a, integers, b, out, bits)
        x, y = a[1:], b[:BLOCK]
        expected = [
            x + y, x - y, x * y, x / y, np.maximum(x, y), np.minimum(x, y), np.where(x > 0, x, y),
            np.abs(x), np.sqrt(x), integers[3:].astype(np.float32), np.zeros(BLOCK),
        ]  # fmt: skip
    for result, row in zip(out, expected, strict=True):
        assert np.array_equal(result, row, equal_nan=True)
    assert np.array_equal(bits, np.packbits(x >= y, bitorder="little").view("<u8"))
