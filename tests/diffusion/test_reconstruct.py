"""Copies of images by the VAE: deterministic, independent of the batch, and the same as with diffusers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import same_pixels

from pathsynth.data.archives import expand_grey
from pathsynth.diffusion.base import load_base
from pathsynth.diffusion.reconstruct import vae_copies


@pytest.fixture(scope="module")
def pipeline(tiny_base):
    return load_base(tiny_base, "cpu")


def test_copies_are_those_of_the_modes(pipeline, tiny_prepared):
    images = tiny_prepared.images("train")[:5]
    with torch.no_grad():
        pixels = torch.tensor(np.array(images)).permute(0, 3, 1, 2) / 127.5 - 1
        decoded = pipeline.vae(pixels, sample_posterior=False).sample
    expected = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy().astype(np.uint8)
    copies = vae_copies(pipeline, images, 8)
    assert copies.dtype == np.uint8
    assert same_pixels(copies, expected)


def test_batches_change_nothing(pipeline, tiny_prepared):
    images = tiny_prepared.images("train")[:20]
    copies = vae_copies(pipeline, images, 32)
    np.testing.assert_array_equal(vae_copies(pipeline, images, 1), copies)
    np.testing.assert_array_equal(vae_copies(pipeline, images[17:], 16), copies[17:])
    assert vae_copies(pipeline, images[:0], 16).shape == (0, 32, 32, 3)


def test_copies_of_grey_images_are_grey(pipeline):
    grey = expand_grey(np.random.default_rng(0).integers(0, 256, (3, 32, 32), np.uint8))
    copies = vae_copies(pipeline, grey, 16)
    assert (copies == copies[..., :1]).all()
    coloured = grey.copy()
    coloured[0, 0, 0] = (200, 100, 150)
    assert (vae_copies(pipeline, coloured, 16) != copies).any()
