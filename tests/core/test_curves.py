"""Training curves on disk while a training runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from pathsynth.core.curves import Curves
from pathsynth.core.errors import DataError


def test_point_is_on_disk_before_the_next_step(tmp_path: Path):
    table = tmp_path / "curves" / "plots" / "metrics" / "train" / "loss.tsv"
    with Curves(tmp_path / "curves") as curves:
        for count, step in enumerate((10, 20, 25), 1):
            curves(step, {"train/loss": 1 / step})
            lines = table.read_text(encoding="utf-8").splitlines()
            assert len(lines) == 1 + count
    assert [line.split("\t")[0] for line in lines] == ["step", "10", "20", "25"]
    # DVC would draw a summary as a curve of one point
    assert [path.name for path in (tmp_path / "curves").rglob("*") if path.is_file()] == ["loss.tsv"]


def test_silent_curves_write_nothing(tmp_path: Path):
    with Curves(tmp_path / "curves", silent=True) as curves:
        curves(1, {"train/loss": 1.0})
    assert not (tmp_path / "curves").exists()


def test_folder_that_cannot_be_created_is_one_line_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file: could not be written: "):
        Curves(tmp_path / "file")
