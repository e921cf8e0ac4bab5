"""Both pages in a browser: no message, no request, nothing broken, nothing wider than the window, readable in the dark."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_results import write_run
from test_compare import commits, file_of, rows  # noqa: F401

from pathsynth.compare.page import render_comparison
from pathsynth.core.io import write_text
from pathsynth.core.params import load_params
from pathsynth.report import render as report

playwright = pytest.importorskip("playwright.sync_api")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")]

# The contrast of two colours by WCAG 2.2, of every element with words of its own against the nearest ground below it.
LEAST_CONTRAST = """() => {
  const context = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = colour => {
    context.clearRect(0, 0, 1, 1); context.fillStyle = colour; context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const light = colour => {
    const linear = value => value <= .04045 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4;
    const [r, g, b] = rgba(colour).slice(0, 3).map(value => linear(value / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const ground = element => {
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
    const pair = [svg ? style.fill : style.color, ground(svg || element)].map(light).sort((a, b) => b - a);
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
# Words of a chart that stand outside of it are cut off.
CUT = """[...document.querySelectorAll('svg text')].filter(text => {
  const inner = text.getBoundingClientRect(), outer = text.closest('svg').getBoundingClientRect();
  return outer.width && (inner.left < outer.left - 1 || inner.right > outer.right + 1 || inner.bottom > outer.bottom + 1);
}).map(text => text.textContent)"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def pages(folder: Path, rows, file_of) -> dict[str, Path]:  # noqa: F811
    run = write_run(folder / "run")
    params = load_params(run / "params.yaml")
    report.write_report(folder / "report.html", report.read_report(params, run / "metrics", run / "plots", run / "logs"))
    write_text(folder / "compare.html", render_comparison(rows, file_of))
    return {name: folder / f"{name}.html" for name in ("report", "compare")}


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(params=["report", "compare"])
def name(request) -> str:
    return request.param


def _opened(browser, path: Path, width: int = 1100, scheme: str = "light", media: str = "screen"):
    """The page, with what it says and asks for in `said` and `asked`."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.said, page.asked = [], []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    page.emulate_media(media=media, color_scheme=scheme)
    page.goto(path.as_uri())
    return page


@pytest.mark.parametrize(
    ("width", "scheme", "media"),
    [(1100, "light", "screen"), (390, "light", "screen"), (1100, "dark", "screen"), (680, "light", "print")],
)
def test_page_is_whole_quiet_and_no_wider_than_the_window(browser, pages, name: str, width: int, scheme: str, media: str):
    page = _opened(browser, pages[name], width, scheme, media)
    page.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
    page.screenshot(path=pages[name].with_name(f"{name}_{width}_{scheme}_{media}.png"), full_page=True)
    assert page.evaluate(EMPTY) == 0
    assert page.evaluate(OVERFLOW) <= 0
    assert page.evaluate(CUT) == []
    assert page.said == []
    assert [url for url in page.asked if not url.startswith("data:")] == [pages[name].as_uri()]
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_their_ground(browser, pages, name: str, scheme: str):
    page = _opened(browser, pages[name], scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
    contrast, where = page.evaluate(LEAST_CONTRAST)
    assert contrast >= 4.5, where
    light = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(246, 247, 249)"
    assert light == (scheme == "light")
    page.close()


def test_print_opens_what_is_folded(browser, pages, name: str):
    page = _opened(browser, pages[name], media="print")
    heights = page.evaluate("[...document.querySelectorAll('details:not([open])')].map(e => e.getBoundingClientRect().height)")
    assert heights and min(heights) > 60
    assert page.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert len(page.pdf(format="A4")) > 10_000
    page.close()


def test_keyboard_finds_the_way_in_and_sees_where_it_is(browser, pages, name: str):
    page = _opened(browser, pages[name])
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineWidth") == "3px"
    page.close()
