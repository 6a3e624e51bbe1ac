"""A class is graded: what students hand in, the points, the reports, and what cannot be done."""

import csv
import json
import os
import shutil
import sys
from datetime import datetime, timezone
from pathlib import Path

import pytest

from tinybnn import cli
from tinybnn.course import grades as module
from tinybnn.course.catalogue import select
from tinybnn.course.grades import cell, grade_class, report_name
from tinybnn.course.rubric import read_rubric
from tinybnn.course.submissions import parse_time, read_submission, students
from tinybnn.storage import StorageError

from students import HERE, SKELETONS, SOLUTIONS

posix = pytest.mark.skipif(os.name != "posix", reason="needs file names and links of POSIX")
RIGHT = (SOLUTIONS / "bits.py").read_text(encoding="utf-8")
ONE = {"00.1": 1.0}
FILES = ["bits", "estimators"]


@pytest.fixture
def sub(tmp_path):
    (tmp_path / "sub").mkdir()
    return tmp_path / "sub"


def hand_in(sub, student, text, inside="mybnn", name="bits.py"):
    folder = sub / student / inside
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def graded(sub, points=ONE, **kw):
    """The grades, by the student's name."""
    out = sub.parent
    found = grade_class(sub, out / "reports", out / "grades.csv", points, **kw)
    return {one.submission.student: one for one in found}


def table(sub):
    with open(sub.parent / "grades.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def report_of(sub, student):
    return (sub.parent / "reports" / report_name(student)).read_text(encoding="utf-8")


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def no_process(monkeypatch):
    """Grading without processes: what stands in the file is the state."""

    def grade_file(one, folder, closed):
        calls.append(one.number)
        path = Path(folder, "mybnn", "bits.py")
        state = path.read_text().strip() if path.is_file() else "broken"
        return module.Verdict(one.number, state, f"{path}: 0x7f0011223344", printed="hello")

    calls = []
    monkeypatch.setattr(module, "grade_file", grade_file)
    return calls


# ------------------------------------------------------------------------------------------ a class


def a_class(sub):
    """Thirty students, each with a file for one of two exercises, and all of these run."""
    right = {name: (SOLUTIONS / f"{name}.py").read_text(encoding="utf-8") for name in FILES}
    texts = [(FILES[i % 2], f"{right[FILES[i % 2]]}\n# student {i}\n") for i in range(4)]
    texts += [(name, (SKELETONS / f"{name}.py").read_text(encoding="utf-8")) for name in FILES * 3]
    for number, name in zip(("00_1", "02_1"), FILES, strict=True):
        wrong = sorted((HERE / "wrong").glob(f"{number}_*.py"))[:6]
        texts += [(name, f"{right[name]}\n\n{path.read_text('utf-8')}") for path in wrong]
    texts += [("bits", "def sign(:\n"), ("bits", "x = (\n")]
    texts += [("bits", "def sign(x):\n    while True:\n        print('no end')\n")]
    texts += [("bits", "import tinybnn\nfrom tinybnn import sign\n")]
    texts += [("bits", RIGHT + "\nprint('x' * 1_000_000)\n")]
    texts += [("bits", RIGHT + "\nopen('other', 'w').close()\n")]
    for i, (name, text) in enumerate(texts):
        inside = ("mybnn", ".", "course/mybnn")[i % 3]
        hand_in(sub, f"student {i:02}", text, inside, f"{name}.py")
    (sub / "student 28").mkdir()
    (sub / "student 29" / "notes").mkdir(parents=True)
    (sub / "student 29" / "notes" / "answer.txt").write_text("in the other file")


@pytest.mark.slow
def test_a_class_of_30_graded_twice_with_the_same_result(sub, tmp_path):
    a_class(sub)
    before = contents(sub)
    for name in ("first", "second"):
        out = tmp_path / name
        points = {"00.1": 2.0, "02.1": 1.0}
        found = grade_class(sub, out / "reports", out / "grades.csv", points, seconds=12.0)
    first, second = (contents(tmp_path / name) for name in ("first", "second"))
    assert first == second and len(first) == 30 + 3
    assert contents(sub) == before
    assert [one.total for one in found] == [2, 1, 2, 1] + [0] * 22 + [2, 2, 0, 0]
    states = [{v.state for v in one.verdicts.values()} - {"not started"} for one in found]
    assert states[4:10] == [set()] * 6 and states[10:22] == [{"wrong"}] * 12
    assert states[22:26] == [{"broken"}, {"broken"}, {"too slow"}, {"broken"}]
    remarks = ["; ".join(one.remarks) for one in found]
    assert "too slow: 00.1" in remarks[24]
    assert remarks[25].startswith(f"imports tinybnn ({os.path.join('mybnn', 'bits.py')}, line 1)")
    assert "no file of the course" in remarks[28] and "no file of the course" in remarks[29]
    assert all(len(content) < 20_000 for content in first.values() if content[:2] == b"# ")


def test_code_of_students_stays_in_its_copy(sub):
    """It neither reads another student's folder nor writes there or into the reports."""
    hand_in(sub, "anna", RIGHT)
    solution = str(SOLUTIONS / "bits.py")
    places = {
        "program": f"import subprocess; subprocess.run(['cat', {solution!r}])",
        "shell": f"import os; os.system('touch {sub / 'anna' / 'mybnn' / 'new.py'}')",
        "read": f"open({str(sub / 'anna' / 'mybnn' / 'bits.py')!r})",
        "write": f"open({str(sub / 'anna' / 'mybnn' / 'new.py')!r}, 'w')",
        "list": f"__import__('os').listdir({str(sub)!r})",
        "remove": f"__import__('shutil').rmtree({str(sub / 'anna')!r})",
        "rename": f"__import__('os').rename('mybnn', {str(sub / 'mine')!r})",
        "report": f"open({str(sub.parent / 'reports' / 'students' / 'anna.md')!r}, 'a')",
        "table": f"open({str(sub.parent / 'grades.csv')!r}, 'w')",
    }
    checkout = Path(module.__file__).parents[2]  # a wheel does not know where the solutions are
    if SOLUTIONS.is_relative_to(checkout):
        places["solution"] = f"exec(open({solution!r}).read())"
    for name, code in places.items():
        hand_in(sub, name, f"{code}\n{RIGHT}")
    before = contents(sub)
    found = graded(sub)
    assert found["anna"].total == 1 and contents(sub) == before
    for name in places:
        message = found[name].verdicts["00.1"].message
        assert "PermissionError: the checks do not let code" in message, (name, message)


def test_what_code_writes_for_one_exercise_is_gone_for_the_next(sub):
    """So a verdict does not depend on which others are kept."""
    change = "open('mybnn/bits.py', 'w').write('def sign(:')\n"
    hand_in(sub, "anna", f"{RIGHT}\n{change}")
    found = graded(sub, {"00.1": 1.0, "00.2": 1.0})["anna"]
    assert found.total == 2


def test_what_sleeps_is_too_slow(sub):
    hand_in(sub, "anna", "import time\ntime.sleep(1e6)\n")
    assert graded(sub, seconds=1.0)["anna"].verdicts["00.1"].state == "too slow"


def test_a_student_who_imports_tinybnn_is_named(sub):
    hand_in(sub, "anna", "\nfrom tinybnn.quantizers import ste_sign as sign\n")
    assert graded(sub)["anna"].remarks == [
        f"imports tinybnn ({os.path.join('mybnn', 'bits.py')}, line 2)", "does not run: 00.1",
    ]  # fmt: skip
    assert "since you write it yourself" in report_of(sub, "anna")


def test_what_differs_from_run_to_run_is_in_no_report(sub):
    """Where the loop was, how much it had printed, places in memory, temporary folders."""
    hand_in(sub, "anna", "def sign(x):\n    while True:\n        print('x')\n")
    hand_in(sub, "ben", "def sign(x):\n    raise ValueError(f'{object()} {__file__}')\n")
    graded(sub, seconds=2.0)
    slow, text = report_of(sub, "anna"), report_of(sub, "ben")
    assert "the time was up after 2 s" in slow and "line" not in slow and "printed" not in slow
    assert "<object object at 0x...> ./mybnn/bits.py" in text.replace(os.sep, "/")


# ------------------------------------------------------------------------- again, and interruptions


def test_what_was_graded_is_not_graded_again(sub, no_process):
    for name, state in (("anna", "passed"), ("ben", "wrong"), ("cleo", "wrong")):
        hand_in(sub, name, state)
    graded(sub)
    assert len(no_process) == 2  # the same files have the same verdicts
    before = contents(sub.parent)
    graded(sub)
    assert len(no_process) == 2 and contents(sub.parent) == before
    hand_in(sub, "ben", "passed\n\n")
    assert graded(sub)["ben"].total == 1 and len(no_process) == 3
    graded(sub, {"00.1": 1.0, "00.2": 1.0})
    assert no_process[3:] == ["00.2"] * 3
    graded(sub, seconds=1.0)
    assert len(no_process) == 9
    graded(sub, again=True)
    assert len(no_process) == 12


def test_another_version_of_the_checks_grades_anew(sub, no_process, monkeypatch):
    hand_in(sub, "anna", "passed")
    graded(sub)
    monkeypatch.setattr(module, "_course", lambda: "other")
    graded(sub)
    assert len(no_process) == 2


def test_an_interrupted_class_goes_on_where_it_was(sub, no_process, monkeypatch):
    for name in ("anna", "ben", "cleo"):
        hand_in(sub, name, f"passed\n{'#' * len(name)}"[:7])
        (sub / name / "mybnn" / "own.py").write_text(name)
    working = module.grade_file

    def interrupted(one, folder, closed):
        if len(no_process) == 2:
            raise KeyboardInterrupt
        return working(one, folder, closed)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "grade_file", interrupted)
        graded(sub)
    assert not (sub.parent / "grades.csv").exists()
    assert len(graded(sub)) == 3 and len(no_process) == 3


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": "other"}', b"\xff"])
def test_damaged_verdicts_are_an_error_and_stay(content, sub, no_process):
    hand_in(sub, "anna", "passed")
    graded(sub)
    path = sub.parent / "reports" / "grades.json"
    path.write_bytes(content)
    with pytest.raises(StorageError, match=r"grades\.json is damaged .*--reports"):
        graded(sub)
    assert path.read_bytes() == content
    assert graded(sub, again=True)["anna"].total == 1


# -------------------------------------------------------------------------------- what is handed in


@pytest.mark.parametrize("inside", ["mybnn", ".", "course/mybnn", "a/b/mybnn", "mybnn/mybnn", "My"])
def test_where_the_files_may_lie(inside, sub):
    hand_in(sub, "anna", "x = 1", inside)
    (sub / "anna" / inside / "own.py").write_text("y = 2")
    found = read_submission(sub, "anna")
    assert found.files == {"mybnn/bits.py": b"x = 1", "mybnn/own.py": b"y = 2"}
    assert found.remarks == []


def test_files_that_were_not_handed_in_are_those_of_the_course(sub):
    """So a week's file alone can be graded, although it imports the engine."""
    text = (SOLUTIONS / "estimators.py").read_text(encoding="utf-8")
    assert "from mybnn.engine import" in text
    hand_in(sub, "anna", text, name="estimators.py")
    found = graded(sub, {"00.1": 1.0, "02.1": 1.0})["anna"]
    states = {number: verdict.state for number, verdict in found.verdicts.items()}
    assert states == {"00.1": "not started", "02.1": "passed"} and found.remarks == []


def test_a_file_beside_the_package_comes_along(sub):
    hand_in(sub, "anna", "import helper")
    (sub / "anna" / "helper.py").write_text("x = 1")
    assert set(read_submission(sub, "anna").files) == {"mybnn/bits.py", "helper.py"}


def test_of_several_packages_one_is_graded_and_the_others_named(sub):
    hand_in(sub, "anna", "first", "new/mybnn")
    hand_in(sub, "anna", "second", "old/mybnn")
    found = read_submission(sub, "anna")
    assert found.files == {"mybnn/bits.py": b"first"}
    assert found.remarks == ["old is not graded, since new is"]


def test_environments_caches_and_hidden_folders_are_left_out(sub):
    hand_in(sub, "anna", "x = 1")
    for inside in ("venv", ".git", "mybnn/__pycache__", "__MACOSX/mybnn"):
        hand_in(sub, "anna", "other", inside)
    (sub / "anna" / "venv" / "pyvenv.cfg").write_text("")
    found = read_submission(sub, "anna")
    assert found.files == {"mybnn/bits.py": b"x = 1"} and found.remarks == []


@pytest.mark.parametrize("kind", ["empty", "other files"])
def test_nothing_of_the_course(kind, sub):
    (sub / "anna").mkdir()
    if kind == "other files":
        (sub / "anna" / "answer.py").write_text("sign = 1")
    found = graded(sub)["anna"]
    assert found.total == 0 and found.submission.files == {} and found.submission.submitted is None
    but = ", but answer.py" if kind == "other files" else ""
    assert found.remarks == [f"no file of the course{but}"]
    assert "Submitted: nothing\n" in report_of(sub, "anna")


def test_an_archive_a_notebook_or_another_name_is_named(sub):
    hand_in(sub, "anna", RIGHT, name="bits (1).py")
    for name in ("mybnn.zip", "00_bits_and_signs.ipynb", "a.pdf"):
        (sub / "anna" / name).write_bytes(b"PK")
    [remark] = read_submission(sub, "anna").remarks
    assert "mybnn/bits (1).py, 00_bits_and_signs.ipynb, a.pdf, ..." in remark


@posix
def test_links_are_not_followed(sub, tmp_path):
    outside = hand_in(tmp_path, "outside", RIGHT)
    (sub / "anna").symlink_to(outside.parent)
    (sub / "ben").mkdir()
    (sub / "ben" / "mybnn").symlink_to(outside)
    hand_in(sub, "cleo", RIGHT)
    (sub / "cleo" / "mybnn" / "bits.py").unlink()
    (sub / "cleo" / "mybnn" / "bits.py").symlink_to(outside / "bits.py")
    (sub / "cleo" / "mybnn" / "engine.py").write_text("x = 1")
    (sub / "cleo" / "submitted").symlink_to(outside / "bits.py")
    found = graded(sub)
    assert [one.total for one in found.values()] == [0, 0, 0]
    assert all("link, which is not followed" in one.remarks[0] for one in found.values())
    assert set(found["cleo"].submission.files) == {"mybnn/engine.py"}


@posix
def test_a_pipe_among_the_files(sub):
    hand_in(sub, "anna", "x = 1")
    os.mkfifo(sub / "anna" / "mybnn" / "engine.py")
    os.mkfifo(sub / "anna" / "submitted")
    found = read_submission(sub, "anna")
    assert set(found.files) == {"mybnn/bits.py"}
    assert found.remarks[0] == "mybnn/engine.py cannot be read: not a regular file"


@posix
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission(sub):
    path = hand_in(sub, "anna", "x = 1") / "bits.py"
    path.chmod(0)
    assert read_submission(sub, "anna").remarks == [
        "mybnn/bits.py cannot be read: Permission denied"
    ]


def test_a_file_that_cannot_be_read(sub, monkeypatch):
    from tinybnn.course import submissions

    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    hand_in(sub, "anna", "x = 1")
    monkeypatch.setattr(submissions, "open_regular", denied)
    found = graded(sub)["anna"]
    assert found.remarks[0] == "mybnn/bits.py cannot be read: Permission denied"


def test_a_large_file_and_a_great_many(sub):
    folder = hand_in(sub, "anna", "x = 1")
    (folder / "data.py").write_bytes(b"#" * (2 << 20))
    found = read_submission(sub, "anna")
    assert set(found.files) == {"mybnn/bits.py"}
    assert found.remarks == ["mybnn/data.py is larger than 1 MiB and left out"]
    for i in range(300):
        (folder / f"own{i}.py").write_text("")
    found = read_submission(sub, "anna")
    assert len(found.files) < 200 and "more than 200 Python files" in found.remarks[0]


def test_files_beside_the_students_folders_are_named(sub):
    hand_in(sub, "anna", "x")
    (sub / "ben.zip").write_bytes(b"PK")
    (sub / ".git").mkdir()
    assert students(sub) == (["anna"], ["ben.zip"])


# ---------------------------------------------------------------------------------- names and cells

NAMES = [
    "=1+1", "+1", "-1", "@SUM(A1)", "a\nb", "a\tb", "\x1b[2J", "Müller, Ännchen", "|", "a" * 200,
    "<script>", "![](http:)", "a;b", '"', "b\udce4d", "CON .", "=", "\u202eabc",
]  # fmt: skip


@posix
def test_names_that_a_spreadsheet_or_a_terminal_would_obey(sub, no_process, capsys):
    for name in NAMES:
        hand_in(sub, name, "passed")
    out = sub.parent
    words = ["course", "grade", str(sub), "--csv", str(out / "grades.csv"), "--only", "00.1"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    rows = table(sub)
    assert len(rows) == len(NAMES) and {row["points"] for row in rows} == {"1"}
    text = (out / "grades.csv").read_text(encoding="utf-8")
    for row in rows:
        assert row["student"][0] not in "=+-@\t\r" and row["report"][0] not in "=+-@"
        assert (out / "grades-reports" / row["report"]).is_file()
        assert row["student"].isprintable()
    assert len({row["report"] for row in rows}) == len(NAMES)
    for shown in (text, said):
        assert not {"\x1b", "\u202e", "\udce4"} & {*shown}
    summary = (out / "grades-reports" / "summary.md").read_text(encoding="utf-8")
    assert "<script" not in summary.replace("\\<", "") and "![" not in summary


@pytest.mark.parametrize("text", ["=1", " =1", "+1", "-1", "@a", "\t=1", "|x", "%x"])
def test_a_cell_that_would_be_computed(text):
    assert cell(text)[0] in "'\\"


def test_a_report_holds_what_code_prints_as_code(sub):
    """Neither HTML nor a picture nor the end of a block of code."""
    hand_in(sub, "anna", "raise ValueError('```\\n<script>\\n# big\\n\\x1b[2J')\n")
    graded(sub)
    lines = report_of(sub, "anna").split("\n")
    assert any(line.startswith("    ") and "<script>" in line for line in lines)
    assert all(line.startswith("    ") for line in lines if "<" in line or "`" in line)
    assert "\x1b" not in "".join(lines)


def test_huge_output_is_cut(sub):
    hand_in(sub, "anna", "print('x' * 50_000_000)\n" + RIGHT)
    assert graded(sub)["anna"].total == 1
    text = report_of(sub, "anna")
    assert len(text) < 10_000 and "more characters" in text


# ----------------------------------------------------------------------------------------- lateness

DUE = datetime(2026, 1, 31, 18, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("time", "hours"),
    [
        ("2026-01-31T17:00:00Z", 0), ("2026-01-31T18:00:00Z", 0), ("2026-01-31T18:00:01Z", 1),
        ("2026-02-01T19:00:00+01:00", 24), ("2026-02-01T18:30Z", 25),
    ],
)  # fmt: skip
def test_late_work_is_reported_and_keeps_its_points(time, hours, sub, no_process):
    hand_in(sub, "anna", "passed")
    (sub / "anna" / "submitted").write_text(time + "\n")
    found = graded(sub, due=DUE)["anna"]
    assert (found.hours_late, found.total) == (hours, 1)
    assert table(sub)[0]["hours late"] == str(hours)
    assert ("late (due 2026-01-31T18:00:00Z)" in report_of(sub, "anna")) == bool(hours)


def test_without_a_time_that_was_written_down_the_last_change_counts(sub, no_process):
    folder = hand_in(sub, "anna", "passed")
    (folder / "own.py").write_text("")
    for name, hour in (("bits.py", 3600), ("own.py", -7200)):
        os.utime(folder / name, (0, DUE.timestamp() + hour))
    assert graded(sub, due=DUE)["anna"].hours_late == 1
    assert table(sub)[0]["submitted"] == "2026-01-31T19:00:00Z"


@pytest.mark.parametrize("content", [b"", b"soon", b"\xff", b"2026-13-01", b"9" * 1000])
def test_a_time_that_is_none(content, sub, no_process):
    folder = hand_in(sub, "anna", "passed")
    os.utime(folder / "bits.py", (0, DUE.timestamp()))
    (sub / "anna" / "submitted").write_bytes(content)
    found = graded(sub, due=DUE)["anna"]
    assert found.hours_late == 0
    assert found.remarks == ["the file submitted holds no time; those of the files count"]


def test_nothing_handed_in_is_not_late(sub, no_process):
    (sub / "anna").mkdir()
    assert graded(sub, due=DUE)["anna"].hours_late is None
    assert table(sub)[0]["hours late"] == ""


def test_a_date_ends_with_its_day():
    day = parse_time("2026-01-31", end_of_day=True)
    assert day == datetime(2026, 1, 31, 23, 59, 59).astimezone()
    assert parse_time("2026-01-31T18:00Z", end_of_day=True) == DUE


# ------------------------------------------------------------------------------------------- rubric


def rubric(tmp_path, value):
    path = tmp_path / "rubric.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return read_rubric(path)


def test_each_exercise_gives_a_point_where_nothing_is_said(tmp_path):
    assert read_rubric() == {one.number: 1 for one in select("all")} == rubric(tmp_path, {})


def test_what_is_narrower_goes_before(tmp_path):
    found = rubric(tmp_path, {"00.2": 5, "0": 2, "all": 0, "04": 1.5})
    expected = {"00.1": 2, "00.2": 5, "00.3": 2, "00.4": 2}
    assert found == {**expected, **{one.number: 1.5 for one in select("04")}}
    assert list(found) == sorted(found)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "expected an object"), (3, "expected an object"), ("{", "damaged"),
        ({"99": 1}, "expected a chapter (00"), ({"00.99": 1}, "chapter 00 has 00.1"),
        ({"00": -1}, "points >= 0, got '-1'"), ({"00": "2"}, "'00': expected a number of points"),
        ({"00": True}, "expected a number"), ({"00": None}, "got 'None'"),
        ('{"00": NaN}', "got 'nan'"), ('{"00": 1e999}', "got 'inf'"), ({"00": 10**400}, "points"),
        ({"all": 0}, "no exercise gives points"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_rubric(value, said, tmp_path):
    with pytest.raises(StorageError) as error:
        rubric(tmp_path, value)
    assert said in str(error.value) and "rubric.json" in str(error.value)


def test_points_are_counted_by_the_rubric(sub, no_process):
    hand_in(sub, "anna", "passed")
    found = graded(sub, {"00.1": 2.5, "00.3": 0.5})["anna"]
    assert found.total == 3
    row = table(sub)[0]
    assert (row["points"], row["of"], row["00.1"], row["00.3"]) == ("3", "3", "2.5", "0.5")


# --------------------------------------------------------------------------------- the command line


def refused(capsys, *words, code=1):
    capsys.readouterr()
    try:
        found = cli.main(["course", "grade", *map(str, words)])
    except SystemExit as ended:
        found = ended.code
    out, err = capsys.readouterr()
    assert (found, out) == (code, "") and err.count("\n") == 1, err
    return err


def test_places_that_do_not_fit(sub, tmp_path, capsys):
    table = tmp_path / "grades.csv"
    assert "holds no folders" in refused(capsys, sub, "--csv", table)
    hand_in(sub, "anna", "x")
    assert "is no folder" in refused(capsys, tmp_path / "none", "--csv", table)
    assert "lies in the folder of submissions" in refused(capsys, sub, "--csv", sub / "a.csv")
    words = ["--csv", table, "--reports", sub / "reports"]
    assert "lies in the folder of submissions" in refused(capsys, sub, *words)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.png").write_text("")
    words = ["--csv", table, "--reports", tmp_path / "mine"]
    assert "holds other things" in refused(capsys, sub, *words)
    assert os.listdir(tmp_path / "mine") == ["photo.png"] and not table.exists()
    assert os.listdir(sub) == ["anna"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--due", "soon"], "expected a date or a time such as 2026-01-31"),
        (["--only", "99"], "expected a chapter"),
        (["--seconds", "0"], "expects a number above 0"),
        (["--csv", "-"], "expects the name of a file"),
    ],
)
def test_a_wrong_argument_is_one_line(words, said, sub, capsys):
    hand_in(sub, "anna", "x")
    words = words if words[0] == "--csv" else ["--csv", sub.parent / "grades.csv", *words]
    assert said in refused(capsys, sub, *words, code=2)


def test_without_a_table_it_says_what_is_missing(sub, capsys):
    assert "--csv" in refused(capsys, sub, code=2)


def test_a_rubric_that_is_not_there(sub, capsys, tmp_path):
    hand_in(sub, "anna", "x")
    words = ["--csv", tmp_path / "a.csv", "--rubric", tmp_path / "none.json"]
    assert "none.json" in refused(capsys, sub, *words)


def test_only_what_the_rubric_gives_no_points_for(sub, capsys, tmp_path):
    hand_in(sub, "anna", "x")
    (tmp_path / "rubric.json").write_text('{"00": 0}')
    words = ["--csv", tmp_path / "a.csv", "--rubric", tmp_path / "rubric.json", "--only", "00"]
    assert "gives no points" in refused(capsys, sub, *words, code=2)


def test_figures_for_other_programs(sub, no_process, capsys):
    hand_in(sub, "anna", "passed")
    (sub / "ben.zip").write_text("")
    words = ["--csv", str(sub.parent / "grades.csv"), "--only", "00.1", "--json", "-"]
    assert cli.main(["course", "grade", str(sub), *words]) == 0
    out, err = capsys.readouterr()
    [found] = json.loads(out)
    assert found["student"] == "anna" and found["exercises"] == {"00.1": "passed"}
    assert "no folders, left out: ben.zip" in err and "1 of 1" in err


def test_without_hypothesis(sub, monkeypatch):
    hand_in(sub, "anna", "x")
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(ValueError, match="pip install"):
        graded(sub)


def test_a_full_disk_is_an_error_and_no_verdict_is_lost(sub, no_process, monkeypatch):
    def full(path, content):
        if str(path).endswith(".csv"):
            raise OSError(28, "No space left on device", str(path))
        return writing(path, content)

    writing = module.write_atomic
    hand_in(sub, "anna", "passed")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(module, "write_atomic", full)
        graded(sub)
    assert graded(sub)["anna"].total == 1 and len(no_process) == 1


def test_a_course_folder_handed_in_whole(sub):
    from tinybnn.course.folder import start

    start(sub / "anna")
    shutil.copy(SOLUTIONS / "bits.py", sub / "anna" / "mybnn" / "bits.py")
    found = graded(sub, {"00.1": 1.0, "01.1": 1.0})["anna"]
    assert [v.state for v in found.verdicts.values()] == ["passed", "not started"]
    assert found.remarks == []
