"""Latents: encoded once per image and used view, sampled like an encoder inside the loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_lora
from PIL import Image

from pathsynth.core.errors import DataError
from pathsynth.diffusion.base import load_base
from pathsynth.finetuning.batches import ROTATIONS, BatchSchedule
from pathsynth.finetuning.latents import _rotate, encode_images
from pathsynth.finetuning.settings import LoraSettings


def make_schedule(steps: int = 2, **objective) -> BatchSchedule:
    """The schedule of a training on `tiny_prepared`."""
    tree = tiny_lora()
    tree["training"] |= {"max_train_steps": steps}
    tree["objective"] |= objective
    return BatchSchedule(LoraSettings.model_validate(tree), 5, 36, (4, 8, 8), 1000)


def encode(base, prepared, schedule, folder):
    return encode_images(load_base(base, "cpu"), prepared, schedule, folder)


@pytest.mark.parametrize(("flips", "count"), [(True, 8), (False, 1)])
def test_samples_follow_the_posterior_of_every_view(flips, count, tiny_base, tiny_prepared, tmp_path):
    # enough steps for every image to occur in every view
    schedule = make_schedule(2000, flips=flips, rotate90=flips)
    latents = encode(tiny_base, tiny_prepared, schedule, tmp_path)
    (part,) = latents.parts
    assert part.shape == (36 * count, 2, 4, 8, 8)
    image = tiny_prepared.images("train")[0]
    views = [np.rot90(image[:, ::-1] if flip else image, k) for flip in range(1 + flips) for k in range(4 if flips else 1)]
    with torch.no_grad():
        pixels = torch.tensor(np.stack(views)).permute(0, 3, 1, 2) / 127.5 - 1
        expected = load_base(tiny_base, "cpu").vae.encode(pixels).latent_dist.mean
    means, stds = torch.from_numpy(part[latents.rows[:, 0]]).float().unbind(1)
    torch.testing.assert_close(means, expected, atol=2e-3, rtol=2e-3)
    drawn, images = torch.arange(50) % count, torch.zeros(50, dtype=torch.long)
    noise = torch.randn(50, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(latents.sample(drawn, images, noise), means[drawn] + stds[drawn] * noise)


def test_only_used_views_are_encoded(tiny_base, tiny_prepared, tmp_path):
    schedule = make_schedule(rotate90=True)
    latents = encode(tiny_base, tiny_prepared, schedule, tmp_path)
    assert len(latents.parts[0]) == (latents.rows >= 0).sum() == 8
    for batch in schedule:
        assert latents.sample(batch.views, batch.images, batch.posterior_noise).isfinite().all()
    view, image = np.argwhere(latents.rows < 0)[0]
    with pytest.raises(ValueError, match="not encoded"):
        latents.sample(torch.tensor([view]), torch.tensor([image]), batch.posterior_noise[:1])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_one_line_error(tiny_base, tiny_prepared, tmp_path):
    (tmp_path / "0.bin").symlink_to("/dev/full")
    with pytest.raises(DataError, match="could not be written: No space left on device"):
        encode(tiny_base, tiny_prepared, make_schedule(), tmp_path)


def test_random_rotations_have_black_corners_and_own_angles():
    schedule = make_schedule(flips=False, rotation_degrees=10.0)
    assert len(schedule.views) == ROTATIONS
    angles = np.stack([schedule.angles(view) for view in range(ROTATIONS)])
    assert np.abs(angles).max() <= 10 and len(np.unique(angles)) == angles.size and angles.min() < 0 < angles.max()
    image = np.full((32, 32, 3), 255, np.uint8)
    image[4:8, 14:18] = 90
    pixels = torch.tensor(image).permute(2, 0, 1)[None].float() / 255
    rotated = (_rotate(pixels, np.array([10.0], np.float32))[0].permute(1, 2, 0).numpy() * 255).round()
    pillow = np.asarray(Image.fromarray(image).rotate(10, Image.Resampling.BILINEAR), float)
    assert rotated[0, 0].max() == 0 and rotated[16, 16].min() == 255
    # inside the image, because Pillow does not interpolate at its edge
    assert np.abs(rotated - pillow)[4:28, 4:28].max() <= 2
