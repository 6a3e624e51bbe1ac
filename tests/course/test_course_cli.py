"""``tinybnn course`` as a student types it: its output and exit code."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tinybnn import cli
from tinybnn.course import report
from tinybnn.course.catalogue import CHAPTERS, exercise, student_file
from tinybnn.course.folder import Progress, fingerprint

SOLUTIONS = Path(__file__).parent / "solutions" / "mybnn"


@pytest.fixture
def course(tmp_path, monkeypatch):
    assert cli.main(["course", "start", str(tmp_path / "course")]) == 0
    monkeypatch.chdir(tmp_path / "course")
    return tmp_path / "course"


@pytest.fixture
def run(capsys):
    def run(*words):
        """Run a command in this process; return exit code, standard output and standard error."""
        capsys.readouterr()
        try:
            code = cli.main(["course", *words])
        except SystemExit as ended:
            code = ended.code
        out, err = capsys.readouterr()
        assert all(len(line) <= 100 for line in out.splitlines())
        return code, out, err

    return run


def test_start_says_how_to_go_on(tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("start", "course")
    assert code == 0
    for text in ("files copied", "cd course", "jupyter lab 0", "tinybnn course check 00"):
        assert text in out
    code, out, _ = run("start", "course")
    assert code == 0 and "0 files copied" in out and "kept as they are" in out


def test_start_in_the_current_folder_needs_no_cd(tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("start", ".")
    assert code == 0 and "cd " not in out


def test_check_ends_with_1_until_all_that_was_asked_passed(course, run):
    code, out, err = run("check", "00.1")
    assert (code, err) == (1, "") and "00.1  sign" in out and "not started" in out
    shutil.copy(SOLUTIONS / "bits.py", "mybnn/bits.py")
    code, out, _ = run("check", "00.1")
    assert code == 0 and out.count("\n") == 1 and "passed" in out


def numbers_checked(run, *words):
    """The exercises' numbers, and the printed text."""
    _, out, _ = run("check", *words, "--json", "figures.json")
    return [one["number"] for one in json.loads(Path("figures.json").read_text())], out


def test_check_with_nothing_checks_what_is_begun_and_the_next_chapter(course, run):
    numbers, said = numbers_checked(run)
    assert {number[:2] for number in numbers} == {"00"}
    assert "checked: the next one (00); `tinybnn course check all` checks all" in said
    path = Path("mybnn/engine.py")
    path.write_text(path.read_text().replace("raise NotImplementedError", "return 1"))
    numbers, said = numbers_checked(run)
    assert {number[:2] for number in numbers} == {"00", "01"}
    assert "the chapters that are begun (01) and the next one (00)" in said


@pytest.mark.parametrize("content", ["def f(:\n", None])
def test_a_file_that_does_not_run_or_is_gone_is_begun(content, course, run):
    path = Path("mybnn/estimators.py")
    path.unlink() if content is None else path.write_text(content)
    numbers, _ = numbers_checked(run)
    assert {number[:2] for number in numbers} == {"00", "02"}


def test_what_passed_before_is_begun(course, run):
    progress = Progress.load(course)
    progress.passed["03.1"] = "of another file"
    progress.save()
    numbers, _ = numbers_checked(run)
    assert {number[:2] for number in numbers} == {"00", "03"}


@pytest.mark.parametrize(("number", "first"), [("0", "00.1"), ("0.2", "00.2"), ("00.2", "00.2")])
def test_a_chapter_with_one_digit(number, first, course, run):
    assert numbers_checked(run, number)[0][0] == first


def test_a_hint_for_a_number_with_one_digit(course, run):
    assert run("hint", "0.1")[1].startswith("00.1, hint 1 of 3")
    assert run("hint", "00.1")[1].startswith("00.1, hint 2 of 3")


@pytest.mark.parametrize("content", ["def sign(:\n", None])
def test_what_all_exercises_say_is_said_once(content, course, run):
    path = Path("mybnn/bits.py")
    path.unlink() if content is None else path.write_text(content)
    _, out, _ = run("check", "00")
    assert out.count("broken  ") == 4 and "\n00.1, 00.2, 00.3, 00.4: broken\n" in out
    assert out.count("SyntaxError" if content else "there is no") == 1


def test_a_chapter_that_is_complete_names_the_next(course, run):
    shutil.copy(SOLUTIONS / "bits.py", "mybnn/bits.py")
    assert "complete" not in run("check", "00.4")[1]
    _, out, _ = run("check", "00")
    assert out.endswith("\nchapter 00 is complete; next: 01.1\n")
    assert out.count("\n") == 6


def test_a_given_part_that_the_student_has_changed(course, run):
    path = Path("mybnn/engine.py")
    text = (SOLUTIONS / "engine.py").read_text()
    path.write_text(text.replace("data.astype(np.float32)", "data.astype(np.float64)"))
    line = path.read_text()[: path.read_text().index("np.float64)")].count("\n") + 1
    code, out, _ = run("check", "01.1")
    said = " ".join(out.split())
    wanted = f"came with the course: class Tensor in mybnn/engine.py (line {line}); if"
    assert code == 0 and out.count("note  not as it") == 1 and wanted in said
    path.write_text(path.read_text() + "\ndef topological_order(result):\n    return []\n")
    code, out, _ = run("check", "01.1")
    assert code == 1 and out.count("note    not as it") == 1 and out.count("not as it") == 1


def test_check_all_checks_all(course, run):
    code, _, _ = run("check", "all", "--json", "figures.json")
    numbers = [one.number for chapter in CHAPTERS.values() for one in chapter.exercises]
    figures = json.loads(Path("figures.json").read_text())
    assert code == 1 and [one["number"] for one in figures] == numbers
    assert {one["state"] for one in figures} == {"not started"}


def test_a_chapter_whose_file_does_not_run(course, run):
    Path("mybnn/bits.py").write_text("def sign(:\n")
    code, out, _ = run("check", "00.1")
    assert code == 1 and "broken" in out and "line 1: def sign(:" in out
    assert "Traceback" not in out


def test_json_alone_on_standard_output(course, run):
    code, out, err = run("check", "00.1", "--json", "-")
    assert code == 1 and json.loads(out)[0]["state"] == "not started"
    assert "00.1  sign" in err


def test_a_syntax_error_forgets_nothing(course, run):
    shutil.copy(SOLUTIONS / "bits.py", "mybnn/bits.py")
    run("check", "00.1")
    with open("mybnn/bits.py", "a") as file:
        file.write("def f(:\n")
    assert "broken" in run("check", "00.1")[1]
    _, out, _ = run("status")
    row = next(line for line in out.splitlines() if line.startswith("00"))
    assert row.split() == ["00", "00_bits_and_signs", "1*", "00.1", "00.2", "00.3", "00.4"]
    assert "* passed, file edited since (check again)" in out
    shutil.copy(SOLUTIONS / "bits.py", "mybnn/bits.py")
    assert "1*" not in run("status")[1]


def test_hints_and_their_end(course, run):
    texts = [run("hint", "00.1")[1] for _ in range(4)]
    for level, text in enumerate(exercise("00.1").hints, 1):
        said = " ".join(texts[level - 1].split())
        assert said == " ".join(f"00.1, hint {level} of 3: {text}".split())
    assert "all 3 hints were given" in texts[3]
    assert run("hint", "00.1", "--level", "1")[1] == texts[0]


def test_status_shows_what_passed_what_changed_and_what_is_next(course, run):
    code, out, _ = run("status")
    assert code == 0 and "next: tinybnn course check 00.1" in out
    shutil.copy(SOLUTIONS / "bits.py", "mybnn/bits.py")
    run("check", "00.1")
    _, out, _ = run("status", "--json", "-")
    assert json.loads(out)["chapters"]["00"]["passed"] == ["00.1"]
    with open("mybnn/bits.py", "a") as file:
        file.write("more = 1\n")
    _, out, _ = run("status", "--json", "-")
    status = json.loads(out)
    assert status["chapters"]["00"]["changed"] == ["00.1"]
    assert status["next"] == "tinybnn course check 00.1"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["check", "99"], "expected a chapter (00"),
        (["check", "00.99"], "expected a number such as 00.1, got '00.99'"),
        (["check", "00.99"], "chapter 00 has 00.1 to 00.4"),
        (["check", "01b"], "the exercises of 01b are in 01"),
        (["check", "1b.2"], "the exercises of 1b are in 01"),
        (["check", "77"], "chapter 77 has no exercises"),
        (["check", "8.9"], "chapter 08 has 08.1 to 08.4"),
        (["check", ""], "or all, got ''"),
        (["hint", "0"], "chapter 00 has 00.1 to 00.4"),
        (["check", "everything"], "or all, got 'everything'"),
        (["check", "00", "01"], "unexpected '01'"),
        (["hint"], "required: NN.E"),
        (["hint", "00"], "expected a number such as 00.1, got '00'"),
        (["hint", "00.1", "--level", "4"], "expects a whole number from 1 to 3, got '4'"),
        (["milestone", "one"], "expects a whole number >= 1, got 'one'"),
        (["milestone", "99"], "expects one of 1, 2, 3, "),
        (["start"], "required: FOLDER"),
        (["start", ""], "expects the name of a folder"),
        (["chekc"], "did you mean 'check'?"),
    ],
)
def test_a_wrong_argument_is_one_line_and_exit_code_2(words, said, course, run):
    code, out, err = run(*words)
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert said in err and "--help" in err


@pytest.mark.parametrize("words", [["check"], ["status"], ["hint", "00.1"], ["milestone", "1"]])
def test_outside_of_a_course_folder(words, tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(*words)
    assert code == 1 and err.count("\n") == 1 and "is in no course folder" in err
    code, _, err = run(*words, "--folder", str(tmp_path / "none"))
    assert code == 1 and "is no course folder; make one with `tinybnn course start" in err


def test_the_folder_can_be_named(course, tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("check", "00.1", "--folder", "course")
    assert code == 1 and "not started" in out


def test_a_milestone_names_the_exercises_that_it_still_needs(course, run):
    code, out, _ = run("milestone", "1")
    assert code == 1 and "needs exercises that have not passed" in out


def test_a_milestone_with_code_that_does_not_run_is_not_reached(course, run):
    """Its exercises passed once; now the files are broken."""
    progress = Progress.load(course)
    from tinybnn.course.milestones import MILESTONES

    for number in MILESTONES[1].needs:
        path = student_file(exercise(number), course)
        progress.passed[number] = fingerprint(exercise(number), path)
    progress.save()
    for path in (course / "mybnn").glob("*.py"):
        path.write_text("def f(:\n")
    code, out, _ = run("milestone", "1")
    assert code == 1 and "not reached: SyntaxError" in out and "line 1: def f(:" in out
    assert Progress.load(course).milestones == {}


@pytest.mark.parametrize("number", ["4", "5", "6"])
def test_a_milestone_names_the_line_of_a_function_that_is_not_written(number, course, run):
    from tinybnn.course.milestones import MILESTONES

    progress = Progress.load(course)
    for path in (course / "mybnn").glob("*.py"):
        shutil.copy(SOLUTIONS / path.name, path)
    with open(course / "mybnn" / "estimators.py", "a", encoding="utf-8") as file:
        file.write("\n\ndef approx_gradient(x):\n    raise NotImplementedError  # later\n")
    for needed in MILESTONES[int(number)].needs:
        path = student_file(exercise(needed), course)
        progress.passed[needed] = fingerprint(exercise(needed), path)
    progress.save()
    code, out, _ = run("milestone", number)
    assert code == 1 and "not reached: a function is called that is not written yet" in out
    assert "mybnn/estimators.py" in out and "raise NotImplementedError  # later" in out


def test_without_hypothesis(course, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    code, _, err = run("check", "00.1")
    assert code == 1 and "pip install 'tinybnn[tutorials]'" in err


def test_messages_that_a_terminal_would_obey(course, run):
    Path("mybnn/bits.py").write_text("def sign(x):\n    raise ValueError('\\x1b[2J')\n")
    _, out, _ = run("check", "00.1")
    assert "\x1b" not in out and "\\x1b[2J" in out


def test_an_interrupted_check_is_one_line(course, run, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "grade_file", interrupted)
    code, _, err = run("check", "00.1")
    assert code == 130 and err == "tinybnn: interrupted\n"


def test_as_a_process_in_a_folder_with_odd_letters(tmp_path):
    folder = tmp_path / "Übung 1"
    environment = {**os.environ, "COLUMNS": "100"}

    def tinybnn(*words):
        command = [sys.executable, "-m", "tinybnn", "course", *words, "--folder", str(folder)]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, check=False, timeout=120
        )

    assert cli.main(["course", "start", str(folder)]) == 0
    (folder / "mybnn" / "bits.py").write_text("def sign(x):\n    while True:\n        import ä\n")
    done = tinybnn("check", "00.1")
    assert done.returncode == 1 and "line 3: import ä" in done.stdout, done
    assert done.stderr == ""
