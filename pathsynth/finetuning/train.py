"""Trains a LoRA: images become latents once, prompts become embeddings once, then only the UNet works."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pathsynth.core.checkpoint import NOTHING, Saved
from pathsynth.core.devices import catch_out_of_memory, dtype, training_attention
from pathsynth.core.distributed import ALONE, Processes, shared_folder
from pathsynth.core.errors import TrainingError
from pathsynth.core.progress import bar
from pathsynth.core.seeds import Stream, mix_seed, random_state, set_random_state
from pathsynth.data.prepared import Prepared
from pathsynth.diffusion.adapter import add_lora
from pathsynth.diffusion.base import check_image_size, embed
from pathsynth.finetuning.batches import BatchSchedule, StepBatch, check_shared, micro_batches
from pathsynth.finetuning.latents import Latents, encode, latent_shape, views_of
from pathsynth.finetuning.objective import Objective
from pathsynth.finetuning.schedule import build_schedule
from pathsynth.finetuning.settings import LoraSettings

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from diffusers import StableDiffusionPipeline

LOG_EVERY = 10
# AdamW (Loshchilov and Hutter, ICLR 2019) with the defaults of torch, which the paper uses too.
BETAS = (0.9, 0.999)
EPSILON = 1e-8
STATE = "training"


def train_lora(
    pipeline: StableDiffusionPipeline,
    prepared: Prepared,
    prompts: list[str],
    settings: LoraSettings,
    seed: int,
    log: Callable[[int, dict[str, float]], None],
    *,
    scratch: Path,
    processes: Processes = ALONE,
    saved: Saved = NOTHING,
) -> dict[str, float | int]:
    """Adds an adapter to the pipeline's UNet and trains it on the train split.

    Args:
        pipeline: the base; its UNet is changed in place.
        prepared: images and labels.
        prompts: one per tissue, in the order of labels.
        settings: the LoRA configuration.
        seed: global seed.
        log: called with the step (from 1) and the curve's values every few steps.
        scratch: folder for the latents while they are needed, 12.5 kB for each image of 224 px and view.
        processes: who shares the work; all of them end with the same weights.
        saved: where the training is saved now and then, and what an earlier run of it has saved.

    Returns:
        `trainable_parameters`, `images_seen` and `loss`, the mean over the last tenth of the steps.

    Raises:
        TrainingError: the loss is no longer a number, the device cannot compute in the wanted number format, or the processes
            cannot share a step.
        ModelError: the adapter or the image size does not suit the base.
        DataError: the latents cannot be written.
        MemoryFault: a step does not fit into memory.
    """
    check_image_size(pipeline, prepared.image_size)
    check_shared(settings, processes.count)
    draws = _draws(pipeline, prepared, settings, seed)
    with shared_folder(scratch, processes) as folder:
        run = _set_up(pipeline, prepared, prompts, settings, draws, folder, processes)
        with training_attention(pipeline.device.type, math.prod(draws.shape[1:])):
            losses = _loop(run, draws, settings, log, saved, processes)
    # a loss tells of the weights before its own step, so the last step shows here alone
    if not _finite(run.parameters):
        raise TrainingError("the last step made weights that are no numbers; lower optimizer.learning_rate")
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
    objective: Objective
    latents: Latents
    parts: list[slice]

    def step(self, draw: StepBatch, max_grad_norm: float) -> float:
        """One optimiser step over this process's parts of a draw; the mean loss over the whole draw."""
        import torch

        losses = []
        for rows in self.parts:
            with self.accelerator.accumulate(self.unet):
                loss = self.objective.loss(self.latents, draw.part(rows))
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.parameters, max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            losses.append(loss.detach())
        return self.accelerator.reduce(torch.stack(losses).mean(), "mean").item()

    def state_dict(self) -> dict[str, Any]:
        """All that steps change; the draws are made anew."""
        return {
            "parameters": [parameter.detach() for parameter in self.parameters],
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
            "random": random_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave in another process."""
        import torch

        with torch.no_grad():
            for parameter, value in zip(self.parameters, state["parameters"], strict=True):
                parameter.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        set_random_state(state["random"])


def _loop(
    run: _Run,
    draws: BatchSchedule,
    settings: LoraSettings,
    log: Callable[[int, dict[str, float]], None],
    saved: Saved,
    processes: Processes,
) -> list[float]:
    """All optimiser steps that are left; the losses of all."""
    training = settings.training
    losses: list[float] = []
    points: list[tuple[int, dict[str, float]]] = []
    if state := saved.get(STATE):
        run.load_state_dict(state["run"])
        losses, points = state["losses"], state["points"]
        saved.log(f"the training goes on after step {len(losses)} of {training.max_train_steps}")
        for point in points:
            log(*point)
    if len(set(processes.gather(len(losses)))) > 1:
        raise TrainingError(f"the processes do not go on from the same step; remove {saved.folder} to begin anew")
    remedy = (
        f"lower training.train_batch_size ({training.train_batch_size}) and raise gradient_accumulation_steps "
        f"({training.gradient_accumulation_steps}) by the same factor, which trains the same; "
        "or set gradient_checkpointing: true and merged: false, or mixed_precision and weight_dtype: bf16"
    )
    left = itertools.islice(draws, len(losses), None)
    steps = bar(left, "training LoRA", training.max_train_steps, done=len(losses))
    for step, draw in enumerate(steps, start=len(losses) + 1):
        with catch_out_of_memory(remedy):
            losses.append(run.step(draw, settings.optimizer.max_grad_norm))
        if not math.isfinite(losses[-1]):
            rate = settings.optimizer.learning_rate
            raise TrainingError(f"step {step}: the loss is {losses[-1]}; lower optimizer.learning_rate ({rate})")
        learning_rate = float(run.schedule.get_last_lr()[0])
        # in fp16 a step is skipped where the gradients overflow, until the loss's scale fits
        if not run.accelerator.optimizer_step_was_skipped:
            run.schedule.step()
        if step % LOG_EVERY == 0 or step == training.max_train_steps:
            recent = float(np.mean(losses[-LOG_EVERY:]))
            steps.set_postfix(loss=f"{recent:.4f}")
            points.append((step, {"train/loss": recent, "train/learning_rate": learning_rate}))
            log(*points[-1])
        # weights that the next loss would refuse are not gone on with
        if saved.should_save() and _finite(run.parameters):
            saved.put(STATE, {"run": run.state_dict(), "losses": losses, "points": points})
    return losses


def _finite(parameters: list[torch.nn.Parameter]) -> bool:
    return all(bool(parameter.isfinite().all()) for parameter in parameters)


def _draws(pipeline: StableDiffusionPipeline, prepared: Prepared, settings: LoraSettings, seed: int) -> BatchSchedule:
    return BatchSchedule(
        settings=settings,
        seed=seed,
        images=prepared.counts["train"],
        views=len(views_of(settings.objective)),
        shape=latent_shape(pipeline, prepared.image_size),
        timesteps=pipeline.scheduler.config.num_train_timesteps,
    )


def _set_up(
    pipeline: StableDiffusionPipeline,
    prepared: Prepared,
    prompts: list[str],
    settings: LoraSettings,
    draws: BatchSchedule,
    folder: Path,
    processes: Processes,
) -> _Run:
    """Computes latents and embeddings, sends the parts that are done with to the CPU, and adds the adapter."""
    import torch

    from pathsynth.finetuning.merged import MergedUNet

    training, objective = settings.training, settings.objective
    parts = micro_batches(training.train_batch_size, training.gradient_accumulation_steps, processes.index, processes.count)
    accelerator = _accelerator(training.mixed_precision, len(parts))
    torch.manual_seed(mix_seed(Stream.LORA_WEIGHTS, draws.seed))
    pipeline.unet.to(dtype(training.weight_dtype))
    parameters = add_lora(pipeline.unet, settings.adapter)
    if training.gradient_checkpointing:
        pipeline.unet.enable_gradient_checkpointing()
    latents = encode(
        pipeline,
        prepared.images("train"),
        prepared.labels_of("train"),
        views=views_of(objective),
        wanted=draws.wanted(),
        degrees=objective.rotation_degrees,
        seed=draws.seed,
        folder=folder,
        processes=processes,
    )
    embeddings = embed(pipeline, [*prompts, ""])
    pipeline.vae.to("cpu")
    pipeline.text_encoder.to("cpu")
    o = settings.optimizer
    # the fused one skips steps of overflowing gradients by itself, and then neither accelerate nor the schedule knows of it
    fused = training.mixed_precision != "fp16"
    optimizer = torch.optim.AdamW(parameters, o.learning_rate, BETAS, EPSILON, o.weight_decay, fused=fused)
    schedule = build_schedule(optimizer, settings.schedule, training.max_train_steps)
    learner = MergedUNet(pipeline.unet) if training.merged else pipeline.unet
    unet, optimizer = accelerator.prepare(learner, optimizer)
    unet.train()
    return _Run(
        accelerator=accelerator,
        unet=unet,
        parameters=parameters,
        optimizer=optimizer,
        schedule=schedule,
        objective=Objective(pipeline, unet, embeddings, objective.snr_gamma),
        latents=latents,
        parts=parts,
    )


def _accelerator(mixed_precision: str, accumulation: int) -> Accelerator:
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    gpu = torch.cuda.is_available()
    if mixed_precision == "fp16" and not gpu:
        raise TrainingError("training.mixed_precision: 'fp16' needs a GPU; allowed without one: 'no', 'bf16'")
    # accelerate keeps the first one's settings for good, and a second training in this process may want others
    AcceleratorState._reset_state()
    try:
        return Accelerator(
            cpu=not gpu,
            mixed_precision=mixed_precision,
            gradient_accumulation_steps=accumulation,
        )
    except ValueError as error:
        raise TrainingError(f"training.mixed_precision: {mixed_precision!r}: {error}") from error
