"""Tables: the same rows as text, Markdown and HTML, and the summary of a run in the terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_results import SLUGS, write_run
from html_tags import Tags

from pathsynth.cli.summary import summary
from pathsynth.report.pages import _environment, interval
from pathsynth.report.tables import Cell, Table, build_comparison_table, to_markdown, to_text

TABLE = Table(
    ("Set", "F1", "Images"), [("raw|<b>", Cell("0.9", "0.8 to 1"), Cell("3", alert=True))], ("all", "0.9", "3"), [("Scores", 2)]
)


def test_text_has_columns_of_fixed_width_and_a_rule_above_the_total():
    assert to_text(TABLE).splitlines() == [
        "Set                  F1  Images",
        "-------  --------------  ------",
        "raw|<b>  0.9 (0.8 to 1)       3",
        "-------  --------------  ------",
        "all                 0.9       3",
    ]


def test_markdown_escapes_cells():
    assert to_markdown(TABLE).splitlines()[2] == r"| raw\|&lt;b&gt; | 0.9 (0.8 to 1) | 3 |"


def test_html_has_the_same_cells():
    macro = _environment("pathsynth.report").get_template("macros.html.j2").module.html_table
    html = str(macro(TABLE, "Scores", "dense"))
    assert '<th scope="row">raw|&lt;b&gt;</th><td class="first">0.9<small>0.8 to 1</small></td><td class="alert">3</td>' in html
    assert html.count("<tr") == 4 and 'colspan="2">Scores' in html
    Tags(html)


def test_selected_columns_keep_rows_and_total():
    assert TABLE.select_columns(0, 2) == Table(["Set", "Images"], [["raw|<b>", Cell("3", alert=True)]], ["all", "3"])


@pytest.mark.parametrize(
    ("low", "high", "count", "text"),
    [
        (0.5, 0.75, 9, "0.50 to 0.75"),
        (0.996, 1.0, 9, "0.996 to 1.000"),
        (1.0, 1.0, 1200, "all of 1,200"),
        (0.0, 0.0, 50, "none of 50"),
        (1.0, 1.0, None, ""),
        (0.4, 0.4, 50, ""),
        (None, 1.0, 50, ""),
    ],
)
def test_interval(low: float | None, high: float, count: int | None, text: str):
    assert interval(low, high, count) == text


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    return write_run(tmp_path) / "metrics"


def test_comparison_of_generated_and_real_images(metrics):
    evaluation, usefulness = (json.loads((metrics / f"{name}.json").read_text()) for name in ("evaluation", "usefulness"))
    evaluation["sets"]["raw"]["features"].pop("coverage")
    evaluation["sets"]["raw"]["features"]["undefined"] = {"coverage": "3 images: at least 6 are needed"}
    text = to_markdown(build_comparison_table(evaluation, usefulness))
    for part in (
        "| Kernel distance, features of judge | 0.17 (0.153 to 0.187) | validation 0.017, test 0.051 |",
        "| Kernel distance, structure features | 0.06 (0.054 to 0.066) | validation 0.006, test 0.018 |",
        "not defined (3 images: at least 6 are needed)",
        "| Close to a training image, pixels | 4.4 % (2.2 % to 10.0 %) | 1.2 % expected, 93.0 % of moved copies |",
        "| Macro F1 that accepted images add to few real ones, probe | +0.031 (+0.023 to +0.039) | more real images add +0.050",
    ):
        assert part in text, text


def run_summary(metrics: Path):
    return CliRunner().invoke(summary, [f"--{name}={metrics / f'{name}.json'}" for name in ("evaluation", "generation")])


def test_summary_lists_classes_and_sets(metrics):
    evaluation = json.loads((metrics / "evaluation.json").read_text())
    evaluation["sets"]["accepted"] = {"n_images": 0}
    (metrics / "evaluation.json").write_text(json.dumps(evaluation))
    result = run_summary(metrics)
    assert result.exit_code == 0, result.output
    rows = {line.split("  ")[0]: line.split() for line in result.output.splitlines()}
    for slug in SLUGS:
        f1 = evaluation["sets"]["raw"]["judge"]["per_tissue"][slug]["f1"]
        assert rows[slug][1] == f"{f1:.3f}" and rows[slug][-3:] == ["45", "%", "2"]
    assert rows["Untuned base, judge"][-1] == "180" and rows["Accepted, judge"][-2:] == ["-", "0"]
    assert "overview.png" in result.output.splitlines()[-1]


def test_summary_of_incomplete_metrics_is_one_line_error(metrics):
    (metrics / "generation.json").write_text("{}")
    result = run_summary(metrics)
    assert result.exit_code == 1 and result.stderr.count("\n") == 1 and "Run the stage evaluate" in result.stderr
