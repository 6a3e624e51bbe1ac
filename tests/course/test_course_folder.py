"""The course folder: files that `start` copies, files that it never touches, and stored results."""

import json
import os
import re
from pathlib import Path

import pytest

from tinybnn.course import folder as course_folder
from tinybnn.course import report
from tinybnn.course.catalogue import CHAPTERS, exercise
from tinybnn.course.folder import PROGRESS, Progress, find_folder, fingerprint, material, start
from tinybnn.storage import StorageError

SOLUTIONS = Path(__file__).parent / "solutions" / "mybnn"
posix = pytest.mark.skipif(os.name != "posix", reason="needs links of POSIX")
ONE = exercise("00.1")


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def course(tmp_path):
    start(tmp_path / "course")
    return tmp_path / "course"


# --------------------------------------------------------------------------------------- beginning


def test_a_new_folder_has_notebooks_exercise_files_and_data(course):
    names = {p.as_posix() for p in contents(course)}
    assert PROGRESS in names and "mybnn/__init__.py" in names
    for chapter in CHAPTERS.values():
        assert f"mybnn/{chapter.file}.py" in names
    assert {p.name for p in material().glob("*.ipynb")} <= names
    assert {"images/demo.png", "data/README.md"} <= names
    assert len([n for n in names if n.startswith("data/digits/")]) == 4
    assert not [n for n in names if n.endswith(".py") and not n.startswith("mybnn/")]  # no twins


def test_no_solution_is_copied(course):
    for path in (course / "mybnn").glob("*.py"):
        answers = {p.read_bytes() for p in SOLUTIONS.glob("*.py") if p.name != "__init__.py"}
        assert path.read_bytes() not in answers


def test_links_lead_to_what_is_there(course):
    """In the repository, some links lead to the package's source."""
    for path in course.glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts = [cell["source"] for cell in cells if cell["cell_type"] == "markdown"]
        text = "".join(line for lines in texts for line in lines)
        targets = re.findall(r"\]\(([^)#:]+)\)", text)
        assert all((course / target).exists() for target in targets), (path.name, targets)


def test_an_empty_folder_and_hidden_files_are_fine(tmp_path):
    (tmp_path / ".git").mkdir()
    copied, kept = start(tmp_path)
    assert copied and not kept


@pytest.mark.parametrize("name", ["notes.txt", "mybnn.py", "numpy"])
def test_a_folder_with_other_things_is_refused_and_stays_as_it_is(name, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=f"holds other things \\({name}\\); choose a new"):
        start(tmp_path)
    assert os.listdir(tmp_path) == [name]


def test_a_file_where_a_folder_is_wanted(tmp_path):
    (tmp_path / "course").write_text("mine")
    with pytest.raises(ValueError, match="is a file, expected a folder"):
        start(tmp_path / "course")


def test_a_second_start_brings_what_is_missing_and_keeps_the_rest(course):
    (course / "mybnn" / "bits.py").write_text("my = 'work'\n")
    (course / "mybnn" / "own.py").write_text("more\n")
    missing = next(course.glob("*.ipynb"))
    missing.unlink()
    before = contents(course)
    copied, kept = start(course)
    assert copied == [missing.name] and "mybnn/bits.py" in kept
    after = contents(course)
    assert after.keys() - before.keys() == {Path(missing.name)}
    assert before.items() <= after.items()


def test_an_interrupted_start_goes_on(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device", path)

    with monkeypatch.context() as patch:
        patch.setattr(course_folder, "write_atomic", full)
        with pytest.raises(OSError, match="No space left"):
            start(tmp_path / "course")
    copied, kept = start(tmp_path / "course")
    assert copied and not kept


@posix
def test_a_link_that_leads_nowhere_is_the_students(course, tmp_path):
    path = course / "mybnn" / "bits.py"
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere.py")
    start(course)
    assert path.is_symlink() and not (tmp_path / "elsewhere.py").exists()


def test_an_installation_without_notebooks(tmp_path, monkeypatch):
    monkeypatch.setattr(course_folder, "material", lambda: None)
    with pytest.raises(ValueError, match="has no notebooks"):
        start(tmp_path / "course")
    assert not (tmp_path / "course").exists()


# ----------------------------------------------------------------------------------------- finding


def test_the_folder_is_found_from_inside(course, monkeypatch):
    for inside in (course, course / "mybnn", course / "data" / "digits"):
        monkeypatch.chdir(inside)
        assert find_folder() == course.resolve()


def test_outside_of_it_there_is_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="is in no course folder; change into yours"):
        find_folder()
    with pytest.raises(ValueError, match="is no course folder; make one"):
        find_folder(tmp_path)


def test_exercise_files_alone_are_a_course_folder(tmp_path):
    (tmp_path / "mybnn").mkdir()
    (tmp_path / "mybnn" / "bits.py").write_text("")
    assert find_folder(tmp_path) == tmp_path.resolve()


# ---------------------------------------------------------------------------------------- progress


def test_progress_is_read_as_it_was_written(tmp_path):
    Progress(tmp_path, {"00.1": "abc"}, {"00.1": 2}, {"1": {"accuracy": 0.9}}).save()
    assert Progress.load(tmp_path) == Progress(
        tmp_path, {"00.1": "abc"}, {"00.1": 2}, {"1": {"accuracy": 0.9}}
    )


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b"{}", b'{"format": "other"}', b"\xff\xfe", b"[" * 100_000,
        b'{"format": "tinybnn-course", "passed": [], "hints": {}, "milestones": {}}',
        b'{"format": "tinybnn-course", "passed": {"00.1": 3}, "hints": {}, "milestones": {}}',
        b'{"format": "tinybnn-course", "passed": {}}',
    ],
)  # fmt: skip
def test_a_broken_or_foreign_file_of_progress_is_an_error_and_stays(content, course):
    (course / PROGRESS).write_bytes(content)
    before = contents(course)
    for read in (Progress.load, start, lambda folder: report.check("00", folder)):
        with pytest.raises(StorageError, match=r"course\.json.*move it away.* lie in mybnn"):
            read(course)
    assert contents(course) == before
    (course / PROGRESS).rename(course / "old.json")
    assert Progress.load(course).passed == {}


def test_a_folder_where_progress_is_kept(course):
    (course / PROGRESS).unlink()
    (course / PROGRESS).mkdir()
    with pytest.raises(OSError):
        Progress.load(course)


def test_states_follow_the_file(course):
    path = course / "mybnn" / "bits.py"
    progress = Progress.load(course)
    assert progress.state(ONE) == "open"
    progress.passed["00.1"] = fingerprint(ONE, path)
    assert progress.state(ONE) == "passed"
    text = path.read_text()
    path.write_text(text + "\n# a thought\nmore = 1\n")
    assert progress.state(ONE) == "changed"
    path.write_text(text + "\n\n")
    assert progress.state(ONE) == "passed"
    path.unlink()
    assert progress.state(ONE) == "changed"


def test_work_on_another_exercise_does_not_change_this_one(tmp_path, monkeypatch):
    class Chapter:
        exercises = (ONE, type(ONE)(**{**vars(ONE), "number": "00.2", "name": "other"}))

    monkeypatch.setitem(CHAPTERS, "00", Chapter)
    path = tmp_path / "bits.py"
    path.write_text("def sign(x):\n    return 1\n\n@cached\ndef other(x):\n    return 2\n")
    first, second = (fingerprint(one, path) for one in Chapter.exercises)
    path.write_text(path.read_text().replace("return 2", "y = 3\n    return y"))
    assert fingerprint(ONE, path) == first
    assert fingerprint(Chapter.exercises[1], path) != second


def test_a_file_that_cannot_be_parsed_has_a_fingerprint(tmp_path):
    (tmp_path / "bits.py").write_bytes(b"def (\xff\0")
    assert len(fingerprint(ONE, tmp_path / "bits.py")) == 64


def test_what_passes_is_remembered_and_what_fails_later_is_not(course):
    path = course / "mybnn" / "bits.py"
    path.write_bytes((SOLUTIONS / "bits.py").read_bytes())
    assert report.check("00.1", course).passed
    assert Progress.load(course).state(ONE) == "passed"
    path.write_text("")
    assert not report.check("00.1", course).passed
    assert Progress.load(course).state(ONE) == "open"


def test_hints_go_on_level_by_level_and_end(course):
    given = [report.next_hint("00.1", course) for _ in range(5)]
    assert [text for _, text in given] == [*ONE.hints, "", ""]
    assert report.next_hint("00.1", course, 1) == (1, ONE.hints[0])
    assert Progress.load(course).hints == {"00.1": 3}


def test_a_report_prints_as_text_in_a_notebook(course, monkeypatch, capsys):
    from tinybnn import course as api

    monkeypatch.chdir(course)
    outcome = api.check("00.1")
    assert repr(outcome).startswith("00.1  sign  ") and "not started" in repr(outcome)
    assert not outcome.passed
    api.show("00.1")
    assert "not started" in capsys.readouterr().out


def test_show_outside_of_a_course_folder_says_so_in_one_line(tmp_path, monkeypatch, capsys):
    from tinybnn import course as api

    monkeypatch.chdir(tmp_path)
    api.show("00")
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "is in no course folder" in out


def test_progress_is_plain_json(course):
    assert json.loads((course / PROGRESS).read_text())["format"] == "tinybnn-course"
