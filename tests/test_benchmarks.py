"""The benchmark suite: its arithmetic, and every part against its peer on a tiny base."""

from __future__ import annotations

import json
import shutil

import pytest
from click.testing import CliRunner
from conftest import ROOT, write_yaml

from benchmarks import accepted, classifier_training, generation, lora_training
from benchmarks.__main__ import PARTS, main
from benchmarks.pairs import compared, fill, in_turns, markdown
from pathsynth.params import read_yaml


def test_a_ratio_is_the_median_of_the_rounds_not_the_ratio_of_the_medians():
    row = compared("part", "peer", "images/s", {"ours": [10.0, 30.0, 20.0], "theirs": [5.0, 10.0, 20.0]})
    assert (row.ours, row.theirs, row.ratio, row.spread, row.n) == (20.0, 10.0, 2.0, "1.00 to 3.00", 3)
    assert markdown([row]).splitlines()[2] == "| part | peer | 20 | 10 | images/s | 2.00 (1.00 to 3.00) | 3 |"


def test_both_work_in_turns_and_the_first_turn_does_not_count():
    order: list[str] = []

    def contestant(name):
        def prepare():
            order.append(f"ready {name}")
            return lambda: order.append(name) or 1

        return prepare

    row = in_turns("part", "peer", "units/s", contestant("a"), contestant("b"), rounds=2)
    assert order == ["ready a", "a", "ready b", "b"] * 3
    assert row.n == 2


def test_every_part_runs_and_all_rows_are_in_one_file(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(lora_training, "IMAGES", 12)
    monkeypatch.setattr(lora_training, "EPOCHS", 1)
    monkeypatch.setattr(generation, "IMAGES_PER_PROMPT", 1)
    monkeypatch.setattr(accepted, "IMAGES_PER_TISSUE", 1)
    monkeypatch.setattr(classifier_training, "IMAGES", 128)
    # a gate that has learnt nothing sees the same tissue nearly everywhere, and the peer's images of it need some tries
    tree = read_yaml(finished / "params.yaml")
    tree["benchmarks"]["tiny"]["generation"]["max_attempts"] = 4
    write_yaml(tmp_path / "params.yaml", tree)
    (tmp_path / "models").symlink_to(finished / "models")
    out = tmp_path / "rows.json"
    args = ["--params", str(tmp_path / "params.yaml"), "--rounds", "2", "--out", str(out)]
    done = CliRunner().invoke(main, args, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    content = json.loads(out.read_text())
    assert len(content["rows"]) == len(PARTS)
    for row in content["rows"].values():
        assert row["ours"] > 0 and row["theirs"] > 0 and row["n"] == 2
        assert row["part"] in done.output
    assert content["versions"]["torch"] and content["machine"] and content["lora"] == "r2"


@pytest.mark.parametrize("arguments", [["moon"], ["--rounds", "1"]])
def test_unknown_parts_and_too_few_rounds_are_refused(arguments):
    assert CliRunner().invoke(main, arguments).exit_code == 2


def test_missing_models_are_one_line(finished, tmp_path):
    shutil.copy(finished / "params.yaml", tmp_path)
    done = CliRunner().invoke(main, ["accepted", "--params", str(tmp_path / "params.yaml"), "--out", str(tmp_path / "x.json")])
    assert done.exit_code == 1 and "run the stage train_classifier first" in done.output
    assert not (tmp_path / "x.json").exists()


def test_the_page_shows_the_committed_results():
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    assert "<!-- bench: cpu -->" in text and fill(text, ROOT / "benchmarks" / "results") == text
