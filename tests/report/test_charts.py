"""Charts: deterministic, independent of the page around them, readable without colour, and safe for any label."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import matplotlib
import pytest

from pathsynth.report.charts import Axis, Series, dots, lines

HOSTILE = "<script>alert('$x^2$')</script>"
TWO = (Series("gate", [0.9, None], [0.8, None], [0.95, None]), Series("judge", [0.5, 0.25], [0.4, 0.1], [0.6, 0.4]))
LINES = (Series("loss", [0.5, None, 0.1], x=[1, 2, 3]), Series("mean", [0.4, 0.3, 0.2], x=[1, 2, 3], thin=True))


def draw_dots(key: str = "a", labels: tuple[str, ...] = ("adipose", "mucus")) -> str:
    return dots(key, labels, TWO, Axis("F1"), "F1")


def draw_lines(key: str = "b") -> str:
    return lines(key, LINES, Axis("steps", (None, None)), Axis("share", percent=True), "Loss", diagonal=True)


def parse(svg: str) -> ElementTree.Element:
    """Parses an element that leaves the namespaces to HTML."""
    return ElementTree.fromstring(svg.replace("<svg ", '<svg xmlns:xlink="x" ', 1))


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in parse(svg).iter("text")]


def test_equal_arguments_give_equal_text_under_any_user_settings():
    first = draw_dots(), draw_lines()
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "lines.linewidth": 9}):
        assert (draw_dots(), draw_lines()) == first
        assert matplotlib.rcParams["font.size"] == 30


def test_ids_are_unique_on_the_page_and_every_reference_resolves():
    drawn = [draw_dots("a"), draw_dots("c"), draw_lines("b"), draw_lines("d")]
    ids = [[element.attrib["id"] for element in parse(svg).iter() if "id" in element.attrib] for svg in drawn]
    assert len(set().union(*ids)) == sum(map(len, ids))
    for svg, own in zip(drawn, ids, strict=True):
        used = {a or b for a, b in re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', svg)}
        assert used and used <= set(own)


@pytest.mark.parametrize("svg", [draw_dots(), draw_lines()])
def test_chart_takes_colours_from_the_page_and_nothing_from_outside(svg):
    assert not re.search(r"#0[0-9a-f]{5}\b|http|<style|<metadata|<\?xml|<!DOCTYPE|nan", svg)
    assert "var(--series-1)" in svg and "var(--ink)" in svg


def test_series_differ_without_colour():
    first, second = (dots("a", ("adipose",), [Series("F1", [0.5], style=i)], Axis("F1"), "F1") for i in range(2))
    shapes = [set(re.findall(r' d="([^"]+)"', svg)) for svg in (first, second)]
    assert shapes[0] != shapes[1] and "stroke-dasharray" in draw_lines()


def test_hostile_labels_stay_text():
    svg = dots("a", (HOSTILE, "a $b$ & c"), TWO, Axis(HOSTILE), HOSTILE)
    assert not {element.tag for element in parse(svg).iter()} & {"script", "style", "image", "foreignObject"}
    assert {HOSTILE, "a $b$ & c"} <= set(texts(svg))
    assert parse(svg).attrib["aria-label"].startswith(HOSTILE)


def test_alternative_text_gives_the_numbers():
    assert parse(draw_dots()).attrib["aria-label"] == (
        "F1. adipose: gate 0.90 (0.80 to 0.95), judge 0.50 (0.40 to 0.60); mucus: gate -, judge 0.25 (0.10 to 0.40)"
    )
    assert parse(draw_lines()).attrib["aria-label"] == "Loss. loss: 0.5 at 1, 0.1 at 3"


def test_missing_value_is_named_and_long_label_is_cut():
    drawn = texts(draw_dots(labels=("x" * 300, "mucus")))
    assert "none" in drawn and max(map(len, drawn)) == 60


def test_interval_of_no_width_has_no_whisker():
    without, flat, wide = (
        dots("a", ("adipose",), [Series("gate", [1.0], *ends)], Axis("F1"), "F1").partition(">")[2]
        for ends in ([(), ()], [[1.0], [1.0]], [[0.9], [1.0]])
    )
    assert without == flat != wide


@pytest.mark.parametrize(
    ("values", "limits", "shown", "hidden"),
    [
        ([0.87, 0.99], (0.0, 1.0), {"0.88", "0.98"}, {"0.80", "1.02"}),
        ([0.0, 1.0], (0.0, 1.0), {"0.0", "1.0"}, {"-0.2", "1.2"}),
        ([-2.0, 40.0], (None, None), {"0", "40"}, {"60"}),
        ([None, None], (0.0, 1.0), {"0.0", "1.0"}, {"1.2"}),
    ],
)
def test_axis_fits_the_values_within_its_limits(values, limits, shown, hidden):
    svg = dots("a", ("adipose", "mucus"), [Series("F1", values)], Axis("F1", limits), "F1")
    ticks = {text.replace("\N{MINUS SIGN}", "-") for text in texts(svg)}
    assert shown <= ticks and not hidden & ticks


def test_dots_without_intervals_share_a_line():
    series = [Series("one", [0.5]), Series("two", [0.7])]
    apart = [Series("one", [0.5], [0.4], [0.6]), Series("two", [0.7], [0.6], [0.8])]
    low, high = (int(parse(dots("a", ("mucus",), both, Axis("F1"), "F1")).attrib["height"]) for both in (series, apart))
    assert low < high
