"""Anchors: scores of images with a known answer, beside which those of generated images can be read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

from pathsynth.core.metric_files import get_nested
from pathsynth.report.pages import decimals, percent, significant
from pathsynth.report.tables import Cell, Row, Scores, Table

# Name of the row, whether the set is among the generated ones, and its key.
ROWS = (
    ("Real, validation", False, "val"),
    ("Real, test", False, "test"),
    ("VAE copies", False, "vae_copies"),
    ("Moved copies", False, "moved_copies"),
    ("Shuffled 4 x 4", False, "shuffled_4x4"),
    ("Shuffled 8 x 8", False, "shuffled_8x8"),
    ("Shuffled pixels", False, "shuffled_pixels"),
    ("Random phases", False, "random_phases"),
    ("Untuned base", True, "untuned"),
    ("Generated, raw", True, "raw"),
    ("Generated, accepted", True, "accepted"),
)
# Head, keys of the score in a set, format.
COLUMNS: tuple[tuple[str, tuple[str, ...], Callable[[float | None], str]], ...] = (
    ("Gate F1", ("gate", "macro_f1"), decimals),
    ("Judge F1", ("judge", "macro_f1"), decimals),
    ("Open-set F1", ("open_set", "macro_f1"), decimals),
    ("Kernel distance, features", ("features", "kernel_distance"), significant),
    ("Kernel distance, structure", ("structure", "kernel_distance"), significant),
    ("Precision", ("features", "precision"), decimals),
    ("Recall", ("features", "recall"), decimals),
    ("Coverage", ("features", "coverage"), decimals),
    ("Orientation distance", ("orientation", "distance"), significant),
    ("Nuclei distance", ("nuclei", "distance"), significant),
    ("Colour spread, grey levels", ("colour_spread", "generated"), significant),
    ("Spectrum AUC", ("two_sample_auc", "spectrum", "auc"), decimals),
    ("Structure AUC", ("two_sample_auc", "structure", "auc"), decimals),
    ("Copies, pixels", ("copying", "pixels", "share"), percent),
    ("Copies, structure", ("copying", "structure", "share"), percent),
)
# Set and keys of a score, and its note.
NOTES: dict[tuple[str, ...], str] = {("accepted", "gate", "macro_f1"): "by construction"}


def build_anchor_table(anchors: Scores, evaluation: Scores) -> Table:
    """Builds the table of anchors and generated images, without sets that were not scored.

    Args:
        anchors: contents of metrics/anchors/BENCHMARK.json.
        evaluation: contents of metrics/evaluation.json.

    Raises:
        KeyError: one of them has no `sets`.
    """
    rows: list[Row] = [
        (name, *(Cell(form(_get_score(sets[key], keys)), NOTES.get((key, *keys), "")) for _, keys, form in COLUMNS))
        for name, generated, key in ROWS
        if key in (sets := (evaluation if generated else anchors)["sets"])
    ]
    return Table(("Images", *(head for head, _, _ in COLUMNS)), rows)


def _get_score(scored: Mapping[str, Any], keys: tuple[str, ...]) -> float | None:
    """A score of a set; of the colour spread, the mean over tissues, in grey levels."""
    if keys == ("colour_spread", "generated"):
        tissues = get_nested(scored, ("colour_spread", "per_tissue")) or {}
        return fmean(row["generated"] for row in tissues.values()) if tissues else None
    return get_nested(scored, keys)
