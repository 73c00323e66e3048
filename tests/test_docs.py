"""The site: it builds without a warning, every link in it leads somewhere, and a browser finds
nothing wrong with any page.

Every page is loaded once, at the width of a desktop, and then narrowed to a phone's: that is when
its maths, images, console, requests and overflow are checked. Links are checked in the files.
Colours are checked on a page of each kind, light and dark. Pictures are left in
`_docs/screenshots`.
"""

import functools
import html.parser
import http.server
import re
import subprocess
import sys
import threading
import urllib.parse

import pytest
from browser import listen, script
from conftest import ROOT
from fastcore.docments import docments
from filelock import FileLock

from nsl_repro.command.parameters import read_parameters
from nsl_repro.nsl.dynamic import dynamic_conv2d
from nsl_repro.results.answers import answer
from nsl_repro.results.ledger import load_published
from nsl_repro.results.pages import headlines_told
from nsl_repro.results.site import RERUN

HTML = ROOT / "_docs" / "html"
SCREENSHOTS = ROOT / "_docs" / "screenshots"
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
KINDS = [
    "index",
    "nsl/07_dynamic",
    "experiments/nsl_cifar",
    "api/nsl.dynamic",
    "results",
    "nsl/index",
]  # a page of each kind

LOOK, OVERFLOW, CUT, FAINT = map(script, ("look", "overflow", "cut", "faint"))
OPEN = "() => document.querySelectorAll('details').forEach((one) => (one.open = true))"
BOX = """(name) => {
    const e = document.querySelector(name);
    if (!e) return null;
    const {top, bottom, width} = e.getBoundingClientRect();
    const [start, end] = [top + scrollY, bottom + scrollY];
    return {top: start, bottom: end, width, natural: e.naturalWidth};
}"""
EXPERIMENTS = sorted(p.stem for p in (ROOT / "nbs" / "experiments").glob("[!_.]*.ipynb"))
SCREENS = pytest.mark.parametrize("screen", [DESKTOP, PHONE], ids=["desktop", "phone"])


class Page(html.parser.HTMLParser):
    "The links of a page, the places in it that links may lead to, and what it loads."

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.loads = set(), [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids |= {found.get("id"), found.get("name")} - {None}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        elif tag == "link" and found.get("rel") in (
            "stylesheet",
            "preload",
            "icon",
            "modulepreload",
            "preconnect",
            "dns-prefetch",
            "search",
            "next",
            "prev",
        ):
            self.loads.append(found["href"])
        self.loads += [
            found[key]
            for key in ("src", "poster", "data")
            if found.get(key) and tag not in ("a", "link")
        ]

    handle_startendtag = handle_starttag


@pytest.fixture(scope="session")
def pages():
    "Build the site, or bring it up to date: name -> page."
    pytest.importorskip(
        "sphinx", reason="Sphinx is not here: the site is built by Python 3.11 or newer"
    )
    (ROOT / "_docs").mkdir(exist_ok=True)
    with FileLock(ROOT / "_docs" / "lock"):  # one worker builds it, the others find it there
        done = subprocess.run(
            [sys.executable, "docs"], cwd=ROOT, capture_output=True, text=True, timeout=600
        )
    assert done.returncode == 0, (
        f"the site does not build without warnings\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    )
    return {
        path.relative_to(HTML).with_suffix("").as_posix(): Page(path)
        for path in sorted(HTML.rglob("*.html"))
        if "_static" not in path.parts
    }


@pytest.fixture(scope="session")
def address(pages):
    "The site, served from this machine."

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(HTML))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_every_notebook_and_module_has_a_page(pages):
    for path in (ROOT / "nbs").rglob("[!_.]*.ipynb"):
        if ".ipynb_checkpoints" not in path.parts:
            assert path.relative_to(ROOT / "nbs").with_suffix("").as_posix() in pages
    for path in (ROOT / "nsl_repro").glob("*/[!_]*.py"):
        assert f"api/{path.parent.name}.{path.stem}" in pages
    assert {"index", "results", "readme", "changelog", "data", "search"} <= set(pages)


def test_directives_and_hidden_cells_are_not_shown(pages):
    shown = re.compile(r">#\|\s*(<[^>]*>)*\s*(export|hide|default_exp|eval|notest)")
    for name in pages:
        text = (HTML / f"{name}.html").read_text(encoding="utf-8")
        assert not shown.search(text), name
        assert "NSL_PROGRESS" not in text or name != "index"


def test_every_link_leads_somewhere(pages):
    wrong = []
    for name, page in pages.items():
        for link in [*page.links, *page.loads]:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme or link.startswith("//"):
                continue
            target = (
                (HTML / name).parent / urllib.parse.unquote(parts.path)
                if parts.path
                else HTML / f"{name}.html"
            )
            target = target.resolve()
            if target.is_dir():
                target /= "index.html"
            if not target.is_file():
                wrong.append(f"{name}: {link} is no file")
            elif parts.fragment and target.suffix == ".html":
                there = pages[target.relative_to(HTML).with_suffix("").as_posix()]
                if urllib.parse.unquote(parts.fragment) not in there.ids:
                    wrong.append(f"{name}: {link} is no place on that page")
    assert not wrong, "\n".join(wrong[:30])


def test_nothing_is_loaded_from_elsewhere(pages):
    for name, page in pages.items():
        assert not [load for load in page.loads if re.match(r"(https?:)?//", load)], name
    for path in HTML.rglob("*.css"):
        assert not re.search(r"""url\(\s*["']?(https?:)?//""", path.read_text(encoding="utf-8")), (
            path
        )


def test_a_name_leads_to_its_cell_and_the_cell_to_its_name(pages):
    assert "../nsl/07_dynamic.html#source-dynamic_conv2d" in pages["api/nsl.dynamic"].links
    assert (
        "../api/nsl.dynamic.html#nsl_repro.nsl.dynamic.dynamic_conv2d"
        in pages["nsl/07_dynamic"].links
    )
    text = re.sub(r"<[^>]+>", "", (HTML / "api" / "nsl.dynamic.html").read_text(encoding="utf-8"))
    said = [
        what["docment"] for what in docments(dynamic_conv2d, full=True).values() if what["docment"]
    ]
    assert len(said) > 3 and all(one.split("`")[0].strip() in text for one in said)


@pytest.mark.parametrize("half", [0, 1])  # one for each worker
def test_no_page_has_anything_wrong(pages, address, browser, half):
    wrong = []
    page = browser.new_page(viewport=DESKTOP)
    heard = listen(page)
    for name in list(pages)[half::2]:
        page.set_viewport_size(DESKTOP)
        page.goto(f"{address}/{name}.html")
        wrong += [f"{name}: {what}" for what in page.evaluate(LOOK)]
        page.evaluate(OPEN)  # what is folded, too
        wrong += [f"{name}: {what}" for what in page.evaluate(CUT)]
        page.set_viewport_size(PHONE)
        wrong += [f"{name}: {what}" for what in page.evaluate(OVERFLOW)]
        wrong += [f"{name}: {what}" for what in heard]
        heard.clear()
    page.close()
    assert not wrong, "\n".join(wrong[:40])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_and_screenshots(address, browser, scheme):
    "Text stands out from its ground and figures are on a light one; what people see is kept."
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page = browser.new_page(viewport=DESKTOP, color_scheme=scheme)
    for name in KINDS:
        page.goto(f"{address}/{name}.html")
        page.evaluate(LOOK)
        found = page.evaluate(FAINT)
        assert not found["wrong"], f"{name}, {scheme}: {found['wrong']}"
        assert found["ground"] > 0.8 if scheme == "light" else found["ground"] < 0.05
        for width, viewport in (("desktop", DESKTOP), ("phone", PHONE)):
            page.set_viewport_size(viewport)
            page.screenshot(path=SCREENSHOTS / f"{name.replace('/', '-')}-{width}-{scheme}.png")
        page.set_viewport_size(DESKTOP)
    page.close()


def words(text):
    "A text without the marks of Markdown and of typesetting."
    return " ".join(re.sub(r"[*`]", "", text).split())


@SCREENS
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_answers_first(address, browser, name, screen):
    "Question, answer and picture on the first screen; code behind one click; parameters to read."
    page = browser.new_page(viewport=screen)
    page.goto(f"{address}/experiments/{name}.html")
    page.evaluate(LOOK)
    assert words(page.inner_text(".answer")) == words(answer(name).text)
    assert page.evaluate(BOX, ".answer > p")["top"] < screen["height"] * 2 / 3
    if name != "atlas":  # its picture is the map, which is drawn below
        picture = page.evaluate(BOX, ".answer img")
        assert picture["top"] < screen["height"] if screen == DESKTOP else picture["width"] > 300
        assert type_size(picture) > 9
    code = page.locator(".bd-article .cell_input pre")
    shown = [code.nth(n).is_visible() for n in range(code.count())]
    assert shown and not any(shown)
    button = page.locator("button.open-all")
    assert button.inner_text() == "Show all code"
    button.click()
    assert all(code.nth(n).is_visible() for n in range(code.count()))
    assert button.inner_text() == "Hide all code"
    button.click()
    assert not code.first.is_visible()
    table = page.locator("table", has=page.locator("th", has_text="what it is")).first
    told = [words(text) for text in table.locator("tbody tr td:first-child").all_inner_texts()]
    assert told == list(read_parameters(ROOT / "nbs" / "experiments" / f"{name}.ipynb"))
    page.close()


def type_size(picture):
    "The smallest letters of a picture that the site draws, on the screen: 9 points at 190 dpi."
    return 9 / 72 * 190 * picture["width"] / picture["natural"]


def test_cards_carry_the_answers(address, browser):
    page = browser.new_page(viewport=DESKTOP)
    page.goto(f"{address}/experiments/index.html")
    cards = words(page.inner_text(".cards"))
    assert not [name for name in EXPERIMENTS if words(answer(name).brief) not in cards]
    page.close()


@SCREENS
def test_a_lesson_begins_with_its_idea_and_a_figure(pages, address, browser, screen):
    page, without = browser.new_page(viewport=screen), []
    for name in pages:
        if name.partition("/")[0] not in ("nsl", "pddm") or name.endswith("index"):
            continue
        page.goto(f"{address}/{name}.html")
        page.evaluate(LOOK)
        figure = page.evaluate(BOX, ".lead img")
        if figure is None:
            without.append(name)
        elif screen == DESKTOP:
            assert figure["bottom"] < screen["height"], name
        else:
            assert figure["top"] < screen["height"] - 100, name
        assert page.evaluate(BOX, "h1 + blockquote")["bottom"] < screen["height"] / 2, name
        first = page.locator(".bd-article .cell_input pre").first
        assert "import" not in first.inner_text() or not first.is_visible(), name
    page.close()
    assert without == [
        "nsl/00_playground",
        "nsl/09_access",
        "nsl/11_convert",
        "pddm/04_plugins",
    ]  # no figures


@SCREENS
def test_the_results_page_says_what_it_is_worth(address, browser, screen):
    page = browser.new_page(viewport=screen)
    page.goto(f"{address}/results.html")
    page.evaluate(LOOK)
    text, ledger = words(page.inner_text(".bd-article")), load_published(ROOT / "data")
    first = words(page.locator(".bd-article p").first.inner_text())
    assert re.match("None of the|Of the", first) and words(RERUN) in first
    assert words(headlines_told([e for e in ledger if e.preset != "smoke"])) in text
    assert page.locator("p", has_text="Too short to say.").first.is_visible()
    heads = page.locator("table").first.locator("th").all_inner_texts()
    assert heads[:2] == ["verdict", "what is compared"]
    for picture in (".pictures p:nth-child(1) img", ".pictures p:nth-child(2) img"):
        assert type_size(page.evaluate(BOX, picture)) > 9
    assert page.locator("details[open]").count() == 0 < page.locator("details").count()
    trials = page.locator("summary", has_text="tuning").all()
    assert trials and all(one.is_visible() for one in trials)
    height = page.evaluate("document.documentElement.scrollHeight")
    assert height < (18_000 if screen == DESKTOP else 27_000)
    page.locator("button.open-all").click()
    assert page.locator("details:not([open])").count() == 0
    page.close()


@SCREENS
def test_the_front_page_shows_what_it_is_and_how_to_begin(address, browser, screen):
    page = browser.new_page(viewport=screen)
    page.goto(f"{address}/index.html")
    page.evaluate(LOOK)
    picture = page.evaluate(BOX, "img[alt^='Four ways to compare']")
    code = page.evaluate(BOX, ".cell_input pre")
    assert picture["bottom"] < code["bottom"] + 200 and code["top"] < screen["height"]
    assert code["bottom"] < screen["height"] if screen == DESKTOP else picture["width"] > 330
    assert 13 * 130 / 72 * picture["width"] / picture["natural"] > 9  # points at dpi: its type
    text = page.inner_text(".bd-article")
    assert all(said in text for said in ("What it is for", "When not", "Ideas, an hour"))
    page.close()


def test_the_short_way_takes_an_hour_and_leads_on(pages, address, browser):
    "At 150 words a minute, code passed over; each page of it leads to the next one."
    from nbformat import read

    tour = read(ROOT / "nbs" / "index.ipynb", 4)
    (text,) = [c.source for c in tour.cells if "## Two ways to read" in c.source]
    way = re.findall(r"\]\(([^)#]+)\.ipynb\)", text.partition("**Ideas")[2].partition("**Every")[0])
    prose = []
    for name in way:
        cells = read(ROOT / "nbs" / f"{name}.ipynb", 4).cells
        prose += [c.source for c in cells if c.cell_type == "markdown"]
    minutes = sum(len(source.split()) for source in prose) / 150
    assert 40 < minutes < 75, minutes
    page = browser.new_page(viewport=DESKTOP)
    page.goto(f"{address}/{way[0]}.html")
    for n, name in enumerate(way, 1):
        assert page.url == f"{address}/{name}.html"
        page.locator(".page-links a", has_text=f"Ideas, {n} of {len(way)}").click()
    assert page.url == f"{address}/results.html"
    page.close()


def test_search_finds_a_word_and_a_name(address, browser):
    page = browser.new_page(viewport=DESKTOP)
    heard = listen(page)
    for words, expected in (
        ("similarity", "nsl/01_similarity.html"),
        ("dynamic_conv2d", "api/nsl.dynamic.html"),
    ):
        page.goto(f"{address}/index.html")
        page.keyboard.press("Control+k")
        page.keyboard.type(words)
        page.keyboard.press("Enter")
        page.wait_for_selector(f"#search-results a[href*='{expected}']")
    page.screenshot(path=SCREENSHOTS / "search-desktop-light.png")
    page.close()
    assert not heard
