"""Sampling with the stock pipeline, with a prompt and a noise seed per image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pathsynth.core.devices import autocast, catch_out_of_memory, dtype, pad_batch_size
from pathsynth.core.errors import ModelError, one_line
from pathsynth.data.images import as_images
from pathsynth.diffusion.base import check_image_size, encode_prompts
from pathsynth.generation.settings import SamplerSettings
from pathsynth.generation.slots import Attempt

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline


class Sampler:
    """Samples images with a stock pipeline.

    Args:
        pipeline: converted to `settings.weight_dtype` in place, which cannot be undone.
        prompts: one per tissue, or several, those of a tissue side by side; its slots take them in turn.
        settings: sampler settings.
        seed: seed of the noise, `seeds.drawing`.
        image_size: side length in pixels.
        channels: 1 averages the channels, for grey images.
        prompts_per_tissue: number of prompts per tissue.

    Attributes:
        batch_size: images per batch; on a CPU rounded up by `pad_batch_size`.

    Raises:
        ModelError: if scheduler, image size or a prompt does not fit the base.
    """

    def __init__(
        self,
        pipeline: StableDiffusionPipeline,
        prompts: list[str],
        settings: SamplerSettings,
        seed: int,
        image_size: int,
        channels: int = 3,
        prompts_per_tissue: int = 1,
    ):
        check_image_size(pipeline, image_size)
        set_scheduler(pipeline, settings.scheduler)
        self.pipeline = pipeline.to(dtype(settings.weight_dtype))
        self.settings, self.seed, self.image_size, self.channels = settings, seed, image_size, channels
        self.prompts_per_tissue = prompts_per_tissue
        self.batch_size = pad_batch_size(settings.batch_size, pipeline.device.type)
        self.positive = encode_prompts(pipeline, prompts)
        self.negative = encode_prompts(pipeline, [settings.negative_prompt])

    def __call__(self, attempts: Sequence[Attempt]) -> np.ndarray:
        """Returns the images of any number of attempts, uint8 (N, size, size, 3)."""
        count = self.prompts_per_tissue
        prompts = [attempt.tissue * count + attempt.slot % count for attempt in attempts]
        return self.sample(prompts, [attempt.seed(self.seed) for attempt in attempts])

    def sample(self, prompts: Sequence[int], seeds: Sequence[int]) -> np.ndarray:
        """Samples N images in batches.

        Args:
            prompts: index of the prompt of each image.
            seeds: seed of the noise of each image.

        Returns:
            uint8 (N, size, size, 3); the channels of grey images are equal.

        Raises:
            ModelError: if pixels are NaN.
            OutOfMemory: if a batch does not fit on the device.
        """
        starts = range(0, len(seeds), self.batch_size)
        return np.concatenate(
            [self._sample_batch(prompts[i : i + self.batch_size], seeds[i : i + self.batch_size]) for i in starts]
        )

    def _sample_batch(self, prompts: Sequence[int], seeds: Sequence[int]) -> np.ndarray:
        padding = pad_batch_size(len(seeds), self.pipeline.device.type) - len(seeds)
        images = self._run_pipeline([*prompts, *[prompts[-1]] * padding], [*seeds, *[seeds[-1]] * padding])[: len(seeds)]
        if not images.isfinite().all():
            raise ModelError("base or LoRA", "sampler produced NaN pixels; try a lower learning rate")
        if self.channels == 1:
            images = images.float().mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
        return as_images(images)

    def _run_pipeline(self, prompts: list[int], seeds: list[int]) -> torch.Tensor:
        """Returns NCHW images in [0, 1]."""
        import torch

        hint = f"lower generation.sampler.batch_size ({self.settings.batch_size}), or set generation.sampler.weight_dtype: bf16"
        with (
            torch.inference_mode(),
            autocast(self.pipeline.device.type, self.settings.mixed_precision),
            catch_out_of_memory(hint),
        ):
            return self.pipeline(
                prompt_embeds=self.positive[prompts],
                negative_prompt_embeds=self.negative.expand(len(seeds), -1, -1),
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                height=self.image_size,
                width=self.image_size,
                num_inference_steps=self.settings.num_inference_steps,
                guidance_scale=self.settings.guidance_scale,
                output_type="pt",
            ).images


def set_scheduler(pipeline: StableDiffusionPipeline, name: str) -> None:
    """Replaces the scheduler with the diffusers class `name`, keeping noise schedule and prediction type.

    Raises:
        ModelError: if the class is unknown, incompatible with the base, or lacks a dependency.
    """
    option = "generation.sampler.scheduler"
    compatible = {kind.__name__: kind for kind in (type(pipeline.scheduler), *pipeline.scheduler.compatibles)}
    if name not in compatible:
        raise ModelError(option, f"{name!r} is not compatible with the base; allowed: {', '.join(sorted(compatible))}")
    try:
        pipeline.scheduler = compatible[name].from_config(pipeline.scheduler.config)
    except ImportError as error:
        raise ModelError(option, f"{name!r} cannot be used: {one_line(error)}") from error
