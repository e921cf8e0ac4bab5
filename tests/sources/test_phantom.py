"""Phantoms depend on their seed alone, differ in structure and not in colour, and shift between the two centres."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from pathsynth.data import labels
from pathsynth.data.archives import SPLITS
from pathsynth.sources import phantom

TISSUES = range(len(labels.PATHMNIST))


@pytest.fixture(scope="module")
def splits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {
        "train": phantom.draw_split(100, 0, 64, "train"),
        "val": phantom.draw_split(60, 0, 64, "val"),
        "test": phantom.draw_split(60, 0, 64, "test"),
    }


def _mean_colour(images: np.ndarray) -> np.ndarray:
    return images.mean(axis=(1, 2))


def _spectrum(images: np.ndarray) -> np.ndarray:
    """Log power of the greyscale image at half resolution, by distance from zero frequency, and its quantiles."""
    grey = images.mean(axis=3).reshape(len(images), 32, 2, 32, 2).mean(axis=(2, 4))
    grey = grey - grey.mean(axis=(1, 2), keepdims=True)
    deviation = grey.std(axis=(1, 2), keepdims=True)
    grey = grey / (deviation + 3.0)
    power = np.abs(np.fft.fft2(grey)) ** 2
    wave = np.abs(np.fft.fftfreq(32, 1 / 32))
    ring = np.hypot(wave[:, None], wave).astype(int)
    rings = np.stack([power[:, ring == r].mean(axis=1) for r in range(1, 14)], axis=1)
    quantiles = np.quantile(grey, [0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99], axis=(1, 2)).T
    down, right = np.gradient(grey, axis=(1, 2))
    tensor = [(a * b).reshape(-1, 4, 8, 4, 8).sum(axis=(2, 4)) for a, b in ((down, down), (right, right), (down, right))]
    aligned = np.hypot(tensor[0] - tensor[1], 2 * tensor[2]) / (tensor[0] + tensor[1] + 1e-6)
    whole = [t.sum(axis=(1, 2)) for t in tensor]
    straight = np.hypot(whole[0] - whole[1], 2 * whole[2]) / (whole[0] + whole[1] + 1e-6)
    return np.column_stack([np.log(rings + 1.0), quantiles, aligned.mean(axis=(1, 2)), straight, deviation[:, 0, 0]])


def _detail(images: np.ndarray) -> float:
    """Energy of the differences of neighbouring pixels, relative to the variance."""
    grey = images.astype(float).mean(axis=3)
    return float((np.diff(grey, axis=2) ** 2).mean() / grey.var(axis=(1, 2)).mean())


@pytest.mark.parametrize("tissue", TISSUES)
def test_image_depends_on_its_seed_alone(tissue: int):
    first = phantom.draw_tissue(tissue, (1, 2), 64, "a")
    assert np.array_equal(first, phantom.draw_tissue(tissue, (1, 2), 64, "a"))
    assert not np.array_equal(first, phantom.draw_tissue(tissue, (1, 3), 64, "a"))


@pytest.mark.parametrize("tissue", TISSUES)
def test_every_size_shows_the_same_tissue(tissue: int):
    small, large = (phantom.draw_tissue(tissue, (4, tissue), size, "a") for size in (64, 128))
    assert np.abs(large.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3)) - small).mean() < 8.0
    for size in (32, 50):
        image = phantom.draw_tissue(tissue, (0,), size, "b")
        assert (image.shape, image.dtype) == ((size, size, 3), np.uint8)


def test_smaller_split_is_a_prefix_of_a_larger_one():
    images, classes = phantom.draw_split(2, 0, 32, "val")
    more_images, more_classes = phantom.draw_split(3, 0, 32, "val")
    assert np.array_equal(images, more_images[: len(images)])
    assert np.array_equal(classes, more_classes[: len(classes)])


def test_splits_and_seeds_share_no_image():
    draws = [phantom.draw_split(1, seed, 32, split)[0] for seed in (0, 1) for split in SPLITS]
    assert len({image.tobytes() for images in draws for image in images}) == sum(map(len, draws))


def test_split_has_the_layout_of_medmnist():
    seen = []
    images, classes = phantom.draw_split(3, 0, 32, "train", progress=lambda rows: (seen.append(r) or r for r in rows))
    assert (images.shape, images.dtype) == ((27, 32, 32, 3), np.uint8)
    assert (classes.tolist(), classes.dtype) == (list(TISSUES) * 3, np.uint8)
    assert len(seen) == 27
    row = 2 * 9 + 5
    assert np.array_equal(images[row], phantom.draw_tissue(5, (0, 0, 5, 2), 32, "a"))


@pytest.mark.parametrize("model", [LogisticRegression(C=10.0, max_iter=3000), KNeighborsClassifier(15)])
def test_mean_colour_does_not_separate_the_tissues(splits: dict, model: object):
    classifier = make_pipeline(StandardScaler(), model)
    classifier.fit(_mean_colour(splits["train"][0]), splits["train"][1])
    assert classifier.score(_mean_colour(splits["val"][0]), splits["val"][1]) < 0.6


@pytest.mark.parametrize("split", ["val", "test"])
def test_coarse_grey_structure_separates_the_tissues_at_both_centres(splits: dict, split: str):
    classifier = make_pipeline(StandardScaler(), SVC(C=10.0))
    classifier.fit(_spectrum(splits["train"][0]), splits["train"][1])
    assert classifier.score(_spectrum(splits[split][0]), splits[split][1]) > 0.95


def test_centre_b_has_another_stain_and_more_blur(splits: dict):
    a, b = splits["val"][0], splits["test"][0]
    assert np.abs(_mean_colour(a).mean(axis=0) - _mean_colour(b).mean(axis=0)).max() > 10.0
    assert _detail(b) < 0.9 * _detail(a)


def test_both_centres_show_the_same_structure():
    a, b = (phantom.draw_tissue(6, (7,), 64, centre).mean(axis=2).ravel() for centre in phantom.CENTRES)
    assert np.corrcoef(a, b)[0, 1] > 0.9
