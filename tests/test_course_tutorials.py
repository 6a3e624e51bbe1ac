"""The course's notebooks share one structure, are short, and check their claims."""

import ast
import configparser
import json
import re
from pathlib import Path

import pytest

from tinybnn.course.catalogue import CHAPTERS

ROOT = Path(__file__).parents[1]
TUTORIALS = ROOT / "tutorials"
NAMES = [name for chapter in CHAPTERS.values() for name in chapter.notebooks]
EXERCISES = [one for chapter in CHAPTERS.values() for one in chapter.exercises]
SPINE = [
    "The question", "The naive version", "Measured", "In the package", "Summary", "Exercises",
    "Sources",
]  # fmt: skip
WORDS_A_MINUTE, MINUTES = 200, 15


def cells(name):
    """The cells of a text twin: "markdown" or "code", and the text."""
    text = (TUTORIALS / f"{name}.py").read_text(encoding="utf-8")
    pairs = []
    for part in re.split(r"^# %%", text, flags=re.MULTILINE)[1:]:
        first, _, body = part.partition("\n")
        if "[markdown]" in first:
            pairs.append(("markdown", re.sub(r"^# ?", "", body, flags=re.MULTILINE).strip()))
        else:
            pairs.append(("code", body.strip()))
    return pairs


def text_of(name, kind):
    return "\n\n".join(text for k, text in cells(name) if k == kind)


def headings(name):
    return re.findall(r"^## (.*)$", text_of(name, "markdown"), re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_it_begins_with_what_one_learns_needs_and_how_long_it_takes(name):
    text = text_of(name, "markdown")
    places = [text.find(part) for part in ("# ", "**You will learn**", "**You need**", "**Time**")]
    assert places[0] == 0 and -1 not in places and places == sorted(places)
    assert places[-1] < text.find("\n## ")


@pytest.mark.parametrize("name", NAMES)
def test_its_parts_stand_in_order(name):
    titles = [heading.partition(":")[0] for heading in headings(name)]
    assert [heading for heading in titles if heading in SPINE] == SPINE
    assert titles[0] == SPINE[0] and titles[-1] == SPINE[-1]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_read_in_a_quarter_of_an_hour(name):
    words = sum(len(text.split()) for _, text in cells(name))
    assert words / WORDS_A_MINUTE <= MINUTES, f"{words} words"


@pytest.mark.parametrize("name", NAMES)
def test_it_has_at_least_as_many_checks_as_sections(name):
    code = text_of(name, "code")
    checks = sum(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(code)))
    assert checks >= len(headings(name)), f"{checks} asserts, {len(headings(name))} sections"


@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_is_executed_and_equal_to_its_twin(name):
    notebook = json.loads((TUTORIALS / f"{name}.ipynb").read_text(encoding="utf-8"))
    stored = [(c["cell_type"], "".join(c["source"]).strip()) for c in notebook["cells"]]
    assert stored == cells(name)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in code)
    kinds = {output["output_type"] for cell in code for output in cell["outputs"]}
    assert "error" not in kinds


@pytest.mark.parametrize("number", CHAPTERS)
def test_its_notebooks_list_the_exercises_and_show_the_verdicts(number):
    names = CHAPTERS[number].notebooks
    text = "\n".join(text_of(name, "markdown") for name in names)
    for one in CHAPTERS[number].exercises:
        assert re.search(rf"^\| *{one.number} *\|.*{one.name}", text, re.MULTILINE)
    assert any(f'course.show("{number}")' in text_of(name, "code") for name in names)


@pytest.mark.parametrize("one", EXERCISES, ids=lambda e: e.number)
def test_a_message_leads_to_a_section_that_there_is(one):
    notebooks = CHAPTERS[one.number[:2]].notebooks
    assert one.section in [heading for name in notebooks for heading in headings(name)]


# -------------------------------------------------------------------------- what a student is given


@pytest.mark.parametrize("one", EXERCISES, ids=lambda e: e.number)
def test_the_exercise_file_has_a_docstring_and_no_answer(one):
    path = TUTORIALS / "mybnn" / f"{CHAPTERS[one.number[:2]].file}.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    [definition] = [node for node in tree.body if getattr(node, "name", None) == one.name]
    assert one.number in ast.get_docstring(definition)
    names = [node.id for node in ast.walk(definition) if isinstance(node, ast.Name)]
    assert "NotImplementedError" in names


def test_the_package_holds_no_solution():
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    places = dict(re.findall(r"(\S+) = (\S+)", setup["options"]["package_dir"]))
    solutions = {p.read_bytes() for p in (ROOT / "tests/course/solutions").rglob("*.py")}
    solutions -= {(TUTORIALS / "mybnn" / "__init__.py").read_bytes()}
    packages = setup["options"]["packages"].split()
    assert "tinybnn.tutorials.mybnn" in packages
    for package in packages:
        above = package.rpartition(".")[0]
        folder = places.get(package) or package.replace(above, places.get(above, above), 1)
        folder = ROOT / folder.replace(".", "/")
        assert folder.is_dir() and ROOT / "tests" not in folder.parents
        for path in folder.glob("*.py"):
            assert path.read_bytes() not in solutions, path


def test_hints_are_three_texts_that_differ():
    for one in EXERCISES:
        assert len(set(one.hints)) == 3 and all(map(str.strip, one.hints)), one.number
