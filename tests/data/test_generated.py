"""Generated sets and their tables of attempts, and subsampling by tissue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pathsynth.core.errors import DataError
from pathsynth.core.io import write_csv
from pathsynth.data.archives import write_archive
from pathsynth.data.generated import GeneratedSets, LabelledImages, check_labels, read_attempts, read_sets, select_rejected
from pathsynth.data.sampling import proportional_counts, subsample_per_class

SLUGS = ("mucus", "debris", "stroma")
IMAGES = LabelledImages(
    np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8), np.array([0, 0, 1, 1, 2, 2], np.uint8)
)


@pytest.fixture
def attempts() -> pd.DataFrame:
    """First attempts of two slots per tissue, the first of which is rejected and then accepted."""
    rows = []
    for tissue in SLUGS:
        row = {"tissue": tissue, "seed": 1, "predicted": tissue, "confidence": 0.9}
        rows += [row | {"slot": 0, "attempt": 0, "accepted": 0}, row | {"slot": 0, "attempt": 1, "accepted": 1}]
        rows.append(row | {"slot": 1, "attempt": 0, "accepted": 1})
    return pd.DataFrame(rows)


def test_sets_are_read_from_the_outputs_of_the_stages(attempts: pd.DataFrame, tmp_path: Path):
    for name in ("generated/raw", "generated/accepted", "controls/untuned", "controls/paraphrased"):
        write_archive(tmp_path / f"{name}.npz", IMAGES.images, IMAGES.labels)
    write_csv(tmp_path / "generated" / "attempts.csv", attempts)
    sets = read_sets(*(tmp_path / name for name in ("generated", "controls", "unpacked")))
    assert list(sets.by_name) == ["raw", "accepted", "untuned", "paraphrased"]
    for images in sets.by_name.values():
        np.testing.assert_array_equal(images.images, IMAGES.images)
    assert sets.slots("raw").tolist() == sets.slots("accepted").tolist() == [0, 1] * 3


def test_slots_without_a_table_are_counted():
    assert GeneratedSets(IMAGES, IMAGES).slots("raw").tolist() == [0, 1] * 3


def test_label_outside_the_tissues_is_one_line_error():
    with pytest.raises(DataError, match=r"raw\.npz: label 2 is not in 0 to 1: 0 mucus, 1 debris$"):
        check_labels("raw.npz", IMAGES.labels, SLUGS[:2])


def test_table_of_attempts_round_trips_and_damage_is_one_line_error(attempts: pd.DataFrame, tmp_path: Path):
    path = tmp_path / "attempts.csv"
    write_csv(path, attempts)
    pd.testing.assert_frame_equal(read_attempts(path), attempts, check_dtype=False)
    write_csv(path, attempts[["tissue", "slot"]])
    with pytest.raises(DataError, match="has no column attempt, seed, predicted, confidence, accepted"):
        read_attempts(path)
    path.write_text("")
    for damaged in (path, tmp_path / "missing.csv"):
        with pytest.raises(DataError) as caught:
            read_attempts(damaged)
        assert "\n" not in str(caught.value)


def test_rejected_images_are_the_first_of_each_tissue():
    rejected = select_rejected(IMAGES, np.array([1, 2, 1, 1, 2, 0]), SLUGS, 1)
    assert [of_tissue.predicted for of_tissue in rejected] == [("debris",), (), ("mucus",)]
    np.testing.assert_array_equal(rejected[2].images, IMAGES.images[5:])


def test_subsample_is_drawn_within_each_tissue_by_seed():
    labels, counts = np.repeat([0, 1, 2], [5, 50, 2]), np.array([5, 10, 9])
    some = subsample_per_class(labels, counts, 1)
    assert np.bincount(labels[some]).tolist() == [5, 10, 2] and (np.diff(some) > 0).all()
    assert subsample_per_class(labels, counts, 1).tolist() == some.tolist()
    assert subsample_per_class(labels, counts, 2).tolist() != some.tolist()
    assert some[5:15].tolist() != list(range(5, 15)), "not the first ones"
    assert subsample_per_class(labels, np.zeros(3, int), 1).tolist() == []


def test_proportional_counts_are_limited_by_the_scarcest_tissue():
    available, wanted = np.array([100, 400, 50]), np.array([10, 10, 10])
    assert proportional_counts(available, wanted).tolist() == [50, 50, 50]
    assert proportional_counts(available, wanted, 1.0).tolist() == [10, 10, 10]
    assert proportional_counts(available, np.array([0, 30, 10])).tolist() == [0, 150, 50]
    assert proportional_counts(np.array([3, 9]), np.array([90, 1])).tolist() == [3, 1]
    assert proportional_counts(available, np.zeros(3, int)).tolist() == [0, 0, 0]
