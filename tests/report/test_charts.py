"""Charts: the page's colours, ids of their own, text that is only text, and the same bytes every time."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import matplotlib

from pathsynth.report.charts import Axis, Series, bars, lines

HOSTILE = "<script>alert('$x^2$')</script>"
TWO = (Series("gate", [0.9, None], [0.8, None], [0.95, None]), Series("judge", [0.5, 0.25], [0.4, 0.1], [0.6, 0.4]))


def _bars(key: str = "a", labels: tuple[str, ...] = ("adipose", "mucus")) -> str:
    return bars(key, labels, TWO, Axis("F1"), "F1: adipose 0.90")


def _lines(key: str = "b") -> str:
    series = [Series("loss", [0.5, None, 0.1], x=[1, 2, 3]), Series("mean", [0.4, 0.3, 0.2], x=[1, 2, 3], plain=True)]
    return lines(key, series, Axis("steps", (None, None)), Axis("share", percent=True), "Loss", diagonal=True)


def _ids(svg: str) -> set[str]:
    return {element.attrib["id"] for element in ElementTree.fromstring(svg).iter() if "id" in element.attrib}


def test_same_chart_is_the_same_text_whatever_the_users_settings():
    first = _bars(), _lines()
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "lines.linewidth": 9}):
        assert (_bars(), _lines()) == first
        assert matplotlib.rcParams["font.size"] == 30


def test_colours_are_the_pages():
    for svg in (_bars(), _lines()):
        assert not re.findall(r"#[0-9a-f]{6}\b", svg)
        assert "var(--series-1)" in svg and "var(--ink)" in svg


def test_series_differ_without_colour():
    assert "<pattern" in _bars() and "stroke-dasharray" in _lines()


def test_every_reference_is_to_an_id_of_the_same_chart_and_no_two_charts_share_one():
    for svg in (_bars(), _lines()):
        used = {a or b for a, b in re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', svg)}
        assert used and used == _ids(svg)
    assert not _ids(_bars("a")) & _ids(_bars("c"))


def test_nothing_from_outside_and_nothing_for_the_rest_of_the_page():
    for svg in (_bars(), _lines()):
        assert not re.search(r"http|<style|<metadata|font-family|xmlns|<\?xml|<!DOCTYPE", svg)


def test_texts_are_only_text():
    svg = bars("a", (HOSTILE, "a $b$ & c"), TWO, Axis(HOSTILE), HOSTILE)
    root = ElementTree.fromstring(svg)
    assert {element.tag for element in root.iter()} <= {
        "svg",
        "g",
        "path",
        "use",
        "defs",
        "text",
        "clipPath",
        "rect",
        "pattern",
    }
    texts = [element.text for element in root.iter("text")]
    assert HOSTILE in texts and "a $b$ & c" in texts
    assert root.attrib["aria-label"] == HOSTILE and root.attrib["role"] == "img"


def test_what_has_no_value_says_so_and_long_words_are_cut():
    texts = [element.text for element in ElementTree.fromstring(_bars(labels=("x" * 300, "mucus"))).iter("text")]
    assert "none" in texts
    assert max(len(text or "") for text in texts) <= 60


def test_interval_without_width_has_no_whisker():
    def drawn(*ends: float) -> str:
        low, high = ([ends[0]], [ends[1]]) if ends else ((), ())
        return bars("a", ("adipose",), [Series("gate", [1.0], low, high)], Axis("F1"), "F1")

    assert drawn(1.0, 1.0) == drawn() != drawn(0.9, 1.0)


def test_no_bar_is_clipped_where_the_axis_has_an_open_end():
    svg = bars("a", ("adipose",), [Series("distance", [40.0])], Axis("distance", (0.0, None)), "40")
    texts = [element.text for element in ElementTree.fromstring(svg).iter("text")]
    assert "40" in texts
