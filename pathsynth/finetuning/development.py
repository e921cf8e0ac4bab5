"""What shows how an adapter develops while it trains: the validation loss, and sheets of images that it samples.

Both are the same for all trainings on the same data, whatever their seed, so that curves and sheets can be compared. Neither
takes random numbers from torch's global generators, so the trained weights do not depend on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pathsynth.core.devices import catch_out_of_memory, pad_batch_size
from pathsynth.core.io import atomic_write
from pathsynth.core.seeds import Stream, make_generator, mix_seed
from pathsynth.data.images import as_images, resize_images
from pathsynth.data.prepared import Prepared
from pathsynth.data.sampling import subsample_per_class
from pathsynth.diffusion.denoising import encode_latents, evenly_spaced_timesteps, padded_batches, squared_errors
from pathsynth.finetuning.latents import vae_on_device
from pathsynth.finetuning.objective import Objective

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from diffusers import StableDiffusionPipeline

# Most images per batch. More would gain little speed.
MAX_BATCH_SIZE = 16
# A short sampler: UniPC (Zhao et al. 2023) needs few steps. Sheets show the course of a training, not its best images.
NUM_INFERENCE_STEPS, GUIDANCE_SCALE = 6, 3.0
# Largest side of an image on a sheet in pixels; git tracks the sheets.
MAX_TILE = 96
# The only picture in the folder of sheets where a training has none.
NO_SHEETS = "none.png"
VALIDATION_TOO_LARGE = "the validation loss does not fit: set validation.validation_steps: null"
SHEET_TOO_LARGE = "sampling a sheet does not fit: set validation.sheet_steps: null"


class Validation:
    """The denoising loss of fixed validation images, each at a fixed noise and one of evenly spaced time steps.

    Without the parts of the training's objective that make it noisy or change its scale: augmentation, caption dropout, noise
    offset, and weights or random draws of noise levels.

    Args:
        pipeline: its VAE encodes the images.
        prepared: images and labels.
        objective: the training's, for the encoded prompts and the noise schedule.
        images_per_tissue: how many images of each tissue; all where there are fewer.
        train_batch_size: images of a training step that fits into memory; no batch is larger, but for padding on a CPU.
    """

    def __init__(
        self,
        pipeline: StableDiffusionPipeline,
        prepared: Prepared,
        objective: Objective,
        images_per_tissue: int,
        train_batch_size: int,
    ):
        import torch

        self._batch_size = min(MAX_BATCH_SIZE, train_batch_size)
        labels = prepared.labels_of("val")
        counts = np.full(len(prepared.slugs), images_per_tissue)
        images = subsample_per_class(labels, counts, mix_seed(Stream.VALIDATION))
        with vae_on_device(pipeline):
            latents = encode_latents(pipeline, prepared.images("val")[images], self._batch_size, "encoding validation images")
        random, count = make_generator(Stream.VALIDATION), len(images)
        timesteps = evenly_spaced_timesteps(objective.noise_scheduler, count)
        # without the permutation, the images of one tissue would have the least noise where the labels are sorted
        self._timesteps = timesteps[torch.randperm(count, generator=random)].to(latents.device)
        self._noise = torch.randn(count, *latents.shape[1:], generator=random).to(latents.device)
        self._latents, self._labels = latents, torch.from_numpy(labels[images])
        self._objective = objective

    def loss(self, unet: torch.nn.Module) -> float:
        """The mean loss over all images."""
        import torch

        embeddings, count, device = self._objective.embeddings, len(self._latents), self._latents.device
        losses = []
        with (
            evaluation_mode(unet),
            catch_out_of_memory(VALIDATION_TOO_LARGE),
        ):
            for rows in padded_batches(count, device.type, self._batch_size):
                hidden = embeddings[self._labels[rows]].to(device)
                clean = self._latents[rows]
                scheduler, noise, timesteps = self._objective.noise_scheduler, self._noise[rows], self._timesteps[rows]
                losses.append(squared_errors(unet, scheduler, clean, noise, timesteps, hidden))
        # on the CPU, because many GPUs are slow at float64
        return torch.cat(losses)[:count].cpu().double().mean().item()


def sample_sheet(
    pipeline: StableDiffusionPipeline,
    embeddings: torch.Tensor,
    accelerator: Accelerator,
    image_size: int,
    channels: int,
    train_batch_size: int,
) -> np.ndarray:
    """Samples one image per tissue from the same noise in every call, with stock diffusers and the adapter as it is now.

    Args:
        pipeline: the base with the adapter; VAE and text encoder may be on the CPU.
        embeddings: encoded prompts (tissues + 1, tokens, width), the empty prompt last.
        accelerator: the training's, for its mixed precision.
        image_size: side length in pixels.
        channels: 1 averages the channels, for grey images.
        train_batch_size: images of a training step that fits into memory; no batch is larger, but for padding on a CPU.

    Returns:
        uint8 (tissues, s, s, 3), s being `image_size`, but at most MAX_TILE.

    Raises:
        OutOfMemory: a batch does not fit into memory.
    """
    from diffusers import UniPCMultistepScheduler

    parts = pipeline.components | {"scheduler": UniPCMultistepScheduler.from_config(pipeline.scheduler.config)}
    stock = type(pipeline)(**parts, requires_safety_checker=False)
    stock.set_progress_bar_config(disable=True)
    device, count, sheet = pipeline.unet.device, len(embeddings) - 1, []
    # guidance runs the UNet with and without the prompt, so a batch has two rows per image
    batch_size = max(1, min(MAX_BATCH_SIZE, train_batch_size) // 2)
    with (
        # first, because the pipeline computes on the device of its VAE
        vae_on_device(pipeline),
        evaluation_mode(pipeline.unet),
        catch_out_of_memory(SHEET_TOO_LARGE),
    ):
        for rows in padded_batches(count, device.type, batch_size):
            prompts = embeddings[rows].to(device)
            with accelerator.autocast():
                latents = stock(
                    prompt_embeds=prompts,
                    negative_prompt_embeds=embeddings[-1:].to(device).expand_as(prompts),
                    generator=[make_generator(Stream.SHEETS, int(row)) for row in rows],
                    height=image_size,
                    width=image_size,
                    num_inference_steps=NUM_INFERENCE_STEPS,
                    guidance_scale=GUIDANCE_SCALE,
                    output_type="latent",
                ).images
            # in float32, because some VAEs overflow in fp16; the decoder needs more memory per image than the UNet
            for part in (latents.float() / pipeline.vae.config.scaling_factor).split(pad_batch_size(1, device.type)):
                # black instead of an error: the training itself reports weights that became NaN
                pixels = (pipeline.vae.decode(part).sample / 2 + 0.5).nan_to_num(0.0).clamp(0, 1)
                sheet.append(as_images(pixels.mean(1, keepdim=True).expand(-1, 3, -1, -1) if channels == 1 else pixels))
    return resize_images(np.concatenate(sheet)[:count], min(image_size, MAX_TILE))


def write_sheet(folder: Path, step: int, images: np.ndarray) -> None:
    """Writes images uint8 (N, s, s, 3) side by side and without gaps as `0100.png`, named after the step.

    Raises:
        DataError: the file cannot be written.
    """
    from PIL import Image

    with atomic_write(folder / f"{step:04d}.png") as part:
        Image.fromarray(np.concatenate(list(images), axis=1)).save(part, format="PNG", optimize=True)


def clear_sheets(folder: Path, on: bool) -> None:
    """Removes the pictures of an earlier training; writes one that says so if there will be none.

    git keeps no empty folders, so DVC would miss its out in a clone.

    Raises:
        DataError: the folder cannot be written.
    """
    from PIL import Image, ImageDraw

    for path in folder.glob("*.png"):
        path.unlink()
    if not on:
        picture = Image.new("RGB", (360, 40), "white")
        ImageDraw.Draw(picture).text((12, 14), "No sheets: validation.sheet_steps is null.", "black")
        with atomic_write(folder / NO_SHEETS) as part:
            picture.save(part, format="PNG", optimize=True)


@contextmanager
def evaluation_mode(unet: torch.nn.Module) -> Iterator[None]:
    """Switches off dropout and gradients; the UNet is in training mode afterwards."""
    import torch

    unet.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        unet.train()
