"""The comparison of experiments and the tables it writes into the README."""

from __future__ import annotations

import pytest

from pathsynth.compare import experiments, fill_readme, markdown, table
from pathsynth.errors import DataError


def _revision(rev, lora, judge, benchmark="phantom", seed=1):
    def score(f1):
        return {"macro_f1": f1, "macro_f1_low": f1 - 0.1, "macro_f1_high": f1 + 0.1, "n_images": 90}

    scores = score(0.5) | {"judge": score(judge), "filtered_judge": score(0.8), "untuned": score(0.2)}
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


def test_rows_are_sorted_by_the_judge_and_repeats_fold():
    frame = table(list(experiments(_shown())))
    assert list(frame["lora"]) == ["r4", "r8", "r4"]
    assert list(frame["benchmark"]) == ["other", "phantom", "phantom"]
    assert list(frame["judge_f1"]) == [0.9, 0.7, 0.6]
    assert list(frame["rev"])[2] == "a" * 40


def test_markdown_has_scores_with_intervals():
    line = markdown(table(list(experiments(_shown()))).query("benchmark == 'other'")).splitlines()[2]
    assert line == "| `r4` | plain | 0.500 (0.40 to 0.60) | 0.900 (0.80 to 1.00) | 0.800 | 0.200 | 75% | 2 | 90 |"


def test_readme_tables_are_replaced_between_marks_only():
    frame = table(list(experiments(_shown())))
    text = "before\n<!-- results: other -->\nold\n<!-- end -->\nafter\n"
    filled = fill_readme(text, frame)
    assert filled.startswith("before\n<!-- results: other -->\n| LoRA |") and filled.endswith("|\n<!-- end -->\nafter\n")
    assert "old" not in filled and fill_readme(filled, frame) == filled
    with pytest.raises(DataError, match="has a mark for moon, of which no experiment is known"):
        fill_readme("<!-- results: moon -->\n<!-- end -->", frame)
