"""Trains a LoRA: images become latents once, prompts become embeddings once, then only the UNet works."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pathsynth.base_model import check_image_size, embed
from pathsynth.devices import Stream, generator, mix_seed
from pathsynth.errors import ModelError, TrainingError
from pathsynth.lora import add_lora
from pathsynth.params import LoraSettings, ObjectiveSettings
from pathsynth.pixels import as_batch
from pathsynth.prepared import Prepared
from pathsynth.progress import bar
from pathsynth.schedules import build_schedule
from pathsynth.snr import min_snr_weights

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from diffusers import StableDiffusionPipeline
    from diffusers.training_utils import EMAModel

LOG_EVERY = 10


@dataclass(frozen=True)
class LatentCache:
    """Posterior of every training image in every view.

    `mean` and `std` are float16 (views, N, C, h, w), `labels` int64 (N,). Latents are drawn anew at every use, as an
    encoder inside the loop would do.
    """

    mean: torch.Tensor
    std: torch.Tensor
    labels: torch.Tensor

    def draw(self, chosen: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        """Unscaled latents, float32 (n, C, h, w), of images `chosen`, each in a random view."""
        import torch

        views = torch.randint(len(self.mean), (len(chosen),), generator=random)
        mean, std = self.mean[views, chosen].float(), self.std[views, chosen].float()
        return mean + std * torch.randn(mean.shape, generator=random)


def cache_latents(
    pipeline: StableDiffusionPipeline,
    images: np.ndarray,
    labels: np.ndarray,
    objective: ObjectiveSettings,
    batch_size: int = 64,
) -> LatentCache:
    """Encodes uint8 (N, H, W, 3) images in all views that flips and quarter turns allow."""
    import torch

    flips, turns = (False, True)[: 1 + objective.flips], range(4 if objective.quarter_turns else 1)
    views = [(flip, turn) for flip in flips for turn in turns]
    batches = [(flip, turn, start) for flip, turn in views for start in range(0, len(images), batch_size)]
    mean: list[torch.Tensor] = []
    std: list[torch.Tensor] = []
    with torch.inference_mode():
        for flip, turn, start in bar(batches, "encoding images"):
            pixels = as_batch(images[start : start + batch_size], str(pipeline.device), images.shape[1]) * 2 - 1
            posterior = pipeline.vae.encode((pixels.flip(3) if flip else pixels).rot90(turn, (2, 3))).latent_dist
            mean.append(posterior.mean.half().cpu())
            std.append(posterior.std.half().cpu())
    shape = (len(views), len(images), *mean[0].shape[1:])
    return LatentCache(torch.cat(mean).reshape(shape).clone(), torch.cat(std).reshape(shape).clone(), torch.from_numpy(labels))


def train_lora(
    pipeline: StableDiffusionPipeline,
    prepared: Prepared,
    prompts: list[str],
    settings: LoraSettings,
    seed: int,
    log: Callable[[int, dict[str, float]], None],
) -> dict[str, float | int]:
    """Adds an adapter to the pipeline's UNet and trains it on the train split.

    Args:
        pipeline: the base; its UNet is changed in place.
        prepared: images and labels.
        prompts: one per tissue, in the order of labels.
        settings: the LoRA configuration.
        seed: global seed.
        log: called with the step (from 1) and the curve's values every few steps.

    Returns:
        `trainable_parameters`, `images_seen` and `loss`, the mean over the last tenth of the steps.

    Raises:
        TrainingError: the loss is no longer a number, or the device cannot compute in the wanted number format.
        ModelError: the adapter or the image size does not suit the base.
    """
    run = _set_up(pipeline, prepared, prompts, settings, seed)
    losses: list[float] = []
    steps = bar(range(settings.training.max_train_steps), "training LoRA")
    for step in steps:
        losses.append(run.step(settings.training.gradient_accumulation_steps, settings.optimizer.max_grad_norm))
        if not math.isfinite(losses[-1]):
            rate = settings.optimizer.learning_rate
            raise TrainingError(f"step {step + 1}: the loss is {losses[-1]}; lower optimizer.learning_rate ({rate})")
        learning_rate = float(run.schedule.get_last_lr()[0])
        run.schedule.step()
        if run.average:
            run.average.step(run.parameters)
        if (step + 1) % LOG_EVERY == 0 or step + 1 == settings.training.max_train_steps:
            recent = float(np.mean(losses[-LOG_EVERY:]))
            steps.set_postfix(loss=f"{recent:.4f}")
            log(step + 1, {"train/loss": recent, "train/learning_rate": learning_rate})
    if run.average:
        run.average.copy_to(run.parameters)
    # a loss tells of the weights before its own step, so the last step shows here alone
    if not all(bool(parameter.isfinite().all()) for parameter in run.parameters):
        raise TrainingError("the last step made weights that are no numbers; lower optimizer.learning_rate")
    pipeline.unet = run.accelerator.unwrap_model(run.unet)
    return {
        "trainable_parameters": sum(parameter.numel() for parameter in run.parameters),
        "images_seen": len(losses) * settings.training.train_batch_size * settings.training.gradient_accumulation_steps,
        "loss": round(float(np.mean(losses[-max(1, len(losses) // 10) :])), 6),
    }


@dataclass(frozen=True)
class _Run:
    """Everything that takes part in a training."""

    accelerator: Accelerator
    unet: torch.nn.Module
    parameters: list[torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    average: EMAModel | None
    objective: Objective
    cache: LatentCache
    batches: Iterator[torch.Tensor]

    def step(self, accumulation: int, max_grad_norm: float) -> float:
        """One optimiser step over `accumulation` batches; their mean loss."""
        total = 0.0
        for _ in range(accumulation):
            with self.accelerator.accumulate(self.unet):
                loss = self.objective.loss(self.cache, next(self.batches))
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.parameters, max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            total += loss.item()
        return total / accumulation


def _set_up(
    pipeline: StableDiffusionPipeline, prepared: Prepared, prompts: list[str], settings: LoraSettings, seed: int
) -> _Run:
    """Adds the adapter, computes latents and embeddings, and sends the parts that are done with to the CPU."""
    import torch

    check_image_size(pipeline, prepared.image_size)
    torch.manual_seed(mix_seed(Stream.LORA_WEIGHTS, seed))
    accelerator = _accelerator(settings)
    parameters = add_lora(pipeline.unet, settings.adapter)
    cache = cache_latents(pipeline, prepared.images("train"), prepared.labels_of("train"), settings.objective)
    embeddings = embed(pipeline, [*prompts, ""])
    pipeline.vae.to("cpu")
    pipeline.text_encoder.to("cpu")
    o = settings.optimizer
    optimizer = torch.optim.AdamW(parameters, o.learning_rate, (o.beta1, o.beta2), o.epsilon, o.weight_decay)
    schedule = build_schedule(optimizer, settings.schedule, settings.training.max_train_steps)
    unet, optimizer = accelerator.prepare(pipeline.unet, optimizer)
    unet.train()
    return _Run(
        accelerator=accelerator,
        unet=unet,
        parameters=parameters,
        optimizer=optimizer,
        schedule=schedule,
        average=_average(parameters, settings.objective.ema_decay),
        objective=Objective(pipeline, unet, embeddings, settings.objective, generator(Stream.LORA_NOISE, seed)),
        cache=cache,
        batches=shuffled_batches(len(cache.labels), settings.training.train_batch_size, generator(Stream.LORA_BATCHES, seed)),
    )


class Objective:
    """The denoising loss of Ho et al. 2020 on latents, for epsilon- and v-prediction bases, with its variations."""

    def __init__(self, pipeline, unet, embeddings: torch.Tensor, settings: ObjectiveSettings, random: torch.Generator):
        from diffusers import DDPMScheduler

        self.noise_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
        self.unet, self.embeddings, self.settings, self.random = unet, embeddings, settings, random
        self.scaling_factor = pipeline.vae.config.scaling_factor
        self.device = pipeline.unet.device
        if self.noise_scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
            raise ModelError(
                "scheduler", f"prediction_type {self.noise_scheduler.config.prediction_type!r} is not epsilon or v_prediction"
            )

    def loss(self, cache: LatentCache, chosen: torch.Tensor) -> torch.Tensor:
        """The mean loss of images `chosen`, int64 (n,)."""
        import torch

        clean = (cache.draw(chosen, self.random) * self.scaling_factor).to(self.device, memory_format=torch.channels_last)
        noise = self._noise(clean.shape).to(self.device)
        steps = self.noise_scheduler.config.num_train_timesteps
        timesteps = torch.randint(steps, (len(clean),), generator=self.random).to(self.device)
        hidden = self.embeddings[self._texts(cache.labels[chosen])].to(self.device)
        noisy = self.noise_scheduler.add_noise(clean, noise, timesteps)
        predicted = self.unet(noisy, timesteps, encoder_hidden_states=hidden).sample
        velocity = self.noise_scheduler.config.prediction_type == "v_prediction"
        target = self.noise_scheduler.get_velocity(clean, noise, timesteps) if velocity else noise
        losses = (predicted.float() - target).square().mean(dim=(1, 2, 3))
        return (losses * self._weights(timesteps, velocity)).mean()

    def _texts(self, labels: torch.Tensor) -> torch.Tensor:
        """Rows of the embeddings: the tissue's prompt, or now and then the empty one, which comes last."""
        import torch

        dropped = torch.rand(len(labels), generator=self.random) < self.settings.caption_dropout
        return torch.where(dropped, len(self.embeddings) - 1, labels)

    def _noise(self, shape: torch.Size) -> torch.Tensor:
        """Unit noise, and with an offset one more draw per channel, so that overall colour is learnt (Guttenberg 2023)."""
        import torch

        noise = torch.randn(shape, generator=self.random)
        if self.settings.noise_offset:
            noise = noise + self.settings.noise_offset * torch.randn(*shape[:2], 1, 1, generator=self.random)
        return noise

    def _weights(self, timesteps: torch.Tensor, velocity: bool) -> torch.Tensor:
        """Min-SNR weights, or ones."""
        if self.settings.snr_gamma is None:
            return timesteps.new_ones(len(timesteps)).float()
        return min_snr_weights(self.noise_scheduler, timesteps, self.settings.snr_gamma, velocity)


def shuffled_batches(count: int, batch_size: int, random: torch.Generator) -> Iterator[torch.Tensor]:
    """Endless batches of indices: each epoch is a new permutation, and batches run on across epochs."""
    import torch

    order = torch.empty(0, dtype=torch.long)
    while True:
        while len(order) < batch_size:
            order = torch.cat([order, torch.randperm(count, generator=random)])
        yield order[:batch_size]
        order = order[batch_size:]


def _accelerator(settings: LoraSettings) -> Accelerator:
    from accelerate import Accelerator

    try:
        return Accelerator(
            mixed_precision=settings.training.mixed_precision,
            gradient_accumulation_steps=settings.training.gradient_accumulation_steps,
        )
    except ValueError as error:
        raise TrainingError(f"training.mixed_precision: {settings.training.mixed_precision!r}: {error}") from error


def _average(parameters: list[torch.nn.Parameter], decay: float | None) -> EMAModel | None:
    from diffusers.training_utils import EMAModel

    return EMAModel(parameters, decay=decay, use_ema_warmup=True, power=0.75) if decay else None
