"""The headline of a run, and the files of details that DVC shows no columns of."""

from __future__ import annotations

import json

import pytest
from conftest import run_stage

from pathsynth.core.errors import DataError
from pathsynth.core.metric_files import read_details, write_details
from pathsynth.data import labels
from pathsynth.evaluation.headline import COLUMNS


def test_the_headline_is_short_and_is_what_the_details_say(finished):
    headline = json.loads((finished / "metrics" / "headline.json").read_text())
    evaluation = read_details(finished / "metrics" / "evaluation.json")
    assert list(headline) == [*(name for name in COLUMNS if name in headline), "f1"] and next(iter(headline)) == "macro_f1"
    assert headline["macro_f1"] == evaluation["macro_f1"] and headline["judge_f1"] == evaluation["judge"]["macro_f1"]
    assert headline["acceptance_rate"] == read_details(finished / "metrics" / "generation.json")["acceptance_rate"]
    assert headline["f1"] == {slug: evaluation["per_tissue"][slug]["f1"] for slug in labels.SLUGS}


def test_what_was_not_measured_is_left_out(finished, tmp_path):
    write_details(tmp_path / "evaluation.json", {"macro_f1": 0.5})
    write_details(tmp_path / "none.json", {})
    args = ("--generation", tmp_path / "none.json", "--usefulness", tmp_path / "none.json", "--out", tmp_path / "out.json")
    assert run_stage("headline", "--evaluation", tmp_path / "evaluation.json", *args).exit_code == 0
    assert json.loads((tmp_path / "out.json").read_text()) == {"macro_f1": 0.5, "f1": {}}


def test_details_are_a_list_of_one_object_and_an_object_is_read_as_well(tmp_path):
    path = tmp_path / "a.json"
    write_details(path, {"a": 1})
    assert json.loads(path.read_text()) == [{"a": 1}] and read_details(path) == {"a": 1}
    path.write_text('{"a": 1}')
    assert read_details(path) == {"a": 1}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "holds a JSON list, not an object"),
        ("[1]", "holds a JSON int, not an object"),
        ('[{"a": 1}, {}]', "holds a JSON list, not an object"),
        ('[{"a": 1e999}]', "0.a: not a finite number"),
        ("[", "is not JSON"),
    ],
)
def test_other_files_are_refused(content, said, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(DataError, match=said):
        read_details(path)
