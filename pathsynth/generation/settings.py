"""The `generation` section of a benchmark: sampling and filtering."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from pathsynth.core.params import Fraction, MixedPrecision, Params, PositiveInt, Section, WeightDtype, validate


class SamplerFormat(Section):
    """Values that replace those of the sampler; null keeps one."""

    batch_size: PositiveInt | None = None
    mixed_precision: MixedPrecision | None = None
    weight_dtype: WeightDtype | None = None
    tf32: bool | None = None


class SamplerSettings(Section):
    """How images are sampled.

    `scheduler` is the name of a diffusers scheduler class, `weight_dtype` the number format of all weights. `tf32` allows
    float32 matrix products on a GPU to be rounded to TF32. `fast` are the formats for LoRA configurations with `fast_sampler`.
    """

    scheduler: Annotated[str, Field(pattern=r"^[A-Za-z0-9]+Scheduler$")]
    num_inference_steps: Annotated[int, Field(gt=0, le=1000)]
    guidance_scale: Annotated[float, Field(ge=1)]
    negative_prompt: str = ""
    batch_size: PositiveInt
    mixed_precision: MixedPrecision
    weight_dtype: WeightDtype = "fp32"
    tf32: bool = False
    fast: SamplerFormat = SamplerFormat()

    @model_validator(mode="after")
    def _check_formats(self) -> Self:
        if self.weight_dtype != "fp32" and self.mixed_precision not in ("no", self.weight_dtype):
            raise ValueError(f"weight_dtype: {self.weight_dtype!r} needs mixed_precision: no or {self.weight_dtype}")
        return self

    def key(self, name: str) -> str:
        """Returns the key in the benchmark at which the value `name` is set."""
        return f"generation.sampler.{name}"


class FastSamplerSettings(SamplerSettings):
    """The sampler's settings with the values of `fast` in place of its own."""

    def key(self, name: str) -> str:
        """Returns the key in the benchmark at which the value `name` is set."""
        return super().key(name if getattr(self.fast, name) is None else f"fast.{name}")


class FilterSettings(Section):
    """How images are filtered.

    Each slot gets at most `max_attempts` attempts. The stage fails if less than the fraction `quota` of any tissue's slots is
    filled.
    """

    max_attempts: PositiveInt
    quota: Fraction


class GenerationSettings(Section):
    """How many images are requested of each tissue, how they are filtered, and by which adapter they are sampled.

    `snapshot` is an optimizer step of the LoRA's `training.snapshots`, or None for the end of the training.
    """

    images_per_tissue: PositiveInt
    filter: FilterSettings
    snapshot: PositiveInt | None
    sampler: SamplerSettings


def read_generation(params: Params) -> GenerationSettings:
    """Reads the benchmark's `generation` section, with the number formats that the selected LoRA configuration asks for.

    Raises:
        ParamsError: a value is invalid.
    """
    settings = params.section("generation", GenerationSettings)
    if not params.lora.get("fast_sampler", False):
        return settings
    sampler = settings.sampler.model_dump() | settings.sampler.fast.model_dump(exclude_none=True)
    sampler = validate(params.benchmark_path, "generation.sampler.fast", FastSamplerSettings, sampler)
    return settings.model_copy(update={"sampler": sampler})
