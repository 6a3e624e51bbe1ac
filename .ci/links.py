"""Check that every link of the built site leads somewhere, and that no page loads foreign files.

    python .ci/links.py SITE

Prints the addresses outside of the site that pages link to, each with a page that does.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"script", "img", "link", "source", "iframe", "video", "audio"}


class Page(HTMLParser):
    """The anchors of a page, and (tag, address) of each link."""

    def __init__(self, path):
        super().__init__()
        self.path, self.anchors, self.links = path, {"", "top"}, []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.anchors.update(given[key] for key in ("id", "name") if given.get(key))
        self.links += [(tag, given[key]) for key in ("href", "src") if given.get(key)]


def problem_of(tag, address, page, pages):
    """What is wrong with a link, or None."""
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        return "is loaded from outside" if tag in LOADED and parts.scheme != "data" else None
    target = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
    if not target.is_file():
        return "no such file"
    if target in pages and unquote(parts.fragment) not in pages[target].anchors:
        return "no such anchor"
    return None


def main():
    site = Path(sys.argv[1]).resolve()
    pages = {
        path: Page(path) for path in sorted(site.rglob("*.html")) if "_static" not in path.parts
    }
    problems, outside, inside = [], {}, 0
    for page in pages.values():
        name = page.path.relative_to(site)
        for tag, address in page.links:
            problem = problem_of(tag, address, page, pages)
            if problem:
                problems.append(f"{name}: {address}: {problem}")
            elif urlsplit(address).scheme in ("http", "https", "mailto"):
                outside.setdefault(address, name)
            else:
                inside += 1
    for address, name in sorted(outside.items()):
        print(f"{address}  ({name})")
    for problem in sorted(set(problems)):
        print(problem)
    print(f"{len(pages)} pages, {inside} links inside, {len(outside)} addresses outside: "
          f"{len(problems)} problems")  # fmt: skip
    return bool(problems or not inside)


if __name__ == "__main__":
    sys.exit(main())
