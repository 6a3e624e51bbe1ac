"""ARM64: which kernels it takes, what they compile to, and models that were packed there.

The kernels of ARM64 also run elsewhere: test_kernels.py and test_fused.py compare each method with
its reference on the machine at hand.
"""

import os
import re
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import numba
import numpy as np
import pytest

from tinybnn import storage
from tinybnn.deploy import PackedModel
from tinybnn.kernels.machine import simd, threads
from tinybnn.kernels.signs import prepared
from tinybnn.testing import assert_identical

DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize("network", ["layers", "long rows", "cnn", "reactnet"])
def test_a_model_from_arm64_predicts_the_same_bits(network, tmp_path):
    path = DATA / "packed_arm64.npz"  # made by make_packed_machines.py, on ARM64
    arrays, _ = storage.load(path, kind="packed models of a machine", version=1)
    (tmp_path / "model.npz").write_bytes(zlib.decompress(arrays[f"{network}.file"].tobytes()))
    model = PackedModel.load(tmp_path / "model.npz")
    x = arrays[f"{network}.quarters"].astype(np.float32) / 4
    for tasks in (1, 2):
        with threads.num_threads(tasks):
            assert_identical(model.predict(x), arrays[f"{network}.logits"])
            assert_identical(model.predict(x[:1]), arrays[f"{network}.logits"][:1])


@pytest.mark.parametrize(
    ("triple", "features", "kind", "method"),
    [
        ("aarch64-unknown-linux-gnu", "+neon,+dotprod", "NEON", "counting_bytes"),
        ("arm64-apple-darwin23.0.0", "", "NEON", "counting_bytes"),
        ("armv7l-unknown-linux-gnueabihf", "+neon", "short vectors", "counting"),
        ("x86_64-unknown-linux-gnu", "+sse4.2", "short vectors", "counting"),
        (
            "x86_64-unknown-linux-gnu",
            "+avx2,+avx512vpopcntdq",
            "AVX-512 with VPOPCNTDQ",
            "counting",
        ),
    ],
)
def test_a_machine_taken_for_another(triple, features, kind, method, monkeypatch):
    codegen = SimpleNamespace(magic_tuple=lambda: (triple, "generic", features))
    target = SimpleNamespace(target_context=SimpleNamespace(codegen=lambda: codegen))
    monkeypatch.setattr(simd, "cpu_target", target)
    monkeypatch.setattr(simd, "cpu_features", simd.cpu_features.__wrapped__)
    monkeypatch.setattr(prepared, "has_fast_look_ups", lambda: False)
    assert (simd.cpu_kind(), prepared.best_method()) == (kind, method)


# ------------------------------------------------------------------------------------ machine code

PROGRAM = """
    import llvmlite.binding as llvm
    import numba

    TRIPLE = "aarch64-unknown-linux-gnu"
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    llvm.get_process_triple = lambda: TRIPLE
    llvm.Target.from_default_triple = classmethod(lambda target: target.from_triple(TRIPLE))

    from numba import types
    from tinybnn.kernels.signs import counting_bytes

    function = counting_bytes._register_loop
    function.compile((types.int64, *(t[::1] for t in (
        types.uint64, types.int8, {masks}, types.int32))))
    (code,) = function.inspect_asm().values()
    print(code)
"""


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="the run without compilation")
@pytest.mark.parametrize(
    ("cpu", "masks", "each"),
    [
        ("cortex-a72", "types.uint8", 3),
        ("cortex-a76", "types.uint8", 3),
        ("apple-m1", "types.uint8", 3),
        ("cortex-a76", "types.int8", 4),
    ],
)
def test_counts_that_do_not_fit_the_registers(cpu, masks, each, tmp_path):
    """The inner loop of 4 pixels times 8 filters reads and writes no memory for its counts."""
    environment = os.environ | {
        "NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": "+neon", "NUMBA_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    program = "\n".join(line[4:] for line in PROGRAM.replace("{masks}", masks).splitlines())
    run = subprocess.run(
        [sys.executable, "-c", program],
        env=environment, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    if "No available targets" in run.stderr or "Unable to find target" in run.stderr:
        pytest.skip("this LLVM cannot compile for ARM64")
    assert run.returncode == 0, run.stderr
    loops = [loop for loop in inner_loops(run.stdout) if sum("cnt" in line for line in loop) == 16]
    assert loops
    for loop in loops:
        vectors = [line for line in loop if re.search(r"\bv\d+\.16b", line)]
        assert len(vectors) == 16 * each, "\n".join(loop)
        assert not [line for line in loop if "[sp" in line or "[x29" in line], "\n".join(loop)


def inner_loops(assembly):
    """Return the instructions of each loop that contains no other label."""
    loops, label, lines = [], None, []
    for line in assembly.splitlines():
        if found := re.match(r"(\.\w+):", line):
            label, lines = found[1], []
        elif line.startswith("\t") and not line.startswith("\t."):
            lines = [*lines, line]
            if label is not None and line.split()[-1] == label:
                loops.append(lines)
    return loops
