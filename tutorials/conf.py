"""The site: Sphinx builds it from this folder, offline (extra `site`).

    sphinx-build --fail-on-warning tutorials site

Notebooks are shown with the outputs stored in them; nothing is executed. The reference is made from
docstrings and type hints, the page of claims from the ledger.
"""

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER.parent), str(FOLDER / "_site")]  # the package of this checkout

import rooms  # noqa: E402

import tinybnn  # noqa: E402

project = "tinybnn"
author = copyright = "the tinybnn authors"
version = release = tinybnn.__version__

extensions = [
    "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.viewcode",
    "sphinx-mathjax-offline", "numpydoc", "myst_nb", "sphinx_copybutton", "sphinx_design",
    "docstrings", "ledger", "repository",
]  # fmt: skip
exclude_patterns = ["*.py", "mybnn", "_site", "**.ipynb_checkpoints"]
templates_path = ["_site/templates"]

# Pages and notebooks
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 4

# Reference: a page a room
autosummary_generate = True
autodoc_preserve_defaults = True  # as written, not their repr
autosummary_context = {"groups": rooms.groups, "borrowed": rooms.borrowed}
suppress_warnings = ["config.cache"]  # functions in autosummary_context
default_role = "py:obj"  # a link where the reference has the name, otherwise code
numpydoc_show_class_members = False
toc_object_entries_show_parents = "hide"

# Looks
html_theme = "pydata_sphinx_theme"
html_title = f"tinybnn {version}"
html_static_path = ["_site/static"]
html_css_files = ["site.css"]
html_favicon = "_site/static/favicon.svg"
html_context = {"default_mode": "auto"}
html_domain_indices = False  # the reference lists the rooms
html_show_sourcelink = False
html_theme_options = {
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}


def setup(app):
    # It only copies files at the end of a build, but does not declare that it may run in parallel.
    app.extensions["sphinx-mathjax-offline"].parallel_read_safe = True
