"""The blinded study: which images it draws, how it mixes them, and what its key states."""

from __future__ import annotations

import base64
import io
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT
from html_tags import HOSTILE, Tags
from PIL import Image
from reader_images import CLASSES, SIDE, make_pool, pool_of

from pathsynth import __version__
from pathsynth.core.errors import DataError
from pathsynth.readers.pool import Classes, choose_size, draw_rows
from pathsynth.readers.study import StudyDesign, build_study, order_with_repeats, render_study
from pathsynth.synthesis.records import compute_pixels_sha256

DESIGN = StudyDesign(per_tissue=4, share=0.5, repeats=0, size=SIDE, seed=1, tissues=range(9))
REAL, SYNTHETIC = make_pool("real", 1), make_pool("synthetic", 2)


def build(**changes):
    return build_study(REAL, SYNTHETIC, CLASSES, replace(DESIGN, **changes))


class TestKey:
    def test_states_the_contract(self):
        key = build().key
        assert (key["format"], key["version"], key["kind"]) == ("pathsynth-key", 1, "study")
        assert key["classes"] == list(CLASSES.slugs) and key["created_with"] == __version__ and key["stand_in"] is False
        assert set(key["trials"][0]) == {"id", "tissue", "origin", "image", "source", "gate", "judge"}
        assert [entry["id"] for entry in key["trials"]] == [f"{number:03d}" for number in range(1, 37)]

    @pytest.mark.parametrize(("share", "synthetic"), [(0.5, 2), (0, 0), (1, 4), (0.25, 1), (0.625, 3), (0.375, 2)])
    def test_every_tissue_has_its_share(self, share, synthetic):
        counts = Counter((entry["tissue"], entry["origin"]) for entry in build(share=share).key["trials"])
        for slug in CLASSES.slugs:
            assert (counts[slug, "synthetic"], counts[slug, "real"]) == (synthetic, 4 - synthetic)

    @pytest.mark.parametrize(("n", "share", "text"), [(1, 0.5, "0.5 of 1 image"), (4, 0.1, "0.1 of 4 images")])
    def test_share_that_leaves_one_origin_is_refused(self, n, share, text):
        with pytest.raises(DataError, match=f"--share: {text} leaves no real or no synthetic one; raise -n"):
            build(per_tissue=n, share=share)

    def test_tells_which_image_is_which(self):
        blinded = build()
        for trial, entry in zip(blinded.page["trials"], blinded.key["trials"], strict=True):
            pool = SYNTHETIC if entry["origin"] == "synthetic" else REAL
            row = CLASSES.slugs.index(entry["tissue"]) * 4 + entry["source"]["slot"]
            shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(trial["images"][0])))).astype(float)
            assert compute_pixels_sha256(pool.images[row]) == entry["image"]
            assert np.abs(shown - pool.images[row]).max() <= 3

    def test_states_predictions_of_gate_and_judge(self):
        def gate(images: np.ndarray) -> np.ndarray:
            return np.eye(9)[np.full(len(images), 4)] * 0.9

        trials = build_study(REAL, SYNTHETIC, CLASSES, DESIGN, {"gate": gate}).key["trials"]
        assert all(entry["gate"] == {"predicted": "mucus", "confidence": 0.9} and entry["judge"] is None for entry in trials)

    def test_same_seed_same_page_other_seed_other_page(self):
        assert build() == build()
        assert build().page["study"] == build().key["study"] != build(seed=2).key["study"]

    def test_only_named_tissues_are_shown(self):
        key = build(tissues=CLASSES.find(["mucus", "debris"])).key
        assert {entry["tissue"] for entry in key["trials"]} == {"mucus", "debris"} and len(key["classes"]) == 9


class TestDraw:
    def test_no_image_is_shown_twice(self):
        images = np.concatenate([REAL.images, REAL.images])
        doubled = pool_of("doubled", images, np.concatenate([REAL.labels, REAL.labels]))
        trials = build_study(doubled, SYNTHETIC, CLASSES, DESIGN).key["trials"]
        assert len({entry["image"] for entry in trials}) == len(trials) == 36

    def test_copies_of_synthetic_images_are_left_out_of_the_real_ones(self):
        with pytest.raises(DataError, match="too few different real images: adipose 2; 3 of each"):
            build_study(SYNTHETIC, SYNTHETIC, CLASSES, replace(DESIGN, per_tissue=5, share=0.4, tissues=[0]))

    def test_too_few_images_name_the_tissues_their_counts_and_a_remedy(self):
        few = pool_of("few", SYNTHETIC.images[2:], SYNTHETIC.labels[2:])
        message = "few: too few different synthetic images: adipose 2; 3 of each are needed. Lower -n, .* --share, .* --tissue"
        with pytest.raises(DataError, match=message):
            build_study(REAL, few, CLASSES, replace(DESIGN, per_tissue=6))

    def test_draws_differ_between_seeds(self):
        drawn = {tuple(draw_rows(REAL, 4, 2, np.random.default_rng(seed), set())) for seed in range(20)}
        assert len(drawn) > 5 and all(16 <= row < 20 for rows in drawn for row in rows)


class TestRepeats:
    def test_repeats_are_in_the_second_block_and_of_images_of_the_first(self):
        order, first = order_with_repeats(11, 5, np.random.default_rng(1))
        assert first == 6 and len(order) == 16 and set(order) == set(range(11))
        assert len(set(order[:first])) == first and len(set(order[:first]) & set(order[first:])) == 5

    def test_key_names_the_first_trial_and_the_page_shows_other_bytes(self):
        blinded = build(repeats=6)
        images = {trial["id"]: trial["images"][0] for trial in blinded.page["trials"]}
        entries = {entry["id"]: entry for entry in blinded.key["trials"]}
        repeated = [entry for entry in entries.values() if "repeats" in entry]
        assert len(entries) == 42 and len(repeated) == 6
        for entry in repeated:
            first = entries[entry["repeats"]]
            assert {**entry, "id": 0, "repeats": 0} == {**first, "id": 0, "repeats": 0}
            assert images[entry["id"]] != images[first["id"]]

    def test_no_more_than_half_can_be_repeated(self):
        with pytest.raises(DataError, match="19 of 36 images; the limit is 18"):
            build(repeats=19)


class TestSize:
    def test_default_is_the_size_of_the_images_or_of_the_smaller_archive(self):
        assert choose_size([REAL, SYNTHETIC], None) == SIDE
        assert choose_size([REAL, SYNTHETIC], None, native=8) == 8
        assert choose_size([REAL, SYNTHETIC], None, native=64) == SIDE

    def test_different_sizes_need_a_choice_and_nothing_is_enlarged(self):
        other = make_pool("other", 3, side=8)
        with pytest.raises(DataError, match=r"differ in size \(real 16 px, other 8 px\); pass --size 8"):
            choose_size([REAL, other], None)
        with pytest.raises(DataError, match=r"16 px would enlarge images .* the limit is 8"):
            choose_size([REAL, other], 16)
        assert choose_size([REAL, other], 8) == 8

    def test_all_images_of_a_page_have_one_size(self):
        blinded = build_study(REAL, make_pool("small", 5, side=8), CLASSES, replace(DESIGN, size=8))
        assert len({len(trial["images"][0]) for trial in blinded.page["trials"]}) == 1


class TestPage:
    def test_is_closed_html_that_refers_to_nothing_outside(self):
        for tag, attributes in Tags(render_study(build(), CLASSES).replace("<input", "<img")).found:
            assert tag not in ("iframe", "object", "embed", "base")
            assert attributes.get("src", "data:").startswith("data:") and attributes.get("href", "data:").startswith("data:")

    def test_hostile_names_and_consent_are_text(self):
        classes = Classes(tuple(f"class_{number}" for number in range(9)), (HOSTILE, *CLASSES.names[1:]))
        page = render_study(build_study(REAL, SYNTHETIC, classes, DESIGN), classes, [HOSTILE, "</script>"])
        assert HOSTILE not in page and page.count("&lt;script&gt;alert") == 2 and page.count("</script>") == 2

    def test_only_pages_of_phantoms_speak_of_them(self):
        assert "Phantoms" not in render_study(build(), CLASSES)
        assert "No image here shows tissue" in render_study(build(), replace(CLASSES, stand_in=True))

    def test_git_ignores_the_folders_that_the_documentation_names(self):
        ignored = (ROOT / "reports" / ".gitignore").read_text().splitlines()
        named = re.findall(r"--out reports/(\w+)\n", (ROOT / "docs" / "readers.md").read_text())
        assert set(named) == {"study", "preference", "readers"} and {f"/{name}/" for name in named} <= set(ignored)

    def test_unknown_tissue(self):
        with pytest.raises(DataError, match="bone is not a class; allowed: adipose, background"):
            CLASSES.find(["bone"])
