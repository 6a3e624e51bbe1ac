"""What the site makes of links and docstrings, and the check of its links."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def parts(monkeypatch):
    """The site's extensions that need no Sphinx."""
    monkeypatch.syspath_prepend(ROOT / "tutorials/_site")
    import docstrings
    import repository

    return SimpleNamespace(docstrings=docstrings, repository=repository)


@pytest.mark.parametrize(
    ("line", "escaped"),
    [
        ("the mean of |w| over a filter", r"the mean of \|w\| over a filter"),
        ("x : (N, *sizes) float32", r"x : (N, \*sizes) float32"),
        ("weight *= 1 - lr decay", r"weight \*= 1 - lr decay"),
        ("a *latent* weight and **kwargs, 2 * x", "a *latent* weight and **kwargs, 2 * x"),
        ("``f(*x)`` and `a | b`", "``f(*x)`` and `a | b`"),
        (">>> f(*x)", ">>> f(*x)"),
    ],
)
def test_a_docstring_that_is_read_as_markup(parts, line, escaped):
    assert [*parts.docstrings.escaped([line])] == [escaped]


@pytest.mark.parametrize(
    ("link", "shown"),
    [
        ("[a](08_hybnn.ipynb)", "[a](08_hybnn.ipynb)"),
        ("[a](../CHANGELOG.md#added)", "[a](changelog.md#added)"),
        (
            "[two\nlines](../tinybnn/experiments/results/fedavg-mnist/report.md)",
            "[two\nlines](reports_federated.md#federated-averaging-on-mnist)",
        ),
        ("[`models`](../tinybnn/models)", "`models`"),
        ("[a](https://semver.org)", "[a](https://semver.org)"),
    ],
)
def test_a_link_that_leaves_the_site(parts, link, shown):
    app = SimpleNamespace(srcdir=ROOT / "tutorials")
    parts.repository.find_included(app)
    folder = ROOT / "tutorials"
    assert parts.repository.links_of_site(app, link, folder, folder) == shown


@pytest.mark.parametrize(
    ("link", "problem"),
    [
        ('<a href="b.html#there">', None),
        ('<a href="https://semver.org">', None),
        ('<a href="c.html">', "no such file"),
        ('<img src="images/c.png">', "no such file"),
        ('<a href="b.html#elsewhere">', "no such anchor"),
        ('<a href="#elsewhere">', "no such anchor"),
        ('<script src="https://cdn.example.org/a.js">', "is loaded from outside"),
    ],
)
def test_a_page_of_the_site_with_a_broken_link(tmp_path, link, problem):
    (tmp_path / "a.html").write_text(f'<a href="b.html">b</a>{link}', encoding="utf-8")
    (tmp_path / "b.html").write_text('<h1 id="there">b</h1>', encoding="utf-8")
    command = [sys.executable, ROOT / ".ci/links.py", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == bool(problem)
    assert "1 problems" in done.stdout if problem else "0 problems" in done.stdout
    assert (problem or "") in done.stdout
