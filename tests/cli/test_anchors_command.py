"""`python -m pathsynth anchors`: scores of real images, copies and images without structure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from pathsynth.__main__ import main
from pathsynth.core.metric_files import read_details


def run_anchors(finished: Path, out: Path, **changed: Path):
    places = {"prepared": "data/prepared", "observed": "data/observed", "models": "models", "params_path": "params.yaml"}
    folders = {name: finished / place for name, place in places.items()} | changed
    args = [word for name, path in folders.items() for word in (f"--{name.removesuffix('_path')}", str(path))]
    return CliRunner().invoke(main, ["anchors", *args, "--out", str(out), "--scratch", str(out.parent / "scratch")])


@pytest.fixture(scope="module")
def anchors(finished, tmp_path_factory) -> dict:
    out = tmp_path_factory.mktemp("anchors") / "out"
    result = run_anchors(finished, out)
    assert result.exit_code == 0, result.output
    assert not list(out.parent.joinpath("scratch").iterdir())
    written = json.loads((out / "tiny.json").read_text())
    assert written["real_images"] == read_details(finished / "metrics" / "evaluation.json")["real_images"]
    return written["sets"]


def test_every_set_is_scored_like_generated_images(anchors, finished):
    assert list(anchors) == [
        "val", "test", "vae_copies", "moved_copies", "shuffled_4x4", "shuffled_8x8", "shuffled_pixels", "random_phases"
    ]  # fmt: skip
    raw = read_details(finished / "metrics" / "evaluation.json")["sets"]["raw"]
    for scores in anchors.values():
        assert set(scores) == set(raw)


def test_real_images_have_the_scores_of_the_evaluation(anchors, finished):
    sets = read_details(finished / "metrics" / "evaluation.json")["sets"]
    for split in ("val", "test"):
        assert anchors[split] == sets[split]


def test_shuffles_keep_colours_and_change_structure(anchors):
    assert anchors["shuffled_pixels"]["colour"] == anchors["val"]["colour"]
    assert anchors["shuffled_pixels"]["orientation"] != anchors["val"]["orientation"]


def test_missing_observations_are_one_line_error(finished, tmp_path):
    result = run_anchors(finished, tmp_path / "out", observed=tmp_path)
    assert result.exit_code == 1 and "card.json" in result.output and "\n" not in result.output.strip()
    assert not (tmp_path / "out").exists()
