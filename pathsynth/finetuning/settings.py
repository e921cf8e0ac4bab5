"""Settings of a LoRA configuration: an entry of `loras` in params.yaml, merged over its families."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

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
from pathsynth.diffusion.settings import AdapterSettings, LogSnr, PromptSet


class OptimizerSettings(Section):
    """The optimizer, and the norm to which gradients are clipped."""

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: Positive
    weight_decay: NonNegative
    max_grad_norm: Positive


class ScheduleSettings(Section):
    """Learning rate over optimizer steps; `restart_steps` and `restart_mult` are T_0 and T_mult of warm restarts."""

    lr_scheduler: Literal["constant", "linear", "cosine", "cosine_warm_restarts"]
    warmup_steps: NonNegativeInt
    restart_steps: PositiveInt | None = None
    restart_mult: PositiveInt | None = None

    @model_validator(mode="after")
    def _check_restarts(self) -> Self:
        restarts = self.lr_scheduler == "cosine_warm_restarts"
        if restarts != (self.restart_steps is not None) or restarts != (self.restart_mult is not None):
            raise ValueError(
                "restart_steps and restart_mult must be numbers for cosine_warm_restarts, and null for all other schedules"
            )
        return self


class TrainingSettings(Section):
    """Optimizer steps, batch sizes and number formats.

    Batch sizes are those of all processes together, so the result does not depend on their number. `weight_dtype` is the format
    of the frozen weights; the adapter is always float32. `tf32` allows float32 matrix products on a GPU to be rounded to TF32.
    `merged` adds the adapter to the weights once per step instead of to every layer's output, which gives the same gradients up
    to rounding and is faster for small images. `compile` compiles the UNet's transformer blocks when the training starts. The
    adapters after the optimizer steps in `snapshots` are kept.
    """

    max_train_steps: PositiveInt
    train_batch_size: PositiveInt
    gradient_accumulation_steps: PositiveInt
    mixed_precision: MixedPrecision
    weight_dtype: WeightDtype
    tf32: bool = False
    gradient_checkpointing: bool = False
    merged: bool
    compile: bool = False
    snapshots: list[PositiveInt] = Field(default_factory=list)

    @property
    def effective_batch_size(self) -> int:
        """Images per optimizer step."""
        return self.train_batch_size * self.gradient_accumulation_steps

    @model_validator(mode="after")
    def _check_formats(self) -> Self:
        if self.weight_dtype != "fp32" and self.mixed_precision != self.weight_dtype:
            raise ValueError(f"weight_dtype: {self.weight_dtype!r} needs mixed_precision: {self.weight_dtype}; or use 'fp32'")
        return self

    @model_validator(mode="after")
    def _check_snapshots(self) -> Self:
        if self.snapshots != sorted(set(self.snapshots)) or any(step >= self.max_train_steps for step in self.snapshots):
            raise ValueError(f"snapshots must be ascending, unique, and less than max_train_steps ({self.max_train_steps})")
        return self

    @model_validator(mode="after")
    def _check_merged(self) -> Self:
        for name in ("gradient_checkpointing", "compile"):
            if self.merged and getattr(self, name):
                raise ValueError(f"merged: true excludes {name}: true; set one of them to false")
        return self


class ObjectiveSettings(Section):
    """The loss and its inputs: noise offset, min-SNR gamma or null, caption dropout, noise levels, augmentation.

    Without `log_snr`, time steps are uniform. `rotation_degrees` is the largest angle of random rotations, whose corners become
    black.
    """

    noise_offset: NonNegative
    snr_gamma: Positive | None
    log_snr: LogSnr | None = None
    caption_dropout: ShareBelowOne
    flips: bool
    rotate90: bool
    rotation_degrees: Annotated[float, Field(ge=0, le=180)] = 0.0

    @model_validator(mode="after")
    def _check_noise_levels(self) -> Self:
        if self.log_snr and self.snr_gamma:
            raise ValueError("log_snr excludes snr_gamma, because both weight the noise levels; set one of them to null")
        return self


class ValidationSettings(Section):
    """Validation loss and sheets of sampled images: before the first step, every so many steps, and after the last.

    Neither changes the trained weights. None switches one off. `validation_images` is the number of images per tissue.
    """

    validation_steps: PositiveInt | None = None
    validation_images: PositiveInt = 4
    sheet_steps: PositiveInt | None = None


class LoraSettings(Section):
    """One LoRA configuration.

    `prompts` is the prompt set of both training and generation. With `fast_sampler`, generation uses the number formats and the
    batch size in `generation.sampler.fast` of the benchmark, which change speed and rounding only.
    """

    prompts: PromptSet
    adapter: AdapterSettings
    optimizer: OptimizerSettings
    schedule: ScheduleSettings
    training: TrainingSettings
    objective: ObjectiveSettings
    validation: ValidationSettings = ValidationSettings()
    fast_sampler: bool = False

    @model_validator(mode="after")
    def _check_muon(self) -> Self:
        if self.optimizer.name == "muon" and self.adapter.use_dora:
            raise ValueError("optimizer.name: 'muon' excludes adapter.use_dora: true, because magnitudes are vectors")
        return self

    @model_validator(mode="after")
    def _check_warmup(self) -> Self:
        if self.schedule.warmup_steps >= self.training.max_train_steps:
            raise ValueError(
                f"schedule.warmup_steps must be less than training.max_train_steps ({self.training.max_train_steps})"
            )
        return self

    @model_validator(mode="after")
    def _check_merged_adapter(self) -> Self:
        if self.training.merged and (self.adapter.lora_dropout or self.adapter.use_dora):
            raise ValueError("training.merged: true needs adapter.lora_dropout: 0.0 and adapter.use_dora: false")
        return self


def drop_records(lora: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of a configuration without those that change no weight: `validation` and `training.snapshots`."""
    training = {key: value for key, value in (lora.get("training") or {}).items() if key != "snapshots"}
    return {key: value for key, value in lora.items() if key != "validation"} | {"training": training}
