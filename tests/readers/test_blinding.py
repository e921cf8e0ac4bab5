"""Blinding: nothing but the picture tells real from synthetic, and what would is found."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from reader_images import CLASSES, pool_of
from scipy import ndimage
from scipy.stats import chisquare
from telltales import describe_structure, find_telltales, origins_of

from pathsynth.readers.blinding import (
    LEVELS,
    blind_image,
    compute_checksum,
    encode_png,
    hide_low_bits,
    make_ids,
    seed_by_content,
)
from pathsynth.readers.pool import Pool
from pathsynth.readers.study import StudyDesign, build_study, render_study
from pathsynth.sources import phantom

DESIGN = StudyDesign(per_tissue=10, share=0.5, repeats=0, size=32, seed=3, tissues=range(9))


def decode(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


class TestLowBits:
    @pytest.mark.parametrize("value", [0, 1, 127, 254, 255])
    def test_any_image_gets_the_same_uniform_low_bits(self, value):
        hidden = hide_low_bits(np.full((64, 64, 3), value, np.uint8), np.random.default_rng(1))
        counts = np.bincount((hidden % LEVELS).ravel(), minlength=LEVELS)
        assert chisquare(counts).pvalue > 0.001

    def test_picture_keeps_its_values_within_three_levels(self):
        pixels = np.arange(256, dtype=np.uint8)
        hidden = hide_low_bits(np.tile(pixels, (2000, 1)), np.random.default_rng(1)).astype(float)
        assert hidden.min() == 0 and hidden.max() == 255
        assert np.abs(hidden.mean(axis=0) - (pixels.astype(float) * 252 / 255 + 1.5)).max() < 0.6
        assert np.abs(hidden - pixels.astype(float)).max() <= 3


class TestPng:
    @pytest.mark.parametrize("side", [8, 28, 64, 224])
    def test_length_and_structure_do_not_depend_on_the_content(self, side):
        rng = np.random.default_rng(0)
        ramp = np.broadcast_to(np.linspace(0, 255, side).astype(np.uint8)[:, None, None], (side, side, 3))
        images = [rng.integers(0, 256, (side, side, 3), np.uint8), np.zeros((side, side, 3), np.uint8), ramp]
        pngs = [encode_png(np.ascontiguousarray(image)) for image in images]
        assert len({len(png) for png in pngs}) == len({describe_structure(png) for png in pngs}) == 1
        assert {name for name, _ in describe_structure(pngs[0])[0]} == {b"IHDR", b"IDAT", b"IEND"}
        assert all(np.array_equal(decode(png), image) for png, image in zip(pngs, images, strict=True))

    def test_grey_images_are_grey_and_all_are_resized(self):
        image = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
        grey, colour = (decode(blind_image(image, 16, channels, np.random.default_rng(1))) for channels in (1, 3))
        assert grey.shape == (16, 16) and colour.shape == (16, 16, 3)


class TestChecksum:
    def test_changes_with_kind_classes_ids_images_and_order(self):
        trials = [("001", [b"a"]), ("002", [b"b"])]
        same = compute_checksum("study", ["x", "y"], trials)
        assert len(same) == 64 and same == compute_checksum("study", ("x", "y"), list(trials))
        others = [
            ("preference", ["x", "y"], trials), ("study", ["y", "x"], trials), ("study", ["x", "y"], trials[::-1]),
            ("study", ["x", "y"], [("003", [b"a"]), trials[1]]), ("study", ["x", "y"], [("001", [b"c"]), trials[1]]),
            ("study", ["x", "y"], [("001", [b"a", b"a"]), trials[1]]),
        ]  # fmt: skip
        assert same not in {compute_checksum(*other) for other in others}

    def test_ids_sort_like_numbers(self):
        assert make_ids(2) == ["001", "002"] and make_ids(1000)[-1] == "1000" and make_ids(1000)[0] == "0001"

    def test_order_cannot_be_replayed_from_the_seed_alone(self):
        first, second = (np.random.default_rng(seed_by_content(1, [digest])).permutation(50) for digest in ("aa", "ab"))
        assert not np.array_equal(first, second)


@pytest.fixture(scope="module")
def pools() -> tuple[Pool, Pool]:
    """Phantoms, and others that a VAE might have drawn: smoother, never white, and with even values."""
    splits = {split: phantom.draw_split(8, 7, 32, split) for split in ("test", "train")}
    (real, real_labels), (other, other_labels) = ((np.asarray(images), tissues) for images, tissues in splits.values())
    smooth = ndimage.gaussian_filter(other, (0, 0.6, 0.6, 0)).clip(0, 250) & 0xFE
    return pool_of("real", real, real_labels), pool_of("synthetic", smooth, other_labels)


class TestTelltales:
    def test_page_has_none(self, pools):
        for seed in range(3):
            blinded = build_study(*pools, CLASSES, replace(DESIGN, seed=seed))
            assert find_telltales(blinded.page, origins_of(blinded.key["trials"])) == set()

    @pytest.mark.parametrize(
        ("fault", "telltales"),
        [
            ("compressed", {"structure", "length"}),
            ("text chunk", {"structure", "length"}),
            ("palette", {"structure", "length", "lowest bit", "two lowest bits"}),
            ("low bits", {"lowest bit", "two lowest bits"}),
            ("sorted", {"id", "order"}),
            ("alternating", {"id", "order"}),
            ("named", {"keys"}),
        ],
    )
    def test_faults_are_found(self, pools, fault, telltales):
        """The control: a page that is not blinded in one respect is caught."""
        blinded = build_study(*pools, CLASSES, DESIGN)
        origins, trials = origins_of(blinded.key["trials"]), blinded.page["trials"]
        originals = {origin: iter(pool.images) for origin, pool in zip(("real", "synthetic"), pools, strict=True)}
        for trial in trials:
            synthetic = origins[trial["id"]] == "synthetic"
            png = base64.b64decode(trial["images"][0])
            if fault == "low bits":
                png = encode_png(next(originals[origins[trial["id"]]]))
            elif synthetic and fault == "named":
                trial["prompt"] = "mucus"
            elif synthetic:
                png = _spoil(png, fault)
            trial["images"] = [base64.b64encode(png).decode()]
        if fault in ("sorted", "alternating"):
            origins = _reorder(trials, origins, alternating=fault == "alternating")
        assert find_telltales(blinded.page, origins) == telltales

    def test_page_holds_nothing_of_the_key(self, pools):
        blinded = build_study(*pools, CLASSES, replace(DESIGN, seed=987654321))
        page = render_study(blinded, CLASSES)
        data = json.loads(page.split('id="data">')[1].split("</script>")[0])
        assert set(data) == {"kind", "study", "first_block", "trials"}
        assert all(set(trial) == {"id", "images"} for trial in data["trials"])
        assert "987654321" not in page and not [entry for entry in blinded.key["trials"] if entry["image"] in page]

    def test_order_and_origin_are_independent_over_seeds(self, pools):
        places = []
        for seed in range(30):
            blinded = build_study(*pools, CLASSES, replace(DESIGN, per_tissue=2, size=8, seed=seed))
            places += [index for index, entry in enumerate(blinded.key["trials"]) if entry["origin"] == "synthetic"]
        # 270 of the places 0 to 17, whose mean has a standard error of 0.3
        assert abs(np.mean(places) - 8.5) < 1.0
        assert chisquare(np.bincount(places, minlength=18)).pvalue > 0.001


def _spoil(png: bytes, fault: str) -> bytes:
    with io.BytesIO() as buffer:
        image, info = Image.fromarray(decode(png)), PngInfo()
        if fault == "palette":
            image = image.quantize(64)
        if fault == "text chunk":
            info.add_text("Software", "diffusion")
        image.save(buffer, "PNG", compress_level=6 if fault == "compressed" else 0, pnginfo=info)
        return buffer.getvalue()


def _reorder(trials: list[dict], origins: dict[str, str], alternating: bool) -> dict[str, str]:
    """Sorts trials by origin, or alternates origins, and numbers them again; returns the origins."""
    groups = [[trial for trial in trials if origins[trial["id"]] == origin] for origin in ("real", "synthetic")]
    trials[:] = [trial for pair in zip(*groups, strict=True) for trial in pair] if alternating else groups[0] + groups[1]
    new = {f"{number:03d}": origins[trial["id"]] for number, trial in enumerate(trials, 1)}
    for name, trial in zip(new, trials, strict=True):
        trial["id"] = name
    return new
