"""The random numbers of a LoRA training, drawn one optimizer step at a time.

Every process draws the whole effective batch of a step. So a step is the same whether its images pass through the UNet at once,
in micro-batches, or on several GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import islice, product
from typing import TYPE_CHECKING

import numpy as np

from pathsynth.core.errors import TrainingError
from pathsynth.core.seeds import Stream, make_generator
from pathsynth.diffusion.noise_levels import draw_timesteps
from pathsynth.finetuning.settings import LoraSettings

if TYPE_CHECKING:
    import torch
    from diffusers import DDPMScheduler


# Number of random rotations per image; finite, so that all views can be encoded before training.
ROTATIONS = 4


@dataclass(frozen=True)
class View:
    """An augmentation of an image: a flip, then a rotation by 90 degrees `quarters` times, then one by a random angle.

    `rotation` is the number of the random rotation, or None.
    """

    flip: bool
    quarters: int
    rotation: int | None


@dataclass(frozen=True)
class StepBatch:
    """The inputs of one optimizer step, or of a part of it.

    Attributes:
        images: indices of training images, int64 (n,).
        views: index of each image's view, int64 (n,).
        posterior_noise: unit noise that samples latents from their posterior, float32 (n, C, h, w).
        noise: noise to add to the latents, offset included, float32 (n, C, h, w).
        timesteps: int64 (n,).
        dropped: whether the caption is replaced by the empty prompt, bool (n,).
    """

    images: torch.Tensor
    views: torch.Tensor
    posterior_noise: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    dropped: torch.Tensor

    def select(self, rows: slice) -> StepBatch:
        """The part of the batch in `rows`."""
        return StepBatch(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True)
class BatchSchedule:
    """The batches of all optimizer steps; every iteration yields the same ones.

    Attributes:
        settings: the LoRA configuration.
        seed: global seed.
        num_images: number of training images.
        latent_shape: (C, h, w).
        noise_scheduler: the noise schedule.
    """

    settings: LoraSettings
    seed: int
    num_images: int
    latent_shape: tuple[int, int, int]
    noise_scheduler: DDPMScheduler

    def __iter__(self) -> Iterator[StepBatch]:
        import torch

        objective, size, shape = self.settings.objective, self.settings.training.effective_batch_size, self.latent_shape
        random = make_generator(Stream.LORA_NOISE, self.seed)
        for images, views in self._image_schedule():
            posterior_noise = torch.randn(size, *shape, generator=random)
            noise = torch.randn(size, *shape, generator=random)
            if objective.noise_offset:
                # a constant per channel, so that the LoRA learns overall colour (Guttenberg 2023)
                noise = noise + objective.noise_offset * torch.randn(size, shape[0], 1, 1, generator=random)
            if objective.log_snr:
                timesteps = draw_timesteps(self.noise_scheduler, objective.log_snr, size, random)
            else:
                timesteps = torch.randint(self.noise_scheduler.config.num_train_timesteps, (size,), generator=random)
            dropped = torch.rand(size, generator=random) < objective.caption_dropout
            yield StepBatch(images, views, posterior_noise, noise, timesteps, dropped)

    @cached_property
    def views(self) -> list[View]:
        """All views of an image that the objective allows."""
        objective = self.settings.objective
        flips = (False, True) if objective.flips else (False,)
        quarters = range(4) if objective.rotate90 else (0,)
        rotations = range(ROTATIONS) if objective.rotation_degrees else (None,)
        return [View(*view) for view in product(flips, quarters, rotations)]

    def angles(self, view: int) -> np.ndarray:
        """The random rotation of every image in a view, float32 (images,) in degrees."""
        import torch

        random = make_generator(Stream.LORA_ROTATIONS, self.seed, view)
        return ((torch.rand(self.num_images, generator=random) * 2 - 1) * self.settings.objective.rotation_degrees).numpy()

    def used_views(self) -> np.ndarray:
        """Which views of which images occur in any batch, bool (views, images)."""
        used = np.zeros((len(self.views), self.num_images), bool)
        for images, views in self._image_schedule():
            used[views.numpy(), images.numpy()] = True
        return used

    def _image_schedule(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields images and views of every step, from separate streams, so that `used_views` need not draw any noise."""
        import torch

        size = self.settings.training.effective_batch_size
        random = make_generator(Stream.LORA_VIEWS, self.seed)
        batches = shuffled_batches(self.num_images, size, make_generator(Stream.LORA_BATCHES, self.seed))
        for images in islice(batches, self.settings.training.max_train_steps):
            yield images, torch.randint(len(self.views), (size,), generator=random)


def shuffled_batches(count: int, batch_size: int, random: torch.Generator) -> Iterator[torch.Tensor]:
    """Yields endless batches of indices: each epoch is a new permutation, and a batch may span two epochs."""
    import torch

    order = torch.empty(0, dtype=torch.long)
    while True:
        while len(order) < batch_size:
            order = torch.cat([order, torch.randperm(count, generator=random)])
        yield order[:batch_size]
        order = order[batch_size:]


def micro_batches(effective_size: int, max_size: int, index: int, count: int) -> list[slice]:
    """Splits a step of `effective_size` images into the micro-batches of process `index` of `count`.

    Every process has one contiguous share, in the smallest number of equal parts of at most `max_size` images.

    Raises:
        TrainingError: the processes cannot have equal shares.
    """
    share, rest = divmod(effective_size, count)
    if rest:
        raise TrainingError(
            f"processes: {count} cannot share a step of {effective_size} images equally; allowed: divisors of {effective_size}"
        )
    size = next(size for size in range(min(share, max_size), 0, -1) if share % size == 0)
    return [slice(start, start + size) for start in range(index * share, (index + 1) * share, size)]


def check_process_count(settings: LoraSettings, count: int) -> None:
    """Raises a TrainingError if `count` processes would not train the same adapter as one process."""
    training = settings.training
    micro_batches(training.effective_batch_size, training.train_batch_size, 0, count)
    if count > 1 and settings.adapter.lora_dropout:
        raise TrainingError(
            f"processes: {count} would draw different dropout masks; use adapter.lora_dropout: 0.0 or processes: 1"
        )
