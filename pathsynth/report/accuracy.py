"""Report sections on classification scores: headline, all scores, classes and confusion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pathsynth.report import charts
from pathsynth.report.charts import Axis, Series
from pathsynth.report.inputs import ReportInput
from pathsynth.report.pages import Chart, percent
from pathsynth.report.tables import Scores, build_class_table, build_set_table, find_sets

View = dict[str, Any]

# Published in arXiv 2506.00786; the interval is our bootstrap of its confusion matrix of 90 images.
ARXIV = "2506.00786"
PUBLISHED = {"arxiv": ARXIV, "macro_f1": 0.6727, "macro_f1_low": 0.60, "macro_f1_high": 0.73, "n_images": 90}
# Notes on each set of images by its key in evaluation.json: for images of the LoRA, then for a set from a different generator.
NOTES = {
    "": "the paper's measure: first attempts, classified by the network that filters",
    "judge": "the same images, classified by a network that took no part in filtering",
    "colour": "control: classified by their colours, without any structure",
    "filtered_judge": "the images that the gate accepted, classified by the independent network",
    "filtered_colour": "control, after filtering",
    "untuned": "the same prompts without the LoRA",
}
NOTES_OF_A_SET = NOTES | {
    "": "the paper's measure: all images, classified by the gate",
    "filtered_judge": "images that the gate classifies as labelled, classified by the independent network",
    "filtered_colour": "control, for images that the gate classifies as labelled",
}
MATRICES = (
    ("raw", "gate", "Raw images, gate", "before filtering"),
    ("raw", "judge", "Raw images, judge", "the same images"),
    ("accepted", "judge", "Accepted images, judge", "after filtering"),
    ("accepted", "gate", "Accepted images, gate", "a perfect diagonal by construction"),
)


def accuracy_text(content: ReportInput, by: str) -> str:
    """States the accuracy of the gate, the judge or the colour control on real images, or returns "" if it is unknown."""
    accuracies = content.evaluation["real_images"].get(by, {})
    if "test" not in accuracies:
        return ""
    text = f"{percent(accuracies['test'])} accurate on real test images"
    # the test images come from a different centre, whose stain changes colours most
    return f"{percent(accuracies['val'])} on validation, {text}" if by == "colour" and "val" in accuracies else text


def headline(content: ReportInput) -> View:
    """Shows the macro F1 of each set with its interval, and the gap between gate and judge."""
    notes = NOTES if content.of_lora else NOTES_OF_A_SET
    return {
        "rows": [
            {"name": name, "note": notes[key], "by": by, "scores": scores}
            for key, name, by, scores in find_sets(content.evaluation)
        ],
        # the paper used these nine tissues, so its score is no reference for others
        "published": PUBLISHED if content.is_pathmnist else None,
        "gap": content.evaluation["gate_gaming"],
        "accuracies": [f"the {by} is {text}" for by in ("gate", "judge") if (text := accuracy_text(content, by))],
        "colour_accuracy": accuracy_text(content, "colour"),
        "has_zero_width": _has_zero_width(content.evaluation),
        "missing": [
            label for label, row in zip(content.labels, content.confusion["raw", "gate"], strict=True) if not row.sum()
        ],
    }


def _has_zero_width(scores: Scores) -> bool:
    """Returns whether any interval in nested scores has zero width."""
    return any(
        _has_zero_width(value)
        if isinstance(value, Mapping)
        else key.endswith("_low") and value is not None and value == scores.get(f"{key.removesuffix('_low')}_high")
        for key, value in scores.items()
    )


def scores(content: ReportInput) -> View:
    """Shows every average of every set."""
    return {"table": build_set_table(content.evaluation)}


def classes(content: ReportInput) -> View | None:
    """Shows F1 of each class by gate and judge, before and after filtering."""
    if not content.evaluation["n_images"]:
        return None
    evaluation, judged = content.evaluation, accuracy_text(content, "judge")
    counts = {name: content.confusion[name, "gate"].sum(axis=1).tolist() for name in ("raw", "accepted")}
    gate = _f1_series(content, evaluation, "raw, gate", 0)
    judge = _f1_series(content, evaluation["judge"], "raw, judge", 1)
    accepted = _f1_series(content, evaluation["filtered_judge"], "accepted, judge", 2)
    raw_chart = charts.bars("classes", content.labels, [gate, judge], Axis("F1"), "F1 of raw images")
    filter_chart = charts.bars("filtering", content.labels, [judge, accepted], Axis("F1"), "F1 before and after filtering")
    return {
        "table": build_class_table(evaluation, content.generation, content.names, content.class_noun, counts),
        "charts": [
            Chart(raw_chart, "Does an independent network agree with the gate? F1 of raw images with 95 % intervals."),
            Chart(filter_chart, "Does filtering help? F1 by the judge of raw and accepted images with 95 % intervals."),
        ],
        "judge_accuracy": judged,
    }


def _f1_series(content: ReportInput, scored: Scores, name: str, style: int) -> Series:
    rows = [scored["per_tissue"][slug] if scored["n_images"] else {} for slug in content.slugs]
    values, low, high = ([row.get(score) for row in rows] for score in ("f1", "f1_low", "f1_high"))
    return Series(name, values, low, high, style=style)


def confusion(content: ReportInput) -> View:
    """Shows confusion matrices of prompted against predicted class."""
    return {
        "matrices": [
            {"title": title, "note": note, "rows": list(_matrix_rows(content.labels, content.confusion[name, by]))}
            for name, by, title, note in MATRICES
        ],
        "judge_accuracy": accuracy_text(content, "judge"),
    }


def _matrix_rows(names: Sequence[str], counts: Any) -> Iterator[View]:
    for prompted, (label, row) in enumerate(zip(names, counts, strict=True)):
        total = int(row.sum())
        cells = [
            {"count": int(count), "share": count / max(1, total), "hit": seen == prompted, "predicted": names[seen]}
            for seen, count in enumerate(row)
        ]
        yield {"label": label, "total": total, "cells": cells}
