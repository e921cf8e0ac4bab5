"""The few numbers by which experiments are compared at a glance: the columns of `dvc exp show` and of `dvc metrics diff`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pathsynth.core.metric_files import get_nested

# Column: the metrics file and the keys that lead to the value. All scores are of raw images, but where the name says otherwise.
COLUMNS: dict[str, tuple[str, ...]] = {
    "macro_f1": ("evaluation", "macro_f1"),
    "macro_precision": ("evaluation", "macro_precision"),
    "macro_recall": ("evaluation", "macro_recall"),
    "judge_f1": ("evaluation", "judge", "macro_f1"),
    "accepted_judge_f1": ("evaluation", "filtered_judge", "macro_f1"),
    "acceptance_rate": ("generation", "acceptance_rate"),
    "kernel_distance": ("evaluation", "realism", "raw", "kernel_distance"),
    "coverage": ("evaluation", "realism", "raw", "coverage"),
    "useful_f1": ("usefulness", "synthetic", "macro_f1_mean"),
}


def headline(details: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The headline of one run.

    Args:
        details: by the file's name, `evaluation`, `generation` and `usefulness`, what it holds.

    Returns:
        The values of COLUMNS in their order, 0 to 1 but for `kernel_distance`, and `f1`, by tissue the F1 of raw images by the
        gate. What was not measured is left out.
    """
    values = {name: get_nested(details, keys) for name, keys in COLUMNS.items()}
    tissues = details["evaluation"].get("per_tissue", {})
    return {name: value for name, value in values.items() if value is not None} | {
        "f1": {slug: scores["f1"] for slug, scores in tissues.items()}
    }
