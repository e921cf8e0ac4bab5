"""The headline: the few scores by which experiments are compared, the columns of `dvc exp show` and `dvc metrics diff`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pathsynth.core.metric_files import get_nested

# Column: the metrics file and the keys of the value. All are scores of raw images, except the last two.
RAW = ("evaluation", "sets", "raw")
COLUMNS: dict[str, tuple[str, ...]] = {
    "macro_f1": (*RAW, "gate", "macro_f1"),
    "judge_f1": (*RAW, "judge", "macro_f1"),
    "open_set_f1": (*RAW, "open_set", "macro_f1"),
    "precision": (*RAW, "features", "precision"),
    "coverage": (*RAW, "features", "coverage"),
    "kernel_distance": (*RAW, "features", "kernel_distance"),
    "structure_distance": (*RAW, "structure", "kernel_distance"),
    "copies": (*RAW, "copying", "pixels", "share"),
    "acceptance_rate": ("evaluation", "cost", "acceptance_rate"),
    "useful_gain": ("usefulness", "probe", "test", "gain", "mean"),
}


def select_headline(details: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Selects the headline of one run.

    Args:
        details: contents of the metrics files `evaluation` and `usefulness`.

    Returns:
        The values of COLUMNS in their order, and `f1`, the F1 of raw images by the gate by tissue. Missing values are left out.
    """
    values = {name: get_nested(details, keys) for name, keys in COLUMNS.items()}
    tissues = get_nested(details, (*RAW, "gate", "per_tissue")) or {}
    return {name: value for name, value in values.items() if value is not None} | {
        "f1": {slug: scores["f1"] for slug, scores in tissues.items()}
    }
