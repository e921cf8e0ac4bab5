"""All that is random in a LoRA training, drawn one optimiser step at a time.

The draw of a step covers its whole effective batch, and every process makes the same one. So a step is the same whether its
images go through the UNet at once, in micro-batches, or on several GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from pathsynth.core.errors import TrainingError
from pathsynth.core.seeds import Stream, generator
from pathsynth.finetuning.settings import LoraSettings

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class StepBatch:
    """What one step, or a part of it, learns from; n images.

    Attributes:
        chosen: which images, int64 (n,).
        views: in which view, int64 (n,).
        posterior: unit noise that draws latents from their posterior, float32 (n, C, h, w).
        noise: the noise to be added, offset included, float32 (n, C, h, w).
        timesteps: int64 (n,).
        dropped: whose caption is left out, bool (n,).
    """

    chosen: torch.Tensor
    views: torch.Tensor
    posterior: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    dropped: torch.Tensor

    def part(self, rows: slice) -> StepBatch:
        """The draw of some of the images."""
        return StepBatch(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True)
class BatchSchedule:
    """The draws of a training, the same ones each time they are iterated over.

    Attributes:
        settings: the LoRA configuration.
        seed: global seed.
        images: number of training images.
        views: number of views of each image.
        shape: (C, h, w) of latents.
        timesteps: number of timesteps of the noise schedule.
    """

    settings: LoraSettings
    seed: int
    images: int
    views: int
    shape: tuple[int, int, int]
    timesteps: int

    def __iter__(self) -> Iterator[StepBatch]:
        import torch

        objective, size = self.settings.objective, self._size
        random = generator(Stream.LORA_NOISE, self.seed)
        for chosen, views in self._seen():
            posterior = torch.randn(size, *self.shape, generator=random)
            noise = torch.randn(size, *self.shape, generator=random)
            if objective.noise_offset:
                # one more draw per channel, so that overall colour is learnt (Guttenberg 2023)
                noise = noise + objective.noise_offset * torch.randn(size, self.shape[0], 1, 1, generator=random)
            timesteps = torch.randint(self.timesteps, (size,), generator=random)
            dropped = torch.rand(size, generator=random) < objective.caption_dropout
            yield StepBatch(chosen, views, posterior, noise, timesteps, dropped)

    def wanted(self) -> np.ndarray:
        """Which images are ever drawn in which view, bool (views, images)."""
        wanted = np.zeros((self.views, self.images), bool)
        for chosen, views in self._seen():
            wanted[views.numpy(), chosen.numpy()] = True
        return wanted

    @property
    def _size(self) -> int:
        return self.settings.training.train_batch_size * self.settings.training.gradient_accumulation_steps

    def _seen(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Images and views of every step, from streams of their own, so that they can be known before the rest is drawn."""
        import torch

        random = generator(Stream.LORA_VIEWS, self.seed)
        batches = shuffled_batches(self.images, self._size, generator(Stream.LORA_BATCHES, self.seed))
        for chosen in islice(batches, self.settings.training.max_train_steps):
            yield chosen, torch.randint(self.views, (self._size,), generator=random)


def check_shared(settings: LoraSettings, count: int) -> None:
    """Raises TrainingError where `count` processes cannot train what one would."""
    training = settings.training
    micro_batches(training.train_batch_size, training.gradient_accumulation_steps, 0, count)
    if count > 1 and settings.adapter.lora_dropout:
        raise TrainingError(
            f"processes: {count} draw other dropout masks than one would; use adapter.lora_dropout: 0.0 or processes: 1"
        )


def shuffled_batches(count: int, batch_size: int, random: torch.Generator) -> Iterator[torch.Tensor]:
    """Endless batches of indices: each epoch is a new permutation, and batches run on across epochs."""
    import torch

    order = torch.empty(0, dtype=torch.long)
    while True:
        while len(order) < batch_size:
            order = torch.cat([order, torch.randperm(count, generator=random)])
        yield order[:batch_size]
        order = order[batch_size:]


def micro_batches(size: int, accumulation: int, index: int, count: int) -> list[slice]:
    """The parts of a step's `size` x `accumulation` images that process `index` of `count` works on, one after another.

    The processes share the micro-batches where these can be dealt out evenly, else each micro-batch's images.

    Raises:
        TrainingError: neither can be shared evenly.
    """
    if accumulation % count == 0:
        return [slice(k * size, (k + 1) * size) for k in range(index, accumulation, count)]
    if size % count == 0:
        share = size // count
        return [slice(k * size + index * share, k * size + (index + 1) * share) for k in range(accumulation)]
    raise TrainingError(
        f"processes: {count} cannot share a step evenly; allowed: numbers that divide training.gradient_accumulation_steps "
        f"({accumulation}) or training.train_batch_size ({size})"
    )
