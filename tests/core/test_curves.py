"""Training curves: what is on disk while a training goes on."""

from __future__ import annotations

from pathlib import Path

from pathsynth.core.curves import Curves


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_a_point_is_on_disk_before_the_next_step_begins(tmp_path: Path):
    table = tmp_path / "curves" / "plots" / "metrics" / "train" / "loss.tsv"
    with Curves(tmp_path / "curves") as curves:
        for count, step in enumerate((10, 20, 25), 1):
            curves(step, {"train/loss": 1 / step})
            assert len(_lines(table)) == 1 + count
    assert _lines(table)[0] == "step\tloss" and [line.split("\t")[0] for line in _lines(table)[1:]] == ["10", "20", "25"]
    # DVC would draw a summary as a curve of one point
    assert [path.name for path in (tmp_path / "curves").rglob("*") if path.is_file()] == ["loss.tsv"]


def test_processes_that_are_silent_write_nothing(tmp_path: Path):
    with Curves(tmp_path / "curves", silent=True) as curves:
        curves(1, {"train/loss": 1.0})
    assert not (tmp_path / "curves").exists()
