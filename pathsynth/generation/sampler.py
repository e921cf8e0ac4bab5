"""Draws images with the stock pipeline, each with its own prompt and its own noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pathsynth.core.devices import autocast, catch_out_of_memory, dtype, pad_batch_size
from pathsynth.core.errors import ModelError, one_line
from pathsynth.data.images import as_images
from pathsynth.diffusion.base import check_image_size, embed
from pathsynth.generation.settings import SamplerSettings
from pathsynth.generation.slots import Attempt, in_batches

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline


class Sampler:
    """Draws attempts with a stock pipeline: each row its own prompt and its own noise.

    Attributes:
        batch_size: images at a time; that of the settings, on a CPU rounded up, see `devices.filled_up`.
    """

    def __init__(
        self,
        pipeline: StableDiffusionPipeline,
        prompts: list[str],
        settings: SamplerSettings,
        seed: int,
        image_size: int,
        channels: int = 3,
    ):
        check_image_size(pipeline, image_size)
        set_scheduler(pipeline, settings.scheduler)
        self.pipeline = pipeline.to(dtype(settings.weight_dtype))
        self.settings, self.seed, self.image_size, self.channels = settings, seed, image_size, channels
        self.batch_size = pad_batch_size(settings.batch_size, pipeline.device.type)
        self.positive = embed(pipeline, prompts)
        self.negative = embed(pipeline, [settings.negative_prompt])

    def __call__(self, attempts: list[Attempt]) -> np.ndarray:
        """Images, uint8 (n, size, size, 3), of the attempts; their channels are equal where grey ones are wanted."""
        spare = pad_batch_size(len(attempts), self.pipeline.device.type) - len(attempts)
        images = self._draw([*attempts, *[attempts[-1]] * spare])[: len(attempts)]
        if not images.isfinite().all():
            raise ModelError("base or LoRA", "draws pixels that are no numbers; train the LoRA with a lower learning rate")
        if self.channels == 1:
            images = images.float().mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
        return as_images(images)

    def _draw(self, attempts: list[Attempt]) -> torch.Tensor:
        """NCHW in [0, 1]."""
        import torch

        generators = [torch.Generator().manual_seed(attempt.seed(self.seed)) for attempt in attempts]
        with (
            torch.inference_mode(),
            autocast(self.pipeline.device.type, self.settings.mixed_precision),
            catch_out_of_memory(
                f"lower generation.sampler.batch_size ({self.settings.batch_size}), or set generation.sampler.weight_dtype: bf16"
            ),
        ):
            return self.pipeline(
                prompt_embeds=self.positive[[attempt.tissue for attempt in attempts]],
                negative_prompt_embeds=self.negative.expand(len(attempts), -1, -1),
                generator=generators,
                height=self.image_size,
                width=self.image_size,
                num_inference_steps=self.settings.num_inference_steps,
                guidance_scale=self.settings.guidance_scale,
                output_type="pt",
            ).images

    def draw_all(self, attempts: list[Attempt]) -> np.ndarray:
        """The same for any number of attempts, a batch at a time."""
        return np.concatenate([self(batch) for batch in in_batches(attempts, self.batch_size)])


def set_scheduler(pipeline: StableDiffusionPipeline, name: str) -> None:
    """Swaps the pipeline's scheduler for the diffusers class `name`, keeping noise schedule and prediction type."""
    known = {kind.__name__: kind for kind in (type(pipeline.scheduler), *pipeline.scheduler.compatibles)}
    if name not in known:
        raise ModelError(
            "generation.sampler.scheduler", f"{name!r} does not suit the base; allowed: {', '.join(sorted(known))}"
        )
    try:
        pipeline.scheduler = known[name].from_config(pipeline.scheduler.config)
    except ImportError as error:
        raise ModelError("generation.sampler.scheduler", f"{name!r} cannot be used here: {one_line(error)}") from error
