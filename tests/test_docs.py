"""Examples in pages and docstrings run; links, commands and figures of pages are true."""

import contextlib
import doctest
import importlib
import inspect
import io
import json
import pkgutil
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import tinybnn
from tinybnn import cli
from tinybnn.course.catalogue import CHAPTERS
from tinybnn.deploy import operations

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "tinybnn/experiments/results"
HOW_TO = sorted((ROOT / "tutorials/howto").glob("*.md"))
PAGES = [
    *sorted(ROOT.glob("*.md")), *sorted((ROOT / "tutorials").glob("*.md")), *HOW_TO,
    RESULTS / "README.md",
]  # fmt: skip
# Their blocks of Python run in order, each followed by the text that it prints, if any.
RUN = [ROOT / "tutorials/index.md", *(page for page in HOW_TO if page.name != "index.md")]
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
MODULES = sorted(
    m.name for m in pkgutil.walk_packages(tinybnn.__path__, "tinybnn.") if "__main__" not in m.name
)
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


def text_of(page):
    return page.read_text(encoding="utf-8")


def commands(page):
    """The `tinybnn` commands that a page prints in blocks of code and in tables."""
    text = re.sub(r"\\\n\s*", "", text_of(page))  # continued lines
    blocks = re.findall(r"^    (?:.*[ /])?tinybnn ([a-z].*)$", text, re.MULTILINE)
    cells = re.findall(r"^\|.*\| `tinybnn ([^`]*)` \|$", text, re.MULTILINE)
    return [line.partition("  #")[0] for line in (*blocks, *cells)]


def anchors(page):
    """The anchors of a page's headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", ["tinybnn", *MODULES])
def test_examples_in_docstrings(name):
    with np.printoptions(legacy=False):
        failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


def test_examples_in_the_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testfile(str(README), module_relative=False, encoding="utf-8")
    assert failed == 0
    assert tried >= 5


def run_block(code, names):
    """Run a block of code in a page's namespace; return what it prints, or its error."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            exec(compile(code, "a block of the page", "exec"), names)
        except Exception as error:
            printed.write(f"{type(error).__name__}: {error}")
    return printed.getvalue()


@pytest.fixture
def own_operations():
    """Forget afterwards the packed operations that a page defines."""
    tables = operations.OPERATIONS, operations.OF_FUNCTION
    before = [dict(table) for table in tables]
    yield
    for table, old in zip(tables, before, strict=True):
        table.clear()
        table.update(old)


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
@pytest.mark.usefixtures("own_operations")
def test_a_block_that_does_not_do_what_its_page_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names, blocks = {"__name__": "page"}, BLOCK.findall(text_of(page))
    assert len(blocks) == text_of(page).count("```python")
    for code, text in blocks:
        assert run_block(code, names).split() == text.split(), code


def test_steps_that_differ_from_those_of_the_flower_app():
    """The commands of the app's page, which are tested with Flower, are those of the how-to."""
    app = text_of(ROOT / "tinybnn/federated/flower_app/README.md")
    how_to = " ".join(text_of(ROOT / "tutorials/howto/federated_machines.md").split())
    steps = re.findall(r"^ +((?:export|openssl|flower-|flwr run)(?:.*\\\n)*.*)", app, re.MULTILINE)
    assert len(steps) >= 8
    for step in steps:
        assert " ".join(step.split()) in how_to, step


def test_a_readme_that_grows():
    assert len(text_of(README).splitlines()) <= 150


@every_page
def test_a_link_that_leads_nowhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_read():
    assert sum(len(re.findall(r"\]\(", text_of(page))) for page in PAGES) > 100
    assert sum(len(commands(page)) for page in PAGES) > 40


@every_page
def test_a_command_that_does_not_exist(page):
    for command in commands(page):
        try:
            cli._parser().parse_args(shlex.split(command))
        except SystemExit as end:
            pytest.fail(f"tinybnn {command} ends with {end.code}")


def test_a_chapter_that_the_course_leaves_out():
    """The table has each notebook, with its own minutes, and the exercises of each chapter."""
    row = r"^\| \w+ \| \[.*?\]\((\w+)\.ipynb\) \| (\d+) \| (\d*) \|$"
    rows = re.findall(row, text_of(ROOT / "tutorials/course.md"), re.MULTILINE)
    exercises = {one.notebooks[0]: str(len(one.exercises)) for one in CHAPTERS.values()}
    twins = sorted((ROOT / "tutorials").glob("[0-9]*.py"))
    minutes = [re.search(r"\*\*Time\*\* \D*(\d+) minutes", text_of(twin))[1] for twin in twins]
    stems = [twin.stem for twin in twins]
    assert rows == [
        (stem, time, exercises.get(stem, "")) for stem, time in zip(stems, minutes, strict=True)
    ]


def test_a_report_that_the_site_leaves_out():
    pages = (ROOT / "tutorials").glob("*.md")
    shown = {
        (ROOT / "tutorials" / name).resolve()
        for page in pages
        for name in re.findall(r"^```\{include\} (\S+)$", text_of(page), re.MULTILINE)
    }
    reports = {*RESULTS.rglob("*.md")}
    assert len(reports) > 10 and reports <= shown, reports - shown


def test_a_room_that_the_reference_leaves_out():
    text = text_of(ROOT / "tutorials/reference/index.md")
    rooms = {name for name in tinybnn.__all__ if inspect.ismodule(getattr(tinybnn, name))}
    listed = {name.split(".")[0] for name in re.findall(r"^ +tinybnn\.(\S+)$", text, re.MULTILINE)}
    rooms.remove("autograd")  # listed as `tensor`, its name for users
    assert len(rooms) > 10 and rooms <= listed, rooms - listed


def test_a_result_that_its_page_leaves_out():
    listed = re.findall(r"`([\w.-]+)/?`", text_of(RESULTS / "README.md"))
    assert {path.name for path in RESULTS.iterdir()} <= {*listed, "README.md"}


@pytest.mark.parametrize("name", ["mnist-cnn", "mnist-mlp", "mnist-mlp-1024", "cifar10-vgg-small"])
def test_a_figure_that_differs_from_its_file(name):
    runs = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))["runs"]
    accuracies = 100 * np.array([run["accuracy"] for run in runs])
    spread = f" ± {accuracies.std(ddof=1):.2f}%" if len(runs) > 1 else "% (one seed)"
    row = (
        f"| {accuracies.mean():.2f}{spread} | {runs[0]['packed_bytes']:,} bytes | 10,000 of 10,000"
    )
    assert row in text_of(ROOT / "tutorials/results.md")
    assert {run["identical_logits"] for run in runs} == {10_000}
