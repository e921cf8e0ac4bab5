"""The headline of a run."""

from __future__ import annotations

from pathsynth.evaluation.headline import COLUMNS, select_headline

RAW = {
    "gate": {"macro_f1": 0.5, "per_tissue": {"mucus": {"precision": 0.1, "f1": 0.2}, "debris": {"precision": 0.3, "f1": 0.4}}},
    "judge": {"macro_f1": 0.45},
    "open_set": {"macro_f1": 0.35},
    "features": {"precision": 0.8, "coverage": 0.7, "kernel_distance": 0.01},
    "structure": {"precision": 0.2, "kernel_distance": 0.03},
    "copying": {"pixels": {"share": 0.02}},
}


def test_headline_selects_columns_and_f1_by_tissue():
    details = {
        "evaluation": {"sets": {"raw": RAW}, "cost": {"acceptance_rate": 0.75, "shortfall": 0}},
        "usefulness": {"probe": {"test": {"gain": {"mean": 0.04}}}},
    }
    headline = select_headline(details)
    assert list(headline) == [*COLUMNS, "f1"]
    assert list(headline.values()) == [0.5, 0.45, 0.35, 0.8, 0.7, 0.01, 0.03, 0.02, 0.75, 0.04, {"mucus": 0.2, "debris": 0.4}]


def test_missing_values_are_left_out():
    details = {"evaluation": {"sets": {"raw": {"gate": {"macro_f1": 0.5}}}}, "usefulness": {}}
    assert select_headline(details) == {"macro_f1": 0.5, "f1": {}}
