"""Division by share: exact without groups, near the shares with groups, and every class in every split."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathsynth.sources.division import divide_images

SLUGS = ("a", "b", "c")
SHARES = {"val": 0.1, "test": 0.2}


def test_images_without_groups_are_divided_exactly_and_at_random():
    labels = np.repeat([0, 1, 2], [40, 100, 200])
    divided = divide_images(labels, np.arange(340), SHARES, 1, SLUGS)
    counts = {split: np.bincount(labels[indices]).tolist() for split, indices in divided.items()}
    assert counts == {"train": [28, 70, 140], "val": [4, 10, 20], "test": [8, 20, 40]}
    assert sorted(np.concatenate(list(divided.values()))) == list(range(340))
    again, other = (divide_images(labels, np.arange(340), SHARES, seed, SLUGS)["val"] for seed in (1, 2))
    np.testing.assert_array_equal(again, divided["val"])
    # neither the same nor the first images
    assert set(other) != set(again) != set(range(4)) | set(range(40, 50)) | set(range(140, 160))


def test_groups_of_unequal_size_come_near_to_the_shares():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 200, 60)
    groups = np.repeat(np.arange(60), sizes)
    labels = rng.integers(0, 3, len(groups))
    divided = divide_images(labels, groups, SHARES, 1, SLUGS)
    for split, share in SHARES.items():
        found = np.bincount(labels[divided[split]]) / np.bincount(labels)
        np.testing.assert_allclose(found, share, atol=0.01)
        assert set(groups[divided[split]]).isdisjoint(groups[divided["train"]])


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=9, max_size=12), st.integers(0, 9))
def test_every_split_has_every_class_and_every_group_one_split(contents, seed):
    # three groups of each class make it possible
    contents = [*contents, *([label] for label in (0, 1, 2) * 3)]
    labels, groups = np.concatenate(contents), np.repeat(np.arange(len(contents)), [len(part) for part in contents])
    divided = divide_images(labels, groups, SHARES, seed, SLUGS)
    assert sorted(np.concatenate(list(divided.values()))) == list(range(len(labels)))
    assert all(set(labels[indices]) == {0, 1, 2} for indices in divided.values())
    assert sum(len(set(groups[indices])) for indices in divided.values()) == len(contents)


@pytest.mark.parametrize(
    ("groups", "problem"),
    [
        (np.arange(8), "c has only 2 images, but train, val, test need at least one each"),
        ([0, 1, 2, 0, 1, 2, 0, 1], "c has only 2 groups, but train, val, test need at least one each"),
        ([0, 0, 0, 0, 0, 0, 0, 0], "a has only 1 group, but"),
    ],
)
def test_too_few_are_an_error_that_names_the_class(groups, problem):
    with pytest.raises(ValueError, match=problem):
        divide_images(np.array([0, 0, 0, 1, 1, 1, 2, 2]), np.array(groups), SHARES, 1, SLUGS)


def test_groups_that_cannot_be_divided_are_an_error():
    # every class is in three groups, but of groups 1 to 3, which have two classes each, a split needs two
    labels, groups = np.array([0, 1, 2, 0, 1, 0, 2, 1, 2]), np.array([0, 0, 0, 1, 1, 2, 2, 3, 3])
    with pytest.raises(ValueError, match="has too few groups to give each of train, val, test an image of every class"):
        divide_images(labels, groups, SHARES, 1, SLUGS)
