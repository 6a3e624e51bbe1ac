"""The grader on files as students write them: each verdict names the line and the cause."""

import dataclasses
import os
import signal
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from tinybnn.course import process, report
from tinybnn.course.catalogue import exercise
from tinybnn.course.exercise import Wrong
from tinybnn.course.explain import explain, shown
from tinybnn.course.grading import Verdict, grade_file
from tinybnn.course.process import run_in_child

posix = pytest.mark.skipif(os.name != "posix", reason="needs signals of POSIX")
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs limits that Linux has")
ONE = exercise("00.1")  # asks for `sign`
RIGHT = """
import numpy as np

def sign(x):
    return np.where(x >= 0, np.float32(1), np.float32(-1))
"""


def graded(folder, code, seconds=60.0, name="bits.py"):
    """Grade a file with this text, or these bytes."""
    (folder / "mybnn").mkdir(exist_ok=True)
    content = code if isinstance(code, bytes) else textwrap.dedent(code).encode()
    (folder / "mybnn" / name).write_bytes(content)
    verdict = grade_file(dataclasses.replace(ONE, seconds=seconds), folder)
    assert "Traceback" not in verdict.message + verdict.printed
    assert str(Path(process.__file__).parent) not in verdict.message  # no line of the grader
    return verdict


def test_a_right_answer_passes_and_leaves_nothing_behind(tmp_path):
    verdict = graded(tmp_path, RIGHT)
    assert verdict.passed, verdict.message
    assert len(verdict.checked) == len(ONE.checks) and verdict.printed == ""
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["bits.py", "mybnn"]


# ------------------------------------------------------------------------- files that do not run

BROKEN = {
    "a syntax error": ("def sign(x:\n    return 1\n", "SyntaxError", 1),
    "an indentation error": ("def sign(x):\nreturn 1\n", "IndentationError", 2),
    "an error while it is imported": ("import numpy as np\nn = 1 / 0\n", "ZeroDivisionError", 2),
    "a name that is not there": ("from mybnn.bitts import sign\n", "mybnn.bitts", 1),
    "sys.exit": ("import sys\nsys.exit(0)\n", "ends the process", 2),
    "exit()": ("x = 1\nexit()\n", "ends the process", 2),
    "os._exit": ("import os\nos._exit(0)\n", "ends the process", 2),
    "input": ("n = int(input('how many? '))\n", "asks for input", 1),
    "a breakpoint": ("breakpoint()\n", "a debugger cannot be used here", 1),
    "an assertion of the student's": ("assert 1 == 2, 'no'\n", "AssertionError: no", 1),
    "a call of what is missing": ("def f():\n    raise NotImplementedError\nf()\n", "written", 2),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_does_not_run(kind, tmp_path):
    code, said, line = BROKEN[kind]
    verdict = graded(tmp_path, code)
    assert verdict.state == "broken" and said in verdict.message
    assert os.path.join("mybnn", f"bits.py, line {line}") in verdict.message


def test_an_error_in_another_file_of_the_student(tmp_path):
    graded(tmp_path, "def f(:\n", name="engine.py")
    verdict = graded(tmp_path, "from mybnn.engine import f\n")
    assert verdict.state == "broken" and "engine.py, line 1: def f(:" in verdict.message


@pytest.mark.parametrize("content", [b"x = 1\ny = '\xe9'\n", RIGHT.encode("utf-16")])
def test_a_file_that_is_no_utf_8(content, tmp_path):
    verdict = graded(tmp_path, content)
    assert verdict.state == "broken" and "save the file as UTF-8" in verdict.message
    if content[0] == b"x"[0]:
        assert "line 2: the byte 0xe9" in verdict.message


def test_a_file_with_null_bytes(tmp_path):
    verdict = graded(tmp_path, b"x = 1\n\0\0\n")
    assert verdict.state == "broken" and "null bytes" in verdict.message


def test_a_file_that_is_missing(tmp_path):
    verdict = grade_file(ONE, tmp_path)
    assert verdict.state == "broken"
    assert "there is no mybnn" in verdict.message
    assert f"`tinybnn course start {tmp_path}` puts back" in verdict.message


def test_another_file_of_the_course_is_missing(tmp_path):
    verdict = graded(tmp_path, "from mybnn.engine import Tensor\n")
    assert verdict.state == "broken" and "missing: mybnn/engine.py" in verdict.message
    assert f"`tinybnn course start {tmp_path}` puts back" in verdict.message


LEFT = {
    "above": ("raise NotImplementedError\n    return x", 5, "delete it; your code stands below"),
    "below": ("y = x\n    raise NotImplementedError", 6, "write what is missing, or delete it"),
}


@pytest.mark.parametrize("kind", LEFT)
def test_a_raise_that_was_left(kind, tmp_path):
    body, line, said = LEFT[kind]
    verdict = graded(tmp_path, f'\n\ndef sign(x):\n    """A text."""\n    {body}\n')
    assert verdict.state == "wrong"
    assert f"line {line} of {os.path.join('mybnn', 'bits.py')} still raises" in verdict.message
    assert said in verdict.message


@pytest.mark.parametrize("more", ["", '    """A text."""\n', "    # return x\n"])
def test_a_raise_alone_is_not_started(more, tmp_path):
    verdict = graded(tmp_path, f"def sign(x):\n{more}    raise NotImplementedError\n")
    assert verdict.state == "not started" and verdict.message == ONE.task


def test_a_folder_where_a_file_is_wanted(tmp_path):
    (tmp_path / "mybnn" / "bits.py").mkdir(parents=True)
    verdict = grade_file(ONE, tmp_path)
    assert verdict.state == "broken" and "is a folder, expected a file" in verdict.message


@posix
def test_a_pipe_where_a_file_is_wanted(tmp_path):
    (tmp_path / "mybnn").mkdir()
    os.mkfifo(tmp_path / "mybnn" / "bits.py")
    verdict = grade_file(ONE, tmp_path)
    assert verdict.state == "broken" and "not a regular file" in verdict.message


def test_an_empty_file_does_not_define_the_function(tmp_path):
    verdict = graded(tmp_path, "")
    assert verdict.state == "wrong" and "bits.py does not define sign" in verdict.message


# ------------------------------------------------------------------------ functions that misbehave

MISBEHAVES = {
    "an error of the student's": ("return x.shap", "sign raises AttributeError", "x.shap"),
    "sys.exit": ("import sys; sys.exit()", "ends the process", "sys.exit()"),
    "os._exit with code 0": ("import os; os._exit(0)", "ends the process", "os._exit(0)"),
    "input": ("return input()", "asks for input", "return input()"),
    "a breakpoint": ("breakpoint(); return x", "a debugger cannot be used here", "breakpoint()"),
    "pdb": ("import pdb; pdb.set_trace(); return x", "print instead", "pdb.set_trace()"),
    "recursion without end": ("return sign(x)", "RecursionError", "return sign(x)"),
    "writing into the argument": ("x[...] = 1; return x", "writes into its argument x", ""),
    "no return": ("y = x", "is a return missing?", ""),
    "a thing that is no array": ("return object()", "the answer is of type object", ""),
    "a text": ("return 'one'", "the answer is of type str", ""),
    "a ragged list": ("return [[1], [1, 2]]", "the answer is of type list", ""),
    "an array too large": ("return np.zeros(2 ** 45)", "memory was used up", "np.zeros(2 ** 45)"),
}


@pytest.mark.parametrize("kind", MISBEHAVES)
def test_a_function_that_misbehaves(kind, tmp_path):
    body, said, line = MISBEHAVES[kind]
    verdict = graded(tmp_path, f"import numpy as np\n\ndef sign(x):\n    {body}\n")
    assert verdict.state == "wrong" and said in verdict.message
    if line:
        assert os.path.join("mybnn", "bits.py, line 4: ") in verdict.message
        assert line in verdict.message


def test_an_answer_that_changes_from_call_to_call(tmp_path):
    verdict = graded(
        tmp_path,
        """
        import itertools, numpy as np
        calls = itertools.count()
        def sign(x):
            return np.where(x >= 0, np.float32(1), np.float32(-1)) * (1 if next(calls) < 3 else 2)
        """,
    )
    assert verdict.state == "wrong" and verdict.message


def test_an_object_whose_repr_raises():
    class Odd:
        def __repr__(self):
            raise RuntimeError

    assert shown(Odd()) == ["<Odd whose repr raises RuntimeError>"]


# --------------------------------------------------------------------------- time, memory, the end


@pytest.mark.parametrize(
    ("code", "line", "doing"),
    [
        ("def sign(x):\n    while True:\n        pass\n", "line ", "while   checking that sign is"),
        ("import time\ntime.sleep(1e6)\n", "line 2: time.sleep(1e6)", "while   importing"),
        (
            "def sign(x):\n    while True:\n        print('x' * 9999)\n",
            "line 3: print(",
            "checking",
        ),
    ],
    ids=["a loop", "while it is imported", "endless printing"],
)
def test_what_does_not_end(code, line, doing, tmp_path):
    start = time.perf_counter()
    verdict = graded(tmp_path, code, seconds=2.0)
    assert time.perf_counter() - start < 40
    assert verdict.state == "too slow" and "the time was up after 2 s" in verdict.message
    assert line in verdict.message and doing in verdict.message
    assert len(verdict.printed) < 5000


def test_a_loop_without_end_in_compiled_code(tmp_path):
    code = """
        import numba
        @numba.njit
        def sign(x):
            i = 0
            while i >= 0:
                i = (i + 1) % 7
            return x
        """
    verdict = graded(tmp_path, code, seconds=8.0)
    assert verdict.state == "too slow" and "checking that sign is" in verdict.message


def test_a_busy_computer_is_not_the_fault_of_the_code(tmp_path, monkeypatch):
    """Time is that of computing; by the clock it may be several times as long."""
    monkeypatch.setattr(process, "_computed", lambda pid: 0.0)
    monkeypatch.setattr(process, "_WAITING", 60)
    code = f"import time\nstart = time.time()\nwhile time.time() < start + 2: pass\n{RIGHT}"
    assert graded(tmp_path, code, seconds=1.0).passed
    monkeypatch.setattr(process, "_WAITING", 1)
    assert graded(tmp_path, code, seconds=1.0).state == "too slow"


def test_without_a_clock_of_computing(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "_computed", lambda pid: None)
    verdict = graded(tmp_path, "while True:\n    pass\n", seconds=1.0)
    assert verdict.state == "too slow" and "after 1 s: a loop" in verdict.message
    assert "line 1" in verdict.message or "line 2: pass" in verdict.message


def test_what_waits_without_computing(tmp_path):
    verdict = graded(tmp_path, "import time\ntime.sleep(1e6)\n", seconds=1.0)
    assert verdict.state == "too slow" and "computing or 5 s with waiting" in verdict.message
    assert "line 2: time.sleep" in verdict.message


@linux
def test_a_file_without_end(tmp_path):
    code = """
        def sign(x):
            with open("large", "wb") as file:
                while True:
                    file.write(bytes(1 << 24))
        """
    verdict = graded(tmp_path, code)
    assert verdict.state == "wrong" and "File too large" in verdict.message
    (tmp_path / "large").unlink()


def test_a_clock_that_the_student_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "_GRACE", 3.0)
    code = """
        import faulthandler
        faulthandler.cancel_dump_traceback_later()
        while True:
            pass
        """
    verdict = graded(tmp_path, code, seconds=1.0)
    assert verdict.state == "too slow"


@linux
def test_memory_without_end(tmp_path):
    code = """
        def sign(x):
            grown = []
            while True:
                grown.append(float(len(grown)))
        """
    verdict = graded(tmp_path, code)
    assert verdict.state == "wrong" and "a list or an array grows without end" in verdict.message
    assert "line 5: grown.append" in verdict.message


@posix
@pytest.mark.parametrize(
    ("body", "name", "line"),
    [
        ("import ctypes; return ctypes.string_at(0)", "SIGSEGV", "line 2: import ctypes"),
        ("import os; os.abort()", "SIGABRT", "line 2: import os; os.abort()"),
        ("import os; os.kill(os.getpid(), 9)", "SIGKILL", "while   checking that sign is"),
    ],
)
def test_a_crash(body, name, line, tmp_path):
    verdict = graded(tmp_path, f"def sign(x):\n    {body}\n")
    assert verdict.state == "broken"
    assert name in verdict.message and line in verdict.message


@posix
def test_a_copy_of_the_process_gives_no_verdict(tmp_path):
    """The parent waits for an hour; its copy gives the right answer."""
    code = "import os, time\nif os.fork():\n    time.sleep(3600)\n" + RIGHT
    verdict = graded(tmp_path, code, seconds=6.0)
    assert verdict.state == "too slow" and "line 3: time.sleep(3600)" in verdict.message


@posix
def test_what_the_student_has_started_ends_too(tmp_path):
    code = f"""
        import subprocess, sys
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
        {RIGHT.replace(chr(10), chr(10) + "        ")}
        """
    verdict = graded(tmp_path, code)
    assert verdict.passed, verdict.message
    pid = int((tmp_path / "pid").read_text())
    for _ in range(50):
        if not _lives(pid):
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    raise AssertionError("it lives on")


def _lives(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_a_call_that_fails_has_no_value(tmp_path):
    ended = run_in_child("tinybnn.course.report:line", [], tmp_path, 10.0)
    assert ended.value is None and "AttributeError" in ended.problem


def test_a_process_that_ends_at_once_has_not_passed(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "_START", "raise SystemExit(0)")
    verdict = graded(tmp_path, RIGHT)
    assert verdict.state == "broken" and "ended (exit code 0) before the checks" in verdict.message


# ------------------------------------------------------------------------------ imports and network

REFUSED = {
    "at the top": "import tinybnn\ndef sign(x): return x",
    "a part of it": "from tinybnn.quantizers import ste_sign\ndef sign(x): return x",
    "inside the function": "def sign(x):\n    import tinybnn\n    return x",
    "by its name": "import importlib\ndef sign(x): return importlib.import_module('tinybnn')",
    "by its name, in parts": "from importlib import import_module\n"
    "def sign(x): return import_module('tinybnn.quantizers').ste_sign.forward(x)",
    "by __import__": "def sign(x): return __import__('tinybnn').quantizers.ste_sign.forward(x)",
    "by exec": "def sign(x):\n    exec('import tinybnn')\n    return x",
    "by eval of eval": "def sign(x): return eval('eval(\"__import__(\\'tinybnn\\')\")')",
    "through the standard library": "import timeit\n"
    "def sign(x): return timeit.timeit('tinybnn', 'import tinybnn', number=1)",
    "through pkgutil": "import pkgutil\ndef sign(x): pkgutil.resolve_name('tinybnn.nn')",
    "through pickle": "import pickle\ndef sign(x): pickle.loads(b'ctinybnn.nn\\nModule\\n.')",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_tinybnn_is_no_solution(kind, tmp_path):
    verdict = graded(tmp_path, REFUSED[kind])
    assert verdict.state in ("wrong", "broken")
    assert (
        "tinybnn may not be imported here, since you write it yourself; use the" in verdict.message
    )
    assert "bits.py, line " in verdict.message


EXTENDING = """
import numpy as np
import tinybnn as tb
from tinybnn import nn, quantizers

class SineSign(quantizers.Quantizer):
    def forward(self, x):
        from tinybnn.quantizers import sign
        return sign(x)

    def pseudo_gradient(self, x):
        return np.where(np.abs(x) <= 1, np.pi / 2 * np.cos(np.pi / 2 * x), 0).astype(x.dtype)

    def surrogate(self, x):
        return tb.sin(np.pi / 2 * tb.clamp(x, -1.0, 1.0))
"""


def extending(folder, code):
    """The verdict on this text as the file of the chapter that extends tinybnn."""
    (folder / "mybnn").mkdir(exist_ok=True)
    (folder / "mybnn" / "own_layer.py").write_text(code)
    return grade_file(exercise("12.1"), folder)


def test_the_file_that_extends_tinybnn_imports_it(tmp_path):
    verdict = extending(tmp_path, EXTENDING)
    assert verdict.passed, verdict.message


def test_a_file_of_another_chapter_does_not_import_tinybnn_by_way_of_that_file(tmp_path):
    """Neither while its own chapter is checked, nor for the chapter that extends tinybnn."""
    extending(tmp_path, "from tinybnn import quantizers\n")
    verdict = graded(tmp_path, f"from mybnn.own_layer import quantizers\n{RIGHT}")
    assert verdict.state == "broken" and "own_layer.py, line 1" in verdict.message
    assert "since you write it yourself" in verdict.message
    graded(tmp_path, "from tinybnn import quantizers\n", name="helper.py")
    verdict = extending(tmp_path, f"from mybnn import helper\n{EXTENDING}")
    assert verdict.state == "broken" and "helper.py, line 1" in verdict.message


@pytest.mark.parametrize(
    "line",
    [
        "from tinybnn import course", "import tinybnn.course.checks.own_layer",
        "from tinybnn.course.checks.own_layer import EXERCISES",
        "import importlib; importlib.import_module('tinybnn.course.grading')",
    ],
)  # fmt: skip
def test_the_checks_are_no_part_of_what_is_extended(line, tmp_path):
    verdict = extending(tmp_path, f"{line}\n{EXTENDING}")
    assert verdict.state == "broken" and "own_layer.py, line 1" in verdict.message
    assert "tinybnn.course may not be imported here, since it holds the checks" in verdict.message


def test_a_method_that_is_not_written_yet(tmp_path):
    last = EXTENDING[EXTENDING.index("return tb.sin") :]
    verdict = extending(tmp_path, EXTENDING.replace(last, "raise NotImplementedError\n"))
    assert verdict.state == "not started" and "missing surrogate: mybnn" in verdict.message
    assert "needs" not in verdict.message


def test_other_packages_are_no_part_of_the_file_that_extends_tinybnn(tmp_path):
    verdict = extending(tmp_path, f"import scipy\n{EXTENDING}")
    assert verdict.state == "broken" and "scipy may not be imported here; use" in verdict.message
    assert "tinybnn, the standard library, NumPy" in verdict.message


@pytest.mark.parametrize("name", ["scipy", "hypothesis", "matplotlib"])
def test_other_packages_are_no_part_of_the_course(name, tmp_path):
    verdict = graded(tmp_path, f"import {name}\n{RIGHT}")
    assert verdict.state == "broken" and f"{name} may not be imported here" in verdict.message


def test_a_copy_of_tinybnn_is_no_file_of_the_student(tmp_path):
    (tmp_path / "tinybnn.py").write_text("answer = 42\n")
    verdict = graded(tmp_path, "import tinybnn\n" + RIGHT)
    assert verdict.state == "broken" and "tinybnn may not be imported here" in verdict.message


def test_what_the_course_allows(tmp_path):
    """The standard library, NumPy, Numba and the student's files; Numba imports what it needs."""
    graded(tmp_path, "import json\nONE = 1\n", name="other.py")
    (tmp_path / "helper.py").write_text("from mybnn.other import ONE\n")
    code = """
        import ctypes, multiprocessing, unittest.mock
        import numba, numpy as np
        import helper
        from mybnn.other import ONE
        from . import other

        @numba.njit
        def sign(x):
            y = np.empty(x.size, np.float32)
            for i, v in enumerate(x.flat):
                y[i] = 1 if v >= 0 else -1
            return y.reshape(x.shape)
        """
    verdict = graded(tmp_path, code)
    assert verdict.passed, verdict.message


def test_files_called_as_those_of_the_standard_library(tmp_path):
    for name in ("random", "json", "numpy", "hypothesis"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('the wrong file')\n")
    verdict = graded(tmp_path, RIGHT)
    assert verdict.passed, verdict.message


def test_the_file_as_it_is_now(tmp_path):
    """The file is graded, not a `__pycache__` from the same second."""
    graded(tmp_path, RIGHT)
    path = tmp_path / "mybnn" / "bits.py"
    import py_compile

    py_compile.compile(str(path))
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_text(RIGHT.replace(">=", "> "))
    os.utime(path, ns=times)
    assert grade_file(ONE, tmp_path).state == "wrong"


@pytest.mark.parametrize(
    "call",
    [
        "socket.socket()",
        "socket.create_connection(('127.0.0.1', 9))",
        "socket.getaddrinfo('localhost', 80)",
        "__import__('_socket').socket()",
        "urllib.request.urlopen('http://127.0.0.1:9')",
    ],
)
def test_there_is_no_network(call, tmp_path):
    code = f"import socket, urllib.request\ndef sign(x): return {call}\n"
    verdict = graded(tmp_path, code)
    assert (
        verdict.state == "wrong" and "there is no network while the checks run" in verdict.message
    )


# ------------------------------------------------------------------------------------ what is shown


def test_prints_are_shown(tmp_path):
    verdict = graded(
        tmp_path, RIGHT.replace("    return", "    print('here', x.shape, '.' * 100)\n    return")
    )
    assert verdict.passed and verdict.printed.startswith("here (")
    assert "more characters" in verdict.printed and len(verdict.printed) < 5000
    assert "printed here (" in "\n".join(report.messages([verdict]))


@pytest.mark.parametrize(("state", "lines"), [("passed", 21), ("wrong", 100)])
def test_of_what_a_right_answer_prints_the_beginning_is_shown(state, lines):
    printed = "\n".join(f"line {i} end" for i in range(100))
    (text,) = report.messages([Verdict("00.1", state, printed=printed)])
    assert len(text.strip("\n").split("\n")) == 1 + lines
    assert ("line 99 end" in text) == (state == "wrong")
    assert ("... and 80 more lines" in text) == (state == "passed")


def test_the_shrunk_counterexample_is_shown(tmp_path):
    verdict = graded(tmp_path, RIGHT.replace("x >= 0", "(x >= 0) & (x < 3)"))
    assert "with    x = [3.] (float32)\n  got     -1.0\n" in verdict.message
    assert "read    00_bits_and_signs, section 'The sign of zero'" in verdict.message


def test_a_folder_whose_name_has_a_space(tmp_path):
    (tmp_path / "my course").mkdir()
    verdict = grade_file(ONE, tmp_path / "my course")
    assert f'`tinybnn course start "{tmp_path / "my course"}"` puts back' in verdict.message


@pytest.mark.parametrize("body", ["x[...] = 1; return x", "x.fill(1)"])
def test_what_stood_in_an_argument_and_what_then_stands_there(body, tmp_path):
    verdict = graded(tmp_path, f"def sign(x):\n    {body}\n")
    lines = verdict.message.split("\n")
    assert "writes into its argument x" in lines[0] and lines[1] == "  before  2.0  0.0  -0.0  -1.0"
    assert lines[-2] == "  after   1.0  1.0   1.0   1.0" and "wanted" not in verdict.message


FORMAL = {
    "an error": "return x.shap",
    "None": "y = x",
    "a call that does not fit": "return sign(x, x)",
    "dtype": "return np.where(x >= 0, 1.0, -1.0)",
}


@pytest.mark.parametrize("kind", FORMAL)
def test_what_no_section_explains_is_in_the_docstring(kind, tmp_path):
    verdict = graded(tmp_path, f"import numpy as np\n\ndef sign(x):\n    {FORMAL[kind]}\n")
    assert verdict.message.endswith("  read    mybnn/bits.py, docstring of sign")


@pytest.mark.parametrize(
    ("more", "read"),
    [
        ({"section": "docstring"}, "mybnn/bits.py, docstring of sign"),
        ({"section": ONE.section, "cause": ValueError()}, repr(ONE.section)),
        ({}, repr(ONE.section)),
    ],
)
def test_a_check_names_what_to_read(more, read):
    assert explain(Wrong("no", {}, 1, 2, **more), ONE, "/nowhere").endswith(read)


def test_a_value_that_is_wanted_in_words():
    text = explain(Wrong("no", {}, 3.0, 7.57e-11, wanted="about 0"), ONE, "/nowhere")
    assert "  got     3.0\n  wanted  about 0\n" in text and "e-11" not in text


def test_a_long_row_of_signs_is_a_row_of_plus_and_minus():
    x = np.tile(np.float32([1, -1, 1, 1]), 18)
    first, *rows = shown(x)
    assert first == "72 values +1 and -1 (float32), from element 0 on:"
    assert rows == ["+-++" * 16, "+-++" * 2]
    assert "+" not in "".join(shown(x[:16])) and "+" not in "".join(shown(2 * x))
    assert "+" not in "".join(shown(np.ones(20, bool)))


def test_bits_are_shown_in_the_same_width():
    class Binary(int):
        def __repr__(self):
            return f"{int(self):#b}"

    lines = wrong(Binary(5), Binary(18))
    assert lines == ["  got     0b00101", "  wanted  0b10010"]
    assert wrong(5, 18) == ["  got     5", "  wanted  18"]


def wrong(got, expected, **inputs):
    return explain(Wrong("no", inputs, got, expected), ONE, "/nowhere").split("\n")[1:-1]


def test_marks_are_under_the_values_that_differ():
    assert wrong(np.float32([1, 2, 30]), np.float32([1, 2.5, 3])) == [
        "  got     1.0  2.0  30.0",
        "               ^^^  ^^^^",
        "  wanted  1.0  2.5   3.0",
    ]


def test_a_matrix_has_marks_in_each_row_that_differs():
    assert wrong(np.array([[1, 2], [3, 4]]), np.array([[1, 2], [3, -4]])) == [
        "  got     1   2",
        "          3   4",
        "              ^",
        "  wanted  1   2",
        "          3  -4",
    ]


def test_of_more_dimensions_the_first_matrix_that_differs_is_shown():
    expected = np.zeros((2, 3, 2), int)
    got = expected.copy()
    got[1, 2, 0] = 7
    lines = wrong(got, expected)
    assert lines[0] == "  got     [1] 0  0" and "7" in lines[2] and lines[3].strip() == "^"


def test_of_a_large_array_the_first_difference_is_told():
    expected = np.zeros((100, 100))
    got = expected.copy()
    got[3, 4] = np.nan
    text = "\n".join(wrong(got, expected))
    assert "1 of 10000 values; the first at [3, 4]: got nan, wanted 0.0" in text
    assert "float64 of shape (100, 100)" in text


def test_equal_values_are_told_apart_by_all_digits():
    lines = wrong(np.array([0.1 + 0.2]), np.array([0.3]))
    assert (
        lines[0] == "  got     0.30000000000000004" and lines[2] == "  wanted                  0.3"
    )


def test_nan_equals_nan_in_a_table():
    lines = wrong(np.array([np.nan, 1.0]), np.array([np.nan, 2.0]))
    assert lines[1].strip() == "^^^" and lines[1].endswith("^^^") and lines[0].endswith("1.0")


@pytest.mark.parametrize(
    "value",
    ["x" * 10**6, list(range(10**6)), np.zeros(10**6), 7**10_000],
    ids=["text", "list", "array", "number"],
)
def test_a_long_value_is_cut(value):
    lines = shown(value)
    assert len("\n".join(lines)) < 1000


def test_without_hypothesis_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(ValueError, match=r"pip install 'tinybnn\[tutorials\]'"):
        grade_file(ONE, tmp_path)
