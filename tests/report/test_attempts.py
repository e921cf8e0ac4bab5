"""Attempts matched to the images that they drew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pathsynth.core.errors import DataError
from pathsynth.report.attempts import match_attempts

PATH = Path("attempts.csv")
SLUGS = ("debris", "mucus")
ATTEMPTS = pd.DataFrame({
    "tissue": ["debris", "mucus", "mucus", "mucus"],
    "slot": [0, 0, 0, 1],
    "attempt": [0, 0, 1, 0],
    "accepted": [0, 0, 1, 1],
    "seed": [11, 12, 13, 14],
})  # fmt: skip


@pytest.mark.parametrize(("selection", "labels", "seeds"), [("raw", [0, 1, 1], [11, 12, 14]), ("accepted", [1, 1], [13, 14])])
def test_rows_are_those_of_the_images_in_their_order(selection, labels, seeds):
    rows = match_attempts(PATH, ATTEMPTS, selection, np.array(labels), SLUGS)
    assert rows["seed"].tolist() == seeds and rows.index.tolist() == list(range(len(seeds)))


@pytest.mark.parametrize("labels", [[0, 1], [1], [1, 1, 1]])
def test_attempts_at_other_images_are_refused(labels):
    with pytest.raises(DataError, match=rf"attempts\.csv: does not list the {len(labels)} images of accepted\.npz"):
        match_attempts(PATH, ATTEMPTS, "accepted", np.array(labels), SLUGS)
