"""Report sections on realism and variety, usefulness for training, and copies of training images."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from pathsynth.report import charts
from pathsynth.report.accuracy import View
from pathsynth.report.charts import Axis, Series
from pathsynth.report.inputs import ReportInput, Scores
from pathsynth.report.pages import MISSING, Chart, decimals, interval, percent, probability, significant, whole
from pathsynth.report.tables import Cell, Row, Table

# Score, its name, prefix of its interval keys, and meaning.
MEASURES = (
    ("frechet_distance", "Fréchet distance", "frechet", "lower is better: distance between the two distributions"),
    ("frechet_bias", "of which bias", "", "estimate of the small-sample bias: the score of as many real images"),
    ("kernel_distance", "Kernel distance", "kernel", "lower is better: the same question, unbiased for few images"),
    ("precision", "Precision", "precision", "higher is better: share of generated images close to a real one"),
    ("recall", "Recall", "recall", "higher is better: share of real images close to a generated one (variety)"),
    ("density", "Density", "density", "higher is better: how many real images are close to a generated one; may exceed 1"),
    ("coverage", "Coverage", "coverage", "higher is better: share of real images with a generated neighbour (variety)"),
)
MEASURE_GROUPS = (("frechet_distance", "kernel_distance"), ("precision", "density"), ("recall", "coverage"))
# Key, name, and short name.
SETS = (
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
SIGNIFICANCE = 0.05
SPACES = ("features", "pixels")


def realism(content: ReportInput) -> View:
    """Shows distances from real images, shares of neighbours, and what filtering does to them."""
    found = content.evaluation["realism"]
    sets = _list_sets(content)
    distances, coverages = (
        [Series(name, [scored["per_tissue"][slug].get(score) for slug in content.slugs]) for name, scored in sets]
        for score in ("kernel_distance", "coverage")
    )
    distance = charts.bars(
        "distance", content.labels, distances, Axis("kernel distance", (None, None)), "Kernel distance", significant
    )
    coverage = charts.bars("coverage", content.labels, coverages, Axis("coverage"), "Coverage")
    return {
        "extractor": found["extractor"],
        "dimensions": found.get("dimensions"),
        "neighbours": found["nearest_neighbours"],
        "table": _measure_table(sets),
        "mixed": len({scored.get("n_reference") for _, scored in sets}) > 1,
        "few": find_small_sets(content),
        "undefined": [reason for name, scored in sets for reason in _explain_undefined(name, scored)],
        "class_tables": [_class_table(content, group) for group in MEASURE_GROUPS],
        "lost": [f"{name} {loss:+.3f}" for name, loss in found.get("variety_lost", {}).items()],
        "charts": [
            Chart(distance, f"Kernel distance of each {content.class_noun} from its real images. Shorter is more realistic."),
            Chart(coverage, f"Coverage of each {content.class_noun}: the share of real images with a generated neighbour."),
        ],
    }


def find_small_sets(content: ReportInput) -> list[str]:
    """Names the sets in which the images, or the real images compared with them, do not outnumber the feature dimensions."""
    dimensions = content.evaluation["realism"].get("dimensions")
    if dimensions is None:
        return []
    return [
        name
        for name, scored in _list_sets(content)
        if min(scored["n_images"], scored.get("n_reference", 0)) <= dimensions
    ]  # fmt: skip


def _list_sets(content: ReportInput) -> list[tuple[str, Scores]]:
    return [(name, content.evaluation["realism"][key]) for key, name, _ in SETS]


def _measure_table(sets: Sequence[tuple[str, Scores]]) -> Table:
    def cell(scored: Scores, key: str, prefix: str) -> Cell:
        write, (low, high) = _formatter(key), (scored.get(f"{prefix}_{end}") for end in ("low", "high"))
        if low is None or high is None or low == high:
            note = interval(low, high, scored["n_images"]) if key == "precision" else ""
        else:
            note = f"{write(low)} to {write(high)}"
        return Cell(write(scored.get(key)), note)

    def heading(name: str, scored: Scores) -> Cell:
        reference = f" vs. {whole(scored['n_reference'])}" if "n_reference" in scored else ""
        return Cell(name, f"{whole(scored['n_images'])} images{reference}")

    rows: list[Row] = [
        (name, *(cell(scored, key, prefix) for _, scored in sets), Cell("", meaning)) for key, name, prefix, meaning in MEASURES
    ]
    head: Row = ("Score", *(heading(name, scored) for name, scored in sets), "Meaning")
    return Table(head, rows, prose=(len(head) - 1,))


def _class_table(content: ReportInput, group: Sequence[str]) -> View:
    """Builds the table of two measures for each class; a missing value has its reason as note."""
    names = {key: name for key, name, *_ in MEASURES}
    sets = [scored for _, scored in _list_sets(content)]
    rows = [
        (label, *(_formatter(key)(scored["per_tissue"][slug].get(key)) for key in group for scored in sets))
        for slug, label in content.names.items()
    ]
    head = (content.class_noun.capitalize(), *[short for _, _, short in SETS] * len(group))
    table = Table(head, rows, groups=[(names[key], len(sets)) for key in group])
    missing = {
        why
        for slug in content.slugs
        for scored in sets
        for key, why in scored["per_tissue"][slug].get("undefined", {}).items()
        if key in group
    }
    title = ", ".join(names[key] if key.startswith("frechet") else names[key].lower() for key in group)
    return {"title": title, "table": table, "missing": sorted(missing)}


def _formatter(key: str) -> Callable[[float | None], str]:
    """Returns the number format of a score: significant digits for distances, which have no fixed scale, else decimals."""
    return significant if key.startswith(("frechet", "kernel")) else decimals


def _explain_undefined(name: str, scored: Scores) -> list[str]:
    """Explains missing scores, one line per reason; the two ends of an interval count once."""
    reasons: dict[str, list[str]] = {}
    for score, why in scored.get("undefined", {}).items():
        words = re.sub(r"_(low|high)$", " interval", score).replace("_", " ").replace("frechet", "Fréchet")
        if words not in reasons.setdefault(why, []):
            reasons[why].append(words)
    return [f"{', '.join(scores)} of {name} ({why})" for why, scores in reasons.items()]


def usefulness(content: ReportInput) -> View | None:
    """Shows what a classifier learns from synthetic images, tested on real ones."""
    found = content.usefulness
    if found is None:
        return None
    series = [_useful_series(content, name, found[key]) for key, name in TRAINED_ON if "per_tissue" in found[key]]
    chart = None
    if series:
        svg = charts.bars("usefulness", content.labels, series, Axis("F1 on real test images"), "Mean F1 by training images")
        chart = Chart(svg, f"Mean F1 over {found['repeats']} trainings. Whiskers: one standard deviation.")
    rows: list[Row] = [
        (
            Cell(name, f"not measured: {found[key]['undefined']}" if "undefined" in found[key] else ""),
            whole(found[key]["n_images"]),
            *(_mean_cell(found[key], score) for score in ("accuracy", "macro_f1")),
        )
        for key, name in TRAINED_ON
    ]
    once, twice = (found[key].get("macro_f1_mean") for key in ("real", "twice_real"))
    return {
        "repeats": found["repeats"],
        "steps": found["steps"],
        "trained_on": found["trained_on"],
        "table": Table(("Trained on", "Images", "Accuracy", "Macro F1"), rows),
        "chart": chart,
        # if so, adding synthetic images could not show a gain either
        "saturated": once is not None and twice is not None and twice <= once,
    }


def _mean_cell(scores: Scores, name: str) -> Cell:
    deviation = scores.get(f"{name}_std")
    return Cell(decimals(scores.get(f"{name}_mean")), "" if deviation is None else f"± {decimals(deviation)}")


def _useful_series(content: ReportInput, name: str, scores: Scores) -> Series:
    rows = [scores["per_tissue"][slug] for slug in content.slugs]
    means = [row["f1_mean"] for row in rows]
    low = [None if row["f1_std"] is None else max(0.0, row["f1_mean"] - row["f1_std"]) for row in rows]
    high = [None if row["f1_std"] is None else min(1.0, row["f1_mean"] + row["f1_std"]) for row in rows]
    return Series(name, means, low, high)


def copying(content: ReportInput) -> View:
    """Shows which share of images is closer to a training image than real images are."""
    sets = content.evaluation["copying"]
    rows: list[Row] = [
        _copying_row(f"{key.capitalize()}, {space}", sets[key][space]) for key in ("raw", "accepted") for space in SPACES
    ]
    head = ("Set", "Close to a training image", "Expected", "p", "Images", "Validation images", "Result")
    pairs: list[Row] = [
        (
            content.names[row["tissue"]],
            row["space"],
            whole(row["rank"]),
            whole(row["slot"]),
            decimals(row["distance"], 2),
            decimals(row["train_index"], 0),
            content.names[row["train_tissue"]],
        )
        for row in content.tables.get("pairs", [])
    ]
    pair_head = ("Prompted", "Space", "Rank", "Slot", "Distance", "Training image", "Its class")
    return {
        "table": Table(head, rows, prose=(6,)),
        "pairs": Table(pair_head, pairs, prose=(1, 6)) if pairs else None,
        "closest": content.contact_sheets.get("pairs"),
    }


def _copying_row(name: str, found: Scores) -> Row:
    left_out = "; ".join(f"{slug.replace('_', ' ')}: {why}" for slug, why in found.get("left_out", {}).items())
    if "share_below" not in found:
        share, verdict = Cell(MISSING), "; ".join(found["undefined"].values())
    else:
        share = Cell(percent(found["share_below"]), f"{percent(found['low'])} to {percent(found['high'])}")
        more = found["p_more"] < SIGNIFICANCE
        verdict = "more than expected by chance: look at the pairs" if more else "no more than expected by chance"
    return (
        name,
        share,
        percent(found.get("expected", 0.01), 0),
        probability(found.get("p_more")),
        whole(found["n_images"]),
        whole(found["n_val"]),
        Cell(verdict, f"left out: {left_out}" if left_out else ""),
    )
