"""LoRA training: images and prompts are encoded once, then only the UNet runs."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pathsynth.core.checkpoint import NO_CHECKPOINT, Checkpoint
from pathsynth.core.devices import catch_out_of_memory, dtype, gpu_available, supported_precision, training_attention
from pathsynth.core.distributed import ALONE, Processes, shared_folder
from pathsynth.core.errors import TrainingError
from pathsynth.core.progress import progress_bar
from pathsynth.core.seeds import Stream, get_random_state, mix_seed, set_random_state
from pathsynth.data.prepared import Prepared
from pathsynth.diffusion.adapter import add_lora
from pathsynth.diffusion.base import check_image_size, encode_prompts
from pathsynth.finetuning.batches import BatchSchedule, StepBatch, check_process_count, micro_batches
from pathsynth.finetuning.latents import Latents, encode_images, latent_shape
from pathsynth.finetuning.objective import Objective
from pathsynth.finetuning.schedule import build_schedule
from pathsynth.finetuning.settings import LoraSettings, TrainingSettings

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from diffusers import StableDiffusionPipeline

LOG_EVERY = 10
# AdamW (Loshchilov and Hutter, ICLR 2019) with the defaults of torch and of the paper.
BETAS = (0.9, 0.999)
EPSILON = 1e-8
STATE = "training"

Log = Callable[[int, dict[str, float]], None]


def train_lora(
    pipeline: StableDiffusionPipeline,
    prepared: Prepared,
    prompts: list[str],
    settings: LoraSettings,
    seed: int,
    log: Log,
    *,
    scratch: Path,
    processes: Processes = ALONE,
    checkpoint: Checkpoint = NO_CHECKPOINT,
) -> dict[str, float | int]:
    """Adds an adapter to the pipeline's UNet and trains it on the train split.

    Args:
        pipeline: the base; its UNet is changed in place.
        prepared: images and labels.
        prompts: one per tissue, in the order of labels.
        settings: the LoRA configuration.
        seed: global seed.
        log: called every LOG_EVERY steps with the step, from 1, and the values of its curves.
        scratch: folder for temporary latents, 12.5 kB for each view of an image of 224 px.
        processes: the processes that share the work; all end with the same weights.
        checkpoint: saves the training at intervals, and resumes an interrupted one.

    Returns:
        `trainable_parameters`, `images_seen` and `loss`, the mean over the last tenth of the steps.

    Raises:
        TrainingError: loss or weights become NaN, the device does not support the number format, or the processes cannot split
            a step.
        ModelError: the adapter or the image size does not fit the base.
        DataError: the latents cannot be written.
        OutOfMemory: a step does not fit into memory.
    """
    check_image_size(pipeline, prepared.image_size)
    check_process_count(settings, processes.count)
    schedule = BatchSchedule(
        settings,
        seed,
        num_images=prepared.counts["train"],
        latent_shape=latent_shape(pipeline, prepared.image_size),
        num_timesteps=pipeline.scheduler.config.num_train_timesteps,
    )
    with shared_folder(scratch, processes) as folder:
        training = _prepare_training(pipeline, prepared, prompts, schedule, folder, processes)
        with training_attention(pipeline.device.type, math.prod(schedule.latent_shape[1:])):
            losses = _run_steps(training, schedule, log, checkpoint)
    # the loss is computed before the update, so it does not reveal a failure of the last update
    if not training.has_finite_weights():
        raise TrainingError("the last step produced NaN weights; lower optimizer.learning_rate")
    return {
        "trainable_parameters": sum(parameter.numel() for parameter in training.parameters),
        "images_seen": len(losses) * settings.training.effective_batch_size,
        "loss": round(float(np.mean(losses[-max(1, len(losses) // 10) :])), 6),
    }


@dataclass(frozen=True)
class _Training:
    """The objects that an optimizer step needs."""

    accelerator: Accelerator
    unet: torch.nn.Module
    parameters: list[torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    lr_schedule: torch.optim.lr_scheduler.LRScheduler
    objective: Objective
    latents: Latents
    micro_batches: list[slice]

    def step(self, batch: StepBatch, max_grad_norm: float) -> float:
        """Runs one optimizer step on this process's micro-batches; returns the mean loss of the whole batch."""
        import torch

        losses = []
        for rows in self.micro_batches:
            with self.accelerator.accumulate(self.unet):
                loss = self.objective.loss(self.latents, batch.select(rows))
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.parameters, max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            losses.append(loss.detach())
        return self.accelerator.reduce(torch.stack(losses).mean(), "mean").item()

    def has_finite_weights(self) -> bool:
        return all(bool(parameter.isfinite().all()) for parameter in self.parameters)

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that a step changes; batches are not saved but drawn again."""
        return {
            "parameters": [parameter.detach() for parameter in self.parameters],
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.lr_schedule.state_dict(),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
            "random": get_random_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a state from `state_dict`."""
        import torch

        with torch.no_grad():
            for parameter, value in zip(self.parameters, state["parameters"], strict=True):
                parameter.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.lr_schedule.load_state_dict(state["schedule"])
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        set_random_state(state["random"])


def _run_steps(training: _Training, schedule: BatchSchedule, log: Log, checkpoint: Checkpoint) -> list[float]:
    """Runs the remaining optimizer steps; returns the losses of all."""
    settings, count = schedule.settings, schedule.settings.training.max_train_steps
    losses: list[float] = []
    points: list[tuple[int, dict[str, float]]] = []
    if state := checkpoint.load(STATE):
        training.load_state_dict(state["run"])
        losses, points = state["losses"], state["points"]
        checkpoint.log(f"resuming after step {len(losses)} of {count}")
        for point in points:
            log(*point)
    hint = _memory_hint(settings)
    remaining = itertools.islice(schedule, len(losses), None)
    steps = progress_bar(remaining, "training LoRA", count, done=len(losses))
    for step, batch in enumerate(steps, start=len(losses) + 1):
        with catch_out_of_memory(hint):
            losses.append(training.step(batch, settings.optimizer.max_grad_norm))
        if not math.isfinite(losses[-1]):
            raise TrainingError(f"step {step}: the loss is {losses[-1]}{_nan_hint(settings, step)}")
        learning_rate = float(training.lr_schedule.get_last_lr()[0])
        # fp16 skips steps with overflowing gradients until the loss scale fits
        if not training.accelerator.optimizer_step_was_skipped:
            training.lr_schedule.step()
        if step % LOG_EVERY == 0 or step == count:
            recent = float(np.mean(losses[-LOG_EVERY:]))
            steps.set_postfix(loss=f"{recent:.4f}")
            points.append((step, {"train/loss": recent, "train/learning_rate": learning_rate}))
            log(*points[-1])
        # NaN weights make the next loss fail, and would do so again after resuming
        if checkpoint.should_save() and training.has_finite_weights():
            checkpoint.save(STATE, {"run": training.state_dict(), "losses": losses, "points": points})
    return losses


def _nan_hint(settings: LoraSettings, step: int) -> str:
    """Names the likely cause of a loss that is not finite; before the first update it cannot be the learning rate."""
    if settings.training.mixed_precision == "fp16":
        return "; fp16 overflows above 65 504: set training.mixed_precision and weight_dtype to bf16, or to no and fp32"
    if step == 1:
        remedy = "check them" if settings.training.mixed_precision == "no" else "set training.mixed_precision: no"
        return f" before the first update: the base itself fails on these images; {remedy}"
    return f"; lower optimizer.learning_rate ({settings.optimizer.learning_rate})"


def _memory_hint(settings: LoraSettings) -> str:
    training = settings.training
    return (
        f"lower training.train_batch_size ({training.train_batch_size}) and raise gradient_accumulation_steps "
        f"({training.gradient_accumulation_steps}) by the same factor, which gives the same result; "
        "or set gradient_checkpointing: true and merged: false, or mixed_precision and weight_dtype: bf16"
    )


def _prepare_training(
    pipeline: StableDiffusionPipeline,
    prepared: Prepared,
    prompts: list[str],
    schedule: BatchSchedule,
    folder: Path,
    processes: Processes,
) -> _Training:
    """Adds the adapter, encodes images and prompts, and moves VAE and text encoder to the CPU."""
    import torch

    from pathsynth.finetuning.merged import MergedUNet

    settings = schedule.settings
    training = settings.training
    parts = micro_batches(training.train_batch_size, training.gradient_accumulation_steps, processes.index, processes.count)
    accelerator = _create_accelerator(training, len(parts))
    torch.manual_seed(mix_seed(Stream.LORA_WEIGHTS, schedule.seed))
    pipeline.unet.to(dtype(training.weight_dtype))
    parameters = add_lora(pipeline.unet, settings.adapter)
    if training.gradient_checkpointing:
        pipeline.unet.enable_gradient_checkpointing()
    latents = encode_images(pipeline, prepared, schedule, folder, processes)
    embeddings = encode_prompts(pipeline, [*prompts, ""])
    pipeline.vae.to("cpu")
    pipeline.text_encoder.to("cpu")
    optimizer = _build_optimizer(parameters, settings)
    lr_schedule = build_schedule(optimizer, settings.schedule, training.max_train_steps)
    unet, optimizer = accelerator.prepare(MergedUNet(pipeline.unet) if training.merged else pipeline.unet, optimizer)
    unet.train()
    objective = Objective(pipeline, unet, embeddings, settings.objective.snr_gamma)
    return _Training(accelerator, unet, parameters, optimizer, lr_schedule, objective, latents, parts)


def _build_optimizer(parameters: list[torch.nn.Parameter], settings: LoraSettings) -> torch.optim.Optimizer:
    import torch

    options = settings.optimizer
    # the fused kernel skips overflowing fp16 steps internally, so neither accelerate nor the schedule would notice
    fused = settings.training.mixed_precision != "fp16"
    return torch.optim.AdamW(parameters, options.learning_rate, BETAS, EPSILON, options.weight_decay, fused=fused)


def _create_accelerator(training: TrainingSettings, accumulation: int) -> Accelerator:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    gpu = gpu_available()
    precision: str = training.mixed_precision
    if precision == "fp16" and not gpu:
        raise TrainingError("training.mixed_precision: 'fp16' needs a GPU; allowed without one: 'no', 'bf16'")
    # weights in bf16 need autocast, since the adapter is in fp32
    if training.weight_dtype == "fp32":
        precision = supported_precision("cuda" if gpu else "cpu", precision)
    # accelerate keeps the mixed precision of the first Accelerator in a process
    AcceleratorState._reset_state()
    # accelerate prefers this variable to the argument
    os.environ.pop("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", None)
    try:
        return Accelerator(cpu=not gpu, mixed_precision=precision, gradient_accumulation_steps=accumulation)
    except ValueError as error:
        raise TrainingError(f"training.mixed_precision: {training.mixed_precision!r}: {error}") from error
