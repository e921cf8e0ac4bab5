"""Report section on realism and variety, in two feature spaces and by structure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pathsynth.report import charts
from pathsynth.report.accuracy import CHARTED, View
from pathsynth.report.charts import Axis, Series
from pathsynth.report.inputs import ReportInput, Scores
from pathsynth.report.pages import Chart, decimals, interval, significant
from pathsynth.report.tables import SPACES, Cell, Row, Table, find_scores

# Score, and the head of its column.
MEASURES = {
    "kernel_distance": "Kernel distance",
    "precision": "Precision",
    "recall": "Recall",
    "density": "Density",
    "coverage": "Coverage",
    "frechet_distance": "Fréchet",
}
PER_CLASS = (("kernel_distance", "coverage"), ("precision", "recall"))
STRUCTURE = {"orientation": "Orientation coherence", "nuclei": "Nuclei", "colour_spread": "Colour spread"}
PER_CLASS_SETS = ("raw", "accepted", "val", "test")


def realism(content: ReportInput) -> View:
    """Shows distances from real images and shares of neighbours in both feature spaces, and the structure of each class."""
    found = content.evaluation
    spaces = {space: name.format(found["extractor"]) for space, name in SPACES.items()}
    return {
        "extractor": found["extractor"],
        "neighbours": found["nearest_neighbours"],
        "dimensions": {space: find_scores(found, "raw", space).get("dimensions") for space in SPACES},
        "table": _measure_table(content, spaces, lambda scores: scores),
        "means": _measure_table(content, spaces, lambda scores: scores.get("mean_per_tissue", {})),
        "undefined": _explain_undefined(content, spaces),
        "bias": [
            f"{significant(bias)} by {name}"
            for space, name in spaces.items()
            if (bias := find_scores(found, "raw", space).get("frechet_bias")) is not None
        ],
        "charts": [_distance_chart(content, space, name) for space, name in spaces.items()],
        "class_tables": [_class_table(content, space, name, group) for space, name in spaces.items() for group in PER_CLASS],
        "structure": _structure_table(content),
        "structure_per_class": _structure_class_table(content),
    }


def _list_sets(content: ReportInput) -> list[tuple[str, str]]:
    return [(key, name) for key, name in CHARTED.items() if content.evaluation["sets"].get(key, {}).get("n_images")]


def _measure_table(content: ReportInput, spaces: Mapping[str, str], select: Callable[[Scores], Scores]) -> Table:
    """One row per set and a group of columns per feature space; without a score that no set has."""
    sets = {
        name: {space: select(find_scores(content.evaluation, key, space)) for space in spaces}
        for key, name in _list_sets(content)
    }
    shown = [(space, key) for space in spaces for key in MEASURES if any(key in scores[space] for scores in sets.values())]
    rows: list[Row] = [(name, *(_measure_cell(scores[space], key) for space, key in shown)) for name, scores in sets.items()]
    counts = Counter(space for space, _ in shown)
    groups = [(name.capitalize(), counts[space]) for space, name in spaces.items() if counts[space]]
    return Table(("Images", *(MEASURES[key] for _, key in shown)), rows, groups=groups)


def _measure_cell(scores: Scores, key: str) -> Cell:
    """Formats a score, a distance with its interval."""
    if not key.endswith("distance"):
        return Cell(decimals(scores.get(key)))
    low, high = (scores.get(f"{key.removesuffix('_distance')}_{end}") for end in ("low", "high"))
    note = "" if low is None or high is None else f"{significant(low, 2)} to {significant(high, 2)}"
    return Cell(significant(scores.get(key)), note)


def _formatter(key: str) -> Callable[[float | None], str]:
    """Returns the number format of a score: significant digits for distances, which have no fixed scale, else decimals."""
    return significant if key.endswith("distance") else decimals


def _explain_undefined(content: ReportInput, spaces: Mapping[str, str]) -> list[str]:
    """Explains each missing score of a feature space once, by the first set that lacks it."""
    reasons: dict[tuple[str, str], str] = {}
    for space, of_space in spaces.items():
        for key, name in _list_sets(content):
            undefined = find_scores(content.evaluation, key, space).get("undefined", {})
            for score in MEASURES.keys() & undefined.keys():
                reasons.setdefault((space, score), f"{MEASURES[score]}, {of_space}, {name.lower()} ({undefined[score]})")
    return [reasons[found] for found in sorted(reasons)]


def _distance_chart(content: ReportInput, space: str, name: str) -> Chart:
    series = [
        Series(key, [_per_class(content, key, space)[slug].get("kernel_distance") for slug in content.slugs])
        for key in PER_CLASS_SETS
    ]
    axis = Axis("kernel distance", (None, None))
    svg = charts.dots(f"distance-{space}", content.labels, series, axis, "Kernel distance", significant)
    return Chart(svg, f"Kernel distance of each {content.class_noun}, {name}. At 0 or below no difference was found.")


def _per_class(content: ReportInput, key: str, space: str) -> Scores:
    """Scores of each class of a set in one feature space; empty ones for a set without images."""
    found = find_scores(content.evaluation, key, space)
    return found["per_tissue"] if found else {slug: {} for slug in content.slugs}


def _class_table(content: ReportInput, space: str, name: str, group: Sequence[str]) -> View:
    """Builds the table of two measures for each class, and lists the reasons of missing values."""
    sets = [_per_class(content, key, space) for key in PER_CLASS_SETS]
    rows: list[Row] = [
        (label, *(_formatter(key)(scores[slug].get(key)) for key in group for scores in sets))
        for slug, label in content.names.items()
    ]
    head = (content.class_noun.capitalize(), *PER_CLASS_SETS * len(group))
    undefined = [scores[slug].get("undefined", {}) for slug in content.slugs for scores in sets]
    missing = {why for reasons in undefined for key, why in reasons.items() if key in group}
    return {
        "title": f"{name}, {' and '.join(MEASURES[key].lower() for key in group)}",
        "table": Table(head, rows, groups=[(MEASURES[key], len(sets)) for key in group]),
        "missing": sorted(missing),
    }


def _structure_table(content: ReportInput) -> Table:
    """Distances of structure, and how well a classifier tells each set from real images."""
    rows: list[Row] = []
    for key, name in _list_sets(content):
        scored = content.evaluation["sets"][key]
        distances = (_structure_cell(scored[measure]) for measure in STRUCTURE)
        rows.append((name, *distances, *(_auc_cell(scored["two_sample_auc"], by) for by in ("spectrum", "structure"))))
    head = ("Images", *STRUCTURE.values(), "Spectrum", "Structure")
    return Table(head, rows, groups=[("Distance from the data set", len(STRUCTURE)), ("AUC against real images", 2)])


def _structure_cell(found: Scores) -> Cell:
    """Formats a distance, with that of as many real images where it is known."""
    expected = f"{significant(found['expected'])} expected" if "expected" in found else ""
    return Cell(significant(found.get("distance")), found.get("undefined") or expected)


def _auc_cell(found: Scores, by: str) -> Cell:
    scores: Any = found.get(by, found)
    return Cell(decimals(scores.get("auc")), scores.get("undefined") or interval(scores["low"], scores["high"]))


def _structure_class_table(content: ReportInput) -> Table:
    """Means of raw images and of the data set for each class, with their distance."""
    kinds = ("generated", "real", "distance")
    found = [content.evaluation["sets"]["raw"][measure].get("per_tissue", {}) for measure in STRUCTURE]
    rows: list[Row] = [
        (label, *(significant(scores.get(slug, {}).get(kind)) for scores in found for kind in kinds))
        for slug, label in content.names.items()
    ]
    head = (content.class_noun.capitalize(), *kinds * len(found))
    return Table(head, rows, groups=[(title, len(kinds)) for title in STRUCTURE.values()])
