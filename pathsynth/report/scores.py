"""The report's sections on what classifiers see in the images, and on the classifiers themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pathsynth.data import labels
from pathsynth.report import charts
from pathsynth.report.charts import Axis, Series
from pathsynth.report.inputs import ReportInput, Table
from pathsynth.report.pages import Chart, percent
from pathsynth.report.wording import View, chart_alt_text, class_noun, judge_accuracy_text, on_real, spoken_ends, without_width

# Published in arXiv 2506.00786; the interval is our bootstrap of its confusion matrix of 90 images.
ARXIV = "2506.00786"
PUBLISHED = {"arxiv": ARXIV, "macro_f1": 0.6727, "macro_f1_low": 0.60, "macro_f1_high": 0.73, "n_images": 90}
# Key in evaluation.json ("" for the top level), name, who looked, and what that is.
SETS = (
    ("", "Raw, by the gate", "gate", "the paper's measure: first attempts, seen by the network that filters"),
    ("judge", "Raw, by the judge", "judge", "the same images, seen by a network that took no part"),
    ("colour", "Raw, by colour alone", "colour", "control: told apart by their colours, without any structure"),
    ("filtered_judge", "Accepted, by the judge", "judge", "what the gate let through, seen by the network that took no part"),
    ("filtered_colour", "Accepted, by colour alone", "colour", "control, after filtering"),
    ("untuned", "Untuned base, by the judge", "judge", "the same prompts without the LoRA"),
)
# What is otherwise of a set that another generator made: nothing was drawn again.
OF_A_SET = {
    "": "the paper's measure: all images, seen by the gate",
    "filtered_judge": "those in which the gate sees the class, seen by the network that took no part",
    "filtered_colour": "control, of those in which the gate sees the class",
    "raw": "all images",
    "accepted": "those in which the gate sees the class",
}
MATRICES = (
    ("raw", "gate", "Raw images, by the gate", "first attempts"),
    ("raw", "judge", "Raw images, by the judge", "the same images"),
    ("accepted", "judge", "Accepted images, by the judge", "after filtering"),
    ("accepted", "gate", "Accepted images, by the gate", "the diagonal by construction: the gate let through nothing else"),
)
CORRUPTED = ("jpeg", "stain", "blur")
LOSS_POINTS, SMOOTHED = 200, 10


def scored_sets(content: ReportInput) -> list[View]:
    """The sets that were scored, by whom, and how right that one is on real images."""
    found = []
    for key, name, by, note in SETS:
        scores = content.evaluation.get(key) if key else content.evaluation
        # a set that another generator made has no untuned base
        if scores is not None:
            note = note if content.of_lora else OF_A_SET.get(key, note)
            found.append(
                {
                    "name": name,
                    "note": note,
                    "scores": scores,
                    "on_real": on_real(content, by),
                    "worth": judge_accuracy_text(content, by),
                    "by": by,
                }
            )
    return found


def headline(content: ReportInput) -> View:
    """Macro F1 of every set as points with intervals, and the gap between gate and judge."""
    return {
        "rows": scored_sets(content),
        # the paper's figures stand beside those of its own nine tissues alone
        "published": PUBLISHED if content.labels == labels.PATHMNIST else None,
        "gaming": content.evaluation["gate_gaming"],
        "trust": judge_accuracy_text(content, "judge"),
        "gate_trust": judge_accuracy_text(content, "gate"),
        "without_width": without_width(content.evaluation),
        "missing": [
            label for label, row in zip(content.labels, content.confusion["raw", "gate"], strict=True) if not row.sum()
        ],
    }


def scores(content: ReportInput) -> View:
    """Every average of every set, with its interval."""
    return {"rows": scored_sets(content), "measures": ("macro_f1", "macro_precision", "macro_recall", "accuracy")}


def tissues(content: ReportInput) -> View | None:
    """F1 of each tissue by gate and judge, and what the gate let through."""
    if not content.evaluation["n_images"]:
        return None
    found: list[View] = []
    for label, slug in zip(content.labels, content.slugs, strict=True):
        row: View = {"label": label, "generation": (content.generation or {}).get("per_tissue", {}).get(slug)}
        row["n"] = {name: int(content.confusion[name, "gate"][len(found)].sum()) for name in ("raw", "accepted")}
        for name, key in (("gate", ""), ("judge", "judge"), ("colour", "colour"), ("accepted", "filtered_judge")):
            scored = content.evaluation.get(key, {}) if key else content.evaluation
            row[name] = scored.get("per_tissue", {}).get(slug, {})
        found.append(row)
    series = [_series(found, by, f"raw, by the {by}") for by in ("gate", "judge")]
    drawn = charts.bars(
        "tissues", content.labels, series, Axis("F1"), chart_alt_text("F1 of raw images", content.labels, series)
    )
    worth = judge_accuracy_text(content, "judge")
    judged = f"The judge is {worth}." if worth else ""
    filtered = [
        _series(found, "judge", "raw, by the judge", look=1),
        _series(found, "accepted", "accepted, by the judge", look=2),
    ]
    told = chart_alt_text("F1 by the judge before and after filtering", content.labels, filtered)
    other = charts.bars("filtering", content.labels, filtered, Axis("F1"), told)
    return {
        "rows": found,
        "trust": worth,
        "charts": [
            Chart(drawn, f"Does an independent eye agree? F1 of raw images with 95 % intervals. {judged}"),
            Chart(other, f"Does filtering help? F1 by the judge of raw and of accepted images with 95 % intervals. {judged}"),
        ],
    }


def _series(rows: Sequence[Mapping[str, Any]], key: str, name: str, look: int | None = None) -> Series:
    values, low, high = ([row[key].get(score) for row in rows] for score in ("f1", "f1_low", "f1_high"))
    return Series(name, values, low, high, look=look)


def confusion(content: ReportInput) -> View:
    """Prompted against predicted tissue, counted."""
    matrices = []
    for name, by, title, note in MATRICES:
        if by == "gate" and name == "raw" and not content.of_lora:
            note = OF_A_SET["raw"]
        worth = (
            f"; the judge is {judge_accuracy_text(content, by)}" if by == "judge" and judge_accuracy_text(content, by) else ""
        )
        rows = list(_matrix_rows(content.labels, content.confusion[name, by]))
        matrices.append({"title": title, "note": note + worth, "rows": rows})
    return {"matrices": matrices}


def _matrix_rows(names: Sequence[str], counts: Any) -> Iterator[View]:
    for asked, (label, row) in enumerate(zip(names, counts, strict=True)):
        total = int(row.sum())
        cells = [
            {"count": int(count), "share": count / max(1, total), "hit": seen == asked, "seen_as": names[seen]}
            for seen, count in enumerate(row)
        ]
        yield {"label": label, "total": total, "cells": cells}


def calibration(content: ReportInput) -> View:
    """How often the gate is right when it is sure, and what a threshold on its confidence would buy."""
    names = (("test", "real test images"), ("raw", "generated images, right if as prompted"))
    series, bins = [], []
    for key, words in names:
        rows = [row for row in content.tables["reliability"] if row["set"] == key and row["n"] and row["accuracy"] is not None]
        bins += [{**row, "name": words} for row in rows]
        series.append(Series(words, [row["accuracy"] for row in rows], x=[row["confidence"] for row in rows]))
    told = "Confidence of the gate against how often it is right. " + "; ".join(
        f"{one.name}: "
        + ", ".join(f"{percent(x, 0)} sure, {percent(y, 0)} right" for x, y in zip(one.x, one.values, strict=True))
        for one in series
    )
    x, y = Axis("confidence of the gate", percent=True), Axis("share that is right", (0.0, 1.02), percent=True)
    words = "On the dotted line the gate is right as often as it is sure; below it, it is too sure of itself."
    return {
        "reliability": Chart(charts.lines("reliability", series, x, y, told, diagonal=True), words),
        "bins": bins,
        "ece": content.evaluation["calibration"].get("gate", {}),
        "thresholds": content.tables["thresholds"],
        "charts": list(_threshold_charts(content, content.tables["thresholds"])),
        "trust": judge_accuracy_text(content, "judge"),
    }


def _threshold_charts(content: ReportInput, rows: Table) -> Iterator[Chart]:
    xs = [row["threshold"] for row in rows]
    x = Axis("least confidence of the gate", (min(xs) - 0.02, max(xs) + 0.02) if xs else (0.0, 1.0))
    both = [
        Series("share of raw images kept", [row["kept_share"] for row in rows], x=xs),
        Series("right by the judge, of those kept", [row["judge_accuracy"] for row in rows], x=xs),
    ]
    drawn = charts.lines("threshold", both, x, Axis("share", (0.0, 1.02), percent=True), spoken_ends("Threshold", both))
    yield Chart(drawn, "What it buys: how many raw images are kept, and how many of those are right by the judge.")
    price = [Series("expected attempts per accepted image", [row["expected_attempts"] for row in rows], x=xs)]
    if any(value is not None for value in price[0].values):
        drawn = charts.lines("price", price, x, Axis("attempts per image", (0.0, None)), spoken_ends("Price", price))
        words = f"What it costs: attempts per accepted image, as first attempts let expect, the mean over {_kinds(content)}"
        other = " (the section on cost counts all attempts together)" if "cost" in content.evaluation else ""
        yield Chart(drawn, f"{words}{other}; the line ends where a {class_noun(content)} keeps nothing.")


def _kinds(content: ReportInput) -> str:
    return "tissues" if class_noun(content) == "tissue" else "classes"


def robustness(content: ReportInput) -> View | None:
    """Accuracy and macro F1 of gate and judge on real images that were damaged on purpose."""
    found = content.robustness
    if found is None:
        return None
    cases = [("clean", None, "unchanged")]
    cases += [(one, case, _case(one, case)) for one in CORRUPTED for case in found.get("gate", {}).get(one, {})]
    rows = [
        {"name": words, "gate": _case_scores(found, "gate", one, case), "judge": _case_scores(found, "judge", one, case)}
        for one, case, words in cases
        if case != "undefined"
    ]
    missing = {
        one: why for by in ("gate", "judge") for one in CORRUPTED if (why := found.get(by, {}).get(one, {}).get("undefined"))
    }
    names = [words for _, case, words in cases if case != "undefined"]
    series = [Series(by, [row[by].get("macro_f1") for row in rows]) for by in ("gate", "judge")]  # type: ignore[attr-defined]
    drawn = charts.bars(
        "robustness", names, series, Axis("macro F1"), chart_alt_text("Macro F1 on real test images", names, series)
    )
    return {
        "rows": rows,
        "n_images": found.get("n_images"),
        "undefined": [f"{one}: {why}" for one, why in missing.items()],
        "chart": Chart(drawn, "Macro F1 of gate and judge on the same real test images, as they are and worse."),
    }


def _case_scores(found: Mapping[str, Any], by: str, one: str, case: str | None) -> Mapping[str, Any]:
    scored = found.get(by, {}).get(one, {})
    return scored if case is None else scored.get(case, {})


def _case(one: str, case: str) -> str:
    """The words of a key such as `haematoxylin_x0_75`."""
    words = re.sub(r"_x(?=\d)", " times ", case)
    words = re.sub(r"(?<=\d)_(?=\d)", ".", words).replace("_", " ")
    return {"jpeg": f"JPEG, {words}", "blur": f"blur, {words}"}.get(one, words)


def training(content: ReportInput) -> View | None:
    """The loss of the LoRA and the macro F1 of gate and judge while they learnt."""
    drawn = []
    if "lora" in content.curves and content.curves["lora"][0]:
        steps, losses = _thinned(*content.curves["lora"])
        mean = _running_mean(losses, min(SMOOTHED, max(1, len(losses) // 4)))
        series = [Series("loss", losses, x=steps, plain=True), Series("running mean", mean, x=steps)]
        told = spoken_ends("Loss of the LoRA", series[1:])
        svg = charts.lines("loss", series, Axis("steps", (0.0, None)), Axis("loss", (None, None)), told)
        drawn.append(Chart(svg, "Loss of the LoRA. It says little of the images: each step draws its own noise."))
    of_classifiers = [
        Series(f"{by}, validation images", content.curves[by][1], x=content.curves[by][0])
        for by in ("gate", "judge")
        if by in content.curves
    ]
    if of_classifiers:
        told = spoken_ends("Macro F1 on validation images", of_classifiers)
        svg = charts.lines("learning", of_classifiers, Axis("epoch", (None, None)), Axis("macro F1", (None, None)), told)
        drawn.append(Chart(svg, f"Macro F1 of gate and judge on validation images. {_kept(content)}"))
    return {"charts": drawn} if drawn else None


def _kept(content: ReportInput) -> str:
    """Which epoch was kept of gate and judge."""
    return "Kept: " + ", ".join(f"the {kept} epoch of the {by}" for by, kept in content.checkpoints.items()) + "."


def _thinned(steps: list[float], values: list[float | None]) -> tuple[list[float], list[float | None]]:
    """At most LOSS_POINTS points, each the mean of a run of measurements."""
    run = -(-len(steps) // LOSS_POINTS)
    starts = range(0, len(steps), run)
    return [steps[min(start + run, len(steps)) - 1] for start in starts], [
        _mean(values[start : start + run]) for start in starts
    ]


def _running_mean(values: Sequence[float | None], width: int) -> list[float | None]:
    return [_mean(values[max(0, end - width) : end]) if end >= width else None for end in range(1, len(values) + 1)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def classifiers(content: ReportInput) -> View:
    """Gate, judge and colour control on labelled images of the data set."""
    splits = (("val", "validation"), ("test", "test"))
    rows = [
        {"name": name, "split": words, "scores": content.classifiers[name][split]}
        for name in ("gate", "judge")
        for split, words in splits
    ]
    colour = content.evaluation["real_images"].get("colour", {})
    rows += [{"name": "colour alone", "split": words, "scores": {"accuracy": colour.get(split)}} for split, words in splits]
    best = [by for by, kept in content.checkpoints.items() if kept == "best"]
    return {"rows": rows, "published": content.labels == labels.PATHMNIST, "chosen": " and ".join(best)}
