"""The headline: the few scores by which experiments are compared, the columns of `dvc exp show` and `dvc metrics diff`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pathsynth.core.metric_files import get_nested

# Column: the metrics file and the keys of the value. Scores refer to raw images unless the name states otherwise.
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


def select_headline(details: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Selects the headline of one run.

    Args:
        details: contents of the metrics files `evaluation`, `generation` and `usefulness`.

    Returns:
        The values of COLUMNS in their order, in [0, 1] except `kernel_distance`, and `f1`, the F1 of raw images by the gate by
        tissue. Missing values are left out.
    """
    values = {name: get_nested(details, keys) for name, keys in COLUMNS.items()}
    tissues = details["evaluation"].get("per_tissue", {})
    return {name: value for name, value in values.items() if value is not None} | {
        "f1": {slug: scores["f1"] for slug, scores in tissues.items()}
    }
