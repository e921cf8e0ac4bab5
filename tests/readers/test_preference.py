"""The preference page: pairs of the same tissue and slot, on sides drawn by lot."""

from __future__ import annotations

import base64
import io
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from reader_images import CLASSES, SIDE, make_pool, pool_of

from pathsynth.core.errors import DataError
from pathsynth.readers.preference import PreferenceDesign, build_preference, render_preference

SETS = {"r16": make_pool("r16", 1), "r32": make_pool("r32", 2), "r64": make_pool("r64", 3)}
TWO = {name: SETS[name] for name in ("r16", "r32")}
DESIGN = PreferenceDesign(per_tissue=2, size=SIDE, seed=1, tissues=range(9))


def decode(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))).astype(float)


def test_key_states_the_contract():
    blinded = build_preference(TWO, CLASSES, DESIGN)
    key = blinded.key
    assert (key["format"], key["version"], key["kind"]) == ("pathsynth-key", 1, "preference")
    assert key["study"] == blinded.page["study"] and len(key["trials"]) == 18
    entry = key["trials"][0]
    assert set(entry) == {"id", "tissue", "question", "left", "right", "slot"} and {entry["left"], entry["right"]} == set(TWO)
    names = dict(zip(CLASSES.slugs, CLASSES.names, strict=True))
    assert entry["question"] == f"which of the two shows {names[entry['tissue']]} better?"


def test_sides_show_the_images_that_the_key_names():
    blinded = build_preference(TWO, CLASSES, DESIGN)
    for trial, entry in zip(blinded.page["trials"], blinded.key["trials"], strict=True):
        row = CLASSES.slugs.index(entry["tissue"]) * 4 + entry["slot"]
        for text, name in zip(trial["images"], (entry["left"], entry["right"]), strict=True):
            assert np.abs(decode(text) - SETS[name].images[row]).max() <= 3


def test_page_names_no_set():
    blinded = build_preference(TWO, CLASSES, DESIGN)
    assert all(set(trial) == {"id", "images", "question"} for trial in blinded.page["trials"])
    page = render_preference(blinded, CLASSES)
    assert "r16" not in "".join(page.split('id="data"')[0]) and '"left": "r' not in page
    assert len({len(text) for trial in blinded.page["trials"] for text in trial["images"]}) == 1


def test_every_pair_of_sets_is_compared_at_the_same_slots():
    trials = build_preference(SETS, CLASSES, DESIGN).key["trials"]
    slots: dict = {}
    for entry in trials:
        slots.setdefault(frozenset((entry["left"], entry["right"])), set()).add((entry["tissue"], entry["slot"]))
    assert len(trials) == 54 and len(slots) == 3 and len({frozenset(found) for found in slots.values()}) == 1


def test_each_set_is_on_the_left_as_often_as_on_the_right():
    sides = set()
    for seed in range(5):
        trials = build_preference(TWO, CLASSES, replace(DESIGN, seed=seed)).key["trials"]
        assert Counter(entry["left"] for entry in trials) == {"r16": 9, "r32": 9}
        sides.add(tuple(entry["left"] for entry in trials))
    assert len(sides) == 5


def test_only_slots_that_all_sets_have():
    keep = np.arange(len(SETS["r32"].labels)) % 4 > 0
    cut = {**TWO, "r32": replace(SETS["r32"], images=SETS["r32"].images[keep], labels=SETS["r32"].labels[keep],
                                 describe=lambda row: {"slot": row % 3 + 1})}  # fmt: skip
    slots = {entry["slot"] for entry in build_preference(cut, CLASSES, replace(DESIGN, per_tissue=3)).key["trials"]}
    assert slots == {1, 2, 3}
    with pytest.raises(DataError, match=r"r16, r32: too few slots in common: adipose 3, .*; 4 are needed. Lower -n"):
        build_preference(cut, CLASSES, replace(DESIGN, per_tissue=4))


def test_the_same_images_under_two_names_are_no_comparison():
    copy = replace(TWO["r16"], images=TWO["r16"].images.copy())
    for sets in ({"r16": TWO["r16"], "r32": copy}, {**SETS, "r32": copy}):
        with pytest.raises(DataError, match=r"r16, r32: have the same images in all drawn slots"):
            build_preference(sets, CLASSES, DESIGN)
    # single slots may have the same image, as accepted first attempts have
    copy.images[1:] ^= 1
    assert build_preference({"r16": TWO["r16"], "r32": copy}, CLASSES, DESIGN).key["trials"]


def test_one_set_is_no_comparison():
    with pytest.raises(DataError, match="at least two sets"):
        build_preference({"r16": SETS["r16"]}, CLASSES, DESIGN)


def test_missing_tissue_can_be_left_out():
    some = {**TWO, "r32": pool_of("r32", SETS["r32"].images[4:], SETS["r32"].labels[4:])}
    key = build_preference(some, CLASSES, replace(DESIGN, tissues=CLASSES.find(["mucus"]))).key
    assert {entry["tissue"] for entry in key["trials"]} == {"mucus"}
