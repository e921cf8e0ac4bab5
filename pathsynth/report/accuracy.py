"""Report sections on classification scores: headline, all scores, classes, agreement of the observers, and confusion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pathsynth.report import charts
from pathsynth.report.charts import Axis, Series
from pathsynth.report.inputs import ReportInput
from pathsynth.report.pages import MISSING, Chart, decimals, interval, percent, signed, whole
from pathsynth.report.tables import Cell, Row, Scores, Table, build_class_table, build_set_table, find_scores

View = dict[str, Any]

# Published in arXiv 2506.00786; the interval is our bootstrap of its confusion matrix of 90 images.
ARXIV = "2506.00786"
PUBLISHED = {"macro_f1": 0.6727, "macro_f1_low": 0.60, "macro_f1_high": 0.73, "n_images": 90}
# Groups of the chart of all sets, and its series: observer, name and style. Observers keep their colours in all charts.
CHARTED = {
    "raw": "Raw", "accepted": "Accepted by the gate", "paraphrased": "Paraphrased prompts", "untuned": "Untuned base",
    "val": "Real validation images", "test": "Real test images",
}  # fmt: skip
OBSERVERS = (("judge", "judge", 0), ("open_set", "open set", 1), ("gate", "gate", 2), ("colour", "colour", 3))
MATRICES = (
    ("raw", "judge", "Raw images, judge", "before filtering"),
    ("raw", "gate", "Raw images, gate", "the same images"),
    ("accepted", "judge", "Accepted images, judge", "after filtering"),
    ("accepted", "gate", "Accepted images, gate", "a perfect diagonal by construction"),
)


def judge_accuracy_text(content: ReportInput) -> str:
    """States the accuracy of the judge on real images, or returns "" if it is unknown."""
    accuracy = content.evaluation["real_images"].get("judge", {}).get("test")
    return "" if accuracy is None else f"{percent(accuracy)} accurate on real test images"


def headline(content: ReportInput) -> View:
    """Shows the judge's macro F1 of raw images first, then other measures of them, what they leave open, and all sets."""
    evaluation = content.evaluation
    raw = {by: find_scores(evaluation, "raw", by) for by in ("judge", "open_set", "gate")}
    figures = [
        _figure("the judge, raw images", raw["judge"], "95 % interval over images, this training:"),
        _figure("the judge, open set", raw["open_set"]),
        _figure("the gate, the paper's measure", raw["gate"]),
    ]
    if content.is_published:
        figures.append(_figure(f"the paper's model (arXiv {ARXIV})", PUBLISHED, f"{PUBLISHED['n_images']} images, interval"))
    series = [_set_series(evaluation, by, name, style) for by, name, style in OBSERVERS]
    names = [name for key, name in CHARTED.items() if key in evaluation["sets"]]
    svg = charts.dots("sets", names, series, Axis("macro F1"), "Macro F1 of each set of images", decimals)
    caption = "Macro F1 with 95 % intervals over images. The gate's score of the images that it accepted is left out: it is 1."
    return {
        "figures": figures,
        "examples": [(label, content.examples[slug]) for slug, label in content.names.items() if slug in content.examples],
        "chart": Chart(svg, caption),
        "accuracies": [f"{by} {percent(found.get('test'))}" for by, found in evaluation["real_images"].items()],
        "paraphrased": _compare_prompts(evaluation),
        "missing": [
            label for label, row in zip(content.labels, content.confusion["raw", "judge"], strict=True) if not row.sum()
        ],
    }


def _figure(name: str, scores: Scores, note: str = "interval") -> View:
    ends = interval(scores.get("macro_f1_low"), scores.get("macro_f1_high"))
    return {"name": name, "value": decimals(scores["macro_f1"]), "note": f"{note} {ends}" if ends else ""}


def _set_series(evaluation: Scores, by: str, name: str, style: int) -> Series:
    """Macro F1 by one observer, one value per set of the chart."""
    sets = [
        {} if (key, by) == ("accepted", "gate") else find_scores(evaluation, key, by)
        for key in CHARTED
        if key in evaluation["sets"]
    ]
    values, low, high = ([scores.get(f"macro_f1{end}") for scores in sets] for end in ("", "_low", "_high"))
    return Series(name, values, low, high, style=style)


def _compare_prompts(evaluation: Scores) -> str:
    """States the score of paraphrased prompts beside that of the others, or returns "" without paraphrased prompts."""
    paraphrased, raw, untuned = (find_scores(evaluation, name, "judge") for name in ("paraphrased", "raw", "untuned"))
    if not paraphrased:
        return ""
    scores = f"The judge's macro F1 is {decimals(paraphrased['macro_f1'])} with paraphrased prompts"
    scores += f", {decimals(raw['macro_f1'])} with those of the training"
    if untuned:
        scores += f" and {decimals(untuned['macro_f1'])} without the LoRA"
    return f"{scores}."


def scores(content: ReportInput) -> View:
    """Shows every average of every set."""
    return {"table": build_set_table(content.evaluation), "has_zero_width": _has_zero_width(content.evaluation["sets"])}


def _has_zero_width(scores: Scores) -> bool:
    """Returns whether any interval of F1 or accuracy in nested scores has zero width."""
    return any(
        _has_zero_width(value)
        if isinstance(value, Mapping)
        else key in ("macro_f1_low", "f1_low", "accuracy_low") and value == scores.get(key.replace("_low", "_high"))
        for key, value in scores.items()
    )


def classes(content: ReportInput) -> View:
    """Shows F1 of each class by each observer, and before and after filtering."""
    evaluation = content.evaluation
    counts = {name: content.confusion[name, "gate"].sum(axis=1).tolist() for name in ("raw", "accepted")}
    observers = [_f1_series(content, "raw", by, name, style) for by, name, style in OBSERVERS[:3]]
    sets = [_f1_series(content, key, "judge", key, style) for style, key in enumerate(("raw", "accepted", "test"))]
    by_observer = charts.dots("classes", content.labels, observers, Axis("F1"), "F1 of raw images")
    by_set = charts.dots("filtering", content.labels, sets, Axis("F1"), "F1 by the judge")
    return {
        "table": build_class_table(evaluation, content.generation, content.names, content.class_noun, counts),
        "charts": [
            Chart(by_observer, "Do judge and gate agree? F1 of raw images with 95 % intervals."),
            Chart(by_set, "Does filtering help? F1 by the judge of raw, accepted and real test images with 95 % intervals."),
        ],
        "judge_accuracy": judge_accuracy_text(content),
    }


def _f1_series(content: ReportInput, key: str, by: str, name: str, style: int) -> Series:
    found = find_scores(content.evaluation, key, by)
    rows = [found["per_tissue"][slug] if found else {} for slug in content.slugs]
    values, low, high = ([row.get(score) for row in rows] for score in ("f1", "f1_low", "f1_high"))
    return Series(name, values, low, high, style=style)


def agreement(content: ReportInput) -> View:
    """Shows whether gate and judge make the same mistakes, and what filtering gains by the judge."""
    found = content.evaluation["observers"]
    rows: list[Row] = []
    for key, name in (("real_test", "Real test images"), ("raw", "Raw images")):
        both, expected, same = (found[key][count] for count in ("both_wrong", "expected_both_wrong", "same_wrong_class"))
        kappa = Cell(decimals(found[key].get("kappa")), found[key].get("undefined", {}).get("kappa", ""))
        rows.append((name, whole(found[key]["n_images"]), whole(both), decimals(expected, 1), whole(same), kappa))
    gain = found["filter_gain"]
    return {
        "table": Table(("Images", "Count", "Both wrong", "Expected", "In the same way", "Kappa of errors"), rows),
        "facts": [
            _difference("Gate minus judge: macro F1 of raw images", found["gate_minus_judge"]),
            _difference("Gain by filtering: accuracy by the judge", gain, f", {whole(gain.get('n_images'))} pairs"),
            _disputed(found["disputed"]),
        ],
    }


def _difference(name: str, found: Scores, note: str = "") -> View:
    """A difference with its interval, or the reason why there is none."""
    if "difference" not in found:
        return {"name": name, "value": MISSING, "note": found["undefined"]}
    low, high = found["low"], found["high"]
    ends = f"95 % interval over images {signed(low)} to {signed(high)}" if low < high else "the same for all images"
    return {"name": name, "value": signed(found["difference"]), "note": f"{ends}{note}"}


def _disputed(found: Scores) -> View:
    """The share of accepted images in which the judge sees another class."""
    note = f"{whole(found['n_disputed'])} of {whole(found['n_images'])} images"
    if found["n_images"]:
        note += f", 95 % interval {percent(found['low'])} to {percent(found['high'])}"
    return {"name": "Accepted images that the judge disputes", "value": percent(found.get("share")), "note": note}


def confusion(content: ReportInput) -> View:
    """Shows confusion matrices of prompted against predicted class."""
    return {
        "matrices": [
            {"title": title, "note": note, "rows": list(_matrix_rows(content.labels, content.confusion[name, by]))}
            for name, by, title, note in MATRICES
        ],
        "judge_accuracy": judge_accuracy_text(content),
    }


def _matrix_rows(names: Sequence[str], counts: Any) -> Iterator[View]:
    for prompted, (label, row) in enumerate(zip(names, counts, strict=True)):
        total = int(row.sum())
        cells = [
            {"count": int(count), "share": count / max(1, total), "hit": seen == prompted} for seen, count in enumerate(row)
        ]
        yield {"label": label, "total": total, "cells": cells}
