"""LoRA training: images and prompts are encoded once, then only the UNet runs."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pathsynth.core.checkpoint import NO_CHECKPOINT, Checkpoint
from pathsynth.core.devices import catch_out_of_memory, dtype, supported_precision, tf32, training_attention
from pathsynth.core.distributed import ALONE, Processes
from pathsynth.core.errors import TrainingError, one_line
from pathsynth.core.gpu import gpu_available
from pathsynth.core.progress import progress_bar
from pathsynth.core.seeds import Stream, get_random_state, mix_seed, set_random_state
from pathsynth.data.prepared import Prepared
from pathsynth.diffusion.adapter import add_lora
from pathsynth.diffusion.base import check_image_size, encode_prompts
from pathsynth.diffusion.denoising import load_noise_scheduler
from pathsynth.finetuning.batches import BatchSchedule, StepBatch, check_process_count, micro_batches
from pathsynth.finetuning.latents import Latents, blank_latents, encode_images, latent_shape
from pathsynth.finetuning.objective import Objective
from pathsynth.finetuning.recorder import NO_RECORDS, VALIDATION_LOSS, Recorder, Records
from pathsynth.finetuning.result import Result, summarize_steps
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
    records: Records = NO_RECORDS,
) -> Result:
    """Adds an adapter to the pipeline's UNet and trains it on the train split.

    Args:
        pipeline: the base; its UNet is changed in place.
        prepared: images and labels.
        prompts: one per tissue, in the order of labels.
        settings: the LoRA configuration.
        seed: global seed.
        log: called with a step, 0 being before the first, and the values of its curves: every LOG_EVERY steps those of the
            training, and at the steps of `settings.validation` the validation loss.
        scratch: folder in which latents are kept, 12.5 kB for each view of an image of 224 px.
        processes: the processes that share the work; all end with the same weights.
        checkpoint: saves the training at intervals, and resumes an interrupted one.
        records: where sheets and snapshots go.

    Returns:
        As `summarize_steps`, and in the main process `validation_loss`, the last one, unless it is switched off.

    Raises:
        TrainingError: loss or weights become NaN, the device does not support the number format, the processes cannot share a
            step, or the UNet cannot be compiled.
        ModelError: the adapter or the image size does not fit the base.
        DataError: the latents cannot be written.
        OutOfMemory: a step does not fit into memory; a step is tried before any image is encoded.
    """
    check_image_size(pipeline, prepared.image_size)
    check_process_count(settings, processes.count)
    schedule = BatchSchedule(
        settings,
        seed,
        num_images=prepared.counts["train"],
        latent_shape=latent_shape(pipeline, prepared.image_size),
        noise_scheduler=load_noise_scheduler(pipeline),
    )
    training = _prepare_training(pipeline, prompts, schedule, processes)
    with _training_kernels(training, pipeline, schedule):
        training.try_step(blank_latents(prepared, schedule), schedule)
    latents = encode_images(pipeline, prepared, schedule, scratch, processes)
    recorder = Recorder(training, pipeline, prepared, records, checkpoint)
    with _training_kernels(training, pipeline, schedule):
        losses, points = _run_steps(training, latents, schedule, log, checkpoint, recorder)
    # the loss is computed before the update, so it does not reveal a failure of the last update
    if not training.has_finite_weights():
        raise TrainingError("the last step produced NaN weights; lower optimizer.learning_rate")
    validation = [values[VALIDATION_LOSS] for _, values in points if VALIDATION_LOSS in values]
    last = {"validation_loss": round(validation[-1], 6)} if validation else {}
    return summarize_steps(settings, training.parameters, losses) | last


@dataclass(frozen=True)
class _Training:
    """The objects that an optimizer step needs."""

    settings: LoraSettings
    processes: Processes
    accelerator: Accelerator
    unet: torch.nn.Module
    parameters: list[torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    lr_schedule: torch.optim.lr_scheduler.LRScheduler
    objective: Objective
    micro_batches: list[slice]

    def try_step(self, blank: Latents, schedule: BatchSchedule) -> None:
        """Runs one micro-batch of blank latents forward and backward, so that a lack of memory shows before images are encoded.

        Raises:
            OutOfMemory: it does not fit, together with the optimizer's state.
            TrainingError: the UNet cannot be compiled.
        """
        import torch

        settings, random = schedule.settings, get_random_state()
        batch = next(iter(schedule)).select(self.micro_batches[0])
        try:
            with catch_out_of_memory(_memory_hint(settings)):
                # AdamW's two moments, and the gradients of an earlier micro-batch; Muon needs more only after the backward pass
                reserved = [torch.empty_like(parameter) for parameter in self.parameters for _ in range(3)]
                self.objective.loss(blank, batch).backward()
        except torch._dynamo.exc.TorchDynamoException as error:
            raise TrainingError(f"training.compile: true: {one_line(error)}; set it to false") from error
        del reserved
        for parameter in self.parameters:
            parameter.grad = None
        set_random_state(random)
        if gpu_available():
            torch.cuda.empty_cache()

    def step(self, latents: Latents, batch: StepBatch, max_grad_norm: float) -> float:
        """Runs one optimizer step on this process's micro-batches; returns the mean loss of the whole batch."""
        import torch

        losses = []
        for rows in self.micro_batches:
            with self.accelerator.accumulate(self.unet):
                loss = self.objective.loss(latents, batch.select(rows))
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.parameters, max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            losses.append(loss.detach())
        return self.accelerator.reduce(torch.stack(losses).mean(), "mean").item()

    def has_finite_weights(self) -> bool:
        import torch

        # one value for all, because a GPU waits for each that is read
        return bool(torch.stack([parameter.isfinite().all() for parameter in self.parameters]).all())

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


@contextmanager
def _training_kernels(training: _Training, pipeline: StableDiffusionPipeline, schedule: BatchSchedule) -> Iterator[None]:
    """Selects kernels for the UNet; the VAE uses torch's choice."""
    from peft.helpers import disable_input_dtype_casting

    attention = training_attention(pipeline.unet.device.type, math.prod(schedule.latent_shape[1:]))
    # under autocast, peft's cast to float32 would only be undone, at the cost of a third of all kernels
    autocast = training.accelerator.mixed_precision != "no"
    with attention, tf32(schedule.settings.training.tf32), disable_input_dtype_casting(pipeline.unet, autocast):
        yield


def _run_steps(
    training: _Training, latents: Latents, schedule: BatchSchedule, log: Log, checkpoint: Checkpoint, recorder: Recorder
) -> tuple[list[float], list[tuple[int, dict[str, float]]]]:
    """Runs the remaining optimizer steps; returns the losses and the logged points of all."""
    settings, count = schedule.settings, schedule.settings.training.max_train_steps
    losses: list[float] = []
    points: list[tuple[int, dict[str, float]]] = []

    def finish_step(step: int, values: dict[str, float]) -> None:
        """Logs the values of a step and its records, and saves the state when it is time."""
        if values := values | recorder.record(step, losses):
            points.append((step, values))
            log(*points[-1])
        # saving a record counts as a checkpoint, so frequent records would put off the next one for ever;
        # NaN weights make the next loss fail, and would do so again after resuming
        if checkpoint.writes and (checkpoint.should_save() or recorder.saves_at(step)) and training.has_finite_weights():
            checkpoint.save(STATE, {"run": training.state_dict(), "losses": losses, "points": points})
            latents.mark_used()

    state = checkpoint.load(STATE)
    # every process has read the state before the main process saves its first; on a network file system they may differ
    found = training.processes.gather(None if state is None else len(state["losses"]))
    if state is not None and len(set(found)) == 1 and recorder.restore(state["losses"]):
        training.load_state_dict(state["run"])
        losses, points = state["losses"], state["points"]
        checkpoint.log(f"resuming after step {len(losses)} of {count}")
        for point in points:
            log(*point)
    else:
        finish_step(0, {})
    hint = _memory_hint(settings)
    remaining = itertools.islice(schedule, len(losses), None)
    steps = progress_bar(remaining, "training LoRA", count, done=len(losses))
    for step, batch in enumerate(steps, start=len(losses) + 1):
        with catch_out_of_memory(hint):
            losses.append(training.step(latents, batch, settings.optimizer.max_grad_norm))
        if not math.isfinite(losses[-1]):
            raise TrainingError(f"step {step}: the loss is {losses[-1]}{_nan_hint(settings, step)}")
        learning_rate = float(training.lr_schedule.get_last_lr()[0])
        # fp16 skips steps with overflowing gradients until the loss scale fits
        if not training.accelerator.optimizer_step_was_skipped:
            training.lr_schedule.step()
        values: dict[str, float] = {}
        if step % LOG_EVERY == 0 or step == count:
            recent = float(np.mean(losses[-LOG_EVERY:]))
            steps.set_postfix(loss=f"{recent:.4f}")
            values = {"train/loss": recent, "train/learning_rate": learning_rate}
        finish_step(step, values)
    return losses, points


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
    pipeline: StableDiffusionPipeline, prompts: list[str], schedule: BatchSchedule, processes: Processes
) -> _Training:
    """Adds the adapter, encodes the prompts, and moves VAE and text encoder to the CPU."""
    import torch

    from pathsynth.finetuning.merged import MergedUNet

    settings = schedule.settings
    training = settings.training
    parts = micro_batches(training.effective_batch_size, training.train_batch_size, processes.index, processes.count)
    accelerator = _create_accelerator(training, len(parts))
    torch.manual_seed(mix_seed(Stream.LORA_WEIGHTS, schedule.seed))
    pipeline.unet.to(dtype(training.weight_dtype))
    parameters = add_lora(pipeline.unet, settings.adapter)
    if training.gradient_checkpointing:
        pipeline.unet.enable_gradient_checkpointing()
    if training.compile:
        pipeline.unet.compile_repeated_blocks()
    embeddings = encode_prompts(pipeline, [*prompts, ""])
    pipeline.vae.to("cpu")
    pipeline.text_encoder.to("cpu")
    optimizer = _build_optimizer(parameters, settings)
    lr_schedule = build_schedule(optimizer, settings.schedule, training.max_train_steps)
    unet, optimizer = accelerator.prepare(MergedUNet(pipeline.unet) if training.merged else pipeline.unet, optimizer)
    unet.train()
    objective = Objective(pipeline, unet, embeddings, settings.objective.snr_gamma)
    return _Training(settings, processes, accelerator, unet, parameters, optimizer, lr_schedule, objective, parts)


def _build_optimizer(parameters: list[torch.nn.Parameter], settings: LoraSettings) -> torch.optim.Optimizer:
    import torch

    options = settings.optimizer
    if options.name == "muon":
        from pathsynth.core.muon import Muon

        return Muon(parameters, options.learning_rate, options.weight_decay)
    # the fused kernel skips overflowing fp16 steps internally, so neither accelerate nor the schedule would notice
    kernel = {"foreach": True} if settings.training.mixed_precision == "fp16" else {"fused": True}
    return torch.optim.AdamW(parameters, options.learning_rate, BETAS, EPSILON, options.weight_decay, **kernel)


def _create_accelerator(training: TrainingSettings, accumulation: int) -> Accelerator:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    gpu = gpu_available()
    precision: str = training.mixed_precision
    if precision == "fp16" and not gpu:
        raise TrainingError("training.mixed_precision: 'fp16' needs a GPU; allowed without one: 'no', 'bf16'")
    # on a CPU, weights in bf16 need autocast, since the adapter is in fp32
    if gpu or training.weight_dtype == "fp32":
        precision = supported_precision("cuda" if gpu else "cpu", precision)
    # accelerate keeps the mixed precision of the first Accelerator in a process
    AcceleratorState._reset_state()
    # accelerate prefers this variable to the argument
    os.environ.pop("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", None)
    try:
        return Accelerator(cpu=not gpu, mixed_precision=precision, gradient_accumulation_steps=accumulation)
    except ValueError as error:
        raise TrainingError(f"training.mixed_precision: {training.mixed_precision!r}: {error}") from error
