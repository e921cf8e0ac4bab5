"""The table of anchors beside generated images."""

from __future__ import annotations

import pytest
from fake_results import write_run

from pathsynth.core.metric_files import read_details
from pathsynth.report.anchors import COLUMNS, build_anchor_table


def test_table_has_a_row_per_set_and_every_score(tmp_path):
    write_run(tmp_path)
    anchors = read_details(tmp_path / "metrics" / "anchors" / "tiny.json")
    evaluation = read_details(tmp_path / "metrics" / "evaluation.json")
    table = build_anchor_table(anchors, evaluation)
    assert [row[0] for row in table.rows] == [
        "Real, validation", "Real, test", "VAE copies", "Moved copies",
        "Shuffled 4 x 4", "Shuffled 8 x 8", "Shuffled pixels", "Random phases",
        "Untuned base", "Generated, raw", "Generated, accepted",
    ]  # fmt: skip
    assert len(table.head) == 1 + len(COLUMNS) == len(table.rows[0])
    assert "-" not in [str(cell) for row in table.rows for cell in row]
    raw = evaluation["sets"]["raw"]
    named = dict(zip(table.head, map(str, table.rows[-2]), strict=True))
    assert str(table.rows[-1][1]) == f"{evaluation['sets']['accepted']['gate']['macro_f1']:.3f} (by construction)"
    assert named["Gate F1"] == f"{raw['gate']['macro_f1']:.3f}" and named["Copies, pixels"] == "4.4 %"
    # the mean over tissues of the grey levels of generated images
    spreads = [row["generated"] for row in raw["colour_spread"]["per_tissue"].values()]
    assert float(named["Colour spread, grey levels"]) == pytest.approx(sum(spreads) / len(spreads), rel=0.01)


def test_sets_that_were_not_scored_have_no_row_and_undefined_scores_a_dash():
    found = {"two_sample_auc": {"undefined": "few images"}, "colour_spread": {"per_tissue": {}}, "judge": {"macro_f1": 0.5}}
    table = build_anchor_table({"sets": {"test": {"n_images": 3, **found}}}, {"sets": {"raw": {"n_images": 0}}})
    assert [(row[0], str(row[2]), str(row[1])) for row in table.rows] == [
        ("Real, test", "0.500", "-"),
        ("Generated, raw", "-", "-"),
    ]
    assert {str(cell) for row in table.rows for cell in row[3:]} == {"-"}
    with pytest.raises(KeyError, match="sets"):
        build_anchor_table({}, {"sets": {}})
