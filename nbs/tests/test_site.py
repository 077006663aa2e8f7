"The built site in a browser: links, figures, errors, widths, light and dark, search. Run after nbdev_docs; skipped where there is no site or no browser."
import ast, html, json, re, shutil, threading
from configparser import ConfigParser
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="the site is looked at with playwright: pip install -e '.[dev]'")
DOCS = Path(__file__).parents[2]/"_docs"
PAGES = sorted(p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.html"))
INI = ConfigParser(delimiters=["="])
INI.read(DOCS.parent/"settings.ini", encoding="utf-8")
SITE = (INI["DEFAULT"]["doc_host"] + INI["DEFAULT"]["doc_baseurl"]).rstrip("/") + "/"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
DOT = dict(body='<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', content_type="image/svg+xml")
NOTEBOOKS = [p for p in Path(__file__).parents[1].rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts]
OLD = not PAGES or (DOCS/"index.html").stat().st_mtime < max(p.stat().st_mtime for p in NOTEBOOKS)
pytestmark = pytest.mark.skipif(OLD, reason="there is no site in _docs that is newer than the notebooks; nbdev_docs builds one")


@pytest.fixture(scope="module")
def browser():
    "A browser of the machine, or the one that playwright installed."
    with playwright.sync_playwright() as p:
        found = next(filter(None, map(shutil.which, BROWSERS)), p.chromium.executable_path)
        if not Path(found).exists(): pytest.skip("no browser: install chromium, or run playwright install chromium")
        browser = p.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


@pytest.fixture(scope="module")
def site():
    "The address of _docs, served on this machine only."
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=DOCS))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture
def visit(browser, site):
    "Opens pages in a scheme and collects what goes wrong; nothing is fetched from elsewhere, where every picture is a dot."
    contexts = []
    def open_page(scheme, width=1440):
        contexts.append(context := browser.new_context(color_scheme=scheme, viewport=dict(width=width, height=900)))
        context.route(lambda url: not url.startswith((site, "data:", "blob:")), lambda route: route.fulfill(**DOT if route.request.resource_type == "image" else dict(body="")))
        page, wrong = context.new_page(), []
        page.on("pageerror", lambda e: wrong.append(f"{page.url}: {e}"))
        page.on("console", lambda m: wrong.append(f"{page.url}: {m.text}") if m.type == "error" else None)
        page.on("response", lambda r: wrong.append(f"{r.url}: {r.status}") if r.status >= 400 and not r.url.endswith("favicon.ico") else None)
        return page, wrong
    yield open_page
    for context in contexts: context.close()


# Links

class Parts(HTMLParser):
    "The links, sources and ids of a page."
    def __init__(self, page):
        super().__init__()
        self.links, self.ids = [], set()
        self.feed((DOCS/page).read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs[k] for k in ("id", "name") if attrs.get(k)}
        self.links += [attrs[k] for k in ("href", "src") if attrs.get(k)]


def file_of(address):
    "The page that an address within the site means; a notebook's number may be missing from it, as nbdev leaves it out."
    path = unquote(urlsplit(address).path).lstrip("/") or "index.html"
    numbered = [p for p in PAGES if p.rpartition("/")[0] == path.rpartition("/")[0] and p.rpartition("/")[2].lstrip("0123456789_") == path.rpartition("/")[2]]
    return path if (DOCS/path).is_file() else next(iter(numbered), path)


def test_no_link_is_broken():
    "Every link within the site leads to a page, and to a heading or name on it."
    parts, broken = {page: Parts(page) for page in PAGES}, []
    for page, part in parts.items():
        for link in part.links:
            where, fragment = urldefrag(urljoin(f"http://site/{page}", link))
            if page == "index.html" and re.match(r"(nbs|\.github)/", link): continue # see test_links_of_the_front_page
            if urlsplit(where).netloc != "site" and SITE not in where: continue
            target = file_of(where.replace(SITE, "http://site/"))
            if not (DOCS/target).is_file(): broken.append(f"{page}: {link}")
            elif fragment and target in parts and unquote(fragment) not in parts[target].ids: broken.append(f"{page}: {link} (no such heading)")
    assert not broken, "\n".join(broken)


def test_links_of_the_front_page(visit, site):
    "The README's links begin at the repository; on the site each leads to its page, or to the file in the repository."
    page, wrong = visit("light")
    page.goto(site + "index.html")
    hrefs = page.evaluate("[...document.querySelectorAll('main a')].map(a => a.href)")
    own = [href for href in hrefs if href.startswith(site)]
    assert len([href for href in own if "tutorials/" in href]) > 5
    assert not [href for href in own if not (DOCS/file_of(href)).is_file()]
    files = [href for href in hrefs if "/.github/" in href]
    assert files and all(href.startswith(INI["DEFAULT"]["git_url"] + "/blob/") for href in files) and not wrong


# Code

def exported(notebook):
    "The functions and classes that a notebook exports, private ones too, with the lines they begin with."
    cells = ["".join(cell["source"]) for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    definitions = [node for cell in cells if re.match(r"#\| exports?\n", cell) for node in ast.parse(cell).body
                   if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
    return [f"{'class' if isinstance(node, ast.ClassDef) else 'def'} {node.name}" for node in definitions]


def shown(notebook):
    "The text of a notebook's page."
    page = DOCS/file_of(notebook.relative_to(Path(__file__).parents[1]).with_suffix(".html").as_posix())
    return html.unescape(re.sub("<[^>]+>", "", page.read_text(encoding="utf-8")))


@pytest.mark.parametrize("notebook", sorted(filter(exported, NOTEBOOKS)), ids=lambda p: p.stem)
def test_every_page_shows_its_code(notebook):
    "nbdev takes the source of an `export` cell from the page, and leaves that of an `exports` cell."
    text = shown(notebook)
    assert not [name for name in exported(notebook) if not re.search(rf"{re.escape(name)}\b", text)]


def test_the_loss_is_on_its_page():
    assert "def clip_loss" in shown(next(p for p in NOTEBOOKS if p.name == "02_loss.ipynb"))


# Pages

MISSING = "[...document.querySelectorAll('main img')].filter(i => !(i.complete && i.naturalWidth)).map(i => i.src.slice(0, 80))"
TOO_WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
CUT_OFF = """() => { const scrolls = e => e && e.tagName !== 'MAIN' && e.tagName !== 'BODY' && (/auto|scroll/.test(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
                      return [...document.querySelectorAll('main *')].filter(e => { const box = e.getBoundingClientRect(); return box.width && box.right > innerWidth + 1 && !scrolls(e) })
                             .slice(0, 3).map(e => e.tagName + ' ' + e.textContent.slice(0, 40)) }"""
COLOURS = """() => { const solid = e => { const c = getComputedStyle(e).backgroundColor; return /, 0\\)$/.test(c) ? e.parentElement ? solid(e.parentElement) : 'rgb(255, 255, 255)' : c };
                     const p = document.querySelector('main p') || document.body; return [getComputedStyle(p).color, solid(p)] }"""


def luminance(colour):
    "Relative luminance of rgb(…), as WCAG defines it."
    rgb = [int(float(x))/255 for x in colour[colour.index("(")+1:-1].split(",")[:3]]
    return sum(w * (c/12.92 if c <= .03928 else ((c + .055)/1.055)**2.4) for w, c in zip((.2126, .7152, .0722), rgb))


def contrast(page):
    "The contrast of text and ground, and the ground's luminance."
    text, ground = map(luminance, page.evaluate(COLOURS))
    return (max(text, ground) + .05) / (min(text, ground) + .05), ground


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages(visit, site, scheme):
    "Figures load, nothing errs, nothing is wider than the window, and the text can be read."
    page, wrong = visit(scheme)
    for name in PAGES:
        page.goto(site + name, wait_until="load")
        page.evaluate("document.querySelectorAll('img[loading=lazy]').forEach(i => i.loading = 'eager')")
        try: page.wait_for_function(f"{MISSING}.length === 0", timeout=3000)
        except playwright.TimeoutError: wrong.append(f"{name}: no picture {page.evaluate(MISSING)}")
        for width in (1440, 390):
            page.set_viewport_size(dict(width=width, height=900))
            if page.evaluate(TOO_WIDE) > 0 or page.evaluate(CUT_OFF): wrong.append(f"{name} at {width} px: {page.evaluate(TOO_WIDE)} px too wide; cut off: {page.evaluate(CUT_OFF)}")
        ratio, ground = contrast(page)
        if ratio < 4.5 or (ground > .5) != (scheme == "light"): wrong.append(f"{name} in {scheme}: contrast {ratio:.1f}, ground {ground:.2f}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_toggle(visit, site, scheme):
    "The site's own switch turns light to dark and back, and the next page keeps it."
    page, wrong = visit(scheme)
    page.goto(site + "index.html")
    before = contrast(page)[1]
    page.locator(".quarto-color-scheme-toggle:visible").first.click()
    assert abs(contrast(page)[1] - before) > .5
    page.goto(site + PAGES[0])
    assert abs(contrast(page)[1] - before) > .5 and not wrong


def test_search(visit, site):
    "A word finds the page that is about it."
    page, wrong = visit("light")
    page.goto(site + "index.html")
    page.locator("#quarto-search button:visible, #quarto-search input:visible").first.click()
    page.keyboard.type("temperature")
    found = page.locator("a[href*='loss']:visible", has_text="emperature")
    found.first.wait_for(timeout=5000)
    assert not wrong, wrong


def test_every_notebook_has_its_page():
    "No notebook is left out, and each is in the sidebar."
    nbs = Path(__file__).parents[1]
    pages = {file_of(p.relative_to(nbs).with_suffix(".html").as_posix()) for p in NOTEBOOKS}
    assert pages == set(PAGES)
    sidebar = {file_of(urlsplit(urljoin("http://site/index.html", link)).path) for link in Parts("index.html").links if link.endswith(".html") and ":" not in link}
    assert pages <= sidebar
