"""The `generation` section of a benchmark: sampling and filtering."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from pathsynth.core.params import Fraction, MixedPrecision, PositiveInt, Section, WeightDtype


class SamplerSettings(Section):
    """How images are sampled.

    `scheduler` is the name of a diffusers scheduler class, `weight_dtype` the number format of all weights.
    """

    scheduler: Annotated[str, Field(pattern=r"^[A-Za-z0-9]+Scheduler$")]
    num_inference_steps: Annotated[int, Field(gt=0, le=1000)]
    guidance_scale: Annotated[float, Field(ge=1)]
    negative_prompt: str = ""
    batch_size: PositiveInt
    mixed_precision: MixedPrecision
    weight_dtype: WeightDtype = "fp32"

    @model_validator(mode="after")
    def _check_formats(self) -> Self:
        if self.weight_dtype != "fp32" and self.mixed_precision not in ("no", self.weight_dtype):
            raise ValueError(f"weight_dtype: {self.weight_dtype!r} needs mixed_precision: no or {self.weight_dtype}")
        return self


class GenerationSettings(Section):
    """How many images are requested and how they are filtered.

    Each of a tissue's `images_per_tissue` slots gets at most `max_attempts` attempts. The stage fails if less than the fraction
    `quota` of any tissue's slots is filled.
    """

    images_per_tissue: PositiveInt
    max_attempts: PositiveInt
    quota: Fraction
    sampler: SamplerSettings
