"""Matching sentences to tissues."""

from __future__ import annotations

import re

import pytest

from pathsynth.data import labels
from pathsynth.synthesis.sentences import SentenceError, match_label

LONGER = ("granulocytes", "immature granulocytes", "normal, benign", "ऊतक हड्डी")
PLURALS = ("cell", "cells", "glands", "red cell")


@pytest.mark.parametrize(
    ("known", "sentence", "label"),
    [
        (labels.PATHMNIST, "a histopathological image of an area with mucus", "mucus"),
        (labels.PATHMNIST, "Mucus!", "mucus"),
        (labels.PATHMNIST, "smooth_muscle", "smooth muscle"),
        (labels.PATHMNIST, "SMOOTH  MUSCLES, stained", "smooth muscle"),
        (labels.PATHMNIST, "one lymphocyte", "lymphocytes"),
        (labels.PATHMNIST, "cancer associated stroma", "cancer-associated stroma"),
        (LONGER, "an immature granulocyte", "immature granulocytes"),
        (LONGER, "immature granulocytes, immature granulocytes", "immature granulocytes"),
        (LONGER, "granulocytes", "granulocytes"),
        (LONGER, "a normal benign lesion", "normal, benign"),
        (LONGER, "चित्र ऊतक हड्डी", "ऊतक हड्डी"),
        (PLURALS, "one cell", "cell"),
        (PLURALS, "many Cells", "cells"),
        (PLURALS, "a gland", "glands"),
        (PLURALS, "red cells", "red cell"),
    ],
)
def test_match(known, sentence, label):
    assert known[match_label(sentence, known)] == label


@pytest.mark.parametrize(
    ("known", "sentence", "message"),
    [
        (labels.PATHMNIST, "a dog in the sun", "'a dog in the sun' names no tissue; known labels: adipose, background"),
        (labels.PATHMNIST, "mucus and debris", "names debris and mucus, but an image shows one tissue; known labels"),
        (labels.PATHMNIST, "mucusoid", "names no tissue"),
        (labels.PATHMNIST, "smooth pink muscle", "names no tissue"),
        (labels.PATHMNIST, "smooth mucus muscle smooth muscle", "names mucus and smooth muscle"),
        (LONGER, "granulocytes beside immature granulocytes", "names granulocytes and immature granulocytes"),
        (PLURALS, "a cell among cells", "names cell and cells"),
        (PLURALS, "red cell, other cells, a cell", "names cell and"),
    ],
)
def test_no_match_and_ambiguous_match_are_one_line_error(known, sentence, message):
    with pytest.raises(SentenceError, match=re.escape(message)):
        match_label(sentence, known)
