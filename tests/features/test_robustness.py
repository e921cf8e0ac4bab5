"""Corruptions of known effect, and the scores of classifiers that they can and cannot mislead."""

from __future__ import annotations

import numpy as np
import pytest

from pathsynth.features.robustness import CORRUPTIONS, blurred, compressed, restained, robustness_scores

SLUGS = ("pale", "dark")


def _smooth(n: int = 4, size: int = 32) -> np.ndarray:
    """Pink and violet waves, uint8 (n, size, size, 3)."""
    wave = np.sin(np.linspace(0, 6, size)[:, None] + np.linspace(0, 4, size)[None] + np.arange(n)[:, None, None])
    return np.clip(np.array([205, 130, 180]) + wave[..., None] * np.array([40, 50, 30]), 0, 255).astype(np.uint8)


def _flat(*colour: int, n: int = 2, size: int = 16) -> np.ndarray:
    return np.broadcast_to(np.array(colour, np.uint8), (n, size, size, 3)).copy()


class Redness:
    """Takes an image for dark where its mean red is under a bound; counts what it has looked at."""

    def __init__(self, bound: float):
        self.bound, self.looked = bound, []

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        assert images.dtype == np.uint8
        self.looked.append(len(images))
        dark = images[..., 0].mean(axis=(1, 2)) < self.bound
        return np.stack([~dark, dark], axis=1).astype(np.float32)


def _difference(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first.astype(float) - second).mean())


def test_jpeg_loses_more_at_lower_quality():
    images = _smooth()
    lost = [_difference(compressed(images, quality), images) for quality in (100, 75, 50, 25)]
    assert lost[0] < 1 and lost == sorted(lost) and lost[3] > 1
    assert compressed(images, 75).dtype == np.uint8


def test_no_change_is_the_identity():
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    np.testing.assert_array_equal(blurred(images, 0), images)
    for stain in ("haematoxylin", "eosin"):
        np.testing.assert_array_equal(restained(images, stain, 1.0), images)


@pytest.mark.parametrize("stain", ["haematoxylin", "eosin"])
def test_a_dose_is_multiplied_and_the_other_stays(stain: str):
    from skimage.color import hed2rgb, rgb2hed

    channel, other = {"haematoxylin": (0, 1), "eosin": (1, 0)}[stain]
    image = np.rint(hed2rgb(np.full((1, 8, 8, 3), [0.06, 0.05, 0.0])) * 255).astype(np.uint8)
    before = rgb2hed(image).mean(axis=(0, 1, 2))
    for factor in (0.75, 1.25):
        after = rgb2hed(restained(image, stain, factor)).mean(axis=(0, 1, 2))
        assert after[channel] == pytest.approx(factor * before[channel], abs=2e-3)
        assert after[other] == pytest.approx(before[other], abs=2e-3)


def test_colours_move_the_right_way():
    # haematoxylin, which is blue, takes red away; eosin, which is pink, green alone
    violet = _flat(150, 110, 180)
    more, less = (restained(violet, "haematoxylin", factor).mean(axis=(0, 1, 2)) for factor in (1.25, 0.75))
    assert less[0] > 150 > more[0]
    pink = _flat(235, 150, 200)
    more, less = (restained(pink, "eosin", factor).mean(axis=(0, 1, 2)) for factor in (1.25, 0.75))
    assert less[1] > 150 > more[1] and abs(more[0] - 235) < 5
    glass = _flat(255, 255, 255)
    for corrupt in CORRUPTIONS["stain"].values():
        np.testing.assert_array_equal(corrupt(glass), glass)


def test_blur_keeps_flat_images_and_means_and_follows_the_side():
    flat = _flat(200, 120, 90)
    np.testing.assert_array_equal(blurred(flat, 2), flat)
    point = np.zeros((1, 64, 64, 3), np.uint8)
    point[0, 32, 32] = 255
    # the middle of a Gaussian of one pixel: 1 / (2 pi)
    assert blurred(point, 1)[0, 32, 32, 0] == pytest.approx(255 / (2 * np.pi), abs=1)
    double = np.zeros((1, 128, 128, 3), np.uint8)
    double[0, 64, 64] = 255
    assert blurred(double, 1)[0, 64, 64, 0] == pytest.approx(255 / (8 * np.pi), abs=1)


def test_images_of_a_batch_do_not_mix():
    images = _smooth(5)
    for cases in CORRUPTIONS.values():
        for corrupt in cases.values():
            np.testing.assert_array_equal(corrupt(images)[2], corrupt(images[2:3])[0])


def test_names_can_be_keys_of_metrics():
    names = {kind: list(cases) for kind, cases in CORRUPTIONS.items()}
    assert names == {
        "jpeg": ["quality_75", "quality_50", "quality_25"],
        "stain": ["haematoxylin_x0_75", "haematoxylin_x1_25", "eosin_x0_75", "eosin_x1_25"],
        "blur": ["sigma_0_5", "sigma_1", "sigma_2"],
    }


def test_who_goes_by_colour_is_misled_by_stain_and_not_by_blur():
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


def test_other_dyes_are_not_taken_apart():
    images = np.concatenate([_flat(red, 110, 180, n=1) for red in (200, 100)])
    scores = robustness_scores({"gate": Redness(150)}, images, np.array([0, 1]), SLUGS, haematoxylin_eosin=False)
    assert scores["gate"]["stain"] == {"undefined": "not stained by haematoxylin and eosin"}
    assert scores["gate"]["clean"]["accuracy"] == 1.0


def test_pieces_make_no_difference_and_may_be_on_disk(tmp_path):
    from pathsynth.core.rows import RowFile

    images = np.random.default_rng(1).integers(60, 220, (21, 16, 16, 3), np.uint8)
    labels = np.arange(21) % 2
    whole, single = Redness(138), Redness(138)
    found = robustness_scores({"gate": whole}, images, labels, SLUGS)
    assert robustness_scores({"gate": single}, images, labels, SLUGS, piece=1) == found
    assert set(whole.looked) == {21} and set(single.looked) == {1}
    np.save(tmp_path / "images.npy", images)
    assert robustness_scores({"gate": Redness(138)}, RowFile(tmp_path / "images.npy"), labels, SLUGS) == found
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert robustness_scores({"gate": Redness(138)}, mapped, labels, SLUGS) == found


def test_grey_images_have_no_stain():
    from pathsynth.data.archives import as_colour

    grey = np.random.default_rng(2).integers(0, 256, (4, 16, 16), np.uint8)
    labels = np.array([0, 1, 0, 1])
    scores = robustness_scores({"gate": Redness(128)}, as_colour(grey), labels, SLUGS, piece=1)["gate"]
    assert scores["stain"] == {"undefined": "grey images have no stain"}
    assert set(scores) == {"clean", "jpeg", "stain", "blur"}
    coloured = as_colour(grey).copy()
    coloured[3, 5, 5] = (200, 100, 150)
    assert len(robustness_scores({"gate": Redness(128)}, coloured, labels, SLUGS, piece=1)["gate"]["stain"]) == 4


def test_no_images_have_no_score():
    with pytest.raises(ValueError, match="no images"):
        robustness_scores({"gate": Redness(1)}, np.zeros((0, 16, 16, 3), np.uint8), np.zeros(0, int), SLUGS)
