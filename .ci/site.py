"""Open every page of the built site in a browser without a screen, at two widths.

    python .ci/site.py SITE [--pictures FOLDER]

Fails on an error in a page's console, a missing image or file, a page that scrolls sideways, a
search that does not find BinaryConv2d, and text too faint to read in the dark theme. Needs
playwright and a Chromium: Debian's, or the one that `playwright install chromium` fetches.
"""

import argparse
import functools
import http.server
import shutil
import sys
import threading
from pathlib import Path

from playwright.sync_api import sync_playwright

WIDTHS = {"desktop": 1280, "phone": 390}
CONTRAST = 4.5  # of text to its background, WCAG 2.1 level AA
# Colours as the browser computes them; text without a background of its own has that of a parent.
FAINTEST = """() => {
    const parse = c => c.match(/[\\d.]+/g).map(Number);
    const light = c => {
        const [r, g, b] = parse(c).map(v => v / 255).map(
            v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const background = e => {
        for (; e; e = e.parentElement) {
            const c = getComputedStyle(e).backgroundColor, v = parse(c);
            if (v.length < 4 || v[3] > 0.99) return c;
        }
        return "rgb(255, 255, 255)";
    };
    let worst = [99, ""];
    const texts = ["p", "h1", "li", "pre", "td"].map(tag => `article ${tag}`).join(", ");
    for (const e of document.querySelectorAll(texts)) {
        if (!e.innerText || !e.offsetParent) continue;
        const [a, b] = [light(getComputedStyle(e).color), light(background(e))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < worst[0]) worst = [ratio, e.innerText.slice(0, 40)];
    }
    return worst;
}"""


def serve(folder):
    """A server on 127.0.0.1 in a thread of its own; returns its address."""
    handler = functools.partial(Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def problems_of(page, url):
    """What is wrong with a page that has just been opened."""
    images = page.evaluate(
        "() => [...document.images].filter(i => i.loading !== 'lazy' || i.complete)"
        ".filter(i => !i.naturalWidth).map(i => i.src)"
    )
    yield from (f"no such image: {source}" for source in images)
    wide = page.evaluate("() => document.documentElement.scrollWidth - innerWidth")
    if wide > 0:
        yield f"scrolls sideways by {wide} pixels"


def check(browser, address, pages, width, pictures):
    """Open all pages at one width; returns their problems."""
    problems = []
    context = browser.new_context(viewport={"width": WIDTHS[width], "height": 900})
    page = context.new_page()
    page.on("console", lambda m: m.type == "error" and problems.append((page.url, m.text)))
    page.on("pageerror", lambda error: problems.append((page.url, str(error))))
    page.on("response", lambda r: r.status >= 400 and problems.append((page.url, r.url)))
    page.on("request", lambda r: r.url.startswith((address, "data:", "blob:"))
            or problems.append((page.url, f"asks for {r.url}")))  # fmt: skip
    for name in pages:
        page.goto(f"{address}/{name}", wait_until="load")
        problems += [(page.url, text) for text in problems_of(page, page.url)]
        if pictures and name in ("index.html", "results.html"):
            page.screenshot(path=pictures / f"{Path(name).stem}-{width}.png", full_page=True)
    context.close()
    return problems


def check_search(browser, address):
    page = browser.new_page()
    page.goto(f"{address}/search.html?q=BinaryConv2d")
    page.wait_for_selector("#search-results li", timeout=20_000)
    results = page.inner_text("#search-results")
    return [] if "BinaryConv2d" in results else [("search", f"BinaryConv2d not in {results!r}")]


def check_dark(browser, address, pages, pictures):
    """The faintest text of each page in the dark theme."""
    problems = []
    page = browser.new_context(color_scheme="dark").new_page()
    page.add_init_script("localStorage.mode = 'dark'; localStorage.theme = 'dark'")
    for name in pages:
        page.goto(f"{address}/{name}", wait_until="load")
        ratio, text = page.evaluate(FAINTEST)
        if ratio < CONTRAST:
            problems.append((page.url, f"contrast {ratio:.1f} in the dark theme: {text!r}"))
        if pictures and name == "index.html":
            page.screenshot(path=pictures / "index-dark.png")
    return problems


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("site", type=Path)
    parser.add_argument("--pictures", type=Path, help="folder for screenshots of some pages")
    options = parser.parse_args()
    pages = sorted(str(p.relative_to(options.site)) for p in options.site.rglob("*.html"))
    pages = [p for p in pages if not p.startswith("_static")]
    if options.pictures:
        options.pictures.mkdir(parents=True, exist_ok=True)
    address = serve(options.site)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        problems = [p for w in WIDTHS for p in check(browser, address, pages, w, options.pictures)]
        problems += check_search(browser, address)
        problems += check_dark(browser, address, pages, options.pictures)
        browser.close()
    for url, text in problems:
        print(f"{url.removeprefix(address + '/')}: {text}")
    print(f"{len(pages)} pages at {len(WIDTHS)} widths and in the dark: {len(problems)} problems")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
