"""A headless Chromium for tests of a page; tests skip where there is none."""

import shutil
from contextlib import contextmanager

import pytest

ARGUMENTS = ["--no-sandbox"]


def chromium():
    """Path of the browser, or a skip that says what is missing."""
    pytest.importorskip("playwright", reason="playwright is not installed (pip install 'mergebench[browser]')")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on the path")
    return path


@contextmanager
def launched(path):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def opened(browser, file, width=1280, scheme="light", script=True):
    """The page with what it said and asked for: lists ``messages`` and ``requests``, its own file left out."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=script
    )
    page = context.new_page()
    page.messages, page.requests = [], []
    page.on("console", lambda m: page.messages.append(m.text))
    page.on("pageerror", lambda e: page.messages.append(str(e)))
    page.on("request", lambda r: page.requests.append(r.url))
    page.goto(file.resolve().as_uri())
    page.requests = [url for url in page.requests if url != file.resolve().as_uri()]
    yield page
    context.close()


def draw_all(page):
    """Bring every chart into view, so that it is drawn."""
    for figure in page.query_selector_all("figure.chart"):
        figure.scroll_into_view_if_needed()
        figure.wait_for_selector(".drawn svg")
        figure.wait_for_selector(".static", state="detached")
