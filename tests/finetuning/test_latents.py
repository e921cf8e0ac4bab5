"""Latents: encoded once per image and used view for all trainings, sampled like an encoder inside the loop."""

from __future__ import annotations

import os
import secrets
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_lora
from diffusers import DDPMScheduler
from PIL import Image

from pathsynth.core import devices
from pathsynth.core.errors import DataError, OutOfMemory
from pathsynth.core.scratch import MAX_AGE
from pathsynth.diffusion.base import load_base
from pathsynth.finetuning import latents as latents_module
from pathsynth.finetuning.batches import ROTATIONS, BatchSchedule
from pathsynth.finetuning.latents import _encode_pixels, _rotate, encode_images
from pathsynth.finetuning.settings import LoraSettings


def make_schedule(steps: int = 2, seed: int = 5, training=None, **objective) -> BatchSchedule:
    """The schedule of a training on `tiny_prepared`."""
    tree = tiny_lora()
    tree["training"] |= {"max_train_steps": steps, **(training or {})}
    tree["objective"] |= objective
    return BatchSchedule(LoraSettings.model_validate(tree), seed, 36, (4, 8, 8), DDPMScheduler())


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


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """The numbers of images that the VAE encodes at once, padding included."""
    sizes: list[int] = []

    def encode(vae, pixels, precision):
        sizes.append(len(pixels))
        return _encode_pixels(vae, pixels, precision)

    monkeypatch.setattr(latents_module, "_encode_pixels", encode)
    return sizes


def posteriors(latents) -> np.ndarray:
    """The latents of a schedule's pairs in the order of views and images."""
    return np.concatenate(latents.parts)[latents.rows[latents.rows >= 0]]


def test_nothing_is_encoded_twice(encoded, tiny_base, tiny_prepared, tmp_path, capsys):
    """Another training adds only what it needs, and has the same latents as if it had encoded everything itself."""
    first, second = make_schedule(3, rotate90=True), make_schedule(30, seed=6, rotate90=True)
    before, batches = posteriors(encode(tiny_base, tiny_prepared, first, tmp_path)), len(encoded)
    assert np.array_equal(posteriors(encode(tiny_base, tiny_prepared, first, tmp_path)), before)
    assert 0 < len(encoded) == batches
    assert "latents: 12 of 12 are reused" in capsys.readouterr().err
    added = second.used_views() & ~first.used_views()
    latents = encode(tiny_base, tiny_prepared, second, tmp_path)
    assert [len(part) for part in latents.parts] == [12, added.sum()] and 0 < added.sum() < second.used_views().sum()
    alone = encode(tiny_base, tiny_prepared, second, tmp_path / "alone")
    used = second.used_views()
    rows = (latents.rows[used], alone.rows[used])
    assert np.array_equal(*(np.concatenate(each.parts)[row] for each, row in zip((latents, alone), rows, strict=True)))


def test_other_images_vaes_formats_and_angles_are_not_shared(encoded, tiny_base, tiny_prepared, tmp_path, monkeypatch):
    # a CPU without them would compute both formats in fp32, and share the latents
    monkeypatch.setattr(devices, "_has_bf16_instructions", lambda: True)

    def folders() -> int:
        return len(list((tmp_path / "latents").iterdir()))

    encode(tiny_base, tiny_prepared, make_schedule(), tmp_path)
    encode(tiny_base, tiny_prepared, make_schedule(seed=6), tmp_path)
    assert folders() == 1
    bf16 = {"mixed_precision": "bf16", "weight_dtype": "bf16"}
    for number, schedule in enumerate((make_schedule(training=bf16), make_schedule(rotation_degrees=10.0)), start=2):
        encode(tiny_base, tiny_prepared, schedule, tmp_path)
        assert folders() == number
    encode(tiny_base, tiny_prepared, make_schedule(seed=6, rotation_degrees=10.0), tmp_path)
    assert folders() == 4
    encode(tiny_base, replace(tiny_prepared, checksums={"train": "other"}), make_schedule(), tmp_path)
    assert folders() == 5
    pipeline = load_base(tiny_base, "cpu")
    pipeline.vae.quant_conv.weight.data[0, 0, 0, 0] += 1
    encode_images(pipeline, tiny_prepared, make_schedule(), tmp_path)
    assert folders() == 6


@pytest.mark.parametrize(
    "views", [{"flips": False, "rotate90": True}, {"flips": True, "rotate90": False}, {"flips": False, "rotate90": False}]
)
def test_trainings_with_other_views_share_only_equal_ones(views, encoded, tiny_base, tiny_prepared, tmp_path):
    # enough steps for every image to occur in every view
    encode(tiny_base, tiny_prepared, make_schedule(2000, flips=True, rotate90=True), tmp_path)
    batches = len(encoded)
    shared = encode(tiny_base, tiny_prepared, make_schedule(2000, **views), tmp_path)
    assert len(encoded) == batches
    alone = encode(tiny_base, tiny_prepared, make_schedule(2000, **views), tmp_path / "alone")
    assert np.array_equal(posteriors(shared), posteriors(alone))
    # the other way round, the missing views are added
    every = encode(tiny_base, tiny_prepared, make_schedule(2000, flips=True, rotate90=True), tmp_path / "alone")
    expected = encode(tiny_base, tiny_prepared, make_schedule(2000, flips=True, rotate90=True), tmp_path)
    assert np.array_equal(posteriors(every), posteriors(expected))


@pytest.mark.parametrize("ending", [".pairs.npy", ".npy"])
@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]])
def test_damaged_files_are_encoded_again(damage, ending, encoded, tiny_base, tiny_prepared, tmp_path, capsys):
    before, batches = posteriors(encode(tiny_base, tiny_prepared, make_schedule(), tmp_path)), len(encoded)
    (pairs,) = tmp_path.glob("latents/*/*.pairs.npy")
    file = pairs.with_name(pairs.name.removesuffix(".pairs.npy") + ending)
    file.write_bytes(damage(file.read_bytes()))
    assert np.array_equal(posteriors(encode(tiny_base, tiny_prepared, make_schedule(), tmp_path)), before)
    assert len(encoded) == 2 * batches
    assert "these latents are damaged, and are encoded again" in capsys.readouterr().err


def test_unused_latents_are_removed_and_used_ones_kept(tiny_base, tiny_prepared, tmp_path):
    latents = encode(tiny_base, tiny_prepared, make_schedule(), tmp_path)
    for age, left in ((MAX_AGE + 60, False), (MAX_AGE - 60, True)):
        unused = tmp_path / "latents" / "unused"
        unused.mkdir(exist_ok=True)
        for folder in (unused, latents.folder):
            os.utime(folder, (time.time() - age,) * 2)
        latents.mark_used()
        encode(tiny_base, replace(tiny_prepared, checksums={"train": "other"}), make_schedule(), tmp_path)
        assert unused.exists() == left and latents.folder.exists()


def test_batches_shrink_until_they_fit_into_memory(monkeypatch, tiny_base, tiny_prepared, tmp_path):
    schedule = make_schedule(30, rotate90=True)
    expected = posteriors(encode(tiny_base, tiny_prepared, schedule, tmp_path))
    limit = 16

    def encode_few(vae, pixels, precision):
        if len(pixels) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return _encode_pixels(vae, pixels, precision)

    monkeypatch.setattr(latents_module, "_encode_pixels", encode_few)
    assert np.array_equal(posteriors(encode(tiny_base, tiny_prepared, schedule, tmp_path / "other")), expected)
    limit = 0
    with pytest.raises(OutOfMemory, match=r"encoding images does not fit: use a smaller dataset.image_size"):
        encode(tiny_base, tiny_prepared, schedule, tmp_path / "small")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_one_line_error(monkeypatch, tiny_base, tiny_prepared, tmp_path):
    encode(tiny_base, tiny_prepared, make_schedule(), tmp_path)
    (pairs,) = tmp_path.glob("latents/*/*.pairs.npy")
    pairs.unlink()
    monkeypatch.setattr(secrets, "token_hex", lambda _: "0")
    (pairs.parent / f".{pairs.stem}.0.part.npy").symlink_to("/dev/full")
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
