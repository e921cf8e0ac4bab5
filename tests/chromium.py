"""Chromium for the tests of pages, and what they measure in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api")
PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Marks of a module of such tests.
IN_BROWSER = [pytest.mark.slow, pytest.mark.skipif(PROGRAM is None, reason="Chromium is not installed")]

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


@contextmanager
def launch() -> Iterator:
    """Runs Chromium; the fixture `browser` gives one to a module of tests."""
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=PROGRAM, args=["--no-sandbox"])
        yield running
        running.close()


def new_page(browser, width: int = 1100, scheme: str = "light"):
    """Opens an empty page, which lists its messages and requests in `messages` and `requests`."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.messages, page.requests = [], []
    page.on("console", lambda message: page.messages.append(message.text))
    page.on("pageerror", lambda error: page.messages.append(str(error)))
    page.on("request", lambda request: page.requests.append(request.url))
    return page


def open_page(browser, path: Path, width: int = 1100, scheme: str = "light", media: str = "screen"):
    """Opens a page of a file, see `new_page`."""
    page = new_page(browser, width, scheme)
    page.emulate_media(media=media, color_scheme=scheme)
    page.goto(path.as_uri())
    return page
