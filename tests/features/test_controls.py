"""Manipulated images: what stays, what changes, and that seeds repeat."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from pathsynth.data.images import rotate_and_mirror
from pathsynth.features.controls import move_and_restain, randomize_phases, shuffle_patches, shuffle_pixels

MANIPULATIONS = {
    "move": move_and_restain,
    "patches": partial(shuffle_patches, grid=4),
    "pixels": shuffle_pixels,
    "phases": randomize_phases,
}


def random_images(count: int = 5, side: int = 16, low: int = 0, high: int = 256) -> np.ndarray:
    return np.random.default_rng(0).integers(low, high, (count, side, side, 3), np.uint8)


def sorted_pixels(image: np.ndarray) -> list[list[int]]:
    return sorted(image.reshape(-1, 3).tolist())


@pytest.mark.parametrize("name", MANIPULATIONS)
def test_seeds_repeat_and_images_differ(name: str):
    manipulate, images = MANIPULATIONS[name], np.repeat(random_images(1), 6, axis=0)
    before = images.copy()
    result = manipulate(images, seed=1)
    assert (result.shape, result.dtype) == (images.shape, np.uint8)
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(manipulate(images, seed=1), result)
    assert not np.array_equal(manipulate(images, seed=2), result)
    # each image has its own random numbers, also if all images are equal
    assert len({image.tobytes() for image in result}) == 6
    assert len(manipulate(images[:0], seed=1)) == 0


def test_the_eight_views_differ_and_keep_the_pixels():
    images = random_images()
    views = [rotate_and_mirror(images, view) for view in range(8)]
    assert len({view.tobytes() for view in views}) == 8
    np.testing.assert_array_equal(views[0], images)
    np.testing.assert_array_equal(views[1], np.rot90(images, 1, (1, 2)))
    np.testing.assert_array_equal(views[4], images[:, :, ::-1])
    assert sorted_pixels(views[6][0]) == sorted_pixels(images[0])


def test_shuffled_patches_are_those_of_the_image():
    images = random_images()
    for image, shuffled in zip(images, shuffle_patches(images, 4, 0), strict=True):
        before, after = (
            sorted(part[y : y + 4, x : x + 4].tobytes() for y in range(0, 16, 4) for x in range(0, 16, 4))
            for part in (image, shuffled)
        )
        assert before == after
        assert (image != shuffled).any()


def test_rest_of_an_image_that_cannot_be_divided_stays():
    images = random_images(side=19)
    shuffled = shuffle_patches(images, 4, 0)
    np.testing.assert_array_equal(shuffled[:, 16:], images[:, 16:])
    np.testing.assert_array_equal(shuffled[:, :, 16:], images[:, :, 16:])
    assert (shuffled[:, :16, :16] != images[:, :16, :16]).any()
    np.testing.assert_array_equal(shuffle_patches(images, 1, 0), images)


def test_shuffled_pixels_are_those_of_the_image():
    images = random_images()
    shuffled = shuffle_pixels(images, 0)
    assert [sorted_pixels(image) for image in shuffled] == [sorted_pixels(image) for image in images]
    # of 256 pixels, about one stays in its place
    assert (shuffled == images).all(axis=3).mean() < 0.1


@pytest.mark.parametrize("side", [16, 15])
def test_random_phases_keep_mean_and_spectrum(side: int):
    # little contrast, so that no pixel is clipped
    images = random_images(3, side, 100, 120)
    noisy = randomize_phases(images, 0)
    assert (noisy != images).mean() > 0.5
    assert noisy.mean(axis=(1, 2)) == pytest.approx(images.mean(axis=(1, 2)), abs=0.1)
    before, after = (np.abs(np.fft.fft2(part, axes=(1, 2))) for part in (images, noisy))
    # rounding to whole numbers is noise of variance 1 / 12
    assert np.abs(after - before).max() < 6 * side * np.sqrt(1 / 12)
    # the relation of the channels stays
    before, after = (np.corrcoef(part[0].reshape(-1, 3).astype(float).T) for part in (images, noisy))
    assert after == pytest.approx(before, abs=0.05)


def test_random_phases_of_extreme_pixels_are_clipped():
    images = np.zeros((1, 16, 16, 3), np.uint8)
    images[:, 8:] = 255
    noisy = randomize_phases(images, 0)
    assert noisy.min() == 0 and noisy.max() == 255


def test_moved_images_are_shifted_by_at_most_a_sixteenth():
    # a spot in the middle, whose place shows the shift
    images = np.full((60, 32, 32, 3), 200, np.uint8)
    images[:, 15:17, 15:17] = 60
    places = np.array([np.argwhere(image[..., 1] < 130).mean(axis=0) for image in move_and_restain(images, 0)])
    assert set(np.unique(places - 15.5)) == {-2, -1, 0, 1, 2}


def test_moved_images_are_rotated_mirrored_and_restained():
    # one violet quarter and a violet strip beside it, different in all views
    images = np.full((80, 32, 32, 3), (230, 180, 210), np.uint8)
    images[:, :16, :16] = images[:, :8] = (110, 70, 150)
    moved = move_and_restain(images, 0)
    corners = moved[:, [2, 2, -3, -3], [2, -3, 2, -3]].astype(int).sum(axis=2) < 450
    assert len(np.unique(corners, axis=0)) == 4
    darkness = np.sort(moved[..., 0].reshape(80, -1).astype(int), axis=1)[:, 100]
    assert darkness.min() < 100 and darkness.max() > 120
    assert len(np.unique(moved[:, 2:-2, 2:-2].reshape(80, -1), axis=0)) == 80


def test_moved_grey_images_stay_grey():
    grey = np.repeat(random_images()[..., :1], 3, axis=3)
    moved = move_and_restain(grey, 0)
    assert (moved == moved[..., :1]).all()
    assert (moved != grey).any()
