"""Both pages in a browser: quiet, self-contained, complete, and readable at any width, in the dark and in print."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from compare.test_compare import commits, read  # noqa: F401
from fake_results import write_run

from pathsynth.compare.experiments import read_run, to_frame
from pathsynth.compare.page import render_comparison
from pathsynth.core.params import load_params
from pathsynth.report.render import read_report, render_report

playwright = pytest.importorskip("playwright.sync_api")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed")]

# The lowest contrast (WCAG 2.2) of an element with text against the nearest background below it.
LEAST_CONTRAST = """() => {
  const context = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = colour => {
    context.clearRect(0, 0, 1, 1); context.fillStyle = colour; context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const luminance = colour => {
    const linear = value => value <= .04045 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4;
    const [r, g, b] = rgba(colour).slice(0, 3).map(value => linear(value / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const background = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (rgba(colour)[3] > 250) return colour;
    }
    return 'white';
  };
  let least = [99, ''];
  for (const element of document.querySelectorAll('body, body *')) {
    if (![...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim())) continue;
    if (!element.checkVisibility()) continue;
    const style = getComputedStyle(element), svg = element.closest('svg');
    const pair = [svg ? style.fill : style.color, background(svg || element)].map(luminance).sort((a, b) => b - a);
    const contrast = (pair[0] + .05) / (pair[1] + .05);
    if (contrast < least[0]) least = [contrast, `${element.tagName} ${element.className} ${element.textContent.slice(0, 40)}`];
  }
  return least;
}"""
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
EMPTY = """[...document.querySelectorAll('img, svg')].filter(element => {
  const box = element.getBoundingClientRect();
  return !box.width || !box.height || element.naturalWidth === 0;
}).length"""
CUT_OFF = """[...document.querySelectorAll('svg text')].filter(text => {
  const inner = text.getBoundingClientRect(), outer = text.closest('svg').getBoundingClientRect();
  return outer.width && (inner.left < outer.left - 1 || inner.right > outer.right + 1 || inner.bottom > outer.bottom + 1);
}).map(text => text.textContent)"""
FOLDED_HEIGHTS = "[...document.querySelectorAll('details:not([open])')].map(e => e.getBoundingClientRect().height)"


@pytest.fixture(scope="module", params=["report", "compare"])
def path(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    if request.param == "report":
        run = write_run(folder / "run")
        folders = (run / name for name in ("metrics", "plots", "logs", "metrics/anchors"))
        text = render_report(read_report(load_params(run / "params.yaml"), *folders))
    else:
        read_file = request.getfixturevalue("read")
        text = render_comparison(to_frame([read_run(rev, read_file) for rev in ("good", "bad", "old")]), read_file)
    path = folder / f"{request.param}.html"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield running
        running.close()


def open_page(browser, path: Path, width: int = 1100, scheme: str = "light", media: str = "screen"):
    """Opens the page, and lists its messages and requests in `messages` and `requests`."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.messages, page.requests = [], []
    page.on("console", lambda message: page.messages.append(message.text))
    page.on("pageerror", lambda error: page.messages.append(str(error)))
    page.on("request", lambda request: page.requests.append(request.url))
    page.emulate_media(media=media, color_scheme=scheme)
    page.goto(path.as_uri())
    return page


@pytest.mark.parametrize(
    ("width", "scheme", "media"),
    [(1100, "light", "screen"), (390, "light", "screen"), (1100, "dark", "screen"), (680, "light", "print")],
)
def test_page_is_complete_quiet_readable_and_fits_the_window(browser, path, width: int, scheme: str, media: str):
    page = open_page(browser, path, width, scheme, media)
    if media == "print":
        folded = page.evaluate(FOLDED_HEIGHTS)
        assert folded and min(folded) > 60
        assert page.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    page.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert page.evaluate(EMPTY) == 0
    assert page.evaluate(OVERFLOW) <= 0
    assert page.evaluate(CUT_OFF) == []
    assert page.messages == []
    assert [url for url in page.requests if not url.startswith("data:")] == [path.as_uri()]
    contrast, where = page.evaluate(LEAST_CONTRAST)
    assert contrast >= 4.5, where
    light = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(246, 247, 249)"
    assert light == (scheme == "light") or media == "print"
    page.close()


def test_keyboard_reaches_the_skip_link_and_shows_the_focus(browser, path):
    page = open_page(browser, path)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineWidth") == "3px"
    page.close()
