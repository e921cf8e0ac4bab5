"""`python -m pathsynth readers`: files, page, table and errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from html_tags import HOSTILE, Tags
from readers.fake_answers import answer_truly, make_answers, make_key, make_preference_key, simulate_choices, write_files
from readers.test_accuracy import KEY

from pathsynth.__main__ import main

PAIRS = [("r8", "r16"), ("r8", HOSTILE), ("r16", HOSTILE)]


def run_readers(*args: object):
    return CliRunner().invoke(main, ["readers", *map(str, args)])


def study_files(folder: Path) -> tuple[list[Path], Path]:
    key = make_key(4, repeats=3)
    key["trials"][0]["gate"] = {"predicted": "mucus", "confidence": 0.5}
    wrong = answer_truly(key, origin="real", confidence=2)
    readers = [make_answers(key, answer_truly(key), name="=1+1"), make_answers(key, wrong[:20], reader=2, name=HOSTILE)]
    return write_files(folder, key, readers)


def preference_files(folder: Path) -> tuple[list[Path], Path]:
    key, rng = make_preference_key(PAIRS, slots=3), np.random.default_rng(0)
    strengths = {"r8": 0.0, "r16": 0.5, HOSTILE: 1.0}
    readers = [make_answers(key, simulate_choices(key, strengths, rng, ties=0.2), number, name=HOSTILE) for number in (1, 2, 3)]
    return write_files(folder, key, readers)


@pytest.fixture(scope="module", params=[study_files, preference_files])
def written(request, tmp_path_factory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("readers")
    files, key = request.param(folder)
    result = run_readers(*files, key, "--key", key, "--out", folder / "out")
    assert result.exit_code == 0, result.output
    return result.output, folder / "out"


def test_command_prints_a_table_and_writes_page_table_and_json(written):
    output, out = written
    assert "Intervals are over readers and images." in output and f"Open {out / 'readers.html'} in a browser." in output
    assert sorted(path.name for path in out.iterdir()) == ["readers.csv", "readers.html", "readers.json"]
    results = json.loads((out / "readers.json").read_text())
    table = pd.read_csv(out / "readers.csv")
    repeats = results["repeats"]["tissue"]["n_answers"] if results["kind"] == "study" else 0
    assert len(table) == results["counts"]["answers"] + repeats
    assert results["counts"]["readers"] == table["reader"].nunique()


def test_page_is_whole_self_contained_and_free_of_foreign_markup(written):
    page = (written[1] / "readers.html").read_text()
    tags = Tags(page)
    assert not {tag for tag, _ in tags.found} & {"script", "iframe", "object"}
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
    sources = [value for _, attributes in tags.found for name, value in attributes.items() if name in ("src", "href")]
    assert all(value.startswith(("data:", "#")) for value in sources)
    labels = [attributes.get("aria-label") for tag, attributes in tags.found if tag == "svg"]
    assert labels and all(labels)
    ids = [attributes["id"] for _, attributes in tags.found if "id" in attributes]
    assert len(set(ids)) == len(ids)


def test_table_of_answers_holds_no_formula_and_no_repeated_header(tmp_path):
    files, key = study_files(tmp_path)
    assert run_readers(*files, "--key", key, "--out", tmp_path / "out").exit_code == 0
    table = pd.read_csv(tmp_path / "out" / "readers.csv")
    assert table["name"][0] == "'=1+1" and len(table) == 47
    assert table["tissue_right"].mean() == 1.0 and table.loc[table["reader"] == "R2", "origin_right"].mean() == pytest.approx(
        0.6
    )


def test_incomplete_answers_are_used_and_counted(tmp_path):
    files, key = study_files(tmp_path)
    output = run_readers(*files, "--key", key).output
    assert "1 of 2 readers left 7 trials unanswered; the answers given are used." in output and "complete: 1" in output


def test_one_reader_says_that_intervals_cover_images_only(tmp_path):
    files, key = write_files(tmp_path, KEY, [make_answers(KEY, answer_truly(KEY))])
    result = run_readers(*files, "--key", key, "--out", tmp_path / "out")
    assert "over images only, because there is one reader" in result.output
    page = (tmp_path / "out" / "readers.html").read_text()
    assert "One reader stands for nobody else" in page and "Drawn phantoms, not tissue." in page
    # all answers agree, which is no certainty
    assert "none of 12" in result.output and "all of 12" in result.output


def test_equal_answers_give_equal_files(tmp_path):
    files, key = study_files(tmp_path)
    for out in ("first", "second"):
        run_readers(*files[:: 1 if out == "first" else -1], "--key", key, "--out", tmp_path / out)
    for name in ("readers.html", "readers.csv", "readers.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_errors_are_one_line_and_write_nothing(tmp_path):
    files, key = study_files(tmp_path)
    other = write_files(tmp_path / "x", make_key(4, study="6" * 64), []) if (tmp_path / "x").mkdir() is None else None
    assert other is not None
    damaged = tmp_path / "damaged.json"
    damaged.write_text("{")
    for paths, with_key in (
        (files, other[1]),
        ([damaged], key),
        ([tmp_path / "missing.json"], key),
        (files, damaged),
        ([key], key),
    ):
        result = run_readers(*paths, "--key", with_key, "--out", tmp_path / "out")
        assert result.exit_code == 1 and result.output.startswith("error: ") and "\n" not in result.output.strip()
        assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    assert "is not empty" in run_readers(*files, "--key", key, "--out", tmp_path / "out").output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_designs_without_a_common_ranking_are_shown(tmp_path):
    key = make_preference_key([("r8", "r16"), ("sd", "xl")])
    answers = simulate_choices(key, {"r8": 0, "r16": 0, "sd": 0, "xl": 0}, np.random.default_rng(0))
    files, path = write_files(tmp_path, key, [make_answers(key, answers)])
    result = run_readers(*files, "--key", path, "--out", tmp_path / "out")
    assert result.exit_code == 0 and "never compared with each other: r8, r16 | sd, xl" in result.output
    Tags((tmp_path / "out" / "readers.html").read_text())


def test_power_table():
    result = run_readers("--power", "--readers", "2,4", "--images", "20,40", "--simulations", "3", "--rate", "0.3")
    assert result.exit_code == 0, result.output
    assert "Readers  20 synthetic images" in result.output and "3 studies per cell" in result.output


def test_smallest_studies_have_a_width():
    result = run_readers("--power", "--readers", "1,2", "--images", "2", "--simulations", "2")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "FILES and --key are required"),
        (["answers.json"], "FILES and --key are required"),
        (["--power", "answers.json"], "--power simulates"),
        (["--power", "--readers", "two"], "'two' is not a list of integers such as 1,3,5"),
        (["--power", "--images", "1"], "1: allowed are 2 to 10,000"),
        (["--power", "--readers", "0,5"], "0,5: allowed are 1 to 1,000"),
    ],
)
def test_wrong_options_have_a_sentence(args, message):
    result = run_readers(*args)
    assert result.exit_code == 2 and message in result.output
