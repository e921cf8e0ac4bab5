"""What several sections of the report say: who is worth how much, and charts in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pathsynth.data import labels
from pathsynth.report.charts import Series
from pathsynth.report.inputs import ReportInput
from pathsynth.report.pages import decimals, interval, percent, significant

View = dict[str, Any]


def class_noun(content: ReportInput) -> str:
    """What the classes are called."""
    return "tissue" if content.labels == labels.PATHMNIST else "class"


def on_real(content: ReportInput, by: str) -> float | None:
    """Accuracy of gate, judge or colour control on real test images: what its other figures are worth."""
    return content.evaluation["real_images"].get(by, {}).get("test")


def judge_accuracy_text(content: ReportInput, by: str) -> str:
    """The same in words, or nothing."""
    accuracy = on_real(content, by)
    if accuracy is None:
        return ""
    # another centre stains otherwise, which moves colours most of all
    val = content.evaluation["real_images"].get(by, {}).get("val") if by == "colour" else None
    before = "" if val is None else f"{percent(val)} right on real validation images, "
    return f"{before}{percent(accuracy)} right on real test images"


def chart_alt_text(
    what: str, names: Sequence[str], series: Sequence[Series], written: Callable[[float | None], str] = lambda v: decimals(v, 2)
) -> str:
    """The numbers of a chart in words."""
    groups = (
        f"{name}: " + ", ".join(f"{one.name} {written(one.values[row])}{_span(one, row)}" for one in series)
        for row, name in enumerate(names)
    )
    return f"{what}. " + "; ".join(groups)


def spoken_ends(what: str, series: Sequence[Series]) -> str:
    """The first and last point of each line in words."""
    parts = []
    for one in series:
        if known := points(one):
            (x, first), (end, last) = known[0], known[-1]
            parts.append(f"{one.name}: {significant(first)} at {significant(x)}, {significant(last)} at {significant(end)}")
    return f"{what}. " + "; ".join(parts)


def points(series: Series) -> list[tuple[float, float]]:
    """The points of a line that are known."""
    return [(x, value) for x, value in zip(series.x, series.values, strict=True) if value is not None]


def without_width(scores: Mapping[str, Any]) -> bool:
    """Whether some score, or one nested in it, has an interval whose ends are the same."""
    return any(
        without_width(value)
        if isinstance(value, Mapping)
        else key.endswith("_low") and value is not None and value == scores.get(f"{key.removesuffix('_low')}_high")
        for key, value in scores.items()
    )


def _span(series: Series, row: int) -> str:
    shown = interval(series.low[row], series.high[row]) if len(series.low) else ""
    return f" ({shown})" if shown else ""
