"""The built site in Chromium, as its reader meets it over http: `make test-browser` builds it first."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import TELEPHONE, Browser, marks

SITE = Path(__file__).resolve().parents[1] / "site"
pytestmark = [*marks, pytest.mark.skipif(not SITE.is_dir(), reason="make docs builds the site")]
PAGES = ("index", "commands/sample", "kinds/samplers", "gallery", "api/models", "papers", "conventions")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of the site."""
    handler = functools.partial(Quiet, directory=SITE)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    one = Browser(tmp_path_factory.mktemp("profile"))
    yield one
    one.driver.quit()


@pytest.mark.parametrize("width", [1280, TELEPHONE])
@pytest.mark.parametrize("page", PAGES)
def test_a_page_fits_its_screen_and_asks_for_nothing_elsewhere(
    browser: Browser, address: str, page: str, width: int
) -> None:
    browser.open(f"{address}/{page}.html", width=width)
    assert browser.js("return document.documentElement.scrollWidth") == width
    assert browser.js("return [...document.images].every(one => one.loading == 'lazy' || one.naturalWidth > 0)")
    assert browser.complaints() == []
    assert all(one.startswith((address, "data:")) for one in browser.addresses())
    browser.screenshot(f"site-{page.replace('/', '-')}-{width}")


def test_the_search_finds_pages_without_a_network(browser: Browser, address: str) -> None:
    browser.open(f"{address}/index.html")
    browser.driver.find_element("css selector", "input[name=q]").send_keys("swiss roll\n")
    browser.wait("document.querySelectorAll('ul.search li a').length > 5")
    found = browser.js("return [...document.querySelectorAll('ul.search li a')].map(one => one.textContent)")
    assert "The swiss roll, end to end" in found
    browser.wait("document.querySelector('ul.search li p.context') !== null")
    assert all(one.startswith((address, "data:")) for one in browser.addresses())
    browser.screenshot("site-search")


def test_a_page_is_dark_where_the_reader_wants_that(browser: Browser, address: str) -> None:
    browser.open(f"{address}/conventions.html", dark=True)
    colour = browser.js("return getComputedStyle(document.body).backgroundColor")
    assert max(map(int, colour.removeprefix("rgb(").removesuffix(")").split(","))) < 60
    browser.screenshot("site-dark")
