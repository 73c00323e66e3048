"""A real browser for the tests of the site and of JupyterLab: the system's Chromium, cut off from
every other host."""

import shutil
from contextlib import contextmanager

import pytest
from conftest import ROOT
from playwright.sync_api import sync_playwright

LOCAL = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"  # nothing leaves this machine


def script(name):
    "A function of JavaScript that a page is to evaluate."
    return (ROOT / "tests" / "javascript" / f"{name}.js").read_text(encoding="utf-8")


@contextmanager
def chromium():
    "The browser, or a skipped test where there is none."
    path = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if path is None:
        pytest.skip("there is no Chromium here: on Debian, apt install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu", LOCAL]
        )
        yield browser
        browser.close()


def listen(page, allowed=()) -> list[str]:  # a list that grows
    """Everything that goes wrong on a page from now on: errors on the console and in scripts,
    failed requests, requests to other hosts."""
    wrong: list[str] = []
    note = lambda text: wrong.append(text) if not any(a in text for a in allowed) else None
    page.on("console", lambda m: note(f"console: {m.text}") if m.type == "error" else None)
    page.on("pageerror", lambda e: note(f"script: {e}"))
    page.on("response", lambda r: note(f"{r.status} {r.url}") if r.status >= 400 else None)
    page.on(
        "request",
        lambda r: (
            note(f"asks {r.url}")
            if not r.url.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:"))
            else None
        ),
    )
    return wrong
