"""Duplicates: planted copies of every kind are counted, and images that only resemble each other are not."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageFilter

from pathsynth.data import archives
from pathsynth.data.duplicates import Duplicates, describe_duplicates, parse_duplicates
from pathsynth.data.images import VIEWS, rotate_and_mirror
from pathsynth.sources import duplicates, phantom
from pathsynth.sources.duplicates import count_duplicates

PAIRS = [("train", "train"), ("val", "train"), ("val", "val"), ("test", "train"), ("test", "val"), ("test", "test")]


@pytest.fixture(scope="module")
def train() -> np.ndarray:
    """Two phantoms of each tissue, without the background, whose copies cannot be told from noise."""
    images, tissues = phantom.draw_split(2, 7, 64, "train")
    return images[tissues != 1]


@pytest.fixture(scope="module")
def other() -> np.ndarray:
    return phantom.draw_split(2, 7, 64, "val")[0]


def count(images: dict[str, np.ndarray], labels: dict[str, list[int]] | None = None) -> dict[tuple[str, str], Duplicates]:
    own = {split: np.array((labels or {}).get(split, [0] * len(rows)), np.uint8) for split, rows in images.items()}
    return {(each.split, each.source): each for each in count_duplicates(images, own)}


def edit(change: Callable[[Image.Image], Image.Image]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda images: np.stack([np.asarray(change(Image.fromarray(image))) for image in images])


def compress(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=75)
    return Image.open(buffer).convert("RGB")


def shift(images: np.ndarray) -> np.ndarray:
    """Shifts by 3 and 2 of 64 pixels; the pixels that come in mirror those beside them."""
    return np.pad(images, ((0, 0), (3, 0), (0, 2), (0, 0)), "reflect")[:, :-3, 2:]


NEAR_COPIES = {
    "jpeg": edit(compress),
    "resized": edit(lambda image: image.resize((32, 32)).resize((64, 64))),
    "brighter": lambda images: np.minimum(images * 1.1, 255).astype(np.uint8),
    "blurred": edit(lambda image: image.filter(ImageFilter.GaussianBlur(1))),
    "shifted": shift,
    "shifted, darker, compressed and rotated": lambda images: rotate_and_mirror(
        edit(compress)((shift(images) * 0.9).astype(np.uint8)), 5
    ),
}


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("view", range(VIEWS))
def test_exact_copies_are_counted_in_every_orientation(train, other, view, channels):
    images = {"train": train, "val": other, "test": rotate_and_mirror(train[3:8], view)}
    if channels == 1:
        images = {split: rows[..., 0] for split, rows in images.items()}
    found = count(images, {"train": [1] * len(train), "test": [1, 1, 1, 2, 2]})
    assert list(found) == PAIRS
    expected = Duplicates("test", "train", 5, exact=5, near=0, relabelled=2, examples=[[0, 3], [1, 4], [2, 5]])
    assert found.pop(("test", "train")) == expected
    assert all((each.exact, each.near, each.relabelled, each.examples) == (0, 0, 0, []) for each in found.values())


@pytest.mark.parametrize("kind", NEAR_COPIES)
def test_near_copies_are_found_but_are_not_exact(train, other, kind):
    found = count({"train": train, "test": np.concatenate([other, NEAR_COPIES[kind](train)])})["test", "train"]
    assert (found.exact, found.near) == (0, len(train))
    assert found.examples == [[len(other) + row, row] for row in range(3)]


def test_resemblance_is_no_copy():
    """Noise, film with noise, dust of one shape in one place, and gradients of one direction, which low frequencies confuse."""
    rng, side = np.random.default_rng(0), 64
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    dust = 100 * np.exp(-((x - 30) ** 2 + (y - 25) ** 2) / 8)
    clean = {"noise": np.full((side, side), 128.0), "film": 200 + x / 32, "dust": 220 - dust, "gradient": 40 + 3.0 * y}
    for name, image in clean.items():
        spread = 40 if name == "noise" else 2
        noisy = np.rint(image + rng.normal(0, spread, (12, side, side))).clip(0, 255).astype(np.uint8)
        found = count({"train": noisy[:6], "test": noisy[6:]})
        assert all(each.exact == each.near == 0 for each in found.values()), name


def test_repeats_within_a_split_leave_out_the_first_of_each_group(train):
    # image 0 three times with two labels, image 1 with two near copies, of which the nearer one comes last
    near = np.stack([shift(train[1:2])[0], NEAR_COPIES["brighter"](train[1:2])[0]])
    images = np.concatenate([train[:3], train[:1], near, rotate_and_mirror(train[:1], 3)])
    found = count({"train": images}, {"train": [4, 0, 0, 4, 0, 0, 5]})["train", "train"]
    assert (found.images, found.exact, found.near, found.relabelled) == (7, 2, 2, 1)
    assert found.examples[:2] == [[3, 0], [6, 0]] and [5, 1] in found.examples[2:]


@pytest.mark.parametrize("side", [1, 2, 7, 28, 33])
def test_images_of_any_side_and_constant_ones_are_compared(side):
    rng = np.random.default_rng(side)
    constant = np.stack([np.full((side, side, 3), level, np.uint8) for level in (0, 250, 255)])
    images = np.concatenate([rng.integers(0, 256, (4, side, side, 3), np.uint8), constant])
    found = count({"train": images, "test": rotate_and_mirror(images[2:6], 6)})
    assert [(each.exact, each.near) for each in found.values()] == [(0, 0), (4, 0), (0, 0)]


def test_quadrants_of_equal_sums_do_not_hide_a_copy():
    pixels = np.random.default_rng(0).permutation(256).astype(np.uint8).reshape(16, 16)
    image = np.block([[pixels, pixels[::-1]], [pixels.T, np.roll(pixels, 5)]])
    views = np.concatenate([rotate_and_mirror(image[None], view) for view in range(VIEWS)])
    assert count({"train": views})["train", "train"].exact == VIEWS - 1


def test_chunks_do_not_change_the_counts(train, other, monkeypatch):
    images = {"train": train, "test": np.concatenate([other, NEAR_COPIES["jpeg"](train), train[:2]])}
    whole = count(images)
    monkeypatch.setattr(archives, "CHUNK_BYTES", 5 * train[0].nbytes)
    monkeypatch.setattr(duplicates, "BLOCK", 3)
    assert count(images) == whole and whole["test", "train"].near == len(train)


def test_sentences_state_counts_and_consequences():
    def found(split: str, source: str, *counts: int) -> Duplicates:
        return Duplicates(split, source, 1502, *counts, examples=[])

    assert describe_duplicates(found(*pair, 0, 0, 0) for pair in PAIRS) == []
    assert describe_duplicates(
        [
            found("train", "train", 0, 2, 4), found("train", "train", 1, 0, 0), found("val", "train", 0, 1, 0),
            found("test", "train", 1502, 0, 7), found("test", "val", 3, 0, 0),
        ]
    ) == [
        "2 of 1,502 training images are near copies of other training images: repeated images count more than once",
        "labels differ for 4 of the exact copies within the training images",
        "1 of 1,502 training images is an exact copy of another training image: repeated images count more than once",
        "1 of 1,502 validation images is a near copy of a training image: validation scores will be too good",
        "1,502 of 1,502 test images are exact copies of training images: test scores will be too good",
        "labels differ for 7 of the exact copies of training images among the test images",
        "3 of 1,502 test images are exact copies of validation images: test scores are not independent of the "
        "validation images",
    ]  # fmt: skip


@pytest.mark.parametrize("rows", [3, {}, [3], [{"split": "train"}], [dict.fromkeys(Duplicates.__annotations__, 1)]])
def test_damaged_counts_are_refused(rows):
    with pytest.raises(ValueError, match="Duplicates"):
        parse_duplicates(rows)
