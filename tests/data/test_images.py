"""Images as batches: torch gets no read-only or mirrored memory, and nothing is copied without need."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from pathsynth.data.archives import expand_grey
from pathsynth.data.images import as_batch, as_pixels, rotate_and_mirror

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)


@pytest.fixture
def mapped(tmp_path: Path) -> np.ndarray:
    np.save(tmp_path / "images.npy", IMAGES)
    return np.load(tmp_path / "images.npy", mmap_mode="r")


@pytest.mark.parametrize("view", [0, 1, 2, 4, 7])
def test_batch_of_any_view_has_its_pixels_and_no_warning(view: int, mapped: np.ndarray):
    for images in (IMAGES, mapped, expand_grey(mapped[..., 0])):
        expected = torch.from_numpy(np.array(rotate_and_mirror(images, view), order="C")).permute(0, 3, 1, 2).float() / 255
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            batch = as_batch(rotate_and_mirror(images, view), "cpu", 16)
        assert torch.equal(batch, expected) and batch.is_contiguous(memory_format=torch.channels_last)


def test_only_read_only_images_are_copied(mapped: np.ndarray):
    selected = mapped[np.array([2, 0])]
    assert np.shares_memory(as_pixels(selected, "cpu").numpy(), selected)
    assert not np.shares_memory(as_pixels(mapped, "cpu").numpy(), mapped)
    assert torch.equal(as_batch(as_pixels(selected, "cpu"), "cpu", 8), as_batch(selected, "cpu", 8))
