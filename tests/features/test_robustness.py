"""Corruptions with known effects, and the scores of classifiers that they do and do not affect."""

from __future__ import annotations

import numpy as np
import pytest

from pathsynth.features import robustness
from pathsynth.features.robustness import CORRUPTIONS, blur, compress_jpeg, robustness_scores, scale_stain

SLUGS = ("pale", "dark")


def _smooth(n: int = 4, size: int = 32) -> np.ndarray:
    """Pink and violet waves, uint8 (n, size, size, 3)."""
    wave = np.sin(np.linspace(0, 6, size)[:, None] + np.linspace(0, 4, size)[None] + np.arange(n)[:, None, None])
    return np.clip(np.array([205, 130, 180]) + wave[..., None] * np.array([40, 50, 30]), 0, 255).astype(np.uint8)


def _flat(*colour: int, n: int = 2, size: int = 16) -> np.ndarray:
    return np.broadcast_to(np.array(colour, np.uint8), (n, size, size, 3)).copy()


class Redness:
    """Predicts dark for images whose mean red is below a bound; records the sizes of its batches."""

    def __init__(self, bound: float):
        self.bound, self.batches = bound, []

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        assert images.dtype == np.uint8
        self.batches.append(len(images))
        dark = images[..., 0].mean(axis=(1, 2)) < self.bound
        return np.stack([~dark, dark], axis=1).astype(np.float32)


def _difference(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first.astype(float) - second).mean())


def test_jpeg_loses_more_at_lower_quality():
    images = _smooth()
    lost = [_difference(compress_jpeg(images, quality), images) for quality in (100, 75, 50, 25)]
    assert lost[0] < 1 and lost == sorted(lost) and lost[3] > 1
    assert compress_jpeg(images, 75).dtype == np.uint8


def test_zero_strength_changes_nothing():
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    np.testing.assert_array_equal(blur(images, 0), images)
    for stain in ("haematoxylin", "eosin"):
        np.testing.assert_array_equal(scale_stain(images, stain, 1.0), images)


@pytest.mark.parametrize("stain", ["haematoxylin", "eosin"])
def test_only_the_selected_stain_is_scaled(stain: str):
    from skimage.color import hed2rgb, rgb2hed

    channel, other = {"haematoxylin": (0, 1), "eosin": (1, 0)}[stain]
    image = np.rint(hed2rgb(np.full((1, 8, 8, 3), [0.06, 0.05, 0.0])) * 255).astype(np.uint8)
    before = rgb2hed(image).mean(axis=(0, 1, 2))
    for factor in (0.75, 1.25):
        after = rgb2hed(scale_stain(image, stain, factor)).mean(axis=(0, 1, 2))
        assert after[channel] == pytest.approx(factor * before[channel], abs=2e-3)
        assert after[other] == pytest.approx(before[other], abs=2e-3)


def test_stains_absorb_their_complementary_colours():
    # blue haematoxylin absorbs red; pink eosin absorbs green only
    violet = _flat(150, 110, 180)
    more, less = (scale_stain(violet, "haematoxylin", factor).mean(axis=(0, 1, 2)) for factor in (1.25, 0.75))
    assert less[0] > 150 > more[0]
    pink = _flat(235, 150, 200)
    more, less = (scale_stain(pink, "eosin", factor).mean(axis=(0, 1, 2)) for factor in (1.25, 0.75))
    assert less[1] > 150 > more[1] and abs(more[0] - 235) < 5
    glass = _flat(255, 255, 255)
    for corrupt in CORRUPTIONS["stain"].values():
        np.testing.assert_array_equal(corrupt(glass), glass)


def test_blur_keeps_flat_images_and_scales_with_the_side():
    flat = _flat(200, 120, 90)
    np.testing.assert_array_equal(blur(flat, 2), flat)
    point = np.zeros((1, 64, 64, 3), np.uint8)
    point[0, 32, 32] = 255
    # the peak of a Gaussian of one pixel is 1 / (2 pi)
    assert blur(point, 1)[0, 32, 32, 0] == pytest.approx(255 / (2 * np.pi), abs=1)
    double = np.zeros((1, 128, 128, 3), np.uint8)
    double[0, 64, 64] = 255
    assert blur(double, 1)[0, 64, 64, 0] == pytest.approx(255 / (8 * np.pi), abs=1)


def test_images_of_a_batch_are_independent():
    images = _smooth(5)
    for cases in CORRUPTIONS.values():
        for corrupt in cases.values():
            np.testing.assert_array_equal(corrupt(images)[2], corrupt(images[2:3])[0])


def test_names_of_corruptions_are_published_keys():
    names = {kind: list(cases) for kind, cases in CORRUPTIONS.items()}
    assert names == {
        "jpeg": ["quality_75", "quality_50", "quality_25"],
        "stain": ["haematoxylin_x0_75", "haematoxylin_x1_25", "eosin_x0_75", "eosin_x1_25"],
        "blur": ["sigma_0_5", "sigma_1", "sigma_2"],
    }


def test_classifier_by_colour_is_affected_by_stain_and_not_by_blur():
    images = np.concatenate([_flat(160, 110, 180, n=3), _flat(140, 100, 180, n=3)])
    labels = np.repeat([0, 1], 3)
    scores = robustness_scores({"gate": Redness(150), "judge": Redness(256)}, images, labels, SLUGS)
    assert scores["n_images"] == 6
    assert scores["gate"]["clean"] == {"accuracy": 1.0, "macro_f1": 1.0}
    assert scores["gate"]["stain"]["haematoxylin_x1_25"]["accuracy"] == 0.5
    assert all(score["accuracy"] == 1.0 for score in scores["gate"]["blur"].values())
    always_dark = {"accuracy": 0.5, "macro_f1": 0.333333}
    assert scores["judge"]["clean"] == always_dark
    assert all(score == always_dark for kind in CORRUPTIONS for score in scores["judge"][kind].values())


def test_other_stainings_are_undefined():
    images = np.concatenate([_flat(red, 110, 180, n=1) for red in (200, 100)])
    scores = robustness_scores({"gate": Redness(150)}, images, np.array([0, 1]), SLUGS, haematoxylin_eosin=False)
    assert scores["gate"]["stain"] == {"undefined": "not stained with haematoxylin and eosin"}
    assert scores["gate"]["clean"]["accuracy"] == 1.0


def test_chunks_change_nothing(tmp_path, monkeypatch):
    np.save(tmp_path / "images.npy", np.random.default_rng(1).integers(60, 220, (21, 16, 16, 3), np.uint8))
    images, labels = np.load(tmp_path / "images.npy", mmap_mode="r"), np.arange(21) % 2
    whole, single = Redness(138), Redness(138)
    scores = robustness_scores({"gate": whole}, images, labels, SLUGS)
    monkeypatch.setattr(robustness, "CHUNK_BYTES", 1)
    assert robustness_scores({"gate": single}, images, labels, SLUGS) == scores
    assert set(whole.batches) == {21} and set(single.batches) == {1}


def test_grey_images_have_no_stain(monkeypatch):
    from pathsynth.data.archives import expand_grey

    monkeypatch.setattr(robustness, "CHUNK_BYTES", 1)
    grey = np.random.default_rng(2).integers(0, 256, (4, 16, 16), np.uint8)
    labels = np.array([0, 1, 0, 1])
    scores = robustness_scores({"gate": Redness(128)}, expand_grey(grey), labels, SLUGS)["gate"]
    assert scores["stain"] == {"undefined": "grey images have no stain"}
    assert set(scores) == {"clean", "jpeg", "stain", "blur"}
    coloured = expand_grey(grey).copy()
    coloured[3, 5, 5] = (200, 100, 150)
    assert len(robustness_scores({"gate": Redness(128)}, coloured, labels, SLUGS)["gate"]["stain"]) == 4


def test_no_images_raise():
    with pytest.raises(ValueError, match="no images"):
        robustness_scores({"gate": Redness(1)}, np.zeros((0, 16, 16, 3), np.uint8), np.zeros(0, int), SLUGS)
