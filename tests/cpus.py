"""The tests of the kernels once for each set of CPU features: python tests/cpus.py [NAME ...]

Numba compiles for a CPU with fewer features than the one that is there, and the tests compare
kernels with their references as they always do. Sets that this CPU does not have are left out.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

AVX2 = "+avx2,+avx,+bmi,+bmi2,+fma,+lzcnt,+popcnt,+sse4.2"
# What LLVM calls the CPU, and its features; None is the CPU that is there.
CPUS = {
    "native": None,
    "AVX-512": (  # without VPOPCNTDQ
        "skylake-avx512", f"+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx512cd,{AVX2}"
    ),
    "AVX2": ("haswell", AVX2),
    "SSE4.2": ("nehalem", "+sse4.2,+popcnt"),
    "generic": ("generic", ""),
}  # fmt: skip
TESTS = (
    "bits", "convolution_kernels", "depthwise", "dispatch", "fused", "gradient_words", "kernels",
    "lookup", "masked", "parallel", "pointwise", "pooling", "runtime", "ordered", "sign_gradients",
    "signed_zero", "simd", "tiles", "training_kernels", "windows",
)  # fmt: skip
# These set features themselves, or none of their tests is compiled.
LEFT_OUT = "not smaller_cpus and not other_cpus and not uncompiled"


def compiles_for(name):
    """Return the environment in which Numba compiles for a CPU of the table."""
    if CPUS[name] is None:
        return {}
    cpu, features = CPUS[name]
    return {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": features}


def is_there(name):
    """Tell whether this CPU has the features of one of the table."""
    import llvmlite.binding

    if CPUS[name] is None or name == "generic":
        return True
    has = llvmlite.binding.get_host_cpu_features()
    return all(has.get(feature.lstrip("+")) for feature in CPUS[name][1].split(","))


def run_tests(name, cache):
    """Run the tests; return whether they pass, and pytest's line of counts."""
    folder = Path(__file__).parent
    files = [str(folder / f"test_{test}.py") for test in TESTS]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "auto", "-p", "no:cacheprovider"]
    environment = {**os.environ, **compiles_for(name), "NUMBA_CACHE_DIR": cache}
    run = subprocess.run(
        [*command, *files, "-k", LEFT_OUT],
        env=environment | {"TINYBNN_CHILD": "1"}, stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    last = run.stdout.strip().splitlines()[-1]
    if run.returncode:
        print(run.stdout)
    return run.returncode == 0, re.sub("=+", "", last).strip()


def main(names):
    if unknown := set(names) - set(CPUS):
        sys.exit(f"CPUs are {', '.join(CPUS)}, got {', '.join(sorted(unknown))}")
    failed = []
    for name in names or CPUS:
        if not is_there(name):
            print(f"{name:8} this CPU has not all of its features", flush=True)
            continue
        with tempfile.TemporaryDirectory() as cache:
            passes, counts = run_tests(name, cache)
        print(f"{name:8} {counts}", flush=True)
        failed += [name] * (not passes)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
