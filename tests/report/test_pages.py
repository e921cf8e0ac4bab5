"""Both pages in a browser: quiet, self-contained, complete, and readable at any width, in the dark and in print."""

from __future__ import annotations

from pathlib import Path

import pytest
from chromium import CUT_OFF, EMPTY, IN_BROWSER, LEAST_CONTRAST, OVERFLOW, open_page
from compare.test_compare import commits, read  # noqa: F401
from fake_results import write_run

from pathsynth.compare.experiments import read_run, to_frame
from pathsynth.compare.page import render_comparison
from pathsynth.core.params import load_params
from pathsynth.report.render import read_report, render_report

pytestmark = IN_BROWSER

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
