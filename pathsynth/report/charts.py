"""Charts as inline SVG: bars and lines that take their colours from the page, read without them, and are the same every time.

matplotlib draws them in colours that stand for the page's CSS variables, so that a chart follows light, dark and print. Series
differ in hatching, marker and dash too, for grey print and for eyes that do not tell colours apart; the colours are those of
Okabe and Ito (Color Universal Design, 2008).
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# One unit of the drawing is one CSS pixel at full size: half of a wide window, and nearly all of a phone's.
WIDTH, PLOT_HEIGHT = 480, 250
UNITS_PER_INCH = 72
LEFT, RIGHT, FOOT = 66, 20, 50
# Bars stand below the words of their group, which may be long.
BARS_LEFT, BAR, BAR_WORDS, BAR_GAP = 22, 13, 20, 8
LEGEND_LINE, LEGEND_WIDTH = 22, 470
LONGEST = 60

INK, FAINT, RULE, CARD = "#010101", "#020202", "#030303", "#040404"
SERIES = tuple(f"#0500{number:02x}" for number in range(1, 8))
VARIABLES = {INK: "var(--ink)", FAINT: "var(--faint)", RULE: "var(--rule)", CARD: "var(--card)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, 1)
}
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "----", "++++")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1)), (0, (8, 3)), (0, (2, 3)))
# More points than this get a marker now and then.
MARKED = 16

# Digits after the second of a coordinate are less than what a screen shows.
NUMBER = re.compile(r"-?\d+\.\d{3,}")
COLOUR = re.compile(r"#[0-9a-f]{6}\b")
REFERENCE = re.compile(r"url\(#([^)]+)\)")
FAMILY = re.compile(r" *font-family: [^;]*;?")
UNTURNED = re.compile(r"rotate\(-?0 .*\)")
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.usetex": False,
    "font.size": 13,
    "hatch.linewidth": 1.2,
    "axes.unicode_minus": True,
}


@dataclass(frozen=True)
class Series:
    """One value per label, or per point of a line.

    Attributes:
        name: words of the legend.
        values: numbers, None where there is none.
        low, high: ends of intervals, as many as values, or none at all.
        x: for a line, where its values stand, as many as values.
        plain: for a line, thin and without markers, as measurements behind their mean.
        look: number of its colour, hatching and marker where these should not go by its place among the series.
    """

    name: str
    values: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    x: Sequence[float] = ()
    plain: bool = False
    look: int | None = None


@dataclass(frozen=True)
class Axis:
    """One axis: its words, its ends (None: as the values need), and whether shares are written as percent."""

    name: str
    ends: tuple[float | None, float | None] = (0.0, 1.0)
    percent: bool = False


def bars(key: str, labels: Sequence[str], series: Sequence[Series], axis: Axis, described: str) -> str:
    """Horizontal bars, a group per label, with whiskers for intervals.

    Args:
        key: name that no other chart of the page has; it begins every id.
        labels: words of the groups, from top to bottom.
        series: the bars of each group, from top to bottom, at most as many as there are colours.
        axis: of the values.
        described: what the chart shows and its main numbers, for those who do not see it.

    Returns:
        An <svg> element; the same arguments give the same text.
    """
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        _prepare(key)
        top = 8 + LEGEND_LINE * len(_legend_rows(series))
        step = BAR_WORDS + BAR * len(series) + BAR_GAP
        height = top + len(labels) * step + FOOT
        figure, axes = _sheet(height, top, BARS_LEFT)
        axes.set_yticks([])
        for row, label in enumerate(labels):
            words = axes.get_yaxis_transform()
            axes.text(0, row * step + BAR_WORDS - 5, _short(label), transform=words, color=INK)
            for number, one in enumerate(series):
                _draw_bar(axes, one, row, number, row * step + BAR_WORDS + BAR * (number + 0.5))
        axes.set_xlim(*axis.ends)
        axes.set_ylim(len(labels) * step, 0)
        axes.xaxis.grid(True, color=RULE, linewidth=1)
        _name_axis(axes.xaxis, axis)
        _draw_legend(figure, series, height)
        return _as_svg(figure, key, described)


def lines(key: str, series: Sequence[Series], x: Axis, y: Axis, described: str, diagonal: bool = False) -> str:
    """Lines through points, with bands for intervals.

    Args:
        key: as `bars`.
        series: the lines; a None leaves a gap.
        x, y: the axes.
        described: as `bars`.
        diagonal: whether to draw the line where both axes are equal.

    Returns:
        As `bars`.
    """
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        _prepare(key)
        top = 8 + LEGEND_LINE * len(_legend_rows(series))
        height = top + PLOT_HEIGHT + FOOT
        figure, axes = _sheet(height, top, LEFT)
        if diagonal:
            axes.plot((0, 1), (0, 1), color=FAINT, linewidth=1, linestyle=(0, (2, 3)))
        for number, one in enumerate(series):
            _draw_line(axes, one, number)
        axes.set_xlim(*x.ends)
        axes.set_ylim(*y.ends)
        axes.grid(True, color=RULE, linewidth=1)
        _name_axis(axes.xaxis, x)
        _name_axis(axes.yaxis, y)
        _draw_legend(figure, series, height)
        return _as_svg(figure, key, described)


def _prepare(key: str) -> None:
    """Settings that depend on nobody's own, to be undone by the caller's `rc_context`."""
    import matplotlib

    matplotlib.rcdefaults()
    matplotlib.rcParams.update({**STYLE, "svg.hashsalt": key})
    # the page's font may have the letters that matplotlib's lacks
    warnings.filterwarnings("ignore", message="Glyph .* missing from font")


def _sheet(height: float, top: float, left: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / UNITS_PER_INCH, height / UNITS_PER_INCH), dpi=UNITS_PER_INCH)
    figure.patch.set_visible(False)
    box = (left / WIDTH, FOOT / height, (WIDTH - left - RIGHT) / WIDTH, (height - FOOT - top) / height)
    axes = figure.add_axes(box)
    axes.patch.set_visible(False)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(FAINT)
    axes.tick_params(color=FAINT, labelcolor=FAINT, labelsize=12.5, length=3)
    return figure, axes


def _draw_bar(axes: Axes, series: Series, row: int, number: int, y: float) -> None:
    value = series.values[row]
    if value is None:
        axes.text(0.004, y, "none", transform=axes.get_yaxis_transform(), va="center", color=FAINT, fontsize=11)
        return
    axes.barh(y, value, height=BAR - 2, **_bar_look(_look(series, number)))
    low, high = _ends(series, row)
    # an interval without width says nothing, and its whisker would look like a very sure one
    if low is not None and high is not None and low < high:
        axes.plot((low, high), (y, y), color=CARD, linewidth=3, solid_capstyle="butt")
        axes.plot((low, high), (y, y), color=INK, linewidth=1.3, solid_capstyle="butt")
        axes.plot((low, high), (y, y), color=INK, linestyle="none", marker="|", markersize=6, markeredgewidth=1.3)


def _look(series: Series, number: int) -> int:
    return number if series.look is None else series.look


def _bar_look(number: int) -> dict[str, Any]:
    hatch = HATCHES[number % len(HATCHES)]
    return {"facecolor": SERIES[number % len(SERIES)], "edgecolor": CARD, "linewidth": 0, "hatch": hatch or None}


def _draw_line(axes: Axes, series: Series, number: int) -> None:
    values = [float("nan") if value is None else value for value in series.values]
    number = _look(series, number)
    colour = SERIES[number % len(SERIES)]
    if series.plain:
        axes.plot(series.x, values, color=FAINT, linewidth=0.8)
        return
    if len(series.low) and len(series.high):
        low, high = ([float("nan") if end is None else end for end in ends] for ends in (series.low, series.high))
        axes.fill_between(series.x, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(series.x, values, **_line_look(number), markevery=max(1, len(values) // MARKED))


def _line_look(number: int) -> dict[str, Any]:
    return {
        "color": SERIES[number % len(SERIES)],
        "linewidth": 2,
        "linestyle": DASHES[number % len(DASHES)],
        "marker": MARKERS[number % len(MARKERS)],
        "markersize": 6,
        "markeredgecolor": CARD,
        "markeredgewidth": 0.8,
    }


def _ends(series: Series, row: int) -> tuple[float | None, float | None]:
    return (series.low[row], series.high[row]) if len(series.low) and len(series.high) else (None, None)


def _legend_rows(series: Sequence[Series]) -> list[list[int]]:
    """Which series stand in each line of the legend; a single one is named by the chart's own words."""
    rows: list[list[int]] = []
    width = 0.0
    for number, one in enumerate(series if len(series) > 1 else ()):
        needed = _legend_step(one)
        if not rows or width + needed > LEGEND_WIDTH:
            rows.append([])
            width = 0.0
        rows[-1].append(number)
        width += needed
    return rows


def _legend_step(series: Series) -> float:
    """Room for a sample, the words and a gap, by the width of a wide font's letters."""
    return 54 + 7.4 * len(_short(series.name))


def _draw_legend(figure: Figure, series: Sequence[Series], height: float) -> None:
    """The legend in lines of its own above the axes: samples and words, whose places do not depend on a font."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

    as_lines = any(len(one.x) for one in series)
    for line, row in enumerate(_legend_rows(series)):
        x, y = float(BARS_LEFT), height - 6 - LEGEND_LINE * (line + 0.5)
        for number in row:
            if series[number].plain:
                sample: Any = Line2D((x / WIDTH, (x + 26) / WIDTH), (y / height,) * 2, color=FAINT, linewidth=0.8)
            elif as_lines:
                ends, look = (x / WIDTH, (x + 13) / WIDTH, (x + 26) / WIDTH), _line_look(_look(series[number], number))
                sample = Line2D(ends, (y / height,) * 3, **look, markevery=[1])
            else:
                sample = Rectangle(
                    (x / WIDTH, (y - 6) / height), 26 / WIDTH, 12 / height, **_bar_look(_look(series[number], number))
                )
                sample.set_transform(figure.transFigure)
            figure.add_artist(sample)
            figure.text((x + 34) / WIDTH, y / height, _short(series[number].name), va="center", color=INK)
            x += _legend_step(series[number])


def _name_axis(axis: Any, of: Axis) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    if None in of.ends:
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axis.set_label_text(of.name, color=FAINT, fontsize=12.5)
    if of.percent:
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))


def _short(name: str) -> str:
    """The beginning of words that are too long for a line."""
    words = " ".join(name.split())
    return words if len(words) <= LONGEST else words[: LONGEST - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _as_svg(figure: Figure, key: str, described: str) -> str:
    """The drawing as an element of the page: no namespaces, fonts or ids that nothing uses, the page's colours."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Creator": None, "Date": None, "Format": None, "Type": None})
    root = ElementTree.fromstring(buffer.getvalue())
    used = {name for element in root.iter() for name in _references(element)}
    for parent in list(root.iter()):
        for child in list(parent):
            # the style sheet in it would hold for the whole page, and the metadata for nothing
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {
            name.rpartition("}")[2]: _restyled(value, key)
            for name, value in element.attrib.items()
            if (name != "id" or value in used) and not UNTURNED.fullmatch(value)
        }
        if element.tag != "text":
            element.text = None
        element.tail = None
        if "id" in element.attrib:
            element.set("id", f"{key}-{element.attrib['id']}")
    box = root.attrib["viewBox"]
    root.attrib = {"viewBox": box, "width": box.split()[2], "height": box.split()[3], "role": "img", "aria-label": described}
    return ElementTree.tostring(root, encoding="unicode")


def _references(element: ElementTree.Element) -> list[str]:
    values = list(element.attrib.items())
    links = [value[1:] for name, value in values if name.endswith("href") and value.startswith("#")]
    return links + [name for _, value in values for name in REFERENCE.findall(value)]


def _restyled(value: str, key: str) -> str:
    """An attribute's value with ids of this chart, the page's colours and the page's font."""
    if re.fullmatch(r"#[\w-]+", value) and not COLOUR.fullmatch(value):
        return f"#{key}-{value[1:]}"
    value = NUMBER.sub(lambda found: f"{float(found[0]):.2f}", re.sub(r" +", " ", value))
    value = REFERENCE.sub(rf"url(#{key}-\1)", value)
    value = COLOUR.sub(lambda found: VARIABLES.get(found[0], found[0]), value)
    return FAMILY.sub("", value)
