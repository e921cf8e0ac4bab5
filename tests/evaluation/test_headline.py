"""The headline of a run."""

from __future__ import annotations

from pathsynth.evaluation.headline import COLUMNS, select_headline


def test_headline_selects_columns_and_f1_by_tissue():
    evaluation = {
        "macro_f1": 0.5, "macro_precision": 0.6, "macro_recall": 0.7, "judge": {"macro_f1": 0.4},
        "filtered_judge": {"macro_f1": 0.8}, "realism": {"raw": {"kernel_distance": 0.01, "coverage": 0.9}},
        "per_tissue": {"mucus": {"precision": 0.1, "f1": 0.2}, "debris": {"precision": 0.3, "f1": 0.4}},
    }  # fmt: skip
    details = {
        "evaluation": evaluation,
        "generation": {"acceptance_rate": 0.75, "attempted": 60},
        "usefulness": {"synthetic": {"macro_f1_mean": 0.65}},
    }
    headline = select_headline(details)
    assert list(headline) == [*COLUMNS, "f1"]
    assert list(headline.values()) == [0.5, 0.6, 0.7, 0.4, 0.8, 0.75, 0.01, 0.9, 0.65, {"mucus": 0.2, "debris": 0.4}]


def test_missing_values_are_left_out():
    details = {"evaluation": {"macro_f1": 0.5, "filtered_judge": {"n_images": 0}}, "generation": {}, "usefulness": {}}
    assert select_headline(details) == {"macro_f1": 0.5, "f1": {}}
