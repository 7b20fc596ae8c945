"""The page of `difftool report` in Chromium, without a window: `make test-browser`.

It needs Debian's packages chromium and chromium-driver, and selenium.
"""

from __future__ import annotations

import base64
import functools
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browser import TELEPHONE, Browser, marks, webdriver
from pages import HOSTILE, copied, renamed_classes, with_evaluation, with_previews

from difftool import testing

pytestmark = marks


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    one = Browser(tmp_path_factory.mktemp("profile"))
    yield one
    one.driver.quit()


Write = Callable[..., Path]


@pytest.fixture(scope="module")
def write(labels_run: Path, points_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Write:
    """`write(zoom=True, several=False)`: the page of a run, or of two, with Bokeh or without."""
    folder = tmp_path_factory.mktemp("pages")
    one = copied(labels_run, folder / f"one {HOSTILE}".replace("/", "⁄"))
    with_evaluation(with_previews(renamed_classes(one, ["cat", HOSTILE, "<img src=x onerror=alert(1)>", "emu"])))
    runs = [one, copied(points_run, folder / "two")]

    @functools.cache
    def page(zoom: bool, several: bool) -> Path:
        out = folder / f"{'bokeh' if zoom else 'svg'}-{1 + several}.html"
        with pytest.MonkeyPatch.context() as patch:
            if not zoom:
                patch.setitem(sys.modules, "bokeh", None)
            outcome = testing.invoke("report", *runs[: 1 + several], "--out", out)
        assert outcome.code == 0, outcome.err
        return out

    return lambda *, zoom, several=False: page(zoom, several)


ZOOM = [pytest.param(True, id="bokeh"), pytest.param(False, id="svg")]


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("zoom", ZOOM)
def test_a_page_renders_without_a_complaint_and_asks_for_nothing(
    browser: Browser, write: Write, zoom: bool, several: bool
) -> None:
    page = write(zoom=zoom, several=several)
    assert page.stat().st_size < 6_000_000
    browser.open(page)
    if zoom:
        browser.drawn()
    assert browser.complaints() == []
    assert browser.requests() <= {"file", "data"}
    assert browser.js("return [...document.images].every(one => one.complete && one.naturalWidth > 0)")
    assert browser.js("return performance.getEntriesByType('resource').filter(one => !/^data:/.test(one.name))") == []
    browser.screenshot(f"{'several' if several else 'one'}-{'bokeh' if zoom else 'svg'}")


def test_the_policy_stops_what_is_not_of_the_page(browser: Browser, write: Write) -> None:
    """Without this, the tests of complaints would prove nothing."""
    browser.open(write(zoom=False))
    browser.js("const s = document.createElement('script'); s.textContent = 'window.hit = 1'; document.body.append(s)")
    browser.js("const i = new Image(); i.src = 'https://example.invalid/x.png'; document.body.append(i)")
    browser.js("document.body.insertAdjacentHTML('beforeend', '<b onclick=\"window.hit = 1\" id=b>b</b>')")
    browser.js("document.getElementById('b').click()")
    assert browser.js("return window.hit") is None
    browser.js("return fetch('file:///etc/hostname').catch(() => 0)")
    assert len(browser.complaints()) >= 3
    reasons = [
        one["params"].get("blockedReason") for one in browser.network() if one["method"] == "Network.loadingFailed"
    ]
    assert reasons
    assert {*reasons} == {"csp"}


def test_a_slider_moves_and_shows_another_picture(browser: Browser, write: Write) -> None:
    browser.open(write(zoom=False))
    shown = "return [...document.querySelectorAll('#run-1-previews img')].filter(i => i.offsetParent).map(i => i.src)"
    (last,) = browser.js(shown)
    slider = browser.driver.find_element("id", "run-1-previews-range")
    assert slider.accessible_name == "Training step"
    slider.send_keys("\ue012")  # to the left
    (before,) = browser.js(shown)
    assert before != last
    assert browser.js("return document.querySelector('#run-1-previews output').textContent") == "step 2"
    assert slider.get_attribute("aria-valuetext") == "step 2"
    slider.send_keys("\ue011")  # home
    assert slider.get_attribute("aria-valuetext") == "step 1"


def test_the_film_plays_once_and_stops(browser: Browser, write: Write) -> None:
    browser.open(write(zoom=False))
    button = browser.driver.find_element("css selector", "#run-1-film button")
    assert button.accessible_name == "Play: From noise to samples"
    button.click()
    assert button.accessible_name == "Pause: From noise to samples"
    assert browser.js("return document.getElementById('run-1-film-range').value") in ("0", "1")
    browser.wait("Number(document.getElementById('run-1-film-range').value) > 1")
    button.click()
    assert button.text == "Play"
    browser.js("const r = document.getElementById('run-1-film-range'); r.value = Number(r.max) - 1")
    button.click()
    browser.wait("document.querySelector('#run-1-film button').textContent === 'Play'")
    assert browser.js("const r = document.getElementById('run-1-film-range'); return r.value === r.max")


def test_a_keyboard_reaches_everything(browser: Browser, write: Write) -> None:
    """The tab key visits the link to the content, then all sliders, buttons, tables and commands, each with a frame."""
    browser.open(write(zoom=False))
    visited = []
    for _ in range(60):
        browser.keys("\ue004")
        one = browser.js(
            "const e = document.activeElement; const s = getComputedStyle(e);"
            "return [e.tagName, e.type || e.className || '', s.outlineStyle, parseFloat(s.outlineWidth)]"
        )
        if one[0] == "BODY":
            break
        visited.append(one)
    assert visited[0][:2] == ["A", "skip"]
    kinds = [(tag, kind) for tag, kind, *_ in visited]
    assert kinds.count(("INPUT", "range")) == 3
    assert kinds.count(("BUTTON", "button")) == 3
    assert sum(tag == "SUMMARY" for tag, _ in kinds) >= 5
    assert ("DIV", "scroll") in kinds
    assert all(style == "solid" and width >= 2 for _, _, style, width in visited)


@pytest.mark.parametrize("zoom", ZOOM)
def test_texts_of_strangers_stay_texts(browser: Browser, write: Write, zoom: bool) -> None:
    browser.open(write(zoom=zoom))
    if zoom:
        browser.drawn()
    assert HOSTILE in browser.js("return document.querySelector('.classes').innerText")
    assert "<script>" in browser.js("return document.querySelector('h1').innerText")
    assert browser.js("return document.querySelectorAll('main script, main img:not([src^=\"data:\"])').length") == 0
    assert browser.complaints() == []


@pytest.mark.parametrize("zoom", ZOOM)
@pytest.mark.parametrize("several", [False, True])
def test_a_telephone_shows_the_whole_width(browser: Browser, write: Write, zoom: bool, several: bool) -> None:
    browser.open(write(zoom=zoom, several=several), width=TELEPHONE)
    if zoom:
        browser.drawn()
    assert browser.js("return document.documentElement.scrollWidth") == TELEPHONE
    browser.screenshot(f"telephone-{'several' if several else 'one'}-{'bokeh' if zoom else 'svg'}")


LIGHTNESS = """
const [r, g, b] = getComputedStyle(arguments[0]).getPropertyValue(arguments[1]).match(/[\\d.]+/g).map(Number);
return (0.2126 * r + 0.7152 * g + 0.0722 * b) / 255;
"""


@pytest.mark.parametrize("zoom", ZOOM)
def test_a_page_is_dark_where_the_reader_wants_that(browser: Browser, write: Write, zoom: bool) -> None:
    lightness = {}
    for dark in (False, True):
        browser.open(write(zoom=zoom), dark=dark)
        if zoom:
            browser.drawn()
        body = browser.driver.find_element("tag name", "body")
        lightness[dark] = [browser.js(LIGHTNESS, body, name) for name in ("background-color", "color")]
        browser.screenshot(f"{'dark' if dark else 'light'}-{'bokeh' if zoom else 'svg'}")
    assert lightness[False][0] > 0.9 > 0.2 > lightness[False][1]
    assert lightness[True][1] > 0.8 > 0.2 > lightness[True][0]


def test_charts_of_bokeh_follow_the_light(browser: Browser, write: Write) -> None:
    """The colours of lines and labels are those of the style sheet, also when they change on an open page."""
    browser.open(write(zoom=True))
    browser.drawn()
    colour = "[...Bokeh.documents[0].all_models].find(m => m.tags.includes('c0')).line_color"
    light = browser.js(f"return {colour}")
    scheme = {"name": "prefers-color-scheme", "value": "dark"}
    browser.command("Emulation.setEmulatedMedia", media="", features=[scheme])
    dark = browser.wait(f"{colour} !== '{json.dumps(light)[1:-1]}' && {colour}")
    assert re.fullmatch(r"#\w{6}", str(dark if isinstance(dark, str) else dark["value"]))


def test_a_chart_zooms_by_the_mouse(browser: Browser, write: Write) -> None:
    browser.open(write(zoom=True))
    browser.drawn()
    range_ = "Bokeh.documents[0].roots()[0].x_range"
    before = browser.js(f"return [{range_}.start, {range_}.end]")
    place = browser.driver.find_element("id", "run-1-loss-interactive")
    browser.js("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", place)
    actions = webdriver.ActionChains(browser.driver)
    actions.move_to_element_with_offset(place, -40, -60).click_and_hold().move_by_offset(120, 80).release().perform()
    browser.wait(f"{range_}.end - {range_}.start < {(before[1] - before[0]) / 2}")
    assert browser.complaints() == []


def test_a_chart_tells_its_values_under_the_mouse(browser: Browser, write: Write) -> None:
    """The name of a run, which a stranger chose, is text there too."""
    page = write(zoom=True, several=True)
    browser.open(page)
    browser.drawn()
    place = browser.driver.find_element("id", "all-loss-interactive")
    browser.js("arguments[0].scrollIntoView({block: 'center'})", place)
    view = "Bokeh.index.get_by_id(Bokeh.documents[0].roots()[0].id)"
    point = (
        f"const v = {view}, r = v.model.renderers[0], d = r.data_source.data, i = 5;"
        "const box = v.el.getBoundingClientRect();"
        "const f = v.frame; return [box.x + f.bbox.left + f.x_scale.compute(d.x[i]) - f.bbox.left,"
        "box.y + f.bbox.top + f.y_scale.compute(d.y[i]) - f.bbox.top, d.name[i], d.text[i]]"
    )
    x, y, name, value = browser.js(point)
    for dx in (1, 0):
        browser.command("Input.dispatchMouseEvent", type="mouseMoved", x=x + dx, y=y)
    tooltip = (
        "(() => {const all = []; const walk = n => {for (const e of n.querySelectorAll('*')) {"
        "if (e.shadowRoot) walk(e.shadowRoot); if (e.classList.contains('bk-Tooltip') || "
        "e.classList.contains('bk-tooltip-content')) all.push((e.shadowRoot ?? e).textContent)}};"
        "walk(document); return all.join(' ')})()"
    )
    text = browser.wait(f"{tooltip}.includes({json.dumps(value)}) && {tooltip}")
    browser.screenshot("hover")
    assert name in text
    assert "<script>" in name
    assert browser.complaints() == []


@pytest.mark.parametrize("zoom", ZOOM)
def test_print_shows_charts_and_a_few_pictures_without_controls(browser: Browser, write: Write, zoom: bool) -> None:
    browser.open(write(zoom=zoom))
    if zoom:
        browser.drawn()
    scheme = {"name": "prefers-color-scheme", "value": "light"}
    browser.command("Emulation.setEmulatedMedia", media="print", features=[scheme])
    count = "[...document.querySelectorAll('{}')].filter(one => one.getClientRects().length).length"
    assert browser.js(f"return {count.format('.controls, details, .interactive, nav')}") == 0
    charts = browser.js("return document.querySelectorAll('.chart').length")
    assert browser.js(f"return {count.format('.plot')}") == charts
    assert browser.js(f"return {count.format('#run-1-film .frame')}") == 4
    pdf = base64.b64decode(browser.command("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)["data"])
    assert pdf.startswith(b"%PDF")
    pages = len(re.findall(rb"/Type\s*/Page\b", pdf))
    assert 2 <= pages <= 6


def test_without_scripts_the_page_shows_pictures_and_charts(browser: Browser, write: Write) -> None:
    browser.command("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(write(zoom=True))
        frames = browser.driver.find_elements("css selector", "#run-1-film .frame img")
        assert sum(one.is_displayed() for one in frames) == 4
        assert browser.driver.find_element("css selector", ".plot.wide").is_displayed()
        assert not browser.driver.find_element("css selector", "#run-1-film .controls").is_displayed()
    finally:
        browser.command("Emulation.setScriptExecutionDisabled", value=False)
