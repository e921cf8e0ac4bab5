"""Validation loss and sheets: the same for all trainings on the same data, and without effect on them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import tiny_lora
from PIL import Image

from pathsynth.core import devices
from pathsynth.diffusion.adapter import add_lora
from pathsynth.diffusion.base import encode_prompts, load_base
from pathsynth.diffusion.settings import AdapterSettings
from pathsynth.finetuning import development
from pathsynth.finetuning.development import Validation, clear_sheets, sample_sheet, write_sheet
from pathsynth.finetuning.merged import MergedUNet
from pathsynth.finetuning.objective import Objective

PROMPTS = [f"tissue number {i}" for i in range(9)]


@pytest.fixture
def pipeline(tiny_base):
    """A base with an adapter in training mode, and the VAE on the CPU."""
    pipeline = load_base(tiny_base, "cpu")
    torch.manual_seed(1)
    add_lora(pipeline.unet, AdapterSettings.model_validate(tiny_lora(lora_dropout=0.5)["adapter"]))
    pipeline.unet.train()
    return pipeline


def validation(pipeline, prepared, images=2, train_batch_size=16) -> Validation:
    objective = Objective(pipeline, pipeline.unet, encode_prompts(pipeline, [*PROMPTS, ""]), 5.0)
    return Validation(pipeline, prepared, objective, images, train_batch_size)


def record_batches(module, batches: list[int]) -> None:
    """Records the number of rows of every call of a module."""
    module.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))


def move_adapter(unet) -> None:
    for name, parameter in unet.named_parameters():
        if ".lora_B" in name:
            parameter.data += 0.3


class TestValidation:
    def test_loss_is_that_of_every_image_in_balanced_classes(self, pipeline, tiny_prepared, monkeypatch):
        seen = []

        def record(unet, scheduler, clean, noise, timesteps, hidden):
            assert not unet.training and not torch.is_grad_enabled()
            seen.append((timesteps, noise, hidden))
            return timesteps.float()

        monkeypatch.setattr(development, "squared_errors", record)
        loss = validation(pipeline, tiny_prepared, images=1).loss(pipeline.unet)
        timesteps, noise, hidden = (torch.cat(parts) for parts in zip(*seen, strict=True))
        assert len(timesteps) == 16, "padded for a CPU"
        timesteps, noise, hidden = timesteps[:9], noise[:9], hidden[:9]
        assert loss == pytest.approx(500, abs=1)
        assert timesteps.sort().values.tolist() == [55, 166, 277, 388, 500, 611, 722, 833, 944]
        assert len({row.sum().item() for row in noise}) == len(noise)
        prompts = encode_prompts(pipeline, PROMPTS)
        counts = [sum(torch.equal(row, prompt) for row in hidden) for prompt in prompts]
        assert counts == [1] * 9

    def test_loss_is_the_same_again_and_follows_the_adapter(self, pipeline, tiny_prepared):
        first, other = validation(pipeline, tiny_prepared), validation(pipeline, tiny_prepared)
        losses = [first.loss(pipeline.unet), first.loss(pipeline.unet), other.loss(pipeline.unet)]
        assert losses[0] == losses[1] == losses[2] > 0
        assert first.loss(MergedUNet(pipeline.unet)) == pytest.approx(losses[0], rel=1e-4)
        move_adapter(pipeline.unet)
        assert first.loss(pipeline.unet) != losses[0] and pipeline.unet.training

    @pytest.mark.parametrize(("padding", "train_batch_size", "expected"), [
        (16, 4, [16, 16]), (16, 40, [16, 16]), (1, 4, [4, 4, 4, 4, 2]), (1, 40, [16, 2]),
    ])  # fmt: skip
    def test_batches_are_padded_on_a_cpu_and_no_larger_than_the_training_s(
        self, padding, train_batch_size, expected, pipeline, tiny_prepared, monkeypatch
    ):
        monkeypatch.setattr(devices, "CPU_BATCH", padding)
        encoded, batches = [], []
        record_batches(pipeline.vae.encoder, encoded)
        record_batches(pipeline.unet, batches)
        loss = validation(pipeline, tiny_prepared, train_batch_size=train_batch_size).loss(pipeline.unet)
        assert encoded == batches == expected
        assert loss == pytest.approx(validation(pipeline, tiny_prepared).loss(pipeline.unet), rel=1e-5)


class TestSheets:
    def test_sheet_is_the_same_again_and_follows_the_adapter(self, pipeline):
        embeddings = encode_prompts(pipeline, [*PROMPTS, ""])
        scheduler, state = pipeline.scheduler, torch.get_rng_state()

        def sample(channels=3):
            return sample_sheet(pipeline, embeddings, Accelerator(cpu=True), 32, channels, 16)

        first = sample()
        assert first.shape == (9, 32, 32, 3) and first.dtype == np.uint8 and (sample() == first).all()
        assert all((first[0] != image).any() for image in first[1:])
        assert pipeline.unet.training and pipeline.scheduler is scheduler and torch.equal(torch.get_rng_state(), state)
        grey = sample(channels=1)
        assert (grey == grey[..., :1]).all() and (grey != first).any()
        move_adapter(pipeline.unet)
        assert (sample() != first).any()

    @pytest.mark.parametrize(("padding", "train_batch_size", "sampled", "decoded"), [
        (16, 4, {32}, {16}), (1, 5, {4, 2}, {1}), (1, 1, {2}, {1}), (1, 40, {16, 2}, {1}),
    ])  # fmt: skip
    def test_batches_are_padded_on_a_cpu_and_no_larger_than_the_training_s(
        self, padding, train_batch_size, sampled, decoded, pipeline, monkeypatch
    ):
        monkeypatch.setattr(devices, "CPU_BATCH", padding)
        monkeypatch.setattr(development, "NUM_INFERENCE_STEPS", 1)
        rows, images = [], []
        record_batches(pipeline.unet, rows)
        record_batches(pipeline.vae.decoder, images)
        embeddings = encode_prompts(pipeline, [*PROMPTS, ""])
        sheet = sample_sheet(pipeline, embeddings, Accelerator(cpu=True), 32, 3, train_batch_size)
        assert set(rows) == sampled and set(images) == decoded and sheet.shape == (9, 32, 32, 3)

    def test_large_images_become_small_tiles_and_nan_becomes_black(self, pipeline):
        embeddings = encode_prompts(pipeline, [*PROMPTS[:2], ""])
        pipeline.vae.decode = lambda latents: SimpleNamespace(sample=torch.full((len(latents), 3, 128, 128), float("nan")))
        sheet = sample_sheet(pipeline, embeddings, Accelerator(cpu=True), 128, 3, 16)
        assert sheet.shape == (2, 96, 96, 3) and not sheet.any()

    def test_files(self, tmp_path):
        images = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3), np.uint8)
        folder = tmp_path / "sheets"
        clear_sheets(folder, on=False)
        assert [path.name for path in folder.iterdir()] == ["none.png"], "git keeps no empty folder"
        clear_sheets(folder, on=True)
        for step in (0, 50, 10000):
            write_sheet(folder, step, images)
        assert {path.name for path in folder.iterdir()} == {"0000.png", "0050.png", "10000.png"}
        with Image.open(folder / "0050.png") as sheet:
            assert (np.asarray(sheet) == np.concatenate(list(images), axis=1)).all()
