"""Charts as inline SVG, with colours and font from the page's style sheet.

matplotlib draws in placeholder colours, each of which stands for a CSS variable, so a chart follows light mode, dark mode and
print. Series also differ in marker and dash, for greyscale print and colour-blind readers. The palette is that of Okabe and Ito
(Color Universal Design, 2008).
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Any

from pathsynth.report.pages import decimals, interval, significant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# One unit of the drawing is one CSS pixel at full size: half of a wide window, and nearly all of a phone's.
WIDTH, PLOT_HEIGHT = 480, 250
UNITS_PER_INCH = 72
LEFT, RIGHT, TOP, FOOT = 66, 20, 8, 50
# Dots stand below the label of their group, which may be long.
DOTS_LEFT, DOT, LABEL_HEIGHT, GROUP_GAP = 22, 12, 20, 8
# Room on both sides of fitted values, as a share of their range.
MARGIN = 0.06
# Width of a legend entry without its text, and the width of a letter of a wide font.
LEGEND_LINE, LEGEND_HANDLE, LETTER = 22, 54, 7.4
MAX_LABEL = 60
# A longer line has fewer markers than points.
MAX_MARKERS = 16

INK, FAINT, RULE, CARD = "#010101", "#020202", "#030303", "#040404"
SERIES = tuple(f"#0500{number:02x}" for number in range(1, 8))
VARIABLES = {INK: "var(--ink)", FAINT: "var(--faint)", RULE: "var(--rule)", CARD: "var(--card)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, 1)
}
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1)), (0, (8, 3)), (0, (2, 3)))

# Placeholder colours, and parts that would affect other charts on the page: matplotlib's style sheet, and the ids of groups,
# which are the same in every chart. All other ids depend on `svg.hashsalt`.
REPLACED = re.compile(r'(?<=: |=")#0[0-9a-f]{5}\b|<defs>\s*<style.*?</style>\s*</defs>|(?<=<g) id="[^"]*"', re.DOTALL)
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    # the page's style sheet replaces the font, which here only measures text
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 13,
    "text.parse_math": False,
    "axes.axisbelow": True,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": FAINT,
    "axes.labelsize": 12.5,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.color": RULE,
    "grid.linewidth": 1,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "text.color": INK,
    **{
        f"{axis}tick.{key}": value
        for axis in "xy"
        for key, value in {"color": FAINT, "labelsize": 12.5, "major.size": 3}.items()
    },
}


@dataclass(frozen=True)
class Series:
    """One value per label of a dot chart, or per point of a line.

    Attributes:
        name: text of the legend.
        values: numbers, None where there is none.
        low, high: ends of the intervals, as many as values, or empty.
        x: positions of the points of a line, as many as values.
        thin: whether a line is thin and without markers, such as measurements behind their mean.
        style: index of the colour and marker; by default the position among the series.
    """

    name: str
    values: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    x: Sequence[float] = ()
    thin: bool = False
    style: int | None = None


@dataclass(frozen=True)
class Axis:
    """The name of an axis, its limits (None: no limit), and whether shares are written as percentages."""

    name: str
    limits: tuple[float | None, float | None] = (0.0, 1.0)
    percent: bool = False


def dots(
    key: str,
    labels: Sequence[str],
    series: Sequence[Series],
    axis: Axis,
    title: str,
    number: Callable[[float | None], str] = lambda value: decimals(value, 2),
) -> str:
    """Draws horizontal dots, one group per label, with whiskers for intervals. Dots without intervals share a line.

    Args:
        key: a name that is unique on the page; all ids depend on it.
        labels: names of the groups, from top to bottom.
        series: the dots of each group, from top to bottom, at most seven.
        axis: of the values, fitted to them within its limits.
        title: begins the alternative text, which lists all values.
        number: formats a value of the alternative text.

    Returns:
        An <svg> element; equal arguments give equal text.
    """
    spread = any(len(one.low) for one in series)
    step = LABEL_HEIGHT + DOT * (len(series) if spread else 1) + GROUP_GAP
    with _figure(key, series, len(labels) * step, DOTS_LEFT) as (figure, axes):
        axes.set_yticks([])
        for row, label in enumerate(labels):
            axes.text(0, row * step + LABEL_HEIGHT - 5, _shorten(label), transform=axes.get_yaxis_transform())
        for place, one in enumerate(series):
            offset = LABEL_HEIGHT + DOT * (place * spread + 0.5)
            _draw_dots(axes, one, place, [row * step + offset for row in range(len(labels))])
        for row in range(1, len(labels)):
            axes.axhline(row * step - GROUP_GAP / 2, color=RULE, linewidth=1)
        axes.set_ylim(len(labels) * step, 0)
        axes.xaxis.grid(True)
        _set_axis(axes, "x", replace(axis, limits=_fit_limits(series, axis.limits)))
        return _to_svg(figure, f"{title}. {_describe_dots(labels, series, number)}")


def lines(key: str, series: Sequence[Series], x: Axis, y: Axis, title: str, diagonal: bool = False) -> str:
    """Draws lines through points.

    Args:
        key: as in `dots`.
        series: the lines, at most seven; a None leaves a gap.
        x, y: the axes.
        title: begins the alternative text, which gives the first and the last point of each line.
        diagonal: whether to draw the line where both axes are equal.

    Returns:
        As `dots`.
    """
    with _figure(key, series, PLOT_HEIGHT, LEFT) as (figure, axes):
        if diagonal:
            axes.plot((0, 1), (0, 1), color=FAINT, linewidth=1, linestyle=(0, (2, 3)))
        for place, one in enumerate(series):
            axes.plot(one.x, _with_nan(one.values), label=_shorten(one.name), **_line_style(one, place))
        axes.grid(True)
        _set_axis(axes, "x", x)
        _set_axis(axes, "y", y)
        return _to_svg(figure, f"{title}. {_describe_lines(series)}")


@contextmanager
def _figure(key: str, series: Sequence[Series], height: float, left: float) -> Iterator[tuple[Figure, Axes]]:
    """Yields a figure with a plot of `height` below space for the legend, independent of the user's matplotlib settings."""
    import matplotlib
    from matplotlib.figure import Figure

    top = TOP + LEGEND_LINE * math.ceil(len(series) / _legend_columns(series)) * (len(series) > 1)
    full = top + height + FOOT
    with matplotlib.rc_context(), warnings.catch_warnings():
        # the page's font may have glyphs that matplotlib's font lacks
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**STYLE, "svg.hashsalt": key})
        figure = Figure(figsize=(WIDTH / UNITS_PER_INCH, full / UNITS_PER_INCH), dpi=UNITS_PER_INCH)
        axes = figure.add_axes((left / WIDTH, FOOT / full, (WIDTH - left - RIGHT) / WIDTH, height / full))
        for background in (figure.patch, axes.patch):
            background.set_visible(False)
        yield figure, axes


def _draw_dots(axes: Axes, series: Series, place: int, y: list[float]) -> None:
    style = _line_style(series, place) | {"linestyle": "none", "markevery": 1, "clip_on": False, "zorder": 3}
    axes.plot(_with_nan(series.values), y, label=_shorten(series.name), **style)
    for position, value in zip(y, series.values, strict=True):
        if value is None:
            axes.text(0.004, position, "none", transform=axes.get_yaxis_transform(), va="center", color=FAINT, fontsize=11)
    for position, low, high in zip(y, series.low, series.high, strict=False):
        # a zero-width whisker would suggest certainty
        if low is not None and high is not None and low < high:
            axes.plot((low, high), (position, position), color=style["color"], linewidth=1.6, clip_on=False)


def _fit_limits(series: Sequence[Series], limits: tuple[float | None, float | None]) -> tuple[float, float]:
    """Fits an axis to values and intervals, with a margin on both sides, within the given limits."""
    known = [value for one in series for values in (one.values, one.low, one.high) for value in values if value is not None]
    least, most = (min(known), max(known)) if known else (0.0, 1.0)
    margin = MARGIN * ((most - least) or abs(most) or 1.0)
    low, high = limits
    return (
        least - margin if low is None else max(low, least - margin),
        most + margin if high is None else min(high, most + margin),
    )


def _line_style(series: Series, place: int) -> dict[str, Any]:
    index = place if series.style is None else series.style
    if series.thin:
        return {"color": FAINT, "linewidth": 0.8}
    return {
        "color": SERIES[index % len(SERIES)],
        "linewidth": 2,
        "linestyle": DASHES[index % len(DASHES)],
        "marker": MARKERS[index % len(MARKERS)],
        "markevery": max(1, len(series.values) // MAX_MARKERS),
        "markersize": 7,
        "markeredgecolor": CARD,
        "markeredgewidth": 0.8,
    }


def _set_axis(axes: Axes, which: str, of: Axis) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xlim if which == "x" else axes.set_ylim)(*of.limits)
    axis.set_label_text(of.name)
    axis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    if of.percent:
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))


def _legend_columns(series: Sequence[Series]) -> int:
    widest = max((LEGEND_HANDLE + LETTER * len(_shorten(one.name)) for one in series), default=WIDTH)
    return max(1, min(len(series), int((WIDTH - DOTS_LEFT) // widest)))


def _draw_legend(figure: Figure) -> None:
    """Adds a legend above the axes; the chart's caption names a single series."""
    handles, names = figure.axes[0].get_legend_handles_labels()
    if len(handles) > 1:
        figure.legend(
            handles,
            names,
            loc="upper left",
            bbox_to_anchor=(DOTS_LEFT / WIDTH, 1),
            ncols=_legend_columns([Series(name, ()) for name in names]),
            borderpad=0,
            borderaxespad=0.3,
            labelspacing=LEGEND_LINE / STYLE["font.size"] - 1,
        )


def _to_svg(figure: Figure, description: str) -> str:
    """Renders the figure as an element of the page."""
    _draw_legend(figure)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    content = buffer.getvalue().partition("<svg ")[2].partition(">")[2]
    width, height = (round(UNITS_PER_INCH * inches) for inches in figure.get_size_inches())
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return f'<svg {size} role="img" aria-label="{escape(description)}">' + REPLACED.sub(
        lambda found: VARIABLES.get(found[0], ""), content
    )


def _describe_dots(labels: Sequence[str], series: Sequence[Series], number: Callable[[float | None], str]) -> str:
    """Lists all values of a dot chart, with their intervals."""

    def value(one: Series, row: int) -> str:
        ends = interval(one.low[row], one.high[row]) if len(one.low) else ""
        return f"{one.name} {number(one.values[row])}" + (f" ({ends})" if ends else "")

    groups = (f"{label}: {', '.join(value(one, row) for one in series)}" for row, label in enumerate(labels))
    return "; ".join(groups)


def _describe_lines(series: Sequence[Series]) -> str:
    """Gives the first and the last known point of each line."""
    parts = []
    for one in series:
        known = [(x, value) for x, value in zip(one.x, one.values, strict=True) if value is not None]
        if known and not one.thin:
            (x, first), (end, last) = known[0], known[-1]
            parts.append(f"{one.name}: {significant(first)} at {significant(x)}, {significant(last)} at {significant(end)}")
    return "; ".join(parts)


def _with_nan(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _shorten(name: str) -> str:
    text = " ".join(name.split())
    return text if len(text) <= MAX_LABEL else text[: MAX_LABEL - 1] + "\N{HORIZONTAL ELLIPSIS}"
