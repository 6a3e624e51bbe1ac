"""Links between files of the repository become links of the site, in pages and what they include.

A link to another page stays as it is. One to a file that a page includes leads there; one to a
folder becomes plain text; any other file is copied and can be downloaded.
"""

import json
import os
import re
from pathlib import Path

INCLUDE = re.compile(r"^```\{include\} (\S+)$", re.MULTILINE)
HEADING = re.compile(r"^##+ (.*)$", re.MULTILINE)
LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s:]+)(#[^)\s]*)?\)")


def find_included(app):
    """Map each file that a page includes to the page and the anchor of the heading above."""
    app.included = {}
    for page in Path(app.srcdir).glob("*.md"):
        text = page.read_text(encoding="utf-8")
        for match in INCLUDE.finditer(text):
            above = HEADING.findall(text[: match.start()])
            anchor = "#" + slug(above[-1]) if above else ""
            app.included[(page.parent / match[1]).resolve()] = (page, anchor)


def slug(heading):
    """The anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-")


def read_page(app, docname, content):
    page = Path(app.env.doc2path(docname))
    if page.suffix == ".md":
        content[0] = links_of_site(app, content[0], page.parent, page.parent)
    elif page.suffix == ".ipynb":
        notebook = json.loads(content[0])
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                text = "".join(cell["source"])
                cell["source"] = links_of_site(app, text, page.parent, page.parent)
        content[0] = json.dumps(notebook)


def read_included(app, path, _, content):
    page = Path(app.env.doc2path(app.env.docname))
    included = Path(app.srcdir, path).resolve()
    content[0] = links_of_site(app, content[0], included.parent, page.parent)


def links_of_site(app, text, folder, page_folder):
    """Rewrite the links of a text in `folder` that is shown by a page in `page_folder`."""

    def replaced(match):
        words, name, anchor = match.groups()
        target = (folder / name).resolve()
        if target.is_dir():
            return words
        target, start = app.included.get(target, (target, ""))
        return f"[{words}]({os.path.relpath(target, page_folder)}{anchor or start})"

    return LINK.sub(replaced, text)


def setup(app):
    app.connect("builder-inited", find_included)
    app.connect("source-read", read_page)
    app.connect("include-read", read_included)
    return {"parallel_read_safe": True}
