"""Open every page of the built site in a browser without a screen, at two widths and in the dark.

    python .ci/site.py SITE [--pictures FOLDER]

Fails on an error in a page's console, a missing image or file, a page that scrolls sideways, text
too faint to read in either theme, and a search that does not find BinaryConv2d. Needs playwright
and a Chromium: the system's, or the one that `playwright install chromium` fetches.
"""

import argparse
import asyncio
import functools
import http.server
import shutil
import sys
import threading
from pathlib import Path

from playwright.async_api import TimeoutError, async_playwright

WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}
THEMES = ("light", "dark")
TABS = 3
CONTRAST = 4.5  # of text to its background, WCAG 2.1 level AA
PICTURES = (
    "index", "03_first_binary_network", "reference/generated/tinybnn.nn", "results",
)  # fmt: skip

MISSING = "() => [...document.images].filter(i => !i.naturalWidth).map(i => i.src)"
# The theme lets the container of the text scroll, instead of the document.
OVERHANG = """() => Math.max(
    ...[...document.querySelectorAll("html, body, main, .bd-article-container, article")]
        .filter(e => e.clientWidth).map(e => e.scrollWidth - e.clientWidth))"""
# Every element that has text of its own. Colours are those the browser computes; text without a
# background of its own has that of a parent.
FAINT = """theme => {
    document.documentElement.dataset.theme = theme;
    const parse = c => c.match(/[\\d.]+/g).map(Number);
    const light = c => {
        const [r, g, b] = parse(c).map(v => v / 255).map(
            v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const backgrounds = new Map();
    const background = e => {
        if (!e) return "rgb(255, 255, 255)";
        if (!backgrounds.has(e)) {
            const c = getComputedStyle(e).backgroundColor, v = parse(c);
            backgrounds.set(e, v.length < 4 || v[3] > 0.9 ? c : background(e.parentElement));
        }
        return backgrounds.get(e);
    };
    const faint = new Map();
    for (const e of document.querySelectorAll("main *, nav *, header *")) {
        const own = [...e.childNodes].filter(n => n.nodeType == 3 && n.data.trim());
        if (!own.length || e.closest("button, script, style, svg, mjx-container")) continue;
        if (!e.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
        const color = getComputedStyle(e).color, behind = background(e);
        const [a, b] = [light(color), light(behind)];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < LIMIT) faint.set(color + " on " + behind,
            `${ratio.toFixed(1)}: ${e.tagName} ${e.className} ${own[0].data.trim().slice(0, 30)}`);
    }
    return [...faint].map(([colors, text]) => `${text} (${colors})`);
}""".replace("LIMIT", str(CONTRAST))


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def serve(folder):
    """A server on 127.0.0.1 in a thread of its own; returns its address."""
    handler = functools.partial(Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}"


class Tab:
    """A tab of the browser, and the problems of the pages that were opened in it."""

    def __init__(self, page, address, pictures):
        self.page, self.address, self.pictures = page, address, pictures
        self.name, self.problems = "", []
        page.on("console", lambda m: m.type == "error" and self.note(m.text))
        page.on("pageerror", lambda error: self.note(str(error)))
        page.on("response", lambda r: r.status >= 400 and self.note(f"no such file: {r.url}"))
        page.on("request", lambda r: r.url.startswith((address, "data:", "blob:"))
                or self.note(f"asks for {r.url}"))  # fmt: skip

    def note(self, text):
        self.problems.append((self.name, text))

    async def open(self, name):
        """Load a page once, and look at it at each width and in each theme."""
        self.name = name
        await self.page.goto(f"{self.address}/{name}", wait_until="load")
        for source in await self.page.evaluate(MISSING):
            self.note(f"no such image: {source}")
        for width, (x, y) in WIDTHS.items():
            await self.page.set_viewport_size({"width": x, "height": y})
            overhang = await self.page.evaluate(OVERHANG)
            if overhang > 0:
                self.note(f"scrolls sideways by {overhang} pixels on a {width}")
            if self.pictures and Path(name).with_suffix("").as_posix() in PICTURES:
                await self.take_pictures(width)
        for theme in THEMES:
            for text in await self.page.evaluate(FAINT, theme):
                self.note(f"contrast in the {theme} theme is {text}")

    async def take_pictures(self, width):
        for theme in THEMES:
            await self.page.evaluate("t => {document.documentElement.dataset.theme = t}", theme)
            await self.page.wait_for_timeout(500)  # formulas, transitions
            await self.page.screenshot(
                path=self.pictures / f"{Path(self.name).stem}-{width}-{theme}.png"
            )

    async def search(self):
        self.name = "search.html"
        await self.page.goto(f"{self.address}/search.html?q=BinaryConv2d")
        found = self.page.locator("#search-results li").first
        try:
            results = await found.inner_text(timeout=20_000)
        except TimeoutError:
            results = "nothing"
        if "BinaryConv2d" not in results:
            self.note(f"a search for BinaryConv2d finds {results!r} first")


async def check(address, pages, pictures):
    """Open all pages in several tabs at once; returns (page, problem) pairs."""
    waiting = list(reversed(pages))
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )

        async def work():
            tab = Tab(await browser.new_page(reduced_motion="reduce"), address, pictures)
            while waiting:
                await tab.open(waiting.pop())
            return tab

        tabs = await asyncio.gather(*(work() for _ in range(TABS)))
        await tabs[0].search()
        await browser.close()
    return sorted(problem for tab in tabs for problem in tab.problems)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("site", type=Path)
    parser.add_argument("--pictures", type=Path, help="folder for screenshots of some pages")
    options = parser.parse_args()
    found = [path.relative_to(options.site) for path in options.site.rglob("*.html")]
    pages = sorted(path.as_posix() for path in found if path.parts[0] != "_static")
    if not pages:
        parser.error(f"{options.site} has no pages")
    if options.pictures:
        options.pictures.mkdir(parents=True, exist_ok=True)
    problems = asyncio.run(check(serve(options.site), pages, options.pictures))
    for name, text in problems:
        print(f"{name}: {text}")
    looks = f"{len(WIDTHS)} widths and in {len(THEMES)} themes"
    print(f"{len(pages)} pages, each at {looks}: {len(problems)} problems")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
