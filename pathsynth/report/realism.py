"""The report's sections on how real, how useful and how new the images are."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pathsynth.data import labels
from pathsynth.report import charts
from pathsynth.report.charts import Axis, Series
from pathsynth.report.inputs import ReportInput
from pathsynth.report.pages import Chart, decimals, interval, significant
from pathsynth.report.wording import View, chart_alt_text, class_noun

# Score, its name, how its interval's keys begin, which way is better, and what it says.
REALISM = (
    (
        "frechet_distance",
        "Fréchet distance",
        "frechet",
        "lower",
        "how far the images as a whole lie from the real ones",
    ),
    ("frechet_bias", "of this, from small numbers", "", "", "what as many real images would get, though they are real"),
    ("kernel_distance", "Kernel distance", "kernel", "lower", "the same question, but fair to small numbers of images"),
    ("precision", "Precision", "precision", "higher", "share of generated images that look like some real one"),
    ("recall", "Recall", "recall", "higher", "share of real images that look like some generated one: variety"),
    ("density", "Density", "density", "higher", "how many real images a generated one is close to; may pass 1"),
    ("coverage", "Coverage", "coverage", "higher", "share of real images with a generated one close by: variety"),
)
# Key, name, and the name where there is little room.
SCORED = (
    ("raw", "raw", "raw"),
    ("accepted", "accepted", "accepted"),
    ("val", "real validation images", "val"),
    ("floor", "real test images", "test"),
)
TRAINED_ON = (
    ("real", "real images"),
    ("synthetic", "synthetic images"),
    ("real_and_synthetic", "real and synthetic images"),
    ("twice_real", "twice as many real images"),
)
CHANCE = 0.05
LOOKED_AT = (("features", "by features of the network"), ("pixels", "by pixels"))
_TISSUE_GROUPS = (("frechet_distance", "kernel_distance"), ("precision", "density"), ("recall", "coverage"))


def realism(content: ReportInput) -> View:
    """Distances from real images, shares of close ones, and what filtering does to them."""
    found = content.evaluation["realism"]
    sets = _compared(content)
    series, apart = (
        [Series(words, [_of_tissue(scored, slug).get(score) for slug in content.slugs]) for words, scored in sets]
        for score in ("coverage", "kernel_distance")
    )
    coverage = charts.bars(
        "coverage", content.labels, series, Axis("coverage"), chart_alt_text("Coverage", content.labels, series)
    )
    axis, told = Axis("kernel distance", (None, None)), chart_alt_text("Kernel distance", content.labels, apart, significant)
    distance = charts.bars("distance", content.labels, apart, axis, told)
    return {
        "other_centre": content.labels == labels.PATHMNIST,
        "extractor": found.get("extractor", "not known"),
        "dimensions": found.get("dimensions"),
        "neighbours": found.get("nearest_neighbours"),
        "heads": [{"name": words, "short": short, "scores": found[key]} for key, words, short in SCORED],
        "rows": [_measure(measure, sets) for measure in REALISM],
        "few": few(content),
        "undefined": [reason for words, scored in sets for reason in _undefined(words, scored)],
        "groups": [[measure for measure in REALISM if measure[0] in names] for names in _TISSUE_GROUPS],
        "tissues": [
            {"label": label, "groups": [_tissue_cells(names, slug, [scored for _, scored in sets]) for names in _TISSUE_GROUPS]}
            for label, slug in zip(content.labels, content.slugs, strict=True)
        ],
        "lost": found.get("variety_lost", {}),
        "charts": [
            Chart(distance, f"Kernel distance of each {class_noun(content)} from its real images: shorter is more real."),
            Chart(
                coverage,
                f"Coverage: the share of real images of each {class_noun(content)} that have a generated one close by.",
            ),
        ],
    }


def few(content: ReportInput) -> list[str]:
    """Names of the sets that have, or whose reference has, no more images than features have numbers."""
    dimensions = content.evaluation["realism"].get("dimensions")
    if dimensions is None:
        return []
    counts = [(words, min(scored.get("n_images", 0), scored.get("n_reference", 0))) for words, scored in _compared(content)]
    return [words for words, count in counts if count <= dimensions]


def _compared(content: ReportInput) -> list[tuple[str, Mapping[str, Any]]]:
    """Every set that was compared with real images: its name and its scores."""
    found = content.evaluation["realism"]
    return [(words, found[key]) for key, words, _ in SCORED]


def _of_tissue(scored: Mapping[str, Any], slug: str) -> Mapping[str, Any]:
    return scored.get("per_tissue", {}).get(slug, {})


def _measure(measure: tuple[str, str, str, str, str], sets: Sequence[tuple[str, Mapping]]) -> View:
    key, name, prefix, better, words = measure
    cells = []
    for _, scored in sets:
        low, high, shown = scored.get(f"{prefix}_low"), scored.get(f"{prefix}_high"), _written(key)
        if low is None or high is None or low == high:
            between = interval(low, high, scored["n_images"]) if key == "precision" else ""
        else:
            between = f"{shown(low)} to {shown(high)}"
        cells.append({"value": shown(scored.get(key)), "interval": between})
    return {"name": name, "better": better, "words": words, "cells": cells, "part": not better}


def _tissue_cells(names: Sequence[str], slug: str, sets: Sequence[Mapping]) -> list[View]:
    """The cells of one tissue: each score of each set, or why there is none."""
    return [
        {"value": _written(name)(one.get(name)), "why": one.get("undefined", {}).get(name, ""), "first": number == 0}
        for name in names
        for number, one in enumerate(_of_tissue(scored, slug) for scored in sets)
    ]


def _written(key: str) -> Callable[[float | None], str]:
    """How a score is written: distances have no scale of their own."""
    return significant if key.startswith(("frechet", "kernel")) else decimals


def _undefined(words: str, scored: Mapping[str, Any]) -> list[str]:
    """Why scores are missing, one line for each reason; an interval's two ends count once."""
    reasons: dict[str, list[str]] = {}
    for score, why in scored.get("undefined", {}).items():
        name = re.sub(r"_(low|high)$", " interval", score).replace("_", " ").replace("frechet", "Fréchet")
        if name not in reasons.setdefault(why, []):
            reasons[why].append(name)
    return [f"{', '.join(names)} of {words} ({why})" for why, names in reasons.items()]


def usefulness(content: ReportInput) -> View | None:
    """What a classifier learns from synthetic images, tested on real ones."""
    found = content.usefulness
    if found is None:
        return None
    rows = [{"name": name, "scores": found[key]} for key, name in TRAINED_ON]
    series = []
    for row in rows:
        means, deviations = (
            [row["scores"].get("per_tissue", {}).get(slug, {}).get(score) for slug in content.slugs]
            for score in ("f1_mean", "f1_std")
        )
        if any(mean is not None for mean in means):
            low = [None if m is None or s is None else max(0.0, m - s) for m, s in zip(means, deviations, strict=True)]
            high = [None if m is None or s is None else min(1.0, m + s) for m, s in zip(means, deviations, strict=True)]
            series.append(Series(row["name"], means, low, high))
    chart = None
    if series:
        told = chart_alt_text("Mean F1 on real test images by what was learnt from", content.labels, series)
        drawn = charts.bars("usefulness", content.labels, series, Axis("F1 on real test images"), told)
        chart = Chart(drawn, f"Mean F1 over {found['repeats']} trainings; the whiskers are one standard deviation each way.")
    return {
        "repeats": found["repeats"],
        "steps": found["steps"],
        "made": found["trained_on"],
        "rows": rows,
        "chart": chart,
        "saturated": _saturated(found),
    }


def _saturated(found: Mapping[str, Any]) -> bool:
    """Whether twice as many real images teach no more than half of them, so that no gain by more images can be read."""
    once, twice = (found[key].get("macro_f1_mean") for key in ("real", "twice_real"))
    return once is not None and twice is not None and twice <= once


def copying(content: ReportInput) -> View:
    """Shares of images that are closer to a training image than real ones are."""
    rows = []
    for key in ("raw", "accepted"):
        for by, words in LOOKED_AT:
            found = content.evaluation["copying"].get(key, {}).get(by, {})
            left_out = [f"{slug.replace('_', ' ')}: {why}" for slug, why in found.get("left_out", {}).items()]
            rows.append(
                {"name": f"{key} images, {words}", "scores": found, "verdict": _copying_verdict(found), "left_out": left_out}
            )
    names = dict(zip(content.slugs, content.labels, strict=True))
    pairs = [
        {
            **row,
            "label": names.get(row["tissue"], row["tissue"]),
            "train_label": names.get(row["train_tissue"], row["train_tissue"]),
        }
        for row in content.tables.get("pairs", [])
    ]
    return {"rows": rows, "pairs": pairs, "picture": content.pairs}


def _copying_verdict(found: Mapping[str, Any]) -> str:
    if "share_below" not in found:
        return "; ".join(found.get("undefined", {}).values()) or "not measured"
    if found["p_more"] < CHANCE:
        return "more than chance would give: look at the pairs"
    return "no more than chance would give"
