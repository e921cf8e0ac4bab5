"""Report sections on the classifiers themselves: calibration, robustness, training curves and accuracy."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from pathsynth.data.duplicates import SPLIT_NAMES, describe_duplicates, parse_duplicates
from pathsynth.report import charts
from pathsynth.report.accuracy import View, judge_accuracy_text
from pathsynth.report.charts import Axis, Series
from pathsynth.report.inputs import ReportInput, Scores
from pathsynth.report.pages import Chart, decimals, percent, significant, whole
from pathsynth.report.tables import Cell, Table

CORRUPTIONS = ("jpeg", "stain", "blur")
MAX_LOSS_POINTS, RUNNING_MEAN = 200, 10


def calibration(content: ReportInput) -> View:
    """Shows how often the gate is right at each confidence, and what a threshold on its confidence would do."""
    series, bins = [], []
    for key, name in (("test", "real test images"), ("raw", "generated images")):
        rows = [row for row in content.tables["reliability"] if row["set"] == key and row["n"] and row["accuracy"] is not None]
        series.append(Series(name, [row["accuracy"] for row in rows], x=[row["confidence"] for row in rows]))
        bins += [_bin_cells(name, row) for row in rows]
    x, y = Axis("confidence of the gate", percent=True), Axis("accuracy", (0.0, 1.02), percent=True)
    svg = charts.lines("reliability", series, x, y, "Accuracy of the gate by its confidence", diagonal=True)
    return {
        "reliability": Chart(svg, "Dotted: perfect calibration. Below it the gate is overconfident."),
        "bins": Table(("Images", "Confidence", "Mean confidence", "Accuracy", "Count"), bins),
        "ece": content.evaluation["calibration"].get("gate", {}),
        "thresholds": _threshold_table(content),
        "charts": list(_threshold_charts(content)),
        "judge_accuracy": judge_accuracy_text(content),
    }


def _bin_cells(name: str, row: Scores) -> tuple[str, ...]:
    edges = f"{decimals(row['low'], 2)} to {decimals(row['high'], 2)}"
    return (name, edges, percent(row["confidence"]), percent(row["accuracy"]), whole(row["n"]))


def _threshold_table(content: ReportInput) -> Table:
    rows = [
        (
            significant(row["threshold"]),
            percent(row["kept_share"]),
            whole(row["n_kept"]),
            percent(row["judge_accuracy"]),
            decimals(row["expected_attempts"], 2),
            Cell(whole(row["tissues_lost"]), alert=bool(row["tissues_lost"])),
        )
        for row in content.tables["thresholds"]
    ]
    lost = f"{content.classes_noun.capitalize()} lost"
    return Table(("Threshold", "Raw images kept", "Count", "Accuracy by judge", "Expected attempts", lost), rows)


def _threshold_charts(content: ReportInput) -> Iterator[Chart]:
    rows = content.tables["thresholds"]
    xs = [row["threshold"] for row in rows]
    x = Axis("confidence threshold of the gate", (min(xs) - 0.02, max(xs) + 0.02) if xs else (0.0, 1.0))
    benefit = [
        Series("raw images kept", [row["kept_share"] for row in rows], x=xs),
        Series("accuracy of those, by the judge", [row["judge_accuracy"] for row in rows], x=xs),
    ]
    svg = charts.lines("threshold", benefit, x, Axis("share", (0.0, 1.02), percent=True), "Effect of a threshold")
    yield Chart(svg, "Benefit: the share of raw images kept, and the accuracy of the kept ones by the judge.")
    cost = [Series("expected attempts per accepted image", [row["expected_attempts"] for row in rows], x=xs)]
    if any(value is not None for value in cost[0].values):
        svg = charts.lines("price", cost, x, Axis("attempts per image", (0.0, None)), "Expected attempts by threshold")
        words = "Cost: attempts per accepted image, estimated from first attempts, averaged over"
        yield Chart(svg, f"{words} {content.classes_noun}. The line ends where a {content.class_noun} keeps no image.")


def robustness(content: ReportInput) -> View | None:
    """Shows accuracy and macro F1 of gate and judge on real images that were degraded on purpose."""
    found = content.robustness
    if found is None:
        return None
    gate, judge = found["gate"], found["judge"]
    cases = [("unchanged", gate["clean"], judge["clean"])]
    for kind in CORRUPTIONS:
        cases += [(_name_case(kind, case), gate[kind][case], judge[kind][case]) for case in gate[kind] if case != "undefined"]
    names = [name for name, *_ in cases]
    series = [
        Series(by, [both[place]["macro_f1"] for _, *both in cases], style=style)
        for place, (by, style) in enumerate((("gate", 2), ("judge", 0)))
    ]
    svg = charts.dots("robustness", names, series, Axis("macro F1"), "Macro F1 on real test images")
    rows = [
        (name, *(decimals(scores[score]) for scores in both for score in ("accuracy", "macro_f1"))) for name, *both in cases
    ]
    return {
        "table": Table(("Images", *("Accuracy", "Macro F1") * 2), rows, groups=(("Gate", 2), ("Judge", 2))),
        "n_images": found["n_images"],
        "undefined": [f"{kind}: {gate[kind]['undefined']}" for kind in CORRUPTIONS if "undefined" in gate[kind]],
        "chart": Chart(svg, "Macro F1 of gate and judge on the same real test images, unchanged and degraded."),
    }


def _name_case(kind: str, case: str) -> str:
    """Turns a key such as `haematoxylin_x0_75` into words."""
    words = re.sub(r"_x(?=\d)", " times ", case)
    words = re.sub(r"(?<=\d)_(?=\d)", ".", words).replace("_", " ")
    return {"jpeg": f"JPEG, {words}", "blur": f"blur, {words}"}.get(kind, words)


def training(content: ReportInput) -> View | None:
    """Shows the loss of the LoRA and the macro F1 of gate and judge during training."""
    drawn = []
    if "lora" in content.curves and content.curves["lora"][0]:
        steps, losses = _average_runs(*content.curves["lora"])
        mean = _running_mean(losses, min(RUNNING_MEAN, max(1, len(losses) // 4)))
        series = [Series("training loss", losses, x=steps, thin=True), Series("running mean", mean, x=steps)]
        caption = "Loss of the LoRA. The training loss says little about the images, since each step draws new noise."
        if "validation" in content.curves:
            validated, values = content.curves["validation"]
            series.append(Series("validation loss", values, x=validated))
            caption += " The validation loss is that of fixed held-out images at fixed noise and evenly spaced time steps."
        svg = charts.lines("loss", series, Axis("steps", (0.0, None)), Axis("loss", (None, None)), "Loss of the LoRA")
        drawn.append(Chart(svg, caption))
    series = [
        Series(by, content.curves[by][1], x=content.curves[by][0], style=style)
        for by, style in (("gate", 2), ("judge", 0))
        if by in content.curves
    ]
    if series:
        axes = Axis("epoch", (None, None)), Axis("macro F1", (None, None))
        svg = charts.lines("learning", series, *axes, "Macro F1 on validation images")
        kept = ", ".join(f"the {checkpoint} epoch of the {by}" for by, checkpoint in content.checkpoints.items())
        drawn.append(Chart(svg, f"Macro F1 of gate and judge on validation images. Kept: {kept}."))
    return {"charts": drawn, "sheets": content.sheets} if drawn or content.sheets else None


def _average_runs(steps: list[float], values: list[float | None]) -> tuple[list[float], list[float | None]]:
    """Averages runs of measurements, so that at most MAX_LOSS_POINTS points remain."""
    size = -(-len(steps) // MAX_LOSS_POINTS)
    starts = range(0, len(steps), size)
    return [steps[start : start + size][-1] for start in starts], [_mean(values[start : start + size]) for start in starts]


def _running_mean(values: Sequence[float | None], width: int) -> list[float | None]:
    return [_mean(values[max(0, end - width) : end]) if end >= width else None for end in range(1, len(values) + 1)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def classifiers(content: ReportInput) -> View:
    """Shows accuracy, macro F1, AUC and calibration error on labelled images of the data set."""
    scores = ("accuracy", "macro_f1", "auc", "ece")
    splits = (("val", "validation"), ("test", "test"))
    rows = [
        (role, name, *(decimals(content.classifiers[role][split].get(score)) for score in scores))
        for role in ("gate", "judge")
        for split, name in splits
    ]
    colour = content.evaluation["real_images"].get("colour", {})
    rows += [("colour control", name, decimals(colour.get(split)), *[decimals(None)] * 3) for split, name in splits]
    return {
        "table": Table(("Classifier", "Images", "Accuracy", "Macro F1", "AUC", "Calibration error"), rows),
        "selected": " and ".join(role for role, kept in content.checkpoints.items() if kept == "best"),
        "duplicates": _duplicates_table(content),
    }


def describe_leaks(content: ReportInput) -> list[str]:
    """States which images of one split are copies of images of another."""
    found = parse_duplicates(content.evaluation.get("duplicates", []))
    return describe_duplicates(each for each in found if each.split != each.source)


def _duplicates_table(content: ReportInput) -> Table | None:
    """Counts of exact and near copies, or None for data in which they were not counted."""
    if "duplicates" not in content.evaluation:
        return None
    rows: list[Sequence[Cell | str]] = []
    for each in parse_duplicates(content.evaluation["duplicates"]):
        others = "one another" if each.split == each.source else SPLIT_NAMES[each.source]
        counts = (Cell(whole(count), alert=bool(count)) for count in (each.exact, each.near, each.relabelled))
        rows.append((SPLIT_NAMES[each.split].capitalize(), others, whole(each.images), *counts))
    return Table(("Images", "Compared with", "Count", "Exact copies", "Near copies", "Exact, other label"), rows)
