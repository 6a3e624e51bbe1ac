"""Examples in pages and docstrings run; links, commands and figures of pages are true."""

import doctest
import importlib
import inspect
import json
import pkgutil
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import tinybnn
from tinybnn import cli

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "tinybnn/experiments/results"
PAGES = [
    *sorted(ROOT.glob("*.md")), *sorted((ROOT / "tutorials").glob("*.md")), RESULTS / "README.md",
]  # fmt: skip
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
