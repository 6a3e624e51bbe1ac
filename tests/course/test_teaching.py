"""The pages for teachers name what is there: exercises, messages, milestones, versions."""

import ast
import configparser
import json
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tinybnn.course import exercise as exercise_module
from tinybnn.course.catalogue import CHAPTERS
from tinybnn.course.milestones import MILESTONES
from tinybnn.course.rubric import read_rubric

ROOT = Path(__file__).parents[2]
TUTORIALS = ROOT / "tutorials"
TEACHING = (TUTORIALS / "teaching.md").read_text(encoding="utf-8")
PARTS = ["Goals", "Time", "What students get wrong", "Questions to discuss"]


def notes(number):
    return (TUTORIALS / "notes" / f"{number}.md").read_text(encoding="utf-8")


def texts(path):
    """What a file says in its strings, those of an f-string as one, without what it inserts."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value for part in node.values if isinstance(part, ast.Constant)]
            found.append("".join(parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


def rows(text):
    """Exercise, what students do, and what the check says, of each row of the table."""
    found = re.findall(r"^\| (\d\d\.\d) \| (.+) \| “(.+)” \|$", text, re.MULTILINE)
    lines = re.findall(r"^\| \d.*", text, re.MULTILINE)
    cells = re.findall(r"(?<!\\)\|", "".join(lines))
    assert len(cells) == 4 * len(found), "a cell holds | without a backslash"
    return [(number, what, words.replace("\\|", "|")) for number, what, words in found]


@pytest.mark.parametrize("chapter", CHAPTERS.values(), ids=lambda c: c.number)
def test_each_chapter_has_notes_with_all_parts(chapter):
    text = notes(chapter.number)
    assert text.startswith(f"# {chapter.number}: ")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == PARTS
    for name in chapter.notebooks:
        assert f"](../{name}.ipynb)" in text
    questions = text.partition("## Questions to discuss")[2]
    assert len(re.findall(r"^\d\. \*\*.+\*\* .+$", questions, re.MULTILINE)) >= 3


@pytest.mark.parametrize("chapter", CHAPTERS.values(), ids=lambda c: c.number)
def test_the_notes_name_mistakes_of_each_exercise_in_the_words_of_its_checks(chapter):
    found = rows(notes(chapter.number))
    assert {number for number, _, _ in found} == {one.number for one in chapter.exercises}
    checks = Path(exercise_module.__file__).parent / "checks" / f"{chapter.file}.py"
    said = texts(checks) + texts(Path(exercise_module.__file__))
    assert not [words for _, _, words in found if not any(words in text for text in said)]


def test_a_syllabus_of_all_chapters_and_milestones():
    long = TEACHING.partition("## A syllabus of 12 weeks")[2].partition("\n## ")[0]
    weeks = [line.strip("| ").split(" | ") for line in long.split("\n") if re.match(r"\| \d", line)]
    assert [week[0] for week in weeks] == [str(i) for i in range(1, 13)]
    assert set(CHAPTERS) <= {name for week in weeks for name in re.findall(r"\d\d", week[1])}
    named = {int(n) for week in weeks for n in re.findall(r"\b\d\b", week[4] if week[4:] else "")}
    assert set(MILESTONES) <= named
    short = TEACHING.partition("## A syllabus of 4 weeks")[2].partition("\n## ")[0]
    assert len(re.findall(r"^\| [1-4] \|", short, re.MULTILINE)) == 4


def test_a_milestone_stands_behind_the_exercises_that_it_needs():
    for part in ("4 weeks", "12 weeks"):
        text = TEACHING.partition(f"## A syllabus of {part}")[2].partition("\n## ")[0]
        taught = set()
        for line in text.split("\n"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if re.fullmatch(r"\d+", cells[0]):
                taught.update(re.findall(r"\b\d\d\b", cells[1]))
                for number in map(int, re.findall(r"\d+", cells[4])):
                    needs = MILESTONES[number].needs if number in MILESTONES else ()
                    assert {n[:2] for n in needs} <= taught, (part, number)


def test_the_examples_of_rubrics_are_rubrics(tmp_path):
    examples = re.findall(r"^    (\{.*\})$", TEACHING, re.MULTILINE)
    assert len(examples) == 2
    for text in examples:
        (tmp_path / "rubric.json").write_text(text)
        assert set(read_rubric(tmp_path / "rubric.json")) >= {
            number for number in json.loads(text) if "." in number
        }


def test_the_pinned_environment_fits_what_is_installed_with_the_package():
    """Each requirement of the package and of its notebooks has one version, within its bounds."""
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = (TUTORIALS / "environment.txt").read_text(encoding="utf-8").split("\n")
    pins = [Requirement(line) for line in lines if line and line[0] != "#"]
    assert all(re.fullmatch(r"==[\d.]+", str(pin.specifier)) for pin in pins)
    versions = {pin.name: str(pin.specifier)[2:] for pin in pins}
    assert len(versions) == len(pins)
    extras = setup["options.extras_require"]
    needed = setup["options"]["install_requires"] + extras["tutorials"] + extras["analysis"]
    for line in filter(None, needed.split("\n")):
        wanted = Requirement(line)
        assert versions[wanted.name] in wanted.specifier, line
