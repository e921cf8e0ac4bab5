"""Report section on usefulness: what a classifier of real images learns from generated ones."""

from __future__ import annotations

from pathsynth.report import charts
from pathsynth.report.accuracy import View
from pathsynth.report.charts import Axis, Series
from pathsynth.report.inputs import ReportInput, Scores
from pathsynth.report.pages import Chart, decimals, whole
from pathsynth.report.tables import Cell, Row, Table, gain_cell

SOURCES = {
    "real": "few real images",
    "synthetic": "generated images",
    "real_and_synthetic": "few real and generated images",
    "more_real": "more real images",
}
GAINS = {"gain": "Gain of generated images", "gain_of_more_real": "Gain of more real images"}
CLASSIFIERS, SPLITS = ("network", "probe"), ("val", "test")


def usefulness(content: ReportInput) -> View | None:
    """Shows what classifiers learn from few real images with and without generated ones, on real validation and test images."""
    found = content.usefulness
    if found is None:
        return None
    columns = [found[kind][split] for kind in CLASSIFIERS for split in SPLITS]
    rows: list[Row] = [
        (
            Cell(name.capitalize(), f"{whole(found['n_images'].get(key))} images"),
            *(_mean_cell(scores[key]) for scores in columns),
        )
        for key, name in SOURCES.items()
    ]
    rows += [(name, *(gain_cell(scores[key]) for scores in columns)) for key, name in GAINS.items()]
    head = ("Trained on", *["Validation", "Test"] * len(CLASSIFIERS))
    groups = [(f"{kind.capitalize()}, macro F1", len(SPLITS)) for kind in CLASSIFIERS]
    return {
        "repeats": found["repeats"],
        "steps": found["steps"],
        "real_per_class": found["real_per_tissue"],
        "trained_on": found["trained_on"],
        "table": Table(head, rows, groups=groups),
        "chart": _class_chart(content, found["network"]["test"]),
        "power": [
            f"{kind.capitalize()}: with {whole(found['repeats'][kind])} repeats, a true gain of {decimals(gain['detectable'])} "
            "or more would be found with 80 % power."
            for kind in CLASSIFIERS
            if "detectable" in (gain := found[kind]["test"]["gain"])
        ],
    }


def _mean_cell(scores: Scores) -> Cell:
    if "macro_f1_mean" not in scores:
        return Cell(decimals(None), scores["undefined"])
    return Cell(decimals(scores["macro_f1_mean"]), f"± {decimals(scores['macro_f1_std'])}")


def _class_chart(content: ReportInput, scores: Scores) -> Chart | None:
    series = []
    for key, name in SOURCES.items():
        if "per_tissue" in scores[key]:
            rows = [scores[key]["per_tissue"][slug] for slug in content.slugs]
            means, deviations = ([row[f"f1_{value}"] for row in rows] for value in ("mean", "std"))
            ends = [(mean - (std or 0.0), mean + (std or 0.0)) for mean, std in zip(means, deviations, strict=True)]
            series.append(Series(name, means, [low for low, _ in ends], [high for _, high in ends]))
    if not series:
        return None
    svg = charts.dots("usefulness", content.labels, series, Axis("F1 on real test images"), "Mean F1 by training images")
    return Chart(svg, "Mean F1 of the network on real test images. Whiskers: one standard deviation over repeats.")
