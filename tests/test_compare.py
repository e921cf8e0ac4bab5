"""The comparison of experiments: the table, its page, and what it writes into the README."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_results import SLUGS, write_run
from test_report import HOSTILE, Tags

from pathsynth import compare, labels
from pathsynth.compare import UNSAVED, experiments, fill_readme, markdown, table
from pathsynth.compare_page import paired_tests, render_comparison
from pathsynth.errors import DataError


def _revision(rev, lora, gate, benchmark="phantom", seed=1):
    def score(f1):
        return {"macro_f1": f1, "macro_f1_low": f1 - 0.1, "macro_f1_high": f1 + 0.1, "n_images": 90}

    scores = score(gate) | {"judge": score(0.5), "filtered_judge": score(0.8), "untuned": score(0.2)}
    params = {
        "benchmark": benchmark,
        "lora": lora,
        "seed": seed,
        "benchmarks": {benchmark: {}},
        "loras": {lora: {"prompts": "plain"}},
    }
    counts = {"acceptance_rate": 0.75, "unfilled": 2}
    data = {
        "params": {"params.yaml": {"data": params}},
        "metrics": {"metrics/evaluation.json": {"data": scores}, "metrics/generation.json": {"data": counts}},
    }
    return {"rev": rev, "data": data}


def _shown():
    unfinished = {"rev": "e" * 40, "data": None}
    inner = {"revs": [_revision("b" * 40, "r8", 0.7)], "executor": {"state": "success"}}
    running = {"revs": [_revision("d" * 40, "r64", 0.6)], "executor": {"state": "running"}}
    return [
        _revision("workspace", "r4", 0.6) | {"experiments": None},
        _revision("a" * 40, "r4", 0.6) | {"experiments": [inner, running, {"revs": [unfinished]}]},
        _revision("c" * 40, "r4", 0.9, benchmark="other") | {"experiments": []},
    ]


def _old(rev):
    """A commit that knew the headline and nothing else."""
    params = {"benchmark": "phantom", "lora": "old"}
    files = {"params": {"params.yaml": {"data": params}}, "metrics": {"metrics/evaluation.json": {"data": {"macro_f1": 0.4}}}}
    return {"rev": rev, "data": files}


@pytest.fixture(scope="module")
def commits(tmp_path_factory) -> dict[str, Path]:
    """Three commits as folders: two configurations that differ, and one without tables and newer metrics."""
    folder = tmp_path_factory.mktemp("commits")
    found = {letter * 40: write_run(folder / letter, seed, skill) for letter, seed, skill in (("a", 0, 1.0), ("b", 1, 0.0))}
    return found | {"c" * 40: folder / "c"}


@pytest.fixture(scope="module")
def rows(commits: dict[str, Path]) -> list[dict]:
    """Rows of the table of these commits."""
    shown = []
    for (rev, folder), lora in zip(list(commits.items())[:2], ("good", "bad"), strict=True):
        dataset = {"source": "phantom", "labels": "pathmnist"}
        loras = {lora: {"prompts": "plain"}}
        params = {
            "benchmark": "phantom",
            "lora": lora,
            "seed": 7,
            "benchmarks": {"phantom": {"dataset": dataset}},
            "loras": loras,
        }
        metrics = {f"metrics/{path.name}": {"data": json.loads(path.read_text())} for path in (folder / "metrics").iterdir()}
        shown.append({"rev": rev, "data": {"params": {"params.yaml": {"data": params}}, "metrics": metrics}})
    shown.append(_old("c" * 40))
    return table(list(experiments(shown))).to_dict("records")


@pytest.fixture(scope="module")
def file_of(commits: dict[str, Path]):
    def read(rev: str, path: str) -> bytes | None:
        file = commits[rev] / path
        return file.read_bytes() if file.is_file() else None

    return read


def test_rows_are_sorted_by_the_headline_and_repeats_fold():
    frame = table(list(experiments(_shown())))
    assert list(frame["lora"]) == ["r4", "r8", "r4"]
    assert list(frame["benchmark"]) == ["other", "phantom", "phantom"]
    assert list(frame["macro_f1"]) == [0.9, 0.7, 0.6]
    assert list(frame["rev"])[2] == "a" * 40


def test_markdown_has_scores_with_intervals():
    line = markdown(table(list(experiments(_shown()))).query("benchmark == 'other'")).splitlines()[2]
    assert line == "| `r4` | plain | 0.900 (0.80 to 1.00) | 0.500 (0.40 to 0.60) | 0.800 | 0.200 | 75% | 2 | 90 |"


def test_commit_without_newer_files_is_shown_with_what_it_has():
    frame = table(list(experiments([*_shown(), _old("f" * 40)])))
    assert markdown(frame).splitlines()[-1] == "| `old` | - | 0.400 | - | - | - | - | - | - |"
    assert "macro_f1" in frame.drop(columns=UNSAVED).columns


def test_readme_tables_are_replaced_between_marks_only():
    frame = table(list(experiments(_shown())))
    text = "before\n<!-- results: other -->\nold\n<!-- end -->\nafter\n"
    filled = fill_readme(text, frame)
    assert filled.startswith("before\n<!-- results: other -->\n| LoRA |") and filled.endswith("|\n<!-- end -->\nafter\n")
    assert "old" not in filled and fill_readme(filled, frame) == filled
    with pytest.raises(DataError, match="has a mark for moon, of which no experiment is known"):
        fill_readme("<!-- results: moon -->\n<!-- end -->", frame)


def test_better_set_is_told_from_the_worse_by_images_that_belong_together(rows, file_of):
    named = [row | {"name": row["lora"]} for row in rows]
    assert [row["lora"] for row in rows] == ["good", "bad", "old"]
    bad, old = paired_tests(named, SLUGS, file_of)
    assert bad["gate"]["difference"] > 0.05 and bad["gate"]["p"] < 0.05
    assert bad["judge"]["difference"] == pytest.approx(rows[0]["judge_f1"] - rows[1]["judge_f1"], abs=1e-5)
    assert "good is better than bad at n = 180" in bad["sentence"]
    assert old == {"name": "old", "why": "no table of raw images of old"}
    (same,) = paired_tests([named[0], named[0]], SLUGS, file_of)
    assert same["judge"] == {"difference": 0.0, "p": 1.0}


def test_sets_of_other_slots_or_tissues_are_not_paired(rows, file_of):
    named = [row | {"name": row["lora"]} for row in rows[:2]]

    def fewer(rev: str, path: str) -> bytes | None:
        data = file_of(rev, path)
        return data if rev == named[0]["rev"] or data is None else b"\n".join(data.splitlines()[:-1])

    def damaged(rev: str, path: str) -> bytes | None:
        return b"\xff\xfe" if rev == named[1]["rev"] else file_of(rev, path)

    assert paired_tests(named, SLUGS, fewer) == [{"name": "bad", "why": "not the same prompts and slots"}]
    assert paired_tests(named, SLUGS[:5], file_of) == [{"name": "bad", "why": "not the same prompts and slots"}]
    assert paired_tests(named, SLUGS, damaged) == [{"name": "bad", "why": "no table of raw images of bad"}]


def test_page_shows_every_experiment_its_plates_and_the_tests(rows, file_of):
    page = render_comparison(rows, file_of)
    found = Tags(page).found
    for text in (
        "Benchmark phantom",
        "Stand-in data",
        "good is better than bad",
        "41.2",
        "0.700",
        "1,056,256",
        "97.2 %",
        "old",
    ):
        assert text in page, text
    for label in labels.PATHMNIST:
        assert f"<summary>{label}</summary>" in page
    pictures = [attributes for tag, attributes in found if tag == "img"]
    assert len(pictures) == 3 * len(SLUGS)
    assert {picture["width"] for picture in pictures} == {"296"}
    ids = [attributes["id"] for _, attributes in found if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert page == render_comparison(rows, file_of)


def test_names_are_only_text_and_missing_files_only_missing(rows):
    hostile = [row | {"lora": HOSTILE, "benchmark": HOSTILE, "prompts": HOSTILE} for row in rows]
    page = render_comparison(hostile, lambda rev, path: None)
    assert "script" not in [tag for tag, _ in Tags(page).found]
    assert f"seed 7, {'a' * 7}" in page and "no table of raw images" in page


def test_command_prints_and_writes_the_page(commits, file_of, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def output(*command: str) -> bytes:
        if command[0] == "git":
            rev, path = command[2].split(":")
            if (data := file_of(rev, path)) is None:
                raise DataError("git show", "no such path")
            return data
        return json.dumps([_old("c" * 40)]).encode()

    monkeypatch.setattr(compare, "_output", output)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(compare.main, [])
    assert result.exit_code == 0, result.output
    assert "| `old` | - | 0.400" in result.output and "open reports/compare.html in a browser" in result.output
    Tags((tmp_path / "reports" / "compare.html").read_text(encoding="utf-8"))
    result = CliRunner().invoke(compare.main, ["--report", "a/b.html"])
    assert result.exit_code == 0 and (tmp_path / "a" / "b.html").is_file()


def test_file_of_a_commit_comes_from_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    (tmp_path / "a.csv").write_bytes(b"1\r\n\xff")
    for command in (["init", "-q"], ["add", "a.csv"], [*identity, "commit", "-q", "-m", "one"]):
        subprocess.run(["git", *command], check=True)
    (tmp_path / "a.csv").unlink()
    assert compare.file_of("HEAD", "a.csv") == b"1\r\n\xff"
    assert compare.file_of("HEAD", "b.csv") is None
