"""A LoRA configuration: an entry of `loras` in params.yaml, with the values of its family."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pathsynth.core.params import (
    MixedPrecision,
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveInt,
    Section,
    ShareBelowOne,
    WeightDtype,
)
from pathsynth.diffusion.settings import AdapterSettings, PromptSet


class OptimizerSettings(Section):
    """AdamW and the clipping of its gradients' norm."""

    learning_rate: Positive
    weight_decay: NonNegative
    max_grad_norm: Positive


class ScheduleSettings(Section):
    """Learning rate over optimiser steps; `restart_steps` and `restart_mult` are T_0 and T_mult of warm restarts."""

    lr_scheduler: Literal["constant", "linear", "cosine", "cosine_warm_restarts"]
    warmup_steps: NonNegativeInt
    restart_steps: PositiveInt | None = None
    restart_mult: PositiveInt | None = None

    @model_validator(mode="after")
    def _restarts_fit(self) -> Self:
        wanted = self.lr_scheduler == "cosine_warm_restarts"
        if wanted != (self.restart_steps is not None) or wanted != (self.restart_mult is not None):
            raise ValueError("restart_steps and restart_mult are numbers for cosine_warm_restarts, and null for any other")
        return self


class TrainingSettings(Section):
    """How much is trained: optimiser steps of `train_batch_size` x `gradient_accumulation_steps` images.

    That is on all processes together, so that the result does not depend on their number. `weight_dtype` is the number format
    of the frozen weights; the adapter's are always float32. `merged` adds the adapter to the weights once a step instead of to
    every layer's output: the same gradients up to rounding, faster where images are small.
    """

    max_train_steps: PositiveInt
    train_batch_size: PositiveInt
    gradient_accumulation_steps: PositiveInt
    mixed_precision: MixedPrecision
    weight_dtype: WeightDtype
    gradient_checkpointing: bool = False
    merged: bool

    @model_validator(mode="after")
    def _formats_fit(self) -> Self:
        if self.weight_dtype != "fp32" and self.mixed_precision != self.weight_dtype:
            raise ValueError(f"weight_dtype: {self.weight_dtype!r} needs mixed_precision: {self.weight_dtype}; or use 'fp32'")
        return self

    @model_validator(mode="after")
    def _layers_are_called_once(self) -> Self:
        if self.merged and self.gradient_checkpointing:
            raise ValueError("merged: true cannot go with gradient_checkpointing: true; set one of them to false")
        return self


class ObjectiveSettings(Section):
    """The loss and its inputs: noise offset, min-SNR gamma or null, dropped captions, augmentation.

    `rotation_degrees` rotates images by a random angle of at most that much; the corners become black.
    """

    noise_offset: NonNegative
    snr_gamma: Positive | None
    caption_dropout: ShareBelowOne
    flips: bool
    rotate90: bool
    rotation_degrees: Annotated[float, Field(ge=0, le=180)] = 0.0


class LoraSettings(Section):
    """One LoRA configuration; `prompts` is the prompt set of both training and generation."""

    prompts: PromptSet
    adapter: AdapterSettings
    optimizer: OptimizerSettings
    schedule: ScheduleSettings
    training: TrainingSettings
    objective: ObjectiveSettings

    @model_validator(mode="after")
    def _warmup_ends(self) -> Self:
        if self.schedule.warmup_steps >= self.training.max_train_steps:
            raise ValueError(
                f"schedule.warmup_steps must be less than training.max_train_steps ({self.training.max_train_steps})"
            )
        return self

    @model_validator(mode="after")
    def _adapter_can_be_merged(self) -> Self:
        if self.training.merged and (self.adapter.lora_dropout or self.adapter.use_dora):
            raise ValueError("training.merged: true needs adapter.lora_dropout: 0.0 and adapter.use_dora: false")
        return self
