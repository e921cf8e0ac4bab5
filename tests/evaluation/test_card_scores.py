"""The scores in a generated set's card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_results import write_run

from pathsynth.data.provenance import DUPLICATES_PLACEHOLDER, SCORES_PLACEHOLDER
from pathsynth.evaluation.card_scores import fill_scores


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory) -> dict:
    run: Path = write_run(tmp_path_factory.mktemp("card"))
    return json.loads((run / "metrics" / "evaluation.json").read_text())


def test_card_has_the_scores_in_place_of_the_notice(evaluation):
    card = fill_scores(f"# Set\n\n{SCORES_PLACEHOLDER}\n\nend", evaluation)
    judge = evaluation["sets"]["raw"]["judge"]
    row = f"{judge['macro_f1']:.3f} | {judge['macro_f1_low']:.3f} to {judge['macro_f1_high']:.3f}"
    assert card.startswith("# Set\n\n|") and card.endswith("\n\nend") and SCORES_PLACEHOLDER not in card
    for text in (
        f"| raw images by the judge | {row} |", "accuracy is 97.2%, the gate's 99.1%", "4.4% of the accepted images",
        "expected: 1.2%", "finds 93.0% of copies", "0.153 in features, 0.054 in structure", "images: 0.017 and 0.006",
    ):  # fmt: skip
        assert text in card, text
    assert fill_scores("no notice", evaluation) == "no notice"


def test_card_names_the_duplicates_of_the_data_set(evaluation):
    row = {"split": "val", "source": "train", "images": 9, "exact": 9, "near": 0, "relabelled": 0, "examples": [[0, 0]]}
    notice = f"- duplicates: {DUPLICATES_PLACEHOLDER}\n"
    assert fill_scores(notice, evaluation) == notice
    assert fill_scores(notice, {"duplicates": [row | {"exact": 0}]} | evaluation) == "- duplicates: none, exact or near\n"
    card = fill_scores(notice, {"duplicates": [row]} | evaluation)
    assert "9 of 9 validation images are exact copies of training images: validation scores will be too good" in card


def test_card_of_a_set_without_accepted_images(evaluation):
    card = fill_scores(SCORES_PLACEHOLDER, evaluation | {"sets": evaluation["sets"] | {"accepted": {"n_images": 0}}})
    assert "| accepted images by the judge | no images | |" in card
    assert "an unknown share of the accepted images" in card and "not defined in features" in card
