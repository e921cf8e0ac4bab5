"""Sampling with the stock pipeline, with a prompt and a noise seed per image."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import TYPE_CHECKING

import numpy as np

from pathsynth.core.devices import autocast, catch_out_of_memory, dtype, pad_batch_size, tf32
from pathsynth.core.errors import ModelError, one_line
from pathsynth.data.images import as_images
from pathsynth.diffusion.base import check_image_size, encode_prompts
from pathsynth.generation.settings import SamplerSettings
from pathsynth.generation.slots import Attempt

if TYPE_CHECKING:
    import torch
    from diffusers import SchedulerMixin, StableDiffusionPipeline

# torchsde's Brownian motion covers a whole batch and ignores the generators of its images.
NOISE_PER_BATCH = "DPMSolverSDEScheduler"
# How many larger numbers of steps are tried to find one that works.
MAX_STEPS_TRIED = 20


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
        set_scheduler(pipeline, settings.scheduler, settings.num_inference_steps)
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
            raise ModelError("base or LoRA", f"sampler produced NaN pixels; {self._nan_hint()}")
        if self.channels == 1:
            images = images.float().mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
        return as_images(images)

    def _nan_hint(self) -> str:
        """Names the likely cause: number formats that overflow, else weights that grew too large."""
        if "fp16" in (self.settings.mixed_precision, self.settings.weight_dtype):
            keys = f"{self.settings.key('mixed_precision')} and {self.settings.key('weight_dtype')}"
            return f"fp16 overflows above 65 504: set {keys} to bf16"
        return "train the LoRA with a lower learning rate; without a LoRA, the base itself fails"

    def _run_pipeline(self, prompts: list[int], seeds: list[int]) -> torch.Tensor:
        """Returns NCHW images in [0, 1]."""
        import torch

        settings = self.settings
        hint = f"lower {settings.key('batch_size')} ({settings.batch_size}), or set {settings.key('weight_dtype')}: bf16"
        with (
            torch.inference_mode(),
            autocast(self.pipeline.device.type, settings.mixed_precision),
            tf32(settings.tf32),
            catch_out_of_memory(hint),
        ):
            return self.pipeline(
                prompt_embeds=self.positive[prompts],
                negative_prompt_embeds=self.negative.expand(len(seeds), -1, -1),
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                height=self.image_size,
                width=self.image_size,
                num_inference_steps=settings.num_inference_steps,
                guidance_scale=settings.guidance_scale,
                output_type="pt",
            ).images


def set_scheduler(pipeline: StableDiffusionPipeline, name: str, num_inference_steps: int) -> None:
    """Replaces the scheduler with the diffusers class `name`, keeping noise schedule and prediction type.

    The scheduler runs once without the UNet, so that a mistake is found before the first image.

    Raises:
        ModelError: if the class is unknown, does not fit the base or the number of steps, lacks a dependency, or draws noise
            per batch instead of per image.
    """
    option = "generation.sampler.scheduler"
    compatible = {kind.__name__: kind for kind in (type(pipeline.scheduler), *pipeline.scheduler.compatibles)}
    compatible.pop(NOISE_PER_BATCH, None)
    allowed = f"allowed: {', '.join(sorted(compatible))}"
    if name == NOISE_PER_BATCH:
        raise ModelError(
            option, f"{name!r} draws noise per batch, so an image would depend on the others in its batch; {allowed}"
        )
    if name not in compatible:
        raise ModelError(option, f"{name!r} is not compatible with the base; {allowed}")
    try:
        scheduler = compatible[name].from_config(pipeline.scheduler.config)
    except (ImportError, ValueError) as error:
        raise ModelError(option, f"{name!r} cannot be used: {one_line(error)}; {allowed}") from error
    if problem := _find_step_problem(scheduler, num_inference_steps):
        candidates = range(num_inference_steps + 1, num_inference_steps + 1 + MAX_STEPS_TRIED)
        more = next((steps for steps in candidates if not _find_step_problem(scheduler, steps)), None)
        remedy = f"{more} works" if more else "choose another scheduler or number of steps"
        raise ModelError("generation.sampler.num_inference_steps", f"{num_inference_steps} with {name}: {problem}; {remedy}")
    together, alone = (_run_scheduler(scheduler, num_inference_steps, seeds) for seeds in ([1, 2], [2]))
    # matrix products may be rounded by the size of the batch
    if not together[1:].allclose(alone, rtol=1e-3):
        raise ModelError(
            option, f"{name!r} draws noise per batch, so an image would depend on the others in its batch; {allowed}"
        )
    pipeline.scheduler = scheduler


def _find_step_problem(scheduler: SchedulerMixin, num_inference_steps: int) -> str | None:
    """Runs a scheduler on a 1 x 1 latent; describes what fails, or returns None."""
    try:
        sample = _run_scheduler(scheduler, num_inference_steps, [1])
    except Exception as error:
        # schedulers check little; what a wrong number of steps raises is whatever numpy or torch raise in the middle
        return f"the scheduler fails ({one_line(error)})"
    return None if sample.isfinite().all() else "the scheduler returns NaN"


def _run_scheduler(scheduler: SchedulerMixin, num_inference_steps: int, seeds: list[int]) -> torch.Tensor:
    """Denoises latents (n, 1, 1, 1) with a constant share of the sample in place of the UNet's prediction."""
    import torch

    scheduler = type(scheduler).from_config(scheduler.config)
    scheduler.set_timesteps(num_inference_steps)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    options = {"generator": generators} if "generator" in signature(scheduler.step).parameters else {}
    sample = torch.cat([torch.randn(1, 1, 1, 1, generator=generator) for generator in generators]) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(sample, timestep)
        sample = scheduler.step(0.1 * scaled, timestep, sample, return_dict=False, **options)[0]
    return sample
