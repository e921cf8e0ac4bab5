"""Labels: those of MedMNIST's sets, or a list of one's own."""

from __future__ import annotations

import medmnist
import pytest

from pathsynth.data.labels import PATHMNIST, resolve_labels


def test_pathmnist_labels_agree_with_medmnist():
    assert tuple(medmnist.INFO["pathmnist"]["label"].values()) == PATHMNIST == resolve_labels("pathmnist")


def test_a_list_of_labels_is_used_as_it_is():
    assert resolve_labels(["no retinopathy", "mild"]) == ("no retinopathy", "mild")


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ("moonmnist", "not a MedMNIST set; allowed: pathmnist, dermamnist"),
        ("chestmnist", "a multi-label set, "),
        ("organmnist3d", "a set of volumes, "),
        (["a", "A"], "label 'a' has the slug 'a', which must be unique"),
        (["only"], "at least two strings"),
        (["a", 3], "at least two strings"),
        ([f"class {number}" for number in range(257)], "has 257 labels; allowed: 2 to 256"),
        (7, "must be the name of a MedMNIST set or a list"),
    ],
)
def test_unusable_labels_are_refused_with_the_reason(labels, problem):
    with pytest.raises(ValueError, match=problem):
        resolve_labels(labels)
